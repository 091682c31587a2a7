"""Speed of guided decoding against transformers' own `generate` on the same model: midcourse bench decode.

All cases take turns within a round, so that a machine whose speed drifts slows them alike; a case's ratio to plain is
taken within each round, and the median over rounds is reported with its range. No text ends early here: every case
writes the same number of tokens.
"""

import ctypes
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from midcourse import reference
from midcourse.bench.rounds import in_turns, time_of
from midcourse.compare.cost import parameters
from midcourse.decode import engine, policy, tokens
from midcourse.evaluate.provenance import write_results
from midcourse.files import whole_file
from midcourse.lm.caches import compile_steps
from midcourse.lm.language_model import LanguageModel, LanguageModelRows
from midcourse.lm.prefix_cache import PrefixCache
from midcourse.progress import progress
from midcourse.rewards.contract import Reward
from midcourse.rewards.scalar import RewardModel, ScalarRows
from midcourse.rewards.states import on_states
from midcourse.rewards.trunk import TRUNK_RANK, TrunkReward
from midcourse.rewards.vocabulary import VocabularyReward

TOP_K, WEIGHT, BATCH = 10, 2.0, 16
GROWING_K, GROWING_CONTEXT, GROWTH_TOKENS = (5, 10, 20, 40), (64, 256, 1024, 2048), 16
NAIVE_TOKENS = 8
OWN_STATES = "the model's states"  # a reward that reads them: a scalar head on the very layers that it guides
STREAM_BYTES = 2**29  # read again and again to measure the memory's bandwidth


@dataclass(frozen=True)
class DecodeCase:
    """One way to decode. `run` returns the times of its start and of every new token of its first row.

    Attributes:
        study: which table or plot it belongs to.
        reads: bytes of weights that a token needs to have read: their floor is this over the memory's bandwidth.
    """

    study: str
    method: str
    reward: str
    context: int
    new_tokens: int
    run: Callable[[], list[float]]
    batch: int = 1
    top_k: int = TOP_K
    reads: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Return what a case shares with the plain one that it is compared with: batch and context."""
        return self.batch, self.context


class NeverEnding(LanguageModel):
    """A language model for which no token ends a text."""

    eos_token_ids = frozenset()


def bench_decode(json: Path | None = None, quick: bool = False, rounds: int = 5, new_tokens: int = 64) -> list[dict]:
    """Time all cases, print the tables, and write them to `json` with a plot beside it; returns the rows."""
    rounds, new_tokens = (2, 16) if quick else (rounds, new_tokens)
    models = Models.load(compiled=not quick)
    cases = list(_cases(models, new_tokens, quick))
    bandwidth = memory_bandwidth()
    first = {}
    with progress("warming up", len(cases)) as advance:
        for case in cases:
            first[case] = time_of(case.run) if case.method != "naive" else 0.0
            advance(1)
    times = in_turns({case: case.run for case in cases}, rounds)
    rows = [_row(case, times[case], times[_plain_of(case, cases)], bandwidth) for case in cases]
    for case, row in zip(cases, rows, strict=True):
        row["peak_mb"] = peak_megabytes(case.run) if case.study == "speed" else None
        # The first run of a compiled case compiles; what it takes longer than the others is that.
        row["compile_seconds"] = (
            first[case] - median(t[-1] - t[0] for t in times[case]) if "compiled" in case.method else None
        )
    parts = []
    for batch in (1,) if quick else (1, BATCH):
        prompts = [_prompt(models.lm, 64)] * batch
        parts += profile(partial(_stream, models.lm, prompts, models.rewards["30 layers"], new_tokens), batch)
    _show(rows, parts, bandwidth)
    if json:
        results = {"rows": rows, "profile": parts, "bandwidth_gb": bandwidth / 1e9, "rounds": rounds}
        write_results(json, {**results, "threads": torch.get_num_threads()})
        if not quick:
            plot_growth(rows, json.with_name(json.stem + "_growth.png"))
    return rows


@dataclass
class Models:
    """The steered model and its guides, and copies of both that are compiled."""

    lm: LanguageModel
    rewards: dict[str, Reward]
    compiled: tuple[LanguageModel, Reward] | None

    @classmethod
    def load(cls, compiled: bool) -> "Models":
        lm = _never_ending()
        rewards: dict[str, Reward] = {"30 layers": _other(_reward(None)), "10 layers": _reward(10)}
        rewards[OWN_STATES] = _reward(None)
        rewards["vocabulary, 30 layers"] = VocabularyReward(lm.model, lm.tokenizer, name="vocabulary")
        rewards["trunk"] = _trunk()
        if not compiled:
            return cls(lm, rewards, None)
        fast, reward = _never_ending(), _other(_reward(None))
        compile_steps(fast.model)
        compile_steps(reward.backbone)
        return cls(lm, rewards, (fast, reward))

    def reads(self, name: str | None = None) -> int:
        """Return the bytes of weights of the LM, and of the named reward."""
        total = weight_bytes(self.lm.model)
        if name is None:
            return total
        reward = on_states(self.rewards[name], self.lm)
        head = getattr(reward, "head", None)  # of what midcourse train writes
        return total + sum(map(_bytes_read, reward.models)) + (weight_bytes(head) if head is not None else 0)


def _bytes_read(model: nn.Module) -> int:
    """Return the bytes of weights that a step reads; input embeddings that are no outputs count by the row."""
    numbers = sum(p.numel() for p in model.parameters())
    return weight_bytes(model) * parameters(model) // numbers


def _never_ending() -> LanguageModel:
    loaded = LanguageModel.load("smollm2")
    return NeverEnding(loaded.model, loaded.tokenizer, loaded.name)


def _reward(layers: int | None) -> RewardModel:
    """Make a reward of that size with random weights in its head: speed does not depend on them."""
    reward = RewardModel.create("smollm2", template="raw", layers=layers, tune="head").eval()
    for weight in reward.head.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return reward


def _other(reward: RewardModel) -> RewardModel:
    """Return a reward whose layers are no longer the language model's, as of one with a model of its own."""
    for weight in reward.backbone.parameters():
        weight.data *= 1.001
    return reward


