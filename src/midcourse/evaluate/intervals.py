"""95 % intervals by the bootstrap over groups (prompts), since rows of one prompt are not independent.

All intervals of the project are made here: a percentile interval with its quantiles moved outwards for few groups
(Hesterberg, What Teachers Should Know About the Bootstrap, 2015, section 5.2), which a plain one covers too rarely.
One group has no interval. Where all groups say the same of a proportion no draw differs; what other groups may be then
is taken from Clopper and Pearson (1934), a group being a trial.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from functools import cache, lru_cache
from typing import TypeAlias

import numpy as np
from scipy.special import ndtr, stdtrit

RESAMPLES = 4000
LOTS = 10_000  # more groups than these are drawn in lots
BLOCKS = 40  # parts of the samples, of which one at a time is in memory as floats
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
    drawn = resamples(len(sums), seed=seed) @ np.stack([sums, counts], 1)
    return float(values.mean()), interval_of(drawn[:, 0] / drawn[:, 1], len(sums), proportion=proportion)


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
    return all_alike(low, groups) if proportion and low == high else (low, high)


def all_alike(value: float, trials: int) -> Interval:
    """Return the interval of a mean of outcomes from 0 to 1 that are `value` in all trials.

    Were more than 1 - 0.025^(1/trials) of all outcomes others, this would happen less than once in 40; they may be all
    0 or all 1. Of nothing but successes, or failures, it is Clopper and Pearson's interval.
    """
    others = 1 - 0.025 ** (1 / trials)
    return value * (1 - others), value + (1 - value) * others


@cache
def _tail(groups: int) -> float:
    return float(ndtr(math.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, 0.025)))


class Resamples:
    """How often each group is drawn in each bootstrap sample: a matrix (RESAMPLES, groups).

    `draws @ values` has a row for each sample; going through it gives sample by sample. More than `LOTS` groups are put
    into so many lots, at random and of equal sizes but for one, and lots are drawn: in the mean the variance is the
    same, and neither memory nor time grows any further.

    Examples:
        >>> (resamples(3) @ np.ones(3))[:2]
        array([3., 3.])
    """

    def __init__(self, groups: int, seed: int = 0):
        random = np.random.default_rng(seed)
        self.groups, lots = groups, min(groups, LOTS)
        self._lot = None if groups == lots else random.permutation(groups) % lots
        # A byte is enough: among so many none is drawn more than 255 times, and of fewer there are no more.
        self._drawn = np.empty((RESAMPLES, lots), dtype=np.uint8)
        for block in np.array_split(self._drawn, BLOCKS):
            places = random.integers(lots, size=block.shape, dtype=np.int32)
            places += np.arange(len(block), dtype=np.int32)[:, None] * lots
            block[:] = np.bincount(places.ravel(), minlength=block.size).reshape(block.shape)

    def __matmul__(self, values: np.ndarray) -> np.ndarray:
        if self._lot is not None:
            flat = values.reshape(self.groups, -1).T
            sums = [np.bincount(self._lot, column, minlength=LOTS) for column in flat]
            values = np.stack(sums, 1).reshape(LOTS, *values.shape[1:])
        return np.concatenate([block.astype(float) @ values for block in np.array_split(self._drawn, BLOCKS)])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (sample if self._lot is None else sample[self._lot] for sample in self._drawn)


@lru_cache(maxsize=4)
def resamples(groups: int, *, seed: int = 0) -> Resamples:
    """Return how often each group is drawn in each bootstrap sample."""
    return Resamples(groups, seed)
