"""Stopping after a whole step when Ctrl-C or SIGTERM asks for it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Interrupted(Exception):
    """Stopped by Ctrl-C or SIGTERM after a whole checkpoint was written; `signal` is the signal's number."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


@dataclass
class Interruption:
    """Which signal has asked training to stop, if any."""

    signal: int | None = None


@contextmanager
def stop_on_signal() -> Iterator[Interruption]:
    """Let Ctrl-C and SIGTERM end training after the current step; a second one ends it at once."""
    interruption = Interruption()
    earlier: dict[int, Any] = {}

    def ask(number: int, frame: Any) -> None:
        interruption.signal = number
        signal.signal(number, earlier[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        earlier[number] = signal.signal(number, ask)
    try:
        yield interruption
    finally:
        for changed, handler in earlier.items():
            signal.signal(changed, handler)
