"""Comparisons, rollouts, ladders and edits to rows of token ids, each distinct row once."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple, TypeAlias

from transformers import PreTrainedTokenizerBase

from midcourse.data.alignment import Labels, Span, Unit, align, labels_of, marked_labels, word_labels
from midcourse.data.comparisons import Comparison, Example, prompt_groups
from midcourse.data.edits import Edit
from midcourse.data.formats import DataError, short
from midcourse.data.ladders import Ladder
from midcourse.data.rollouts import Rollout
from midcourse.lm.language_model import tokenizer_fingerprint
from midcourse.lm.prompt import Prompt, Rendered, Template, render, response_tokens
from midcourse.rewards.token_ids import TokenReward
from midcourse.rewards.trained import TrainedReward

Encoder: TypeAlias = TokenReward | TrainedReward  # turns prompts and responses into ids


class EncodedRow(NamedTuple):
    """A prompt and a response in token ids; a finished response ends with EOS."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    finished: bool

    @property
    def text_length(self) -> int:
        """Return the number of the response's tokens without its EOS."""
        return len(self.response) - self.finished


@dataclass(frozen=True)
class PairSet:
    """Encoded comparisons.

    Attributes:
        rows: each distinct prompt and response once.
        pairs: row numbers (chosen, rejected).
        prompts: what each pair belongs to; see `comparisons.prompt_groups`.
        left_out: comparisons whose responses are equal in what is left of them.
    """

    rows: list[EncodedRow]
    pairs: list[tuple[int, int]]
    prompts: list[str]
    left_out: int = 0

    @property
    def items(self) -> list[tuple[int, ...]]:
        """Return the row numbers of each pair."""
        return list(self.pairs)


@dataclass(frozen=True)
class RolloutSet:
    """Encoded rollouts.

    Attributes:
        rows: each distinct prompt and response once.
        items: the row number of each rollout, as a tuple of one.
        labels: the reward of each.
        prompts: what each belongs to.
    """

    rows: list[EncodedRow]
    items: list[tuple[int, ...]]
    labels: list[float]
    prompts: list[str]

    @property
    def mean_length(self) -> float:
        """Return the mean number of response tokens of a rollout."""
        return fmean(len(self.rows[row].response) for (row,) in self.items)

    @property
    def mean_label(self) -> float:
        """Return the label that is expected of a rollout of which nothing is known."""
        return fmean(self.labels)


@dataclass(frozen=True)
class LadderSet:
    """Encoded ladders, and texts that are replayed with them.

    Attributes:
        rows: each distinct text once.
        items: the row numbers of each ladder's levels, in their order.
        prompts: what each ladder belongs to.
        replay: row numbers of the texts to replay, one for each time that a ladder is learned from, or none at all.
        initial: their rewards before training.
    """

    rows: list[EncodedRow]
    items: list[tuple[int, ...]]
    prompts: list[str]
    replay: Sequence[int] = ()
    initial: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EditSet:
    """Encoded edits.

    Attributes:
        rows: each distinct prompt and response once.
        items: row numbers (edited, original); the original twice if nobody said what would be right.
        labels: what became of every response token of both, EOS included; of the edited text none if there is none.
        prompts: what each belongs to.
        left_out: edits of which no changed token is seen: all are beyond the length limit or, if words are aligned, in
            white space.
    """

    rows: list[EncodedRow]
    items: list[tuple[int, ...]]
    labels: list[Labels]
    prompts: list[str]
    left_out: int = 0


EncodedSet: TypeAlias = PairSet | RolloutSet | LadderSet | EditSet


def encode_row(reward: Encoder, prompt: Prompt, response: str, finished: bool, max_tokens: int) -> EncodedRow:
    """Return a prompt and a response as a row of at most `max_tokens`; what is cut off makes it unfinished."""
    before, ids, whole = reward.encode_within(prompt, response, finished=finished, max_tokens=max_tokens)
    return EncodedRow(tuple(before), tuple(ids), whole)


def prompt_limit(reward: Encoder, max_tokens: int) -> Callable[[Example], str | None]:
    """Return the check of a row's prompt that `read_comparisons` and `read_rollouts` take as their `limit`."""

    return lambda example: reward.prompt_problem(example.prompt, max_tokens)


