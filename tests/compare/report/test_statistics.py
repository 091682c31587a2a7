"""Intervals that hold as often as they say, p-values that are what they should be."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, norm, t, ttest_1samp

from midcourse.compare.report.statistics import LengthControl, Ratio, difference, estimate, from_draws, holm, quotient
from midcourse.evaluate.intervals import resamples


def means(values) -> Ratio:
    """The mean over prompts; NaN is a prompt without one."""
    values = np.asarray(values, dtype=float)
    return Ratio(np.nan_to_num(values), np.isfinite(values).astype(float))


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [12, 60])
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_cover_the_truth_95_times_in_100(prompts, skewed):
    """Seeds of a prompt share its taste, so the bootstrap over prompts has to see them as one."""
    rng = np.random.default_rng(1)
    trials, seeds = 2000, 3
    draw = (lambda shape: rng.exponential(1, shape) - 1) if skewed else (lambda shape: rng.normal(0, 1, shape))
    values = (draw((prompts, trials, 1)) + 0.5 * draw((prompts, trials, seeds))).mean(2) + 0.25
    draws = resamples(prompts) @ values / prompts
    held = 0
    for trial in range(trials):
        low, high = from_draws(values[:, trial].mean(), draws[:, trial], prompts).interval
        held += low <= 0.25 <= high
    floor = 0.90 if skewed and prompts == 12 else 0.93  # twelve skewed prompts are too few for any such interval
    assert floor <= held / trials <= 0.97


def test_rows_of_a_prompt_taken_for_independent_would_not_cover():
    """The test above can tell: the same data with each seed as a prompt of its own miss the truth far more often."""
    rng = np.random.default_rng(1)
    prompts, seeds, trials = 40, 3, 500
    values = (rng.normal(0, 1, (prompts, 1, trials)) + 0.5 * rng.normal(0, 1, (prompts, seeds, trials))).reshape(
        -1, trials
    )
    draws = resamples(prompts * seeds) @ values / (prompts * seeds)
    intervals = [from_draws(values[:, i].mean(), draws[:, i], prompts * seeds).interval for i in range(trials)]
    assert np.mean([low <= 0 <= high for low, high in intervals]) < 0.85


def test_paired_differences_agree_with_the_t_test():
    rng = np.random.default_rng(0)
    taste = rng.normal(0, 3, 50)
    one, other = taste + 0.3 + rng.normal(0, 0.5, 50), taste + rng.normal(0, 0.5, 50)
    found = difference(means(one), means(other), resamples(50))
    test = ttest_1samp(one - other, 0)
    assert found.mean == pytest.approx(test.statistic * np.std(one - other, ddof=1) / 50**0.5)
    assert found.p == pytest.approx(test.pvalue, rel=0.4)  # 4000 draws know the standard error to 1%
    assert found.interval == pytest.approx(test.confidence_interval(0.95), abs=0.02)


def test_a_prompt_that_one_of_the_two_lacks_is_left_out():
    one, other = means([1.0, 5.0, np.nan, 2.0]), means([0.0, np.nan, 9.0, 1.0])
    found = difference(one, other, resamples(4))
    assert found.mean == 1.0 and found.interval == (1.0, 1.0)
    assert found.p == 0.5  # of two prompts, no test by signs says less
    assert difference(means([1.0, np.nan]), means([np.nan, 1.0]), resamples(2)) is None


def test_equal_figures_differ_by_nothing():
    found = difference(means([1.0, 2.0, 3.0]), means([1.0, 2.0, 3.0]), resamples(3))
    assert found == (0.0, (0.0, 0.0), 1.0)


def test_one_prompt_has_no_interval_and_no_prompt_no_estimate():
    times = resamples(2)
    assert estimate(means([3.0, np.nan]), np.array([True, False]), times) == (3.0, None, None)
    assert estimate(means([np.nan, np.nan]), np.array([False, False]), times) is None


def test_a_rate_is_the_ratio_of_sums():
    tokens, seconds = np.array([10.0, 30.0]), np.array([1.0, 9.0])
    rate = Ratio(tokens, seconds)
    assert estimate(rate, rate.present, resamples(2)).mean == 4.0
    half = Ratio(tokens, 2 * seconds)
    assert quotient(half, rate, resamples(2))[:2] == (0.5, (0.5, 0.5))
    assert Ratio(tokens, seconds, np.log)(np.ones((1, 2)))[0] == pytest.approx(np.log(4.0))


def test_holm_by_hand():
    # Sorted: .005 x 4, .01 x 3, .03 x 2, .04 x 1 (not below the one before).
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([0.02]) == [0.02] and holm([None]) == [None] and holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_holm_is_at_least_as_strict_as_control_of_the_false_discovery_rate():
    ps = np.random.default_rng(0).uniform(0, 0.2, 30)
    corrected = np.array(holm(list(ps)))
    assert (corrected >= false_discovery_control(ps) - 1e-12).all() and (corrected >= ps).all()
    assert (corrected <= np.minimum(1, 30 * ps) + 1e-12).all()


def responses(rng, arms, prompts: int = 200):
    """(score, length) by arm and prompt: score = effect + 0.1 x length + noise, arms differing in their length."""
    return [
        [
            [
                (effect + 0.1 * length + rng.normal(0, 0.2), length)
                for length in rng.integers(around - 5, around + 6, 2).astype(float)
            ]
            for _ in range(prompts)
        ]
        for effect, around in arms
    ]


def test_length_control_recovers_a_known_effect():
    fit = LengthControl.of(responses(np.random.default_rng(0), [(0.0, 20), (0.5, 30), (0.0, 40)]))
    times = resamples(200)
    slope = estimate(fit.slopes, fit.present(0), times)
    assert slope.mean == pytest.approx(0.1, abs=0.005) and slope.interval[0] <= 0.1 <= slope.interval[1]
    effects = [estimate(fit.effect(arm), fit.present(arm), times) for arm in range(3)]
    # At the mean length of 30 tokens; raw means are 2, 3.5 and 4.
    assert [effect.mean for effect in effects] == pytest.approx([3.0, 3.5, 3.0], abs=0.06)
    assert all(low <= want <= high for (_, (low, high), _), want in zip(effects, (3.0, 3.5, 3.0), strict=True))


def test_length_control_is_the_least_squares_fit():
    data = responses(np.random.default_rng(1), [(0.0, 20), (0.5, 24)], prompts=8)
    fit = LengthControl.of(data)
    flat = [(arm, score, length) for arm in (0, 1) for prompt in data[arm] for score, length in prompt]
    design = np.array([[arm == 0, arm == 1, length] for arm, _, length in flat], dtype=float)
    solved = np.linalg.lstsq(design, np.array([score for _, score, _ in flat]), rcond=None)[0]
    ones = np.ones((1, 8))
    assert fit.slopes(ones)[0] == pytest.approx(solved[2])
    mean_length = design[:, 2].mean()
    assert [fit.effect(arm)(ones)[0] for arm in (0, 1)] == pytest.approx(solved[:2] + solved[2] * mean_length)


def test_equal_lengths_leave_scores_as_they_are():
    fit = LengthControl.of([[[(1.0, 24.0)], [(3.0, 24.0)]], [[(5.0, 24.0)], []]])
    ones = np.ones((1, 2))
    assert fit.slopes(ones)[0] == 0.0
    assert [fit.effect(arm)(ones)[0] for arm in (0, 1)] == [2.0, 5.0]
    assert [fit.present(arm).tolist() for arm in (0, 1)] == [[True, True], [True, False]]


def test_a_token_more_or_less_is_a_difference_in_length():
    """One prompt of two responses, one token apart: the score rises by 3 from 0 to 3, which length explains."""
    fit = LengthControl.of([[[(0.0, 1.0), (3.0, 2.0)], [(0.0, 5.0)]], [[(0.0, 4.0)], []]])
    first = np.array([[1.0, 0.0]])
    assert fit.slopes(first).tolist() == [3.0]
    # The mean length of the three is 7 / 3: of means 1.5 at length 1.5, and of 0 at length 4.
    assert fit.effect(0)(first)[0] == pytest.approx(1.5 + 3 * (7 / 3 - 1.5))
    assert fit.effect(1)(first)[0] == pytest.approx(3 * (7 / 3 - 4))
    assert [fit.present(arm).tolist() for arm in (0, 1)] == [[True, True], [True, False]]


# Estimates from draws, by hand


def test_the_standard_error_is_that_of_a_small_sample():
    """The bootstrap's is sqrt((n - 1) / n) of the one that Student's t is of."""
    draws = np.array([0.5, 1.5] * 50)  # their standard deviation is 0.5
    for prompts in (5, 12):
        want = 2 * t.sf(1 / (0.5 * np.sqrt(prompts / (prompts - 1))), prompts - 1)
        assert want > 2.0 ** (1 - prompts)
        assert from_draws(1.0, draws, prompts).p == pytest.approx(want, rel=1e-12)
        assert from_draws(-1.0, draws - 2, prompts).p == pytest.approx(want, rel=1e-12)


def test_p_values_by_the_table_of_student():
    """At 7 degrees of freedom t is 2.365 at 5 %; at 4 it is 2.776, but five signs cannot say less than 1 in 16."""
    for prompts, critical, want in ((8, 2.365, 0.05), (5, 2.776, 1 / 16)):
        error = 1 / critical * np.sqrt((prompts - 1) / prompts)
        assert from_draws(1.0, np.array([1 - error, 1 + error] * 50), prompts).p == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("prompts", [2, 5, 40])
def test_quantiles_are_moved_outwards_for_few_prompts(prompts):
    """Normal quantiles at sqrt(n / (n - 1)) times Student's, of draws that lie evenly from 0 to 1."""
    tail = norm.cdf(np.sqrt(prompts / (prompts - 1)) * t.ppf(0.025, prompts - 1))
    low, high = from_draws(0.5, np.linspace(0, 1, 1001), prompts).interval
    assert (low, high) == pytest.approx((tail, 1 - tail), abs=1e-12)
    assert tail < 0.025


