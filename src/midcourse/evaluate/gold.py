"""Gold rewards: any function of a text that returns a number."""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

from midcourse.errors import MidcourseError

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
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise GoldError(f"no gold reward {name!r} ({error}); use vader or MODULE:FUNCTION") from error
    if not callable(found):
        raise GoldError(f"gold reward {name!r} is not a function; use vader or MODULE:FUNCTION")
    return found
