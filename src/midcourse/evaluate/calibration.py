"""Calibration after training, on the held-out pairs: a temperature, the mean reward at every length, and their quality.

Temperature. P(a is preferred to b) = sigmoid((r_a - r_b) / T) (Guo et al., 2017, for classifiers), T fitted by maximum
likelihood to the margins r_chosen - r_rejected at the cuts of pair accuracy. There is no intercept, so it is symmetric:
swapping the texts of a pair turns p into 1 - p and changes no likelihood. Prefixes of all lengths share one T, finished
texts have one of their own: a reward trained on these alone knows nothing of prefixes, and one common T would hide that
it is sure of the ends.

Calibration error. Every pair is stored with its winner first. Outcomes of "the first one is preferred" would all be 1,
and comparing p with them would measure nothing: each pair has to be seen in both orders. Then (p, won) and
(1 - p, lost) lie in mirrored bins with the same gap, so one order is enough, if the reward and not the label decides
which: with its favourite first, the confidence is max(p, 1 - p) = sigmoid(|margin| / T), and the outcome whether the
favourite is the chosen one (a tie: one half, at confidence one half).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

from midcourse.data.encoded import EncodedRow, PairSet
from midcourse.evaluate.accuracy import SHARES, difference
from midcourse.evaluate.intervals import resamples
from midcourse.rewards.calibration import Calibration, CalibrationError

BINS, BIN_PAIRS = 10, 20  # at most so many bins, with at least so many pairs in each
ENOUGH = 32  # responses that have to reach a length for a mean of its own
MAX_LENGTHS = 512
CHANCE_DRAWS = 200
WIDEST = 1e3  # T is sought up to so many times the median margin, and down to that fraction of it


def calibrate(
    pairs: PairSet, rewards: Sequence[Tensor], *, by_length: bool = True
) -> tuple[Calibration, dict[str, Any]]:
    """Calibrate a reward, and measure how honest its probabilities are.

    The stored temperatures are fitted on all pairs. The errors after it are those of temperatures fitted on other
    prompts: each half of the prompts is judged with the temperature of the other half.

    Args:
        pairs: comparisons that were not trained on.
        rewards: for each of `pairs.rows`, the rewards at its response positions.
        by_length: whether `rewards` are known at every position, so that there is a mean at every length; otherwise
            only those that pair accuracy reads are.

    Returns:
        (calibration, figures). figures: temperature and finished_temperature, limit and finished_limit (see
        `fit_temperature`); shares: a list of {share, before, after}, each a
        `calibration_error`, with None as `after` if a single prompt has no other half.

    Raises:
        CalibrationError: there are no pairs, or a reward is not a finite number.
    """
    gaps = margins(pairs, rewards)
    means, finished_mean = length_means(pairs.rows, rewards) if by_length else ((), _mean_end(pairs.rows, rewards))
    # If all responses were cut, the whole ones are prefixes too.
    parts = [gaps] if finished_mean is None else [gaps[:-1], gaps[-1:]]
    (temperature, limit), (finished_temperature, finished_limit) = [*map(fit_temperature, parts), (None, None)][:2]
    others = [cross_fitted(part, pairs.prompts) for part in parts for _ in part]
    shares = [
        {
            "share": share,
            "before": calibration_error(row, np.ones(len(row)), pairs.prompts),
            "after": None if other is None else calibration_error(row, other, pairs.prompts),
        }
        for share, row, other in zip(SHARES, gaps, others, strict=True)
    ]
    calibration = Calibration(temperature, finished_temperature, means, finished_mean)
    figures = {
        "temperature": temperature,
        "limit": limit,
        "finished_temperature": finished_temperature,
        "finished_limit": finished_limit,
        "shares": shares,
    }
    return calibration, figures


# The temperature


def margins(pairs: PairSet, rewards: Sequence[Tensor]) -> Float[np.ndarray, "shares pairs"]:
    """Return r_chosen - r_rejected of every pair at every share, cut as for pair accuracy."""
    return np.array([[difference(pairs, rewards, n, share) for n in range(len(pairs.pairs))] for share in SHARES])


def fit_temperature(margins: Float[np.ndarray, "shares pairs"]) -> tuple[float, str | None]:
    """Return (T, limit): the T under which sigmoid(margin / T) is most likely, and what it rests on besides data.

    With 1/T = b the likelihood is concave in b, and its slope is the mean of m (1 - sigmoid(b m)).

    limit "chance": margins are not positive on average, or hardly, so the likeliest T is infinite; a very large one
    stands for it, and all probabilities are near one half. "separable": no margin is negative, so the likeliest T is 0;
    the 1 of the slope becomes (n + 1) / (n + 2) for n pairs (Platt, 1999), so that their number bounds how sure the
    reward may be. None elsewhere.

    Raises:
        CalibrationError: no margins, or one that is not finite.
    """
    if not margins.size:
        raise CalibrationError("there are no held-out pairs to calibrate on; raise --held-out")
    if not np.isfinite(margins).all():
        raise CalibrationError("a held-out reward is not a finite number; train the reward again with a lower --lr")
    sizes = np.abs(margins[margins != 0])
    unit = float(np.median(sizes)) if sizes.size else 1.0
    scaled = margins / unit
    separable = bool(sizes.size) and bool((margins >= 0).all())
    # Elsewhere such a target would cost a reward with wide margins more than its few mistakes do.
    target = (margins.shape[1] + 1) / (margins.shape[1] + 2) if separable else 1.0

    def slope(log_b: float) -> float:
        return float(np.mean(scaled * (target - expit(np.exp(log_b) * scaled))))

    widest = np.log(WIDEST)
    if slope(-widest) <= 0:
        temperature, limit = unit * WIDEST, "chance"
    else:
        limit = None
        temperature = unit / (WIDEST if slope(widest) >= 0 else float(np.exp(brentq(slope, -widest, widest))))
    return _rounded(temperature), "separable" if separable else limit


def cross_fitted(
    margins: Float[np.ndarray, "shares pairs"], prompts: Sequence[str]
) -> Float[np.ndarray, " pairs"] | None:
    """Return each pair's temperature, fitted on the half of the prompts without its own; None for one prompt."""
    names = sorted(set(prompts))
    if len(names) < 2:
        return None
    order = np.random.default_rng(0).permutation(len(names))
    half = {names[number]: place % 2 for place, number in enumerate(order)}
    side = np.array([half[prompt] for prompt in prompts])
    first, second = (fit_temperature(margins[:, side != own])[0] for own in (0, 1))
    return np.where(side == 0, first, second)


