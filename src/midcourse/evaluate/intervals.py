"""95 % intervals by the bootstrap over groups (prompts), since rows of one prompt are not independent."""

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 4000


def mean_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return (mean, its 95 % percentile interval), resampling whole groups; by default each value is one.

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
    low, high = np.quantile((times @ sums) / (times @ counts), [0.025, 0.975])
    return float(values.mean()), (float(low), float(high))


def resamples(groups: int, *, seed: int = 0) -> np.ndarray:
    """Return how often each group is drawn in each bootstrap sample, of shape (resamples, groups)."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
