"""Gold rewards: any function of a text that returns a number."""

import math
from collections.abc import Callable, Sequence
from typing import Any

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

    return checked


def _vader() -> Gold:
    analyzer = _vader_library().SentimentIntensityAnalyzer()
    return lambda text: analyzer.polarity_scores(text)["compound"]


def _vader_once() -> Gold:
    """VADER's compound sentiment, with every word counted once, where it is strongest.

    VADER adds up the valences of a text's words, so that "good, good, good" is worth more than "good", and a reward
    that learns from it asks for lists of praise. Here "good, VERY good!" is worth as much as "VERY good!", and "not
    good, not good" as much as "not good"; of "not good at first, but good later" the later one counts, which VADER
    gives more weight. What strengthens or negates a word, and what exclamation marks add, is VADER's.
    """
    vader = _vader_library()

    class Once(vader.SentimentIntensityAnalyzer):
        def score_valence(self, sentiments: Sequence[float | int], text: str) -> Any:
            strongest: dict[str, float] = {}
            for word, valence in zip(vader.SentiText(text).words_and_emoticons, sentiments, strict=True):
                strongest[word.lower()] = max(strongest.get(word.lower(), 0.0), valence, key=abs)
            return super().score_valence([*strongest.values()], text)

    analyzer = Once()
    return lambda text: analyzer.polarity_scores(text)["compound"]


def _vader_library() -> Any:
    try:
        from vaderSentiment import vaderSentiment
    except ImportError as error:
        raise GoldError(
            "the gold rewards 'vader' and 'vader-once' need vaderSentiment; run: pip install vaderSentiment"
        ) from error
    return vaderSentiment


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


# vader: the compound sentiment of a text, from -1 to 1; vader-once: the same, counting a repeated word once.
# profanity: from 0, certainly profane, to 1.
GOLDS: dict[str, Callable[[], Gold]] = {"vader": _vader, "vader-once": _vader_once, "profanity": _profanity}
