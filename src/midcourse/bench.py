"""Speed of guided decoding against transformers' own `generate` on the same model: midcourse bench decode.

All cases take turns within a round, so that a machine whose speed drifts slows them alike; a case's ratio to plain is
taken within each round, and the median over rounds is reported with its range. No text ends early here: every case
writes the same number of tokens.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from midcourse import reference
from midcourse.decode.loop import Step, stream
from midcourse.evaluate.results import write_results
from midcourse.language_model import LanguageModel
from midcourse.progress import progress
from midcourse.reward_model import RewardModel

CONTEXTS = (64, 1024)
TOP_K, WEIGHT = 10, 2.0
REFERENCE_TOKENS = 8


class Case(NamedTuple):
    """One way to decode, at one context length; `run` returns the times of its start and of every new token."""

    method: str
    reward: str
    context: int
    new_tokens: int
    run: Callable[[], list[float]]


class NeverEnding(LanguageModel):
    """A language model for which no token ends a text."""

    eos_token_ids = frozenset()


def bench_decode(json: Path | None = None, quick: bool = False, rounds: int = 5, new_tokens: int = 64) -> list[dict]:
    """Time all cases, print the table, and write it to `json`; returns the rows."""
    rounds, new_tokens = (3, 32) if quick else (rounds, new_tokens)
    loaded = LanguageModel.load("smollm2")
    lm = NeverEnding(loaded.model, loaded.tokenizer, loaded.name)
    rewards = {"30 layers": _reward(None), "10 layers": _reward(10)}
    cases = _cases(lm, rewards, (64,) if quick else CONTEXTS, new_tokens, with_reference=not quick)
    times: list[list[list[float]]] = [[] for _ in cases]
    for case in cases:
        if case.method != "reference":
            case.run()  # warm-up
    with progress("timing", rounds * len(cases)) as advance:
        for _ in range(rounds):
            for case, found in zip(cases, times, strict=True):
                found.append(case.run())
                advance(1)
    rows = [_row(case, found, times[_plain_index(cases, case)]) for case, found in zip(cases, times, strict=True)]
    _show(rows)
    if json:
        write_results(json, {"rows": rows, "rounds": rounds, "threads": torch.get_num_threads()})
    return rows


def _reward(layers: int | None) -> RewardModel:
    """A reward of that size with random weights in its head: speed does not depend on them."""
    reward = RewardModel.create("smollm2", template="raw", layers=layers, tune="head").eval()
    torch.nn.init.normal_(reward.head.weight, std=0.02)
    return reward


def _cases(
    lm: LanguageModel, rewards: dict[str, RewardModel], contexts: tuple[int, ...], new_tokens: int, with_reference: bool
) -> list[Case]:
    cases = []
    for context in contexts:
        prompt, loaded = _prompt(lm, context), rewards["30 layers"]
        cases += [
            Case("generate", "none", context, new_tokens, partial(_generate, lm, prompt, new_tokens)),
            Case("weight 0", "30 layers", context, new_tokens, partial(_stream, lm, prompt, loaded, new_tokens, 0.0)),
        ]
        for name, reward in rewards.items():
            cases.append(Case("pargs", name, context, new_tokens, partial(_stream, lm, prompt, reward, new_tokens)))
    if with_reference:
        run = partial(_reference, lm, rewards["30 layers"], _prompt(lm, contexts[0]))
        cases.append(Case("reference", "30 layers", contexts[0], REFERENCE_TOKENS, run))
    return cases


def _prompt(lm: LanguageModel, tokens: int) -> str:
    """A text of exactly that many tokens: the same word again and again is one token each."""
    text = " the" * tokens
    if len(lm.tokenizer(text)["input_ids"]) != tokens:
        raise AssertionError("the benchmark's filler word is not one token of this tokenizer")
    return text


def _stream(
    lm: LanguageModel, prompt: str, reward: RewardModel, new_tokens: int, weight: float = WEIGHT
) -> list[float]:
    times = [time.perf_counter()]
    for _, event in stream(lm, [prompt], reward, reward_weight=weight, max_new_tokens=new_tokens, top_k=TOP_K):
        if isinstance(event, Step):
            times.append(time.perf_counter())
    return times


class _Clock(BaseStreamer):
    """Notes when each token arrives; the first arrival is the prompt's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _generate(lm: LanguageModel, prompt: str, new_tokens: int) -> list[float]:
    inputs = lm.tokenizer(prompt, return_tensors="pt")
    settings = GenerationConfig(
        do_sample=True, top_k=TOP_K, max_new_tokens=new_tokens, eos_token_id=None, pad_token_id=0
    )
    clock = _Clock()
    start = time.perf_counter()
    lm.model.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], generation_config=settings, streamer=clock
    )
    return [start, *clock.times[1:]]


def _reference(lm: LanguageModel, reward: RewardModel, prompt: str) -> list[float]:
    start = time.perf_counter()
    reference.pargs(lm, reward, prompt, reward_weight=WEIGHT, top_k=TOP_K, max_new_tokens=REFERENCE_TOKENS)
    return [start, time.perf_counter()]


def _plain_index(cases: list[Case], case: Case) -> int:
    """The transformers case of the same context."""
    return next(i for i, other in enumerate(cases) if other.method == "generate" and other.context == case.context)


def _row(case: Case, times: list[list[float]], plain: list[list[float]]) -> dict[str, Any]:
    """Medians over rounds. The whole call counts, reading the prompt included; `after_first` is without it."""
    ratios = [_per_token(a, case.new_tokens) / _per_token(b, len(b) - 1) for a, b in zip(times, plain, strict=True)]
    after_first = [(t[-1] - t[1]) / (len(t) - 2) for t in times if len(t) > 2]
    return {
        "method": case.method,
        "reward": case.reward,
        "batch": 1,
        "context": case.context,
        "new_tokens": case.new_tokens,
        "seconds_per_token": median(_per_token(t, case.new_tokens) for t in times),
        "seconds_per_token_after_first": median(after_first) if after_first else None,
        "ratio_to_plain": median(ratios),
        "ratio_interval": [min(ratios), max(ratios)],
    }


def _per_token(times: list[float], new_tokens: int) -> float:
    return (times[-1] - times[0]) / new_tokens


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="decoding, batch 1; ms per token of the whole call, and without reading the prompt")
    for column in ("method", "reward", "context", "ms", "without", "times generate", "range"):
        table.add_column(column, justify="left" if column in ("method", "reward") else "right")
    for row in rows:
        after = row["seconds_per_token_after_first"]
        low, high = row["ratio_interval"]
        table.add_row(
            row["method"],
            row["reward"],
            str(row["context"]),
            f"{1000 * row['seconds_per_token']:.0f}",
            f"{1000 * after:.0f}" if after else "",
            f"{row['ratio_to_plain']:.2f}",
            f"{low:.2f} to {high:.2f}",
        )
    Console().print(table)
