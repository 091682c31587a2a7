"""Gold at equal guidance KL, which makes guides comparable whose weights mean different things."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from midcourse.intervals import RESAMPLES


class Guided(NamedTuple):
    """The same prompts under one weight: each response's gold reward and guidance KL in nats."""

    weight: float
    gold: np.ndarray
    guidance_kl: np.ndarray


def at_kl(runs: Sequence[Guided], kl: float, *, seed: int = 0) -> tuple[float, tuple[float, float]] | None:
    """(mean gold, its 95 % interval) at a mean guidance KL, between the two weights on either side of it.

    Means over the prompts are joined by straight lines, and the bootstrap resamples prompts, the same ones at every
    weight. Give the plain run too: weight 0 lies at 0 nats.

    Returns:
        None where the KL lies outside of what the weights reach: nothing is extrapolated.
    """
    gold, kls = (np.stack([getattr(run, name) for run in runs]) for name in ("gold", "guidance_kl"))
    if not kls.mean(1).min() <= kl <= kls.mean(1).max():
        return None
    prompts = gold.shape[1]
    times = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES) / prompts
    found = [_read_off(k, g, kl) for k, g in zip(times @ kls.T, times @ gold.T, strict=True)]
    low, high = np.quantile(found, [0.025, 0.975])
    return _read_off(kls.mean(1), gold.mean(1), kl), (float(low), float(high))


def _read_off(kls: np.ndarray, gold: np.ndarray, kl: float) -> float:
    order = np.argsort(kls)
    return float(np.interp(kl, kls[order], gold[order]))


def weight_at(kl_of: Callable[[float], float], kl: float, *, start: float = 1.0, tries: int = 5) -> float:
    """The weight whose guidance KL is within a tenth of `kl`, or the nearest one tried.

    KL grows with the square of a small weight, and more slowly later, so each try scales the last one by a root.
    """
    weight, tried = start, []
    for _ in range(tries):
        found = kl_of(weight)
        tried.append((abs(math.log(max(found, 1e-9) / kl)), weight))
        if abs(found - kl) <= 0.1 * kl:
            break
        weight *= min(max((kl / max(found, 1e-9)) ** 0.5, 0.25), 4.0)
    return min(tried)[1]
