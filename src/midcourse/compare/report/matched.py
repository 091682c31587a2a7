"""Scores at equal KL, which makes guides comparable whose weights mean different things."""

import math
from dataclasses import dataclass, field

import numpy as np

from midcourse.compare.report.statistics import Estimate, Times, from_draws


@dataclass(frozen=True, eq=False)
class Curve:
    """A method at several strengths: each prompt's score by its KL (or another distance) from the base.

    Attributes:
        kls, scores: of shape (strengths, prompts); NaN if a prompt has none.
        times: how often each bootstrap draw counts each prompt, of shape (draws, prompts).
    """

    kls: np.ndarray
    scores: np.ndarray
    times: Times
    _known: dict[bytes, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def present(self) -> np.ndarray:
        """Return the prompts that have every point; none if there is no point."""
        whole = np.isfinite(self.kls).all(0) & np.isfinite(self.scores).all(0)
        return whole if len(self.kls) else np.zeros_like(whole)

    def reach(self, prompts: np.ndarray) -> tuple[float, float]:
        """Return the least and the largest mean KL of the points; an empty range if there are no prompts."""
        if not prompts.any():
            return math.inf, -math.inf
        means = self.kls[:, prompts].mean(1)
        return float(means.min()), float(means.max())

    def reaches(self, kl: float, prompts: np.ndarray) -> bool:
        """Return whether some point's mean KL over the prompts is `kl`, or there are points on both sides of it."""
        low, high = self.reach(prompts)
        return low - 1e-9 <= kl <= high + 1e-9

    def at(self, kl: float, prompts: np.ndarray) -> np.ndarray:
        """Return the mean score at a mean KL, on the lines between the points: of all prompts, then of each draw.

        A draw whose points do not reach `kl`, though all prompts together do, gives its nearest point.
        """
        return _interpolate(*self._means(prompts), kl)

    def _means(self, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean KL and mean score of each point, by ascending KL, of shape (1 + draws, strengths)."""
        key = prompts.tobytes()
        if key not in self._known:
            kls, scores = (
                self._averaged(np.where(prompts, figures, 0.0), prompts) for figures in (self.kls, self.scores)
            )
            order = np.argsort(kls, axis=1)
            self._known[key] = np.take_along_axis(kls, order, 1), np.take_along_axis(scores, order, 1)
        return self._known[key]

    def _averaged(self, figures: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Return the mean of each row of figures over the prompts, of all of them and of each draw."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw may hold none of the prompts
            drawn = (self.times @ figures.T) / (self.times @ prompts.astype(float))[:, None]
        return np.concatenate([figures.sum(1)[None] / prompts.sum(), drawn])


def _interpolate(x: np.ndarray, y: np.ndarray, at: float) -> np.ndarray:
    """Interpolate row by row, as np.interp does for one; x ascends in each."""
    if x.shape[1] == 1:
        return y[:, 0]
    right = np.clip((x < at).sum(1), 1, x.shape[1] - 1)
    rows = np.arange(len(x))
    x0, x1, y0, y1 = x[rows, right - 1], x[rows, right], y[rows, right - 1], y[rows, right]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(x1 > x0, np.clip((at - x0) / (x1 - x0), 0.0, 1.0), 0.0)
    return y0 + share * (y1 - y0)


def score_at(curve: Curve, kl: float) -> Estimate | None:
    """Return a method's mean score at a mean KL, between the two strengths on either side of it.

    Returns:
        None if the KL lies outside of what its strengths reach: nothing is extrapolated.
    """
    prompts = curve.present
    if not curve.reaches(kl, prompts):
        return None
    means = curve.at(kl, prompts)
    return from_draws(means[0], means[1:], int(prompts.sum()))


def difference_at(one: Curve, other: Curve, kl: float) -> Estimate | None:
    """Return the score of `one` less that of `other` at the same mean KL, over the prompts that both have.

    Returns:
        None if either does not reach the KL.
    """
    both = one.present & other.present
    if not (one.reaches(kl, both) and other.reaches(kl, both)):
        return None
    differences = one.at(kl, both) - other.at(kl, both)
    return from_draws(differences[0], differences[1:], int(both.sum()))
