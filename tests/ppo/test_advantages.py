"""Rewards of tokens to advantages, by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midcourse.ppo.advantages import (
    PPOError,
    at_end,
    centred,
    check_rewards,
    differences,
    gae,
    group_relative,
    projected,
    shuffled,
    uniform,
    whitened,
)

NAN = math.nan
MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_rewards_of_responses_and_prefixes_are_paid_to_tokens():
    rewards = torch.tensor([3.0, -4.0])
    assert at_end(rewards, MASK).tolist() == [[0, 0, 3], [0, -4, 0]]
    assert uniform(rewards, MASK).tolist() == [[1, 1, 1], [-2, -2, 0]]
    potentials = torch.tensor([[0.5, 0.25, 1.0], [-1.0, 2.0, NAN]])
    assert differences(potentials, MASK).tolist() == [[0.5, -0.25, 0.75], [-1, 3, 0]]


def test_gae_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, NAN]], dtype=torch.float64)
    values = torch.tensor([[0.5, 1.0, 1.5], [2.0, 0.0, NAN]], dtype=torch.float64)
    advantages, returns = gae(rewards, values, MASK, gamma=0.9, lam=0.5)
    third = 2.0 - 1.5
    second = 0 + 0.9 * 1.5 - 1.0 + 0.45 * third
    first = 1.0 + 0.9 * 1.0 - 0.5 + 0.45 * second
    short = 0.5 + 0.9 * 0.0 - 2.0 + 0.45 * 1.0
    assert advantages.flatten().tolist() == pytest.approx([first, second, third, short, 1.0, 0.0])
    assert returns.flatten().tolist() == pytest.approx([first + 0.5, second + 1.0, third + 1.5, short + 2.0, 1.0, 0.0])


def test_at_lambda_1_returns_are_sums_and_at_0_one_step():
    rewards, values = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    _, returns = gae(rewards, values, MASK, gamma=1.0, lam=1.0)
    assert returns[0].tolist() == pytest.approx(rewards[0].flip(0).cumsum(0).flip(0).tolist())
    advantages, _ = gae(rewards, values, MASK, gamma=1.0, lam=0.0)
    assert advantages[1, 0].item() == pytest.approx((rewards[1, 0] + values[1, 1] - values[1, 0]).item())


def test_tokens_outside_the_mask_are_passed_over():
    """A token between others that nobody emitted, such as a tool's, changes nothing."""
    mask = torch.tensor([[True, False, True]])
    wide = gae(torch.tensor([[1.0, NAN, 2.0]]), torch.tensor([[0.5, NAN, 1.5]]), mask)
    narrow = gae(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.5]]), torch.tensor([[True, True]]))
    for one, other in zip(wide, narrow, strict=True):
        assert one[mask].tolist() == other[0].tolist() and one[0, 1] == 0


def test_the_reward_of_a_token_is_credited_to_that_token():
    """The released code of TLCR pays it one token later: with lambda 0 the right token would get nothing."""
    rewards = torch.tensor([[0.0, 1.0, 0.0]])
    advantages, _ = gae(rewards, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), lam=0.0)
    assert advantages.tolist() == [[0, 1, 0]]


def test_group_relative_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.5, NAN], [7.0, 1.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * 3, [True, True, False], [True] * 3])
    advantages = group_relative(rewards, mask, torch.tensor([0, 0, 1]), shaping=2.0, eps=0.0 + 1e-12)
    assert advantages[0].tolist() == pytest.approx([1 + 2 * 0, 1 - 2, 1 + 2])
    assert advantages[1].tolist() == pytest.approx([-1, -1, 0])
    assert advantages[2].sum().item() == pytest.approx(0, abs=1e-9)  # alone in its group: shaping is all there is
    plain = group_relative(rewards, mask, torch.tensor([0, 0, 1]), shaping=0.0)
    assert plain.sum(1).tolist() == pytest.approx((advantages * mask).sum(1).tolist(), abs=1e-5)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.integers(0, 9))
def test_a_placebo_has_the_same_rewards_on_other_tokens(values, seed):
    width = len(values) + 2
    rewards = torch.full((1, width), NAN)
    rewards[0, : len(values)] = torch.tensor(values)
    mask = torch.arange(width)[None] < len(values)
    found = shuffled(rewards, mask, torch.Generator().manual_seed(seed))
    assert sorted(found[mask].tolist()) == sorted(rewards[mask].tolist())
    assert (found[~mask] == 0).all()


def test_a_placebo_moves_rewards():
    rewards = torch.arange(64.0)[None]
    assert shuffled(rewards, rewards >= 0, torch.Generator().manual_seed(0)).tolist() != rewards.tolist()


def test_centred_and_whitened():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, NAN]], dtype=torch.float64)
    assert centred(values, MASK).tolist() == [[-2, -1, 0], [1, 2, 0]]
    white = whitened(values, MASK)
    assert white[MASK].mean().item() == pytest.approx(0, abs=1e-12)
    assert white[MASK].std().item() == pytest.approx(1)
    alone = torch.tensor([[True, False, False], [False] * 3])
    assert whitened(values, alone).tolist() == [[1, 0, 0], [0, 0, 0]]


def test_projection_by_hand():
    assert projected([1.0, 2.0], [(0, 2), (2, 6)], [(0, 4), (4, 6)]) == [2.0, 1.0]
    # " ferry" | "" (EOS) on " fer" | "ry" | EOS
    assert projected([3.0, 0.5], [(0, 6), (6, 6)], [(0, 4), (4, 6), (6, 6)]) == [2.0, 1.0, 0.5]
    assert projected([1.0], [(3, 3)], [(0, 2), (2, 3)]) == [0.0, 1.0]
    assert projected([], [], []) == []
    with pytest.raises(PPOError, match="1 rewards and no token to take them"):
        projected([1.0], [(0, 1)], [])


CUTS = st.lists(st.integers(1, 3), min_size=1, max_size=6)


def spans(lengths: list[int]) -> list[tuple[int, int]]:
    ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    return [(end - length, end) for end, length in zip(ends, lengths, strict=True)]


@given(CUTS, CUTS)
def test_projection_keeps_the_sum(one, other):
    one, other = [*one, max(sum(other) - sum(one), 0)], [*other, max(sum(one) - sum(other), 0)]
    rewards = [(-1.5) ** n for n in range(len(one))]
    assert math.fsum(projected(rewards, spans(one), spans(other))) == pytest.approx(math.fsum(rewards))


def test_rewards_that_do_not_fit_are_refused():
    good = torch.zeros(2, 3)
    assert check_rewards(good, MASK) is good
    for bad, message in (
        (torch.zeros(2), r"have shape \(2,\), the responses \(2, 3\)"),
        ([[0.0]], "have type list"),
        (torch.tensor([[0.0, 0.0, 0.0], [0.0, NAN, 0.0]]), "the reward of token 2 of response 2 is nan"),
        (torch.tensor([[0.0, 0.0, math.inf], [0.0, 0.0, 0.0]]), "the reward of token 3 of response 1 is inf"),
    ):
        with pytest.raises(PPOError, match=message):
            check_rewards(bad, MASK)
    check_rewards(torch.tensor([[0.0] * 3, [0.0, 0.0, NAN]]), MASK)  # beyond a response nothing is read
