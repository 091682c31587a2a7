"""How well a detector tells texts apart: by domain, model and length, at thresholds set elsewhere, under attack."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from midcourse.detect.conformal import Guarantee, rate_interval
from midcourse.detect.detector import Detector, Verdict, VerdictName
from midcourse.detect.disguise import plain
from midcourse.detect.humans import cut_to
from midcourse.detect.measures import separation
from midcourse.detect.texts import Label, LabelledText, groups_of, of_label
from midcourse.detect.trivial import TRIVIAL
from midcourse.detect.two_models import TWO_MODELS, pair_figures
from midcourse.evaluate.separation import auroc
from midcourse.lm.language_model import LanguageModel
from midcourse.progress import progress
from midcourse.rewards.likelihood import STATISTICS
from midcourse.rewards.pooled import Reader

LENGTHS = (30, 60, 90, 120, 150, 180, 210)  # words at which ReMoDetect cuts texts
BINS = 10
PART = 256


@dataclass(frozen=True)
class Judged:
    """Texts with a detector's verdicts on them."""

    texts: Sequence[LabelledText]
    verdicts: Sequence[Verdict]

    @property
    def scores(self) -> np.ndarray:
        """Return the score of each text."""
        return np.array([verdict.score for verdict in self.verdicts])


def judged(
    detector: Detector,
    texts: Sequence[LabelledText],
    *,
    fpr: float = 0.01,
    guarantee: Guarantee = "average",
    by: Callable[[LabelledText], str | None] = lambda text: None,
    what: str = "reading",
) -> Judged:
    """Ask a detector about texts.

    Args:
        by: the group of a text, one of the detector's; None if it is not known.
    """
    found: list[Verdict | None] = [None] * len(texts)
    numbers: dict[str | None, list[int]] = {}
    for number, text in enumerate(texts):
        numbers.setdefault(by(text), []).append(number)
    with progress(what, len(texts)) as advance:
        for group, some in numbers.items():
            asked = [texts[n] for n in some]
            verdicts = detector.score(asked, fpr=fpr, guarantee=guarantee, group=group, advance=advance)
            for number, verdict in zip(some, verdicts, strict=True):
                found[number] = verdict
    return Judged(texts, [verdict for verdict in found if verdict is not None])


def cells(judged: Judged) -> list[dict[str, Any]]:
    """Return how well each model's texts are told from the human ones of their domain, a row for each of both."""
    scores, groups = judged.scores, groups_of(judged.texts)
    return [
        {"domain": domain, "model": model, **_separated(humans, machines, scores, groups)}
        for domain, model, humans, machines in _cells(judged.texts)
    ]


def _cells(texts: Sequence[LabelledText]) -> Iterator[tuple[str, str, list[int], list[int]]]:
    """Yield (domain, model, its human texts that some machine text may share a source with, its machine texts).

    Domains with texts of one kind only are left out.
    """
    groups = groups_of(texts)
    for domain in sorted({text.domain for text in texts}):
        there = [n for n, text in enumerate(texts) if text.domain == domain]
        humans = [n for n in there if texts[n].label == "human"]
        if not humans:
            continue
        for model in sorted({texts[n].model for n in there if texts[n].label == "machine"}):
            machines = [n for n in there if texts[n].label == "machine" and texts[n].model == model]
            sources = {groups[n] for n in machines}
            # Pairs keep to their own sources, if they have any.
            paired = _distinct([n for n in humans if groups[n] in sources], texts)
            yield domain, model, paired or _distinct(humans, texts), machines


def _distinct(numbers: Sequence[int], texts: Sequence[LabelledText]) -> list[int]:
    """Return the numbers of different texts: a human text that stands beside several machines' counts once."""
    return list({texts[number].text: number for number in reversed(numbers)}.values())[::-1]


def _separated(
    humans: Sequence[int], machines: Sequence[int], scores: np.ndarray, groups: Sequence[str]
) -> dict[str, Any]:
    return separation(scores[humans], scores[machines], [groups[n] for n in humans], [groups[n] for n in machines])


def realised(judged: Judged) -> list[dict[str, Any]]:
    """Return, for each domain, how many human texts are called a machine's, a person's, or neither."""
    return _called(judged, "human", "domain")


def found(judged: Judged) -> list[dict[str, Any]]:
    """Return, for each domain and model, how many machine texts are called a machine's, a person's, or neither."""
    return _called(judged, "machine", "domain", "model")


def _called(judged: Judged, label: Label, *by: str) -> list[dict[str, Any]]:
    """Return what texts of a label are called, a row for those that agree in some attributes."""
    kinds: dict[tuple[str, ...], list[VerdictName]] = {}
    for text, verdict in zip(judged.texts, judged.verdicts, strict=True):
        if text.label == label:
            kinds.setdefault(tuple(getattr(text, name) for name in by), []).append(verdict.verdict)
    return [
        {
            **dict(zip(by, kind, strict=True)),
            "texts": len(names),
            "machine": names.count("machine") / len(names),
            "interval": rate_interval(names.count("machine"), len(names)),
            "human": names.count("human") / len(names),
            "cannot tell": names.count("cannot tell") / len(names),
        }
        for kind, names in sorted(kinds.items())
    ]


