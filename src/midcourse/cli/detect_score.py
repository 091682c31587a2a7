"""midcourse detect score."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from midcourse.cli.console import UsageError, bad_rows, check_page, check_rate
from midcourse.cli.groups import Machine
from midcourse.files import as_json
from midcourse.terminal import say, tell, visible

if TYPE_CHECKING:
    from midcourse.detect.detector import Verdict


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Which detector is asked, and how."""

    detector: str = "shipped"
    """The shipped detector, or a folder that midcourse detect calibrate wrote."""
    fpr: float = 0.01
    """Share of human texts that may be called a machine's."""
    guarantee: Literal["average", "confidence"] = "average"
    """How the rate is held. average: over calibrations like the detector's. confidence: with 95% confidence, which
    takes three times the calibration texts."""
    group: str | None = None
    """The group that all texts are of, one of those the detector was calibrated on; without it, the strictest threshold
    of any group counts."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write besides a table."""

    json: bool = False
    """Print a row of JSON for every text instead."""
    html: Path | None = None
    """Write a page with the texts, every token coloured by what it adds to the score, to this file."""
    out: Path | None = None
    """JSONL to append a row for every text to, 64 texts at a time; for many texts."""
    resume: bool = False
    """Keep the rows of --out, and write the missing ones."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""


@dataclass(kw_only=True)
class DetectScore:
    """Say whether a machine wrote a text, a person, or that this cannot be told.

    A verdict holds the false-positive rate that you choose on texts like those of the detector's calibration, and no
    other: the shipped one's are English prose of today. Never decide about a person on its word alone.
    """

    source: tyro.conf.Positional[str]
    """A text file, a file of rows with a field "text" (JSONL, also .gz, CSV or Parquet), a folder of such files, or -
    for a text on standard input."""
    ask: Ask = field(default_factory=Ask)
    write: Write = field(default_factory=Write)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)

    def run(self) -> int:
        from midcourse.detect.detector import Detector
        from midcourse.detect.page import write_verdicts_page
        from midcourse.detect.texts import passed_over, read_texts
        from midcourse.detect.verdicts import write_verdicts
        from midcourse.progress import progress

        if self.write.resume and not self.write.out:
            raise UsageError("--resume goes on with a file of rows; name it with --out")
        if self.write.html and self.write.out:
            raise UsageError("--html is a page to look at, --out a file for many texts; leave one of them out")
        if self.write.json and self.write.out:
            raise UsageError("--out holds rows of JSON already; leave --json out")
        check_page(self.write.html)
        check_rate(self.ask.fpr)
        with bad_rows(self.write.skip_bad_rows) as rejects:
            texts = read_texts(self.source, rejects=rejects)
        if others := passed_over(self.source):
            named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
            tell(f"not read in {self.source}: {named}")
        detector = Detector.load(self.ask.detector, **asdict(self.machine))
        asked: dict[str, Any] = {"fpr": self.ask.fpr, "guarantee": self.ask.guarantee, "group": self.ask.group}
        if self.write.out:
            new, there = write_verdicts(self.write.out, detector, texts, asked, resume=self.write.resume)
            tell(f"{new} verdicts written to {self.write.out}, {there} were there")
            return 0
        with progress("reading", len(texts)) as advance:
            verdicts = detector.score(texts, **asked, advance=advance)
            if self.write.json and not self.write.html:
                for verdict in verdicts:
                    print(as_json(asdict(verdict), ensure_ascii=False), flush=True)
                return 0
            found = list(verdicts)
        if self.write.html:
            write_verdicts_page(self.write.html, detector, texts, found)
        if self.write.json:
            for verdict in found:
                print(as_json(asdict(verdict), ensure_ascii=False))
        else:
            _print(found)
            if self.ask.detector == "shipped":
                say("The shipped detector knows English prose alone; of other texts it may say anything.")
        if self.write.html:
            tell(f"page: {self.write.html}")
        return 0


def _print(verdicts: "Sequence[Verdict]") -> None:
    """Print a table of verdicts, and once what they rest on."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from midcourse.show.tokens import chance as chance_of

    colours = {"machine": "red", "human": "green", "cannot tell": "yellow"}
    table = Table("text", "verdict", "probability", "words", "why")
    for one in verdicts:
        chance = "" if one.probability is None else chance_of(one.probability)
        why = "; ".join((one.reason, *one.remarks))
        verdict = f"[{colours[one.verdict]}]{one.verdict}[/]"
        table.add_row(escape(visible(one.name or "text")), verdict, chance, str(one.words), escape(visible(why)))
    Console().print(table)
    say("probability: that a machine wrote the text, if half of such texts are machines'")
    say("A verdict is no ground to judge a person by.")
