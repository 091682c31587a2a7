"""Sentences said in other words: what whoever does that is given, what is given back, and what makes a good answer."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from midcourse.errors import MidcourseError


class RephraseError(MidcourseError):
    """Sentences that cannot be rephrased at all, since the model cannot be asked."""


class Task(NamedTuple):
    """The sentences of one text that are to be rephrased.

    Attributes:
        sentences: by their numbers in the text.
        seed: of all that is drawn for them.
    """

    sentences: Mapping[int, str]
    seed: int


class Rephrased(NamedTuple):
    """What became of a task's sentences: every number is in one of the two.

    Attributes:
        sentences: the new ones.
        failed: what was wrong with the last answer.
    """

    sentences: dict[int, str]
    failed: dict[int, str]


@runtime_checkable
class Rephraser(Protocol):
    """Something that says sentences in other words."""

    @property
    def name(self) -> str:
        """Return the name of the model."""

    def asked(self) -> dict[str, Any]:
        """Return what decides the answers, as JSON, for the record of an output."""

    def rephrase(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Rephrased]]:
        """Yield the place of each task, and what became of it, as soon as it is done: in any order.

        Tasks are taken only a few at a time, however many there are.
        """


# ---- an answer ----

LONGEST = 2000  # characters of a sentence that is asked about; more is no sentence
TIMES = 3  # an answer may be so many times as long as the sentence, or as short
SHORT = 60  # characters that any answer may have
_MANY = 4  # long words of a sentence, of which an answer that means the same has one
_RUN = 5  # words in a row that an answer and the instructions share only if it repeats them

_PREAMBLE = re.compile(
    r"(?:sure|certainly|of course|okay|here(?:'s|’s| is| are)|(?:re(?:phrased|worded|written)|new|original) "
    r"(?:sentence|version)|(?:the )?(?:sentence|rephrased|rewritten)\b[^.]{0,40}:|in other words|"
    r"i(?:'m| am|’m) (?:sorry|unable)|i (?:can(?:no|'|’)t|apologi[sz]e)|as an ai\b)",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»"}
_END = re.compile(r"[.!?…。！？:;][\"'”’»)\]]*$")


def unaskable(sentence: str) -> str | None:
    """Say why no model is asked to rephrase a sentence; None if one may be."""
    if len(sentence) > LONGEST:
        return f"the sentence has {len(sentence)} characters, more than {LONGEST}"
    return None if any(map(str.isalpha, sentence)) else "the sentence has no letter"


def tidied(answer: str, sentence: str) -> str:
    """Return an answer on one line, without quotes that the sentence has not, and ending with a mark as that does."""
    answer = " ".join(answer.split())
    first = answer[:1]
    if first in _QUOTES and len(answer) > 1 and answer[-1] == _QUOTES[first] and sentence[:1] not in _QUOTES:
        answer = answer[1:-1].strip()
    marked, mark = _END.search(answer), _END.search(sentence)
    if mark and not marked and answer:
        return answer + mark.group()[0]
    return answer.rstrip(".") if marked and not mark else answer


def fault_of(answer: str, sentence: str, instructions: str) -> str | None:
    """Say what is wrong with an answer as a sentence in other words; None if nothing is.

    Args:
        instructions: all that the model was told besides the sentence.
    """
    if not any(map(str.isalpha, answer)):
        return "the answer is empty"
    if words_of(answer) == words_of(sentence):
        return "the answer is the sentence itself"
    if len(answer) > max(TIMES * len(sentence), SHORT):
        return f"the answer is more than {TIMES} times as long"
    if TIMES * len(answer) < len(sentence):
        return f"the answer is less than 1/{TIMES} as long"
    if _PREAMBLE.match(answer) and not _PREAMBLE.match(sentence):
        return "the answer speaks of the task"
    if (_runs(answer) & _runs(instructions)) - _runs(sentence):
        return "the answer repeats the instructions"
    if sentence.endswith("?") and "?" not in answer:
        return "the answer is no question, and the sentence is one"
    if _numbers(answer) - _numbers(sentence):
        return "the answer has a number that the sentence has not"
    said = long_words_of(sentence)
    if len(said) >= _MANY and not said & long_words_of(answer):
        return "the answer shares no word with the sentence"
    return None


def words_of(text: str) -> list[str]:
    """Return the words of a text, without capitals and punctuation."""
    return re.findall(r"\w+", text.casefold())


def long_words_of(text: str) -> set[str]:
    """Return the words of more than three letters, which say what a text is about."""
    return {word for word in words_of(text) if len(word) > 3}


def _numbers(text: str) -> set[str]:
    """Return the numbers of more than one digit: those below ten are as often written out."""
    return set(re.findall(r"\d{2,}", re.sub(r"(?<=\d)[.,](?=\d)", "", text)))


def _runs(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)}


def fingerprint_of(*texts: str) -> str:
    """Return 16 hexadecimal digits that name what a model is told."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def check_retries(retries: int) -> None:
    """Raise RephraseError if a number of retries is negative."""
    if retries < 0:
        raise RephraseError(f"retries {retries} is negative; use 0 or more")