def encode(reward: Encoder, comparisons: Sequence[Comparison], max_tokens: int, *, keep_equal: bool = False) -> PairSet:
    """Return token ids of the comparisons, each distinct row once.

    Args:
        keep_equal: keep pairs that do not differ in what is left of them, which teach nothing and count as ties.

    Raises:
        DataError: there are comparisons, and none differs in what is left of it.
    """
    numbers: dict[EncodedRow, int] = {}
    pairs, groups = [], []
    for c, group in zip(comparisons, prompt_groups(comparisons), strict=True):
        chosen = encode_row(reward, c.prompt, c.chosen, c.chosen_finished, max_tokens)
        rejected = encode_row(reward, c.prompt, c.rejected, c.rejected_finished, max_tokens)
        if chosen != rejected or keep_equal:
            pairs.append((numbers.setdefault(chosen, len(numbers)), numbers.setdefault(rejected, len(numbers))))
            groups.append(group)
    if comparisons and not pairs:
        raise DataError(
            f"the responses of all {len(comparisons)} comparisons are equal in their first {max_tokens} tokens, prompt "
            "included; raise --max-tokens"
        )
    return PairSet(list(numbers), pairs, groups, len(comparisons) - len(pairs))


def what_was_cut(rows: Sequence[EncodedRow], pairs: PairSet, max_tokens: int) -> dict[str, int]:
    """Return {max_tokens, texts, cut, equal_pairs}: how many rows lost their end, and pairs that were left out then."""
    cut = sum(not row.finished and len(row.prompt) + len(row.response) == max_tokens for row in rows)
    return {"max_tokens": max_tokens, "texts": len(rows), "cut": cut, "equal_pairs": pairs.left_out}


def encode_rollouts(reward: Encoder, rollouts: Sequence[Rollout], max_tokens: int) -> RolloutSet:
    """Return token ids of the rollouts, each distinct row once. One that is cut here keeps the label of the whole.

    Raises:
        DataError: a rollout has no reward.
    """
    labels = [_label(number, rollout) for number, rollout in enumerate(rollouts, 1)]
    numbers: dict[EncodedRow, int] = {}
    rows = [encode_row(reward, r.prompt, r.response, r.finished, max_tokens) for r in rollouts]
    items: list[tuple[int, ...]] = [(numbers.setdefault(row, len(numbers)),) for row in rows]
    return RolloutSet(list(numbers), items, labels, prompt_groups(rollouts))


def encode_ladders(
    reward: Encoder, ladders: Sequence[Ladder], max_tokens: int, replay: Sequence[Rollout] = ()
) -> LadderSet:
    """Return token ids of ladders, and of the texts to replay in their order, each distinct row once."""
    numbers: dict[EncodedRow, int] = {}

    def place(prompt: Prompt, response: str, finished: bool) -> int:
        return numbers.setdefault(encode_row(reward, prompt, response, finished, max_tokens), len(numbers))

    items = [tuple(place("", level, True) for level in ladder.levels) for ladder in ladders]
    replayed = [place(one.prompt, one.response, one.finished) for one in replay]
    return LadderSet(list(numbers), items, prompt_groups(ladders), replayed)


def encode_edits(reward: Encoder, edits: Sequence[Edit], max_tokens: int, unit: Unit = "tokens") -> EditSet:
    """Return token ids of edits, and what became of each token, each distinct row once.

    Texts are aligned whole, so that what is cut off changes no label.

    Args:
        unit: "tokens" aligns token ids; "words" words, whose labels their tokens have.

    Raises:
        DataError: no edit changes a token that is left, or the tokenizer does not say which characters a token holds.
    """
    numbers: dict[EncodedRow, int] = {}
    items: list[tuple[int, ...]] = []
    labels, groups = [], []
    for edit, group in zip(edits, prompt_groups(edits), strict=True):
        rows = [encode_row(reward, edit.prompt, text, True, max_tokens) for text in edit.responses]
        found = labels_of_edit(reward.tokenizer, edit, unit, reward.template)
        cut = Labels(found.original[: len(rows[-1].response)], found.edited[: len(rows[0].response)])
        if any(not change.kept for side in cut for change in side):
            sides = [numbers.setdefault(row, len(numbers)) for row in (rows[0], rows[-1])]
            items.append(tuple(sides))
            labels.append(cut)
            groups.append(group)
    if edits and not items:
        raise DataError(
            f"none of the {len(edits)} edits changes a token within {max_tokens}; raise --max-tokens, or align tokens"
        )
    return EditSet(list(numbers), items, labels, groups, len(edits) - len(items))


