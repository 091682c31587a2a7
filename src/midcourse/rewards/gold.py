"""Functions of a text that return a number, by name: vader, profanity, and any other as MODULE:FUNCTION."""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

from midcourse.rewards.info import RewardError

Gold = Callable[[str], float]


def load_gold(name: str) -> Gold:
    """Return the function of that name, which refuses to return what is no finite number.

    Raises:
        RewardError: no such module or function, a library that is missing, or a value that is no finite number.
    """
    gold = GOLDS[name]() if name in GOLDS else _imported(name)

    def checked(text: str) -> float:
        value = gold(text)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RewardError(f"gold reward {name} returned {value!r} for a text; return a finite number")
        return float(value)

    checked.__name__ = checked.__qualname__ = name
    return checked


def named_function(name: str) -> Gold:
    """Return the function that a name in `GOLDS` or "MODULE:FUNCTION" stands for, its values unchecked.

    Raises:
        RewardError: no such module or function, or a library that is missing.
    """
    return GOLDS[name]() if name in GOLDS else load_function(name)


def load_function(name: str) -> Gold:
    """Return the function "MODULE:FUNCTION"; modules are found in the working directory too.

    Raises:
        RewardError: it cannot be imported or called.
    """
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may raise anything when it is imported
        raise RewardError(
            f"no reward function {name!r} ({error}); use MODULE:FUNCTION, {' or '.join(GOLDS)}"
        ) from error
    if not callable(found):
        raise RewardError(f"{name!r} is not a function; use MODULE:FUNCTION")
    return found


def _imported(name: str) -> Gold:
    try:
        return load_function(name)
    except RewardError as error:
        raise RewardError(
            f"no gold reward {name!r} ({error.__cause__ or error}); use {', '.join(GOLDS)} or MODULE:FUNCTION"
        ) from error


def _vader() -> Gold:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise RewardError("the gold reward 'vader' needs vaderSentiment; run: pip install vaderSentiment") from error
    analyzer = SentimentIntensityAnalyzer()

    def vader(text: str) -> float:
        return analyzer.polarity_scores(text)["compound"]

    return vader


def _profanity() -> Gold:
    """Load alt-profanity-check, a linear model of English words; the gold reward is 1 - its probability of profanity.

    Its model is a pickle inside its own wheel, which importing it unpickles through joblib: it is loaded when this gold
    reward is asked for and at no other time.
    """
    try:
        from profanity_check import predict_prob
    except ImportError as error:
        raise RewardError(
            "the gold reward 'profanity' needs alt-profanity-check; run: pip install alt-profanity-check"
        ) from error

    def profanity(text: str) -> float:
        return 1 - float(predict_prob([text])[0])

    return profanity


# vader: the compound sentiment of a text, from -1 to 1. profanity: from 0, certainly profane, to 1.
GOLDS: dict[str, Callable[[], Gold]] = {"vader": _vader, "profanity": _profanity}
