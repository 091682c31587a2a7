"""Figures of texts, by hand."""

import math

import pytest
import sacrebleu

from midcourse.decode.steps import Generation, Step
from midcourse.evaluate.metrics import (
    distinct,
    diversity,
    perplexity,
    repeated_bigrams,
    repetition_loop,
    rouge_l_between,
    self_bleu,
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


# ARGS


def test_diversity_by_hand():
    # a b a b a: 2-grams ab ba (4 in all), 3-grams aba bab (3), 4-grams abab baba (2).
    assert diversity("a b a b a") == pytest.approx((2 / 5) * (2 / 4) * (2 / 3))
    assert diversity("one two three four") == pytest.approx((3 / 4) * (2 / 3) * (1 / 2))
    assert diversity("three words only") == diversity("") == 0.0


def test_diversity_has_nltks_words():
    assert diversity("Don't stop") == diversity("Do n't stop") == 0.0
    assert diversity("we don't stop") == pytest.approx((3 / 4) * (2 / 3) * (1 / 2))


# Samples of one prompt


def test_distinct_pools_the_samples():
    assert distinct(["a b a", "a b"], 1) == 2 / 5
    assert distinct(["a b a", "a b"], 2) == 2 / 5  # ab, ba; no bigram across samples
    assert distinct(["", " "], 1) is None


def test_rouge_l_by_hand():
    # Longest common subsequence "the cat" of 3 and 4 words: P 2/4, R 2/3.
    assert rouge_l_between(["the cat sat", "the black cat ran"]) == pytest.approx(
        2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)
    )
    assert rouge_l_between(["a b", "a b", "c d"]) == pytest.approx(1 / 3)
    assert rouge_l_between(["alone"]) is None and rouge_l_between(["", ""]) == 0.0


def test_self_bleu_is_sacrebleus():
    texts = ["the cat sat on the mat", "the cat lay on the mat", "a dog ran"]
    want = [
        sacrebleu.sentence_bleu(text, [t for t in texts if t != text], use_effective_order=True).score / 100
        for text in texts
    ]
    assert self_bleu(texts) == pytest.approx(sum(want) / 3)
    assert self_bleu(["the same words again", "the same words again"]) == pytest.approx(1.0)
    assert self_bleu(["alone"]) is None


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
