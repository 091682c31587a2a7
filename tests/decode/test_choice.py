"""The draw and its KL: exact values by hand, frequencies by enumeration, and nothing impossible is ever drawn."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from midcourse.decode.choice import (
    draw,
    greedy_gap,
    kl_divergence,
    largest_shift,
    normalise,
    row_uniforms,
    uniforms_now,
    within_budget,
)
from midcourse.reference import inverse_transform

NOTHING = float("-inf")
LARGEST = 1 - 2**-53  # of the uniform numbers that numpy draws


def log(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def uniform(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_normalise():
    # p^(1/T) / sum: at T = 1/2 probabilities are squared.
    torch.testing.assert_close(normalise(log(0.5, 0.3, 0.2), 0.5).exp(), log(0.25, 0.09, 0.04).exp() / 0.38)
    torch.testing.assert_close(normalise(log(0.2, 0.1), 1.0).exp(), log(2 / 3, 1 / 3).exp())
    assert normalise(log(0.5, 0.0), 2.0).tolist() == [[0.0, NOTHING]]


def test_cold_normalise_does_not_overflow():
    assert normalise(torch.tensor([[-1000.0, -1001.0]]), 1e-6).tolist() == [[0.0, -1e6]]


@pytest.mark.parametrize(
    ("number", "index"), [(0.0, 0), (0.49, 0), (0.5, 1), (0.74, 1), (0.75, 2), (0.99, 2), (LARGEST, 2)]
)
def test_draw_is_the_inverse_transform(number, index):
    probabilities = (0.5, 0.25, 0.25)
    assert draw(log(*probabilities), uniform(number)).tolist() == [index]
    assert inverse_transform(torch.tensor(probabilities, dtype=torch.float64), number) == index


def test_draw_from_what_is_not_normalised():
    assert draw(log(0.2, 0.2), uniform(0.4)).tolist() == [0]
    assert draw(log(0.2, 0.2), uniform(0.6)).tolist() == [1]


def test_number_that_was_rounded_to_1_draws_the_last_possible_candidate():
    assert draw(log(0.5, 0.5, 0.0), uniform(1.0)).tolist() == [1]


def test_draw_follows_each_rows_own_number():
    guided = log(0.5, 0.25, 0.25).expand(3, -1)
    assert draw(guided, uniform(0.8, 0.1, 0.6)).tolist() == [2, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_frequencies_are_the_probabilities(dtype):
    # Every uniform number of a grid, once: the share of a candidate is its probability to within one grid step.
    probabilities = torch.tensor([[0.37, 0.0, 0.21, 0.4199, 0.0001, 0.0]], dtype=torch.float64)
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = draw(probabilities.log().to(dtype).expand(len(grid), -1), grid)
    shares = torch.bincount(drawn, minlength=6) / len(grid)
    torch.testing.assert_close(shares, probabilities[0].float(), atol=1 / len(grid), rtol=0)


weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-30, 1.0)), min_size=1, max_size=8).filter(any)
numbers = st.one_of(st.sampled_from([0.0, 5e-324, LARGEST]), st.floats(0, LARGEST))


@given(weights, numbers, st.sampled_from([torch.float32, torch.float64]))
def test_impossible_candidates_are_never_drawn(probabilities, number, dtype):
    scores = torch.tensor([probabilities], dtype=torch.float64).log().to(dtype)
    guided = normalise(scores, 1.0)
    index = int(draw(guided, uniform(number)))
    assert guided[0, index].exp() > 0
    assert index == inverse_transform(guided[0].exp(), number)


def test_kl_by_hand():
    have = kl_divergence(log(0.7, 0.2, 0.1), log(0.5, 0.25, 0.25))
    want = 0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.25) + 0.1 * math.log(0.1 / 0.25)
    assert have.item() == pytest.approx(want, abs=1e-15)
    assert want == pytest.approx(0.09928, abs=1e-5)


def test_kl_of_equals_is_0():
    assert kl_divergence(log(0.7, 0.3), log(0.7, 0.3)).tolist() == [0.0]


def test_impossible_candidates_add_nothing():
    have = kl_divergence(log(0.75, 0.0, 0.25, 0.0), log(0.5, 0.25, 0.25, 0.0))
    assert have.item() == pytest.approx(0.75 * math.log(1.5), abs=1e-15)


def test_total_kl_is_guidance_kl_and_the_cut():
    # q on C = {a, b, c} of a larger vocabulary: total - guidance = -log pi(C), at T = 1.
    pi, rewards = log(0.4, 0.2, 0.1), torch.tensor([[1.0, -1.0, 3.0]], dtype=torch.float64)
    base, guided = normalise(pi, 1.0), normalise(pi + 2 * rewards, 1.0)
    total, guidance = kl_divergence(guided, pi), kl_divergence(guided, base)
    assert (total - guidance).item() == pytest.approx(-math.log(0.7), abs=1e-14)
    assert guidance.item() > 0


def test_uniforms_belong_to_the_seed():
    assert row_uniforms(3, 6).tolist() == np.random.default_rng(3).random(6).tolist()
    # A longer limit leaves the first steps as they were.
    assert row_uniforms(5, 9)[:6].tolist() == row_uniforms(5, 6).tolist()
    assert uniforms_now([0.25, 1 - 1e-12], torch.device("cpu")).tolist() == [0.25, 1 - 1e-12]


# The bound of skipped steps


def moved(base: torch.Tensor, spread: float) -> float:
    """The most that rewards 0 and `spread` can move, over every set of candidates that may have the higher one."""
    probabilities, furthest = base.exp()[0], 0.0
    for chosen in itertools.product((0.0, spread), repeat=base.shape[1]):
        guided = (base[0] + torch.tensor(chosen, dtype=base.dtype)).softmax(0)
        furthest = max(furthest, float((guided - probabilities).abs().sum() / 2))
    return furthest


@pytest.mark.parametrize(
    ("probabilities", "spread", "want"),
    [
        # 0.1 becomes 0.3 of 1.2.
        ((0.9, 0.1), math.log(3), 0.3 / 1.2 - 0.1),
        # A quarter becomes 9 of 12.
        ((0.25, 0.25, 0.25, 0.25), math.log(9), 0.5),
        # So does a quarter beside others: all but the likeliest, 0.3, would move by 0.494 only.
        ((0.7, 0.25, 0.05), math.log(9), 0.5),
        # As sets of a quarter would be moved, had they been there.
        ((0.5, 0.5), math.log(9), 0.5),
        # Nothing is moved by equal rewards, and nothing from a candidate that is sure.
        ((0.6, 0.4), 0.0, 0.0),
        ((1.0, 0.0), 5.0, 0.0),
        # Whatever its rewards may be, anything may happen.
        ((0.9, 0.1), math.inf, 1.0),
        ((0.9, 0.1), 1e4, 1.0),
    ],
)
def test_largest_shift_by_hand(probabilities, spread, want):
    assert largest_shift(log(*probabilities), uniform(spread)).item() == pytest.approx(want, abs=1e-15)


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=5), st.floats(0, 12))
def test_no_rewards_move_more_than_the_largest_shift(probabilities, spread):
    base = log(*probabilities).log_softmax(1)
    assert moved(base, spread) <= largest_shift(base, uniform(spread)).item() + 1e-9  # 1 - max b rounds


@given(st.floats(1e-6, 0.5), st.floats(0, 12))
def test_the_largest_shift_is_reached_where_the_likeliest_holds_nearly_all(rest, spread):
    """No bound could be smaller: the set of all but the likeliest is moved by just that."""
    assume(rest <= 1 / (1 + math.exp(spread / 2)))
    base = log(1 - rest, rest)
    assert largest_shift(base, uniform(spread)).item() == pytest.approx(moved(base, spread), abs=1e-9)


def test_largest_shift_is_each_rows_own():
    base = log(0.9, 0.1).expand(3, -1)
    assert largest_shift(base, uniform(math.log(3), 0.0, math.inf)).tolist() == pytest.approx([0.15, 0.0, 1.0])


def test_greedy_gap_by_hand():
    gaps = greedy_gap(torch.cat([log(0.2, 0.5, 0.3), log(0.4, 0.2, 0.4)]))
    assert gaps.tolist() == pytest.approx([math.log(0.5 / 0.3), 0.0])
    assert greedy_gap(log(1.0).expand(2, -1)).tolist() == [math.inf, math.inf]


# KL budgets


def tilted(weights: torch.Tensor) -> torch.Tensor:
    """The policy of two equally likely candidates, of which the second has reward 1."""
    return torch.cat([torch.zeros_like(weights), weights], 1).log_softmax(1)


def spent(weight: float) -> float:
    """The KL of that policy from the base: log 2 less the entropy of the second's probability."""
    p = 1 / (1 + math.exp(-weight))
    return math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)


