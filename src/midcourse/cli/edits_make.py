"""midcourse edits make."""

from dataclasses import dataclass, field
from pathlib import Path

from midcourse.cli.console import bad_rows
from midcourse.terminal import tell


@dataclass(frozen=True, kw_only=True)
class Read:
    """The responses to be edited."""

    comparisons: Path
    """Rows with prompt, chosen and rejected (JSONL, also .gz, CSV or Parquet); the rejected responses are edited."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """Where the edits go."""

    out: Path
    """JSONL to append edits to, each on disk as soon as it is made. What could not be edited, and why, goes to
    OUT.failed.jsonl; what was asked is kept in OUT.asked.json."""
    resume: bool = False
    """Keep the rows of --out, which have to be asked for as they were, and make the missing ones."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """The language model that edits, behind an OpenAI-compatible server."""

    editor: str
    """The server's address, such as http://localhost:8000/v1."""
    model: str
    """The server's name of its model."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's API key, if it wants one."""
    concurrency: int = 8
    """Responses that the server is asked about at a time."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """How the model is asked, and which answers are taken."""

    show_preferred: bool = False
    """Show the editor the chosen response too, as TLCR does."""
    most: float = 0.5
    """Largest share of the words that an edit may change; an edit that changes more is asked for again."""
    temperature: float = 0.0
    """Divides the log-probabilities; 0 takes the likeliest token. Asked again, the model has at least 0.5."""
    retries: int = 2
    """How often it is asked again if its answer is no such edit."""


@dataclass(kw_only=True)
class EditsMake:
    """Let a language model edit rejected responses, changing as little as possible.

    midcourse train learns from the edits; midcourse edits label shows them.
    """

    read: Read
    write: Write
    server: Server
    ask: Ask = field(default_factory=Ask)

    def run(self) -> int:
        from midcourse.data.comparisons import read_comparisons
        from midcourse.data.prompts import check_out
        from midcourse.edits.make import Editor, failed_of, make_edits

        server, ask = self.server, self.ask
        editor = Editor.at(
            server.editor,
            server.model,
            api_key_env=server.api_key_env,
            concurrency=server.concurrency,
            show_preferred=ask.show_preferred,
            most=ask.most,
            temperature=ask.temperature,
            retries=ask.retries,
        )
        with bad_rows(self.read.skip_bad_rows) as rejects:
            comparisons = read_comparisons(self.read.comparisons, rejects=rejects)
        check_out(self.write.out, self.write.resume)
        found = make_edits(comparisons, editor, self.write.out, resume=self.write.resume)
        tell(f"{found.edits} edits in {self.write.out}, {found.new} responses asked about now")
        if found.failed:
            tell(f"{found.failed} could not be edited: {failed_of(self.write.out)}")
        return 0
