"""Log-probabilities to the few tokens worth scoring."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Candidates(NamedTuple):
    """Short-listed next tokens.

    Attributes:
        token_ids: likeliest first.
        logprobs: under the language model, over its whole vocabulary; -inf marks a place without a candidate.
    """

    token_ids: Int[Tensor, "batch candidates"]
    logprobs: Float[Tensor, "batch candidates"]


def short_list(
    logprobs: Float[Tensor, "batch vocab"], top_k: int, always: Int[Tensor, " always"] | None = None
) -> Candidates:
    """The LM's `top_k` likeliest tokens (PARGS and ARGS take 10), and those of `always` (EOS) wherever they rank.

    A token of `always` that is among the top k already gets a place with log-probability -inf instead of a second one.
    """
    values, ids = logprobs.topk(min(top_k, logprobs.shape[1]), dim=1)
    if always is None:
        return Candidates(ids, values)
    extra = always.expand(len(logprobs), -1)
    listed = (extra[:, :, None] == ids[:, None, :]).any(2)
    extra_values = logprobs.gather(1, extra).masked_fill(listed, float("-inf"))
    return Candidates(torch.cat([ids, extra], 1), torch.cat([values, extra_values], 1))
