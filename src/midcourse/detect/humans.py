"""Scores of calibration texts, and the thresholds that they give each group of texts and each length.

Thresholds hold for texts like those they were calibrated on. A detector's scores differ by who writes and by length:
one threshold for all can hold its rate on the whole and yet flag far more of one group. So every length has a threshold
of its own, and so has every group (Mondrian conformal prediction; Vovk et al., 2005). A text has to lie above that of
all its group's texts, so that the rate holds for the group, and above that of the group's texts of its length; where
these are too few, above that of all groups' texts of the length. If its group is not known, it has to lie above those
of every group. Where a group has too few texts for the rate, a text that may be one of its has no threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from midcourse.detect.conformal import Guarantee, Threshold, texts_needed, threshold

# Lengths are told apart at so many words.
LENGTHS = (25, 50, 75, 100, 150, 200)


def length_of(words: int) -> int:
    """Return which length a text has: 0 below the first of `LENGTHS`, 1 below the second, and so on."""
    return int(lengths_of([words])[0])


def lengths_of(words: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return `length_of` each."""
    return np.searchsorted(LENGTHS, words, side="right")


def length_name(length: int) -> str:
    """Return a length in words, such as "50 to 74 words"."""
    if length == 0:
        return f"under {LENGTHS[0]} words"
    if length == len(LENGTHS):
        return f"{LENGTHS[-1]} words or more"
    return f"{LENGTHS[length - 1]} to {LENGTHS[length] - 1} words"


def cut_to(text: str, words: int) -> str:
    """Return the first words of a text."""
    return " ".join(text.split()[:words])


def lengths_within(words: int) -> list[int]:
    """Return at how many words a text of so many is cut: where every shorter length begins.

    For its own length the whole text stands, so that a text counts once in each.
    """
    return list(LENGTHS[: max(length_of(words) - 1, 0)])


@dataclass(frozen=True)
class Scored:
    """Scores of texts that one kind of author wrote, and of their beginnings.

    Attributes:
        scores: of each.
        words: how many words it has.
        groups: which group of texts it is of; "" if none.
        whole: whether it is a text, and not the beginning of one.
    """

    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    words: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=str))
    whole: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def turned(self) -> "Scored":
        """Return the same texts with the signs of their scores changed."""
        return replace(self, scores=-self.scores)

    @property
    def group_names(self) -> list[str]:
        """Return the groups there are."""
        return sorted(set(self.groups.tolist()) - {""})

    def of_length(self, length: int | None) -> np.ndarray:
        """Return the scores of texts and beginnings of a length, of each text one at most; or of all whole texts."""
        return self.scores[self.whole if length is None else lengths_of(self.words) == length]

    def of_group(self, group: str, length: int | None = None) -> np.ndarray:
        """Return the scores of a group's texts, each once: the whole ones, or what has a length."""
        mine = self.groups == group
        if length is None:
            return self.scores[mine & self.whole]
        return self.scores[mine & (lengths_of(self.words) == length)]


@dataclass(frozen=True)
class Bound:
    """What a text's score has to exceed, and what that rests on.

    Attributes:
        score: None if no threshold resolves the rate.
        texts: the fewest calibration texts that any of the thresholds rests on.
        rests_on: the lengths and groups whose thresholds count, in words.
        missing: why there is no threshold; "" if there is one.
    """

    score: float | None
    texts: int
    rests_on: tuple[str, ...]
    missing: str = ""


def bound_of(
    scored: Scored, words: int, fpr: float, guarantee: Guarantee = "average", group: str | None = None
) -> Bound:
    """Return what the score of a text of so many words has to exceed to be flagged at a false-positive rate.

    Args:
        group: the text's; by default it is not known, and the highest threshold of any group counts.
    """
    length = length_of(words)
    names = scored.group_names if group is None else [group]
    parts = list(dict.fromkeys(part for name in names for part in _of_group(scored, name, length, fpr, guarantee)))
    parts = parts or [_of_length(scored, length, fpr, guarantee)]
    for name, found in parts:
        if found.score is None:
            needed = texts_needed(fpr, guarantee)
            why = f"not resolvable at this rate: {found.texts} calibration texts of {name}, {needed} needed"
            return Bound(None, found.texts, (name,), why)
    score = max(found.score for _, found in parts if found.score is not None)
    return Bound(score, min(found.texts for _, found in parts), tuple(name for name, _ in parts))


def _of_group(scored: Scored, group: str, length: int, fpr: float, guarantee: Guarantee) -> list[tuple[str, Threshold]]:
    """Return what a text of a group has to lie above."""
    at_length = f"{group}, {length_name(length)}", threshold(scored.of_group(group, length), fpr, guarantee)
    if at_length[1].score is None:
        at_length = _of_length(scored, length, fpr, guarantee)
    return [at_length, (group, threshold(scored.of_group(group), fpr, guarantee))]


def _of_length(scored: Scored, length: int, fpr: float, guarantee: Guarantee) -> tuple[str, Threshold]:
    return length_name(length), threshold(scored.of_length(length), fpr, guarantee)
