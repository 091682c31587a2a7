"""The loop: prompts in, one Step per token and row out. Each line of `_decode` is a file of this folder."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from midcourse.decode.blocks import stream_blocks
from midcourse.decode.candidates import Candidates, nucleus, short_list
from midcourse.decode.choice import draw, greedy_gap, largest_shift, normalise, uniforms_now, within_budget
from midcourse.decode.methods import (
    AnyMethod,
    BestOfN,
    Limits,
    LogitsProcessor,
    Method,
    MethodError,
    check_limits,
    with_settings,
)
from midcourse.decode.methods import method as named_method
from midcourse.decode.steps import Generation, Row, Step, as_steps, processed, remaining
from midcourse.lm.language_model import LanguageModel, LanguageModelRows
from midcourse.lm.prompt import Prefix, Prompt, PromptError, Template, prompt_ids
from midcourse.lm.text import TextStream
from midcourse.rewards.contract import (
    ReadsStates,
    Reward,
    RewardError,
    RewardRows,
    StateReader,
    VocabularyRows,
    adds_up,
)

Guides: TypeAlias = Sequence[tuple[Reward, float]]
Event: TypeAlias = tuple[int, Step | Generation]


def generate(
    lm: LanguageModel, prompts: Sequence[Prompt], reward: Reward | Guides | None = None, **settings: Any
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
    reward: Reward | Guides | None = None,
    *,
    method: str | AnyMethod = "pargs",
    template: Template | None = None,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
    always_offer_eos: bool = False,
    kl_per_token: float | None = None,
    kl_budget: float | None = None,
    skip_tolerance: float | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 16,
    logits_processor: LogitsProcessor | None = None,
    keep_all: bool = False,
    **settings: Any,
) -> Iterator[Event]:
    """Yield (row, Step) for every token as it is drawn, and (row, Generation) when a row is finished.

    Args:
        lm: the language model; it is not changed.
        prompts: texts or chat messages.
        reward: what guides, or several as (reward, weight) pairs, whose weighted rewards add up. Not needed by method
            "plain" or weight 0, which decode the LM alone.
        method: a name from `METHODS`, or one of its kinds with settings of your own.
        template: how prompts become tokens; by default the reward's own, else "raw".
        stop: a response ends before the first of these strings.
        always_offer_eos: EOS is a candidate even where the LM does not rank it among the top k.
        kl_per_token: each token has the largest weight up to the method's whose guidance KL is within these nats.
        kl_budget: the same for the whole response.
        skip_tolerance: where the LM is so sure that no reward within the range seen so far in the row could change the
            choice by more than this in total variation, the token is drawn from the LM and the reward reads it later.
            For a greedy method any tolerance means: where the choice cannot change. A pass is saved where all rows of
            a batch are so sure.
        seed: row i uses seed + i; a sequence gives every row its own.
        batch_size: rows decoded together. A finished row's place goes to the next prompt; a row's sample does not
            depend on its neighbours.
        logits_processor: called with (token ids of prompt and response, log-probabilities) before the short list;
            what it sets to -inf stays impossible.
        keep_all: the Generation of best-of-n holds all its samples.
        settings: those of the method: `reward_weight`, `top_k`, `top_p`, `temperature`, `samples`, ... (None: its own;
            a lone reward that was stored with a weight, as the shipped ones are, brings that).

    Raises:
        MethodError, PromptError, RewardError: a setting, prompt or reward that cannot be used, before any decoding.
    """
    if max_new_tokens < 1:
        raise MethodError(f"max-new-tokens {max_new_tokens} asks for no token; use 1 or more")
    if batch_size < 1:
        raise MethodError(f"batch-size {batch_size} holds no row; use 1 or more")
    limits = Limits(always_offer_eos, kl_per_token, kl_budget, skip_tolerance, logits_processor)
    given = as_guides(reward)
    chosen, guides = settled(lm, method, settings, given, limits)
    if keep_all and not isinstance(chosen, BestOfN):
        raise MethodError("only best-of-n has several samples to keep; leave keep-all out")
    # At weight 0 nothing guides, but the rewards' template holds all the same.
    template = agreed_template(guides or given[:1], template)
    rows = encode(lm, [guide for guide, _ in guides], prompts, template, max_new_tokens)
    seeds = [seed + i for i in range(len(rows))] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(rows):
        raise MethodError(f"{len(seeds)} seeds for {len(rows)} prompts; give one each, or a single number")
    if min(seeds, default=0) < 0:
        raise MethodError(f"seed {min(seeds)} is negative; use 0 or more")
    stop = [stop] if isinstance(stop, str) else stop
    if "" in stop:
        raise MethodError("an empty stop string would end every response at once; leave it out")
    queue = [
        Row.begin(i, prefix, row_seed, TextStream(lm.tokenizer, stop), max_new_tokens)
        for i, (prefix, row_seed) in enumerate(zip(rows, seeds, strict=True))
    ]
    if isinstance(chosen, Method):
        return _without_gradients(decode_rows(lm, queue, guides, chosen, limits, max_new_tokens, batch_size))
    return _without_gradients(stream_blocks(lm, queue, guides, chosen, limits, max_new_tokens, batch_size, keep_all))


def settled(
    lm: LanguageModel,
    method: str | AnyMethod,
    settings: dict[str, Any],
    guides: Guides,
    limits: Limits,
) -> tuple[AnyMethod, list[tuple[Reward, float]]]:
    """The method with its settings, and the rewards as they read the LM's tokens: none where none has a say.

    Raises:
        MethodError, RewardError: settings, limits and rewards that do not go together.
    """
    name = method if isinstance(method, str) else type(method).__name__
    chosen = named_method(method) if isinstance(method, str) else method
    if isinstance(method, str) and isinstance(chosen, Method) and chosen.guide and len(guides) == 1:
        # A lone reward may know the weight that suits it.
        chosen = with_settings(chosen, name, {"reward_weight": getattr(guides[0][0], "reward_weight", None)})
    chosen = with_settings(chosen, name, settings)
    if isinstance(chosen, Method) and chosen.temperature == 0:
        chosen = replace(chosen, greedy=True)
    if isinstance(chosen, Method) and (chosen.guide is None or chosen.reward_weight == 0):
        guides = []
        chosen = replace(chosen, guide=None, reward_weight=0.0, ranked_by="lm", soft_value=False)
    elif not guides:
        raise MethodError(f"method {name} needs a reward; give one, or use method 'plain'")
    check_limits(chosen, name, limits)
    if not isinstance(chosen, Method) and any(isinstance(guide, ReadsStates) for guide, _ in guides):
        raise MethodError(f"method {name} judges blocks, a trunk reward guides tokens; use pargs or another reward")
    bound = [(guide.bind(lm), weight) for guide, weight in guides]
    if not isinstance(chosen, Method | BestOfN) and any(adds_up(guide) for guide, _ in bound):
        raise MethodError(
            f"method {name} judges a block by its last prefix, and this reward is of tokens; use best-of-n or genarm"
        )
    check_soft_value(chosen, bound)
    return chosen, bound


def _without_gradients(events: Iterator[Event]) -> Iterator[Event]:
    """The events, each made in inference mode; who reads them stays in the mode they are in."""
    while True:
        with torch.inference_mode():
            event = next(events, None)
        if event is None:
            return
        yield event


def as_guides(reward: Reward | Guides | None) -> list[tuple[Reward, float]]:
    """Rewards with their own weights: a lone reward has 1."""
    if reward is None:
        return []
    guides = [(reward, 1.0)] if isinstance(reward, Reward) else [(guide, float(own)) for guide, own in reward]
    for _, own in guides:
        if not math.isfinite(own):
            raise MethodError(f"reward weight {own} is not a finite number; give one, such as 2")
    return guides


def agreed_template(guides: Guides, template: Template | None) -> Template:
    """The one template of all rewards; RewardError where they, or the one asked for, differ.

    A reward that was trained on both kinds of prompts goes with any.
    """
    rendered = [reward.template for reward, _ in guides if reward.template is not None]
    for reward, _ in guides:
        if reward.template in (None, "mixed"):
            continue
        template = template or reward.template
        if template != reward.template:
            raise RewardError(
                f"the reward was trained with template {reward.template!r}, not {template!r}; "
                f"use --template {reward.template}"
            )
    return template or ("mixed" if rendered else "raw")


def check_soft_value(chosen: AnyMethod, guides: Guides) -> None:
    """Raise RewardError where a soft value would be used at another weight than its own, or is none."""
    if not isinstance(chosen, Method) or not chosen.soft_value:
        return
    for reward, own in guides:
        made_for = getattr(reward, "soft_value_weight", None)
        if made_for is None:
            raise RewardError("soft-value needs a reward trained to estimate (1/w) log E exp(w R); use method 'cd'")
        if not math.isclose(made_for, own * chosen.reward_weight, rel_tol=1e-9):
            raise RewardError(
                f"this soft value is exact at weight {made_for:g} only, not at {own * chosen.reward_weight:g}; "
                f"use --reward-weight {made_for:g} or method 'cd'"
            )


def encode(
    lm: LanguageModel, rewards: Sequence[Reward], prompts: Sequence[Prompt], template: Template, max_new_tokens: int
) -> list[Prefix]:
    """The prompts in the LM's tokens, each checked to leave room for the response."""
    if isinstance(prompts, str):
        raise PromptError("the prompts are a single text; give a list of texts")
    rows = [Prefix(prompt, prompt_ids(lm.tokenizer, prompt, template), template=template) for prompt in prompts]
    check_room(lm, rewards, rows, max_new_tokens)
    return rows


