"""Changes to machine texts that a detector has to withstand; each is a function of a text and a random generator."""

import math
from collections.abc import Callable, Mapping
from random import Random

from midcourse.detect.disguise import LOOKALIKES
from midcourse.detect.sentences import sentences_of

SHARE = 0.1  # of the words or letters, where an attack changes some of them
_NEIGHBOURS = {
    letter: "".join(row[max(i - 1, 0) : i] + row[i + 1 : i + 2])
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for i, letter in enumerate(row)
}
_FOREIGN = {latin: letter for letter, latin in LOOKALIKES.items() if "\u0400" <= letter <= "\u04ff"}


def shuffle_sentences(text: str, random: Random) -> str:
    """Put the sentences in random order."""
    sentences = sentences_of(text)
    random.shuffle(sentences)
    return " ".join(sentences)


def swap_words(text: str, random: Random) -> str:
    """Swap two neighbouring words in every sentence of more than 20 words, as Fast-DetectGPT's decoherence does."""
    changed = []
    for sentence in sentences_of(text):
        words = sentence.split()
        if len(words) > 20:
            i = random.randrange(len(words) - 1)
            words[i : i + 2] = words[i + 1], words[i]
        changed.append(" ".join(words))
    return " ".join(changed)


def misspell(text: str, random: Random) -> str:
    """Misspell a tenth of the words: swap, drop or double a letter, or hit the key beside it."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    for i in random.sample(long, min(math.ceil(SHARE * len(words)), len(long))):
        words[i] = _misspelt(words[i], random)
    return " ".join(words)


def _misspelt(word: str, random: Random) -> str:
    i = random.randrange(1, len(word) - 1)
    beside = _NEIGHBOURS.get(word[i].lower(), word[i])
    return random.choice(
        [
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:],
            word[:i] + random.choice(beside) + word[i + 1 :],
        ]
    )


def use_lookalikes(text: str, random: Random) -> str:
    """Replace half of the letters that have a Cyrillic lookalike by it."""
    return "".join(_FOREIGN[c] if c in _FOREIGN and random.random() < 0.5 else c for c in text)


def add_unseen(text: str, random: Random) -> str:
    """Put zero-width spaces behind a tenth of the characters."""
    return "".join(c + "\u200b" if random.random() < SHARE else c for c in text)


def change_spacing(text: str, random: Random) -> str:
    """Double a tenth of the spaces, and make as many others the ends of lines."""

    def space() -> str:
        drawn = random.random()
        return "  " if drawn < SHARE else "\n" if drawn < 2 * SHARE else " "

    return "".join(space() if c == " " else c for c in text)


ATTACKS: Mapping[str, Callable[[str, Random], str]] = {
    "sentence-order": shuffle_sentences,
    "adjacent-words": swap_words,
    "typos": misspell,
    "homoglyphs": use_lookalikes,
    "zero-width": add_unseen,
    "white-space": change_spacing,
}
