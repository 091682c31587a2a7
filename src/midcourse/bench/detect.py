"""Speed of detection against the bare forward passes of the language model: midcourse bench detect.

The same texts in the same batches, in ways that take turns within a round. Ratios are taken within each round, and
their median over rounds is reported with its range. A bare pass ends with the logits of every token.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from midcourse.bench.rounds import in_turns, time_of
from midcourse.data.comparisons import read_comparisons
from midcourse.detect.detector import Detector
from midcourse.detect.evaluate import baselines
from midcourse.detect.texts import LabelledText
from midcourse.evaluate.provenance import write_results
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prefix_cache import pad
from midcourse.rewards.pooled import PooledReward
from midcourse.rewards.windows import batches, windows_of

TEXTS = 48
WORDS = (40, 80, 120, 160, 240, 400)
BARE = "bare forward passes"


def bench_detect(json: Path | None = None, quick: bool = False, rounds: int = 5) -> list[dict[str, Any]]:
    """Time all ways, print the table, and write it to `json`; returns the rows. `quick` takes few texts, two rounds."""
    rounds = 2 if quick else rounds
    detector, texts = Detector.load("shipped"), texts_to_read(4 if quick else TEXTS)
    assert isinstance(detector.reward, PooledReward)
    lm = detector.reward.reader.lm
    labelled = [LabelledText(text) for text in texts]
    ways: dict[str, Callable[[], object]] = {
        BARE: lambda: bare(lm, texts),
        "detect score": lambda: list(detector.score(labelled)),
        "all zero-shot statistics": lambda: baselines(lm, labelled),
    }
    timed = {name: partial(time_of, run) for name, run in ways.items()}
    in_turns(timed, 1, "warming up")
    times = in_turns(timed, rounds)
    tokens = sum(len(window.token_ids) for window in windows_of(lm, texts))
    rows = [_row(name, some, times[BARE], len(texts), tokens) for name, some in times.items()]
    _show(rows)
    if json:
        write_results(json, {"rows": rows, "rounds": rounds, "threads": torch.get_num_threads()})
    return rows


def texts_to_read(count: int) -> list[str]:
    """Return texts of 40 to 400 words, made of shipped responses in a row."""
    shipped = read_comparisons(Path(str(files("midcourse") / "shipped" / "demo_comparisons.jsonl.gz")))
    words = " ".join(comparison.chosen for comparison in shipped).split()
    lengths = [WORDS[n % len(WORDS)] for n in range(count)]
    ends = [sum(lengths[: n + 1]) for n in range(count)]
    return [" ".join(words[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


@torch.inference_mode()
def bare(lm: LanguageModel, texts: Sequence[str]) -> None:
    """Pass every batch that a detector would read through the model, to its logits."""
    for batch in batches([[window] for window in windows_of(lm, texts)]):
        ids, mask = pad([window.token_ids for [window] in batch], lm.device)
        lm.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)


def _row(name: str, seconds: Sequence[float], bare: Sequence[float], texts: int, tokens: int) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(seconds, bare, strict=True)]
    return {
        "way": name,
        "texts": texts,
        "tokens": tokens,
        "texts_per_second": texts / median(seconds),
        "tokens_per_second": tokens / median(seconds),
        "ratio_to_bare": median(ratios),
        "ratio_interval": [min(ratios), max(ratios)],
    }


def _show(rows: Sequence[dict[str, Any]]) -> None:
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=120)
    texts, tokens = rows[0]["texts"], rows[0]["tokens"]
    table = Table(title=f"detection, {texts} texts of {tokens / texts:.0f} tokens on average")
    for column in ("way", "texts a second", "tokens a second", "times bare passes [range]"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        low, high = row["ratio_interval"]
        ratio = f"{row['ratio_to_bare']:.2f} [{low:.2f}, {high:.2f}]"
        table.add_row(row["way"], f"{row['texts_per_second']:.2f}", f"{row['tokens_per_second']:.0f}", ratio)
    console.print(table)