def _trunk() -> RewardModel:
    """Make a trunk reward with random weights in its head."""
    reward = TrunkReward.create("smollm2", template="raw", tune="head", head=f"trunk:{TRUNK_RANK}").eval()
    for weight in reward.head.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return reward


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters, shared ones counted once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def memory_bandwidth() -> float:
    """Measure the bytes a second that a matrix-vector product, the shape of a decoding step, reads: the median of 7."""
    matrix, vector = torch.ones(STREAM_BYTES // 4 // 4096, 4096), torch.ones(4096)
    rates = []
    for _ in range(8):
        start = time.perf_counter()
        matrix @ vector
        rates.append(STREAM_BYTES / (time.perf_counter() - start))
    return median(rates[1:])


def _cases(models: Models, new_tokens: int, quick: bool) -> Iterator[DecodeCase]:
    lm, rewards = models.lm, models.rewards
    prompt = _prompt(lm, 64)
    loaded = rewards["30 layers"]
    yield DecodeCase(
        "speed", "generate", "none", 64, new_tokens, partial(_generate, lm, [prompt], new_tokens), reads=models.reads()
    )
    zero = partial(_stream, lm, [prompt], loaded, new_tokens, reward_weight=0.0)
    yield DecodeCase("speed", "weight 0", "30 layers", 64, new_tokens, zero, reads=models.reads())
    for name, reward in rewards.items():
        run = partial(_stream, lm, [prompt], reward, new_tokens)
        yield DecodeCase("speed", "pargs", name, 64, new_tokens, run, reads=models.reads(name))
    if quick:
        return
    assert models.compiled is not None
    run = partial(_stream, models.compiled[0], [prompt], models.compiled[1], new_tokens)
    yield DecodeCase("speed", "pargs, compiled", "30 layers", 64, new_tokens, run, reads=models.reads("30 layers"))
    naive = partial(_naive, lm, loaded, prompt)
    yield DecodeCase("speed", "naive", "30 layers", 64, NAIVE_TOKENS, naive)
    for run, method, guide in (
        (partial(_generate, lm, [prompt] * BATCH, new_tokens), "generate", "none"),
        (partial(_stream, lm, [prompt] * BATCH, loaded, new_tokens), "pargs", "30 layers"),
        (partial(_stream, lm, [prompt] * BATCH, rewards[OWN_STATES], new_tokens), "pargs", OWN_STATES),
        (partial(_stream, lm, [prompt] * BATCH, rewards["trunk"], new_tokens), "pargs", "trunk"),
        (partial(_stream, lm, [prompt], loaded, new_tokens, method=f"best-of-n:{BATCH}"), "best-of-n", "30 layers"),
    ):
        yield DecodeCase("speed", method, guide, 64, new_tokens, run, batch=BATCH)
    for top_k in GROWING_K:
        run = partial(_stream, lm, [prompt], loaded, GROWTH_TOKENS, top_k=top_k)
        yield DecodeCase("candidates", "pargs", "30 layers", 64, GROWTH_TOKENS, run, top_k=top_k)
    for context in GROWING_CONTEXT:
        longer = [_prompt(lm, context)]
        run = partial(_generate, lm, longer, GROWTH_TOKENS)
        yield DecodeCase("context", "generate", "none", context, GROWTH_TOKENS, run)
        for name in ("30 layers", "10 layers"):
            run = partial(_stream, lm, longer, rewards[name], GROWTH_TOKENS)
            yield DecodeCase("context", "pargs", name, context, GROWTH_TOKENS, run)


def _prompt(lm: LanguageModel, tokens: int) -> str:
    """Return a text of exactly that many tokens: the same word again and again is one token each."""
    text = " the" * tokens
    if len(lm.tokenizer(text)["input_ids"]) != tokens:
        raise AssertionError("the benchmark's filler word is not one token of this tokenizer")
    return text


def _stream(lm: LanguageModel, prompts: Sequence[str], reward: Reward, new_tokens: int, **settings: Any) -> list[float]:
    if "method" not in settings:
        settings = {"reward_weight": WEIGHT, "top_k": TOP_K, **settings}
    times = [time.perf_counter()]
    events = engine.stream(lm, prompts, reward, max_new_tokens=new_tokens, batch_size=BATCH, **settings)
    for row, event in events:
        if row == 0 and isinstance(event, engine.Step):
            times.append(time.perf_counter())
    times[-1] = time.perf_counter()
    return times


class _Clock(BaseStreamer):
    """A streamer that notes when each token arrives; the first arrival is the prompt's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _generate(lm: LanguageModel, prompts: Sequence[str], new_tokens: int) -> list[float]:
    inputs = lm.tokenizer(list(prompts), return_tensors="pt")
    # All of them: an EOS that happens to be drawn would end the row early (eos_token_id None means the model's own).
    settings = GenerationConfig(
        do_sample=True, top_k=TOP_K, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0
    )
    # transformers streams single rows only.
    clock = _Clock() if len(prompts) == 1 else None
    start = time.perf_counter()
    lm.model.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], generation_config=settings, streamer=clock
    )
    return [start, *(clock.times[1:] if clock else [time.perf_counter()])]


def _naive(lm: LanguageModel, reward: Reward, prompt: str) -> list[float]:
    """Decode one row as the methods' published code does: every candidate a full forward, nothing cached."""
    assert isinstance(reward, RewardModel)
    start = time.perf_counter()
    reference.pargs(lm, reward, prompt, reward_weight=WEIGHT, top_k=TOP_K, max_new_tokens=NAIVE_TOKENS)
    return [start, time.perf_counter()]


def _plain_of(case: DecodeCase, cases: Sequence[DecodeCase]) -> DecodeCase:
    """Return the case of transformers of the same batch and context; the short one if there is one."""
    plain = [other for other in cases if other.method == "generate" and other.shape == case.shape]
    return next((other for other in plain if other.new_tokens == case.new_tokens), plain[0])


def _row(case: DecodeCase, times: list[list[float]], plain: list[list[float]], bandwidth: float) -> dict[str, Any]:
    """Return medians over rounds. The whole call counts, reading the prompt included; `after_first` is without it."""
    other = _plain_tokens(plain, case)
    ratios = [((a[-1] - a[0]) / case.new_tokens) / ((b[-1] - b[0]) / other) for a, b in zip(times, plain, strict=True)]
    # Best of n shows its tokens when all is written.
    streamed = case.method != "best-of-n"
    after_first = [(t[-1] - t[1]) / (len(t) - 2) for t in times if len(t) > 2 and streamed]
    floor = case.reads / bandwidth
    return {
        "study": case.study,
        "method": case.method,
        "reward": case.reward,
        "batch": case.batch,
        "context": case.context,
        "new_tokens": case.new_tokens,
        "top_k": case.top_k,
        "seconds_per_token": median((t[-1] - t[0]) / case.new_tokens for t in times),
        "seconds_per_token_after_first": median(after_first) if after_first else None,
        "tokens_per_second": median(case.batch * case.new_tokens / (t[-1] - t[0]) for t in times),
        "ratio_to_plain": median(ratios),
        "ratio_interval": [min(ratios), max(ratios)],
        "floor_seconds": floor or None,
        "ratio_to_floor": median(after_first) / floor if after_first and floor else None,
    }


def _plain_tokens(plain: list[list[float]], case: DecodeCase) -> int:
    """Return the new tokens of the plain case: one time each for a single row, otherwise as many as the case's."""
    return len(plain[0]) - 1 if len(plain[0]) > 2 else case.new_tokens


# Where memory and time go


def peak_megabytes(run: Callable[[], Any]) -> float | None:
    """Return the most memory that a run added to what was held before it; None if the system does not tell."""
    try:
        # What earlier runs freed goes back to the system, or this one would take it unseen.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return (_status("VmHWM") - before) / 1024
    except (OSError, KeyError):
        return None


def _status(name: str) -> int:
    """Return a figure of this process, in KiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0])


_PARTS = (
    (LanguageModelRows, "step", "language model, one token"),
    (ScalarRows, "candidate_rewards", "reward, all candidates"),
    (PrefixCache, "_masks", "masks (within the two)"),
    (PrefixCache, "keep", "keeping the chosen candidate"),
    (policy.Group, "offer", "short list"),
    (policy.Group, "policy", "guided policy"),
    (policy.Group, "steps", "draw, and figures of the step"),
    (tokens.TokenBatch, "step", "the whole step"),
)


_OPERATIONS = {"matrix products (within all)": ("aten::mm", "aten::addmm", "aten::bmm"), "attention (within all)": (
    "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_attention_math",
)}  # fmt: skip


def profile(run: Callable[[], list[float]], batch: int) -> list[dict[str, Any]]:
    """Return the seconds of a run of `batch` rows by part of the loop, and by operation, with their share of it."""
    seconds: dict[str, float] = defaultdict(float)
    with _timed(seconds):
        times = run()
    total = times[-1] - times[0]
    found = [(part, seconds[part], int(seconds[f"{part} calls"])) for _, _, part in _PARTS]
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it writes to the terminal that it begins and ends
    with torch.autograd.profiler.profile(use_kineto=False) as watched:
        times = run()
    slower = (times[-1] - times[0]) / total  # by being watched
    for part, names in _OPERATIONS.items():
        events = [event for event in watched.key_averages() if event.key in names]
        spent = sum(event.self_cpu_time_total for event in events) / 1e6
        found.append((part, spent / slower, sum(event.count for event in events)))
    return [
        {"batch": batch, "part": part, "seconds": spent, "share": spent / total, "calls": calls}
        for part, spent, calls in [*found, ("the whole run", total, 1)]
    ]


@contextmanager
def _timed(seconds: dict[str, float]) -> Iterator[None]:
    """Add up the time that each of _PARTS takes."""
    originals = [getattr(home, name) for home, name, _ in _PARTS]

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            seconds[part] += time.perf_counter() - start
            seconds[f"{part} calls"] += 1
            return result

        return call

    try:
        for (home, name, part), original in zip(_PARTS, originals, strict=True):
            setattr(home, name, timed(original, part))
        yield
    finally:
        for (home, name, _), original in zip(_PARTS, originals, strict=True):
            setattr(home, name, original)


# What people see


def plot_growth(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the time per token after the first, by candidates and by context."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    growing = [row for row in rows if row["study"] == "candidates"]
    left.plot(
        [row["top_k"] for row in growing],
        [1000 * row["seconds_per_token_after_first"] for row in growing],
        marker="o",
        color="#0b5fa5",
    )
    left.set(xlabel="candidates k, 64 tokens of context", ylabel="ms per token after the first", ylim=(0, None))
    names = {"none": ("generate of transformers", "#777"), "10 layers": ("PARGS, 10 layers", "#3f8fd0")}
    names["30 layers"] = ("PARGS, 30 layers", "#0b5fa5")
    for reward, (label, color) in names.items():
        line = [row for row in rows if row["study"] == "context" and row["reward"] == reward]
        right.plot(
            [row["context"] for row in line],
            [1000 * row["seconds_per_token_after_first"] for row in line],
            marker="o",
            color=color,
            label=label,
        )
    right.set_xscale("log", base=2)
    right.set(xlabel="tokens of context, k = 10", ylim=(0, None), xticks=GROWING_CONTEXT)
    right.set_xticklabels([str(context) for context in GROWING_CONTEXT])
    right.legend(frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _show(rows: list[dict[str, Any]], parts: list[dict[str, Any]], bandwidth: float) -> None:
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=120)
    table = Table(title="decoding; ms per token and row of the whole call, and without reading the prompt")
    for column in ("method", "reward", "batch", "context", "k", "ms", "without", "times generate", "peak MB"):
        table.add_column(column, justify="left" if column in ("method", "reward") else "right", no_wrap=True)
    for row in rows:
        after, peak = row["seconds_per_token_after_first"], row["peak_mb"]
        low, high = row["ratio_interval"]
        table.add_row(
            row["method"],
            row["reward"],
            str(row["batch"]),
            str(row["context"]),
            str(row["top_k"]),
            f"{1000 * row['seconds_per_token']:.0f}",
            f"{1000 * after:.0f}" if after else "",
            f"{row['ratio_to_plain']:.2f} [{low:.2f}, {high:.2f}]",
            f"{peak:.0f}" if peak is not None else "",
        )
    console.print(table)
    shares = Table(title=f"where the time of PARGS goes; memory reads {bandwidth / 1e9:.1f} GB a second")
    for column in ("batch", "part", "seconds", "share", "calls"):
        shares.add_column(column, justify="left" if column == "part" else "right")
    for part in parts:
        shares.add_row(
            str(part["batch"]), part["part"], f"{part['seconds']:.2f}", f"{part['share']:.1%}", str(part["calls"])
        )
    console.print(shares)
    for row in rows:
        if row["compile_seconds"] is not None:
            console.print(f"compiling both models took {row['compile_seconds']:.0f} s", highlight=False)
