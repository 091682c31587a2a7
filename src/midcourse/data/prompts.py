"""Files of prompts in, files of responses out: one JSON row each, appended as soon as it is finished."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from midcourse.data.comparisons import digest
from midcourse.data.formats import BadRow, Problem, Renamed, prompt_of, read_rows
from midcourse.data.jsonl import RowFileError, append_row, appending, check_unwritten, kept_rows, keys_alone
from midcourse.data.record import check_same, only_writer, read_record, write_record
from midcourse.decode.engine import stream
from midcourse.decode.methods import settings_of
from midcourse.decode.request import Request
from midcourse.decode.steps import Generation, Guides, Step
from midcourse.lm.language_model import LanguageModel, rendering
from midcourse.lm.prompt import Prompt, PromptError, Template, prompt_ids
from midcourse.lm.weights import tensors_fingerprint
from midcourse.progress import progress
from midcourse.rewards.contract import Reward
from midcourse.rewards.fingerprint import reward_fingerprint


def read_prompts(
    path: str | Path,
    *,
    limit: Callable[[Prompt], str | None] | None = None,
    rejects: list[BadRow] | None = None,
    renamed: Renamed | None = None,
) -> list[Prompt]:
    """Read the field `prompt` of every row of a file in one of the formats of `read_comparisons`.

    A prompt is a text or a list of {role, content}, also as a text of JSON.

    Args:
        limit: says what is wrong with a prompt, or None; such as `unrenderable`.
        rejects: bad rows are appended to it and reading goes on.
        renamed: fields that the file has by other names.

    Raises:
        DataError: a file that cannot be read or has no usable row; without `rejects`, the first bad row.
    """
    return read_rows(path, prompt_of, "prompts", ("prompt",), limit=limit, rejects=rejects, renamed=renamed)


def unrenderable(lm: LanguageModel, template: Template) -> Callable[[Prompt], str | None]:
    """Return what says why a model's template cannot render a prompt, or None: a check for `read_prompts`."""

    def problem(prompt: Prompt) -> str | None:
        try:
            prompt_ids(lm.tokenizer, prompt, template)
        except PromptError as error:
            return str(error)
        return None

    return problem


# Guided responses


def check_out(out: Path, resume: bool) -> None:
    """Raise RowFileError, before anything is loaded, if another process writes to a file or it exists already."""
    with only_writer(out, "file", "run", RowFileError):
        if not resume:
            check_unwritten(out)


def write_guided(
    out: Path,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    reward: Reward | Guides | None,
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
) -> tuple[int, int]:
    """Write a guided response to every prompt into a file; return how many rows were written, how many there before.

    Args:
        settings: those of `midcourse.stream`; row i uses `seed` + i.
        resume: keep the rows of the file, and add the missing ones.

    Raises:
        RowFileError: another process writes to the file; it holds rows, and `resume` is not set or they were asked for
            otherwise.
        MethodError, PromptError, RewardError: as `midcourse.stream`.
    """
    with only_writer(out, "file", "run", RowFileError):
        there = kept_rows(out, resume, lambda row: answered(row, prompts), keys_alone)
        begin_record(out, what_is_asked(lm, reward, **settings), prompts, recorded(out))
        left = [row for row in range(len(prompts)) if row not in there]
        seeds = [settings.get("seed", 0) + row for row in left]
        append_responses(out, lm, prompts, left, reward, {**settings, "seed": seeds}, guided_row)
    return len(left), len(there)


def answered(row: dict[str, Any], prompts: Sequence[Prompt]) -> int:
    """Return the number of the prompt that a row answers; Problem if that prompt is another."""
    number = row["row"]
    if not 0 <= number < len(prompts):
        raise Problem("row", f"is row {number} of other prompts, here are {len(prompts)}")
    if prompts[number] != row["prompt"]:
        raise Problem("row", f"answers another prompt than row {number}")
    return number


