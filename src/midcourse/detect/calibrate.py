"""Calibrate a detector on human texts, and on machine texts if there are any: their scores, whole and cut short."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import log_expit

from midcourse.data.learned import row_hash
from midcourse.detect.conformal import Guarantee, highest_rank, rates_of, texts_needed
from midcourse.detect.detector import Detector, DetectorError
from midcourse.detect.disguise import plain
from midcourse.detect.humans import LENGTHS, Scored, cut_to, length_name, lengths_within
from midcourse.detect.texts import Label, LabelledText, check_labels, of_label
from midcourse.detect.unfamiliar import Familiar
from midcourse.progress import progress
from midcourse.rewards.contract import Reward

PART = 256  # texts that are read together
ENOUGH = 200  # texts from which it can be told what is like them
FEW = 20  # texts of a length; the odds of fewer say little
NO_GROUP = "no group"  # of texts that name none, where others do


def calibrate(
    reward: Reward,
    texts: Sequence[LabelledText],
    *,
    by: str = "domain",
    earlier: Detector | None = None,
) -> Detector:
    """Return a detector whose thresholds rest on these texts, none of which the reward was trained on.

    Every text counts whole, and its beginning at every length it reaches, so that short texts are calibrated too. One
    that stands there more than once, say beside several machines' texts, counts once.

    Args:
        texts: human ones, perhaps with machine ones; mixed ones are left out.
        by: what a human text's group is: "domain", "group", or "none" if all are of one.
        earlier: its machine texts are kept if there are none here, and what is familiar to it stays so.

    Raises:
        DetectorError: no human text.
    """
    kinds: tuple[Label, ...] = ("human", "machine")
    wanted = {kind: distinct(of_label(texts, kind)) for kind in kinds}
    check_labels([text for some in wanted.values() for text in some])
    if not wanted["human"]:
        raise DetectorError("there is no human text to calibrate on; give some with label human")
    # Which machine's a text is plays no part: nobody is wronged by a text that is taken for a person's.
    groups = {"human": by, "machine": "none"}
    read = {kind: scored(reward, some, groups[kind]) for kind, some in wanted.items() if some}
    humans = read["human"][0]
    machines = read["machine"][0] if "machine" in read else earlier.machines if earlier else Scored()
    familiar = list(earlier.familiar) if earlier else []
    features = [part for _, part, _ in read.values() if part is not None]
    if features and sum(len(set(owners)) for _, _, owners in read.values()) >= ENOUGH:
        words = np.concatenate([part.words for part, _, _ in read.values()])
        names = [f"{kind} {name}" for kind, (_, _, owners) in read.items() for name in owners]
        familiar.append(Familiar.of(np.concatenate(features), words, names))
    known = sum(text.label in kinds for text in texts)
    about = {
        "humans": int(humans.whole.sum()),
        "machines": int(machines.whole.sum()),
        "repeated": known - sum(map(len, wanted.values())),
        "groups": {name: len(humans.of_group(name)) for name in humans.group_names},
    }
    return Detector(reward, humans, machines, tuple(familiar), odds(humans, machines), about)


def learned_from(rows: np.ndarray | None, texts: Sequence[LabelledText]) -> int:
    """Return from how many of the texts a reward learned.

    Args:
        rows: hashes of what it learned from; see `midcourse.data.learned`. None if it does not say.
    """
    known = set() if rows is None else set(rows.tolist())
    return sum(row_hash("", text.text) in known for text in texts)


def check_unlearned(rows: np.ndarray | None, texts: Sequence[LabelledText]) -> None:
    """Raise DetectorError if a reward learned from some of the texts: thresholds on them would not hold on others.

    Args:
        rows: as of `learned_from`.
    """
    if learned := learned_from(rows, texts):
        raise DetectorError(
            f"the detector learned from {learned} of these {len(texts)} texts, whose scores say nothing of other "
            "people's; calibrate it on others"
        )


def unfamiliar(detector: Detector, texts: Sequence[LabelledText]) -> int:
    """Return how many texts are unlike the kinds that a detector knows; such get no verdict from it."""
    strange = 0
    with progress("is any unfamiliar", len(texts)) as advance:
        for begin in range(0, len(texts), PART):
            part = [plain(text.text).text for text in texts[begin : begin + PART]]
            strange += sum(detector.read(part, advance)[1])
    return strange


def distinct(texts: Sequence[LabelledText]) -> list[LabelledText]:
    """Return each text once, the first of those that read the same, and none of which nothing is seen."""
    found: dict[str, LabelledText] = {}
    for text in texts:
        found.setdefault(plain(text.text).text, text)
    return [text for read, text in found.items() if read]


def scored(
    reward: Reward, texts: Sequence[LabelledText], by: str = "none"
) -> tuple[Scored, np.ndarray | None, list[str]]:
    """Return the scores of texts and of their beginnings, their features if there are any, and whose each is."""
    groups = ["" if by == "none" else getattr(text, by) for text in texts]
    if any(groups):
        groups = [name or NO_GROUP for name in groups]
    pieces: list[tuple[str, int, bool]] = []
    for number, text in enumerate(texts):
        words = plain(text.text).text
        pieces += [(cut_to(words, edge), number, False) for edge in lengths_within(len(words.split()))]
        pieces.append((words, number, True))
    scores: list[float] = []
    features: list[np.ndarray] = []
    with progress("calibrating", len(pieces)) as advance:
        for begin in range(0, len(pieces), PART):
            part = pieces[begin : begin + PART]
            values, found, _ = reward.rate_alone([piece for piece, *_ in part], advance)
            scores += values
            if found is not None:
                features.append(found)
    of = Scored(
        np.array(scores),
        np.array([len(piece.split()) for piece, *_ in pieces]),
        np.array([groups[number] for _, number, *_ in pieces], dtype=str),
        np.array([whole for *_, whole in pieces]),
    )
    return of, np.concatenate(features) if features else None, [str(number) for _, number, _ in pieces]


def odds(humans: Scored, machines: Scored) -> Float[np.ndarray, "lengths 2"]:
    """Return, of each length, (slope, intercept) of the log-odds that a machine wrote a text, linear in its score.

    Texts of both kinds weigh the same in all, whatever their numbers (Platt, 1999). nan for lengths with few of either.
    """
    return np.array([_line(humans.of_length(n), machines.of_length(n)) for n in range(len(LENGTHS) + 1)])


def _line(humans: np.ndarray, machines: np.ndarray) -> tuple[float, float]:
    if min(len(humans), len(machines)) < FEW:
        return math.nan, math.nan
    both = np.concatenate([humans, machines])
    middle, spread = np.median(both), np.std(both) + 1e-9

    def loss(line: np.ndarray) -> float:
        logits = [line[0] * (part - middle) / spread + line[1] for part in (humans, machines)]
        return float(-log_expit(-logits[0]).mean() - log_expit(logits[1]).mean() + 1e-4 * line @ line)

    slope, intercept = minimize(loss, np.array([1.0, 0.0])).x
    return float(slope / spread), float(intercept - slope * middle / spread)


def too_small(detector: Detector, fpr: float, guarantee: Guarantee = "average") -> dict[str, int]:
    """Return the groups with too few texts to hold the rate, and how many each has.

    As long as there are any, a text whose group is not known gets no verdict at that rate.
    """
    counts = {name: len(detector.humans.of_group(name)) for name in detector.humans.group_names}
    return {name: count for name, count in counts.items() if count < texts_needed(fpr, guarantee)}


def thresholds(detector: Detector, fpr: float, guarantee: Guarantee = "average") -> list[dict[str, Any]]:
    """Return the thresholds of human texts: of all lengths and of each, of all groups and of each.

    Returns:
        Rows of {"group", "length", "texts", "threshold", "rate", "interval"}; "" as group or length means all. The rate
        is what such a threshold flags of further texts of the kind on average, and 95 of 100 calibrations of this size
        give one within the interval; all three are None if too few texts resolve the rate.
    """
    humans, rows = detector.humans, []
    for group in ("", *humans.group_names):
        for length in (None, *range(len(LENGTHS) + 1)):
            scores = humans.of_group(group, length) if group else humans.of_length(length)
            if not len(scores):
                continue
            rank = highest_rank(len(scores), fpr, guarantee)
            row: dict[str, Any] = {
                "group": group,
                "length": "" if length is None else length_name(length),
                "texts": len(scores),
                "threshold": float(np.sort(scores)[-rank]) if rank else None,
                "rate": rank / (len(scores) + 1) if rank else None,
                "interval": rates_of(rank, len(scores)) if rank else None,
            }
            rows.append(row)
    return rows
