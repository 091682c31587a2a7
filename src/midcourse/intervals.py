"""95 % intervals by the bootstrap over groups (prompts), since rows of one prompt are not independent."""

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 4000


def mean_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """(mean, its 95 % percentile interval), resampling whole groups; each value is its own group where None.

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
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    low, high = np.quantile((times @ sums) / (times @ counts), [0.025, 0.975])
    return float(values.mean()), (float(low), float(high))
