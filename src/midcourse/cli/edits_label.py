"""midcourse edits label."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from midcourse.cli.console import UsageError, bad_rows, check_page, table
from midcourse.files import as_json
from midcourse.terminal import say, tell

if TYPE_CHECKING:
    from midcourse.data.edits import Edit

SHOWN = 5  # edits that are printed if nothing else says how many


@dataclass(frozen=True, kw_only=True)
class Read:
    """How to read the edits and their tokens."""

    tokenizer: str = "smollm2"
    """Whose tokens are labelled: smollm2, a folder, or a Hub id."""
    align: Literal["tokens", "words"] = "tokens"
    """What is aligned. tokens: token ids. words: words, whose tokens all count as changed; white space changes
    nothing."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write, and what to show."""

    out: Path | None = None
    """JSONL of the edits with their tokens and labels, which midcourse train takes; a file that is there is replaced
    only if it has such rows."""
    html: Path | None = None
    """Write a page that shows the edits, to this file."""
    show: int = SHOWN
    """Edits to print, the first ones; all of them go to the page."""
    json: bool = False
    """Print how many tokens have each label as JSON."""


@dataclass(kw_only=True)
class EditsLabel:
    """Say what edits did to each token of both texts.

    A token is kept, added, deleted or substituted, or kept where something was missing before it. The labels are those
    of a shortest way from the original to the edited text. Rows with a text and marked spans get labels too. Without
    --out, the edits and the counts are only shown.
    """

    edits: tyro.conf.Positional[Path]
    """Rows with the fields original and edited, or text and spans (JSONL, also .gz, CSV or Parquet)."""
    read: Read = field(default_factory=Read)
    write: Write = field(default_factory=Write)

    def run(self) -> int:
        from midcourse.data.edits import are_edits, read_edits
        from midcourse.edits.label import count_labels, label_edits
        from midcourse.edits.view import write_edits_page
        from midcourse.lm.load import load_tokenizer

        check_page(self.write.html)
        if self.write.show < 0:
            raise UsageError(f"--show {self.write.show} is no number of edits; use 0 or more")
        out = self.write.out
        if out is not None and out.exists() and not are_edits(out):
            raise UsageError(f"--out {out} is there and holds no edits; name another file")
        with bad_rows(self.read.skip_bad_rows) as rejects:
            edits = read_edits(self.edits, rejects=rejects)
        tokenizer = load_tokenizer(self.read.tokenizer)
        if out is None:
            counts = count_labels(edits, tokenizer, self.read.align)
        else:
            counts = label_edits(edits, tokenizer, out, self.read.align)
        if self.write.html:
            write_edits_page(self.write.html, edits, f"midcourse edits label: {self.edits.name}")
        if self.write.json:
            print(as_json({"edits": len(edits), "tokens": counts}, indent=1))
        else:
            self._print(edits, counts)
        for what, path in (("labels", out), ("page", self.write.html)):
            if path:
                tell(f"{what}: {path}")
        return 0

    def _print(self, edits: "list[Edit]", counts: dict[str, int]) -> None:
        from rich.console import Console

        from midcourse.edits.view import coloured, marked

        console = Console(soft_wrap=True)
        for edit in edits[: self.write.show]:
            if console.color_system:
                console.print(coloured(edit), end="\n\n")
            else:
                say(marked(edit), end="\n\n")
        total = sum(counts.values())
        rows = [(name, str(count), f"{count / total:.1%}") for name, count in counts.items()]
        table(f"Tokens of {len(edits)} edits, both sides", ("label", "tokens", "share"), rows)
