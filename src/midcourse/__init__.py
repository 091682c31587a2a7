"""A reward for every token: learn it from preferences, steer a frozen language model with it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midcourse.decode.loop import Generation, Step, generate, stream
    from midcourse.language_model import LanguageModel
    from midcourse.reward_model import RewardModel, Score

__all__ = ["Generation", "LanguageModel", "RewardModel", "Score", "Step", "generate", "stream"]

# Imported when first asked for: torch and transformers take seconds, which `midcourse --help` should not.
_HOMES = {
    "midcourse.decode.loop": ("Generation", "Step", "generate", "stream"),
    "midcourse.language_model": ("LanguageModel",),
    "midcourse.reward_model": ("RewardModel", "Score"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'midcourse' has no attribute {name!r}; it has {', '.join(__all__)}")
