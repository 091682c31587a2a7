"""Temperature, calibration error and the mean at every length: on known laws, by hand, and on hostile margins."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from midcourse.evaluate.accuracy import SHARES
from midcourse.evaluate.calibration import (
    ENOUGH,
    MAX_LENGTHS,
    calibrate,
    calibration_error,
    cross_fitted,
    fit_temperature,
    length_means,
    margins,
)
from midcourse.rewards.calibration import Calibration, CalibrationError
from tests.evaluate.test_accuracy import pair_set, rewards_of, row

NINE = math.log(9)  # sigmoid: 0.9


def bradley_terry(temperature: float, pairs: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    """Margins r_chosen - r_rejected where P(chosen) = sigmoid(margin / temperature), of shape (1, pairs)."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, scale, pairs)
    return np.where(rng.random(pairs) < expit(margin / temperature), margin, -margin)[None]


def own_prompts(count: int) -> list[str]:
    return [str(n) for n in range(count)]


def same_everywhere(*pair_margins: float) -> tuple:
    """(pairs, rewards) with that margin at every position of the pair."""
    rewards = [side for m in pair_margins for side in rewards_of([m, m], [0.0, 0.0])]
    return pair_set(*[(row(1), row(1))] * len(pair_margins)), rewards


# The temperature


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0, 20.0])
def test_the_temperature_of_bradley_terry_data_is_found(temperature):
    """Within three standard errors, from the Fisher information of 1/T: the sum of m^2 p (1 - p)."""
    found = bradley_terry(temperature, 20_000, scale=1.5 * temperature)
    p = expit(found / temperature)
    error = temperature**2 / math.sqrt(float((found**2 * p * (1 - p)).sum()))
    have, limit = fit_temperature(found)
    assert limit is None
    assert abs(have - temperature) < 3 * error < 0.1 * temperature


@pytest.mark.parametrize("pairs", [12, 60])
def test_the_temperature_is_logistic_regression_without_intercept(pairs):
    """Of every pair in both orders."""
    found = bradley_terry(2.0, pairs, seed=3)[0]
    fit = LogisticRegression(fit_intercept=False, C=np.inf, tol=1e-10, max_iter=1000)
    fit.fit(np.concatenate([found, -found])[:, None], np.repeat([1, 0], pairs))
    assert fit_temperature(found[None]) == (pytest.approx(1 / fit.coef_[0, 0], rel=1e-4), None)


def test_wide_margins_are_believed_where_mistakes_are_narrow():
    """Many pairs ordered rightly by 60 and a few wrongly by less than 8: the few decide the likeliest T."""
    found = np.array([[60.0] * 474 + [-8.0, -5.0, -3.0, 1.0, 2.0, 4.0]])
    temperature, limit = fit_temperature(found)
    grid = np.geomspace(0.1, 100, 20_000)
    want = grid[np.argmin([np.logaddexp(0, -found / t).sum() for t in grid])]
    assert limit is None and temperature == pytest.approx(want, rel=1e-3)
    assert expit(60 / temperature) > 0.999


def test_the_temperature_scales_with_the_rewards():
    found = bradley_terry(2.0, 300)
    want, _ = fit_temperature(found)
    for factor in (1e-30, 1e-3, 1e30):
        assert fit_temperature(factor * found)[0] == pytest.approx(factor * want)


def test_pairs_that_are_all_ordered_rightly_are_believed_as_far_as_their_number_goes():
    """n equal margins: sigmoid(m / T) = (n + 1) / (n + 2), the rule of succession."""
    for pairs in (1, 10, 1000):
        temperature, limit = fit_temperature(np.full((5, pairs), 2.0))
        assert limit == "separable"
        assert expit(2.0 / temperature) == pytest.approx((pairs + 1) / (pairs + 2))


@pytest.mark.parametrize(
    "found", [[0.0, 0.0, 0.0], [-1.0, -2.0], [1.0, -1.0], [0.0], [-5.0], [1.0, 1e-3, -1e12], [3e38, -3e38]]
)
def test_margins_that_say_nothing_give_even_odds(found):
    temperature, limit = fit_temperature(np.array([found]))
    assert limit == "chance"
    assert math.isfinite(temperature) and temperature > 0
    assert expit(np.median(np.abs(found)) / temperature) == pytest.approx(0.5, abs=1e-3)


