"""Calibrate a detector on human texts, and on machine texts if there are any: their scores, whole and cut short."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_expit

from midcourse.detect.conformal import Guarantee, highest_rank, rates_of
from midcourse.detect.detector import Detector, DetectorError
from midcourse.detect.disguise import plain
from midcourse.detect.humans import LENGTHS, Scored, cut_to, length_name, lengths_within
from midcourse.detect.texts import Label, LabelledText, of_label
from midcourse.detect.unfamiliar import Familiar
from midcourse.progress import progress
from midcourse.rewards.contract import Reward

PART = 256  # texts that are read together
ENOUGH = 200  # texts from which it can be told what is like them


def calibrate(
    reward: Reward,
    texts: Sequence[LabelledText],
    *,
    by: str = "domain",
    earlier: Detector | None = None,
) -> Detector:
    """Return a detector whose thresholds rest on these texts, none of which the reward was trained on.

    Every text counts whole, and its beginning at every length it reaches, so that short texts are calibrated too.

    Args:
        texts: human ones, perhaps with machine ones; mixed ones are left out.
        by: what a text's group is: "domain", "model" or "group".
        earlier: its machine texts are kept if there are none here, and what is familiar to it stays so.

    Raises:
        DetectorError: no human text.
    """
    kinds: tuple[Label, ...] = ("human", "machine")
    wanted = {kind: of_label(texts, kind) for kind in kinds}
    if not wanted["human"]:
        raise DetectorError("there is no human text to calibrate on; give some with label human")
    read = {kind: scored(reward, some, by) for kind, some in wanted.items() if some}
    humans = read["human"][0]
    machines = read["machine"][0] if "machine" in read else earlier.machines if earlier else Scored()
    familiar = list(earlier.familiar) if earlier else []
    features = [part for _, part, _ in read.values() if part is not None]
    if features and sum(map(len, features)) >= ENOUGH:
        words = np.concatenate([part.words for part, _, _ in read.values()])
        names = [f"{kind} {name}" for kind, (_, _, owners) in read.items() for name in owners]
        familiar.append(Familiar.of(np.concatenate(features), words, names))
    slope, intercept = odds(humans, machines)
    about = {
        "humans": int(humans.whole.sum()),
        "machines": int(machines.whole.sum()),
        "groups": {name: len(humans.of_group(name)) for name in humans.group_names},
    }
    return Detector(reward, humans, machines, tuple(familiar), slope, intercept, about)


def scored(
    reward: Reward, texts: Sequence[LabelledText], by: str = "domain"
) -> tuple[Scored, np.ndarray | None, list[str]]:
    """Return the scores of texts and of their beginnings, their features if there are any, and whose each is."""
    pieces: list[tuple[str, int, LabelledText, bool]] = []
    for number, text in enumerate(texts):
        words = plain(text.text).text
        count = len(words.split())
        pieces += [(cut_to(words, edge), number, text, False) for edge in lengths_within(count)]
        pieces.append((words, number, text, True))
    scores: list[float] = []
    features: list[np.ndarray] = []
    with progress("calibrating", len(pieces)) as advance:
        for begin in range(0, len(pieces), PART):
            part = pieces[begin : begin + PART]
            values, found = reward.rate_alone([piece for piece, *_ in part])
            scores += values
            if found is not None:
                features.append(found)
            advance(len(part))
    of = Scored(
        np.array(scores),
        np.array([len(piece.split()) for piece, *_ in pieces]),
        np.array([getattr(text, by) for _, _, text, _ in pieces], dtype=str),
        np.array([whole for *_, whole in pieces]),
    )
    return of, np.concatenate(features) if features else None, [str(number) for _, number, *_ in pieces]


def odds(humans: Scored, machines: Scored) -> tuple[float, float]:
    """Return (slope, intercept) of the log-odds that a machine wrote a text, linear in its score (Platt, 1999).

    Whole texts of both kinds weigh the same in all, whatever their numbers. nan without machine texts.
    """
    h, m = humans.scores[humans.whole], machines.scores[machines.whole]
    if not len(h) or not len(m):
        return math.nan, math.nan
    middle, spread = np.median([*h, *m]), np.std([*h, *m]) + 1e-9

    def loss(line: np.ndarray) -> float:
        logits = [line[0] * (part - middle) / spread + line[1] for part in (h, m)]
        return float(-log_expit(-logits[0]).mean() - log_expit(logits[1]).mean() + 1e-4 * line @ line)

    slope, intercept = minimize(loss, np.array([1.0, 0.0])).x
    return float(slope / spread), float(intercept - slope * middle / spread)


def thresholds(detector: Detector, fpr: float, guarantee: Guarantee = "average") -> list[dict[str, Any]]:
    """Return a row for each group and length: how many human texts, the threshold, and the rate that it stands for.

    The interval is that of the rate over calibrations of this size: 95 of 100 such thresholds have a rate within it.
    """
    humans = detector.humans
    parts = [(f"length: {length_name(n)}", humans.of_length(n)) for n in range(len(LENGTHS) + 1)]
    parts += [(name, humans.of_group(name)) for name in humans.group_names]
    rows = []
    for name, scores in parts:
        rank = highest_rank(len(scores), fpr, guarantee)
        row: dict[str, Any] = {"of": name, "texts": len(scores), "threshold": None, "rate": None, "interval": None}
        if rank:
            row |= {"threshold": float(np.sort(scores)[-rank]), "rate": rank / (len(scores) + 1)}
            row["interval"] = rates_of(rank, len(scores))
        rows.append(row)
    return rows
