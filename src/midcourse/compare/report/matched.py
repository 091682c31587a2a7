"""Scores at equal KL, which makes guides comparable whose weights mean different things."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from midcourse.compare.report.statistics import Estimate, from_draws
from midcourse.evaluate.intervals import resamples


class Guided(NamedTuple):
    """The same prompts under one weight: each response's gold reward and guidance KL in nats."""

    weight: float
    gold: np.ndarray
    guidance_kl: np.ndarray


@dataclass(frozen=True, eq=False)
class Curve:
    """A method at several strengths: each prompt's score by its KL (or another distance) from the base.

    Attributes:
        kls, scores: of shape (strengths, prompts); NaN where a prompt has none.
        times: how often each bootstrap draw counts each prompt, of shape (draws, prompts).
    """

    kls: np.ndarray
    scores: np.ndarray
    times: np.ndarray
    _known: dict[bytes, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def present(self) -> np.ndarray:
        """The prompts that have every point; none where there is no point."""
        whole = np.isfinite(self.kls).all(0) & np.isfinite(self.scores).all(0)
        return whole if len(self.kls) else np.zeros_like(whole)

    def reach(self, prompts: np.ndarray) -> tuple[float, float]:
        """The least and the largest mean KL of its points; an empty range where there are no prompts."""
        if not prompts.any():
            return math.inf, -math.inf
        means = self.kls[:, prompts].mean(1)
        return float(means.min()), float(means.max())

    def reaches(self, kl: float, prompts: np.ndarray) -> bool:
        """Whether the mean KL over the prompts is at `kl`, or on both sides of it."""
        low, high = self.reach(prompts)
        return low - 1e-9 <= kl <= high + 1e-9

    def at(self, kl: float, prompts: np.ndarray) -> np.ndarray:
        """The mean score at a mean KL on the lines between the points: of all prompts, then of each draw.

        A draw whose points do not reach `kl`, though all prompts together do, gives its nearest point.
        """
        return _interpolate(*self._means(prompts), kl)

    def _means(self, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean KL and mean score of each point, by ascending KL, of shape (1 + draws, strengths)."""
        key = prompts.tobytes()
        if key not in self._known:
            times = np.concatenate([np.ones((1, prompts.sum())), self.times[:, prompts]])
            with np.errstate(invalid="ignore"):  # a draw may hold none of the prompts
                weights = times / times.sum(1, keepdims=True)
            kls, scores = weights @ self.kls[:, prompts].T, weights @ self.scores[:, prompts].T
            order = np.argsort(kls, axis=1)
            self._known[key] = np.take_along_axis(kls, order, 1), np.take_along_axis(scores, order, 1)
        return self._known[key]


def _interpolate(x: np.ndarray, y: np.ndarray, at: float) -> np.ndarray:
    """np.interp row by row, of x ascending in each."""
    if x.shape[1] == 1:
        return y[:, 0]
    right = np.clip((x < at).sum(1), 1, x.shape[1] - 1)
    rows = np.arange(len(x))
    x0, x1, y0, y1 = x[rows, right - 1], x[rows, right], y[rows, right - 1], y[rows, right]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(x1 > x0, np.clip((at - x0) / (x1 - x0), 0.0, 1.0), 0.0)
    return y0 + share * (y1 - y0)


def score_at(curve: Curve, kl: float) -> Estimate | None:
    """A method's mean score at a mean KL, between the two strengths on either side of it.

    Returns:
        None where the KL lies outside of what its strengths reach: nothing is extrapolated.
    """
    prompts = curve.present
    if not curve.reaches(kl, prompts):
        return None
    found = curve.at(kl, prompts)
    return from_draws(found[0], found[1:], int(prompts.sum()))


def difference_at(one: Curve, other: Curve, kl: float) -> Estimate | None:
    """Score of `one` less that of `other` at the same mean KL, over the prompts that both have.

    Returns:
        None where either does not reach the KL.
    """
    both = one.present & other.present
    if not (one.reaches(kl, both) and other.reaches(kl, both)):
        return None
    found = one.at(kl, both) - other.at(kl, both)
    return from_draws(found[0], found[1:], int(both.sum()))


def at_kl(runs: Sequence[Guided], kl: float, *, seed: int = 0) -> tuple[float, tuple[float, float]] | None:
    """(mean gold, its 95 % interval) at a mean guidance KL; see `score_at`.

    Give the plain run too: weight 0 lies at 0 nats. For one prompt the interval is the mean.
    """
    kls, gold = (np.stack([getattr(run, name) for run in runs]) for name in ("guidance_kl", "gold"))
    found = score_at(Curve(kls, gold, resamples(kls.shape[1], seed=seed)), kl)
    return found and (found.mean, found.interval or (found.mean, found.mean))


def weights_at(
    kl_of: Callable[[float], float], kls: Sequence[float], *, start: float = 1.0, tries: int = 5
) -> list[float]:
    """For each of the KLs the weight whose guidance KL is within a tenth of it, or else the nearest one tried.

    Args:
        kl_of: the guidance KL under a weight, which grows with it.
        start: the first weight to try.
        tries: weights to try for each KL; what was found for one counts for all.
    """
    tried: dict[float, float] = {}

    def nearest(kl: float) -> tuple[float, float]:
        """How far a tried weight's KL is from this one, on logarithms, and the weight."""
        return min((abs(math.log(found / kl)), weight) for weight, found in tried.items())

    for kl in kls:
        for _ in range(tries):
            weight = _guess(tried, kl) if tried else start
            if weight in tried or (tried and nearest(kl)[0] <= math.log(1.1)):
                break
            tried[weight] = max(kl_of(weight), 1e-9)
    return [nearest(kl)[1] for kl in kls]


def _guess(tried: Mapping[float, float], kl: float) -> float:
    """A weight for the KL: on a line of logarithms between the weights around it, by a root beyond them.

    KL grows with the square of a small weight, and more slowly later.
    """
    below = max((weight for weight, found in tried.items() if found < kl), default=None)
    above = min((weight for weight, found in tried.items() if found >= kl), default=None)
    if below is None or above is None:
        weight = below or above or 1.0
        return weight * min(max((kl / tried[weight]) ** 0.5, 0.25), 4.0)
    share = math.log(kl / tried[below]) / math.log(tried[above] / tried[below])
    return below * (above / below) ** share
