"""Scores at equal KL, by hand: read off between strengths, prompt by prompt and draw by draw, and never beyond."""

import math

import numpy as np
import pytest

from midcourse.compare.report.matched import Curve, difference_at, score_at

NONE = math.nan
BOTH = np.array([True, True])


def curve(kls, scores, times=((1, 1),)) -> Curve:
    """Strengths in rows, prompts in columns."""
    return Curve(*(np.array(values, dtype=float) for values in (kls, scores, times)))


def level(kls, scores, prompts=2, draws=3) -> Curve:
    """A curve whose prompts are all alike."""
    rows = [[value] * prompts for value in kls], [[value] * prompts for value in scores]
    return curve(*rows, np.ones((draws, prompts)))


@pytest.mark.parametrize(
    ("kl", "want"),
    [(1.0, 1.5), (2.0, 2.0), (2.5, 2.25), (3.0, 2.5), (5.0, 2.5 + 2 * 2 / 3), (6.0, 4.5), (0.99, None), (6.01, None)],
)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_scores_lie_on_lines_between_the_strengths_in_any_order(kl, want, order):
    kls, scores = np.array([1.0, 3.0, 6.0])[order], np.array([1.5, 2.5, 4.5])[order]
    found = score_at(level(kls, scores), kl)
    assert (found and found.mean) == (want and pytest.approx(want))
    if found:
        assert found.interval == pytest.approx((want, want))
        assert found.p == 0.5  # of two prompts, no test by signs says less


@pytest.mark.parametrize(("beside", "reached"), [(0.0, True), (5e-10, True), (2e-9, False), (0.1, False)])
def test_the_ends_are_reached_but_for_rounding(beside, reached):
    found = level([1.0, 3.0], [0.0, 1.0])
    assert found.reaches(1.0 - beside, BOTH) == found.reaches(3.0 + beside, BOTH) == reached
    assert found.reach(BOTH) == (1.0, 3.0)


# The first prompt has KLs 1 and 5 and scores 0 and 4, the second 3 and 7, and 10 and 14; together 2 and 6, and 5 and 9.
UNLIKE = [[1, 3], [5, 7]], [[0, 10], [4, 14]]


@pytest.mark.parametrize(
    ("kl", "want"),
    [
        (4.0, [7, 3, 11]),
        (2.0, [5, 1, 10]),  # the second prompt alone begins at 3: its nearest point
        (6.0, [9, 4, 13]),  # the first prompt alone ends at 5
    ],
)
def test_each_draw_has_the_line_of_its_own_prompts(kl, want):
    assert curve(*UNLIKE, times=[[2, 0], [0, 2]]).at(kl, BOTH).tolist() == pytest.approx(want)


def test_the_mean_is_of_all_prompts_and_the_interval_of_the_draws():
    found = score_at(curve(*UNLIKE, times=[[2, 0], [0, 2]]), 4.0)
    assert found.mean == pytest.approx(7) and found.interval == pytest.approx((3, 11))
    assert score_at(curve(*UNLIKE, times=[[2, 0], [2, 0]]), 4.0)[:2] == (pytest.approx(7), pytest.approx((3, 3)))
    assert score_at(curve(*UNLIKE, times=np.zeros((0, 2))), 4.0)[:2] == (pytest.approx(7), None)


def test_prompts_that_lack_a_point_are_left_out():
    kls, scores = [[1, 1, 1, NONE], [3, 3, 3, 3]], [[0, 2, 5, 5], [4, 6, NONE, 9]]
    found = curve(kls, scores, times=[[1, 1, 9, 9], [2, 0, 9, 9]])
    assert found.present.tolist() == [True, True, False, False]
    assert found.at(2.0, found.present).tolist() == pytest.approx([3, 3, 2])
    assert score_at(found, 2.0).mean == pytest.approx(3)


def test_what_is_asked_of_other_prompts_has_its_own_lines():
    found = curve(*UNLIKE, times=[[1, 1]])
    answers = [found.at(4.0, np.array(prompts)).tolist() for prompts in ([True, True], [True, False], [False, True])]
    assert answers == [[7, 7], [3, 3], [11, 11]]


def test_a_curve_without_points_or_prompts_reaches_nothing():
    empty = Curve(np.zeros((0, 2)), np.zeros((0, 2)), np.ones((1, 2)))
    assert empty.present.tolist() == [False, False]
    assert empty.reach(empty.present) == (math.inf, -math.inf)
    assert score_at(empty, 0.0) is None
    nobody = curve([[NONE]], [[1.0]], times=[[1.0]])
    assert score_at(nobody, 1.0) is None
    assert difference_at(nobody, nobody, 1.0) is None


def test_one_strength_is_read_off_at_its_own_kl_only():
    found = level([2.0], [0.5], prompts=5)
    assert score_at(found, 2.0).mean == 0.5
    assert score_at(found, 2.0).p == 2**-4
    assert score_at(found, 1.9) is None and score_at(found, 2.1) is None


def test_of_strengths_with_equal_kl_one_is_taken():
    found = score_at(level([2.0, 2.0], [0.5, 0.7]), 2.0)
    assert found.mean in (0.5, 0.7)


def test_differences_are_paired_by_prompt_and_read_off_at_one_kl():
    one = curve([[1, 3], [5, 7]], [[0, 10], [4, 14]], times=[[2, 0], [0, 2]])
    other = curve([[0, 0], [8, 16]], [[0, 0], [8, 8]], times=[[2, 0], [0, 2]])
    # Of both 7 less 8 x 4 / 12; of the first prompt 3 less 4; of the second 11 less 2.
    found = difference_at(one, other, 4.0)
    assert found.mean == pytest.approx(7 - 8 / 3)
    assert found.interval == pytest.approx((-1, 9))
    assert difference_at(other, one, 4.0).mean == pytest.approx(8 / 3 - 7)
    first = [Curve(of.kls, of.scores, of.times[[0, 0]]) for of in (one, other)]
    assert difference_at(*first, 4.0).interval == pytest.approx((-1, -1))


def test_differences_are_of_the_prompts_that_both_have():
    times = [[1, 1, 1], [3, 0, 0]]
    one = curve([[1, 1, 1], [3, 3, 3]], [[0, 2, 50], [2, 4, 50]], times)
    other = curve([[1, 1, NONE], [3, 3, 3]], [[0, 0, 0], [0, 0, 0]], times)
    assert difference_at(one, other, 2.0).mean == pytest.approx(2)
    assert difference_at(one, other, 2.0).p == 0.5  # two prompts
    assert difference_at(other, one, 2.0).mean == pytest.approx(-2)


def test_a_difference_needs_both_to_reach_the_kl():
    near, far = level([1.0, 3.0], [0.0, 1.0]), level([2.0, 6.0], [0.0, 1.0])
    assert difference_at(near, far, 2.5).mean == pytest.approx(0.75 - 0.125)
    for kl in (1.5, 4.0):
        assert difference_at(near, far, kl) is None
        assert difference_at(far, near, kl) is None


def test_draws_that_hold_none_of_the_prompts_do_not_count():
    found = curve([[1, 1, NONE], [3, 3, 3]], [[0, 2, 0], [2, 4, 0]], times=[[1, 1, 1], [0, 0, 3], [1, 1, 1]])
    assert np.isnan(found.at(2.0, found.present)).tolist() == [False, False, True, False]
    assert score_at(found, 2.0).interval == pytest.approx((2, 2))