def test_huge_margins_overflow_nothing():
    temperature, limit = fit_temperature(np.array([[6e38, 5e38, -4e38, 3e38]]))
    assert limit is None and 1e38 < temperature < 1e40
    assert fit_temperature(np.array([[1e-40, 1e30, 2.0]]))[1] == "separable"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_no_numbers_are_refused(bad):
    with pytest.raises(CalibrationError, match="not a finite number"):
        fit_temperature(np.array([[1.0, bad]]))
    with pytest.raises(CalibrationError, match="not a finite number"):
        length_means([row(2)], rewards_of([0.0, bad, 0.0]))
    with pytest.raises(CalibrationError, match="no held-out pairs"):
        fit_temperature(np.zeros((5, 0)))


def test_margins_are_read_where_pair_accuracy_reads_them():
    """4 and 2 tokens: at tokens 1, 1, 1, 2 of the text, and at each end's EOS."""
    pairs = pair_set((row(4), row(2)))
    found = margins(pairs, rewards_of([2.0, 1.0, 9.0, 9.0, 0.0], [1.0, 3.0, 0.5]))
    assert found[:, 0].tolist() == [1.0, 1.0, 1.0, -2.0, -0.5]


# Calibration error


def test_overconfidence_by_hand():
    """Confidence 0.9 in four pairs of which three are right: |0.75 - 0.9|."""
    prompts = own_prompts(4)
    have = calibration_error(np.array([NINE, NINE, NINE, -NINE]), np.ones(4), prompts)
    assert have["ece"] == pytest.approx(0.15)
    # At the temperature that turns 0.9 into 0.75 nothing is left.
    honest = calibration_error(np.array([NINE, NINE, NINE, -NINE]), np.full(4, 2.0), prompts)
    assert honest["ece"] == pytest.approx(0.0)


def test_bins_by_hand():
    """Two bins of 20: at confidence 0.6 twelve are right, at 0.9 ten: (0 + 0.4) / 2."""
    six = math.log(1.5)
    found = np.array([six] * 12 + [-six] * 8 + [NINE] * 10 + [-NINE] * 10)
    have = calibration_error(found, np.ones(40), own_prompts(40))
    assert have["ece"] == pytest.approx(0.2)
    # A temperature of each pair's own: the second half at 0.5.
    other = np.repeat([1.0, 1e9], 20)
    assert calibration_error(found, other, own_prompts(40))["ece"] == pytest.approx(0.0, abs=1e-6)


def test_one_order_of_each_pair_gives_the_error_of_both():
    """Against the plain definition on P(first is preferred) over both orders, in bins that mirror one another."""
    found = bradley_terry(3.0, 200, scale=2.0)[0]
    both = expit(np.concatenate([found, -found]))
    won = np.repeat([1.0, 0.0], len(found))
    edges = np.quantile(expit(np.abs(found)), np.arange(1, 10) / 10)
    bin_of = np.digitize(both, np.sort([*edges, 0.5, *(1 - edges)]))
    want = sum(abs((won - both)[bin_of == b].sum()) for b in range(20)) / len(both)
    assert calibration_error(found, np.ones(200), own_prompts(200))["ece"] == pytest.approx(want)


def test_the_stored_order_of_winner_and_loser_is_no_evidence():
    """Rewards that are right half of the time and sure of it: an error of 0.4, though every label says "the first"."""
    have = calibration_error(np.tile([NINE, -NINE], 100), np.ones(200), own_prompts(200))
    assert have["ece"] == pytest.approx(0.4)


def test_honest_probabilities_have_an_error_near_0():
    """And an interval that comes down to it, as no number of pairs shows an error of exactly 0."""
    found = bradley_terry(2.0, 2_000)[0]
    have = calibration_error(found, np.full(2_000, 2.0), own_prompts(2_000))
    assert have["ece"] < 0.03
    assert have["interval"][0] < 0.002
    assert calibration_error(found, np.ones(2_000), own_prompts(2_000))["interval"][0] > 0.05