@pytest.mark.parametrize("sign", [1, -1])
def test_budget_is_met_by_the_largest_weight_within_it(sign):
    """Each row has its own allowance; what fits whole keeps its whole weight."""
    weights = [0.3, 1.2, 3.9]
    allowances = uniform(*(spent(weight) for weight in weights), spent(4.0) + 1e-9, 0.0)
    base = log(0.5, 0.5).expand(5, -1)
    found = within_budget(tilted, base, sign * 4.0, allowances)[:, 0] * sign
    for have, want in zip(found.tolist(), weights, strict=False):
        assert want - 4 * 2**-24 <= have <= want
    assert found[3] == 4.0
    assert 0 <= found[4] <= 4 * 2**-24
    assert (kl_divergence(tilted(found[:, None]), base) <= allowances).all()


def test_an_allowance_may_be_spent_to_the_last():
    base, whole = log(0.5, 0.5).expand(2, -1), torch.tensor([[4.0], [1.0]], dtype=torch.float64)
    allowances = kl_divergence(tilted(whole), base)
    allowances[1] /= 2  # so that a smaller weight is looked for
    assert within_budget(tilted, base, whole, allowances)[0].item() == 4.0


def test_rows_weights_are_kept_where_no_budget_binds():
    weights = torch.tensor([[4.0], [-2.0]], dtype=torch.float64)
    base, allowances = log(0.5, 0.5).expand(2, -1), uniform(1.0, 1.0)
    assert torch.equal(within_budget(tilted, base, weights, allowances), weights)
    assert within_budget(tilted, base, 4.0, allowances).tolist() == [[4.0], [4.0]]
