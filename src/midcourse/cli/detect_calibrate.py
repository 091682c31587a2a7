"""midcourse detect calibrate."""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from midcourse.cli.console import UsageError, bad_rows, check_rate, table
from midcourse.cli.groups import JOINED, Machine
from midcourse.files import as_json
from midcourse.terminal import tell

if TYPE_CHECKING:
    from midcourse.detect.detector import Detector
    from midcourse.detect.texts import LabelledText


@dataclass(frozen=True, kw_only=True)
class Read:
    """What to calibrate, and on which texts; none of them may be one that it was trained on."""

    human: str
    """Texts by people: a file of rows with a field "text" or "human", perhaps "domain" (JSONL, also .gz, CSV or
    Parquet), a plain text, a folder of such files, or - for standard input. A rate of 1% takes 99 texts that are as
    long as those you will ask about, of each group."""
    machine: str | None = None
    """Texts by machines, likewise; by default those of the detector's earlier calibration. They say when a text is
    called a person's, and the probabilities."""
    detector: str = "shipped"
    """A detector, or a reward that midcourse detect fit or train wrote; shipped, the default, comes with midcourse."""
    by: Literal["domain", "group", "none"] = "domain"
    """The field of a human text's row that names its group: each group gets a threshold of its own. none: all are of
    one group."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write, and which thresholds to show."""

    out: Path | None = None
    """Folder of the calibrated detector; that of --detector by default."""
    fpr: float = 0.01
    """Rate whose thresholds are shown; a calibrated detector can be asked for any."""
    guarantee: Literal["average", "confidence"] = "average"
    """How that rate is held: see midcourse detect score."""
    json: bool = False
    """Print the thresholds as JSON."""


@dataclass(kw_only=True)
class DetectCalibrate:
    """Set a detector's thresholds on your own human texts.

    A false-positive rate holds for texts like those that its threshold was set on. Each length has a threshold of its
    own, and so has each group of writers that you name, so that no group pays for another.
    """

    read: Read
    write: Write = field(default_factory=Write)
    machine: Annotated[Machine, JOINED] = field(default_factory=Machine)

    def run(self) -> int:
        from midcourse.data.learned import read_learned_rows
        from midcourse.detect.calibrate import ENOUGH, calibrate, check_unlearned, thresholds, too_small, unfamiliar
        from midcourse.detect.conformal import texts_needed
        from midcourse.detect.detector import place_of_detector
        from midcourse.detect.texts import of_label, read_texts

        check_rate(self.write.fpr)
        place = Path(place_of_detector(self.read.detector))
        out = self.write.out or (place if place == Path(self.read.detector) else None)
        if out is None:
            raise UsageError(f"{self.read.detector} comes with midcourse; name a folder of your own with --out")
        _check(self.read.detector, place, out)
        with bad_rows(self.read.skip_bad_rows) as rejects:
            given = read_texts(self.read.human, rejects=rejects)
            texts = _labelled(given, "human")
            left_out = len(given) - len(texts)
            if self.read.machine:
                machines = _labelled(read_texts(self.read.machine, rejects=rejects), "machine")
                if not machines:
                    raise UsageError(f"--machine {self.read.machine} has no machine text, only texts of other labels")
                texts += machines
        known = read_learned_rows(place)
        check_unlearned(known, texts)
        if known is None:
            tell(
                f"{place} does not say what it learned from (no rows.safetensors); none of these texts may be among it"
            )
        if left_out:
            tell(f"{left_out} texts of {self.read.human} are labelled as not human and left out")
        reward, earlier = self._load(place)
        detector = calibrate(reward, texts, by=self.read.by, earlier=earlier)
        if again := detector.about["repeated"]:
            tell(f"{again} of {len(texts)} texts repeat others; each counts once")
        _save(detector, place, out)
        rows = thresholds(detector, self.write.fpr, self.write.guarantee)
        if self.write.json:
            print(as_json({"out": str(out), "fpr": self.write.fpr, "thresholds": rows}, indent=1))
        else:
            _print(rows, self.write.fpr)
        needed = texts_needed(self.write.fpr, self.write.guarantee)
        small = too_small(detector, self.write.fpr, self.write.guarantee)
        if detector.about["humans"] < needed:
            tell(
                f"no verdict at this rate: it takes {needed} human texts, here are {detector.about['humans']}; give "
                "more, or ask for a higher --fpr"
            )
        elif small:
            named = ", ".join(f"{name} ({count})" for name, count in small.items())
            tell(
                f"too few texts for this rate: {named}; a text whose group is not known gets no verdict at it until "
                "they have more, are left out, or all texts are one group (--by none)"
            )
        if strange := unfamiliar(detector, of_label(texts, "human")) if earlier else 0:
            tell(
                f"{strange} of the human texts are unlike the kinds of text that the detector knows, and such get no "
                f"verdict; with {ENOUGH} or more texts it learns their kind"
            )
        if not len(detector.machines):
            tell("no text will be called a person's, and none gets a probability: give --machine too")
        tell(f"calibrated detector: {out}")
        return 0

    def _load(self, place: Path) -> "tuple[Any, Detector | None]":
        """Return the reward, and the detector if it was calibrated before."""
        from midcourse.detect.detector import Detector
        from midcourse.rewards.named import load_reward

        if (place / "detector.json").is_file():
            earlier = Detector.load(place, **asdict(self.machine))
            return earlier.reward, earlier
        return load_reward(place, **asdict(self.machine)), None


def _labelled(texts: "list[LabelledText]", label: Literal["human", "machine"]) -> "list[LabelledText]":
    """Return the texts of a file that are said to be of that kind, or of which nothing is said."""
    from dataclasses import replace

    return [replace(text, label=label) for text in texts if text.label in (None, label)]


def _check(name: str, place: Path, out: Path) -> None:
    """Raise UsageError if there is no folder to calibrate, or another thing stands where the detector is to be."""
    if not (place / "midcourse.json").is_file():
        raise UsageError(f"--detector {name} is no folder of a detector or a reward; midcourse detect fit makes one")
    if out.resolve() != place.resolve() and out.exists():
        raise UsageError(f"--out {out} is there already; name a new folder")


def _save(detector: "Detector", place: Path, out: Path) -> None:
    """Write the calibration, and the reward beside it if the folder is another."""
    from midcourse.files import whole_folder

    if out.resolve() == place.resolve():
        detector.save(out)
        return
    # The card says how the detector did that it was made for, with the thresholds it had.
    other = shutil.ignore_patterns("detector.*", "checkpoint*", "README.md")
    with whole_folder(out) as work:
        shutil.copytree(place, work, dirs_exist_ok=True, ignore=other)
        detector.save(work)


def _print(rows: list[dict[str, Any]], fpr: float) -> None:
    table(
        f"Thresholds at {fpr:.2%} false positives",
        ("texts of", "length", "human texts", "threshold", "flagged on average [95%]"),
        [
            (
                row["group"] or "all groups",
                row["length"] or "all lengths",
                str(row["texts"]),
                "not resolvable" if row["threshold"] is None else f"{row['threshold']:.3f}",
                "" if row["rate"] is None else _rate(row["rate"], row["interval"]),
            )
            for row in rows
        ],
    )


def _rate(rate: float, interval: tuple[float, float]) -> str:
    return f"{rate:.2%} [{interval[0]:.2%}, {interval[1]:.2%}]"
