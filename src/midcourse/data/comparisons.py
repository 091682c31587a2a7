"""Preference files to comparisons: (prompt, chosen, rejected), bad rows refused with file, line and field.

Reads JSON Lines (also gzipped), CSV and Parquet in the preference formats of TRL: texts or message lists, the prompt
in its own field or shared by both sides.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from midcourse.data.formats import (
    BadRow,
    CsvCell,
    DataError,
    Problem,
    Renamed,
    check_beside_prompt,
    flag,
    names,
    prompt_of,
    read_rows,
    response_in,
    short,
    text_or_messages,
)
from midcourse.lm.prompt import Message, Prompt, as_messages, split_transcript

# What other data sets call a prompt. Nothing is read from there: only a row without a prompt is refused if it has one.
PROMPTS_ELSEWHERE = (
    "instruction", "question", "query", "input", "problem", "prompts", "user", "user_prompt", "inputs", "request",
    "post", "history", "messages", "conversation", "conversations",
)  # fmt: skip
COLUMNS = ("prompt", "chosen", "rejected", "chosen_finished", "rejected_finished", *PROMPTS_ELSEWHERE)


@runtime_checkable
class Example(Protocol):
    """A row of training data: a prompt and what was written after it. A frozen dataclass.

    It may have a `group`, the name of what it belongs to besides; see `prompt_groups`.
    """

    @property
    def prompt(self) -> Prompt:
        """Return what was asked."""

    @property
    def responses(self) -> tuple[str, ...]:
        """Return the texts besides the prompt."""


AnyExample = TypeVar("AnyExample", bound=Example)


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt, and which of them is preferred.

    A response cut at a length limit is not finished: it gets no EOS and teaches nothing about ends.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    chosen_finished: bool = True
    rejected_finished: bool = True

    @property
    def responses(self) -> tuple[str, ...]:
        """Return its texts besides the prompt."""
        return self.chosen, self.rejected


def read_comparisons(
    path: str | Path,
    *,
    limit: Callable[[Comparison], str | None] | None = None,
    rejects: list[BadRow] | None = None,
    renamed: Renamed | None = None,
) -> list[Comparison]:
    """Read the comparisons of a .jsonl or .json (perhaps .gz), .csv, .tsv or .parquet file, in order.

    Fields: `chosen` and `rejected`, optionally `prompt`, `chosen_finished` and `rejected_finished` (true if
    absent); others are ignored. Each of the first three is a text or a list of {role, content}, also as a text of JSON.
    With `prompt`, a list in `chosen` or `rejected` is one assistant message, or the whole conversation; either may be a
    list of several texts, of which every two are a comparison. Without it the prompt is what both sides share: the
    messages before the last, the transcript ("\\n\\nHuman: ...\\n\\nAssistant: ...") up to its last
    "\\n\\nAssistant:", or the longest common beginning that ends with a whole word.

    The path may be a folder of such files, or a pattern ("data/*.parquet").

    `limit` says what is wrong with the length of a comparison, or None. With `rejects`, bad rows are appended to it
    and reading goes on. `renamed` are fields that the file has by other names.

    Raises:
        DataError: a file that cannot be read or has no usable row; without `rejects`, the first bad row.
    """

    def problem(row: list[Comparison]) -> str | None:
        return next((found for one in row if limit and (found := limit(one))), None)

    rows = read_rows(path, _comparisons, "comparisons", COLUMNS, limit=problem, rejects=rejects, renamed=renamed)
    return [comparison for row in rows for comparison in row]


def prompt_key(prompt: Prompt) -> str:
    """Return a prompt as one text, the same in every process: itself, or its messages as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(list(prompt), sort_keys=True, ensure_ascii=False)


def prompt_groups(examples: Sequence[Example]) -> list[str]:
    """Return one name per example, the same for those that must stay together: the prompt.

    An empty prompt (edits, ladders, unconditional texts) says nothing; of those, rows that share a text or are of one
    `group` belong together, directly or through others, and the first of their groups and texts in alphabetical order
    names them.
    """
    smaller: dict[str, str] = {}

    def root(text: str) -> str:
        while (other := smaller.setdefault(text, text)) != text:
            smaller[text] = text = smaller[other]
        return text

    for example in examples:
        if not prompt_key(example.prompt):
            low, *others = sorted({root(tie) for tie in _ties(example)})
            for other in others:
                smaller[other] = low
    return [prompt_key(example.prompt) or root(example.responses[0]) for example in examples]


