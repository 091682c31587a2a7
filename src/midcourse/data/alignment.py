"""Which tokens of a text an edit kept, added, deleted or substituted, on either side.

The script of an edit is a shortest one: keeping costs nothing, every added, deleted or substituted token costs one, and
the sum is the Levenshtein distance. Several scripts may be shortest, as when one of two equal tokens is deleted; which
one is taken is rapidfuzz's choice, and always the same.
"""

import re
from collections.abc import Hashable, Sequence
from enum import IntEnum
from typing import Any, Literal, NamedTuple, TypeAlias

from rapidfuzz.distance import Levenshtein

Unit: TypeAlias = Literal["tokens", "words"]
Span: TypeAlias = tuple[int, int]  # characters (begin, end) of a text
_WORDS = re.compile(r"\w+|[^\w\s]")


class Change(IntEnum):
    """What an edit did to a token.

    A token behind an OMISSION was kept, and the edit added something right before it: in the original something is
    missing there.
    """

    KEPT = 0
    ADDED = 1
    DELETED = 2
    SUBSTITUTED = 3
    OMISSION = 4

    @property
    def kept(self) -> bool:
        """Return whether the token stands on both sides."""
        return self in (Change.KEPT, Change.OMISSION)


class Operation(NamedTuple):
    """A step of a script: what becomes of a run of the original's tokens.

    Attributes:
        change: KEPT, ADDED, DELETED or SUBSTITUTED.
        original, edited: the tokens (begin, end) on either side; as many on both if kept or substituted.
    """

    change: Change
    original: Span
    edited: Span

    @property
    def cost(self) -> int:
        """Return how many tokens it changes."""
        longer = max(end - begin for begin, end in (self.original, self.edited))
        return 0 if self.change is Change.KEPT else longer


_CHANGES = {
    "equal": Change.KEPT,
    "insert": Change.ADDED,
    "delete": Change.DELETED,
    "replace": Change.SUBSTITUTED,
}


def align(original: Sequence[Hashable], edited: Sequence[Hashable]) -> list[Operation]:
    """Return a shortest script that turns one sequence into the other.

    Examples:
        >>> [operation.change.name for operation in align("a b c".split(), "a x c d".split())]
        ['KEPT', 'SUBSTITUTED', 'KEPT', 'ADDED']
    """
    # By numbers: rapidfuzz compares the hashes of anything else.
    numbers: dict[Hashable, int] = {}
    sides = [[numbers.setdefault(one, len(numbers)) for one in side] for side in (original, edited)]
    return [
        Operation(_CHANGES[step.tag], (step.src_start, step.src_end), (step.dest_start, step.dest_end))
        for step in Levenshtein.opcodes(*sides)
    ]


def applied(script: Sequence[Operation], original: Sequence[Any], edited: Sequence[Any]) -> list[Any]:
    """Return what a script makes of the original; what it adds or substitutes is taken from the edited side."""
    made: list[Any] = []
    for operation in script:
        source, (begin, end) = (
            (original, operation.original) if operation.change is Change.KEPT else (edited, operation.edited)
        )
        made += source[begin:end]
    return made


def distance(script: Sequence[Operation]) -> int:
    """Return how many tokens a script adds, deletes or substitutes: the Levenshtein distance."""
    return sum(operation.cost for operation in script)


class Labels(NamedTuple):
    """What an edit did to the tokens of either side.

    Attributes:
        original: KEPT, DELETED, SUBSTITUTED, or OMISSION of a kept token before which something was added.
        edited: KEPT, ADDED or SUBSTITUTED; nothing if nobody said what would be right.
    """

    original: tuple[Change, ...]
    edited: tuple[Change, ...]


def labels_of(script: Sequence[Operation], original: int, edited: int) -> Labels:
    """Return the labels of the first tokens of either side, so many of each.

    Tokens behind the script's end, such as an end of text, are kept; something may be missing before them.
    """
    before, after = [Change.KEPT] * original, [Change.KEPT] * edited
    omissions = []
    for operation in script:
        for labels, (begin, end) in ((before, operation.original), (after, operation.edited)):
            labels[begin:end] = [operation.change] * len(labels[begin:end])
        if operation.change is Change.ADDED:
            omissions.append(operation.original[0])
    for place in omissions:
        if place < original and before[place] is Change.KEPT:
            before[place] = Change.OMISSION
    return Labels(tuple(before), tuple(after))


def token_labels(original: Sequence[int], edited: Sequence[int]) -> Labels:
    """Return the labels of token ids, aligned as they are."""
    return labels_of(align(original, edited), len(original), len(edited))


def marked_labels(marks: Sequence[Span], tokens: Sequence[Span]) -> tuple[Change, ...]:
    """Return DELETED for every token that shares a character with a mark, and KEPT for others."""
    return tuple(Change.DELETED if any(meet(token, mark) for mark in marks) else Change.KEPT for token in tokens)


def meet(one: Span, other: Span) -> bool:
    """Return whether two spans share a character."""
    return one[0] < other[1] and other[0] < one[1]


def word_spans(text: str) -> list[Span]:
    """Return where the words and the marks of a text stand, as characters (begin, end)."""
    return [match.span() for match in _WORDS.finditer(text)]


def word_labels(original: str, edited: str, spans: tuple[Sequence[Span], Sequence[Span]]) -> Labels:
    """Return the labels of tokens, those of the words that they are part of; white space changes nothing.

    A token that shares characters with several words has the first label of these that is a change.

    Args:
        spans: the characters (begin, end) of the tokens of the original, and of the edited text. A token that ends the
            text stands at the character behind the last.
    """
    texts, words = (original, edited), [word_spans(original), word_spans(edited)]
    said = [[text[slice(*span)] for span in found] for text, found in zip(texts, words, strict=True)]
    labels = labels_of(align(*said), len(words[0]) + 1, len(words[1]) + 1)
    ends = [[*found, (len(text), len(text) + 1)] for text, found in zip(texts, words, strict=True)]
    return Labels(*(_projected(some, at, tokens) for some, at, tokens in zip(labels, ends, spans, strict=True)))


def _projected(labels: Sequence[Change], words: Sequence[Span], tokens: Sequence[Span]) -> tuple[Change, ...]:
    """Return each token's label: that of the first changed word which it shares a character with."""
    made, first = [], 0
    for begin, end in tokens:
        while first < len(words) and words[first][1] <= begin:
            first += 1
        mine, at = Change.KEPT, first
        while at < len(words) and words[at][0] < end:
            # Of a word that follows an omission, its first token is marked.
            marked = labels[at] is not Change.OMISSION or begin <= words[at][0]
            if mine is Change.KEPT and marked:
                mine = labels[at]
            at += 1
        made.append(mine)
    return tuple(made)
