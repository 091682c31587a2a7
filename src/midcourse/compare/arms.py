"""What is compared: methods, rewards and swept settings to arms, one for each row of the table.

All arms start from one base policy, the LM's top k at one temperature, whatever their papers sampled from: only then
do their guidance KLs mean the same. `plain` is that base and always among them.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from midcourse.decode.methods import (
    METHODS,
    AnyMethod,
    BestOfN,
    Blockwise,
    Cards,
    Limits,
    Method,
    MethodError,
    check,
    check_limits,
)
from midcourse.decode.methods import method as named_method
from midcourse.errors import MidcourseError
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.contract import Reward
from midcourse.rewards.info import RewardError

PLAIN, POLICY = "plain", "policy"
LIMITS = ("kl_per_token", "kl_budget", "skip_tolerance")
WHOLE = ("top_k", "samples", "block_tokens", "least_tokens", "segment_tokens", "retries")  # settings that count
DEFAULT_SWEEP: dict[str, tuple[float, ...]] = {"reward_weight": (0.5, 1, 2, 4), "samples": (4, 16)}
_SHORT = {"reward_weight": "w", "samples": "n", "reward_threshold": "r*"}

Number = float | int


class CompareError(MidcourseError):
    """A comparison that cannot be made or gone on with."""


@dataclass(frozen=True)
class Base:
    """The policy that every arm starts from: b = softmax(log pi / T) over the LM's top k and top p."""

    temperature: float = 1.0
    top_k: int | None = 10
    top_p: float = 1.0


