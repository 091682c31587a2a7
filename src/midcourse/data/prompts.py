"""Files of prompts in, files of responses out: one JSON row each, appended as soon as it is finished."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from midcourse.data.jsonl import ForeignRow, append_row, written_rows
from midcourse.decode.engine import stream
from midcourse.decode.steps import Generation, Guides, Step
from midcourse.errors import MidcourseError
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Prompt
from midcourse.progress import progress
from midcourse.rewards.contract import Reward


class PromptFileError(MidcourseError):
    """A file of prompts that cannot be used; names file and line."""


def read_prompts(path: Path) -> list[Prompt]:
    """The field "prompt" of every line: a text or a list of messages."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise PromptFileError(f"{path} cannot be read ({error.strerror}); name a JSONL file of prompts") from error
    prompts = [_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise PromptFileError(f'{path} holds no prompts; write one JSON object with a field "prompt" per line')
    return prompts


def _prompt(path: Path, number: int, line: bytes) -> Prompt:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise PromptFileError(f'{path}, line {number}: no JSON object with a field "prompt" ({error})') from error
    messages = isinstance(prompt, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in prompt
    )
    if not (isinstance(prompt, str) or (prompt and messages)):
        raise PromptFileError(f"{path}, line {number}, field prompt: neither a text nor a list of messages")
    try:
        json.dumps(prompt, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # JSON can spell it ("\\ud83d"), no tokenizer takes it
        raise PromptFileError(
            f"{path}, line {number}, field prompt: half a surrogate pair; write the character whole"
        ) from error
    return prompt


def rows_done(path: Path, prompts: Sequence[Prompt], resume: bool) -> set[int]:
    """The rows an output file already holds; a torn last line is dropped from it.

    Raises:
        RowFileError: the file has rows and `resume` is not set, or they answer other prompts.
    """
    return set(written_rows(path, resume, lambda row: answered(row, prompts)))


def answered(row: dict[str, Any], prompts: Sequence[Prompt]) -> int:
    """The number of the prompt that a row answers; ForeignRow where that prompt is another."""
    number = row["row"]
    if not 0 <= number < len(prompts):
        raise ForeignRow(f"is row {number} of other prompts, here are {len(prompts)}")
    if prompts[number] != row["prompt"]:
        raise ForeignRow(f"answers another prompt than row {number}")
    return number


def append_rows(
    path: Path,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    left: Sequence[int],
    reward: Reward | Guides | None,
    settings: dict[str, Any],
    as_row: Callable[[int, Generation], dict[str, Any]],
) -> None:
    """Decode the rows in `left` and append what `as_row` makes of each to `path` when it is finished."""
    with path.open("ab") as file, progress("writing", len(left) * settings["max_new_tokens"]) as advance:
        for place, event in stream(lm, [prompts[row] for row in left], reward, **settings):
            if isinstance(event, Step):
                advance(1)
                continue
            append_row(file, as_row(left[place], event))
            advance(settings["max_new_tokens"] - len(event.steps))


def guided_row(row: int, generation: Generation) -> dict[str, Any]:
    """A response as its JSON row. A token's text is what became certain with it; their texts joined are `text`."""
    found = {"row": row, "prompt": generation.prompt, **_response(generation)}
    if generation.samples:
        found["samples"] = [_response(sample) for sample in generation.samples]
    return found


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
    """A token of a response as JSON."""
    names = ("token_id", "text", "logprob", "reference_logprob", "reward", "weight")
    return {name: getattr(step, name) for name in names}
