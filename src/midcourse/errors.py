"""The base of everything midcourse raises for a user to read: one sentence, with the value and the remedy."""

from typing import Any


class MidcourseError(ValueError):
    """An error for a user to read. The command line prints it and exits with status 2."""


class Interrupted(Exception):
    """Training was stopped by Ctrl-C or SIGTERM after a whole checkpoint; `signal` is the signal's number."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, at most 200 characters of it."""
    said = str(error).partition("\n")[0]
    return said if len(said) <= 200 else said[:200] + "..."


def short_value(value: Any) -> str:
    """Return what a value is written as in Python, at most 60 characters of it, for a message."""
    try:
        written = repr(value)
    except ValueError:  # Python writes no whole number of thousands of digits
        return "a whole number of thousands of digits"
    return written if len(written) <= 60 else written[:60] + "..."
