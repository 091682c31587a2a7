"""Figures of generated texts."""

import itertools
import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Any

from midcourse.decode.steps import Generation

# A text that ends in one block of words over and over: at least so many times, and over at least so many words.
LOOP_TIMES, LOOP_WORDS = 3, 12


def perplexity(generations: Sequence[Generation]) -> float:
    """exp of the mean negative log-probability per token under the base model, over all tokens of all responses."""
    logprobs = [step.reference_logprob for generation in generations for step in generation.steps]
    return math.exp(-fmean(logprobs))


def repeated_bigrams(text: str) -> float:
    """Share of a text's word bigrams that occurred in it before; 0 for a text of fewer than two bigrams."""
    words = text.split()
    bigrams = list(itertools.pairwise(words))
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def diversity(text: str) -> float:
    """The product over n = 2, 3, 4 of 1 - rep_n, as ARGS reports it (Khanov et al., 2024, arXiv 2402.01694).

    1 - rep_n = different n-grams / (n-grams + 1). The 1 is the authors' code's, kept so that figures compare: it holds
    the product below 1, and the lower the shorter the text; a text of fewer than four words has 0. Words are NLTK's;
    its sentence splitter, which wants a download, is left out.
    """
    words = _word_tokenizer().tokenize(text)
    grams = [ngrams(words, n) for n in (2, 3, 4)]
    return math.prod(len(set(found)) / (len(found) + 1) for found in grams)


def distinct(texts: Sequence[str], n: int) -> float | None:
    """distinct-n: different n-grams over all words of the samples of one prompt; None without words.

    Li et al., A Diversity-Promoting Objective Function (2016), arXiv 1510.03055; pooled over a prompt's samples as RAD
    does. It falls as samples are added, so compare equal numbers of them.
    """
    samples = [text.split() for text in texts]
    words = sum(map(len, samples))
    return len({gram for sample in samples for gram in ngrams(sample, n)}) / words if words else None


def rouge_l_between(texts: Sequence[str]) -> float | None:
    """Mean ROUGE-L F of all pairs of samples of one prompt, by rouge-score; lower is more diverse; None for one sample.

    FaRMA's diversity (Rashid et al., 2025, arXiv 2502.04517).
    """
    pairs = list(itertools.combinations(texts, 2))
    scorer = _rouge_scorer()
    return fmean(scorer.score(a, b)["rougeL"].fmeasure for a, b in pairs) if pairs else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean sentence BLEU of each sample against the others, by sacrebleu, from 0 to 1; None for one sample.

    Lower is more diverse (Zhu et al., Texygen, 2018, arXiv 1802.01886). It grows with the number of samples.
    """
    if len(texts) < 2:
        return None
    bleu = _bleu()
    others = [[*texts[:i], *texts[i + 1 :]] for i in range(len(texts))]
    return fmean(bleu.sentence_score(text, rest).score for text, rest in zip(texts, others, strict=True)) / 100


def repetition_loop(text: str) -> str | None:
    """The block of words that the text ends by repeating, the shortest such block; None where it does not.

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
    """All runs of n words."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))


# NLTK takes seconds to import, and most of what imports this module needs none of it.


@cache
def _word_tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


@cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)  # a short text has no 4-grams, and is not worth 0 for that
