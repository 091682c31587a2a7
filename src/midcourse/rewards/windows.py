"""Texts as rows of tokens for a model to read: cut into windows, and windows of like length together."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from midcourse.lm.language_model import LanguageModel

WINDOW = 512  # tokens that are read together; a longer text is read in parts of this length
BATCH_TOKENS = 4096  # of one forward, padding included


Part = TypeVar("Part")


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


def read_whole(
    windows: Sequence[Window], read: Callable[[list[list[int]]], Sequence[Part]]
) -> Iterator[tuple[int, list[tuple[int, Part]]]]:
    """Read windows in batches; yield (a text's number, its parts) as soon as all windows of the text were read.

    Args:
        windows: all those of some texts.
        read: returns what is read of each row of tokens.

    Returns:
        The parts in the order of the text, each with the place of its first token.
    """
    left = np.bincount([window.text for window in windows])
    parts: dict[int, list[tuple[int, Part]]] = {}
    for batch in batches(windows):
        for window, part in zip(batch, read([window.token_ids for window in batch]), strict=True):
            parts.setdefault(window.text, []).append((window.begin, part))
            left[window.text] -= 1
            if not left[window.text]:
                yield window.text, sorted(parts.pop(window.text), key=lambda one: one[0])