def by_length(detector: Detector, texts: Sequence[LabelledText]) -> list[dict[str, Any]]:
    """Return AUROC and true-positive rates of texts cut to 30, 60, ... 210 words; each of those that are as long."""
    rows = []
    for words in LENGTHS:
        long = [text for text in texts if len(text.text.split()) >= words and text.label in ("human", "machine")]
        kinds = {text.label for text in long}
        if len(kinds) < 2:
            continue
        cut = [LabelledText(cut_to(t.text, words), t.label, t.group, t.domain, t.model, t.name) for t in long]
        found = judged(detector, cut, what=f"{words} words")
        humans, machines = ([n for n, text in enumerate(cut) if text.label == label] for label in ("human", "machine"))
        rows.append({"words": words, **_separated(_distinct(humans, cut), machines, found.scores, groups_of(cut))})
    return rows


def attacked(
    detector: Detector,
    texts: Sequence[LabelledText],
    attacks: Mapping[str, Callable[[str, Random], str]],
    *,
    seed: int = 0,
    **asked: Any,
) -> list[dict[str, Any]]:
    """Return how many machine texts are found before and after each attack, at an unchanged threshold.

    Args:
        attacks: change a text by a random generator; the seed and the text decide what it draws.
        asked: what `judged` takes.
    """
    machines = of_label(texts, "machine")
    before = flagged(detector, machines, what="as they are", **asked)
    rows = []
    for name, attack in attacks.items():
        changed = [
            replace(text, text=attack(text.text, Random(f"{seed} {zlib.crc32(text.text.encode())}")))
            for text in machines
        ]
        rows.append(withstood(name, before, flagged(detector, changed, what=name, **asked)))
    return rows


def flagged(detector: Detector, texts: Sequence[LabelledText], **asked: Any) -> list[bool]:
    """Return of each text whether it is called a machine's.

    Args:
        asked: what `judged` takes.
    """
    return [verdict.verdict == "machine" for verdict in judged(detector, texts, **asked).verdicts]


def withstood(name: str, before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Return the shares of machine texts that are found before and after a change, and what is kept of the first."""
    share = {"before": float(np.mean(before)), "after": float(np.mean(after))}
    return {"attack": name, "texts": len(before), **share, "kept": sum(after) / sum(before) if any(before) else None}


def reliability(judged: Judged) -> dict[str, Any]:
    """Return how often texts of a probability are machines', in bins, human and machine texts weighing the same in all.

    Returns:
        {"bins": [{"probability", "share", "texts"}], "error"}: the expected calibration error; None as both if the
        detector gives no probabilities.
    """
    known = [
        (verdict.probability, text.label == "machine")
        for text, verdict in zip(judged.texts, judged.verdicts, strict=True)
        if verdict.probability is not None and text.label in ("human", "machine")
    ]
    if len({machine for _, machine in known}) < 2:
        return {"bins": None, "error": None}
    chance, machine = (np.array(column, dtype=float) for column in zip(*known, strict=True))
    weight = np.where(machine == 1, 0.5 / machine.sum(), 0.5 / (1 - machine).sum())
    place = np.minimum((chance * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for number in range(BINS):
        mine = place == number
        if mine.any():
            mass = weight[mine].sum()
            mean, share = (chance[mine] @ weight[mine]) / mass, (machine[mine] @ weight[mine]) / mass
            bins.append({"probability": float(mean), "share": float(share), "texts": int(mine.sum())})
            error += float(mass * abs(mean - share))
    return {"bins": bins, "error": error}


# What a detector is compared with


def baselines(
    lm: LanguageModel, texts: Sequence[LabelledText], *, base: LanguageModel | None = None
) -> dict[str, np.ndarray]:
    """Return what each zero-shot statistic, and each trivial feature, says of every text; all from one pass.

    Args:
        base: a base model of the same tokens: with it, what asks two models too, by a pass of both.
    """
    found: dict[str, np.ndarray] = {name: np.zeros(len(texts)) for name in STATISTICS}
    if base:
        found |= {name: np.zeros(len(texts)) for name in TWO_MODELS}
    reader = Reader(lm, (), burn_in=1)
    with progress("baselines", len(texts)) as advance:
        for begin in range(0, len(texts), PART):
            part = [plain(text.text).text for text in texts[begin : begin + PART]]
            for number, reading in reader.read(part):
                if len(reading.places):
                    for name, statistic in STATISTICS.items():
                        found[name][begin + number] = statistic(reading.figures)
                advance(1)
            for number, both in pair_figures(lm, base, part) if base else ():
                if len(both.instruct):
                    for name, of_both in TWO_MODELS.items():
                        found[name][begin + number] = of_both(both)
    return found | {name: np.array([feature(text.text) for text in texts]) for name, feature in TRIVIAL.items()}


def compared(texts: Sequence[LabelledText], scores: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the AUROC of each score in each cell of domain and model."""
    return [
        {"domain": domain, "model": model}
        | {name: auroc(values[humans], values[machines]) for name, values in scores.items()}
        for domain, model, humans, machines in _cells(texts)
    ]
