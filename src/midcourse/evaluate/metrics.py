"""Figures of generated texts."""

import itertools
import math
from collections.abc import Sequence
from statistics import fmean

from midcourse.decode.loop import Generation


def perplexity(generations: Sequence[Generation]) -> float:
    """exp of the mean negative log-probability per token under the base model, over all tokens of all responses."""
    logprobs = [step.reference_logprob for generation in generations for step in generation.steps]
    return math.exp(-fmean(logprobs))


def repeated_bigrams(text: str) -> float:
    """Share of a text's word bigrams that occurred in it before; 0 for a text of fewer than two bigrams."""
    words = text.split()
    bigrams = list(itertools.pairwise(words))
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0
