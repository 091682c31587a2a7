"""What decoding yields: a Step for every token, a Generation for every response."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from midcourse.decode.candidates import Candidates
from midcourse.decode.choice import kl_divergence, row_uniforms
from midcourse.decode.methods import BlockMethod, Limits, Method
from midcourse.lm.prompt import Prefix, Prompt
from midcourse.lm.text import TextStream
from midcourse.rewards.contract import Reward

_LISTED = 20  # candidates reported of a whole vocabulary

Guides: TypeAlias = Sequence[tuple[Reward, float]]


@dataclass(frozen=True)
class ScoredCandidate:
    """A candidate of a step: its token, log-probability under the LM, and reward (None if none was computed)."""

    token_id: int
    logprob: float
    reward: float | None


@dataclass(frozen=True)
class Step:
    """One emitted token. All figures are natural logs, rewards, or nats.

    Attributes:
        token_id: the token.
        text: the text that became certain with it: whole characters, "" while one is incomplete.
        logprob: of the token under the guided policy, over the candidates.
        reference_logprob: of the token under the language model, over its vocabulary.
        reward: of the prefix that ends with the token, of several rewards their weighted sum; None if none was
            computed (weight 0, a step that was skipped, the inside of a block).
        weight: the reward's weight at this step: what a KL budget left of it, 0 if it was skipped.
        guidance_kl: KL(q || b) of this step; for greedy choices -log b of the token; None for methods whose policy
            leaves the base's candidates, and inside blocks.
        total_kl: KL(q || pi) of this step; for greedy choices -log pi of the token; None inside blocks. The steps of a
            best-of-n response have that of the plain policy that drew them.
        candidates: the short list, likeliest first under the LM, with each candidate's reward; of a whole vocabulary
            the likeliest 20 of the guided policy.
    """

    token_id: int
    text: str
    logprob: float
    reference_logprob: float
    reward: float | None
    weight: float
    guidance_kl: float | None
    total_kl: float | None
    candidates: tuple[ScoredCandidate, ...] = field(repr=False)


@dataclass(frozen=True)
class Generation:
    """A finished response.

    Attributes:
        prompt: as it was given.
        text: the response without EOS and stop string.
        steps: one per token; their texts joined are `text`.
        finish_reason: "stop" (EOS or a stop string) or "length".
        reward: of the whole response; None if no reward guides.
        guidance_kl, total_kl: summed over the steps, in nats; None if a step has none. Of best-of-n the first is
            the bound log n - (n - 1) / n, and the second None.
        prompt_tokens: length of the prompt in tokens.
        seed: the row's own.
        samples: all responses among which best-of-n chose, if they were asked for.
        rated: how often a reward was computed for it: of candidates, the whole vocabulary if a method ranks it, of
            blocks or of samples.
    """

    prompt: Prompt
    text: str
    steps: tuple[Step, ...]
    finish_reason: str
    reward: float | None
    guidance_kl: float | None
    total_kl: float | None
    prompt_tokens: int
    seed: int
    samples: tuple["Generation", ...] = ()
    rated: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Failure:
    """A request that could not be finished, and why."""

    error: Exception


Event: TypeAlias = tuple[int, Step | Generation | Failure]  # the number of a request, and what has become of it


Failures: TypeAlias = dict[int, Exception]  # what went wrong with rows, by their places in a batch


@dataclass
class Row:
    """A row on its way: what it was asked, and what it has emitted.

    Attributes:
        number: of its request.
        text: the text of the response as it grows.
        uniforms: a number in [0, 1) for every step; as many as tokens may come.
        method: how its tokens are drawn; inside blocks, plainly.
        guides: what guides its tokens, or judges its blocks, each with its weight.
        block: how its blocks are chosen, if a reward chooses among blocks.
        sample: which of its request's samples it is, in best-of-n.
        spent: nats of guidance so far.
        spread: the widest range of weighted rewards seen in one step.
        rated: how many rewards were computed for it.
        read: of a sample of best-of-n, what rewards of the language model's own states say of it, by their identity.
    """

    number: int
    prefix: Prefix
    seed: int
    text: TextStream
    uniforms: np.ndarray
    method: Method
    guides: Guides
    limits: Limits
    steps: list[Step] = field(default_factory=list)
    block: BlockMethod | None = None
    sample: int = 0
    spent: float = 0.0
    spread: float | None = None
    rated: int = 0
    read: dict[int, float] = field(default_factory=dict)

    @classmethod
    def begin(
        cls,
        number: int,
        prefix: Prefix,
        seed: int,
        text: TextStream,
        max_new_tokens: int,
        method: Method,
        guides: Guides,
        limits: Limits,
        block: BlockMethod | None = None,
    ) -> "Row":
        uniforms = row_uniforms(seed, max_new_tokens)
        return cls(number, prefix, seed, text, uniforms, method, tuple(guides), limits, block=block)

    @property
    def max_new_tokens(self) -> int:
        """Return the most tokens that the response may have."""
        return len(self.uniforms)

    @property
    def rewards(self) -> tuple[Reward, ...]:
        """Return the rewards that guide the row's tokens or judge its blocks."""
        return tuple(reward for reward, _ in self.guides)

    @property
    def last_token(self) -> int:
        """Return the newest token of the response."""
        return self.steps[-1].token_id

    def branch(self, uniforms: np.ndarray) -> "Row":
        """Return the row as it stands, to be continued apart from it by other uniform numbers."""
        return replace(self, text=self.text.copy(), uniforms=uniforms, steps=list(self.steps))

    @property
    def so_far(self) -> Prefix:
        """Return the prompt and the response so far, to start from."""
        return self.prefix._replace(response_ids=[step.token_id for step in self.steps])

    @property
    def uniform(self) -> float:
        """Return the uniform number of the next step."""
        return float(self.uniforms[len(self.steps)])

    @property
    def token_ids(self) -> list[int]:
        """Return the token ids of the prompt and the response so far."""
        return [*self.prefix.prompt_ids, *(step.token_id for step in self.steps)]

    def push(self, step: Step, eos_token_ids: Collection[int]) -> str | None:
        """Append a step with the text that becomes certain with it; return why the row is finished with it, if it is.

        Args:
            eos_token_ids: the tokens that end a response.
        """
        ended = step.token_id in eos_token_ids
        last = len(self.steps) + 1 == self.max_new_tokens
        piece = "" if ended else self.text.push(step.token_id)
        if (ended or last) and not self.text.stopped:
            piece += self.text.finish()
        self.steps.append(replace(step, text=piece))
        self.spent += step.guidance_kl or 0.0
        if ended or self.text.stopped:
            return "stop"
        return "length" if last else None

    def finished(self, reason: str, reward: float | None) -> Generation:
        """Return the row as a response."""
        return Generation(
            prompt=self.prefix.prompt,
            text="".join(step.text for step in self.steps),
            steps=tuple(self.steps),
            finish_reason=reason,
            reward=reward,
            guidance_kl=_total([step.guidance_kl for step in self.steps]),
            total_kl=_total([step.total_kl for step in self.steps]),
            prompt_tokens=len(self.prefix.prompt_ids),
            seed=self.seed,
            rated=self.rated,
        )


