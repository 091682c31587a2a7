"""Figures of generated texts."""

import math
import re
from collections.abc import Sequence
from statistics import fmean

from midcourse.decode.steps import Generation

# A text that ends in one block of words over and over: at least so many times, and over at least so many words.
LOOP_TIMES, LOOP_WORDS = 3, 12

# A word before n't; n't; another contraction's end; a word; a punctuation mark.
_WORD = re.compile(r"\w+(?=n['\u2019]t)|n['\u2019]t|['\u2019]\w+|\w+|[^\w\s]", re.IGNORECASE)


def perplexity(generations: Sequence[Generation]) -> float:
    """Return exp of the mean negative log-probability per token under the base model, over all responses' tokens."""
    logprobs = [step.reference_logprob for generation in generations for step in generation.steps]
    return math.exp(-fmean(logprobs))


def repeated(text: str, n: int) -> float:
    """Return rep-n: the share of a text's runs of n words that occurred in it before; 0 for a text without any.

    Welleck et al., Neural Text Generation with Unlikelihood Training (2020), arXiv 1908.04319. Words are what stands
    between spaces.
    """
    grams = ngrams(text.split(), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def repeated_bigrams(text: str) -> float:
    """Return rep-2 of a text."""
    return repeated(text, 2)


def repeated_words(text: str) -> float:
    """Return the share of a text's words of four letters or more that occurred in it before; 0 if it has none.

    Capitals do not count. Shorter words are left out: most are "the", "and" and the like, which good texts repeat.
    """
    words = re.findall(r"[^\W\d_]{4,}", text.lower())
    return 1 - len(set(words)) / len(words) if words else 0.0


def diversity(text: str) -> float:
    """Return the product over n = 2, 3, 4 of 1 - rep_n, as ARGS reports it (Khanov et al., 2024, arXiv 2402.01694).

    1 - rep_n = different n-grams / (n-grams + 1). The 1 is the authors' code's, kept so that figures compare: it holds
    the product below 1, and the lower the shorter the text; a text of fewer than four words has 0. As in their code,
    punctuation marks are words, and a contraction is two ("do n't").
    """
    grams = [ngrams(_WORD.findall(text), n) for n in (2, 3, 4)]
    return math.prod(len(set(found)) / (len(found) + 1) for found in grams)


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Return distinct-n: different n-grams over all words of the samples of one prompt; None without words.

    Li et al., A Diversity-Promoting Objective Function (2016), arXiv 1510.03055; pooled over a prompt's samples as RAD
    does. It falls as samples are added, so compare equal numbers of them.
    """
    samples = [text.split() for text in texts]
    words = sum(map(len, samples))
    return len({gram for sample in samples for gram in ngrams(sample, n)}) / words if words else None


def repetition_loop(text: str) -> str | None:
    """Return the shortest block of words that the text ends by repeating; None if it does not end so.

    A loop is a block that stands at least 3 times in a row at the end of the text, over at least 12 words in all; the
    last time may be cut short, as at a length limit.
    """
    words = text.split()
    for size in range(1, len(words) // LOOP_TIMES + 1):
        run = next((i for i in range(size, len(words)) if words[-1 - i] != words[-1 - i + size]), len(words))
        if run >= max(LOOP_TIMES * size, LOOP_WORDS):
            return " ".join(words[-run:][:size])
    return None


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of n words."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))
