"""Rewards of tokens as other libraries of reinforcement learning expect them, and back.

Nothing of those libraries is imported: these are their stated shapes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from midcourse.ppo.advantages import check_rewards
from midcourse.ppo.settings import PPOError


def to_verl(
    rewards: Float[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"], response_length: int
) -> Float[Tensor, "batch response_length"]:
    """Return rewards as verl's `rm_scores` and `token_level_scores`: (batch, response_length), float32, 0 in padding.

    verl pads responses behind to `data.max_response_length` tokens and adds the divergence's cost itself. Its
    estimators gae, reinforce_plus_plus, remax and optimal_token_baseline use every token's reward; grpo, rloo and opo
    add a response's rewards up first.

    Raises:
        PPOError: responses longer than `response_length`, or rewards that do not fit the mask.
    """
    check_rewards(rewards, mask)
    longest = int(mask.sum(1).max()) if len(mask) else 0
    if longest > response_length or (mask.shape[1] > response_length and mask[:, response_length:].any()):
        raise PPOError(
            f"a response has {longest} tokens, and response_length is {response_length}; give all of it room"
        )
    made = torch.zeros(len(rewards), response_length, dtype=torch.float32, device=rewards.device)
    width = min(mask.shape[1], response_length)
    made[:, :width] = torch.where(mask, rewards, 0.0)[:, :width].to(torch.float32)
    return made


def to_skyrl(rewards: Float[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]) -> list[list[float]]:
    """Return rewards as a SkyRL generator gives them in `rewards`: for each response one number a token.

    Raises:
        PPOError: rewards that do not fit the mask, or a mask with gaps, since such a list has no place for them.
    """
    check_rewards(rewards, mask)
    counts = mask.sum(1)
    if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) < counts[:, None]):
        raise PPOError("a response has tokens outside the mask between others; give those a reward of 0 and mask True")
    return [row[:count].tolist() for row, count in zip(rewards, counts.tolist(), strict=True)]


def from_lists(
    rewards: Sequence[Sequence[float]],
) -> tuple[Float[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Return (rewards, mask) of lists with one number a token, as SkyRL has them."""
    width = max(map(len, rewards), default=0)
    padded = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rewards]).reshape(len(rewards), width)
    counts = torch.tensor([len(row) for row in rewards], dtype=torch.long)
    return padded, torch.arange(width) < counts[:, None]
