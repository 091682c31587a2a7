"""Speed and memory of training on prefixes: midcourse bench train.

One training step on the same pairs, in three ways that take turns within a round: on all prefixes, on whole responses,
and as the methods' published code does it, with a row of its own for every prefix and nothing kept from one step to
the next. Ratios are taken within each round, and their median over rounds is reported with its range.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from midcourse.bench.decode import peak_megabytes
from midcourse.bench.rounds import in_turns, time_of
from midcourse.data.comparisons import Comparison, read_comparisons
from midcourse.data.encoded import EncodedRow, PairSet, encode
from midcourse.evaluate.provenance import write_results
from midcourse.progress import progress
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import tiny_reward
from midcourse.train.batches import renumber, response_columns
from midcourse.train.objectives import Objective, make_objective
from midcourse.train.scorer import Scorer
from midcourse.train.trainer import phase_losses

LAYERS, PAIRS, LONG_PAIRS, LONG_TOKENS = 10, 32, 8, 128
PEAKS = 3  # runs whose highest memory is measured, beside the timed ones
ROWS = 16  # rows that the published way reads at once
WAYS = ("prefix", "sequence", "a row per prefix")


@dataclass(frozen=True)
class TrainCase:
    """One way to train on some pairs. `run` takes one step on `pairs` pairs."""

    tune: str
    data: str
    way: str
    pairs: int
    tokens: float
    run: Callable[[], None]


def bench_train(json: Path | None = None, quick: bool = False, rounds: int = 5) -> list[dict[str, Any]]:
    """Time all cases, print the table, and write it to `json`; returns the rows. `quick` takes a tiny model."""
    rounds = 2 if quick else rounds
    cases = list(_cases(quick))
    with progress("warming up", len(cases)) as advance:
        for case in cases:
            if case.way != WAYS[2]:
                case.run()
            advance(1)
    times = in_turns({case: partial(time_of, case.run) for case in cases}, rounds)
    a_pair = {case: [taken / case.pairs for taken in some] for case, some in times.items()}
    peaks: dict[TrainCase, list[float]] = {case: [] for case in cases}
    with progress("memory", PEAKS * len(cases)) as advance:
        for _ in range(PEAKS):
            for case in cases:
                # The published way reads its rows in portions, which says nothing about the memory it takes at once.
                if case.way != WAYS[2] and (peak := peak_megabytes(case.run)) is not None:
                    peaks[case].append(peak)
                advance(1)
    rows = []
    for case in cases:
        base = next(c for c in cases if (c.tune, c.data, c.way) == (case.tune, case.data, "sequence"))
        rows.append(_row(case, a_pair[case], a_pair[base], peaks[case], peaks[base]))
    _show(rows)
    if json:
        write_results(json, {"rows": rows, "rounds": rounds, "layers": LAYERS, "threads": torch.get_num_threads()})
    return rows


def _cases(quick: bool) -> Iterator[TrainCase]:
    for tune in ("last:1",) if quick else ("last:2", "all"):
        reward = _reward(tune, quick)
        for name, comparisons in _data(reward, quick).items():
            pairs = encode(reward, comparisons, max_tokens=512)
            length = fmean(len(row.response) for row in pairs.rows)
            scorer = Scorer(reward, [pairs.rows])
            optimizer = torch.optim.AdamW([p for p in scorer.parameters() if p.requires_grad], lr=1e-5)
            for way in WAYS[:2]:
                run = partial(step, scorer, pairs, make_objective(way), optimizer)
                yield TrainCase(tune, name, way, len(comparisons), length, run)
            few = encode(reward, comparisons[:2], max_tokens=512)
            run = partial(published_step, reward, few, optimizer)
            yield TrainCase(tune, name, WAYS[2], 2, fmean(len(row.response) for row in few.rows), run)


def _reward(tune: str, quick: bool) -> RewardModel:
    if quick:
        return tiny_reward("llama", dtype=torch.float32, tune=tune).train()
    return RewardModel.create("smollm2", template="chat", layers=LAYERS, tune=tune).train()


def _data(reward: RewardModel, quick: bool) -> dict[str, list[Comparison]]:
    """Return shipped comparisons, and longer ones made of several shipped responses in a row."""
    shipped = read_comparisons(Path(str(files("midcourse") / "shipped" / "demo_comparisons.jsonl.gz")))
    if quick:
        return {"shipped": [Comparison("ab", c.chosen[:24], c.rejected[:20]) for c in shipped[:4]]}
    longer = []
    for n in range(LONG_PAIRS):
        several = shipped[20 * n : 20 * n + 20]
        chosen, rejected = (_joined(reward, [getattr(c, side) for c in several]) for side in ("chosen", "rejected"))
        longer.append(Comparison(shipped[n].prompt, chosen, rejected, False, False))
    return {"shipped": shipped[:PAIRS], f"{LONG_TOKENS} tokens": longer}


def _joined(reward: RewardModel, texts: Sequence[str]) -> str:
    ids = reward.tokenizer(" ".join(texts), add_special_tokens=False)["input_ids"]
    return reward.tokenizer.decode(ids[:LONG_TOKENS])


def step(scorer: Scorer, pairs: PairSet, objective: Objective, optimizer: torch.optim.Optimizer) -> None:
    """Take one step on all pairs, as training does."""
    numbers, items = renumber(pairs.items)
    rows = [pairs.rows[number] for number in numbers]
    losses = phase_losses(
        objective.phases[0],
        scorer,
        scorer.inputs(0, numbers),
        columns=response_columns(rows, scorer.starts(0, numbers)),
        items=torch.tensor(items),
        lengths=torch.tensor([len(row.response) for row in rows]),
        finished=torch.tensor([row.finished for row in rows]),
        labels=None,
        mean_length=0.0,
    )
    losses.mean().backward()
    _update(scorer, optimizer)


def published_step(reward: RewardModel, pairs: PairSet, optimizer: torch.optim.Optimizer) -> None:
    """Take the same step on the prefix loss, with a row of its own for every prefix and whole forwards."""
    for chosen, rejected in ((pairs.rows[a], pairs.rows[b]) for a, b in pairs.pairs):
        shared = min(len(chosen.response), len(rejected.response))
        for begin in range(0, shared, ROWS):
            lengths = range(begin + 1, min(begin + ROWS, shared) + 1)
            margins = _last_rewards(reward, chosen, lengths) - _last_rewards(reward, rejected, lengths)
            (-nn.functional.logsigmoid(margins).sum() / shared / len(pairs.pairs)).backward()
    _update(reward, optimizer)


def _last_rewards(reward: RewardModel, row: EncodedRow, lengths: Sequence[int]) -> Tensor:
    """Return the rewards of a response's prefixes of those lengths, each from a row of its own."""
    width = len(row.prompt) + lengths[-1]
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for i, length in enumerate(lengths):
        end = len(row.prompt) + length
        ids[i, :end] = torch.tensor([*row.prompt, *row.response[:length]])
        mask[i, :end] = True
    ends = torch.tensor([len(row.prompt) + length - 1 for length in lengths])
    return reward(input_ids=ids, attention_mask=mask).gather(1, ends[:, None])[:, 0]