def test_the_error_of_one_prompt_has_no_interval():
    have = calibration_error(np.array([NINE, -NINE]), np.ones(2), ["a", "a"])
    assert have["interval"] is None and have["ece"] == pytest.approx(0.4)


def test_ties_are_even_odds_and_honest():
    have = calibration_error(np.zeros(50), np.ones(50), own_prompts(50))
    assert have == {"ece": 0.0, "interval": (0.0, 0.0), "by_chance": 0.0}


def test_honest_probabilities_show_what_chance_shows():
    """One bin of n pairs at confidence 0.9: the mean absolute error of a binomial share, sqrt(2 p (1 - p) / (pi n))."""
    have = calibration_error(np.full(400, NINE), np.ones(400), own_prompts(400))
    assert have["by_chance"] == pytest.approx(math.sqrt(2 * 0.09 / (math.pi * 400)), rel=0.2)
    errors = [calibration_error(bradley_terry(1.0, 200, n)[0], np.ones(200), own_prompts(200)) for n in range(10)]
    ece, by_chance = (np.mean([found[name] for found in errors]) for name in ("ece", "by_chance"))
    assert ece == pytest.approx(by_chance, rel=0.25)


def test_copies_within_a_prompt_do_not_narrow_the_interval():
    found = bradley_terry(1.0, 60)[0]
    alone = calibration_error(found, np.full(60, 9.0), own_prompts(60))
    copies = calibration_error(np.repeat(found, 25), np.full(1500, 9.0), [str(n // 25) for n in range(1500)])
    width = [have["interval"][1] - have["interval"][0] for have in (alone, copies)]
    assert width[1] > 0.6 * width[0]


# Cross-fitting


def test_no_pair_is_judged_by_a_temperature_that_saw_its_prompt():
    """Change one prompt's margins beyond recognition: the temperatures that its own pairs are judged with stay."""
    found = np.repeat(bradley_terry(2.0, 40), 2, axis=1)
    prompts = [str(n // 2) for n in range(80)]
    before = cross_fitted(found, prompts)
    for own in (0, 26):
        changed = found.copy()
        changed[:, own : own + 2] = -1e3
        after = cross_fitted(changed, prompts)
        assert after[own] == after[own + 1] == before[own]
        assert (after != before).any()  # it moved the other half's
    assert len(set(before)) == 2
    assert np.bincount(before == before[0]).tolist() == [40, 40]


def test_the_stored_temperatures_are_those_of_all_pairs():
    """Prefixes have one, finished texts another; each share is judged by its own kind's of the other half."""
    prefix, end = (bradley_terry(t, 100, seed)[0].astype(np.float32).astype(float) for seed, t in enumerate((5.0, 1.0)))
    pairs = pair_set(*[(row(1), row(1))] * 100)
    rewards = [side for a, b in zip(prefix, end, strict=True) for side in rewards_of([a, b], [0.0, 0.0])]
    calibration, figures = calibrate(pairs, rewards)
    prefixes = np.tile(prefix, (4, 1))
    assert calibration.temperature == figures["temperature"] == fit_temperature(prefixes)[0]
    assert calibration.finished_temperature == figures["finished_temperature"] == fit_temperature(end[None])[0]
    assert calibration.temperature > 2 * calibration.finished_temperature
    assert [have["share"] for have in figures["shares"]] == list(SHARES)
    for have in figures["shares"]:
        margin, fitted_on = (end, end[None]) if have["share"] == 1 else (prefix, prefixes)
        assert have["before"] == calibration_error(margin, np.ones(100), pairs.prompts)
        assert have["after"] == calibration_error(margin, cross_fitted(fitted_on, pairs.prompts), pairs.prompts)


def test_cut_responses_are_prefixes_at_any_share():
    found = bradley_terry(2.0, 50)[0].astype(np.float32).astype(float)
    pairs = pair_set(*[(row(1, finished=False), row(1, finished=False))] * 50)
    calibration, _ = calibrate(pairs, [side for m in found for side in rewards_of([m], [0.0])])
    assert calibration.temperature == fit_temperature(np.tile(found, (5, 1)))[0]
    assert (calibration.finished_temperature, calibration.finished_mean) == (None, None)


def test_a_single_prompt_is_judged_by_none():
    pairs = pair_set(*[(row(1), row(1))] * 3, prompts=["a"] * 3)
    calibration, figures = calibrate(pairs, rewards_of(*[[1.0, 1.0], [0.0, 0.0]] * 3))
    assert [have["after"] for have in figures["shares"]] == [None] * 5
    assert figures["limit"] == "separable" and calibration.temperature > 0


@pytest.mark.parametrize("found", [(0.0, 0.0), (-1.0, 1.0), (1e38, 1e38, -1e38), (1.0,)])
def test_hostile_rewards_calibrate_or_are_refused(found):
    calibration, figures = calibrate(*same_everywhere(*found))
    assert math.isfinite(calibration.temperature) and calibration.temperature > 0
    for have in figures["shares"]:
        assert 0 <= have["before"]["ece"] <= 1
    assert Calibration.read(calibration.stored()) == calibration


# The mean at every length


def test_means_are_0_at_every_length_where_they_were_fitted():
    rng = np.random.default_rng(0)
    rows = [
        row(int(n), finished=bool(f)) for n, f in zip(rng.integers(1, 60, 300), rng.integers(0, 2, 300), strict=True)
    ]
    rewards = [torch.tensor(rng.normal(np.arange(len(r.response)) / 5, 1), dtype=torch.float32) for r in rows]
    means, finished_mean = length_means(rows, rewards)
    calibration = Calibration(1.0, 1.0, means, finished_mean)
    centred = [calibration.centred(r.tolist(), finished=a.finished) for a, r in zip(rows, rewards, strict=True)]
    texts = [values[: a.text_length] for a, values in zip(rows, centred, strict=True)]
    assert 40 < len(means) < 60
    for n in range(len(means) - 1):
        assert np.mean([text[n] for text in texts if len(text) > n]) == pytest.approx(0.0, abs=1e-5)
        assert sum(len(text) > n for text in texts) >= ENOUGH
    tails = [np.mean(text[len(means) - 1 :]) for text in texts if len(text) >= len(means)]
    assert np.mean(tails) == pytest.approx(0.0, abs=1e-5)
    assert len(tails) >= ENOUGH
    ends = [values[-1] for a, values in zip(rows, centred, strict=True) if a.finished]
    assert np.mean(ends) == pytest.approx(0.0, abs=1e-5)


def test_means_by_hand():
    """Two responses: both have a first token, one has two more, which are the tail with the first's second."""
    rows = [row(2), row(4, finished=False)]
    means, finished = length_means(rows, rewards_of([1.0, 2.0, 7.0], [3.0, 4.0, 5.0, 9.0]))
    assert means == (2.0, 4.0)  # (2 + mean(4, 5, 9)) / 2
    assert finished == 7.0
    assert Calibration(1.0, 1.0, means, finished).centred([2.0, 2.0, 2.0, 2.0], finished=True) == [
        0.0,
        -2.0,
        -2.0,
        -5.0,
    ]


def test_one_endless_response_does_not_decide_the_tail():
    rows = [row(3, finished=False)] * (ENOUGH - 1) + [row(5000, finished=False)]
    rewards = [torch.zeros(3)] * (ENOUGH - 1) + [torch.full((5000,), 32.0)]
    means, finished = length_means(rows, rewards)
    assert means == (1.0, 1.0, 1.0) and finished is None


def test_stored_means_are_few():
    rows = [row(3 * MAX_LENGTHS, finished=False)] * 2
    means, _ = length_means(rows, [torch.arange(3.0 * MAX_LENGTHS)] * 2)
    assert len(means) == MAX_LENGTHS
    assert means[-1] == MAX_LENGTHS - 1 + MAX_LENGTHS  # the middle of the rest
