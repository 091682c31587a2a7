"""How well scores tell machine texts from human ones: AUROC, and the true-positive rate at a false-positive rate."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np

from midcourse.detect.conformal import rate_interval
from midcourse.evaluate.intervals import interval_of
from midcourse.evaluate.separation import Scores, auroc, draws

RATES = (0.01, 0.05)
FEW = 10


def cut(humans: Scores, fpr: float) -> float:
    """Return the lowest threshold above which at most that share of these human texts lie; see `resolves`."""
    largest = np.sort(np.asarray(humans, dtype=float))[::-1]
    return float(largest[int(np.floor(fpr * len(largest) + 1e-9))])


def resolves(texts: int, fpr: float) -> bool:
    """Return whether so many human texts can show a false-positive rate other than 0 that is at most `fpr`."""
    return fpr * texts >= 1 - 1e-9


def tpr_at(humans: Scores, machines: Scores, fpr: float) -> float:
    """Return the share of machine texts above the threshold that at most `fpr` of these human texts exceed."""
    return float((np.asarray(machines, dtype=float) > cut(humans, fpr)).mean())


def separation(
    humans: Scores,
    machines: Scores,
    human_groups: Sequence[Hashable] | None = None,
    machine_groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Return AUROC and true-positive rates at 1% and 5% false positives, each with its 95 % bootstrap interval.

    Whole groups are drawn (texts that answer one prompt, or share a source); by default each text is one. With fewer
    than `FEW` texts of either kind intervals are None: the bootstrap knows nothing beyond what it has seen.

    Returns:
        {"humans", "machines", "auroc", "auroc_interval", "tpr_at_1", "tpr_at_1_interval", "resolves_1", ... "_5"}.
    """
    human, machine = (np.asarray(scores, dtype=float) for scores in (humans, machines))
    figures: dict[str, Any] = {"humans": len(human), "machines": len(machine), "auroc": auroc(human, machine)}
    measures: dict[str, Callable[[Scores, Scores], float]] = {"auroc": auroc}
    for rate in RATES:
        name = f"tpr_at_{rate * 100:g}"
        figures |= {name: tpr_at(human, machine, rate), f"resolves_{rate * 100:g}": resolves(len(human), rate)}
        measures[name] = partial(tpr_at, fpr=rate)
    if min(len(human), len(machine)) < FEW:
        return {**figures, **{f"{name}_interval": None for name in measures}}
    drawn = draws(human, machine, human_groups, machine_groups, seed=seed)
    sides = ((human, human_groups), (machine, machine_groups))
    groups = min(len(scores) if names is None else len(set(names)) for scores, names in sides)
    for name, measure in measures.items():
        found = np.array([measure(h, m) for h, m in drawn])
        figures[f"{name}_interval"] = interval_of(found, groups, proportion=True)
    return figures


def realised(scores: Scores, limit: float) -> dict[str, Any]:
    """Return how many human texts a threshold set elsewhere flags: {"texts", "flagged", "rate", "interval"}."""
    flagged = int((np.asarray(scores, dtype=float) > limit).sum())
    return {
        "texts": len(scores),
        "flagged": flagged,
        "rate": flagged / len(scores),
        "interval": rate_interval(flagged, len(scores)),
    }
