"""Reward-guided decoding in plain lines: one row, no cache, every candidate a full forward.

Slow on purpose. It says what the fast code computes, and tests hold the fast code to it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from midcourse.decode.methods import Method
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Prompt, prompt_ids
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.vocabulary import VocabularyReward

ModelReward: TypeAlias = RewardModel | VocabularyReward


class ReferenceStep(NamedTuple):
    """One token with its figures, as `decode.steps.Step` has them."""

    token_id: int
    logprob: float
    reference_logprob: float
    reward: float
    guidance_kl: float | None
    total_kl: float


def pargs(
    lm: LanguageModel,
    reward: RewardModel,
    prompt: Prompt,
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    **settings: Any,
) -> list[ReferenceStep]:
    """Sample a response from softmax((log pi + w r) / T) over the LM's top k, token by token (PARGS).

    `settings` are those of `decode.methods.Method`.
    """
    method = replace(Method(reward_weight=2.0), **settings)
    return decode(lm, [(reward, 1.0)], prompt, method, max_new_tokens=max_new_tokens, seed=seed)


@torch.inference_mode()
def decode(
    lm: LanguageModel,
    guides: Sequence[tuple[ModelReward, float]],
    prompt: Prompt,
    method: Method,
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> list[ReferenceStep]:
    """Write a response token by token under any method that guides tokens."""
    assert method.guide is not None
    ids = prompt_ids(lm.tokenizer, prompt, guides[0][0].template)
    start = len(ids)
    uniforms = np.random.default_rng(seed).random(max_new_tokens)
    temperature = 1.0 if method.greedy else method.temperature
    steps = []
    for t in range(max_new_tokens):
        log_pi = language_model_logprobs(lm, ids)
        order = log_pi
        if method.ranked_by == "sum":
            every = torch.arange(len(log_pi))
            order = guided(method, guides, log_pi, [rewards_of(reward, ids, start, every) for reward, _ in guides])
        candidates = torch.arange(len(log_pi)) if method.top_k is None else order.argsort(descending=True)
        candidates = nucleus(log_pi, candidates[: method.top_k], method.top_p, temperature)
        rewards = [rewards_of(reward, ids, start, candidates) for reward, _ in guides]
        log_b = (log_pi[candidates] / temperature).log_softmax(0)
        log_q = (guided(method, guides, log_pi[candidates], rewards) / temperature).log_softmax(0)
        if method.greedy:
            j = int(log_q.argmax())
            figures = (0.0, float(-log_b[j]), float(-log_pi[candidates[j]]))
        else:
            q = log_q.exp()
            j = inverse_transform(q, uniforms[t])
            kl_base, kl_lm = (q * (log_q - log_b)).sum(), (q * (log_q - log_pi[candidates])).sum()
            figures = (float(log_q[j]), float(kl_base), float(kl_lm))
        token = int(candidates[j])
        reward = sum(own * float(row[j]) for row, (_, own) in zip(rewards, guides, strict=True))
        guidance_kl = figures[1] if method.ranked_by == "lm" else None
        steps.append(ReferenceStep(token, figures[0], float(log_pi[token]), reward, guidance_kl, figures[2]))
        if token in lm.eos_token_ids:
            break
        ids.append(token)
    return steps


def guided(
    method: Method, guides: Sequence[tuple[ModelReward, float]], log_pi: Tensor, rewards: Sequence[Tensor]
) -> Tensor:
    """Apply the method's equation once for each reward."""
    assert method.guide is not None
    scores = log_pi[None]
    for row, (_, own) in zip(rewards, guides, strict=True):
        scores = method.guide(scores, row[None], method.reward_weight * own)
    return scores[0]


def nucleus(log_pi: Tensor, candidates: Tensor, top_p: float, temperature: float) -> Tensor:
    """Return the likeliest candidates until they hold `top_p` of their probability, in the candidates' order."""
    probabilities = (log_pi[candidates] / temperature).softmax(0)
    kept: set[int] = set()
    mass = 0.0
    for j in probabilities.argsort(descending=True).tolist():
        if kept and mass >= top_p:
            break
        kept.add(j)
        mass += float(probabilities[j])
    return candidates[[j for j in range(len(candidates)) if j in kept]]


def language_model_logprobs(lm: LanguageModel, ids: list[int]) -> Tensor:
    """Return log pi(v | ids) for every token v, shape (vocab,)."""
    logits = lm.model(torch.tensor([ids], device=lm.model.device), use_cache=False).logits[0, -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(0)


def rewards_of(reward: ModelReward, ids: list[int], start: int, candidates: Tensor) -> Tensor:
    """Return the reward of the row, whose response begins at `start`, extended by each candidate."""
    if isinstance(reward, VocabularyReward):
        logits = reward.model(torch.tensor([ids], device=reward.model.device), use_cache=False).logits[0, -1]
        return reward.read(logits)[candidates]
    return torch.stack([prefix_reward(reward, [*ids, int(v)], start) for v in candidates])


def prefix_reward(reward: RewardModel, ids: list[int], start: int) -> Tensor:
    """Return the reward of a whole row, read at its last token. Any EOS of the LM counts as the one of training."""
    ids = [*ids[:-1], reward.info.eos_token_id if ids[-1] in reward.info.eos_token_ids else ids[-1]]
    row, starts = (torch.tensor(numbers, device=reward.device) for numbers in ([ids], [start]))
    return reward.of_responses(row, torch.ones_like(row, dtype=torch.bool), starts)[0, -1]


def inverse_transform(probabilities: Tensor, uniform: float) -> int:
    """Return the first index at which the cumulative probability passes `uniform`."""
    cumulative = probabilities.cumsum(0).tolist()
    return next(j for j, passed in enumerate(cumulative) if passed > uniform * cumulative[-1])
