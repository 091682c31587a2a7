"""Gold rewards: any function of a text that returns a number."""

import math
from collections.abc import Callable

from midcourse.errors import MidcourseError
from midcourse.reward import RewardError
from midcourse.text_reward import load_function

Gold = Callable[[str], float]


class GoldError(MidcourseError):
    """A gold reward that cannot be loaded or does not return numbers."""


def load_gold(name: str) -> Gold:
    """ "vader" or "MODULE:FUNCTION"; modules are found in the working directory too.

    Raises:
        GoldError: no such module or function, or it does not return a finite number.
    """
    gold = _vader() if name == "vader" else _imported(name)

    def checked(text: str) -> float:
        value = gold(text)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise GoldError(f"gold reward {name} returned {value!r} for a text; return a finite number")
        return float(value)

    return checked


def _vader() -> Gold:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise GoldError("the gold reward 'vader' needs vaderSentiment; run: pip install vaderSentiment") from error
    analyzer = SentimentIntensityAnalyzer()
    return lambda text: analyzer.polarity_scores(text)["compound"]


def _imported(name: str) -> Gold:
    try:
        return load_function(name)
    except RewardError as error:
        raise GoldError(
            f"no gold reward {name!r} ({error.__cause__ or error}); use vader or MODULE:FUNCTION"
        ) from error
