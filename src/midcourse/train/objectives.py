"""The losses: pure functions of per-position rewards.

Each takes the rewards of a batch of pairs and returns one loss per pair, so that every pair weighs the same whatever
its length.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid


class PairRewards(NamedTuple):
    """Rewards at the response positions of pairs; position i is the prefix that ends with token i of the response.

    Attributes:
        chosen, rejected: rewards, anything beyond a response's length.
        chosen_lengths, rejected_lengths: tokens of each response, its EOS included.
        chosen_finished, rejected_finished: False for a response that was cut: nothing is known about its end.
    """

    chosen: Float[Tensor, "pairs tokens"]
    rejected: Float[Tensor, "pairs tokens"]
    chosen_lengths: Int[Tensor, " pairs"]
    rejected_lengths: Int[Tensor, " pairs"]
    chosen_finished: Bool[Tensor, " pairs"]
    rejected_finished: Bool[Tensor, " pairs"]


Objective = Callable[[PairRewards], Tensor]


def sequence(rewards: PairRewards) -> Float[Tensor, " pairs"]:
    """-log sigmoid(r(y_w | x) - r(y_l | x)) of the whole responses.

    The ordinary Bradley-Terry reward model (Ouyang et al., 2022), as ARGS guides with (Khanov et al., 2024).
    """
    chosen = at_end(rewards.chosen, rewards.chosen_lengths)
    rejected = at_end(rewards.rejected, rewards.rejected_lengths)
    return -logsigmoid(chosen - rejected)


def prefix(rewards: PairRewards) -> Float[Tensor, " pairs"]:
    """mean over i of -log sigmoid(r(y_w[:i] | x) - r(y_l[:i] | x)), i = 1 to the shorter response's end.

    PARGS's objective (Rashid et al., 2024: Bradley-Terry on equal-length prefixes, the label inherited from the pair),
    with one weight per pair instead of one per prefix, and without prefixes past the shorter end.
    """
    shared = torch.minimum(rewards.chosen_lengths, rewards.rejected_lengths)
    return bradley_terry(rewards.chosen - rewards.rejected, positions(rewards) < shared[:, None])


def prefix_past_end(rewards: PairRewards) -> Float[Tensor, " pairs"]:
    """As `prefix`, going on to the longer response's end: its prefixes are compared with the finished shorter text.

    The authors' variant (Rashid et al., 2024: the shorter response is padded with EOS). A cut response has no end to
    compare with, so its pairs stop where it does.
    """
    i = positions(rewards)
    last = torch.stack([rewards.chosen_lengths, rewards.rejected_lengths]) - 1
    chosen = rewards.chosen.gather(1, torch.minimum(i, last[0][:, None]))
    rejected = rewards.rejected.gather(1, torch.minimum(i, last[1][:, None]))
    known = (rewards.chosen_finished[:, None] | (i <= last[0][:, None])) & (
        rewards.rejected_finished[:, None] | (i <= last[1][:, None])
    )
    return bradley_terry(chosen - rejected, known & (i <= last.amax(0)[:, None]))


OBJECTIVES: dict[tuple[str, str], Objective] = {
    ("prefix", "drop"): prefix,
    ("prefix", "paper"): prefix_past_end,
    ("sequence", "drop"): sequence,
}


def at_end(rewards: Float[Tensor, "pairs tokens"], lengths: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """The reward at each response's last token."""
    return rewards.gather(1, lengths[:, None] - 1)[:, 0]


def positions(rewards: PairRewards) -> Int[Tensor, "pairs tokens"]:
    """0, 1, 2, ... for every pair."""
    return torch.arange(rewards.chosen.shape[1], device=rewards.chosen.device).expand_as(rewards.chosen)


def bradley_terry(
    margins: Float[Tensor, "pairs tokens"], mask: Bool[Tensor, "pairs tokens"]
) -> Float[Tensor, " pairs"]:
    """Each pair's mean of -log sigmoid(margin) over its own positions."""
    # Masked before the logarithm: whatever stands in padding must not reach the gradient.
    losses = -logsigmoid(torch.where(mask, margins, 0.0))
    return (losses * mask).sum(1) / mask.sum(1)
