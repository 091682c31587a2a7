"""Arms x prompts x seeds to rows on disk, resumable to the row."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from midcourse.compare.arms import POLICY, Arm
from midcourse.compare.cost import Meter
from midcourse.compare.rows import ASKED, REFERENCE_RESPONSES
from midcourse.compare.study import Study
from midcourse.data.formats import Problem
from midcourse.data.jsonl import append_row, appending, kept_rows
from midcourse.data.prompts import token_row
from midcourse.decode.candidates import nucleus, short_list
from midcourse.decode.choice import kl_divergence, normalise
from midcourse.decode.engine import stream
from midcourse.decode.methods import BestOfN, Method
from midcourse.decode.steps import Generation
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Prompt, Template, prompt_ids
from midcourse.progress import progress

_SEED_STEP = 1_000_000  # between the seeds of one prompt; so many prompts are counted within it
_MILLION_STEP = 2**40  # between the seeds of one million prompts and those of the next


@dataclass(frozen=True, slots=True)
class WrittenResponse:
    """What is kept in memory of a row that is written: what judges and the choice of settings ask for.

    Attributes:
        key: names the row.
        guidance_kl, total_kl, kl_bound: see `rows.ResponseRow`.
    """

    key: str
    arm: str
    prompt: Prompt
    text: str
    finished: bool
    prompt_id: int = 0
    seed: int = 0
    guidance_kl: float | None = None
    total_kl: float | None = None
    kl_bound: float | None = None


def key_of(arm: str, prompt_id: int, seed: int) -> str:
    """Return the name of a row."""
    return f"{arm}/{prompt_id}/{seed}"


def row_seed(prompt_id: int, seed: int) -> int:
    """Return the seed that writes a row: no two prompts share their random numbers, but all arms do."""
    millions, number = divmod(prompt_id, _SEED_STEP)
    return _MILLION_STEP * millions + _SEED_STEP * seed + number


def write_rows(study: Study, arms: Sequence[Arm], path: Path, known: Iterable[str]) -> dict[str, WrittenResponse]:
    """Append what is missing to a file of rows, and return all its responses by key.

    The arms take turns, a batch of prompts each: what is there is balanced at any time, and so is the time left.

    Args:
        known: the arms that the file may hold.
    """
    names = {name: name for name in (*known, REFERENCE_RESPONSES)}

    def mine(row: dict[str, Any]) -> str:
        if row["arm"] not in names:
            raise Problem("row", f"is of {row['arm']!r}, which {ASKED} does not list")
        number = row["prompt_id"]
        if not 0 <= number < len(study.tasks) or study.tasks[number].prompt != row["prompt"]:
            raise Problem("row", f"answers another prompt than prompt {number}")
        if row["key"] != key_of(row["arm"], number, row["seed"]):
            raise Problem("row", f"has the key {row['key']!r}")
        return row["key"]

    def kept(row: dict[str, Any]) -> WrittenResponse:
        # Of what many rows have, all hold the same.
        arm, prompt = names[row["arm"]], study.tasks[row["prompt_id"]].prompt
        figures = {name: row.get(name) for name in ("guidance_kl", "total_kl", "kl_bound")}
        finished = row["finish_reason"] == "stop"
        return WrittenResponse(row["key"], arm, prompt, row["text"], finished, row["prompt_id"], row["seed"], **figures)

    rows = kept_rows(path, True, mine, kept)
    total = len(arms) * len(study.tasks) * study.seeds
    done = sum(key_of(arm.name, i, seed) in rows for arm in arms for i, seed in places(study))
    with appending(path) as file, progress("responses", total - done) as advance:
        for row in _references(study):
            if row["key"] not in rows:
                append_row(file, row)
                rows[row["key"]] = kept(row)
        for seed in range(study.seeds):
            for ids in _batches(study):
                for arm in arms:
                    left = [i for i in ids if key_of(arm.name, i, seed) not in rows]
                    for row in _respond(study, arm, left, seed, ids.start):
                        if row["key"] in rows:
                            continue
                        append_row(file, row)
                        rows[row["key"]] = kept(row)
                        advance(1)
    return rows


def places(study: Study) -> Iterator[tuple[int, int]]:
    """Yield (prompt, seed) of each row that an arm is to have."""
    return itertools.product(range(len(study.tasks)), range(study.seeds))


def _batches(study: Study) -> Iterator[range]:
    return (
        range(begin, min(begin + study.batch_size, len(study.tasks)))
        for begin in range(0, len(study.tasks), study.batch_size)
    )


def _respond(study: Study, arm: Arm, ids: Sequence[int], seed: int, batch: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of some prompts, as they are finished. What every seed shares is written for all at once.

    Args:
        batch: the first prompt of the batch that they are of.
    """
    lm = study.policies[arm.given or ""].lm if arm.method == POLICY else study.lm
    reward = study.guides[arm.reward].reward if arm.reward else None
    count = arm.prompts_at_a_time(study.batch_size)
    for begin in range(0, len(ids), count):
        part = ids[begin : begin + count]
        events = stream(
            lm,
            [study.tasks[i].prompt for i in part],
            reward,
            method=arm.settled,
            template=study.rendering,
            max_new_tokens=study.max_new_tokens,
            seed=[row_seed(i, seed) for i in part],
            batch_size=study.batch_size,
            **arm.limits,
        )
        meter, best_of_n = Meter(), isinstance(arm.settled, BestOfN)
        with meter.reading(lm.model, reward.models if reward else ()):
            for place, generation, cost in meter.shared(events, len(part), rated_at_end=best_of_n):
                if arm.method == POLICY:
                    assert isinstance(arm.settled, Method)
                    generation = with_kl(lm, study.lm, generation, arm.settled, study.rendering)
                for one in range(study.seeds) if arm.greedy else [seed]:
                    yield _row(study, arm, part[place], one, generation, cost.stored() | {"batch": batch})


