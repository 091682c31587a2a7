"""Texts as rows of tokens for a model to read: cut into windows, and windows of like length together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from midcourse.lm.language_model import LanguageModel

WINDOW = 512  # tokens that are read together; a longer text is read in parts of this length
BATCH_TOKENS = 4096  # of one forward, padding included


class Window(NamedTuple):
    """A part of a text that is read at once.

    Attributes:
        text: the number of its text.
        begin: which of the text's tokens is its first.
    """

    text: int
    begin: int
    token_ids: list[int]


def windows_of(lm: LanguageModel, texts: Sequence[str], most: int = WINDOW) -> list[Window]:
    """Return the windows of each text: one, even if it has no token; more if it has more than `WINDOW` tokens.

    Args:
        most: tokens of a window; neither more than these, nor than the context holds.
    """
    room = min(WINDOW, lm.context_length, most)
    rows = [lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    return [
        Window(n, begin, row[begin : begin + room])
        for n, row in enumerate(rows)
        for begin in range(0, max(len(row), 1), room)
    ]


def batches(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Yield the windows, the longest first, so many at a time as a forward should read."""
    left = sorted(windows, key=lambda window: len(window.token_ids))
    while left:
        fit = max(BATCH_TOKENS // max(len(left[-1].token_ids), 1), 1)
        yield left[-fit:]
        del left[-fit:]
