"""Judges of responses: rewards of whole texts, functions of the text, and a language model that compares.

Their judgements are rows of a file of their own, so that a judge can be added when the responses are there already.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from midcourse.compare.arms import PLAIN, CompareError
from midcourse.compare.independence import Origin, of_function, of_reward, unknown, why_dependent
from midcourse.compare.rows import REFERENCE_RESPONSES
from midcourse.compare.study import Study
from midcourse.compare.writing import WrittenResponse, key_of
from midcourse.data.chat import answered
from midcourse.data.formats import Problem
from midcourse.data.jsonl import append_row, append_rows, appending, kept_rows
from midcourse.data.judge import Judge, Verdict
from midcourse.progress import progress
from midcourse.rewards.contract import Text
from midcourse.rewards.gold import load_gold
from midcourse.rewards.info import place_of, read_info
from midcourse.rewards.named import is_function, load_reward, own_settings

# What a judgement is of: the response's key, the judge, and the arm of the other side, None for a score.
Judged: TypeAlias = tuple[str, str, str | None]
BATCH = 32  # responses judged between two writes to disk
JUDGEMENTS = "judgements.jsonl"
_OUTCOMES = {"a": 1.0, "b": 0.0, "tie": 0.5, None: None}


@dataclass(frozen=True)
class NumberJudge:
    """A judge that gives every response a number.

    Attributes:
        rate: responses to numbers.
        record: what compare.json says of it besides.
    """

    name: str
    kind: str
    origin: Origin
    rate: Callable[[Sequence[WrittenResponse]], list[float]]
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VersusJudge:
    """A judge that says which of two responses is better; see `midcourse.data.judge`."""

    name: str
    judge: Judge
    kind: str = "llm"

    @property
    def origin(self) -> Origin:
        """Return an origin of which only the name is known, not weights and rows."""
        return Origin(self.name, self.judge.fingerprint)

    @property
    def record(self) -> dict[str, Any]:
        """Return what compare.json says of the judge besides."""
        return {"instructions": self.judge.instructions}


AnyJudge = NumberJudge | VersusJudge


# Judges by name


def is_address(text: str) -> bool:
    """Return whether a judge's name is that of a server."""
    return text.startswith(("http://", "https://"))


def named_judge(
    source: str, name: str, *, label: str | None = None, device: str = "auto", dtype: str = "auto"
) -> NumberJudge:
    """Return the judge that a name stands for: a function of the text, or a reward of any other kind.

    Args:
        name: what a reward is called in the tables; a function keeps its own name.
        label: what is rewarded of a classifier of several labels.

    Raises:
        RewardError, ModelError: no reward or function has that name.
    """
    if is_function(source):
        return gold_judge(source)
    return reward_judge(source, name, label=label, device=device, dtype=dtype)


def gold_judge(name: str) -> NumberJudge:
    """Return a function of the response's text as a judge; RewardError if there is none of that name."""
    gold = load_gold(name)
    return NumberJudge(name, "gold", of_function(name), lambda responses: [gold(one.text) for one in responses])


def reward_judge(
    source: str, name: str, *, label: str | None = None, device: str = "auto", dtype: str = "auto"
) -> NumberJudge:
    """Return a trained reward as a judge, with its own template, and the accuracy that it had on held-out pairs.

    The reward of a response that was cut is that of the prefix it is.
    """
    source = str(place_of(source))
    reward = load_reward(source, **own_settings(source, label=label), device=device, dtype=dtype)
    record: dict[str, Any] = {"objective": None, "accuracy": None, "interval": None, "pairs": None}
    if (Path(source) / "midcourse.json").is_file():
        info = read_info(Path(source))
        whole = next((row for row in info.metrics.get("shares", []) if row["share"] == 1), None)
        record["objective"] = info.objective
        if whole is not None:
            record |= {"accuracy": whole["accuracy"], "interval": whole["interval"], "pairs": info.metrics["pairs"]}
    return NumberJudge(
        name,
        "reward",
        of_reward(source, name),
        lambda them: reward.rate([Text(one.prompt, one.text, one.finished) for one in them]),
        record,
    )


# Judging