def check_room(lm: LanguageModel, rewards: Sequence[Reward], prefixes: Sequence[Prefix], max_new_tokens: int) -> None:
    """Raise PromptError where a prompt leaves no room for the response."""
    context = min([lm.context_length, *(reward.context_length for reward in rewards)])
    for number, prefix in enumerate(prefixes, 1):
        if len(prefix.prompt_ids) + max_new_tokens > context:
            raise PromptError(
                f"prompt {number} has {len(prefix.prompt_ids)} tokens, which with {max_new_tokens} new ones exceed the "
                f"context of {context}; shorten it or lower --max-new-tokens"
            )


def decode_rows(
    lm: LanguageModel,
    queue: list[Row],
    guides: Guides,
    chosen: Method,
    limits: Limits,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[Event]:
    """Decode every row; a finished one's place goes to the next in the queue."""
    waiting = deque(queue)
    rows = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
    device = lm.model.device
    always = torch.tensor(sorted(lm.eos_token_ids), device=device) if limits.always_offer_eos else None
    room = min(chosen.top_k or 0, lm.model.config.vocab_size) + (0 if always is None else len(always))
    own = [weight for _, weight in guides]
    layers = [guide.layer for guide, _ in guides if isinstance(guide, ReadsStates)]

    def begin(some: Sequence[Row]) -> tuple[LanguageModelRows, list[RewardRows]]:
        """Rows of the language model and of every reward at those prefixes."""
        begun = lm.start([row.prefix.token_ids for row in some], max_new_tokens, layers)
        under = [guide.start([row.prefix for row in some], max_new_tokens, room) for guide, _ in guides]
        for found in under:
            if isinstance(found, StateReader):
                found.follow(begun)
        return begun, under

    if rows:
        lm_rows, guide_rows = begin(rows)
        check_vocabulary(chosen, guide_rows)

    while rows:
        logprobs = processed(limits.logits_processor, rows, lm_rows.logprobs)
        candidates, rewards = offer(logprobs, guide_rows, own, chosen, always)
        base = normalise(candidates.logprobs, chosen.policy_temperature)
        skipped = _skippable(rows, base, candidates, chosen, limits)
        if guides and rewards is None and not all(skipped):
            rewards = [found.candidate_rewards(candidates.token_ids) for found in guide_rows]
        guided, weights = policy_of(rows, candidates, rewards, own, base, skipped, chosen, limits)
        index = guided.argmax(1) if chosen.greedy else draw(guided, uniforms_now([r.uniform for r in rows], device))
        steps = as_steps(candidates, _weighted(rewards, own), base, guided, index, weights, skipped, chosen)
        token_ids = candidates.token_ids.gather(1, index[:, None])[:, 0]

        rated = _rated(candidates, rewards, skipped, chosen, logprobs.shape[1])
        reasons = []
        for row, step, count in zip(rows, steps, rated, strict=True):
            row.rated += count
            ended = step.token_id in lm.eos_token_ids
            reasons.append(row.push(step, ended=ended, last=len(row.steps) + 1 == max_new_tokens))
            yield row.number, row.steps[-1]
        final = _final_rewards(rows, reasons, guides, guide_rows, token_ids)
        for row, reason, reward in zip(rows, reasons, final, strict=True):
            if reason:
                yield row.number, row.finished(reason, reward)

        # Finished rows leave, but for as many as have a successor, which takes their place.
        ended_places = [place for place, reason in enumerate(reasons) if reason]
        successors = [waiting.popleft() for _ in range(min(len(ended_places), len(waiting)))]
        leaving = set(ended_places[len(successors) :])
        kept = remaining(len(rows), leaving)
        places = [kept.index(place) for place in ended_places[: len(successors)]]
        rows = [rows[place] for place in kept]
        if leaving and rows:
            token_ids = token_ids[kept]
            lm_rows.select(kept)
            for found in guide_rows:
                found.select(kept)
        if len(places) < len(rows):
            lm_rows.step(token_ids)
            for found in guide_rows:
                found.advance(token_ids)
        if places:
            begun, under = begin(successors)
            lm_rows.replace(places, begun)
            for found, other in zip(guide_rows, under, strict=True):
                found.replace(places, other)
        for place, row in zip(places, successors, strict=True):
            rows[place] = row


def check_vocabulary(chosen: Method, guide_rows: Sequence[RewardRows]) -> None:
    """Raise MethodError where a method ranks the whole vocabulary and a reward does not speak for it."""
    if chosen.ranked_by == "sum" and not all(isinstance(found, VocabularyRows) for found in guide_rows):
        raise MethodError(
            "this method ranks the whole vocabulary, which takes a vocabulary reward; "
            "use pargs with a reward of prefixes or texts"
        )


def offer(
    logprobs: Tensor, guide_rows: Sequence[RewardRows], own: Sequence[float], chosen: Method, always: Tensor | None
) -> tuple[Candidates, list[Tensor] | None]:
    """The candidates; their rewards too where the rewards of the whole vocabulary took part in choosing them."""
    if chosen.ranked_by == "sum" and chosen.guide:
        spoken = [found.vocabulary_rewards() for found in guide_rows if isinstance(found, VocabularyRows)]
        order = _guide(logprobs, spoken, own, chosen, chosen.reward_weight)
        candidates = short_list(logprobs, chosen.top_k, always, order)
        rewards = [reward.gather(1, candidates.token_ids) for reward in spoken]
    else:
        candidates, rewards = short_list(logprobs, chosen.top_k, always), None
    return nucleus(candidates, chosen.top_p, chosen.policy_temperature), rewards


def _guide(
    logprobs: Tensor, rewards: Sequence[Tensor], own: Sequence[float], chosen: Method, weight: float | Tensor
) -> Tensor:
    """The method's equation, one reward after the other, each at its own weight times the common one."""
    assert chosen.guide is not None
    for reward, share in zip(rewards, own, strict=True):
        logprobs = chosen.guide(logprobs, reward, weight * share)
    return logprobs


def _weighted(rewards: Sequence[Tensor] | None, own: Sequence[float]) -> Tensor | None:
    """The rewards' weighted sum; a lone reward as it is."""
    if not rewards:
        return None
    return sum((share * reward for reward, share in zip(rewards[1:], own[1:], strict=True)), own[0] * rewards[0])


def _skippable(rows: Sequence[Row], base: Tensor, candidates: Candidates, chosen: Method, limits: Limits) -> list[bool]:
    """Which rows' choices no reward within the range seen so far could change by more than the tolerance."""
    if limits.skip_tolerance is None:
        return [False] * len(rows)
    seen = torch.tensor([math.inf if row.spread is None else row.spread for row in rows], device=base.device)
    if chosen.greedy:
        return (seen < greedy_gap(candidates.logprobs)).tolist()
    return (largest_shift(base, seen / chosen.temperature) <= limits.skip_tolerance).tolist()


def policy_of(
    rows: Sequence[Row],
    candidates: Candidates,
    rewards: Sequence[Tensor] | None,
    own: Sequence[float],
    base: Tensor,
    skipped: Sequence[bool],
    chosen: Method,
    limits: Limits,
) -> tuple[Tensor, list[float]]:
    """(log q, the weight of each row). Rows remember how far their rewards spread."""
    if chosen.guide is None or rewards is None:
        return base, [0.0] * len(rows)

    def policy(weight: float | Tensor) -> Tensor:
        return normalise(_guide(candidates.logprobs, rewards, own, chosen, weight), chosen.policy_temperature)

    used: Tensor = base.new_full((len(rows), 1), chosen.reward_weight)
    if limits.kl_per_token is not None or limits.kl_budget is not None:
        left = [
            min(math.inf if limits.kl_per_token is None else limits.kl_per_token, _left(row, limits)) for row in rows
        ]
        allowance = torch.tensor(left, dtype=torch.float64, device="cpu").to(base.device)
        used = within_budget(policy, base, chosen.reward_weight, allowance)
    if any(skipped):
        used = used.masked_fill(torch.tensor(skipped, device=base.device)[:, None], 0.0)
    if limits.skip_tolerance is not None:
        _remember_spread(rows, candidates, rewards, own, skipped, chosen)
    return policy(used), used[:, 0].tolist()


def _left(row: Row, limits: Limits) -> float:
    """Nats that the response's budget leaves to the next step, a rounding error less."""
    return math.inf if limits.kl_budget is None else max(limits.kl_budget * (1 - 1e-9) - row.spent, 0.0)


def _remember_spread(
    rows: Sequence[Row],
    candidates: Candidates,
    rewards: Sequence[Tensor],
    own: Sequence[float],
    skipped: Sequence[bool],
    chosen: Method,
) -> None:
    possible = candidates.logprobs > -math.inf
    added = _guide(torch.zeros_like(candidates.logprobs), rewards, own, chosen, chosen.reward_weight)
    spread = added.masked_fill(~possible, -math.inf).amax(1) - added.masked_fill(~possible, math.inf).amin(1)
    for row, value, skip in zip(rows, spread.tolist(), skipped, strict=True):
        # What a skipped row did not ask for, its neighbours' pass must not tell it.
        if not skip:
            row.spread = value if row.spread is None else max(row.spread, value)


def _rated(
    candidates: Candidates, rewards: Sequence[Tensor] | None, skipped: Sequence[bool], chosen: Method, vocabulary: int
) -> list[int]:
    """How many next tokens of each row had their rewards computed in a step."""
    if rewards is None:
        return [0] * len(skipped)
    if chosen.ranked_by == "sum":
        return [vocabulary] * len(skipped)
    counts = (candidates.logprobs > -math.inf).sum(1).tolist()
    return [0 if skip else count for count, skip in zip(counts, skipped, strict=True)]


def _final_rewards(
    rows: Sequence[Row],
    reasons: Sequence[str | None],
    guides: Guides,
    guide_rows: Sequence[RewardRows],
    token_ids: Tensor,
) -> list[float | None]:
    """The reward of each finished response: its last step's, or where that was skipped, read now.

    Of rewards that add up it is the sum of all steps'; None where one was skipped, or where only some of them do.
    """
    if any(adds_up(guide) for guide, _ in guides):
        alike = all(adds_up(guide) for guide, _ in guides)
        known = [[step.reward for step in row.steps if step.reward is not None] for row in rows]
        return [
            sum(found) if alike and len(found) == len(row.steps) else None
            for row, found in zip(rows, known, strict=True)
        ]
    own = [weight for _, weight in guides]
    final = [row.steps[-1].reward for row in rows]
    missing = [place for place, reason in enumerate(reasons) if reason and final[place] is None]
    if missing and guide_rows:
        for found in guide_rows:
            found.advance(token_ids)
        read = _weighted([found.prefix_rewards() for found in guide_rows], own)
        assert read is not None
        for place in missing:
            final[place] = float(read[place])
        for found in guide_rows:
            found.rewind([1] * len(rows))
    return final