def test_what_does_not_vary_is_0_or_is_not():
    same = np.full(10, 2.0)
    assert from_draws(2.0, same, 30) == (2.0, (2.0, 2.0), 2.0**-29)
    assert from_draws(0.0, np.zeros(10), 30).p == 1.0
    # Rounding is no difference, whatever the size of the figures.
    assert from_draws(1e-13, np.zeros(10), 30).p == 1.0
    assert from_draws(1e-11, np.zeros(10), 30).p == 2.0**-29
    steps = np.array([-1.0, 1.0] * 5)
    assert from_draws(0.8e-12, 0.8e-12 + 0.5e-12 * steps, 30).p == 1.0
    assert 0.5 < from_draws(1e-12, 1e-12 + 1.5e-12 * steps, 30).p < 0.6
    large = 1e6 + np.array([-1e-9, 1e-9] * 5)
    assert from_draws(1e6, large, 1000).p == 2.0**-999


def test_draws_without_a_number_do_not_count():
    draws = np.array([1.0, np.nan, 1.0, np.inf])
    assert from_draws(1.0, draws, 4) == (1.0, (1.0, 1.0), 2.0**-3)
    assert from_draws(1.0, np.full(3, np.nan), 4) == (1.0, None, None)
    assert from_draws(1.0, np.array([0.0, 2.0]), 1) == (1.0, None, None)
    assert from_draws(np.nan, draws, 4) is None and from_draws(np.inf, draws, 4) is None


