"""The loop: prompts in, one Step per token and row out. Each line of `_decode` is a file of this folder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from midcourse.decode.candidates import Candidates, short_list
from midcourse.decode.choice import draw, kl_divergence, normalise, row_uniforms
from midcourse.decode.methods import Method, MethodError
from midcourse.decode.methods import method as named_method
from midcourse.decode.text import TextStream
from midcourse.language_model import LanguageModel
from midcourse.prompt import Prompt, PromptError, Template, prompt_ids
from midcourse.reward_model import Reward, RewardError


@dataclass(frozen=True)
class Step:
    """One emitted token. All figures are natural logs, rewards, or nats.

    Attributes:
        token_id: the token.
        text: the text that became certain with it: whole characters, "" while one is incomplete.
        logprob: of the token under the guided policy, over the candidates.
        reference_logprob: of the token under the language model, over its vocabulary.
        reward: of the prefix that ends with the token; None where no reward was computed (weight 0).
        weight: the reward's weight at this step.
        guidance_kl: KL(q || b) of this step; for greedy choices -log b of the token.
        total_kl: KL(q || pi) of this step; for greedy choices -log pi of the token.
        candidates: the short list, likeliest first under the LM, with each candidate's reward.
    """

    token_id: int
    text: str
    logprob: float
    reference_logprob: float
    reward: float | None
    weight: float
    guidance_kl: float
    total_kl: float
    candidates: tuple["ScoredCandidate", ...] = field(repr=False)


@dataclass(frozen=True)
class ScoredCandidate:
    """A candidate of a step: its token, log-probability under the LM, and reward (None at weight 0)."""

    token_id: int
    logprob: float
    reward: float | None


@dataclass(frozen=True)
class Generation:
    """A finished response.

    Attributes:
        prompt: as it was given.
        text: the response without EOS and stop string.
        steps: one per token; their texts joined are `text`.
        finish_reason: "stop" (EOS or a stop string) or "length".
        reward: of the whole response; None at weight 0.
        guidance_kl, total_kl: summed over the steps, in nats.
        prompt_tokens: length of the prompt in tokens.
        seed: the row's own.
    """

    prompt: Prompt
    text: str
    steps: tuple[Step, ...]
    finish_reason: str
    reward: float | None
    guidance_kl: float
    total_kl: float
    prompt_tokens: int
    seed: int


def generate(
    lm: LanguageModel, prompts: Sequence[Prompt], reward: Reward | None = None, **settings: Any
) -> list[Generation]:
    """Continue each prompt; `settings` are those of `stream`. Generations come in the order of the prompts.

    Example:
        >>> generate(lm, ["The ferry was late, and"], reward, max_new_tokens=24, seed=1)[0].text
    """
    done: dict[int, Generation] = {}
    for row, event in stream(lm, prompts, reward, **settings):
        if isinstance(event, Generation):
            done[row] = event
    return [done[row] for row in range(len(prompts))]


def stream(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    reward: Reward | None = None,
    *,
    method: str | Method = "pargs",
    reward_weight: float | None = None,
    top_k: int | None = None,
    temperature: float | None = None,
    template: Template | None = None,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    always_offer_eos: bool = False,
    seed: int | Sequence[int] = 0,
    batch_size: int = 16,
    logits_processor: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[tuple[int, Step | Generation]]:
    """Yield (row, Step) for every token as it is drawn, and (row, Generation) when a row is finished.

    Args:
        lm: the language model; it is not changed.
        prompts: texts or chat messages.
        reward: what guides; not needed by method "plain" or weight 0, which decode the LM alone.
        method: a name from `METHODS` or a Method; `reward_weight`, `top_k` and `temperature` override its settings.
        template: how prompts become tokens; by default the reward's own, else "raw".
        stop: a response ends before the first of these strings.
        always_offer_eos: EOS is a candidate even where the LM does not rank it among the top k.
        seed: row i uses seed + i; a sequence gives every row its own.
        batch_size: rows decoded together; a row's sample does not depend on it.
        logits_processor: called with (token ids of prompt and response, log-probabilities) before the short list;
            what it sets to -inf stays impossible.

    Raises:
        MethodError, PromptError, RewardError: a setting, prompt or reward that cannot be used, before any decoding.
    """
    chosen = named_method(method) if isinstance(method, str) else method
    given: dict[str, Any] = {"reward_weight": reward_weight, "top_k": top_k, "temperature": temperature}
    chosen = replace(chosen, **{name: value for name, value in given.items() if value is not None})
    check_settings(chosen, max_new_tokens, batch_size)
    if chosen.temperature == 0:
        chosen = replace(chosen, greedy=True)
    if chosen.guide is None or chosen.reward_weight == 0:
        template = template or (reward.template if reward else "raw")
        reward, chosen = None, replace(chosen, guide=None, reward_weight=0.0)
    elif reward is None:
        raise MethodError("this method needs a reward; give one, or use method 'plain'")
    else:
        reward.check(lm)
        template = template or reward.template
        if template != reward.template:
            raise RewardError(
                f"the reward was trained with template {reward.template!r}, not {template!r}; "
                f"use --template {reward.template}"
            )
    rows = encode(lm, reward, prompts, template, max_new_tokens)
    seeds = [seed + i for i in range(len(rows))] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(rows):
        raise MethodError(f"{len(seeds)} seeds for {len(rows)} prompts; give one each, or a single number")
    if min(seeds, default=0) < 0:
        raise MethodError(f"seed {min(seeds)} is negative; use 0 or more")
    stop = [stop] if isinstance(stop, str) else stop
    if "" in stop:
        raise MethodError("an empty stop string would end every response at once; leave it out")
    for begin in range(0, len(rows), batch_size):
        part = slice(begin, begin + batch_size)
        batch = [
            _Row(begin + i, prompt, ids, row_seed, TextStream(lm.tokenizer, stop))
            for i, (prompt, ids, row_seed) in enumerate(zip(prompts[part], rows[part], seeds[part], strict=True))
        ]
        yield from _decode(lm, batch, reward, chosen, max_new_tokens, always_offer_eos, logits_processor)


def encode(
    lm: LanguageModel, reward: Reward | None, prompts: Sequence[Prompt], template: Template, max_new_tokens: int
) -> list[list[int]]:
    """Token ids of the prompts, each checked to leave room for the response."""
    if isinstance(prompts, str):
        raise PromptError("the prompts are a single text; give a list of texts")
    rows = [prompt_ids(lm.tokenizer, prompt, template) for prompt in prompts]
    context = min(lm.context_length, reward.context_length) if reward else lm.context_length
    for number, row in enumerate(rows, 1):
        if len(row) + max_new_tokens > context:
            raise PromptError(
                f"prompt {number} has {len(row)} tokens, which with {max_new_tokens} new ones exceed the context of "
                f"{context}; shorten it or lower --max-new-tokens"
            )
    return rows


def check_settings(chosen: Method, max_new_tokens: int, batch_size: int) -> None:
    """Raise MethodError on a setting that makes no sense."""
    number = float(chosen.reward_weight)
    if number != number or number in (float("inf"), float("-inf")):
        raise MethodError(f"reward weight {number} is not a finite number; give one, such as 2")
    if chosen.top_k < 1:
        raise MethodError(f"top-k {chosen.top_k} leaves no candidates; use 1 or more")
    if not 0 <= chosen.temperature < float("inf"):
        raise MethodError(
            f"temperature {chosen.temperature} is not a number of 0 or more; use 1 for the paper's setting"
        )
    if max_new_tokens < 1:
        raise MethodError(f"max-new-tokens {max_new_tokens} asks for no token; use 1 or more")
    if batch_size < 1:
        raise MethodError(f"batch-size {batch_size} holds no row; use 1 or more")


@dataclass
class _Row:
    """A row on its way: what it was asked, and what it has emitted."""

    number: int
    prompt: Prompt
    prompt_ids: list[int]
    seed: int
    text: TextStream
    steps: list[Step] = field(default_factory=list)

    def finished(self, reason: str) -> Generation:
        return Generation(
            prompt=self.prompt,
            text="".join(step.text for step in self.steps),
            steps=tuple(self.steps),
            finish_reason=reason,
            reward=self.steps[-1].reward,
            guidance_kl=sum(step.guidance_kl for step in self.steps),
            total_kl=sum(step.total_kl for step in self.steps),
            prompt_tokens=len(self.prompt_ids),
            seed=self.seed,
        )


@torch.inference_mode()
def _decode(
    lm: LanguageModel,
    rows: list[_Row],
    reward: Reward | None,
    chosen: Method,
    max_new_tokens: int,
    always_offer_eos: bool,
    logits_processor: Callable[[Tensor, Tensor], Tensor] | None,
) -> Iterator[tuple[int, Step | Generation]]:
    """Decode one batch to its end; finished rows leave it."""
    device = lm.model.device
    prompts = [row.prompt_ids for row in rows]
    uniforms = row_uniforms([row.seed for row in rows], max_new_tokens, device)
    always = torch.tensor(sorted(lm.eos_token_ids), device=device) if always_offer_eos else None
    lm_rows = lm.start(prompts, max_new_tokens)
    room = min(chosen.top_k, lm_rows.logprobs.shape[1]) + (0 if always is None else len(always))
    reward_rows = reward.start(prompts, max_new_tokens, room) if reward else None

    for t in range(max_new_tokens):
        logprobs = lm_rows.logprobs
        if logits_processor:
            logprobs = _process(logits_processor, rows, logprobs)
        candidates = short_list(logprobs, chosen.top_k, always)
        rewards = reward_rows.candidate_rewards(candidates.token_ids) if reward_rows else None
        base, guided = policies(candidates, rewards, chosen)
        index = guided.argmax(1) if chosen.greedy else draw(guided, uniforms[:, t])
        steps = _steps(candidates, rewards, base, guided, index, chosen)

        going = []
        for i, (row, step) in enumerate(zip(rows, steps, strict=True)):
            ended = step.token_id in lm.eos_token_ids
            last = ended or t + 1 == max_new_tokens
            piece = "" if ended else row.text.push(step.token_id)
            if last and not row.text.stopped:
                piece += row.text.finish()
            row.steps.append(replace(step, text=piece))
            yield row.number, row.steps[-1]
            if ended or row.text.stopped:
                yield row.number, row.finished("stop")
            elif last:
                yield row.number, row.finished("length")
            else:
                going.append(i)
        if not going:
            return
        token_ids = candidates.token_ids.gather(1, index[:, None])[:, 0]
        if len(going) < len(rows):
            kept = torch.tensor(going, device=device)
            rows = [rows[i] for i in going]
            token_ids, index, uniforms = token_ids[kept], index[kept], uniforms[kept]
            lm_rows.select(kept)
            if reward_rows:
                reward_rows.select(kept)
        lm_rows.step(token_ids)
        if reward_rows:
            reward_rows.advance(index)


def policies(candidates: Candidates, rewards: Tensor | None, chosen: Method) -> tuple[Tensor, Tensor]:
    """(log b, log q) over the candidates: the LM's own policy there and the guided one, both at the temperature.

    A greedy choice has no temperature: its base is taken at 1.
    """
    temperature = 1.0 if chosen.greedy else chosen.temperature
    base = normalise(candidates.logprobs, temperature)
    if chosen.guide is None or rewards is None:
        return base, base
    return base, normalise(chosen.guide(candidates.logprobs, rewards, chosen.reward_weight), temperature)


def _steps(
    candidates: Candidates, rewards: Tensor | None, base: Tensor, guided: Tensor, index: Tensor, chosen: Method
) -> list[Step]:
    """Each row's step, its text still to come."""
    picked = index[:, None]
    reference = candidates.logprobs.gather(1, picked)[:, 0]
    if chosen.greedy:
        guidance_kl, total_kl = -base.gather(1, picked)[:, 0], -reference
        logprob = torch.zeros_like(reference)
    else:
        guidance_kl, total_kl = kl_divergence(guided, base), kl_divergence(guided, candidates.logprobs)
        logprob = guided.gather(1, picked)[:, 0]
    columns = torch.stack([logprob, reference, guidance_kl, total_kl], 1).tolist()
    tokens, logprobs = candidates.token_ids.tolist(), candidates.logprobs.tolist()
    scores = rewards.tolist() if rewards is not None else [[None] * len(row) for row in tokens]
    return [
        Step(
            token_id=tokens[i][j],
            text="",
            logprob=columns[i][0],
            reference_logprob=columns[i][1],
            reward=scores[i][j],
            weight=chosen.reward_weight,
            guidance_kl=columns[i][2],
            total_kl=columns[i][3],
            candidates=tuple(
                ScoredCandidate(*scored)
                for scored in zip(tokens[i], logprobs[i], scores[i], strict=True)
                if scored[1] > float("-inf")
            ),
        )
        for i, j in enumerate(index.tolist())
    ]


def _process(logits_processor: Callable[[Tensor, Tensor], Tensor], rows: list[_Row], logprobs: Tensor) -> Tensor:
    """Apply an earlier processor row by row: each sees its own prompt and response, without padding."""
    processed = []
    for i, row in enumerate(rows):
        token_ids = torch.tensor([row.prompt_ids + [step.token_id for step in row.steps]], device=logprobs.device)
        processed.append(logits_processor(token_ids, logprobs[i : i + 1]))
        if bool((processed[-1] == float("-inf")).all()):
            raise MethodError(
                f"the logits processor leaves prompt {row.number + 1} no token at step {len(row.steps) + 1}; "
                "it has to leave at least one"
            )
    return torch.cat(processed)