def judge_rows(
    judges: Sequence[AnyJudge], rows: Mapping[str, WrittenResponse], folder: Path, concurrency: int
) -> dict[Judged, float | None]:
    """Append what is missing to the folder's judgements; return all: scores, and outcomes against other arms.

    A judge that compares does so with plain's response to the same prompt and seed, and with the reference response.

    Raises:
        JudgeError, CompareError: a judge that does not answer, or not with numbers; what was judged before is kept.
    """

    def key_of(row: dict[str, Any]) -> Judged:
        if row["key"] not in rows:
            raise Problem("row", f"judges {row['key']!r}, which is no response here")
        return rows[row["key"]].key, sys.intern(row["judge"]), row.get("versus") and sys.intern(row["versus"])

    path = folder / JUDGEMENTS
    judged = kept_rows(path, True, key_of, _value)
    for judge in judges:
        with appending(path) as file:
            if isinstance(judge, NumberJudge):
                left = [one for one in rows.values() if (one.key, judge.name, None) not in judged]
                with progress(f"judging by {judge.name}", len(left)) as advance:
                    for found in _numbers(judge, left):
                        append_rows(file, found)
                        judged |= {key_of(row): _value(row) for row in found}
                        advance(len(found))
                continue
            pairs = [
                (one, rival)
                for one in rows.values()
                for rival in _rivals(one, rows)
                if (one.key, judge.name, rival.arm) not in judged
            ]
            with progress(f"judging by {judge.name}", len(pairs)) as advance:
                for row in _verdicts(judge, pairs, concurrency):
                    append_row(file, row)
                    judged[key_of(row)] = _value(row)
                    advance(1)
    return judged


def _value(row: Mapping[str, Any]) -> float | None:
    """Return what a judgement says: a score, or an outcome, None if no verdict could be read."""
    return row["score"] if row["score"] is not None else row.get("outcome")


def _rivals(one: WrittenResponse, rows: Mapping[str, WrittenResponse]) -> list[WrittenResponse]:
    """Return what a judge that compares compares a response with."""
    keys = key_of(PLAIN, one.prompt_id, one.seed), key_of(REFERENCE_RESPONSES, one.prompt_id, 0)
    return [rows[key] for key in keys if key in rows and rows[key].arm != one.arm]


def _numbers(judge: NumberJudge, responses: Sequence[WrittenResponse]) -> Iterator[list[dict[str, Any]]]:
    order = sorted(responses, key=lambda one: len(one.text))
    for begin in range(0, len(order), BATCH):
        part = order[begin : begin + BATCH]
        scores = judge.rate(part)
        for one, score in zip(part, scores, strict=True):
            if not abs(score) < float("inf"):
                raise CompareError(f"judge {judge.name} gives {one.key} the number {score}; use another judge")
        yield [
            {"key": one.key, "judge": judge.name, "score": float(score)}
            for one, score in zip(part, scores, strict=True)
        ]


def _verdicts(
    judge: VersusJudge, pairs: Sequence[tuple[WrittenResponse, WrittenResponse]], concurrency: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each pair as soon as its verdicts are there. Equal texts are a tie, and nobody is asked."""
    asked = [(pair, pair) for pair in pairs if pair[0].text != pair[1].text]
    for one, rival in pairs:
        if one.text == rival.text:
            yield _versus(judge, one, rival, Verdict("tie", "tie"))

    def verdict(pair: tuple[WrittenResponse, WrittenResponse]) -> Verdict:
        return judge.judge.compare(pair[0].prompt, pair[0].text, pair[1].text)

    for pair, found in answered(verdict, asked, concurrency):
        yield _versus(judge, *pair, found)


def _versus(judge: VersusJudge, one: WrittenResponse, rival: WrittenResponse, verdict: Verdict) -> dict[str, Any]:
    return {
        "key": one.key,
        "judge": judge.name,
        "score": None,
        "versus": rival.arm,
        "outcome": _OUTCOMES[verdict.winner],
        "parsed": verdict.parsed,
        "first": verdict.a_first,
        "second": verdict.b_first,
    }


def check_judges(judges: Sequence[AnyJudge], study: Study, force: bool) -> dict[str, list[str]]:
    """Return, by judge, what shall be known of its independence.

    Raises:
        CompareError: two judges of one name, or one that is not independent of what it judges, unless forced.
    """
    names = [judge.name for judge in judges]
    if twice := [name for name in names if names.count(name) > 1]:
        raise CompareError(f"two judges are called {twice[0]}; name one folder otherwise")
    guides = list(study.origins.values())
    notes: dict[str, list[str]] = {}
    for judge in judges:
        reasons = [reason for guide in guides if (reason := why_dependent(judge.origin, guide))]
        if isinstance(judge, NumberJudge) and judge.record.get("objective") == "prefix":
            reasons.append(
                "was trained on prefixes of equal length, and its rewards of texts of different length are not "
                "comparable (--objective sequence makes a judge)"
            )
        if reasons and not force:
            raise CompareError(f"judge {judge.name} {reasons[0]}; use another judge, or --force-judges")
        notes[judge.name] = [f"forced: {judge.name} {reason}" for reason in reasons]
        if isinstance(judge, NumberJudge):
            notes[judge.name] += unknown(judge.origin, guides)
    return notes
