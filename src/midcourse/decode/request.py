"""What one prompt is asked with: a request, checked as far as can be without the language model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from midcourse.decode.methods import (
    AnyMethod,
    BestOfN,
    Limits,
    LogitsProcessor,
    Method,
    MethodError,
    check,
    check_limits,
    check_whole,
    with_settings,
)
from midcourse.decode.methods import method as named_method
from midcourse.decode.steps import Guides
from midcourse.errors import short_value
from midcourse.lm.contract import CausalModel
from midcourse.lm.prompt import Prefix, Prompt, PromptError, Template, prompt_ids
from midcourse.rewards.contract import Reward, short
from midcourse.rewards.info import RewardError


@dataclass(frozen=True)
class Request:
    """A prompt, how its response is to be written, and what guides it.

    Attributes:
        prompt: a text or chat messages.
        guides: what guides, each reward with its own weight; their weighted rewards add up. Empty if nothing does.
        method: the method with all its settings.
        limits: budgets and the like.
        template: how the prompt becomes tokens.
        max_new_tokens: the most tokens of the response.
        stop: the response ends before the first of these strings.
        seed: of the response.
        keep_all: the response of best-of-n holds all its samples.
        name: what messages call the method.
        prompt_ids: the prompt's tokens, where they are others than the tokenizer gives its text.

    Raises:
        MethodError: when it is made with settings that make no sense, or not together.

    Examples:
        >>> request = Request.of("The ferry was late, and", reward, method="pargs", max_new_tokens=24)
        >>> number = engine.add(request)
    """

    prompt: Prompt
    guides: Guides = ()
    method: AnyMethod = field(default_factory=lambda: named_method("plain"))
    limits: Limits = field(default_factory=Limits)
    template: Template = "raw"
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    seed: int = 0
    keep_all: bool = False
    name: str = "method"
    prompt_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.max_new_tokens)
        check_whole("seed", self.seed)
        if self.max_new_tokens < 1:
            raise MethodError(f"max-new-tokens {self.max_new_tokens} asks for no token; use 1 or more")
        if self.seed < 0:
            raise MethodError(f"seed {self.seed} is negative; use 0 or more")
        if "" in self.stop:
            raise MethodError("an empty stop string would end every response at once; leave it out")
        if self.keep_all and not isinstance(self.method, BestOfN):
            raise MethodError("only best-of-n has several samples to keep; leave keep-all out")
        check(self.method)
        check_limits(self.method, self.name, self.limits)
        check_guides(self.method, self.name, self.guides)

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        reward: Reward | Guides | None = None,
        *,
        method: str | AnyMethod = "pargs",
        template: Template | None = None,
        max_new_tokens: int = 64,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        keep_all: bool = False,
        always_offer_eos: bool = False,
        kl_per_token: float | None = None,
        kl_budget: float | None = None,
        skip_tolerance: float | None = None,
        logits_processor: LogitsProcessor | None = None,
        prompt_ids: tuple[int, ...] | None = None,
        **settings: Any,
    ) -> "Request":
        """Make a request of the settings of `midcourse.generate`; those of the method that are None are its own."""
        given = as_guides(reward)
        name = method if isinstance(method, str) else type(method).__name__
        filled, guides = settled(method, settings, given)
        return cls(
            prompt,
            guides,
            filled,
            Limits(always_offer_eos, kl_per_token, kl_budget, skip_tolerance, logits_processor),
            # At weight 0 nothing guides, but the rewards' template holds all the same.
            agreed_template(guides or given[:1], template),
            max_new_tokens,
            (stop,) if isinstance(stop, str) else tuple(stop),
            seed,
            keep_all,
            name,
            prompt_ids,
        )

    def of_prompt(self, prompt: Prompt, seed: int) -> "Request":
        """Return the same request for another prompt."""
        return replace(self, prompt=prompt, seed=seed)


def as_guides(reward: Reward | Guides | None) -> Guides:
    """Return rewards with their own weights: a lone reward has 1.

    Raises:
        RewardError, MethodError: what is no reward, or no number for its weight.
    """
    if reward is None:
        return ()
    if isinstance(reward, str) or not isinstance(reward, Sequence):
        return ((_a_reward(reward), 1.0),)
    return tuple(_a_pair(pair) for pair in reward)


def _a_pair(pair: Any) -> tuple[Reward, float]:
    """Return one of several rewards with its weight."""
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise RewardError("several rewards come each with its weight; give them as [(reward, weight), ...]")
    reward, own = pair
    try:
        weight = math.nan if isinstance(own, str) else float(own)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not math.isfinite(weight):
        raise MethodError(f"reward weight {short_value(own)} is not a finite number; give one, such as 2")
    return _a_reward(reward), weight


def _a_reward(reward: Any) -> Reward:
    """Return the reward; RewardError if it is something else, with what makes a reward of it."""
    if isinstance(reward, str | Path):
        name = str(reward)
        raise RewardError(f"{short(name)} is the name of a reward; load it with load_reward({short(name)})")
    if not isinstance(reward, type) and all(callable(getattr(reward, own, None)) for own in ("bind", "start")):
        return reward
    if callable(reward) and not isinstance(reward, type):
        name = getattr(reward, "__name__", None) or type(reward).__name__
        raise RewardError(f"{name} is a function, not a reward; make one of it with FunctionReward({name})")
    kind = f"the class {reward.__name__}" if isinstance(reward, type) else f"an object of type {type(reward).__name__}"
    raise RewardError(f"{kind} is no reward; give one that load_reward returns, or several as [(reward, weight), ...]")


def settled(method: str | AnyMethod, settings: dict[str, Any], guides: Guides) -> tuple[AnyMethod, Guides]:
    """Return the method with its settings, and the rewards that have a say: none at weight 0.

    A lone reward that was stored with a weight brings it to a method that is named.

    Raises:
        MethodError: settings that the method does not have, or no reward for a method that needs one.
    """
    name = method if isinstance(method, str) else type(method).__name__
    filled = named_method(method) if isinstance(method, str) else method
    if isinstance(method, str) and isinstance(filled, Method) and filled.guide and len(guides) == 1:
        filled = with_settings(filled, name, {"reward_weight": guides[0][0].reward_weight})
    filled = with_settings(filled, name, settings)
    if isinstance(filled, Method) and filled.temperature == 0:
        filled = replace(filled, greedy=True)
    if isinstance(filled, Method) and (filled.guide is None or filled.reward_weight == 0):
        return replace(filled, guide=None, reward_weight=0.0, ranked_by="lm", soft_value=False), ()
    if not guides:
        raise MethodError(f"method {name} needs a reward; give one, or use method 'plain'")
    return filled, guides


def check_guides(method: AnyMethod, name: str, guides: Guides) -> None:
    """Raise MethodError or RewardError if a method cannot use a reward."""
    for reward, own in guides:
        if not isinstance(method, Method | BestOfN) and reward.additive:
            raise MethodError(
                f"method {name} judges a block by its last prefix, and this reward is of tokens; "
                "use best-of-n or genarm"
            )
        if isinstance(method, Method) and method.ranked_by == "sum" and not reward.speaks_for_vocabulary:
            raise MethodError(
                "this method ranks the whole vocabulary, which takes a vocabulary reward; "
                "use pargs with a reward of prefixes or texts"
            )
        if isinstance(method, Method) and method.soft_value:
            _check_soft_value(method, reward, own)


def _check_soft_value(method: Method, reward: Reward, own: float) -> None:
    """Raise RewardError if a soft value would be used at another weight than its own, or is none."""
    made_for = reward.soft_value_weight
    if made_for is None:
        raise RewardError("soft-value needs a reward trained to estimate (1/w) log E exp(w R); use method 'cd'")
    if not math.isclose(made_for, own * method.reward_weight, rel_tol=1e-9):
        raise RewardError(
            f"this soft value is exact at weight {made_for:g} only, not at {own * method.reward_weight:g}; "
            f"use --reward-weight {made_for:g} or method 'cd'"
        )


def agreed_template(guides: Guides, template: Template | None) -> Template:
    """Return the one template of all rewards; RewardError if they, or the one asked for, differ.

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


def encode(
    lm: CausalModel, rewards: Sequence[Reward], prompts: Sequence[Prompt], template: Template, max_new_tokens: int
) -> list[Prefix]:
    """Return the prompts in the LM's tokens, each checked to leave room for the response."""
    if isinstance(prompts, str):
        raise PromptError("the prompts are a single text; give a list of texts")
    rows = [Prefix(prompt, prompt_ids(lm.tokenizer, prompt, template), template=template) for prompt in prompts]
    for number, prefix in enumerate(rows, 1):
        check_room(lm, rewards, prefix, max_new_tokens, number)
    return rows


def check_room(lm: CausalModel, rewards: Sequence[Reward], prefix: Prefix, max_new_tokens: int, number: int) -> None:
    """Raise PromptError if a prompt, of that number, leaves no room for the response."""
    context = min([lm.context_length, *(reward.context_length for reward in rewards)])
    if len(prefix.prompt_ids) + max_new_tokens > context:
        raise PromptError(
            f"prompt {number} has {len(prefix.prompt_ids)} tokens, which with {max_new_tokens} new ones exceed the "
            f"context of {context}; shorten it or lower --max-new-tokens"
        )
