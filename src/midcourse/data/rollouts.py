"""Rollouts to train on: responses with a final reward, as `midcourse sample` writes them; bad rows refused by line."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midcourse.data.comparisons import Comparison
from midcourse.data.formats import JSON_LINES, BadRow, Problem, first_fields, flag, prompt_of, read_rows, short, text_of
from midcourse.lm.prompt import Prompt


@dataclass(frozen=True)
class Rollout:
    """A response and its reward R. One that was cut at a length limit is not finished: it gets no EOS."""

    prompt: Prompt
    response: str
    finished: bool
    reward: float

    @property
    def responses(self) -> tuple[str, ...]:
        """Its texts besides the prompt."""
        return (self.response,)


def read_rollouts(
    path: str | Path,
    *,
    limit: Callable[[Rollout], str | None] | None = None,
    rejects: list[BadRow] | None = None,
) -> list[Rollout]:
    """The rollouts of a .jsonl, .json (one object a line), .jsonl.gz or .json.gz file, in order.

    Fields: `prompt` (a text or a list of {role, content}), `response` (a text; empty only if finished), `reward` (a
    finite number) and optionally `finished` (true where absent); others, such as midcourse sample's `row`, `sample` and
    `seed`, are ignored. `limit` and `rejects` are as in `read_comparisons`.

    Raises:
        DataError: a file that cannot be read or has no usable row; without `rejects`, the first bad row.
    """
    return read_rows(path, _rollout, "rollouts", JSON_LINES, limit=limit, rejects=rejects)


def are_rollouts(path: str | Path) -> bool:
    """Whether a file's first row has the fields of a rollout, and not those of a comparison."""
    fields = first_fields(path)
    return bool(fields & {"response", "reward"}) and not fields & {"chosen", "rejected"}


def label_comparisons(comparisons: Iterable[Comparison]) -> list[Rollout]:
    """Two labelled responses of each comparison: the chosen one with 1, the rejected one with 0.

    So FUDGE (Yang and Klein, 2021) and RAD (Deng and Raffel, 2023) label texts that have an attribute or have it not.
    """
    return [
        Rollout(c.prompt, *side)
        for c in comparisons
        for side in ((c.chosen, c.chosen_finished, 1.0), (c.rejected, c.rejected_finished, 0.0))
    ]


def _rollout(fields: dict[str, Any]) -> Rollout:
    for field in ("prompt", "response", "reward"):
        if field not in fields:
            raise Problem(field, "the field is missing; each row needs prompt, response and reward")
    prompt, response = prompt_of(fields), text_of(fields, "response")
    finished = flag(fields, "finished")
    if not response and not finished:
        raise Problem("response", "the response is empty and was cut; remove the row")
    reward = fields["reward"]
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise Problem("reward", f"{short(reward)} is not a finite number; write one, or label the rollouts again")
    return Rollout(prompt, response, finished, float(reward))
