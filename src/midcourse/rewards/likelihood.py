"""Figures of how likely a text is under a language model, each token given those before: the zero-shot detectors.

Of every token four numbers are needed, all from one forward pass. With p the model's distribution there:

    logprob    log p(x_t)
    rank       1 + how many tokens are likelier than x_t
    entropy    - sum_v p(v) log p(v)
    variance   sum_v p(v) (log p(v))^2 - entropy^2

Every statistic has its sign such that a higher one means more like a machine.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

TINY = 1e-6  # what a variance or a sum of log-ranks is at least
CHUNK = 128  # positions that pass the output matrix together; fewer cost more, since it is brought up each time
ROWS = 4  # positions whose figures are taken together: their logits stay in a processor's cache


class TokenFigures(NamedTuple):
    """Four numbers of each token of a text but its first, each an array of shape (tokens - 1,)."""

    logprob: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray
    variance: np.ndarray


def token_figures(
    logits: Callable[[Float[Tensor, "tokens hidden"]], Float[Tensor, "tokens vocab"]],
    states: Float[Tensor, "tokens hidden"],
    targets: Int[Tensor, " tokens"],
) -> Float[Tensor, "tokens 4"]:
    """Return logprob, rank, entropy and variance of every target, given the final state before it.

    The vocabulary is passed over in chunks of few positions, so that no more than these are ever in memory.

    Args:
        logits: the model's output matrix, as a function of final states.
    """
    parts = []
    for begin in range(0, len(targets), CHUNK):
        rows = logits(states[begin : begin + CHUNK]).float()
        wanted = targets[begin : begin + CHUNK, None]
        parts += [_of_logits(rows[i : i + ROWS], wanted[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
    return torch.cat(parts) if parts else states.new_zeros(0, 4, dtype=torch.float32)


def _of_logits(logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, "tokens 1"]) -> Float[Tensor, "tokens 4"]:
    """Return the figures by few passes over the vocabulary; the logits are overwritten."""
    wanted = logits.gather(1, targets)
    rank = (logits > wanted).sum(1, keepdim=True) + 1
    highest = logits.amax(1, keepdim=True)
    logits.sub_(highest)
    weights = logits.exp()
    total = weights.sum(1, keepdim=True)
    first = torch.linalg.vecdot(weights, logits)[:, None] / total
    second = torch.linalg.vecdot(weights.mul_(logits), logits)[:, None] / total
    log_total = total.log()
    # With l = log p + log total: E log p = E l - log total, and the variance of l is that of log p.
    return torch.cat([wanted - highest - log_total, rank, log_total - first, second - first.square()], 1)


def log_likelihood(tokens: TokenFigures) -> float:
    """Return the mean log-probability."""
    return float(tokens.logprob.mean())


def negative_rank(tokens: TokenFigures) -> float:
    """Return minus the mean rank."""
    return -float(tokens.rank.mean())


def negative_log_rank(tokens: TokenFigures) -> float:
    """Return minus the mean log-rank."""
    return -float(np.log(tokens.rank).mean())


def negative_entropy(tokens: TokenFigures) -> float:
    """Return minus the mean entropy."""
    return -float(tokens.entropy.mean())


def lrr(tokens: TokenFigures) -> float:
    """Return - log p / log rank, each summed over the text (Su et al., DetectLLM, 2023, arXiv 2306.05540)."""
    return -float(tokens.logprob.sum() / max(np.log(tokens.rank).sum(), TINY))


def fast_detect_gpt(tokens: TokenFigures) -> float:
    """Return Fast-DetectGPT's curvature in closed form, the model being its own reference.

    (sum_t log p(x_t) - sum_t mu_t) / sqrt(sum_t var_t), with mu_t = - entropy_t (Bao et al., 2024, arXiv 2310.05130,
    equation 6): how much likelier the text is than what the model would write in its place, in standard deviations.
    """
    return float((tokens.logprob + tokens.entropy).sum() / np.sqrt(max(tokens.variance.sum(), TINY)))


STATISTICS: Mapping[str, Callable[[TokenFigures], float]] = {
    "log-likelihood": log_likelihood,
    "rank": negative_rank,
    "log-rank": negative_log_rank,
    "entropy": negative_entropy,
    "lrr": lrr,
    "fast-detectgpt": fast_detect_gpt,
}
