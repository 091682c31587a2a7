"""Early stopping: which evaluation was the best so far, and for how long.

A pure function of the metrics, so that a run that was interrupted decides as an undisturbed one does.
"""

from collections.abc import Sequence
from statistics import mean
from typing import Any, NamedTuple


class Best(NamedTuple):
    """The best evaluation so far.

    Attributes:
        step: after which it was made.
        accuracy: its prefix accuracy.
        waited: evaluations since, none of them better.
    """

    step: int
    accuracy: float
    waited: int


def prefix_accuracy(row: dict[str, Any]) -> float:
    """An evaluation's mean accuracy over the shares of the response."""
    return mean(row["accuracy"].values())


def best_so_far(rows: Sequence[dict[str, Any]]) -> Best | None:
    """The best of the rows that hold an evaluation, the earliest of equals; None where none does."""
    best = None
    for row in rows:
        if "accuracy" not in row:
            continue
        if best is None or prefix_accuracy(row) > best.accuracy:
            best = Best(row["step"], prefix_accuracy(row), 0)
        else:
            best = best._replace(waited=best.waited + 1)
    return best
