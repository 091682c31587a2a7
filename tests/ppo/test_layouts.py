"""Rewards of tokens in the shapes that verl and SkyRL state."""

import pytest
import torch

from midcourse.ppo.layouts import from_lists, to_skyrl, to_verl
from midcourse.ppo.settings import PPOError

REWARDS = torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_verl_pads_behind():
    got = to_verl(REWARDS, MASK, 5)
    assert got.dtype == torch.float32
    assert got.tolist() == [[1, 2, 0, 0, 0], [3, 4, 5, 0, 0]]
    assert to_verl(REWARDS, MASK, 3).tolist() == [[1, 2, 0], [3, 4, 5]]
    assert to_verl(REWARDS[:1], MASK[:1], 2).tolist() == [[1, 2]]


def test_skyrl_takes_a_list_for_each_response():
    assert to_skyrl(REWARDS, MASK) == [[1, 2], [3, 4, 5]]
    rewards, mask = from_lists(to_skyrl(REWARDS, MASK))
    assert torch.equal(mask, MASK)
    assert rewards.tolist() == [[1, 2, 0], [3, 4, 5]]
    assert from_lists([])[0].shape == (0, 0)


def test_what_would_be_lost_is_refused():
    with pytest.raises(PPOError, match="a response has 3 tokens, and response_length is 2"):
        to_verl(REWARDS, MASK, 2)
    with pytest.raises(PPOError, match="outside the mask between others"):
        to_skyrl(REWARDS, torch.tensor([[True, False, True], [True, True, True]]))
    with pytest.raises(PPOError, match="token 1 of response 1 is nan"):
        to_verl(torch.full_like(REWARDS, float("nan")), MASK, 3)
