"""Changes to machine texts that a detector has to withstand; each is a function of a text and a random generator."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from midcourse.data.formats import BadRow, Problem, read_rows
from midcourse.detect.disguise import LOOKALIKES
from midcourse.detect.sentences import sentences_of
from midcourse.detect.texts import filled

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


# Texts that others changed


class Change(NamedTuple):
    """A machine's text, and what a tool or a person made of it."""

    before: str
    after: str


BEFORE, AFTER = ("before", "machine", "llm"), ("after", "humanized", "edited", "paraphrased", "mixed")
CHANGE_COLUMNS = (*BEFORE, *AFTER)


def read_changes(path: str | Path, *, rejects: list[BadRow] | None = None) -> list[Change]:
    """Read machine texts before and after a change from a .jsonl or .json (perhaps .gz), .csv, .tsv or .parquet file.

    Fields: `before` (or `machine`, `llm`) and `after` (or `humanized`, `edited`, `paraphrased`, `mixed`).

    Args:
        rejects: bad rows are appended to it and reading goes on.

    Raises:
        DataError: a file that cannot be read or has no usable row; without `rejects`, the first bad row.
    """
    return read_rows(path, _change, "changed texts", CHANGE_COLUMNS, rejects=rejects)


def _change(fields: dict[str, Any]) -> Change:
    return Change(*(_one_of(fields, known) for known in (BEFORE, AFTER)))


def _one_of(fields: dict[str, Any], known: tuple[str, ...]) -> str:
    name = next((name for name in known if fields.get(name) is not None), None)
    if name is None:
        raise Problem(known[0], f"the field is missing; each row needs {' or '.join(known)}")
    return filled(fields, name)
