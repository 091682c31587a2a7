"""Reward-guided decoding in plain lines: one row, no cache, every candidate a full forward.

Slow on purpose. It says what the fast code computes, and tests hold the fast code to it.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from midcourse.language_model import LanguageModel
from midcourse.prompt import Prompt, prompt_ids
from midcourse.reward_model import RewardModel


class ReferenceStep(NamedTuple):
    """One token with its figures, as `decode.loop.Step` has them."""

    token_id: int
    logprob: float
    reference_logprob: float
    reward: float
    guidance_kl: float
    total_kl: float


@torch.inference_mode()
def pargs(
    lm: LanguageModel,
    reward: RewardModel,
    prompt: Prompt,
    *,
    reward_weight: float = 2.0,
    top_k: int = 10,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
    greedy: bool = False,
) -> list[ReferenceStep]:
    """Sample a response from softmax((log pi + w r) / T) over the LM's top k, token by token (PARGS)."""
    ids = prompt_ids(lm.tokenizer, prompt, reward.template)
    uniforms = np.random.default_rng(seed).random(max_new_tokens)
    steps = []
    for t in range(max_new_tokens):
        log_pi = language_model_logprobs(lm, ids)
        candidates = log_pi.argsort(descending=True)[:top_k]
        rewards = torch.stack([prefix_reward(reward, [*ids, int(v)]) for v in candidates])
        log_b = (log_pi[candidates] / temperature).log_softmax(0)
        log_q = ((log_pi[candidates] + reward_weight * rewards) / temperature).log_softmax(0)
        if greedy:
            j = int(log_q.argmax())
            figures = (0.0, float(-log_b[j]), float(-log_pi[candidates[j]]))
        else:
            j = inverse_transform(log_q.exp(), uniforms[t])
            q = log_q.exp()
            kl_base, kl_lm = (q * (log_q - log_b)).sum(), (q * (log_q - log_pi[candidates])).sum()
            figures = (float(log_q[j]), float(kl_base), float(kl_lm))
        token = int(candidates[j])
        steps.append(ReferenceStep(token, figures[0], float(log_pi[token]), float(rewards[j]), figures[1], figures[2]))
        if token in lm.eos_token_ids:
            break
        ids.append(token)
    return steps


def language_model_logprobs(lm: LanguageModel, ids: list[int]) -> Tensor:
    """log pi(v | ids) for every token v, shape (vocab,)."""
    logits = lm.model(torch.tensor([ids], device=lm.model.device), use_cache=False).logits[0, -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(0)


def prefix_reward(reward: RewardModel, ids: list[int]) -> Tensor:
    """The reward of a whole row, read at its last token. Any EOS of the LM counts as the one of training."""
    ids = [*ids[:-1], reward.info.eos_token_id if ids[-1] in reward.info.eos_token_ids else ids[-1]]
    return reward(input_ids=torch.tensor([ids], device=reward.device))[0, -1]


def inverse_transform(probabilities: Tensor, uniform: float) -> int:
    """The first index at which the cumulative probability passes `uniform`."""
    cumulative = probabilities.cumsum(0).tolist()
    return next(j for j, passed in enumerate(cumulative) if passed > uniform * cumulative[-1])
