"""Rewards of tokens to advantages.

One contract holds for every function here: tensors are (batch, tokens) with a mask of the same shape, True on the
tokens of a response, its EOS included, and reward t is the reward of response token t itself. Whatever stands beyond a
response is not read, and is 0 in what is returned.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from midcourse.data.alignment import Span
from midcourse.ppo.settings import PPOError

LARGEST = 1e8  # what is beyond it is a mistake, and would end as a loss that is no number


def check_rewards(rewards: object, mask: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens"]:
    """Return rewards as they are; PPOError if they do not fit the responses, or one is no number to learn from."""
    if not isinstance(rewards, Tensor) or rewards.shape != mask.shape or rewards.is_complex():
        what = f"type {type(rewards).__name__}"
        if isinstance(rewards, Tensor):
            what = f"dtype {rewards.dtype}" if rewards.is_complex() else f"shape {tuple(rewards.shape)}"
        raise PPOError(
            f"the rewards of tokens have {what}, the responses {tuple(mask.shape)}; return a tensor of (batch, "
            "tokens), the EOS of finished responses included"
        )
    broken = mask & ~(rewards.abs() <= LARGEST)
    if broken.any():
        row, token = broken.nonzero()[0].tolist()
        raise PPOError(
            f"the reward of token {token + 1} of response {row + 1} is {rewards[row, token].item():g}; give finite "
            f"numbers of at most {LARGEST:g}"
        )
    return rewards


# ---- rewards of whole responses, or of prefixes, as rewards of tokens ----


def at_end(rewards: Float[Tensor, " batch"], mask: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens"]:
    """Return each response's reward at its last token, 0 at the others."""
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return torch.where(last, rewards[:, None], 0.0)


def uniform(rewards: Float[Tensor, " batch"], mask: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens"]:
    """Return each response's reward in equal parts on its tokens."""
    return torch.where(mask, rewards[:, None] / mask.sum(1, keepdim=True).clamp(min=1), 0.0)


def differences(
    potentials: Float[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Return the change of a potential with each token, from 0 before the first: what a prefix reward adds (RED).

    A response's differences add up to the potential of the whole, so that the best policy is the same as if that were
    paid at the end (Ng, Harada and Russell, 1999).
    """
    before = torch.cat([torch.zeros_like(potentials[:, :1]), potentials[:, :-1]], 1)
    return torch.where(mask, potentials - before, 0.0)


def shuffled(
    rewards: Float[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"], generator: torch.Generator
) -> Float[Tensor, "batch tokens"]:
    """Return each response's rewards on its own tokens in random order: a placebo, which says nothing of any token."""
    keys = torch.rand(rewards.shape, generator=generator).masked_fill(~mask.cpu(), 2.0)
    order = keys.argsort(1).to(rewards.device)  # padding stays behind
    return torch.where(mask, rewards.gather(1, order), 0.0)


def centred(
    rewards: Float[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Return rewards less their mean over all tokens of the batch, so that no response gains by its length."""
    mean = torch.where(mask, rewards, 0.0).sum() / mask.sum().clamp(min=1)
    return torch.where(mask, rewards - mean, 0.0)


def projected(rewards: Sequence[float], spans: Sequence[Span], onto: Sequence[Span]) -> list[float]:
    """Return rewards of one tokenizer's tokens as rewards of another's, by the characters that they share.

    A token's reward is split over the tokens it overlaps in proportion to the shared characters. That of a token
    without characters of its own, such as EOS, goes to the first token that ends at its place or behind, the last one
    if there is none. The sum stays the same.

    Args:
        rewards: one for each of `spans`.
        spans, onto: the characters (begin, end) of either tokenizer's tokens, in the same text.

    Raises:
        PPOError: tokens without any to take their rewards.

    Examples:
        >>> projected([1.0, 2.0], [(0, 2), (2, 6)], [(0, 4), (4, 6)])
        [2.0, 1.0]
    """
    if not onto:
        if any(rewards):
            raise PPOError(f"{len(rewards)} rewards and no token to take them; give the tokens of the same text")
        return []
    made = [0.0] * len(onto)
    for reward, (begin, end) in zip(rewards, spans, strict=True):
        shared = [max(min(end, b) - max(begin, a), 0) for a, b in onto]
        if total := sum(shared):
            for place, part in enumerate(shared):
                made[place] += reward * part / total
        else:
            made[next((n for n, (a, b) in enumerate(onto) if a == b >= begin or b > begin), len(onto) - 1)] += reward
    return made


# ---- advantages ----


def gae(
    rewards: Float[Tensor, "batch tokens"],
    values: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
    """Return (advantages, returns) by generalised advantage estimation (Schulman et al., 2016).

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1},    returns = A + V

    V_t is the value of the prefix before token t, and 0 behind the last token, whether the response was finished or
    cut. Tokens outside the mask, between others too, are passed over.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    value_after = torch.zeros_like(values[:, 0])
    for t in reversed(range(rewards.shape[1])):
        own = mask[:, t]
        delta = rewards[:, t] + gamma * value_after - values[:, t]
        following = torch.where(own, delta + gamma * lam * following, following)
        value_after = torch.where(own, values[:, t], value_after)
        advantages[:, t] = torch.where(own, following, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def group_relative(
    rewards: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    groups: Int[Tensor, " batch"],
    *,
    shaping: float = 1.0,
    eps: float = 1e-6,
) -> Float[Tensor, "batch tokens"]:
    """Return advantages without a critic: a response's against its group, and a token's against its response.

        A_it = (R_i - mean of the group) / (standard deviation of the group + eps)
               + shaping (r_it - mean of r_i over its tokens)

    R_i is the sum of the response's rewards (GRPO: Shao et al., 2024). The second term adds up to 0 over a response, so
    that it makes none longer or shorter.

    Args:
        groups: the number of the prompt that each response belongs to.
    """
    own = torch.where(mask, rewards, 0.0)
    totals = own.sum(1)
    counts = torch.zeros(int(groups.max()) + 1, dtype=totals.dtype, device=totals.device)
    counts = counts.index_add(0, groups, torch.ones_like(totals))
    means = torch.zeros_like(counts).index_add(0, groups, totals) / counts.clamp(min=1)
    squares = torch.zeros_like(counts).index_add(0, groups, (totals - means[groups]) ** 2)
    deviations = (squares / counts.clamp(min=1)).sqrt()
    against_group = (totals - means[groups]) / (deviations[groups] + eps)
    return shaped(against_group, own, mask, shaping)


def shaped(
    advantages: Float[Tensor, " batch"],
    rewards: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    shaping: float,
) -> Float[Tensor, "batch tokens"]:
    """Return advantages of tokens: that of the response, and what each token is paid beyond its response's mean."""
    own = torch.where(mask, rewards, 0.0)
    against_own = own - own.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, advantages[:, None] + shaping * against_own, 0.0)


def whitened(
    advantages: Float[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Return advantages with mean 0 and standard deviation 1 over the tokens of the batch."""
    values = advantages[mask]
    if len(values) < 2:
        return torch.where(mask, advantages, 0.0)
    return torch.where(mask, (advantages - values.mean()) * torch.rsqrt(values.var() + 1e-8), 0.0)