def _update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _row(
    case: TrainCase, seconds: list[float], base: list[float], peaks: list[float], base_peaks: list[float]
) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(seconds, base, strict=True)]
    memory = [a / b for a, b in zip(peaks, base_peaks, strict=False) if b > 0]
    return {
        "tune": case.tune,
        "data": case.data,
        "way": case.way,
        "pairs": case.pairs,
        "response_tokens": case.tokens,
        "seconds_per_pair": median(seconds),
        "ratio_to_sequence": median(ratios),
        "ratio_interval": [min(ratios), max(ratios)],
        "peak_mb": median(peaks) if peaks else None,
        "peak_ratio": median(memory) if memory else None,
        "peak_interval": [min(memory), max(memory)] if memory else None,
    }


def _show(rows: Sequence[dict[str, Any]]) -> None:
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=120)
    table = Table(title="training, a step; time and memory as multiples of those on whole responses")
    for column in ("tune", "data", "way", "tokens", "ms a pair", "time", "peak MB", "memory"):
        table.add_column(column, justify="left" if column in ("tune", "data", "way") else "right", no_wrap=True)
    for row in rows:
        low, high = row["ratio_interval"]
        peak = row["peak_mb"]
        table.add_row(
            row["tune"],
            row["data"],
            row["way"],
            f"{row['response_tokens']:.0f}",
            f"{1000 * row['seconds_per_pair']:.1f}",
            f"{row['ratio_to_sequence']:.2f} [{low:.2f}, {high:.2f}]",
            "" if peak is None else f"{peak:.0f}",
            "" if row["peak_ratio"] is None else f"{row['peak_ratio']:.2f}",
        )
    console.print(table)
