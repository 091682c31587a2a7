"""The losses of proximal policy optimisation (Schulman et al., 2017), and divergences from the reference.

Tensors are (batch, tokens) with a mask, as in `ppo.advantages`. Means are over the tokens of a batch.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from midcourse.ppo.settings import KL


class PolicyLoss(NamedTuple):
    """A loss, and the share of tokens whose ratio was clipped where that made a difference."""

    loss: Float[Tensor, ""]
    clipped: float


def policy_loss(
    logprobs: Float[Tensor, "batch tokens"],
    old_logprobs: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    clip: float = 0.2,
) -> PolicyLoss:
    """Return -mean of min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), ratio = exp(logprobs - old_logprobs)."""
    ratio = (logprobs - old_logprobs).exp()
    plain, held = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    clipped = mean((held < plain).to(plain.dtype), mask)
    return PolicyLoss(-mean(torch.minimum(plain, held), mask), clipped.item())


def value_loss(
    values: Float[Tensor, "batch tokens"],
    old_values: Float[Tensor, "batch tokens"],
    returns: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    clip: float | None = 0.2,
) -> Float[Tensor, ""]:
    """Return half the mean squared error of values, of the worse of V and V clipped to within `clip` of the old V."""
    errors = (values - returns) ** 2
    if clip is not None:
        held = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (held - returns) ** 2)
    return 0.5 * mean(errors, mask)


def exact_kl(
    logits: Float[Tensor, "*place vocab"], reference_logits: Float[Tensor, "*place vocab"]
) -> Float[Tensor, "*place"]:
    """Return KL(pi || pi_ref) at every prefix, over the whole vocabulary, in nats."""
    logprobs, reference = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    return (logprobs.exp() * (logprobs - reference)).sum(-1)


def sampled_kl(
    logprobs: Float[Tensor, "batch tokens"], reference_logprobs: Float[Tensor, "batch tokens"], kind: KL
) -> Float[Tensor, "batch tokens"]:
    """Return an estimate of KL(pi || pi_ref) by the sampled tokens, in nats (Schulman, 2020).

    k1 = log pi/pi_ref; k3 = pi_ref/pi - 1 - log pi_ref/pi, which is never negative and varies less. As a reward k1 has
    the divergence's gradient on average; k3 has not, and leads to a policy near the best one, not to it.
    """
    ratio = reference_logprobs - logprobs
    return -ratio if kind == "k1" else ratio.exp() - 1 - ratio


def less_kl(
    rewards: Float[Tensor, "batch tokens"],
    kl: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    weight: float,
    kind: KL,
) -> Float[Tensor, "batch tokens"]:
    """Return rewards less what the divergence from the reference costs each token.

    A sampled estimate is the token's own. The exact divergence belongs to the prefix, before any token is chosen: a
    token pays for that of the prefix it leads to, and the divergence of its own prefix is a term of the loss (`weight`
    times its mean), since all tokens there share it and none could be told from another by it. Paid to the token at its
    own prefix, as TLCR's code does, it teaches a policy nothing about its last token.
    """
    if kind == "exact":
        kl = torch.cat([torch.where(mask, kl, 0.0)[:, 1:], torch.zeros_like(kl[:, :1])], 1)
    return torch.where(mask, rewards - weight * kl, 0.0)


def entropy(logits: Float[Tensor, "*place vocab"]) -> Float[Tensor, "*place"]:
    """Return the entropy of the next token at every prefix, in nats."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def explained_variance(
    values: Float[Tensor, "batch tokens"],
    returns: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over the tokens; 0 if returns do not vary."""
    own, wanted = values[mask], returns[mask]
    if len(own) < 2 or not (variance := wanted.var().item()):
        return 0.0
    return 1 - (wanted - own).var().item() / variance


def mean(values: Float[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"]) -> Float[Tensor, ""]:
    """Return the mean over the tokens of a batch."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
