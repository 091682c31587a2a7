"""Guided log-probabilities to the next token, and what the step cost in KL.

With candidates C, temperature T, base b = softmax(log pi / T) and guided policy q, both on C:
guidance_kl = KL(q || b) and total_kl = KL(q || pi), exact for every step.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def normalise(scores: Float[Tensor, "batch candidates"], temperature: float) -> Float[Tensor, "batch candidates"]:
    """log softmax(scores / T)."""
    return (scores / temperature).log_softmax(1)


def draw(guided: Float[Tensor, "batch candidates"], uniforms: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """The candidate at which the cumulative probability passes the row's uniform number (inverse transform).

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
    """KL(guided || base) in nats, with 0 log 0 = 0. `base` may be unnormalised over these candidates (pi itself)."""
    terms = guided.exp() * (guided - base)
    return torch.where(guided == float("-inf"), 0.0, terms).sum(1)


def row_uniforms(seeds: Sequence[int], max_new_tokens: int, device: torch.device) -> Float[Tensor, "batch tokens"]:
    """Each row's uniform numbers in [0, 1), one a step: a function of the row's own seed only."""
    drawn = [np.random.default_rng(seed).random(max_new_tokens) for seed in seeds]
    # fp64 where the device has it: in fp32 a draw may round to 1, which no cumulative probability passes.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.from_numpy(np.stack(drawn)).to(device=device, dtype=dtype)
