"""Guided log-probabilities to the next token, and what the step cost in KL.

With candidates C, temperature T, base b = softmax(log pi / T) and guided policy q, both on C:
guidance_kl = KL(q || b) and total_kl = KL(q || pi), exact for every step.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_HALVINGS = 24  # of a KL budget's bisection: the weight is found to 1 part in 16 million


def normalise(
    scores: Float[Tensor, "batch candidates"], temperature: float | Float[Tensor, "batch 1"]
) -> Float[Tensor, "batch candidates"]:
    """Return log softmax(scores / T)."""
    return (scores / temperature).log_softmax(1)


def draw(guided: Float[Tensor, "batch candidates"], uniforms: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Return the candidate at which the cumulative probability passes the row's uniform number (inverse transform).

    Candidates come likeliest first under the LM, so rows with equal uniforms stay close when the guidance is weak:
    base and guided samples of one seed are paired.
    """
    probabilities = guided.exp()
    cumulative = probabilities.cumsum(1)
    # Rounding may leave the total below the uniform number: the last possible candidate ends the line.
    possible = torch.arange(guided.shape[1], device=guided.device) * (probabilities > 0)
    passed = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(1)
    return torch.minimum(passed, possible.amax(1))


def kl_divergence(
    guided: Float[Tensor, "batch candidates"], base: Float[Tensor, "batch candidates"]
) -> Float[Tensor, " batch"]:
    """Return KL(guided || base) in nats, with 0 log 0 = 0. `base` may be unnormalised here (pi itself)."""
    terms = guided.exp() * (guided - base)
    return torch.where(guided == float("-inf"), 0.0, terms).sum(1)


def within_budget(
    policy: Callable[[Float[Tensor, "batch 1"]], Float[Tensor, "batch candidates"]],
    base: Float[Tensor, "batch candidates"],
    weight: float | Float[Tensor, "batch 1"],
    allowance: Float[Tensor, " batch"],
) -> Float[Tensor, "batch 1"]:
    """Return for each row the largest weight from 0 to `weight` whose policy q has KL(q || base) <= allowance.

    An additive guidance tilts the base by exp(w f(r)), so d KL / d w = w Var_q(f(r)) / T^2: the divergence grows with
    |w|, and bisection finds where it passes the allowance. The lower end is returned: it is never exceeded.

    Args:
        policy: weights -> normalised guided log-probabilities.
    """

    def exceeds(share: Tensor) -> Bool[Tensor, "batch 1"]:
        kl = kl_divergence(policy(weight * share), base)
        return (kl.to(allowance.dtype) > allowance)[:, None]

    low = base.new_zeros(len(base), 1)
    high = base.new_ones(len(base), 1)
    over = exceeds(high)
    if not bool(over.any()):
        return weight * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_much = exceeds(middle)
        low, high = torch.where(too_much, low, middle), torch.where(too_much, middle, high)
    return weight * torch.where(over, low, 1.0)


def largest_shift(base: Float[Tensor, "batch candidates"], spread: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Bound how far exp(f) can change `base` in total variation, for any f whose values differ by at most `spread`.

    Raising a set of probability a by e^spread moves g(a) = a (1 - a) (e^s - 1) / (1 + a (e^s - 1)) to it, which grows
    up to a* = 1 / (1 + e^(s/2)), where it is tanh(s / 4). A set without the likeliest candidate holds at most
    1 - max b, a set with it at least max b; while 1 - max b <= a*, nothing moves more than g(1 - max b).
    """
    rest = 1 - base.exp().amax(1)
    gain = spread.clamp(max=80.0).expm1()
    moved = rest * (1 - rest) * gain / (1 + rest * gain)
    best = 1 / (1 + (spread / 2).clamp(max=80.0).exp())
    return torch.where(rest <= best, moved, (spread / 4).tanh())


def greedy_gap(logprobs: Float[Tensor, "batch candidates"]) -> Float[Tensor, " batch"]:
    """Return how far the likeliest candidate lies above the next: no smaller spread can change a greedy choice."""
    if logprobs.shape[1] == 1:
        return logprobs.new_full((len(logprobs),), math.inf)
    first, second = logprobs.topk(2, dim=1).values.unbind(1)
    return first - second


def row_uniforms(seed: int, tokens: int) -> Float[np.ndarray, " tokens"]:
    """Return a row's uniform numbers in [0, 1), one a step: a function of its own seed only."""
    return np.random.default_rng(seed).random(tokens)


def uniforms_now(uniforms: Sequence[float], device: torch.device) -> Float[Tensor, " batch"]:
    """Return the rows' uniform numbers of one step as a tensor."""
    # fp64 if the device has it: in fp32 a draw may round to 1, which no cumulative probability passes.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.tensor(uniforms, dtype=dtype, device=device)
