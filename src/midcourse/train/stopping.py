"""When training ends before its last step: no evaluation has been better for a while, or a signal asks for it.

Early stopping is a pure function of the metrics, so that a run that was interrupted decides as an undisturbed one does.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
    """Return an evaluation's mean accuracy over the shares of the response."""
    return mean(row["accuracy"].values())


def best_so_far(rows: Sequence[dict[str, Any]]) -> Best | None:
    """Return the best of the rows that hold an evaluation, the earliest of equals; None if none does."""
    best = None
    for row in rows:
        if "accuracy" not in row:
            continue
        if best is None or prefix_accuracy(row) > best.accuracy:
            best = Best(row["step"], prefix_accuracy(row), 0)
        else:
            best = best._replace(waited=best.waited + 1)
    return best


@dataclass
class Interruption:
    """The signal that has asked training to stop, if any."""

    signal: int | None = None


@contextmanager
def stop_on_signal() -> Iterator[Interruption]:
    """Let Ctrl-C and SIGTERM end training after the current step, which is said; a second one ends it at once."""
    interruption = Interruption()
    earlier: dict[int, Any] = {}

    def ask(number: int, frame: Any) -> None:
        interruption.signal = number
        # Not print: the signal may have come in the middle of one, and files refuse to be written within a write.
        with suppress(OSError):
            os.write(2, b"\nmidcourse: stopping after this step; a second Ctrl-C stops at once\n")
        signal.signal(number, earlier[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        earlier[number] = signal.signal(number, ask)
    try:
        yield interruption
    finally:
        for changed, handler in earlier.items():
            signal.signal(changed, handler)