def append_responses(
    path: Path,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    left: Sequence[int],
    reward: Reward | Guides | None,
    settings: Mapping[str, Any],
    as_row: Callable[[int, Generation], dict[str, Any]],
) -> None:
    """Decode the rows in `left` and append what `as_row` makes of each to `path` when it is finished."""
    with appending(path) as file, progress("writing", len(left) * settings["max_new_tokens"]) as advance:
        for place, event in stream(lm, [prompts[row] for row in left], reward, **settings):
            if isinstance(event, Step):
                advance(1)
                continue
            append_row(file, as_row(left[place], event))
            advance(settings["max_new_tokens"] - len(event.steps))


def guided_row(row: int, generation: Generation) -> dict[str, Any]:
    """Return a response as its JSON row.

    A token's text is what became certain with it; their texts joined are `text`.
    """
    fields = {"row": row, "prompt": generation.prompt, **_response(generation)}
    if generation.samples:
        fields["samples"] = [_response(sample) for sample in generation.samples]
    return fields


def _response(generation: Generation) -> dict[str, Any]:
    return {
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "reward": generation.reward,
        "guidance_kl": generation.guidance_kl,
        "total_kl": generation.total_kl,
        "seed": generation.seed,
        "usage": {
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": len(generation.steps),
            "total_tokens": generation.prompt_tokens + len(generation.steps),
        },
        "tokens": [token_row(step) for step in generation.steps],
    }


def token_row(step: Step) -> dict[str, Any]:
    """Return a token of a response as JSON."""
    names = ("token_id", "text", "logprob", "reference_logprob", "reward", "weight")
    return {name: getattr(step, name) for name in names}


# What was asked for


def what_is_asked(
    lm: LanguageModel, reward: Reward | Guides | None, *, batch_size: int = 16, **settings: Any
) -> dict[str, Any]:
    """Return what decides the responses of `midcourse.stream`, besides the prompts, as JSON.

    `batch_size` decides nothing, and neither do device and dtype, but for rounding.
    """
    request = Request.of("", reward, **settings)
    method = {name: value for name, value in settings_of(request.method).items() if name != "source"}
    limits = {name: value for name, value in vars(request.limits).items() if name != "logits_processor"}
    return {
        "lm_fingerprint": tensors_fingerprint(lm.model),
        "rewards": [reward_fingerprint(one) for one, _ in request.guides],
        "reward_weights": [weight for _, weight in request.guides],
        "method": {"kind": type(request.method).__name__, **method},
        **limits,
        "template": request.template,
        **rendering(lm, request.template),
        "max_new_tokens": request.max_new_tokens,
        "stop": list(request.stop),
        "seed": request.seed,
        "keep_all": request.keep_all,
    }


def begin_record(
    out: Path, asked: Mapping[str, Any], prompts: Sequence[Prompt], earlier: Mapping[str, Any], what: str = "prompts"
) -> None:
    """Keep what is asked of a file of rows beside it; prompts may be added at the end of those of an earlier call.

    Args:
        earlier: what was asked for the rows that the file holds; empty if it holds none.
        what: what the prompts are called.

    Raises:
        RowFileError: these rows were asked for otherwise.
    """
    if earlier:
        count = earlier.get(what)
        known = prompts[:count] if isinstance(count, int) and count <= len(prompts) else prompts
        check_same(earlier, {**asked, **_named(known, what)}, out, "rows", RowFileError)
    write_record(record_of(out), {**asked, **_named(prompts, what)})


def recorded(out: Path) -> dict[str, Any]:
    """Return what was asked for the rows of a file, nothing for an empty one; RowFileError if nothing says so."""
    return asked_for(out) if out.exists() and out.stat().st_size else {}


def asked_for(out: Path) -> dict[str, Any]:
    """Return what the record beside a file says; RowFileError if there is none."""
    remedy = "name another file for --out, and join both if you know that they belong together"
    path = record_of(out)
    if not path.is_file():
        raise RowFileError(f"{out} has no {path.name} beside it to say how its rows were made; {remedy}")
    return read_record(path, RowFileError, remedy)


def record_of(out: Path) -> Path:
    """Return where what was asked for a file of rows is kept."""
    return out.with_name(f"{out.name}.asked.json")


def _named(prompts: Sequence[Prompt], what: str) -> dict[str, Any]:
    listed = [prompt if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    return {what: len(prompts), f"{what}_fingerprint": digest(listed)[:16]}
