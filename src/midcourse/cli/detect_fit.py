"""midcourse detect fit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from midcourse.cli.console import bad_rows, table
from midcourse.cli.groups import Model
from midcourse.files import as_json
from midcourse.terminal import say, tell


@dataclass(frozen=True, kw_only=True)
class Read:
    """What to learn from, and what of it."""

    layers: tuple[int, ...] | None = None
    """Behind which layers of the language model states are read; by default behind four fifths of them."""
    no_surprise: bool = False
    """Let all tokens count alike, not by their surprise: it saves a pass over the vocabulary."""
    ridge: float = 400.0
    """Ridge of the head in tokens, over 0: the higher, the less it trusts directions in which texts hardly differ, and
    least of all in short texts. High is best for texts unlike those that are learned from."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write."""

    out: Path
    """New folder of the detector, a reward of whole texts."""
    json: bool = False
    """Print how it was chosen as JSON."""


@dataclass(kw_only=True)
class DetectFit:
    """Learn to tell machine texts from human ones in minutes, on a frozen model.

    A text's score is the mean of its tokens' rewards, each of what the model computes there anyway: its states and its
    surprise. Nothing but the head is learned, so a few hundred texts do. Calibrate it afterwards, on human texts that
    it did not learn from: midcourse detect calibrate.
    """

    texts: tyro.conf.Positional[Path]
    """Rows with text and label (human or machine), or with human and machine (or llm) texts; the field domain says what
    kind of text each is, of which there should be several (JSONL, also .gz, CSV, Parquet)."""
    read: Read = field(default_factory=Read)
    write: Write
    model: Model = field(default_factory=Model)

    def run(self) -> int:
        from midcourse.data.learned import write_learned_rows
        from midcourse.detect.fit import fit
        from midcourse.detect.texts import read_texts
        from midcourse.files import whole_folder
        from midcourse.train.implicit import check_new

        check_new(self.write.out)
        with bad_rows(self.read.skip_bad_rows) as rejects:
            texts = read_texts(self.texts, rejects=rejects)
        reward, metrics = fit(
            self.model.load(),
            texts,
            layers=self.read.layers,
            surprise=not self.read.no_surprise,
            ridge=self.read.ridge,
        )
        with whole_folder(self.write.out) as work:
            reward.write(work)
            write_learned_rows(work, [text for text in texts if text.label in ("human", "machine")])
        if self.write.json:
            print(as_json(metrics, indent=1))
        else:
            _print(metrics)
        tell(f"detector: {self.write.out}; set its thresholds with midcourse detect calibrate")
        return 0


def _print(metrics: dict[str, Any]) -> None:
    if metrics["left_out"]:
        rows = [(domain or "no domain", f"{auroc:.3f}") for domain, auroc in metrics["left_out"].items()]
        table("Told apart without having learned from the domain", ("domain", "AUROC"), rows)
    say(f"fitted on {metrics['humans']} human and {metrics['machines']} machine texts")
