"""A reward for every token: learn it from preferences, steer a frozen language model with it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midcourse.decode.engine import generate, stream
    from midcourse.decode.steps import Generation, Step
    from midcourse.detect.detector import Detector
    from midcourse.integrations.transformers import Guide, GuidedLogitsProcessor, guided
    from midcourse.lm.language_model import LanguageModel
    from midcourse.rewards.classifier import ClassifierReward
    from midcourse.rewards.contract import Score
    from midcourse.rewards.named import load_reward
    from midcourse.rewards.scalar import RewardModel
    from midcourse.rewards.text import FunctionReward, TextReward
    from midcourse.rewards.vocabulary import VocabularyReward

__all__ = [
    "ClassifierReward",
    "Detector",
    "FunctionReward",
    "Generation",
    "Guide",
    "GuidedLogitsProcessor",
    "LanguageModel",
    "RewardModel",
    "Score",
    "Step",
    "TextReward",
    "VocabularyReward",
    "generate",
    "guided",
    "load_reward",
    "stream",
]

# Imported when first asked for: torch and transformers take seconds, which `midcourse --help` should not.
_HOMES = {
    "midcourse.decode.engine": ("generate", "stream"),
    "midcourse.decode.steps": ("Generation", "Step"),
    "midcourse.detect.detector": ("Detector",),
    "midcourse.integrations.transformers": ("Guide", "GuidedLogitsProcessor", "guided"),
    "midcourse.lm.language_model": ("LanguageModel",),
    "midcourse.rewards.named": ("load_reward",),
    "midcourse.rewards.contract": ("Score",),
    "midcourse.rewards.scalar": ("RewardModel",),
    "midcourse.rewards.text": ("ClassifierReward", "FunctionReward", "TextReward"),
    "midcourse.rewards.vocabulary": ("VocabularyReward",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'midcourse' has no attribute {name!r}; it has {', '.join(__all__)}")
