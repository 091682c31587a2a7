"""Gold rewards: any function of a text that returns a number."""

import math
from collections.abc import Callable

from midcourse.errors import MidcourseError
from midcourse.rewards.contract import RewardError
from midcourse.rewards.text import load_function

Gold = Callable[[str], float]


class GoldError(MidcourseError):
    """A gold reward that cannot be loaded or does not return numbers."""


def load_gold(name: str) -> Gold:
    """A gold reward by its name in `GOLDS`, or "MODULE:FUNCTION"; modules are found in the working directory too.

    Raises:
        GoldError: no such module or function, a library that is missing, or a value that is no finite number.
    """
    gold = GOLDS[name]() if name in GOLDS else _imported(name)

    def checked(text: str) -> float:
        value = gold(text)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise GoldError(f"gold reward {name} returned {value!r} for a text; return a finite number")
        return float(value)

    checked.__name__ = checked.__qualname__ = name
    return checked


def _vader() -> Gold:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise GoldError("the gold reward 'vader' needs vaderSentiment; run: pip install vaderSentiment") from error
    analyzer = SentimentIntensityAnalyzer()
    return lambda text: analyzer.polarity_scores(text)["compound"]


def _profanity() -> Gold:
    """1 - the probability of profanity by alt-profanity-check, a linear model of English words.

    Its model is a pickle inside its own wheel, which importing it unpickles through joblib: it is loaded when this gold
    reward is asked for and at no other time.
    """
    try:
        from profanity_check import predict_prob
    except ImportError as error:
        raise GoldError(
            "the gold reward 'profanity' needs alt-profanity-check; run: pip install alt-profanity-check"
        ) from error
    return lambda text: 1 - float(predict_prob([text])[0])


def _imported(name: str) -> Gold:
    try:
        return load_function(name)
    except RewardError as error:
        raise GoldError(
            f"no gold reward {name!r} ({error.__cause__ or error}); use {', '.join(GOLDS)} or MODULE:FUNCTION"
        ) from error


# vader: the compound sentiment of a text, from -1 to 1. profanity: from 0, certainly profane, to 1.
GOLDS: dict[str, Callable[[], Gold]] = {"vader": _vader, "profanity": _profanity}
