"""The equations, by hand."""

import math

import pytest
import torch

from midcourse.decode.guidance import add_clamped, add_log_sigmoid, add_reward

LOGPROBS = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
REWARDS = torch.tensor([[0.0, 1.0, -2.0]], dtype=torch.float64)
NOTHING = float("-inf")


def test_reward_multiplies_inside_exp():
    e = torch.tensor(1.0, dtype=torch.float64).exp()
    torch.testing.assert_close(add_reward(LOGPROBS, REWARDS, 1.0).exp(), torch.tensor([[0.5, 0.3 * e, 0.2 / e**2]]))
    torch.testing.assert_close(add_reward(LOGPROBS, REWARDS, -2.0), LOGPROBS - 2 * REWARDS)


def test_clamped_rewards_count_from_0_to_1():
    rewards = torch.tensor([[0.25, -3.0, 4.0]], dtype=torch.float64)
    want = LOGPROBS + torch.tensor([[0.5, 0.0, 2.0]])
    torch.testing.assert_close(add_clamped(LOGPROBS, rewards, 2.0), want)


def test_log_odds_become_log_probabilities():
    # sigmoid(0) = 1/2, sigmoid(log 3) = 3/4, sigmoid(-log 4) = 1/5; each probability times its square.
    rewards = torch.tensor([[0.0, math.log(3), -math.log(4)]], dtype=torch.float64)
    want = torch.tensor([[0.5 / 4, 0.3 * 9 / 16, 0.2 / 25]], dtype=torch.float64)
    torch.testing.assert_close(add_log_sigmoid(LOGPROBS, rewards, 2.0).exp(), want)


def test_each_row_may_have_its_own_weight():
    weights = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    have = add_reward(LOGPROBS.expand(2, -1), REWARDS.expand(2, -1), weights)
    torch.testing.assert_close(have, torch.cat([LOGPROBS + 2 * REWARDS, LOGPROBS - REWARDS]))


def test_weight_0_is_the_language_model():
    assert torch.equal(add_reward(LOGPROBS, REWARDS, 0.0), LOGPROBS)


@pytest.mark.parametrize("reward", [1e30, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("weight", [2.0, -2.0, 0.0])
def test_impossible_stays_impossible(reward, weight):
    logprobs = torch.tensor([[0.0, NOTHING]])
    assert add_reward(logprobs, torch.tensor([[1.0, reward]]), weight).tolist() == [[weight, NOTHING]]


@pytest.mark.parametrize("guide", [add_reward, add_clamped, add_log_sigmoid])
@pytest.mark.usefixtures("shapes_checked")
def test_rewards_of_another_shape_are_noticed(guide):
    """The annotations name no class of torch, which would have to be imported; the shapes are checked all the same."""
    with pytest.raises(TypeError, match="candidates"):
        guide(LOGPROBS, REWARDS[:, :1], 1.0)
    with pytest.raises(TypeError, match="rewards"):
        guide(LOGPROBS, REWARDS.tolist(), 1.0)
