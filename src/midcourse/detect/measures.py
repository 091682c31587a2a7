"""How well scores tell machine texts from human ones: AUROC, and the true-positive rate at a false-positive rate."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from midcourse.detect.conformal import rate_interval
from midcourse.evaluate.intervals import resamples

Scores: TypeAlias = Sequence[float] | np.ndarray
RATES = (0.01, 0.05)
BOOTSTRAP = 1000
FEW = 10


def auroc(humans: Scores, machines: Scores) -> float:
    """Return the probability that a machine text scores higher than a human one; equal scores count one half."""
    ranks = rankdata(np.concatenate([machines, humans]))
    n, m = len(machines), len(humans)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


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
    drawn = _draws(human, machine, human_groups, machine_groups, seed)
    for name, measure in measures.items():
        low, high = np.quantile([measure(h, m) for h, m in drawn], [0.025, 0.975])
        figures[f"{name}_interval"] = (float(low), float(high))
    return figures


def _draws(
    human: Float[np.ndarray, " humans"],
    machine: Float[np.ndarray, " machines"],
    human_groups: Sequence[Hashable] | None,
    machine_groups: Sequence[Hashable] | None,
    seed: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return resampled (human scores, machine scores); a group's texts of both kinds are drawn together."""
    own = [("human", i) for i in range(len(human))] if human_groups is None else human_groups
    other = [("machine", i) for i in range(len(machine))] if machine_groups is None else machine_groups
    _, groups = np.unique([repr(name) for name in (*own, *other)], return_inverse=True)
    times = resamples(int(groups.max()) + 1, seed=seed)[:BOOTSTRAP]
    first, second = groups[: len(human)], groups[len(human) :]
    drawn = ((np.repeat(human, row[first]), np.repeat(machine, row[second])) for row in times)
    return [(h, m) for h, m in drawn if len(h) and len(m)]


def realised(scores: Scores, limit: float) -> dict[str, Any]:
    """Return how many human texts a threshold set elsewhere flags: {"texts", "flagged", "rate", "interval"}."""
    flagged = int((np.asarray(scores, dtype=float) > limit).sum())
    return {
        "texts": len(scores),
        "flagged": flagged,
        "rate": flagged / len(scores),
        "interval": rate_interval(flagged, len(scores)),
    }
