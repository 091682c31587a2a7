"""Thresholds that hold a false-positive rate, from the scores of human texts alone.

A text is flagged if its score lies above a threshold t. With n exchangeable human scores, h(1) the largest, t = h(r)
flags another human text with a probability that depends on r and n, whatever the distribution of the scores:

    on average        r / (n + 1)                                                  split conformal (Vovk et al., 2005)
    with confidence   at most a with probability P(Beta(r, n + 1 - r) <= a)        (Vovk, 2012, arXiv 1209.2673)

So a rate of 1% needs 99 human texts on average, and 299 for "at most 1% with 95% confidence".
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from scipy.stats import beta

Guarantee: TypeAlias = Literal["average", "confidence"]
GUARANTEES: tuple[Guarantee, ...] = get_args(Guarantee)
CONFIDENCE = 0.95
LOWEST = 1e-9  # rate; no set of texts resolves a lower one


class Threshold(NamedTuple):
    """A score above which a text is flagged.

    Attributes:
        score: the threshold; None if so few human texts resolve no such rate.
        texts: how many human texts it rests on.
    """

    score: float | None
    texts: int


def threshold(humans: Sequence[float] | np.ndarray, fpr: float, guarantee: Guarantee = "average") -> Threshold:
    """Return the lowest threshold that holds the false-positive rate.

    Args:
        humans: scores of human texts that the detector was not trained on.
        fpr: the rate, between 0 and 1.
        guarantee: "average": the rate holds on average over sets of human texts like this one; "confidence": it holds
            for 95 of 100 such sets.
    """
    rank = highest_rank(len(humans), fpr, guarantee)
    if rank == 0:
        return Threshold(None, len(humans))
    return Threshold(float(np.sort(np.asarray(humans, dtype=float))[-rank]), len(humans))


def highest_rank(texts: int, fpr: float, guarantee: Guarantee) -> int:
    """Return the highest r for which the r-th largest of so many human scores holds the rate; 0 if none does."""
    if guarantee == "average":
        return min(math.floor(fpr * (texts + 1) + 1e-9), texts)
    ranks = np.arange(1, texts + 1)
    return int((beta.cdf(fpr, ranks, texts + 1 - ranks) >= CONFIDENCE - 1e-12).sum())


def texts_needed(fpr: float, guarantee: Guarantee) -> int:
    """Return how many human texts resolve a false-positive rate: 99 and 299 for 1%."""
    if guarantee == "average":
        return math.ceil(1 / fpr - 1e-9) - 1
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-fpr) - 1e-9)


def rates_of(rank: int, texts: int) -> tuple[float, float]:
    """Return between which false-positive rates 95 of 100 thresholds h(rank) of so many texts lie."""
    low, high = beta.ppf([0.025, 0.975], rank, texts + 1 - rank)
    return float(low), float(high)


def rate_interval(flagged: int, texts: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a rate of which `flagged` of `texts` were seen (Clopper and Pearson, 1934)."""
    low = 0.0 if flagged == 0 else float(beta.ppf(0.025, flagged, texts - flagged + 1))
    high = 1.0 if flagged == texts else float(beta.ppf(0.975, flagged + 1, texts - flagged))
    return low, high
