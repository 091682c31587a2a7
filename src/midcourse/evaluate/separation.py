"""How well scores tell two kinds apart: AUROC, and what bootstrap intervals are made of."""

from collections.abc import Hashable, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from midcourse.evaluate.intervals import resamples

Scores: TypeAlias = Sequence[float] | np.ndarray
BOOTSTRAP = 1000


def auroc(negatives: Scores, positives: Scores) -> float:
    """Return the probability that a positive scores higher than a negative; equal scores count one half."""
    ranks = rankdata(np.concatenate([positives, negatives]))
    n, m = len(positives), len(negatives)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def draws(
    negatives: Float[np.ndarray, " negatives"],
    positives: Float[np.ndarray, " positives"],
    negative_groups: Sequence[Hashable] | None = None,
    positive_groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return resampled (negatives, positives); those of a group are drawn together. By default each is one."""
    own = [("negative", i) for i in range(len(negatives))] if negative_groups is None else negative_groups
    other = [("positive", i) for i in range(len(positives))] if positive_groups is None else positive_groups
    _, groups = np.unique([repr(name) for name in (*own, *other)], return_inverse=True)
    times = islice(resamples(int(groups.max()) + 1, seed=seed), BOOTSTRAP)
    first, second = groups[: len(negatives)], groups[len(negatives) :]
    drawn = ((np.repeat(negatives, row[first]), np.repeat(positives, row[second])) for row in times)
    return [(n, p) for n, p in drawn if len(n) and len(p)]
