"""How a policy is trained. Imports no torch, so that the command line can show it at once."""

import math
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args

from midcourse.errors import MidcourseError

KL: TypeAlias = Literal["exact", "k1", "k3"]
Density: TypeAlias = Literal["tokens", "end", "uniform", "shuffled"]
Advantages: TypeAlias = Literal["gae", "group"]
Values: TypeAlias = Literal["shared", "own"]


class PPOError(MidcourseError):
    """Rewards, settings or prompts that a policy cannot be trained with."""


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """How a policy is trained; the defaults suit a small model on a CPU."""

    rollouts: int = 1536
    """Responses written in all."""
    batch_size: int = 64
    """Responses of a step: written by one policy, then learned from."""
    minibatch: int = 16
    """Responses of an update."""
    epochs: int = 2
    """How often a step learns from each of its responses."""
    lr: float = 3e-4
    """Learning rate of the policy; it rises over the first 5% of the steps and falls to a tenth along a cosine."""
    value_lr: float = 3e-3
    """Learning rate of the value head."""
    max_new_tokens: int = 32
    """Longest response, in tokens; a longer one is cut there."""
    tune: str = "lora:16"
    """lora:RANK: adapters in all linear modules but the output's; lora:RANK:LAYERS: in those of the last layers, which
    is faster, since the layers below are run once for each text. all: every weight."""
    values: Values = "shared"
    """What values are read from. shared, the default: the policy's own states. own: a copy of the model, trained beside
    it."""
    density: Density = "tokens"
    """What a token is paid. tokens, the default: its own reward, or of a reward of prefixes what the prefix gains with
    it. end: all of it at the last token. uniform: equal parts. shuffled: the response's rewards in random order, a
    placebo."""
    reward_scale: float = 1.0
    """Multiplies the reward."""
    centre: bool = False
    """Take the mean reward of a step's tokens off each, so that no response gains by its length."""
    missing_eos: float = 0.0
    """Taken off the last token of a response that was cut."""
    kl: KL = "exact"
    """How tokens pay for the divergence from the reference. exact, the default: over the whole vocabulary. k1, k3:
    estimates by the token drawn; k3 does not lead to the best policy exactly."""
    kl_weight: float = 0.05
    """What a nat of divergence costs."""
    kl_target: float | None = None
    """Nats per response that the weight is adapted to during the run; by default it stays what it is."""
    kl_stop: float = 0.2
    """End a step's updates once the policy is so many nats per token from the one that wrote its responses; 0 for
    never."""
    advantages: Advantages = "gae"
    """What a token is compared with. gae, the default: the value of its prefix. group: the other responses to the same
    prompt, without values."""
    group_size: int = 1
    """Responses to a prompt in a step."""
    shaping: float = 1.0
    """How much of its own reward, against its response's mean, group gives a token; 0 makes it GRPO."""
    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip: float = 0.2
    """How far the ratio of a token's probabilities may go from 1 before it earns nothing more."""
    value_clip: float = 0.2
    """How far a value may go from what it was before it earns nothing more."""
    value_weight: float = 0.5
    """Weight of the values' loss."""
    whiten: bool = True
    """Whether the advantages of a step's tokens are given mean 0 and standard deviation 1."""
    samples_every: int = 5
    """Steps between the texts that samples.html shows; 0 for none."""
    save_every: int = 5
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of the texts, of their order and of new weights."""

    @property
    def steps(self) -> int:
        """Return how many steps a run has; the last one may be smaller."""
        return math.ceil(self.rollouts / self.batch_size)


@dataclass(frozen=True, kw_only=True)
class FigaSettings:
    """How a policy is trained by weighted likelihood of edits; see `ppo.figa`."""

    epochs: int = 2
    """Passes over the edits."""
    batch_size: int = 16
    """Edits of an update."""
    lr: float = 1e-4
    """Learning rate; it rises over the first 5% of the updates and falls to a tenth along a cosine."""
    better: float = 1.0
    """Weight of the edited text's added and substituted tokens."""
    worse: float = 0.5
    """Weight, taken negative, of the original's deleted and substituted tokens."""
    kept: float = 0.0
    """Weight of the edited text's kept tokens."""
    max_tokens: int = 512
    """Longest prompt and text together."""
    tune: str = "lora:16"
    """lora:RANK: adapters in all linear modules but the output's; lora:RANK:LAYERS: in those of the last layers, which
    is faster, since the layers below are run once for each text. all: every weight."""
    save_every: int = 50
    """Updates between checkpoints."""
    seed: int = 0
    """Seed of the order and of new weights."""