@dataclass(frozen=True)
class Arm:
    """A method with its reward and settings.

    Attributes:
        method: a name from METHODS, or "policy".
        given: the reward's name, or the policy's; None for plain.
        setting: what tells it from other arms of the same method and reward, as midcourse.generate takes it.
        settled: the method with all its settings; for a policy how it is sampled.
        base: whether it starts from the study's base, so that its guidance KL may be compared with others'.
    """

    method: str
    given: str | None
    setting: Mapping[str, Number]
    settled: AnyMethod
    base: bool

    @property
    def name(self) -> str:
        """Return the name for people and keys: "pargs my-reward w=2"."""
        settings = (f"{_SHORT.get(key, key)}={value:g}" for key, value in self.setting.items())
        return " ".join([self.method, *([self.given] if self.given else []), *settings])

    @property
    def reward(self) -> str | None:
        """Return the name of the arm's reward."""
        return None if self.method == POLICY else self.given

    @property
    def greedy(self) -> bool:
        """Return whether the arm writes the same whatever the seed."""
        return isinstance(self.settled, Method) and self.settled.greedy

    @property
    def limits(self) -> dict[str, Any]:
        """Return the arm's budgets, as midcourse.generate takes them."""
        return {name: self.setting[name] for name in LIMITS if name in self.setting}

    def prompts_at_a_time(self, batch_size: int) -> int:
        """Return how many prompts are written side by side in that many rows of the language model."""
        samples = self.settled.samples if isinstance(self.settled, BestOfN | Blockwise) else 1
        return max(1, batch_size // samples)


@dataclass(frozen=True)
class LeftOut:
    """A method and a reward that do not go together, and why."""

    method: str
    reward: str
    reason: str


# Settings


def parse_sweep(texts: Sequence[str]) -> dict[str, tuple[Number, ...]]:
    """Return {"reward_weight": (0, 0.5, 1)} for ["reward_weight=0,0.5,1"].

    Raises:
        CompareError: not of that form, or a setting that no method has.
    """
    known = {field.name for method in METHODS.values() for field in fields(method)} | set(LIMITS)
    known -= {"guide", "greedy", "ranked_by", "soft_value", "source"}
    swept: dict[str, tuple[Number, ...]] = {}
    for text in texts:
        name, mark, values = text.partition("=")
        name = name.replace("-", "_")
        if not mark or name in swept:
            raise CompareError(f"sweep {text!r} is not of the form SETTING=VALUE,VALUE, once for each setting")
        if name not in known:
            raise CompareError(f"sweep {name!r} is no setting of any method; use one of: {', '.join(sorted(known))}")
        swept[name] = tuple(dict.fromkeys(_number(name, value) for value in values.split(",")))
    return swept


def _number(name: str, text: str) -> Number:
    try:
        return int(text) if name in WHOLE else float(text)
    except ValueError:
        kind = "whole number" if name in WHOLE else "number"
        raise CompareError(f"sweep {name} has the value {text!r}, which is no {kind}; write one") from None


def _limits(setting: Mapping[str, Number]) -> Limits:
    """Return the budgets among some settings."""
    given: dict[str, Any] = {name: setting[name] for name in LIMITS if name in setting}
    return Limits(**given)


def _sweepable(method: AnyMethod, name: str) -> bool:
    """Return whether a setting makes a difference to a method."""
    if name in LIMITS:
        try:
            check_limits(method, "", _limits({name: 0.5}))
        except MethodError:
            return False
        return True
    if not hasattr(method, name):
        return False
    if isinstance(method, Method):
        if name == "reward_weight":
            return not method.soft_value
        if name == "temperature":
            return not (method.greedy or method.soft_value)
        if name == "top_k":
            return method.top_k is not None
    return True


def on_base(method: AnyMethod, base: Base) -> AnyMethod:
    """Return the method, starting from the base; one that ranks the whole vocabulary keeps the size of its own list."""
    if isinstance(method, Method) and method.ranked_by == "sum":
        return replace(method, temperature=base.temperature)
    if isinstance(method, Method) and method.greedy:
        return replace(method, top_k=base.top_k, top_p=base.top_p)
    return replace(method, temperature=base.temperature, top_k=base.top_k, top_p=base.top_p)


def _starts_from(method: AnyMethod, base: Base) -> bool:
    temperature = method.policy_temperature if isinstance(method, Method) else method.temperature
    own = (temperature, method.top_k, method.top_p)
    return own == (base.temperature, base.top_k, base.top_p)


# Plan


def plan(
    lm: LanguageModel,
    methods: Sequence[str],
    rewards: Mapping[str, Reward],
    sweep: Mapping[str, Sequence[Number]] | None = None,
    base: Base = Base(),
) -> tuple[list[Arm], list[LeftOut]]:
    """Return an arm for every method, reward that it can use, and setting of the sweep that it has; plain first.

    Args:
        methods: names of `METHODS`, with ":N" samples or without, with "@REWARD" for one reward alone; and
            "policy=NAME" for a fine-tuned model.
        sweep: values by setting; None for `DEFAULT_SWEEP`.

    Raises:
        CompareError, MethodError, RewardError: an unknown method or reward, a setting that makes no sense or that no
            method has, or a method without a reward that it can use.
    """
    _check_base(base)
    plain = Arm(PLAIN, None, {}, on_base(named_method(PLAIN), base), True)
    arms, left_out = {plain.name: plain}, []
    swept: set[str] = set()
    for text in dict.fromkeys(methods):
        if text == PLAIN:
            continue
        if text.startswith(f"{POLICY}="):
            arm = replace(plain, method=POLICY, given=policy_name(text))
            arms[arm.name] = arm
            continue
        spec, bound, only = text.partition("@")
        method = on_base(named_method(spec), base)
        if bound and only not in rewards:
            raise CompareError(f"method {text} names a reward that is not among --rewards: {', '.join(rewards)}")
        if spec == PLAIN:
            raise CompareError(f"method {text} takes no reward; leave {bound}{only} out")
        reasons = []
        for name in [only] if bound else list(rewards):
            if reason := why_not(lm, method, rewards[name]):
                reasons.append(LeftOut(spec, name, reason))
                continue
            for arm in _settings(spec, method, name, rewards[name], sweep, base):
                arms[arm.name] = arm
                swept |= arm.setting.keys()
        if len(reasons) == (1 if bound else len(rewards)):
            why = "; ".join(f"{one.reward}: {one.reason}" for one in reasons) or "none is given; name one in --rewards"
            raise CompareError(f"method {text} can use no reward ({why})")
        left_out += reasons
    if idle := sorted(set(sweep or {}) - swept):
        raise CompareError(f"sweep {idle[0]} changes none of the methods {', '.join(methods)}; leave it out")
    return list(arms.values()), left_out


def _settings(
    spec: str,
    method: AnyMethod,
    name: str,
    reward: Reward,
    sweep: Mapping[str, Sequence[Number]] | None,
    base: Base,
) -> list[Arm]:
    """Return an arm for each setting of a method with a reward."""
    kind, _, samples = spec.partition(":")
    swept = DEFAULT_SWEEP if sweep is None else sweep
    names = [key for key in swept if _sweepable(method, key) and not (key == "samples" and samples)]
    if sweep is None and isinstance(method, Blockwise):
        names = []
    arms = []
    for values in itertools.product(*(swept[key] for key in names)):
        setting = _own_setting(method, reward)
        setting |= {key: value if key in WHOLE else float(value) for key, value in zip(names, values, strict=True)}
        own: dict[str, Any] = {key: value for key, value in setting.items() if key not in LIMITS}
        made = replace(method, **own)
        if isinstance(made, Cards) and made.reward_threshold is None:
            raise CompareError(
                "cards needs the reward that a good response has, on the reward's own scale; "
                "add --sweep reward_threshold=A,B, say quantiles of the rewards of plain responses"
            )
        check(made)
        if isinstance(made, Method) and made.temperature == 0:
            made = replace(made, greedy=True)
        check_limits(made, kind, _limits(setting))
        arms.append(Arm(kind, name, setting, made, _starts_from(made, base)))
    return arms


def _own_setting(method: AnyMethod, reward: Reward) -> dict[str, Number]:
    """Return the settings that an arm's name tells though they are not swept."""
    if not isinstance(method, Method):
        return {"samples": method.samples} if isinstance(method, BestOfN | Blockwise) else {}
    weight = reward.soft_value_weight if method.soft_value else reward.reward_weight
    return {"reward_weight": method.reward_weight if weight is None else weight}


def _check_base(base: Base) -> None:
    if base.temperature == 0:
        raise CompareError("temperature 0 leaves no policy to compare with; use one above 0, such as 1")
    check(on_base(named_method(PLAIN), base))


def policy_name(text: str) -> str:
    """Return the name of the fine-tuned policy in "policy=PATH"."""
    path = text.partition("=")[2]
    if not path:
        raise CompareError("policy= names no model; write policy=PATH, a folder or a Hub id")
    return Path(path).name


def why_not(lm: LanguageModel, method: AnyMethod, reward: Reward) -> str | None:
    """Return why a method cannot use a reward; None if it can."""
    if isinstance(method, Method) and method.soft_value and reward.soft_value_weight is None:
        return "it is no soft value"
    if isinstance(method, Method) and method.ranked_by == "sum" and not reward.speaks_for_vocabulary:
        return "it does not speak for the whole vocabulary"
    try:
        reward.bind(lm)
    except RewardError as error:
        return str(error)
    return None
