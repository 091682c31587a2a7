"""Log-probabilities to the few tokens worth scoring."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Candidates(NamedTuple):
    """Short-listed next tokens.

    Attributes:
        token_ids: likeliest first; by id if the whole vocabulary is listed.
        logprobs: under the language model, over its whole vocabulary; -inf marks a place without a candidate.
    """

    token_ids: Int[Tensor, "batch candidates"]
    logprobs: Float[Tensor, "batch candidates"]


def short_list(
    logprobs: Float[Tensor, "batch vocab"],
    top_k: int | None,
    always: Int[Tensor, " always"] | None = None,
    order: Float[Tensor, "batch vocab"] | None = None,
) -> Candidates:
    """Return the `top_k` likeliest tokens (PARGS and ARGS take 10), and those of `always` (EOS) wherever they rank.

    A token of `always` that is among the top k already gets a place with log-probability -inf instead of a second one.

    Args:
        top_k: None for the whole vocabulary.
        order: what ranks the tokens instead of the LM's log-probabilities (FaRMA: their sum with the rewards).
    """
    if top_k is None:
        ids = torch.arange(logprobs.shape[1], device=logprobs.device).expand(len(logprobs), -1)
        return Candidates(ids, logprobs)
    ids = (logprobs if order is None else order).topk(min(top_k, logprobs.shape[1]), dim=1).indices
    values = logprobs.gather(1, ids)
    if always is None:
        return Candidates(ids, values)
    extra = always.expand(len(logprobs), -1)
    listed = (extra[:, :, None] == ids[:, None, :]).any(2)
    extra_values = logprobs.gather(1, extra).masked_fill(listed, float("-inf"))
    return Candidates(torch.cat([ids, extra], 1), torch.cat([values, extra_values], 1))


def nucleus(candidates: Candidates, top_p: float, temperature: float | Float[Tensor, "batch 1"]) -> Candidates:
    """Keep the likeliest candidates that together hold `top_p` of softmax(log pi / T), and set the others to -inf.

    Nucleus sampling (Holtzman et al., 2020), after the short list as in transformers. The likeliest always stays.
    """
    if top_p >= 1:
        return candidates
    probabilities = (candidates.logprobs / temperature).softmax(1)
    order = probabilities.argsort(dim=1, descending=True)
    ranked = probabilities.gather(1, order)
    beyond = ranked.cumsum(1) - ranked >= top_p
    beyond[:, 0] = False
    outside = torch.zeros_like(beyond).scatter(1, order, beyond)
    return candidates._replace(logprobs=candidates.logprobs.masked_fill(outside, float("-inf")))