def test_an_estimate_that_nobody_tests_has_no_p_value():
    assert from_draws(2.0, np.full(10, 2.0), 5).untested() == {"mean": 2.0, "interval": (2.0, 2.0)}


def test_a_figure_is_of_the_prompts_asked_for():
    rate = Ratio(np.array([10.0, 30.0, 0.0]), np.array([2.0, 3.0, 0.0]), np.log)
    assert rate.present.tolist() == [True, True, False]
    second = rate.on(np.array([False, True, True]))
    assert second.present.tolist() == [False, True, False]
    assert second(np.ones((1, 3)))[0] == pytest.approx(np.log(10.0))
    assert rate(np.array([[2.0, 1.0, 5.0]]))[0] == pytest.approx(np.log(50 / 7))
    assert np.isnan(second(np.array([[1.0, 0.0, 1.0]]))[0])  # a draw without any of its prompts


def test_differences_and_quotients_are_of_the_prompts_that_both_have():
    one, other = means([6.0, 8.0, np.nan, 1.0]), means([3.0, 2.0, 7.0, np.nan])
    times = np.array([[2.0, 0.0, 1.0, 1.0], [0.0, 2.0, 1.0, 1.0]])
    assert difference(one, other, times).mean == 4.5
    assert difference(one, other, times).interval == pytest.approx((3, 6))
    ratio = quotient(one, other, times)
    assert ratio.mean == pytest.approx(14 / 5)
    assert ratio.interval == pytest.approx((2, 4))
    assert ratio.p >= 0.5  # two prompts
