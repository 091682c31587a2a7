"""The tokens of prompts, as the language model expected them: what completions with `echo` tell of."""

from typing import Any

import torch

from midcourse.decode.request import Request
from midcourse.lm.language_model import LanguageModel, log_probabilities
from midcourse.lm.prompt import prompt_ids


@torch.inference_mode()
def prompt_columns(lm: LanguageModel, request: Request, top: int) -> dict[str, list[Any]]:
    """Return a prompt's tokens in columns, as `logprobs` of a completion has them; of the first nobody expected any.

    Args:
        top: how many of the likeliest tokens to tell of at each place.
    """
    ids = list(request.prompt_ids or prompt_ids(lm.tokenizer, request.prompt, request.template))
    logprobs = log_probabilities(lm.model(torch.tensor([ids], device=lm.device)).logits[0], len(lm.tokenizer))
    texts = [lm.tokenizer.decode([one], skip_special_tokens=False) for one in ids]
    own = [None, *(logprobs[place, one].item() for place, one in enumerate(ids[1:]))]
    best = logprobs[:-1].topk(min(max(top, 1), logprobs.shape[1]), -1)
    named = [
        {lm.tokenizer.decode([one]): value for one, value in zip(*reversed(row), strict=True)}
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    offsets = [sum(map(len, texts[:place])) for place in range(len(texts))]
    nothing = [None] * len(ids)
    return {
        "tokens": texts,
        "token_logprobs": own,
        "top_logprobs": [None, *named],
        "text_offset": offsets,
        "base_logprob": own,
        "reward": nothing,
        "weight": nothing,
        "items": nothing,
    }
