"""midcourse detect mix."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midcourse.cli.console import UsageError, bad_rows
from midcourse.cli.groups import ChatModel
from midcourse.terminal import tell

if TYPE_CHECKING:
    from midcourse.detect.mix import Mixed
    from midcourse.detect.rephrase import Rephraser


@dataclass(frozen=True, kw_only=True)
class Read:
    """What to mix."""

    texts: str
    """Human texts: a file of rows with a field "text" or "human" (JSONL, also .gz, CSV or Parquet), a plain text, a
    folder of such files, or - for standard input. Texts with another label than human are left out, but a row's
    machine text stays beside its human one, as midcourse detect train wants it."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write, and where."""

    out: Path
    """JSONL to append finished rows to, each with the fields "human" and "mixed", which sentences are new, and which
    could not be rephrased. What was asked is kept beside it, in OUT.asked.json."""
    resume: bool = False
    """Keep the rows of --out, which have to be asked for as they were, and write the missing ones."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which sentences are rephrased."""

    ratio: float = 0.5
    """Share of a text's sentences, at least one sentence; 1 for all."""
    seed: int = 0
    """Seed of the choice of sentences, and of what the local language model draws."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the language model answers."""

    temperature: float = 0.7
    """Divides the log-probabilities: below 1 the likely becomes likelier still, 0 takes the likeliest token."""
    top_p: float = 0.9
    """Share of the probability to keep: of the candidates only the likeliest that hold this much."""
    top_k: int | None = None
    """Candidates per token of the local language model, the likeliest of the vocabulary; 0 for all of it, 50 by
    default."""
    retries: int = 3
    """How often a sentence is asked about again if its answer is no such sentence, or misses in a list."""
    batch_size: int | None = None
    """Sentences that the local language model writes side by side, 16 by default. No text depends on it."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A language model behind an OpenAI-compatible server, instead of the local one."""

    server: str | None = None
    """The server's address, such as http://localhost:8000/v1."""
    model: str | None = None
    """The server's name of its model."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's API key, if it wants one."""
    concurrency: int = 8
    """Texts that the server is asked about at a time."""


@dataclass(kw_only=True)
class DetectMix:
    """Rephrase some sentences of human texts, for texts between human and machine.

    A language model says a share of the sentences in other words, and each takes the place of the old one; all else
    stays as it is. midcourse detect train learns from the rows. SmolLM2, the default, is a weak writer: behind
    --server stands a better one.
    """

    read: Read
    write: Write
    share: Share = field(default_factory=Share)
    sampling: Sampling = field(default_factory=Sampling)
    server: Server = field(default_factory=Server)
    model: ChatModel = field(default_factory=ChatModel)

    def run(self) -> int:
        from midcourse.data.prompts import check_out
        from midcourse.detect.mix import human_texts, mix
        from midcourse.detect.texts import read_texts

        self._check()
        with bad_rows(self.read.skip_bad_rows) as rejects:
            texts = read_texts(self.read.texts, rejects=rejects)
        left_out = len(texts) - len(human_texts(texts))
        check_out(self.write.out, self.write.resume)
        mixed = mix(
            texts,
            self._rephraser(),
            self.write.out,
            ratio=self.share.ratio,
            seed=self.share.seed,
            resume=self.write.resume,
        )
        tell(f"{summary(mixed)} in {self.write.out}")
        if left_out:
            tell(f"{left_out} texts that are not human are not in the file")
        return 1 if all(one.mixed is None for one in mixed) else 0

    def _check(self) -> None:
        """Refuse flags that do not go together."""
        server, sampling = self.server, self.sampling
        if server.server is None:
            if server.model is not None:
                raise UsageError("--model is a server's model; give its address with --server, or name --lm instead")
            return
        if not server.model:
            raise UsageError("--server needs --model NAME, the server's name of its model")
        for flag, given in (
            ("--lm", self.model.lm != "smollm2"),
            ("--template-argument", bool(self.model.template_argument)),
            ("--top-k", sampling.top_k is not None),
            ("--batch-size", sampling.batch_size is not None),
        ):
            if given:
                raise UsageError(f"{flag} is for a local language model; leave it out, or leave --server out")

    def _rephraser(self) -> "Rephraser":
        server, sampling = self.server, self.sampling
        common: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "retries": sampling.retries,
        }
        if server.server is not None:
            from midcourse.detect.rephrase_server import ServerRephraser

            return ServerRephraser.at(
                server.server,
                server.model or "",
                api_key_env=server.api_key_env,
                concurrency=server.concurrency,
                **common,
            )
        from midcourse.detect.rephrase_lm import LMRephraser

        top_k = 50 if sampling.top_k is None else sampling.top_k or None
        batch_size = 16 if sampling.batch_size is None else sampling.batch_size
        return LMRephraser(self.model.load(), top_k=top_k, batch_size=batch_size, **common)


def summary(mixed: "list[Mixed]") -> str:
    """Return what became of the texts, in words for a person."""
    new, failed = sum(len(one.rephrased) for one in mixed), sum(len(one.failed) for one in mixed)
    without = sum(one.mixed is None for one in mixed)
    fewer = sum(bool(one.failed) and one.mixed is not None for one in mixed)
    parts = [f"{len(mixed)} texts, {new} of {sum(one.sentences for one in mixed)} sentences rephrased"]
    if failed:
        parts.append(f"{failed} could not be: {fewer} texts have fewer new ones, {without} have failed")
    return "; ".join(parts)