def _total(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def as_steps(
    candidates: Candidates,
    rewards: Tensor | None,
    base: Tensor,
    guided: Tensor,
    index: Tensor,
    weights: Sequence[float],
    skipped: Sequence[bool],
    method: Method,
) -> list[Step]:
    """Return each row's step, its text still to come."""
    picked = index[:, None]
    reference = candidates.logprobs.gather(1, picked)[:, 0]
    if method.greedy:
        guidance_kl, total_kl = -base.gather(1, picked)[:, 0], -reference
        logprob = torch.zeros_like(reference)
    else:
        guidance_kl, total_kl = kl_divergence(guided, base), kl_divergence(guided, candidates.logprobs)
        logprob = guided.gather(1, picked)[:, 0]
    columns = torch.stack([logprob, reference, guidance_kl, total_kl], 1).tolist()
    picked_ids = candidates.token_ids.gather(1, picked)[:, 0].tolist()
    scores = rewards.gather(1, picked)[:, 0].tolist() if rewards is not None else [None] * len(picked_ids)
    listed = _listed(candidates, rewards, guided, method)
    skipped = skipped or [False] * len(picked_ids)
    return [
        Step(
            token_id=picked_ids[i],
            text="",
            logprob=columns[i][0],
            reference_logprob=columns[i][1],
            reward=None if skipped[i] else scores[i],
            weight=weights[i],
            guidance_kl=columns[i][2] if method.ranked_by == "lm" else None,
            total_kl=columns[i][3],
            candidates=tuple(
                ScoredCandidate(token, logprob, None if skipped[i] else reward)
                for token, logprob, reward in listed[i]
                if logprob > -math.inf
            ),
        )
        for i in range(len(picked_ids))
    ]


def _listed(
    candidates: Candidates, rewards: Tensor | None, guided: Tensor, method: Method
) -> list[list[tuple[int, float, float | None]]]:
    """Return the candidates to report: all that were short-listed, of a whole vocabulary the likeliest."""
    ids, logprobs = candidates
    if method.top_k is None:
        best = guided.topk(min(_LISTED, guided.shape[1]), dim=1).indices
        ids, logprobs = ids.gather(1, best), logprobs.gather(1, best)
        rewards = rewards.gather(1, best) if rewards is not None else None
    scores: list[list[float | None]] = (
        rewards.tolist() if rewards is not None else [[None] * ids.shape[1] for _ in range(len(ids))]
    )
    return [list(zip(*row, strict=True)) for row in zip(ids.tolist(), logprobs.tolist(), scores, strict=True)]


def remaining(count: int, leaving: set[int]) -> list[int]:
    """Return the places that stay of `count`, the last ones moved into the holes: little is copied."""
    places = list(range(count))
    for hole in sorted(leaving, reverse=True):
        last = places.pop()
        if hole < len(places):
            places[hole] = last
    return places
