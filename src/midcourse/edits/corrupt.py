"""Texts made worse by rules, so that it is known which of their tokens are wrong: edits without an editor.

The rules are typos, negations, numbers, swapped words and dropped clauses, of English texts. What was corrupted is the
original of an edit, the text as it was the edited one.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple, TypeAlias, cast, get_args

from midcourse.data.alignment import Change, Labels, Span, meet
from midcourse.data.edits import Edit
from midcourse.errors import MidcourseError
from midcourse.lm.prompt import Prompt

Kind: TypeAlias = Literal["typo", "negation", "number", "swap", "omission"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_VERBS = "is|are|was|were|has|have|had|can|could|will|would|should|must|may|might"
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
_NEGATED = re.compile(rf"\b(?:{_VERBS})( not)\b")
_POSITIVE = re.compile(rf"\b(?:{_VERBS})\b(?! not\b|['\u2019]t)")
_NUMBER = re.compile(r"\d+")
_TWO_WORDS = re.compile(r"\b([^\W\d_]+) (?=([^\W\d_]+)\b)")
_CLAUSE = re.compile(r",(?: [^\s,.;:!?]+){2,}(?=[,.;:!?])")


class CorruptError(MidcourseError):
    """A text that cannot be corrupted, or kinds of corruption that nobody knows."""


class Corruption(NamedTuple):
    """One thing that was made wrong.

    Attributes:
        kind: the rule.
        original: the characters (begin, end) of the corrupted text that are wrong; begin = end if something is missing.
        edited: those of the text as it was that stand in their place.
    """

    kind: Kind
    original: Span
    edited: Span


@dataclass(frozen=True)
class Corrupted:
    """A corrupted text with the right one, and what is wrong with it."""

    edit: Edit
    corruptions: tuple[Corruption, ...]


def corrupt(
    text: str, *, prompt: Prompt = "", count: int = 1, kinds: Sequence[str] = KINDS, seed: int = 0
) -> Corrupted:
    """Make a text worse at up to `count` places that do not touch.

    Args:
        prompt: what the text responds to.
        kinds: the rules to draw from, each as likely as another wherever it applies.
        seed: of the choice, with the text.

    Raises:
        CorruptError: no rule applies to the text, a kind that is none, or a count below 1.

    Examples:
        >>> corrupt("It was 9, which is late.", kinds=["number"]).edit.original
        'It was 3, which is late.'
    """
    if strange := [kind for kind in kinds if kind not in KINDS]:
        raise CorruptError(f"kind {strange[0]!r} is unknown; use some of: {', '.join(KINDS)}")
    if count < 1:
        raise CorruptError(f"count {count} corrupts nothing; use 1 or more")
    wanted, random = [cast(Kind, kind) for kind in kinds], Random(f"{seed} {text}")
    chosen: list[tuple[Kind, Span, str]] = []
    order = {kind: random.sample(found, len(found)) for kind in wanted if (found := list(_RULES[kind](text, random)))}
    while order and len(chosen) < count:
        kind = random.choice(list(order))
        span, new = order[kind].pop()
        if not order[kind]:
            del order[kind]
        if all(span[1] < begin or end < span[0] for _, (begin, end), _ in chosen):
            chosen.append((kind, span, new))
    if not chosen:
        raise CorruptError(f"no {' or '.join(kinds)} can be made in {text[:60]!r}; give a longer text")
    worse, corruptions, at = "", [], 0
    for kind, (begin, end), new in sorted(chosen, key=lambda one: one[1]):
        worse += text[at:begin]
        corruptions.append(Corruption(kind, (len(worse), len(worse) + len(new)), (begin, end)))
        worse, at = worse + new, end
    return Corrupted(Edit(prompt, worse + text[at:], text), tuple(corruptions))


def known_labels(corrupted: Corrupted, spans: tuple[Sequence[Span], Sequence[Span]]) -> Labels:
    """Return what is known of tokens: what is wrong, what was right, and where something is missing.

    Args:
        spans: the characters (begin, end) of the tokens of the corrupted text, and of the right one.
    """
    before, after = ([Change.KEPT] * len(tokens) for tokens in spans)
    for _, wrong, right in corrupted.corruptions:
        both = wrong[0] < wrong[1] and right[0] < right[1]
        for labels, tokens, span, alone in (
            (before, spans[0], wrong, Change.DELETED),
            (after, spans[1], right, Change.ADDED),
        ):
            for number, token in enumerate(tokens):
                if meet(token, span):
                    labels[number] = Change.SUBSTITUTED if both else alone
        if wrong[0] == wrong[1]:
            behind = next((n for n, (_, end) in enumerate(spans[0]) if end > wrong[0]), None)
            if behind is not None and before[behind] is Change.KEPT:
                before[behind] = Change.OMISSION
    return Labels(tuple(before), tuple(after))


# ---- the rules: where each applies, and what it writes there ----


def _typos(text: str, random: Random) -> Iterator[tuple[Span, str]]:
    """Two letters of a long word, not the first, in the wrong order."""
    for match in _LONG_WORD.finditer(text):
        word = match.group()
        places = [i for i in range(1, len(word) - 1) if word[i] != word[i + 1]]
        if places:
            i = random.choice(places)
            begin = match.start() + i
            yield (begin, begin + 2), word[i + 1] + word[i]


def _negations(text: str, random: Random) -> Iterator[tuple[Span, str]]:
    """A "not" that comes or goes."""
    for match in _NEGATED.finditer(text):
        yield match.span(1), ""
    for match in _POSITIVE.finditer(text):
        yield (match.end(), match.end()), " not"


def _numbers(text: str, random: Random) -> Iterator[tuple[Span, str]]:
    """A digit that is another one."""
    for match in _NUMBER.finditer(text):
        place = random.randrange(match.start(), match.end())
        others = [digit for digit in "123456789" if digit != text[place]]
        yield (place, place + 1), random.choice(others)


def _swaps(text: str, random: Random) -> Iterator[tuple[Span, str]]:
    """Two words that have changed places."""
    for match in _TWO_WORDS.finditer(text):
        first, second = match.group(1), match.group(2)
        if first != second:
            yield (match.start(), match.end() + len(second)), f"{second} {first}"


def _omissions(text: str, random: Random) -> Iterator[tuple[Span, str]]:
    """A clause behind a comma that is gone."""
    for match in _CLAUSE.finditer(text):
        yield match.span(), ""


_RULES: dict[Kind, Callable[[str, Random], Iterable[tuple[Span, str]]]] = {
    "typo": _typos,
    "negation": _negations,
    "number": _numbers,
    "swap": _swaps,
    "omission": _omissions,
}