def check_figa(settings: FigaSettings) -> None:
    """Raise PPOError if a setting makes no sense."""
    for name in ("epochs", "batch_size", "max_tokens", "save_every"):
        if (value := getattr(settings, name)) < 1:
            raise PPOError(f"{name.replace('_', '-')} is {value}; use 1 or more")
    for name in ("better", "worse", "kept"):
        if not 0 <= (value := getattr(settings, name)) < math.inf:
            raise PPOError(f"{name} is {value}; use 0 or more")
    if not settings.better and not settings.worse:
        raise PPOError("better and worse are 0, so no change would be learned; give one of them a weight")
    if not 0 < settings.lr < math.inf:
        raise PPOError(f"lr is {settings.lr}; use a positive number")
    check_settings(PPOSettings(tune=settings.tune))


_CHOICES = {"values": Values, "density": Density, "kl": KL, "advantages": Advantages}
_AT_LEAST_ONE = ("rollouts", "batch_size", "minibatch", "epochs", "max_new_tokens", "group_size", "save_every")
_POSITIVE = ("lr", "value_lr", "clip", "value_clip")
_NOT_NEGATIVE = ("kl_weight", "kl_stop", "shaping", "missing_eos", "value_weight", "samples_every", "seed")


def check_settings(settings: PPOSettings) -> None:
    """Raise PPOError if a setting makes no sense."""
    from midcourse.rewards.backbone import Tuning
    from midcourse.rewards.info import RewardError

    named = {field.name: getattr(settings, field.name) for field in fields(settings)}

    def refuse(name: str, wanted: str) -> None:
        raise PPOError(f"{name.replace('_', '-')} is {named[name]}; use {wanted}")

    for name, choices in _CHOICES.items():
        if named[name] not in get_args(choices):
            refuse(name, f"one of {', '.join(get_args(choices))}")
    for name in _AT_LEAST_ONE:
        if named[name] < 1:
            refuse(name, "1 or more")
    for name in _POSITIVE:
        if not 0 < named[name] < math.inf:
            refuse(name, "a positive number")
    for name in _NOT_NEGATIVE:
        if not 0 <= named[name] < math.inf:
            refuse(name, "0 or more")
    for name in ("gamma", "lam"):
        if not 0 <= named[name] <= 1:
            refuse(name, "a number from 0 to 1")
    if not math.isfinite(settings.reward_scale):
        refuse("reward_scale", "a finite number")
    if settings.kl_target is not None and not 0 < settings.kl_target < math.inf:
        refuse("kl_target", "a positive number of nats per response")
    if settings.kl_target is not None and not settings.kl_weight:
        raise PPOError("kl-target adapts kl-weight, and from 0 it never rises; use a kl-weight such as 0.05")
    try:
        known = Tuning.parse(settings.tune).kind in ("lora", "all")
    except RewardError:  # which names what rewards may tune too
        known = False
    if not known:
        refuse("tune", "lora, lora:RANK, lora:RANK:LAYERS or all")
    if settings.advantages == "group" and settings.group_size < 2:
        raise PPOError(
            "advantages group compares responses to one prompt, and group-size is 1; use a group-size such as 4"
        )
    if settings.batch_size % settings.group_size:
        refuse("batch_size", f"a multiple of group-size, which is {settings.group_size}")
    if settings.rollouts % settings.group_size:
        refuse("rollouts", f"a multiple of group-size, which is {settings.group_size}")
