"""The published methods as named settings."""

from dataclasses import dataclass

from midcourse.decode.guidance import Guidance, add_reward
from midcourse.errors import MidcourseError


class MethodError(MidcourseError):
    """A method name or a setting that does not exist or makes no sense."""


@dataclass(frozen=True)
class Method:
    """A guided decoding method: its equation and its paper's settings, each of which a call may override.

    Attributes:
        guide: the equation; None decodes the LM alone.
        greedy: take the likeliest guided candidate instead of sampling.
        reward_weight: w, the multiplier of the reward.
        top_k: candidates short-listed by the LM.
        temperature: T of softmax(guided / T).
        source: where the method and its settings come from.
    """

    guide: Guidance | None
    greedy: bool
    reward_weight: float
    top_k: int
    temperature: float
    source: str


_PARGS = "Rashid et al., A Critical Look At Tokenwise Reward-Guided Text Generation (2024), arXiv 2406.07780"

METHODS: dict[str, Method] = {
    "plain": Method(None, False, 0.0, 10, 1.0, "top-k sampling of the language model"),
    "pargs": Method(add_reward, False, 2.0, 10, 1.0, f"{_PARGS}; w = 2, k = 10 in the authors' script"),
    "pargs-greedy": Method(add_reward, True, 1.0, 10, 1.0, f"{_PARGS}; w = 1, k = 10 in the authors' script"),
}


def method(name: str) -> Method:
    """The method of that name; MethodError lists the known ones."""
    if name not in METHODS:
        raise MethodError(f"method {name!r} is unknown; use one of: {', '.join(METHODS)}")
    return METHODS[name]