# Its quality


def calibration_error(
    margins: Float[np.ndarray, " pairs"], temperatures: Float[np.ndarray, " pairs"], prompts: Sequence[str]
) -> dict[str, Any]:
    """Return {ece, interval, by_chance}: calibration error of sigmoid(margin / T), its 95 % interval over prompts.

    The expected calibration error (ECE) is the sum over bins of (share of the pairs) |accuracy - mean confidence|
    (Naeini et al., 2015), in bins of equal mass by confidence (equal confidences share a bin). Chance makes it
    positive: by_chance is what honest probabilities would show on average on as many independent pairs. Resampling adds
    that once more, so the interval is the reflected one (2 ECE - quantiles of the resampled ECE), cut at 0 and widened
    to hold the ECE itself; it can miss a true 0. One prompt has no interval.
    """
    confidence = expit(np.abs(margins) / temperatures)
    correct = 0.5 + 0.5 * np.sign(margins)
    bins = np.clip(len(margins) // BIN_PAIRS, 1, BINS)
    edges = np.unique(np.quantile(confidence, np.arange(1, bins) / bins))
    bin_of = np.searchsorted(edges, confidence, side="right")
    names, prompt_of = np.unique(list(prompts), return_inverse=True)
    gaps = np.zeros((len(names), len(edges) + 1))
    np.add.at(gaps, (prompt_of, bin_of), correct - confidence)
    ece = float(np.abs(gaps.sum(0)).sum() / len(margins))
    interval = None
    if len(names) > 1:
        times = resamples(len(names))
        again = np.abs(times @ gaps).sum(1) / (times @ np.bincount(prompt_of))
        low, high = 2 * ece - np.quantile(again, [0.975, 0.025])
        interval = max(float(low), 0.0), max(float(high), ece)
    by_chance = _by_chance(np.where(margins == 0, np.nan, confidence), bin_of) / len(margins)
    return {"ece": ece, "interval": interval, "by_chance": by_chance}


def _by_chance(confidence: Float[np.ndarray, " pairs"], bin_of: np.ndarray) -> float:
    """Return the mean over draws of the sum over bins of |wins - confidence|, of wins as likely as confidence says.

    Args:
        confidence: nan for ties, which are even odds.
    """
    random, found = np.random.default_rng(0), []
    for _ in range(CHANCE_DRAWS):
        gaps = np.nan_to_num((random.random(len(confidence)) < confidence) - confidence)
        found.append(np.abs(np.bincount(bin_of, gaps)).sum())
    return float(np.mean(found))


# The mean at every length


def length_means(rows: Sequence[EncodedRow], rewards: Sequence[Tensor]) -> tuple[tuple[float, ...], float | None]:
    """Return (mean reward of prefixes of 1, 2, ... tokens, that of the finished texts or None if there are none).

    From the last length on that `ENOUGH` responses reach there is one mean for all longer prefixes; each of those
    responses has the same weight in it, however long it is. Means of neighbouring lengths are of the same responses:
    smoothing over lengths would not make them more certain.

    Raises:
        CalibrationError: a reward is not finite, or no response has a token.
    """
    prefixes = [
        np.asarray(reward[: row.text_length], dtype=float)
        for row, reward in zip(rows, rewards, strict=True)
        if row.text_length
    ]
    if not prefixes:
        raise CalibrationError("there are no held-out responses to calibrate on; raise --held-out")
    finished_mean = _mean_end(rows, rewards)
    if not all(np.isfinite(values).all() for values in (*prefixes, np.array(finished_mean or 0.0))):
        raise CalibrationError("a held-out reward is not a finite number; train the reward again with a lower --lr")
    # The shortest of the `ENOUGH` longest responses: the last length that so many reach.
    enough = sorted((len(prefix) for prefix in prefixes), reverse=True)[:ENOUGH]
    last = min(enough[-1], MAX_LENGTHS)
    own = [np.mean([prefix[n] for prefix in prefixes if len(prefix) > n]) for n in range(last - 1)]
    tail = np.mean([prefix[last - 1 :].mean() for prefix in prefixes if len(prefix) >= last])
    return tuple(_rounded(mean) for mean in (*own, tail)), finished_mean


def _mean_end(rows: Sequence[EncodedRow], rewards: Sequence[Tensor]) -> float | None:
    """Return the mean reward of the finished texts; None if there are none."""
    ends = [float(reward[-1]) for row, reward in zip(rows, rewards, strict=True) if row.finished]
    return _rounded(np.mean(ends)) if ends else None


def _rounded(number: float | np.floating) -> float:
    """Return a number to the seven digits that a float32 has."""
    return float(f"{float(number):.7g}")
