"""Figures of texts, by hand."""

import math

import pytest

from midcourse.decode.steps import Generation, Step
from midcourse.evaluate.metrics import (
    distinct,
    diversity,
    perplexity,
    repeated,
    repeated_bigrams,
    repeated_words,
    repetition_loop,
)


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


def test_rep_n_by_hand():
    # a b a b a: 2-grams ab ba ab ba, 3-grams aba bab aba, 4-grams abab baba.
    assert [repeated("a b a b a", n) for n in (1, 2, 3, 4, 5, 6)] == pytest.approx([3 / 5, 2 / 4, 1 / 3, 0, 0, 0])
    assert repeated("no, no, no no", 1) == 0.5  # "no," and "no": words are what stands between spaces


# ARGS


def test_diversity_by_hand():
    # a b a b a: 2-grams ab ba (4 in all), 3-grams aba bab (3), 4-grams abab baba (2).
    assert diversity("a b a b a") == pytest.approx((2 / 5) * (2 / 4) * (2 / 3))
    assert diversity("one two three four") == pytest.approx((3 / 4) * (2 / 3) * (1 / 2))
    assert diversity("three words only") == diversity("") == 0.0


def test_a_contraction_is_two_words_and_a_mark_is_one():
    assert diversity("Don't stop") == diversity("Do n't stop") == 0.0
    assert diversity("we don't stop") == pytest.approx((3 / 4) * (2 / 3) * (1 / 2))
    assert diversity("WE DON\u2019T STOP") == diversity("it's a cat") == diversity("stop. stop!") > 0
    # it 's , it 's ,: 2-grams 4 of 5 differ, 3-grams 3 of 4, 4-grams 3 of 3.
    assert diversity("it's, it's,") == pytest.approx((3 / 6) * (3 / 5) * (3 / 4))


# Samples of one prompt


def test_distinct_pools_the_samples():
    assert distinct(["a b a", "a b"], 1) == 2 / 5
    assert distinct(["a b a", "a b"], 2) == 2 / 5  # ab, ba; no bigram across samples
    assert distinct(["", " "], 1) is None


# Loops


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("It is good. " + "very " * 12, "very"),
        ("So we go on " * 4, "So we go on"),
        ("And then we left. " + "I am so happy " * 3, "I am so happy"),
        ("I said: " + "I am so happy " * 3 + "I am", "I am so happy"),  # cut at the length limit
    ],
)
def test_loops_are_found_at_the_end(text, block):
    assert repetition_loop(text) == block


@pytest.mark.parametrize(
    "text",
    [
        "",
        "very " * 11,
        "I am so happy I am so happy",
        "very " * 12 + "good",
        "no no no, said the man who had seen it all before and would not look again",
        "a b c d e f g h i j k l m n o p",
    ],
)
def test_what_is_no_loop(text):
    assert repetition_loop(text) is None


def test_repeated_words_are_those_of_four_letters_or_more_that_came_before():
    assert repeated_words("a beautiful, old, luxurious, Luxurious, beautiful, beautiful") == 3 / 5
    assert repeated_words("It was the best of times, it was the worst of times") == 1 / 4
    assert repeated_words("The end, the end, the end.") == 0.0
    assert repeated_words("") == 0.0
