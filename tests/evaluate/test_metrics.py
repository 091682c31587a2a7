"""Figures of texts, by hand."""

import math

import pytest

from midcourse.decode.loop import Generation, Step
from midcourse.evaluate.metrics import perplexity, repeated_bigrams


def text(*logprobs: float) -> Generation:
    steps = tuple(Step(0, "x", 0.0, logprob, None, 0.0, 0.0, 0.0, ()) for logprob in logprobs)
    return Generation("", "x" * len(steps), steps, "length", None, 0.0, 0.0, 1, 0)


def test_perplexity_is_over_tokens_not_texts():
    have = perplexity([text(math.log(0.5), math.log(0.5), math.log(0.5)), text(math.log(0.25))])
    assert have == pytest.approx((0.5**3 * 0.25) ** (-1 / 4))


@pytest.mark.parametrize(
    ("words", "want"),
    [("", 0), ("one", 0), ("a b c", 0), ("a b a b", 1 / 3), ("a a a a", 2 / 3), ("a b\n a  b", 1 / 3)],
)
def test_repeated_bigrams(words, want):
    assert repeated_bigrams(words) == pytest.approx(want)
