"""What decoding yields: a Step for every token, a Generation for every response."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from midcourse.decode.choice import row_uniforms
from midcourse.decode.methods import LogitsProcessor, MethodError
from midcourse.decode.text import TextStream
from midcourse.prompt import Prefix, Prompt


@dataclass(frozen=True)
class ScoredCandidate:
    """A candidate of a step: its token, log-probability under the LM, and reward (None where none was computed)."""

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
        reward: of the prefix that ends with the token, of several rewards their weighted sum; None where none was
            computed (weight 0, a step that was skipped, the inside of a block).
        weight: the reward's weight at this step: what a KL budget left of it, 0 where it was skipped.
        guidance_kl: KL(q || b) of this step; for greedy choices -log b of the token; None for methods whose policy
            leaves the base's candidates, and inside blocks.
        total_kl: KL(q || pi) of this step; for greedy choices -log pi of the token; None inside blocks.
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
        reward: of the whole response; None where no reward guides.
        guidance_kl, total_kl: summed over the steps, in nats; None where a step has none. For best-of-n the bounds
            that hold for the choice of one in n.
        prompt_tokens: length of the prompt in tokens.
        seed: the row's own.
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


@dataclass
class Row:
    """A row on its way: what it was asked, and what it has emitted."""

    number: int
    prefix: Prefix
    seed: int
    text: TextStream
    uniforms: np.ndarray
    steps: list[Step] = field(default_factory=list)
    spent: float = 0.0  # nats of guidance so far
    spread: float | None = None  # widest range of weighted rewards seen in one step

    @classmethod
    def begin(cls, number: int, prefix: Prefix, seed: int, text: TextStream, max_new_tokens: int) -> "Row":
        return cls(number, prefix, seed, text, row_uniforms(seed, max_new_tokens))

    @property
    def uniform(self) -> float:
        """The uniform number of the next step."""
        return float(self.uniforms[len(self.steps)])

    @property
    def token_ids(self) -> list[int]:
        """Prompt and response so far."""
        return [*self.prefix.prompt_ids, *(step.token_id for step in self.steps)]

    def push(self, step: Step, *, ended: bool, last: bool) -> str | None:
        """Append a step with the text that becomes certain with it; why the row is finished with it, if it is.

        Args:
            ended: the token ends texts.
            last: no token may follow.
        """
        piece = "" if ended else self.text.push(step.token_id)
        if (ended or last) and not self.text.stopped:
            piece += self.text.finish()
        self.steps.append(replace(step, text=piece))
        self.spent += step.guidance_kl or 0.0
        if ended or self.text.stopped:
            return "stop"
        return "length" if last else None

    def finished(self, reason: str, reward: float | None) -> Generation:
        """The row as a response."""
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
        )


def _total(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def processed(
    logits_processor: LogitsProcessor | None, rows: Sequence[Row], logprobs: Float[Tensor, "batch vocab"]
) -> Float[Tensor, "batch vocab"]:
    """The log-probabilities after an earlier processor, row by row: each sees its own prompt and response, unpadded.

    Raises:
        MethodError: it leaves a row no token.
    """
    if logits_processor is None:
        return logprobs
    found = []
    for i, row in enumerate(rows):
        found.append(logits_processor(torch.tensor([row.token_ids], device=logprobs.device), logprobs[i : i + 1]))
        if bool((found[-1] == float("-inf")).all()):
            raise MethodError(
                f"the logits processor leaves prompt {row.number + 1} no token at step {len(row.steps) + 1}; "
                "it has to leave at least one"
            )
    return torch.cat(found)
