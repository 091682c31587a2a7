"""How hard a text is to read, by letters and sentences per word: a gold that is no sum over words."""

import re


def coleman_liau(text: str) -> float:
    """0.0588 L - 0.296 S - 15.8, with L letters and S sentences per 100 words (Coleman and Liau, 1975)."""
    words = re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*", text)
    if not words:
        return 0.0
    letters, sentences = sum(map(len, words)), max(len(re.findall(r"[.!?]+(?=\s|$)", text)), 1)
    return 100 * (0.0588 * letters - 0.296 * sentences) / len(words) - 15.8


def plainness(text: str) -> float:
    """Minus the grade."""
    return -coleman_liau(text)
