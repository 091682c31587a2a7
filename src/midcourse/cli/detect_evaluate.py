"""midcourse detect evaluate."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from midcourse.cli.console import UsageError, bad_rows, check_page, check_rate, table
from midcourse.cli.groups import JOINED, Machine
from midcourse.files import as_json
from midcourse.terminal import say, tell

if TYPE_CHECKING:
    from midcourse.detect.attacks import Change
    from midcourse.detect.detector import Detector
    from midcourse.detect.texts import LabelledText

Attack = Literal[
    "sentence-order", "adjacent-words", "typos", "homoglyphs", "zero-width", "white-space", "paraphrase", "all"
]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Which detector is asked, and how."""

    detector: str = "shipped"
    """The shipped detector, or a folder that midcourse detect calibrate wrote."""
    fpr: float = 0.01
    """Share of human texts that may be called a machine's."""
    guarantee: Literal["average", "confidence"] = "average"
    """How the rate is held: see midcourse detect score."""
    known_groups: bool = False
    """Ask about each text with its domain as its group, which has to be one of the detector's."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """What machine texts go through, and what else is asked."""

    attacks: Annotated[tuple[Attack, ...], tyro.conf.UseAppendAction] = ()
    """Change machine texts so and ask again, at the same threshold; all is every one but paraphrase, by which SmolLM2
    says every sentence in other words, at a few seconds a text."""
    changed: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Files of machine texts before and after somebody or something changed them: rows of before (or machine, llm) and
    after (or humanized, edited, paraphrased); they are of no known group."""
    lengths: bool = False
    """Ask about the texts cut to 30, 60, ... 210 words too."""
    baselines: bool = False
    """Ask the zero-shot detectors too: one more pass of the language model for all of them."""
    base: str | None = None
    """With --baselines: a base model with the tokens of the language model, such as the one that was made to follow
    instructions; adds Binoculars and the implicit reward."""
    learn_from: Path | None = None
    """With --baselines: labelled texts from which character n-grams and a direction in the states are learned."""
    lm: str = "smollm2"
    """Language model of the baselines and of paraphrases: smollm2, a folder, or a Hub id."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write besides tables."""

    json: bool = False
    """Print everything as JSON instead."""
    html: Path | None = None
    """Write the tables, and a plot of how often texts of a probability are machines', to this page."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""


@dataclass(kw_only=True)
class DetectEvaluate:
    """Measure how well a detector tells labelled texts apart.

    By domain and model: AUROC, and the share of machine texts found at 1% and 5% of the human ones flagged, with
    bootstrap intervals; how many human texts of each domain the detector's own thresholds flag; how far its
    probabilities can be believed; and how simple features do, so that a shortcut in the texts shows itself.
    """

    texts: tyro.conf.Positional[Path]
    """Rows with text and label (human or machine), or with human and machine (or llm) texts; perhaps domain, model and
    group (JSONL, also .gz, CSV, Parquet). Those of a group are drawn together for intervals."""
    ask: Ask = field(default_factory=Ask)
    against: Against = field(default_factory=Against)
    write: Write = field(default_factory=Write)
    machine: Annotated[Machine, JOINED] = field(default_factory=Machine)

    def run(self) -> int:
        from midcourse.data.learned import read_learned_rows
        from midcourse.detect.attacks import read_changes
        from midcourse.detect.calibrate import learned_from
        from midcourse.detect.detector import Detector, place_of_detector
        from midcourse.detect.report import write_report
        from midcourse.detect.texts import check_labels, read_texts

        self._check()
        with bad_rows(self.write.skip_bad_rows) as rejects:
            changed = {str(path): read_changes(path, rejects=rejects) for path in self.against.changed}
            learn = read_texts(self.against.learn_from, rejects=rejects) if self.against.learn_from else []
            texts = [text for text in read_texts(self.texts, rejects=rejects) if text.label in ("human", "machine")]
        for label in ("human", "machine"):
            if not any(text.label == label for text in texts):
                raise UsageError(f"{self.texts} has no text with label {label}; both kinds are compared")
        check_labels(texts)
        detector = Detector.load(self.ask.detector, **asdict(self.machine))
        if self.ask.known_groups:
            _check_groups({text.domain for text in texts}, detector.humans.group_names)
        learned = learned_from(read_learned_rows(place_of_detector(self.ask.detector)), texts)
        if learned:
            tell(f"the detector learned from {learned} of these {len(texts)} texts; figures flatter it")
        figures = {"texts": len(texts), "learned": learned, **self._figures(detector, texts, learn, changed)}
        if self.write.html:
            write_report(self.write.html, figures)
        if self.write.json:
            print(as_json(figures, indent=1))
        else:
            _print(figures)
        if self.write.html:
            tell(f"page: {self.write.html}")
        return 0

    def _check(self) -> None:
        check_page(self.write.html)
        check_rate(self.ask.fpr)
        for flag, given in (("--base", self.against.base), ("--learn-from", self.against.learn_from)):
            if given is not None and not self.against.baselines:
                raise UsageError(f"{flag} is for --baselines; give both")

    def _figures(
        self,
        detector: "Detector",
        texts: "Sequence[LabelledText]",
        learn: "Sequence[LabelledText]",
        changed: "dict[str, list[Change]]",
    ) -> dict[str, Any]:
        from midcourse.detect.evaluate import by_length, cells, compared, found, judged, realised, reliability
        from midcourse.detect.trivial import TRIVIAL

        ask, against = self.ask, self.against
        asked: dict[str, Any] = {"fpr": ask.fpr, "guarantee": ask.guarantee}
        if ask.known_groups:
            asked["by"] = lambda text: text.domain or None
        verdicts = judged(detector, texts, **asked)
        scores = {"detector": verdicts.scores}
        if against.baselines:
            scores |= self._baselines(texts, learn)
        else:
            import numpy as np

            scores |= {name: np.array([feature(text.text) for text in texts]) for name, feature in TRIVIAL.items()}
        return {
            "fpr": ask.fpr,
            "guarantee": ask.guarantee,
            "cells": cells(verdicts),
            "realised": realised(verdicts),
            "found": found(verdicts),
            "lengths": by_length(detector, texts) if against.lengths else [],
            "attacks": self._attacks(detector, texts, changed, asked),
            "reliability": reliability(verdicts),
            "auroc": compared(texts, scores),
        }

    def _attacks(
        self,
        detector: "Detector",
        texts: "Sequence[LabelledText]",
        changed: "dict[str, list[Change]]",
        asked: dict[str, Any],
    ) -> list[dict[str, Any]]:
        from midcourse.detect.attacks import ATTACKS
        from midcourse.detect.evaluate import attacked, flagged, withstood
        from midcourse.detect.texts import LabelledText

        named = set(self.against.attacks)
        chosen = {name: attack for name, attack in ATTACKS.items() if {name, "all"} & named}
        rows = attacked(detector, texts, chosen, **asked) if chosen else []
        both = {
            name: [[LabelledText(text) for text in side] for side in zip(*changes, strict=True)]
            for name, changes in changed.items()
        }
        if "paraphrase" in named:
            both["paraphrase"] = self._paraphrased(texts)
        for name, sides in both.items():
            before, after = (flagged(detector, side, what=name, **asked) for side in sides)
            rows.append(withstood(name, before, after))
        return rows

    def _paraphrased(self, texts: "Sequence[LabelledText]") -> "list[list[LabelledText]]":
        """Return the machine texts, and what SmolLM2 made of them."""
        from dataclasses import replace

        from midcourse.detect.mix import paraphrase
        from midcourse.detect.rephrase_lm import LMRephraser
        from midcourse.detect.texts import of_label
        from midcourse.lm.language_model import LanguageModel

        machines = list({text.text: text for text in of_label(texts, "machine")}.values())
        rephraser = LMRephraser(LanguageModel.load(self.against.lm, **asdict(self.machine)))
        new = paraphrase([text.text for text in machines], rephraser)
        return [machines, [replace(text, text=said) for text, said in zip(machines, new, strict=True)]]

    def _baselines(self, texts: "Sequence[LabelledText]", learn: "Sequence[LabelledText]") -> dict[str, Any]:
        from midcourse.detect.evaluate import baselines
        from midcourse.detect.learned import learned
        from midcourse.lm.language_model import LanguageModel

        lm = LanguageModel.load(self.against.lm, **asdict(self.machine))
        base = LanguageModel.load(self.against.base, **asdict(self.machine)) if self.against.base else None
        found = baselines(lm, texts, base=base)
        if learn:
            found |= learned(lm, learn, texts)
        return found


def _check_groups(asked: set[str], known: Sequence[str]) -> None:
    unknown = sorted(asked - set(known))
    if unknown and not unknown[0]:
        raise UsageError("--known-groups: a text names no domain; leave the flag out, or name domains so")
    if unknown:
        raise UsageError(
            f"--known-groups: domain {unknown[0]!r} is no group of the detector, which has "
            f"{', '.join(known) or 'none'}; leave the flag out, or name domains so"
        )


def _print(figures: dict[str, Any]) -> None:
    from midcourse.detect.report import tables_of

    for title, columns, rows in tables_of(figures):
        table(title, columns, rows)
    error = figures["reliability"]["error"]
    if error is not None:
        say(f"expected calibration error of the probabilities: {error:.3f}")
