"""95 % intervals by the bootstrap over groups (prompts), since rows of one prompt are not independent.

All intervals of the project are made here: a percentile interval with its quantiles moved outwards for few groups
(Hesterberg, What Teachers Should Know About the Bootstrap, 2015, section 5.2), which a plain one covers too rarely.
One group has no interval. Where all groups say the same of a proportion no draw differs, and the interval is that of
Clopper and Pearson (1934), a group being a trial.
"""

import math
from collections.abc import Hashable, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
from scipy.special import ndtr, stdtrit

RESAMPLES = 4000
Interval: TypeAlias = tuple[float, float]


def mean_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    *,
    proportion: bool = False,
    seed: int = 0,
) -> tuple[float, Interval | None]:
    """Return (mean, its 95 % interval), resampling whole groups; by default each value is one.

    Args:
        proportion: the values are outcomes, from 0 to 1.

    Raises:
        ValueError: no values.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError("no values to average; give at least one")
    _, group = np.unique(
        [str(g) for g in groups] if groups is not None else np.arange(len(values)), return_inverse=True
    )
    sums, counts = np.bincount(group, values), np.bincount(group)
    times = resamples(len(sums), seed=seed)
    return float(values.mean()), interval_of((times @ sums) / (times @ counts), len(sums), proportion=proportion)


def interval_of(draws: np.ndarray, groups: int, *, proportion: bool = False) -> Interval | None:
    """Return the interval of a statistic from its bootstrap draws; None for one group.

    Args:
        draws: of shape (draws,).
        groups: how many there are to draw from.
        proportion: the statistic lies between 0 and 1.
    """
    if groups < 2 or not len(draws):
        return None
    low, high = map(float, np.quantile(draws, [_tail(groups), 1 - _tail(groups)]))
    if proportion and low == high and low in (0.0, 1.0):
        return all_or_none(low == 1.0, groups)
    return low, high


def all_or_none(succeeded: bool, trials: int) -> Interval:
    """Return Clopper and Pearson's interval of a proportion of which all trials succeeded, or none."""
    least = 0.025 ** (1 / trials)
    return (least, 1.0) if succeeded else (0.0, 1 - least)


@cache
def _tail(groups: int) -> float:
    return float(ndtr(math.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, 0.025)))


def resamples(groups: int, *, seed: int = 0) -> np.ndarray:
    """Return how often each group is drawn in each bootstrap sample, of shape (resamples, groups)."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