def labels_of_edit(
    tokenizer: PreTrainedTokenizerBase, edit: Edit, unit: Unit = "tokens", template: Template | None = None
) -> Labels:
    """Return what became of each token of an edit's texts, EOS included: as the edit says, as marked, or aligned.

    Args:
        template: how the prompt is rendered, on which a response's tokens may depend; None if it is not known.

    Raises:
        DataError: labels of another tokenizer's tokens, or a tokenizer that does not say which characters a token holds
            where that is needed.
    """
    after = render(tokenizer, edit.prompt, template) if template else None
    if edit.labels is not None:
        return _checked_labels(tokenizer, edit, edit.labels, after)
    if edit.edited is None:
        return Labels(marked_labels(edit.spans or (), spans_of_tokens(tokenizer, edit.original, after)), ())
    if unit == "words":
        spans = [spans_of_tokens(tokenizer, text, after) for text in (edit.original, edit.edited)]
        return word_labels(edit.original, edit.edited, (spans[0], spans[1]))
    original, edited = (response_tokens(tokenizer, text, after)[0] for text in (edit.original, edit.edited))
    return labels_of(align(original, edited), len(original) + 1, len(edited) + 1)


def _checked_labels(tokenizer: PreTrainedTokenizerBase, edit: Edit, labels: Labels, after: Rendered | None) -> Labels:
    """Return the labels that an edit holds; DataError if they are not of this tokenizer's tokens."""
    if edit.tokenizer != tokenizer_fingerprint(tokenizer):
        raise DataError(
            f"the labels of {short(edit.original)} are of another tokenizer's tokens; label the edits again with "
            "midcourse edits label --tokenizer, or leave the labels out"
        )
    for name, text, of in (("original", edit.original, labels.original), ("edited", edit.edited, labels.edited)):
        tokens = 0 if text is None else len(response_tokens(tokenizer, text, after)[0]) + 1
        if len(of) != tokens:
            raise DataError(
                f"{short(edit.original)} has {len(of)} labels as {name}_labels, and {tokens} tokens with its end; "
                "label the edits again"
            )
    return labels


def spans_of_tokens(tokenizer: PreTrainedTokenizerBase, text: str, after: Rendered | None = None) -> list[Span]:
    """Return the characters (begin, end) of a response's tokens, its EOS behind the end included."""
    if not tokenizer.is_fast:
        raise DataError("this tokenizer does not say which characters a token holds; align tokens instead of words")
    _, spans = response_tokens(tokenizer, text, after, spans=True)
    return [*spans, (len(text), len(text) + 1)]


def pairs_of_edits(data: EditSet) -> PairSet:
    """Return each edit as a pair, the edited text chosen; those without one are left out."""
    known = [n for n, labels in enumerate(data.labels) if labels.edited]
    pairs = [(edited, original) for edited, original in (data.items[n] for n in known)]
    return PairSet(data.rows, pairs, [data.prompts[n] for n in known])


def pairs_by_level(data: LadderSet) -> PairSet:
    """Return every two levels of each ladder as a pair, the more machine-like one chosen."""
    pairs = [
        (pair, group)
        for item, group in zip(data.items, data.prompts, strict=True)
        for pair in itertools.combinations(item, 2)
    ]
    return PairSet(data.rows, [pair for pair, _ in pairs], [group for _, group in pairs])


def _label(number: int, rollout: Rollout) -> float:
    if rollout.reward is None:
        raise DataError(
            f"rollout {number} ({rollout.response[:40]!r}) has no reward; label it with midcourse sample "
            "--label-with REWARD --resume"
        )
    return rollout.reward


def pairs_by_label(data: RolloutSet) -> PairSet:
    """Return a pair of every two rollouts of a prompt that differ in text and label, the better one chosen."""
    by_prompt: dict[str, list[int]] = {}
    for number, prompt in enumerate(data.prompts):
        by_prompt.setdefault(prompt, []).append(number)
    prompt_of: dict[tuple[int, int], str] = {}
    for prompt, group in by_prompt.items():
        for one, other in itertools.permutations(group, 2):
            if data.labels[one] > data.labels[other] and data.items[one] != data.items[other]:
                prompt_of[data.items[one][0], data.items[other][0]] = prompt
    return PairSet(data.rows, list(prompt_of), list(prompt_of.values()))
