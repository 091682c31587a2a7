"""The rows of a comparison: responses with their figures, and what judges said of them.

A folder of `midcourse compare` holds results.jsonl (a row for each method, setting, prompt and seed), judgements.jsonl
and compare.json (what was asked). This reads them; the figures are made of nothing else.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from midcourse.data.jsonl import whole_rows
from midcourse.data.record import read_record
from midcourse.errors import MidcourseError
from midcourse.lm.prompt import Prompt

_WHAT, _REMEDY = "a comparison", "remove it and resume"
RESULTS, JUDGEMENTS, ASKED = "results.jsonl", "judgements.jsonl", "compare.json"
REFERENCE_RESPONSES = "reference"  # the arm that holds the data set's own responses


class ComparisonError(MidcourseError):
    """A folder that holds no comparison, or not enough of one."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One emitted token: the fields of decode.steps.Step without the candidates."""

    token_id: int
    text: str
    logprob: float | None = None
    reference_logprob: float | None = None
    reward: float | None = None
    weight: float | None = None
    guidance_kl: float | None = None
    total_kl: float | None = None


@dataclass(frozen=True, slots=True)
class StoredCost:
    """What a response cost.

    Attributes:
        lm_passes, reward_passes: token positions computed by the language model and by the reward.
        candidates: candidate tokens or responses that the reward judged.
        seconds: of the response.
        first_token_seconds: until its first token.
        batch: the first prompt of the batch that it was written in, whose responses share its passes and seconds.
    """

    lm_passes: float
    reward_passes: float
    candidates: float
    seconds: float
    first_token_seconds: float | None = None
    batch: int = 0


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """A row of results.jsonl.

    Attributes:
        key: names the row.
        arm: method with reward and setting, such as "pargs civil w=2"; rows of an arm are averaged.
        method, reward, setting: what the arm's name says, apart.
        prompt_id, prompt, seed: what was answered; the seeds of a prompt go together in every bootstrap.
        text: the response without EOS.
        finish_reason: "stop" (EOS or a stop string) or "length".
        guide_reward: the guide's own reward of the response.
        guidance_kl, total_kl: nats of the response; None if a method has none.
        kl_bound: best-of-n's bound on its guidance KL, log n - (n - 1) / n.
        greedy: its choices were not drawn.
        tokens: how many it has; 0 for responses of a data set.
        logprob, reference_logprob: sums over its tokens; None if there are none, or one of them has none.
        cost: None for responses of a data set.
    """

    key: str
    arm: str
    method: str
    prompt_id: int
    prompt: Prompt
    seed: int
    text: str
    reward: str | None = None
    setting: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    guide_reward: float | None = None
    guidance_kl: float | None = None
    total_kl: float | None = None
    kl_bound: float | None = None
    greedy: bool = False
    tokens: int = 0
    logprob: float | None = None
    reference_logprob: float | None = None
    cost: StoredCost | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """A row of judgements.jsonl: a score, or the outcome of an LM judge's comparison with another arm's response.

    Attributes:
        key: the response judged.
        judge: its name.
        score: None if there is none.
        versus: the arm whose response to the same prompt was the other side.
        outcome: 1 for the response, 0 for the other, 0.5 for a tie; None if no verdict could be read.
        parsed: False if no verdict could be read.
    """

    key: str
    judge: str
    score: float | None = None
    versus: str | None = None
    outcome: float | None = None
    parsed: bool = True


@dataclass(frozen=True)
class ComparisonRows:
    """All rows of a folder, and what was asked.

    Attributes:
        folder: where they are.
    """

    responses: Sequence[ResponseRow]
    judgements: Sequence[Judgement]
    asked: Mapping[str, Any]
    folder: Path

    def tokens_of(self, keys: Collection[str]) -> dict[str, list[TokenRow]]:
        """Return the tokens of these responses, which take most of a file and are not kept in memory."""

        def tokens(row: Mapping[str, Any]) -> tuple[str, list[TokenRow]] | None:
            if row["key"] not in keys:
                return None
            return row["key"], [TokenRow(**_known(TokenRow, token)) for token in row.get("tokens") or ()]

        return dict(filter(None, whole_rows(self.folder / RESULTS, tokens, _WHAT, _REMEDY)))


def read_folder(folder: Path) -> ComparisonRows:
    """Read the rows of a comparison, finished or not; a torn last line is left out.

    Of rows with the same key (and judge, and other side) the last one counts.

    Raises:
        ComparisonError: no folder, or no rows in it.
        RowFileError: a line that is no row, with file and line.
    """
    if not (folder / RESULTS).exists():
        raise ComparisonError(f"{folder} has no {RESULTS}; give the folder that midcourse compare wrote")
    shared: dict[str, Any] = {}
    read = partial(
        _response, share=lambda value: shared.setdefault(value if isinstance(value, str) else repr(value), value)
    )
    responses = {row.key: row for row in whole_rows(folder / RESULTS, read, _WHAT, _REMEDY)}
    if not responses:
        raise ComparisonError(f"{folder / RESULTS} has no rows yet; run midcourse compare with --resume to write some")

    def judgement(row: Mapping[str, Any]) -> Judgement:
        known = responses.get(row["key"])
        return Judgement(**{**_known(Judgement, row), "key": known.key if known else row["key"]})

    judged = whole_rows(folder / JUDGEMENTS, judgement, _WHAT, _REMEDY)
    judgements = {(row.key, row.judge, row.versus): row for row in judged}
    return ComparisonRows(list(responses.values()), list(judgements.values()), _asked(folder / ASKED), folder)


def _asked(path: Path) -> Mapping[str, Any]:
    """Return compare.json; {} if there is none."""
    if not path.exists():
        return {}
    return read_record(path, ComparisonError, "restore it or run the comparison anew")


def _response(row: Mapping[str, Any], share: Callable[[Any], Any]) -> ResponseRow:
    """Return a row of results.jsonl.

    Args:
        share: gives equal values one place in memory, as many rows have them.
    """
    cost, tokens = row.get("cost"), row.get("tokens") or ()
    known = _known(ResponseRow, row)
    common = {name: share(known[name]) for name in ("arm", "method", "reward", "setting", "prompt") if name in known}
    sums = {name: _sum([token.get(name) for token in tokens]) for name in ("logprob", "reference_logprob")}
    cost = StoredCost(**_known(StoredCost, cost)) if cost else None
    return ResponseRow(**(known | common | sums | {"tokens": len(tokens), "cost": cost}))


def _sum(values: Sequence[float | None]) -> float | None:
    return math.fsum(map(float, values)) if values and None not in values else None  # type: ignore[arg-type]


def _known(kind: type, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a row that the kind has; a JSON number may be written as an integer."""
    known = {field.name: (row[field.name], field.type) for field in fields(kind) if field.name in row}
    numbers = (float, float | None)
    return {k: float(value) if of in numbers and value is not None else value for k, (value, of) in known.items()}