def _ties(example: Example) -> list[str]:
    """Return what holds an example without a prompt together with others: its texts, and its group if it has one."""
    group = getattr(example, "group", "")
    # Marked: a group may be called what a text says.
    return [*example.responses, *([f"\0group {group}"] if group else [])]


def split_by_prompt(
    examples: Sequence[AnyExample], held_out: float, seed: int
) -> tuple[list[AnyExample], list[AnyExample]]:
    """Return (kept, held out) comparisons or rollouts, each in the order given; no prompt is on both sides.

    `held_out` is a share of the distinct prompts; at least one goes to each side. Which ones depends on the seed and
    on the set of prompts, not on the order of rows.

    Raises:
        DataError: fewer than two distinct prompts, or a share that is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise DataError(f"the held-out share is {held_out}; use a number between 0 and 1, such as 0.05")
    groups = prompt_groups(examples)
    prompts = set(groups)
    if len(prompts) < 2:
        raise DataError(
            f"{len(prompts)} distinct prompts cannot be split into kept and held out; add rows of other prompts"
        )
    ordered = sorted(prompts, key=lambda key: (digest([seed, key]), key))
    aside = set(ordered[: min(max(round(held_out * len(prompts)), 1), len(prompts) - 1)])
    sides: tuple[list[AnyExample], list[AnyExample]] = ([], [])
    for example, group in zip(examples, groups, strict=True):
        sides[group in aside].append(example)
    return sides


def fingerprint(examples: Iterable[Any]) -> str:
    """Return 16 hexadecimal digits that name these comparisons or rollouts in this order."""
    return digest([asdict(example) for example in examples])[:16]


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's JSON, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ---- rows: fields to a comparison ----


def _comparisons(fields: dict[str, Any]) -> list[Comparison]:
    return [_comparison(one) for one in one_each(fields)]


def one_each(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row with lists of texts as rows of one chosen and one rejected text each, as RewardBench 2 has them."""
    sides = {}
    for side in ("chosen", "rejected"):
        value = _texts_in_cell(fields.get(side))
        if isinstance(value, list) and value and all(isinstance(text, str | list) for text in value):
            sides[side] = value
    rows = [fields]
    for side, texts in sides.items():
        rows = [{**row, side: text} for row in rows for text in texts]
    return rows


def _texts_in_cell(value: Any) -> Any:
    """Return the texts that a cell of CSV holds as a list of JSON, since it can hold no other; else the value."""
    if isinstance(value, CsvCell) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(value)
            if isinstance(found, list) and found and all(isinstance(text, str) for text in found):
                return found
    return value


def _comparison(fields: dict[str, Any]) -> Comparison:
    comparison = comparison_of(fields)
    for side, response in (("chosen", comparison.chosen), ("rejected", comparison.rejected)):
        if not response.strip():
            raise Problem(side, f"the response {short(response)} is empty; write one or remove the row")
    if comparison.chosen == comparison.rejected:
        raise Problem("rejected", f"the response {short(comparison.rejected)} equals the chosen one; remove the row")
    return comparison


def comparison_of(fields: dict[str, Any]) -> Comparison:
    """Return the comparison in a row's fields, its responses perhaps empty or equal; Problem if there is none."""
    for side in ("chosen", "rejected"):
        if side not in fields:
            raise Problem(side, f"the field is missing among {names(fields)}; each row needs chosen and rejected")
    prompt, chosen, rejected = _explicit(fields) if "prompt" in fields else _implicit(fields)
    return Comparison(prompt, chosen, rejected, flag(fields, "chosen_finished"), flag(fields, "rejected_finished"))


def _explicit(fields: dict[str, Any]) -> tuple[Prompt, str, str]:
    prompt = prompt_of(fields)
    texts = [fields["chosen"], fields["rejected"]]
    if (
        isinstance(prompt, str)
        and len(prompt.strip()) > 7
        and all(isinstance(text, str) and text.startswith(prompt) for text in texts)
    ):
        raise Problem("chosen", "both responses begin with the whole prompt; leave that out of them, or the prompt out")
    (one, chosen), (other, rejected) = (_response(fields, side, prompt) for side in ("chosen", "rejected"))
    if prompt_key(one) != prompt_key(other):
        raise Problem("rejected", "its conversation has other messages before the last than chosen; make them equal")
    return one, chosen, rejected


