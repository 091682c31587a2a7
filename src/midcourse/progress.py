"""Progress with time left, on standard error: a bar in a terminal, a line every ten seconds in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from midcourse.terminal import tell, visible

LOG_SECONDS = 10.0
Advance: TypeAlias = Callable[[int | float], None]  # says that so much more is done


def silent(amount: int | float) -> None:
    """Hear that so much more is done, and say nothing."""


@contextlib.contextmanager
def progress(description: str, total: int, *, quiet: bool = False) -> Iterator[Advance]:
    """Show a bar for `total` units of work; the yielded function says that so many more are done. `quiet` shows none.

    Examples:
        >>> with progress("reading", len(rows)) as advance:
        ...     for row in rows:
        ...         advance(1)
    """
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        # On a terminal, what is printed meanwhile goes above the bar; to a file or a pipe it goes as ever.
        with Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty()) as bar:
            task = bar.add_task(visible(description), total=total)
            yield lambda amount: bar.advance(task, amount)
    else:
        yield _line_writer(description, total)


def _line_writer(description: str, total: int) -> Advance:
    start = last = time.monotonic()
    done = 0.0

    def advance(amount: int | float) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        ended = amount > 0 and round(done, 6) >= total and now - start >= LOG_SECONDS
        if now - last >= LOG_SECONDS or ended:
            last = now
            left = (now - start) / done * (total - done) if done else float("nan")
            tell(f"{description}: {done:.0f}/{total}, {left:.0f} s left")

    return advance
