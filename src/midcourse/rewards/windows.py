"""Texts as rows of tokens for a model to read: cut into windows, and windows of like length together."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from midcourse.lm.language_model import LanguageModel
from midcourse.progress import Advance, silent

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


def nested(windows: Sequence[Window]) -> list[list[Window]]:
    """Return the windows in rows: the tokens of the first hold those of every other one of its row as their beginning.

    What a causal model computes of a beginning stands in what it computes of the whole.
    """
    rows: list[list[Window]] = []
    # In this order, what begins with some tokens comes right before these.
    for window in sorted(windows, key=lambda window: window.token_ids, reverse=True):
        longest = rows[-1][0].token_ids if rows else []
        if rows and longest[: len(window.token_ids)] == window.token_ids:
            rows[-1].append(window)
        else:
            rows.append([window])
    return rows


def batches(rows: Sequence[list[Window]]) -> Iterator[list[list[Window]]]:
    """Yield the rows, the longest first, so many at a time as a forward should read."""
    left = sorted(rows, key=lambda row: len(row[0].token_ids))
    while left:
        fit = max(BATCH_TOKENS // max(len(left[-1][0].token_ids), 1), 1)
        yield left[-fit:]
        del left[-fit:]


def read_whole(
    rows: Sequence[list[Window]],
    read: Callable[[list[list[Window]]], Iterable[tuple[Window, Part]]],
    advance: Advance = silent,
) -> Iterator[tuple[int, list[tuple[int, Part]]]]:
    """Read rows of windows in batches; yield (a text's number, its parts) as soon as all windows of the text were read.

    Args:
        rows: all windows of some texts; what is read of a row's first window holds what is read of the others.
        read: yields each window of some rows with what is read of it.
        advance: told of every text, in parts as large as its windows.

    Returns:
        The parts in the order of the text, each with the place of its first token.
    """
    windows = Counter(window.text for row in rows for window in row)
    left = windows.copy()
    parts: dict[int, list[tuple[int, Part]]] = {}
    for batch in batches(rows):
        for window, part in read(batch):
            parts.setdefault(window.text, []).append((window.begin, part))
            left[window.text] -= 1
            advance(1 / windows[window.text])
            if not left[window.text]:
                yield window.text, sorted(parts.pop(window.text), key=lambda one: one[0])
