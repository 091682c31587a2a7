"""Cases that take turns, so that a machine whose speed drifts slows them alike."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TypeVar

from midcourse.progress import progress

Case = TypeVar("Case")
Found = TypeVar("Found")


def in_turns(cases: Mapping[Case, Callable[[], Found]], rounds: int, what: str = "timing") -> dict[Case, list[Found]]:
    """Run every case once a round; returns what each gave, by round.

    Args:
        what: name of the progress bar.
    """
    found: dict[Case, list[Found]] = {case: [] for case in cases}
    with progress(what, rounds * len(cases)) as advance:
        for _ in range(rounds):
            for case, run in cases.items():
                found[case].append(run())
                advance(1)
    return found


def time_of(run: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    start = perf_counter()
    run()
    return perf_counter() - start
