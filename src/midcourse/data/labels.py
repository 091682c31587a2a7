"""Preferences from any function of a text: Bradley-Terry draws at a stated scale."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from midcourse.data.comparisons import Comparison
from midcourse.rewards.gold import Gold


def draw_labels(comparisons: Sequence[Comparison], gold: Gold, *, scale: float, seed: int) -> list[Comparison]:
    """Return the pairs, each with a preference drawn anew: P(a over b) = sigmoid(scale (gold(a) - gold(b))).

    `gold` judges the response alone. The draw of a pair depends on the seed, its place and its two texts, not on which
    of them was preferred before, so labelling twice gives the same labels.

    Examples:
        >>> shorter = draw_labels(comparisons, lambda text: -len(text.split()), scale=1, seed=0)
    """
    return [
        draw_label(c, gold(c.chosen) - gold(c.rejected), scale, random.Random(f"{seed}/{i}"))
        for i, c in enumerate(comparisons)
    ]


def draw_label(comparison: Comparison, margin: float, scale: float, rng: random.Random) -> Comparison:
    """Return the pair with its preference drawn anew: P(chosen over rejected) = sigmoid(scale margin).

    Args:
        margin: reward of the chosen response less that of the rejected one.
    """
    flip = comparison.chosen > comparison.rejected
    first_wins = rng.random() < _sigmoid(scale * (-margin if flip else margin))
    return comparison if first_wins != flip else swapped(comparison)


def bayes_accuracy(comparisons: Sequence[Comparison], gold: Gold, *, scale: float) -> float:
    """Return the accuracy expected of the gold reward itself on labels drawn from it: no reward can do better."""
    return label_ceiling([gold(c.chosen) - gold(c.rejected) for c in comparisons], scale)


def label_ceiling(margins: Sequence[float], scale: float) -> float:
    """Return that accuracy from the margins of the pairs: the mean of sigmoid(scale |margin|)."""
    return sum(_sigmoid(scale * abs(margin)) for margin in margins) / len(margins)


def swapped(c: Comparison) -> Comparison:
    """Return the opposite preference."""
    return replace(
        c,
        chosen=c.rejected,
        rejected=c.chosen,
        chosen_finished=c.rejected_finished,
        rejected_finished=c.chosen_finished,
    )


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
