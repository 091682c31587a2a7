"""Prompts to rollouts: the language model's own responses, each with the number a reward gives it.

A value of the text that a policy will write has to be learned from what that policy writes: the defaults here are those
of guided decoding, the LM's top 10 at temperature 1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast

from midcourse.data.formats import Problem
from midcourse.data.jsonl import RowFileError, as_line, written_rows
from midcourse.data.prompts import answered, append_responses, begin_record, recorded, what_is_asked
from midcourse.data.record import only_writer
from midcourse.data.rollouts import Rollout, rollout_of
from midcourse.decode.methods import Method
from midcourse.decode.steps import Generation
from midcourse.errors import MidcourseError
from midcourse.files import write_bytes
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Prompt, Template
from midcourse.progress import progress
from midcourse.rewards.contract import Reward, Text
from midcourse.rewards.fingerprint import reward_fingerprint
from midcourse.rewards.text import FunctionReward

LABEL_ROWS = 32  # that are labelled together

Label: TypeAlias = Reward | Callable[[str], float]


class SampleError(MidcourseError):
    """Rollouts that cannot be made or labelled; names the row."""


def sample(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    out: str | Path,
    *,
    n: int = 8,
    label: Label | None = None,
    max_new_tokens: int = 64,
    top_k: int | None = 10,
    top_p: float = 1.0,
    temperature: float = 1.0,
    template: Template | None = None,
    seed: int = 0,
    batch_size: int = 16,
    resume: bool = False,
) -> list[Rollout]:
    """Write `n` responses to every prompt into `out`, and return all that it holds, by prompt and sample.

    A row is on disk as soon as it is finished: {"row", "sample", "prompt", "response", "finished", "reward", "seed"},
    "reward" only with a label. Its text depends on its seed alone, which is seed + n row + sample.

    Args:
        n: samples of each prompt; of a prompt that comes twice, twice as many.
        label: what gives the rewards: of a finished response that of the finished text, of a cut one that of the
            prefix; or a function of the response.
        top_k: candidates per token, None for the whole vocabulary; these and the next two should be those of the
            policy that is to be guided.
        template: how prompts become tokens; by default the label's own, else "raw".
        batch_size: rows written together; a finished row's place goes to the next.
        resume: keep the rows of `out`, give a label to those that have none, and add the missing ones.

    Raises:
        SampleError: a label function that raises, or a reward that is no finite number; the rows before it are kept.
        RowFileError: another process writes to `out`; it holds rows, and `resume` is not set or they were asked for
            otherwise: with another LM, sampling, prompts, n or seed, or labels of another reward.

    Examples:
        >>> rollouts = sample(lm, ["The ferry was late, and"], "rollouts.jsonl", n=4, label=my_function)
        >>> comparisons, summary = prefer(rollouts)
        >>> train(RewardModel.create("smollm2", template="raw"), comparisons, Path("my-reward"))
    """
    out = Path(out)
    if n < 1:
        raise SampleError(f"n {n} asks for no sample; use 1 or more")
    if seed < 0:
        raise SampleError(f"seed {seed} is negative; use 0 or more")
    reward = as_reward(label)
    asked = [prompt for prompt in prompts for _ in range(n)]
    with only_writer(out, "file", "run", RowFileError):
        there = written_rows(out, resume, lambda row: _index(row, prompts, n, seed))
        earlier = recorded(out)
        settings: dict[str, Any] = {
            # Not a named method: there no top_k means the method's own.
            "method": Method(None, reward_weight=0.0, top_k=top_k, top_p=top_p, temperature=temperature),
            "max_new_tokens": max_new_tokens,
            "template": template or earlier.get("template") or (reward.template if reward else None),
            "seed": seed,
            "batch_size": batch_size,
        }
        policy = what_is_asked(lm, None, **settings)
        label_name = reward_fingerprint(reward) if reward else earlier.get("label")
        if there and all(row.get("reward") is None for row in there.values()):
            earlier |= {"label": label_name}  # no row has a label yet: any reward may give them
        begin_record(out, {**policy, "label": label_name}, prompts, earlier)
        if reward is not None:
            _label_file(out, there, reward)
        left = [i for i in range(len(asked)) if i not in there]

        def as_row(index: int, generation: Generation) -> dict[str, Any]:
            there[index] = _row(index, n, generation, reward)
            return there[index]

        append_responses(out, lm, asked, left, None, {**settings, "seed": [seed + i for i in left]}, as_row)
    return [_rollout(there[i]) for i in range(len(asked))]


def _index(row: dict[str, Any], prompts: Sequence[Prompt], n: int, seed: int) -> int:
    """Return the place of a written row among all; Problem if this run would write another there."""
    index = answered(row, prompts) * n + row["sample"]
    if not 0 <= row["sample"] < n or row["seed"] != seed + index:
        raise Problem("row", f"was sampled with another --n or --seed than {n} and {seed}")
    _rollout(row)
    return index


def _rollout(row: dict[str, Any]) -> Rollout:
    return replace(rollout_of(row), prompt=row["prompt"])


def _row(index: int, n: int, generation: Generation, reward: Reward | None) -> dict[str, Any]:
    row = {
        "row": index // n,
        "sample": index % n,
        "prompt": generation.prompt,
        "response": generation.text,
        "finished": generation.finish_reason == "stop",
        "seed": generation.seed,
    }
    return row if reward is None else _labelled(row, reward)


# Labels


def as_reward(label: Label | None) -> Reward | None:
    """Return a reward as it is, a function as the reward of the response."""
    if label is None or hasattr(label, "start"):  # models are callable too
        return cast(Reward | None, label)
    return FunctionReward(label)


def rewards_of(reward: Reward, rollouts: Sequence[Rollout]) -> list[float]:
    """Return the reward of each response: of the finished text, or if it was cut of the prefix."""
    return reward.rate([Text(r.prompt, r.response, r.finished) for r in rollouts])


def _labelled(row: dict[str, Any], reward: Reward) -> dict[str, Any]:
    """Return the row with its reward, before the seed."""
    try:
        (value,) = rewards_of(reward, [_rollout(row)])
    except MidcourseError as error:
        raise SampleError(f"row {row['row']}, sample {row['sample']}: {error}; then go on with --resume") from error
    return _with_reward(row, value)


def _with_reward(row: dict[str, Any], value: float) -> dict[str, Any]:
    if not math.isfinite(value):
        raise SampleError(
            f"row {row['row']}, sample {row['sample']}: the reward is {value}, no finite number; use another reward"
        )
    return {**{key: row[key] for key in row if key != "seed"}, "reward": value, "seed": row["seed"]}


def _label_file(path: Path, rows: dict[int, dict[str, Any]], reward: Reward) -> None:
    """Give every row that has no reward one. Those labelled before a mistake or Ctrl-C have theirs in the file."""
    bare = [index for index, row in rows.items() if row.get("reward") is None]
    if not bare:
        return
    try:
        with progress("labelling", len(bare)) as advance:
            for begin in range(0, len(bare), LABEL_ROWS):
                part = bare[begin : begin + LABEL_ROWS]
                for index, row in zip(part, _labelled_rows([rows[index] for index in part], reward), strict=False):
                    rows[index] = row
                    advance(1)
    finally:
        write_bytes(path, b"".join(map(as_line, rows.values())))


def _labelled_rows(rows: Sequence[dict[str, Any]], reward: Reward) -> Iterator[dict[str, Any]]:
    """Yield the rows with their rewards, read together; one by one if that fails, to name the row."""
    try:
        values = rewards_of(reward, [_rollout(row) for row in rows])
    except MidcourseError:
        for row in rows:
            yield _labelled(row, reward)
    else:
        yield from map(_with_reward, rows, values)
