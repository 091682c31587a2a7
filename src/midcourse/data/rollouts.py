"""Rollouts: responses that a language model wrote, and the reward of each if it has one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from midcourse.data.comparisons import Comparison
from midcourse.data.formats import (
    BadRow,
    CsvCell,
    Problem,
    Renamed,
    field_names,
    flag,
    number_of,
    prompt_of,
    read_rows,
    response_in,
    short,
    text_of,
    text_or_messages,
)
from midcourse.lm.prompt import Prompt

COLUMNS = ("prompt", "response", "reward", "finished", "row", "sample", "completion", "label")
ALIASES = {"completion": "response", "label": "reward"}  # what TRL calls them in unpaired preferences
_REMEDY = "write one, or label the rollouts again"


@dataclass(frozen=True)
class Rollout:
    """A response that a language model wrote, and its reward R if it has one.

    A response that was cut at a length limit is not finished: it gets no EOS, and its reward is that of a prefix.
    """

    prompt: Prompt
    response: str
    finished: bool
    reward: float | None = None

    @property
    def responses(self) -> tuple[str, ...]:
        """Return its texts besides the prompt."""
        return (self.response,)


def read_rollouts(
    path: str | Path,
    *,
    limit: Callable[[Rollout], str | None] | None = None,
    rejects: list[BadRow] | None = None,
    renamed: Renamed | None = None,
) -> list[Rollout]:
    """Read the rollouts to train on from a file in one of the formats of `read_comparisons`, in order.

    Fields: `prompt` (a text or a list of {role, content}), `response` (a text; empty only if finished), `reward` (a
    finite number, or true or false for 1 or 0) and optionally `finished` (true if absent); others are ignored. TRL's
    names `completion` and `label` do as well. `limit`, `rejects` and `renamed` are as in `read_comparisons`.

    Raises:
        DataError: a file that cannot be read or has no usable row; without `rejects`, the first bad row, such as one
            without a reward.
    """
    return read_rows(path, _labelled, "rollouts", COLUMNS, limit=limit, rejects=rejects, renamed=renamed)


def read_samples(path: str | Path, *, rejects: list[BadRow] | None = None) -> list[Rollout]:
    """Read the rollouts of a file that `midcourse sample` wrote, or of several of them joined, labelled or not.

    They come by prompt and sample (the fields `row` and `sample`), since a file has them as they were finished; rows of
    other tools need no such fields and stay as they are.

    Raises:
        DataError: as `read_rollouts`, but a reward may be missing.
    """
    placed = read_rows(path, lambda fields: (_place(fields), rollout_of(fields)), "rollouts", COLUMNS, rejects=rejects)
    return [rollout for _, rollout in sorted(placed, key=itemgetter(0))]


def are_rollouts(path: str | Path, renamed: Renamed | None = None) -> bool:
    """Say whether a file's first row has the fields of a rollout, and not those of a comparison."""
    fields = field_names(path, (*COLUMNS, "chosen", "rejected"), renamed)
    return bool(fields & {"response", "reward", "completion"}) and not fields & {"chosen", "rejected"}


def label_comparisons(comparisons: Iterable[Comparison]) -> list[Rollout]:
    """Return two labelled responses of each comparison: the chosen one with 1, the rejected one with 0.

    So FUDGE (Yang and Klein, 2021) and RAD (Deng and Raffel, 2023) label texts that have an attribute or have it not.
    """
    return [
        Rollout(c.prompt, *side)
        for c in comparisons
        for side in ((c.chosen, c.chosen_finished, 1.0), (c.rejected, c.rejected_finished, 0.0))
    ]


def rollout_of(fields: dict[str, Any]) -> Rollout:
    """Return the rollout in a row's fields, with or without a reward; Problem if there is none."""
    fields = _named_alike(fields)
    for field in ("prompt", "response"):
        if field not in fields:
            raise Problem(field, "the field is missing; each row needs prompt and response")
    response, finished = text_of(fields, "response"), flag(fields, "finished")
    return Rollout(prompt_of(fields), response, finished, number_of(fields, "reward", _REMEDY))


def _named_alike(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a row of unpaired preferences (completion, label) as one of rollouts."""
    found = {ours: fields[theirs] for theirs, ours in ALIASES.items() if theirs in fields and ours not in fields}
    fields = {**fields, **found}
    response = fields.get("response")
    if isinstance(response, str | dict) or (
        isinstance(response, list) and all(isinstance(one, dict) for one in response)
    ):
        fields["response"] = _text_of_response(text_or_messages(fields, "response"))
    return fields


def _text_of_response(response: Any) -> str:
    """Return a response that is a text or a message; Problem if that is not one of the assistant."""
    if isinstance(response, str):
        return response
    if [message["role"] for message in response] != ["assistant"]:
        roles = ", ".join(short(message["role"]) for message in response[:4]) or "none"
        raise Problem("response", f"{len(response)} messages (roles: {roles}) where one of the assistant is due")
    return response_in("response", response[0])


def _labelled(fields: dict[str, Any]) -> Rollout:
    fields = _named_alike(fields)
    for field in ("prompt", "response", "reward"):
        if field not in fields:
            raise Problem(field, "the field is missing; each row needs prompt, response and reward")
    rollout = rollout_of(fields)
    if not rollout.response and not rollout.finished:
        raise Problem("response", "the response is empty and was cut; remove the row")
    if rollout.reward is None:
        raise Problem("reward", f"{short(fields['reward'])} is not a finite number; {_REMEDY}")
    return rollout


def _place(fields: dict[str, Any]) -> tuple[int, int]:
    row, sample = (fields.get(name) for name in ("row", "sample"))
    return _count(row), _count(sample)


def _count(value: Any) -> int:
    """Return a number, also as a cell of CSV spells it; 0 for whatever else other tools may have put there."""
    if isinstance(value, CsvCell) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) else 0
