"""Features by which a shortcut in a data set shows itself: a detector no better than these has learned nothing.

Each is computed on the text as it is, white space and all; see `midcourse.detect.disguise` for what detectors read.
"""

import re
from collections.abc import Callable, Mapping

_WORD = re.compile(r"\w+")


def length(text: str) -> float:
    """Return the number of words."""
    return float(len(text.split()))


def newline(text: str) -> float:
    """Return 1 if the text has more than one line, else 0."""
    return float("\n" in text.strip())


def characters_per_word(text: str) -> float:
    """Return the mean length of words, in characters."""
    words = text.split()
    return sum(map(len, words)) / max(len(words), 1)


def commas_per_word(text: str) -> float:
    """Return commas per word."""
    return text.count(",") / max(len(text.split()), 1)


def type_token_ratio(text: str) -> float:
    """Return the share of the words that are different, capitals aside."""
    words = [word.lower() for word in _WORD.findall(text)]
    return len(set(words)) / max(len(words), 1)


TRIVIAL: Mapping[str, Callable[[str], float]] = {
    "length": length,
    "newline": newline,
    "characters per word": characters_per_word,
    "commas per word": commas_per_word,
    "type-token ratio": type_token_ratio,
}
