"""A reward for every token: learn it from preferences, steer a frozen language model with it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midcourse.decode.loop import generate, stream
    from midcourse.decode.steps import Generation, Step
    from midcourse.language_model import LanguageModel
    from midcourse.reward import Score
    from midcourse.reward_model import RewardModel
    from midcourse.vocabulary_reward import VocabularyReward

__all__ = [
    "Generation",
    "LanguageModel",
    "RewardModel",
    "Score",
    "Step",
    "VocabularyReward",
    "generate",
    "stream",
]

# Imported when first asked for: torch and transformers take seconds, which `midcourse --help` should not.
_HOMES = {
    "midcourse.decode.loop": ("generate", "stream"),
    "midcourse.decode.steps": ("Generation", "Step"),
    "midcourse.language_model": ("LanguageModel",),
    "midcourse.reward": ("Score",),
    "midcourse.reward_model": ("RewardModel",),
    "midcourse.vocabulary_reward": ("VocabularyReward",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'midcourse' has no attribute {name!r}; it has {', '.join(__all__)}")
