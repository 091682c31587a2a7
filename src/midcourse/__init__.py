"""A reward for every token: learn it from preferences, steer a frozen language model with it."""

from midcourse.decode.loop import Generation, Step, generate, stream
from midcourse.language_model import LanguageModel
from midcourse.reward_model import RewardModel, Score

__all__ = ["Generation", "LanguageModel", "RewardModel", "Score", "Step", "generate", "stream"]
