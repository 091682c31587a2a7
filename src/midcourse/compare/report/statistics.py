"""Estimates over prompts, with 95 % intervals and p-values by one bootstrap.

A statistic is a function of how often each prompt counts: given `times` of shape (draws, prompts) it returns one number
a draw. All statistics of a comparison are given the same draws, so whatever is computed of two methods is paired by
prompt; the seeds of a prompt are inside it and go together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr

from midcourse.evaluate.intervals import Resamples, interval_of

Times = np.ndarray | Resamples  # how often each draw counts each prompt, (draws, prompts)
Statistic = Callable[[Times], np.ndarray]


class Estimate(NamedTuple):
    """A statistic of all prompts.

    Attributes:
        mean: with every prompt counted once.
        interval: 95 %; None for one prompt.
        p: two-sided, of the statistic being 0; None for one prompt.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float | None

    def untested(self) -> dict[str, Any]:
        """Return mean and interval alone, for a figure that nobody tests for being 0."""
        return {"mean": self.mean, "interval": self.interval}


@dataclass(frozen=True)
class Ratio:
    """A figure as the ratio of two sums over prompts: a mean (denominators 1 and 0), or a rate such as tokens a second.

    Attributes:
        numerators, denominators: of shape (prompts,); both 0 if a prompt has no such figure.
        then: applied to the ratio, such as exp.
    """

    numerators: np.ndarray
    denominators: np.ndarray
    then: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio

    def __call__(self, times: Times) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.then((times @ self.numerators) / (times @ self.denominators))

    @property
    def present(self) -> np.ndarray:
        """Return which prompts have the figure."""
        return self.denominators > 0

    def on(self, prompts: np.ndarray) -> "Ratio":
        """Return the same figure of those prompts alone."""
        return Ratio(self.numerators * prompts, self.denominators * prompts, self.then)


def estimate(statistic: Statistic, present: np.ndarray, times: Times) -> Estimate | None:
    """Return the statistic with its interval and p-value; None if no prompt is present.

    Args:
        present: which prompts have the figure.
        times: as `intervals.resamples` draws them, for all prompts.
    """
    prompts = int(present.sum())
    if not prompts:
        return None
    mean = float(statistic(np.ones((1, len(present))))[0])
    return from_draws(mean, statistic(times) if prompts > 1 else np.empty(0), prompts)


def from_draws(mean: float, draws: np.ndarray, prompts: int) -> Estimate | None:
    """Return an estimate from the statistic's values in the bootstrap's draws; None if the mean is not finite.

    The interval is that of `evaluate.intervals`. The p-value is Student's, of the statistic over its bootstrap standard
    error: counting draws could not go below 1 / draws, which a correction for many comparisons would make
    insignificant. It is at least 2^(1 - prompts), the least that any test by the signs of paired differences can say.
    """
    if not math.isfinite(mean):
        return None
    draws = draws[np.isfinite(draws)]
    if prompts == 1 or not len(draws):
        return Estimate(float(mean), None, None)
    error = math.sqrt(prompts / (prompts - 1)) * float(draws.std())
    return Estimate(float(mean), interval_of(draws, prompts), _p_value(mean, error, prompts))


def difference(one: Ratio, other: Ratio, times: Times) -> Estimate | None:
    """Return `one` less `other` on the prompts that have both; None if none has."""
    both = one.present & other.present
    one, other = one.on(both), other.on(both)
    return estimate(lambda times: one(times) - other(times), both, times)


def quotient(one: Ratio, other: Ratio, times: Times) -> Estimate | None:
    """Return `one` over `other` on the prompts that have both; None if none has. Its p-value means nothing."""
    both = one.present & other.present
    one, other = one.on(both), other.on(both)
    return estimate(lambda times: one(times) / other(times), both, times)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number by Holm's step-down method (1979); None stays None and does not count."""
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        corrected[i] = highest
    return corrected


def _p_value(mean: float, error: float, prompts: int) -> float:
    if error <= 1e-12 * max(1.0, abs(mean)):
        p = 1.0 if abs(mean) <= 1e-12 else 0.0
    else:
        p = 2 * float(stdtr(prompts - 1, -abs(mean) / error))
    return max(p, 2.0 ** (1 - prompts))


# Length


@dataclass(frozen=True)
class LengthControl:
    """Scores of several arms at one length: the ordinary least squares fit of score ~ arm + slope * length.

    Each arm's effect is read at the mean length of all responses. (A linear form of what Dubois et al.,
    Length-Controlled AlpacaEval, 2024, arXiv 2404.04475, do to win rates.) The sums of an arm and prompt are all that
    the fit needs, so a bootstrap draw is a few products.

    Attributes:
        sums: of shape (arms, prompts, 5): how many responses, and the sums of score, length, length^2, score x length.
    """

    sums: np.ndarray

    @classmethod
    def of(cls, responses: Sequence[Sequence[Sequence[tuple[float, float]]]]) -> "LengthControl":
        """Make the fit of (score, length) of each response, by arm and prompt."""
        return cls(np.array([[_sums(prompt) for prompt in arm] for arm in responses]))

    def slopes(self, times: Times) -> np.ndarray:
        """Return the score of one more unit of length, of shape (draws,); 0 if lengths do not differ within any arm."""
        n, s, x, xx, sx = self._totals(times)
        with np.errstate(divide="ignore", invalid="ignore"):
            squares = np.nansum(xx - x * x / n, axis=-1)
            return np.where(squares > 1e-9, np.nansum(sx - s * x / n, axis=-1) / squares, 0.0)

    def effect(self, arm: int) -> Statistic:
        """Return the statistic of an arm's score at the mean length."""

        def at_mean_length(times: Times) -> np.ndarray:
            n, s, x, *_ = self._totals(times)
            mean_length = x.sum(-1) / n.sum(-1)
            with np.errstate(divide="ignore", invalid="ignore"):
                return (s[:, arm] - self.slopes(times) * (x[:, arm] - mean_length * n[:, arm])) / n[:, arm]

        return at_mean_length

    def present(self, arm: int) -> np.ndarray:
        """Return which prompts have responses of the arm."""
        return self.sums[arm, :, 0] > 0

    def _totals(self, times: Times) -> tuple[np.ndarray, ...]:
        return tuple(times @ self.sums[:, :, i].T for i in range(5))


def _sums(responses: Sequence[tuple[float, float]]) -> list[float]:
    scores, lengths = np.asarray(responses, dtype=float).reshape(-1, 2).T
    return [float(len(scores)), scores.sum(), lengths.sum(), (lengths**2).sum(), (scores * lengths).sum()]
