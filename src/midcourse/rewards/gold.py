"""Functions of a text that return a number, by name: vader, vader-once, profanity, and any other as MODULE:FUNCTION."""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from midcourse.errors import short_value
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
        number = as_float(value) if isinstance(value, int | float) else math.nan
        if not math.isfinite(number):
            raise RewardError(f"gold reward {name} returned {short_value(value)} for a text; return a finite number")
        return number

    checked.__name__ = checked.__qualname__ = name
    return checked


def as_float(value: Any) -> float:
    """Return a number as a float, one too large for any as infinity."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


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
    analyzer = _vader_library().SentimentIntensityAnalyzer()

    def vader(text: str) -> float:
        return analyzer.polarity_scores(text)["compound"]

    return vader


def _vader_once() -> Gold:
    """VADER's compound sentiment, with every word counted once, where it is strongest.

    VADER adds up the valences of a text's words, so that "good, good, good" is worth more than "good", and a reward
    that learns from it asks for lists of praise. Here "good, VERY good!" is worth as much as "VERY good!", and "not
    good, not good" as much as "not good"; of "not good at first, but good later" the later one counts, which VADER
    gives more weight. What strengthens or negates a word, and what exclamation marks add, is VADER's.
    """
    vader: Any = _vader_library()

    class Once(vader.SentimentIntensityAnalyzer):
        def score_valence(self, sentiments: Sequence[float | int], text: str) -> Any:
            strongest: dict[str, float] = {}
            for word, valence in zip(vader.SentiText(text).words_and_emoticons, sentiments, strict=True):
                strongest[word.lower()] = max(strongest.get(word.lower(), 0.0), valence, key=abs)
            return super().score_valence([*strongest.values()], text)

    analyzer = Once()

    def vader_once(text: str) -> float:
        return analyzer.polarity_scores(text)["compound"]

    return vader_once


def _vader_library() -> Any:
    try:
        from vaderSentiment import vaderSentiment
    except ImportError as error:
        raise RewardError(
            "the gold rewards 'vader' and 'vader-once' need vaderSentiment; run: pip install vaderSentiment"
        ) from error
    return vaderSentiment


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


# vader: the compound sentiment of a text, from -1 to 1; vader-once: the same, counting a repeated word once.
# profanity: from 0, certainly profane, to 1.
GOLDS: dict[str, Callable[[], Gold]] = {"vader": _vader, "vader-once": _vader_once, "profanity": _profanity}
