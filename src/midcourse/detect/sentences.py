"""Texts as sentences, by their places, so that some can be replaced and everything else stays as it is."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

# Marks, then closing quotes and brackets. Each run of marks is tried once: a megabyte of full stops takes no longer.
_MARKS = re.compile(
    r"(?<![.!?])[.!?]++[\"'”’)\]]*+(?=\s++[\"'“‘«(\[]*+(\w))|[。！？]++[\"'”’」』）]*+"
    r"|(?P<blank>\n[^\S\n]*+\n)"  # no sentence goes on behind a blank line
)
_SHORTENED = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Gen|Sen|Rep|Gov|Lt|Col|Capt|Sgt|Rev|No|vs|cf)|\b[A-HJ-Z])\.$")


class Span(NamedTuple):
    """Where a sentence stands in its text: from `begin`, before `end`."""

    begin: int
    end: int


def spans_of(text: str) -> list[Span]:
    """Return where each sentence stands; what is between them is white space.

    A sentence ends with a full stop, question or exclamation mark before a capital or a digit, or at a blank line. The
    full stop of an initial or of a title, as in "Mr. J. Smith", ends none.
    """
    ends = [0, *(match.end() for match in _MARKS.finditer(text) if _ends(match, text)), len(text)]
    return [_trimmed(text, begin, end) for begin, end in pairwise(ends) if text[begin:end].strip()]


def sentences_of(text: str) -> list[str]:
    """Return the sentences of a text, as `spans_of` finds them."""
    return [text[begin:end] for begin, end in spans_of(text)]


def splice(text: str, spans: Sequence[Span], new: Mapping[int, str]) -> str:
    """Put new sentences in the places of those with their numbers, counted from 1; all else stays as it is."""
    parts, at = [], 0
    for number in sorted(new):
        begin, end = spans[number - 1]
        parts += [text[at:begin], new[number]]
        at = end
    return "".join([*parts, text[at:]])


def _ends(match: re.Match[str], text: str) -> bool:
    following = match[1]
    if following is None:
        return True
    before = text[max(match.start() - 6, 0) : match.end()]
    return (following.isupper() or following.isdigit()) and not _SHORTENED.search(before)


def _trimmed(text: str, begin: int, end: int) -> Span:
    piece = text[begin:end]
    start = begin + len(piece) - len(piece.lstrip())
    return Span(start, start + len(piece.strip()))