def _response(fields: dict[str, Any], side: str, prompt: Prompt) -> tuple[Prompt, str]:
    """Return the prompt and the response of one side, which may be a text, a message, or the whole conversation."""
    value = text_or_messages(fields, side)
    if isinstance(value, str):
        return prompt, value
    *shared, last = value or [{}]
    given = [(message["role"], message["content"].strip()) for message in as_messages(prompt)]
    have = [(message["role"], message["content"].strip()) for message in shared]
    if have and have[-len(given) :] == given:  # a system message may stand before the prompt
        return (prompt if have == given else shared), _one_assistant_message(side, [last], "end with the response")
    remedy = "or leave the prompt field out where chosen and rejected hold the whole conversation"
    return prompt, _one_assistant_message(side, value, f"begin with the prompt's messages, {remedy}")


def _implicit(fields: dict[str, Any]) -> tuple[Prompt, str, str]:
    check_beside_prompt(fields)
    chosen, rejected = text_or_messages(fields, "chosen"), text_or_messages(fields, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_transcripts(chosen, rejected) or _split_texts(fields, chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise Problem("rejected", "one side is a text and the other a list of messages; write both in the same way")
    return _split_conversations(fields, chosen, rejected)


def _split_conversations(
    fields: dict[str, Any], chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], str, str]:
    shared = _shared_length(chosen, rejected)
    if chosen == rejected:
        raise Problem("rejected", "the messages equal the chosen ones; remove the row")
    if not shared:
        _check_elsewhere(fields)
        raise Problem("prompt", "chosen and rejected share no first message; add a prompt field")
    if chosen[shared - 1]["role"] == "system":
        _check_elsewhere(fields)
        raise Problem("prompt", "chosen and rejected share nothing but the system's message; add a prompt field")
    remedy = f"after the {shared} shared messages, which are the prompt, write the response"
    chosen_response = _one_assistant_message("chosen", chosen[shared:], remedy)
    return chosen[:shared], chosen_response, _one_assistant_message("rejected", rejected[shared:], remedy)


def _one_assistant_message(side: str, messages: list[Message], remedy: str) -> str:
    if [message["role"] for message in messages] != ["assistant"]:
        roles = ", ".join(short(message["role"]) for message in messages[:4]) or "none"
        raise Problem(side, f"{len(messages)} messages (roles: {roles}) where one of the assistant is due; {remedy}")
    return response_in(side, messages[0])


def _split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Return prompt and responses if either side is a transcript; otherwise None."""
    one, other = split_transcript(chosen), split_transcript(rejected)
    if one is None and other is None:
        return None
    if one is None or other is None or one[0] != other[0]:
        raise Problem("prompt", "the transcripts differ before their last '\\n\\nAssistant:'; make their prompts equal")
    return *one, other[1]


def _check_elsewhere(fields: dict[str, Any]) -> None:
    """Raise Problem if a row without a prompt has one by another name."""
    known = {*PROMPTS_ELSEWHERE, "prompt"}
    given = [name for name, value in fields.items() if str(value or "").strip()]
    if elsewhere := [name for name in given if name.strip().lower() in known]:
        raise Problem(
            "prompt", f"the field is missing, and {elsewhere[0]} seems to hold it; add --columns prompt={elsewhere[0]}"
        )


def _split_texts(fields: dict[str, Any], chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split off the longest common beginning, cut back to a word's end; its white space goes to the responses.

    `fields` are looked at for a prompt of another name, which such a beginning is not.
    """
    _check_elsewhere(fields)
    end = _shared_length(chosen, rejected)
    while end and not (chosen[end : end + 1].isspace() and rejected[end : end + 1].isspace()):
        end -= 1
    prompt = chosen[:end].rstrip()
    if not prompt:
        raise Problem("prompt", "chosen and rejected share no first word; add a prompt field, empty if there is none")
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def _shared_length(left: Sequence, right: Sequence) -> int:
    pairs = zip(left, right, strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))
