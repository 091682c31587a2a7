"""What a server offers: a language model, rewards and a detector by their names, and how much a request may take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from midcourse.decode.methods import AnyMethod, Method
from midcourse.decode.methods import method as named_method
from midcourse.decode.steps import Guides
from midcourse.detect.detector import Detector
from midcourse.errors import MidcourseError
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.contract import Reward
from midcourse.rewards.named import named_rewards, weighted
from midcourse.serve.errors import RequestError


class ServeError(MidcourseError):
    """Settings that a server cannot start with."""


@dataclass(frozen=True)
class Bounds:
    """How much a request, and all of them together, may take.

    Attributes:
        max_new_tokens: the most tokens of a response.
        choices: the most responses to a request.
        texts: the most texts of a request for rewards or verdicts.
        queue: the most requests that are being answered or wait.
        body: the most bytes of a request.
        seconds: the longest that a request may take.
    """

    max_new_tokens: int = 1024
    choices: int = 16
    texts: int = 64
    queue: int = 128
    body: int = 2**20
    seconds: float = 600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ServeError(f"{name.replace('_', '-')} is {value}; use a number above 0")


@dataclass(frozen=True)
class Asked:
    """Which rewards a client asks for, and what they weigh; None stands for a reward's own weight."""

    rewards: Mapping[str, float | None] = field(default_factory=dict)
    method: str | None = None


@dataclass(frozen=True)
class Served:
    """A language model with what guides it and what judges texts.

    Attributes:
        name: what clients call the model.
        rewards: by what clients call them.
    """

    lm: LanguageModel
    name: str
    rewards: Mapping[str, Reward]
    detector: Detector | None = None
    bounds: Bounds = field(default_factory=Bounds)

    @classmethod
    def load(
        cls,
        lm: LanguageModel,
        rewards: Sequence[str],
        *,
        name: str | None = None,
        detector: str | None = None,
        bounds: Bounds | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> "Served":
        """Load rewards and a detector to serve with a language model.

        Args:
            rewards: as `load_reward` takes them; a folder's last part is what clients call it.
            name: what clients call the model; by default what it was loaded from, without folders.
            detector: "shipped", or a folder that midcourse detect calibrate wrote.

        Raises:
            ServeError: two rewards of one name.
            RewardError, ModelError, DetectorError: what cannot be loaded.
        """
        names = [plain_name(one) for one in rewards]
        if twice := [one for one in names if names.count(one) > 1]:
            raise ServeError(f"two rewards are called {twice[0]!r}; give one folder another name")
        loaded = dict(zip(names, named_rewards(lm, rewards, device=device, dtype=dtype), strict=True))
        found = None if detector is None else Detector.load(detector, device=device, dtype=dtype)
        return cls(lm, name or plain_name(lm.name), loaded, found, bounds or Bounds())

    def parse(self, model: str | None) -> Asked:
        """Return what a model's name asks for: "smollm2+civil=1.5+sentiment@pargs"; RequestError if it is unknown."""
        if model is None or model == self.name:
            return Asked()
        name, at, method = model.partition("@")
        base, *parts = name.split("+")
        if base != self.name:
            raise RequestError(
                f"the model {short(model)} does not exist; GET /v1/models lists those that do",
                param="model",
                status=404,
            )
        rewards: dict[str, float | None] = {}
        for part in parts:
            reward, equals, weight = part.partition("=")
            rewards[reward] = _weight(weight, model) if equals else None
        return Asked(rewards, method if at else None)

    def guides(self, asked: Asked, reward_weight: float | None) -> tuple[str, AnyMethod, Guides, float | None]:
        """Return the method's name, the method, the rewards with their own weights, and the weight of all of them.

        Args:
            reward_weight: what all are multiplied by; a lone reward's own, or the method's, if it is not given.

        Raises:
            RequestError, MethodError: an unknown reward or method.
        """
        for name in asked.rewards:
            if name not in self.rewards:
                known = ", ".join(self.rewards) or "none"
                raise RequestError(
                    f"the reward {short(name)} does not exist here; use one of: {known}", param="guidance.rewards"
                )
        name = asked.method or ("pargs" if asked.rewards else "plain")
        method = named_method(name)
        chosen, own = [self.rewards[name] for name in asked.rewards], list(asked.rewards.values())
        guides, weight = weighted(chosen, own, reward_weight, tokenwise=isinstance(method, Method))
        if weight is None and len(guides) == 1 and isinstance(method, Method):
            weight = guides[0][0].reward_weight
        return name, method, guides, weight

    @property
    def models(self) -> list[str]:
        """Return the names of the model alone, and with each of the rewards."""
        return [self.name, *(f"{self.name}+{name}" for name in self.rewards)]


def _weight(text: str, model: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(
            f"the weight {short(text)} in the model {short(model)} is no number; write one, such as civil=1.5",
            param="model",
            status=404,
        ) from None


def plain_name(name: str) -> str:
    """Return what clients call a model or a reward: its folder's name, and no place."""
    text = Path(name).name if Path(name).exists() else name.rsplit("/", 1)[-1]
    return "".join(letter if letter not in "+=@" else "-" for letter in text) or "model"


def short(text: str) -> str:
    """Return what a client sent for a message."""
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:56]} ..."