def _row(
    study: Study, arm: Arm, prompt_id: int, seed: int, generation: Generation, cost: Mapping[str, float]
) -> dict[str, Any]:
    """Return a response as its row of results.jsonl."""
    bound = generation.guidance_kl if isinstance(arm.settled, BestOfN) and arm.base else None
    own = arm.base and not isinstance(arm.settled, BestOfN)  # its guidance KL is against the study's base
    tokens = []
    for step in generation.steps:
        token = token_row(step) | {"guidance_kl": step.guidance_kl if own else None, "total_kl": step.total_kl}
        if study.save_candidates:
            token["candidates"] = [vars(candidate) for candidate in step.candidates]
        tokens.append(token)
    return {
        "key": key_of(arm.name, prompt_id, seed),
        "arm": arm.name,
        "method": arm.method,
        "reward": arm.reward,
        "setting": dict(arm.setting),
        "prompt_id": prompt_id,
        "prompt": generation.prompt,
        "seed": seed,
        "row_seed": row_seed(prompt_id, seed),
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "guide_reward": generation.reward,
        "guidance_kl": generation.guidance_kl if own else None,
        "total_kl": generation.total_kl,
        "kl_bound": bound,
        "greedy": arm.greedy,
        "tokens": tokens,
        "cost": cost,
    }


def _references(study: Study) -> Iterator[dict[str, Any]]:
    """Yield the reference responses as rows, without figures."""
    for i, task in enumerate(study.tasks):
        if task.reference is not None:
            yield {
                "key": key_of(REFERENCE_RESPONSES, i, 0),
                "arm": REFERENCE_RESPONSES,
                "method": REFERENCE_RESPONSES,
                "reward": None,
                "setting": {},
                "prompt_id": i,
                "prompt": task.prompt,
                "seed": 0,
                "text": task.reference,
                "finish_reason": "stop",
                "greedy": False,
                "tokens": [],
                "cost": None,
            }


@torch.inference_mode()
def with_kl(
    policy: LanguageModel, lm: LanguageModel, generation: Generation, method: Method, template: Template
) -> Generation:
    """Return a policy's response with the exact KL(q || pi) of every step, q what it was sampled from and pi the LM.

    Both models read the response once more. There is no guidance KL: q leaves the LM's candidates.
    """
    prompt = prompt_ids(lm.tokenizer, generation.prompt, template)
    tokens = [step.token_id for step in generation.steps]
    ours, theirs = (_logprobs(model, prompt, tokens) for model in (policy, lm))
    candidates = nucleus(short_list(ours, method.top_k), method.top_p, method.temperature)
    sampled = normalise(candidates.logprobs, method.temperature)
    kls = kl_divergence(sampled, theirs.gather(1, candidates.token_ids)).tolist()
    reference = theirs.gather(1, torch.tensor(tokens, device=theirs.device)[:, None])[:, 0].tolist()
    steps = tuple(
        replace(step, reference_logprob=logprob, guidance_kl=None, total_kl=kl)
        for step, logprob, kl in zip(generation.steps, reference, kls, strict=True)
    )
    return replace(generation, steps=steps, guidance_kl=None, total_kl=sum(kls))


def _logprobs(lm: LanguageModel, prompt: Sequence[int], response: Sequence[int]) -> Float[Tensor, "tokens vocab"]:
    """Return log pi at each response token's place, over the vocabulary."""
    ids = torch.tensor([[*prompt, *response[:-1]]], device=lm.model.device)
    logits = lm.model(input_ids=ids, use_cache=False, logits_to_keep=len(response)).logits[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
