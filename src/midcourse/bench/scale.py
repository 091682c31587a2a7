"""Memory of verbs by the number of rows they work on: midcourse bench scale.

Each verb runs in a process of its own, on 1,000, 10,000 and 100,000 rows with tiny models, and the most memory that it
held is what the system says of it. What a row costs is the slope between the two largest sizes.
"""

import json as json_of
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from midcourse.detect.calibrate import calibrate
from midcourse.detect.fit import fit
from midcourse.detect.texts import LabelledText
from midcourse.errors import MidcourseError
from midcourse.evaluate.provenance import write_results
from midcourse.lm.language_model import LanguageModel
from midcourse.progress import progress
from midcourse.rewards.trunk import TrunkReward
from midcourse.testing import tiny_language_model

ROWS, QUICK = (1_000, 10_000, 100_000), (20, 60)
WORDS = ("ferry", "late", "nobody", "minded", "the", "harbour", "lights", "came", "on", "slowly", "and", "rain")


class Place(NamedTuple):
    """A folder with tiny models and rows of every kind.

    Attributes:
        rows: how many rows each file has.
    """

    folder: Path
    rows: int

    def file(self, name: str) -> Path:
        """Return the path of a file of that many rows."""
        return self.folder / f"{self.rows}-{name}"


def _guide(at: Place) -> list[Any]:
    short = ("--max-new-tokens", 4, "--batch-size", 64)
    return ["guide", "--lm", at.folder / "lm", "--reward", at.folder / "trunk", "--prompts", at.file("prompts.jsonl"),
            "--out", at.file("guided.jsonl"), "--top-k", 3, *short]  # fmt: skip


def _sample(at: Place) -> list[Any]:
    return ["sample", "--prompts", at.file("prompts.jsonl"), "--lm", at.folder / "lm", "--out",
            at.file("sampled.jsonl"), "--n", 1, "--max-new-tokens", 4, "--batch-size", 64]  # fmt: skip


def _detect(at: Place) -> list[Any]:
    return ["detect", "score", at.file("texts.jsonl"), "--detector", at.folder / "detector", "--out",
            at.file("verdicts.jsonl")]  # fmt: skip


def _reward_bench(at: Place) -> list[Any]:
    return ["reward-bench", "--reward", at.folder / "trunk", "--lm", at.folder / "lm", "--comparisons",
            at.file("pairs.jsonl")]  # fmt: skip


def _train(at: Place) -> list[Any]:
    return ["train", at.file("pairs.jsonl"), "--backbone", at.folder / "lm", "--head", "trunk:8", "--epochs", 1,
            "--batch-size", 64, "--out", at.file("trained")]  # fmt: skip


def _compare(at: Place) -> list[Any]:
    return ["compare", "--prompts", at.file("prompts.jsonl"), "--lm", at.folder / "lm", "--rewards",
            at.folder / "trunk", "--methods", "plain", "pargs", "--judges", "vader", "--max-new-tokens", 4,
            "--batch-size", 64, "--out", at.file("compared")]  # fmt: skip


VERBS: dict[str, Callable[[Place], list[Any]]] = {
    "guide": _guide,
    "sample": _sample,
    "detect score": _detect,
    "reward-bench": _reward_bench,
    "train": _train,
    "compare": _compare,
}


def bench_scale(json: Path | None = None, quick: bool = False) -> list[dict[str, Any]]:
    """Run all verbs at all sizes, print the table, and write it to `json`; returns the rows.

    Raises:
        MidcourseError: a verb failed.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        sizes = QUICK if quick else ROWS
        with progress("verbs by rows", len(VERBS) * len(sizes)) as advance:
            for rows in sizes:
                at = Place(Path(folder), rows)
                write_rows(at)
                for verb, command in VERBS.items():
                    found.append({"verb": verb, "rows": rows, **measured([str(part) for part in command(at)])})
                    advance(1)
    _show(found)
    if json:
        write_results(json, {"rows": found, "threads": torch.get_num_threads()})
    return found


def measured(arguments: list[str]) -> dict[str, float]:
    """Run a verb in a process of its own; return its seconds, and the most memory that it held in MB."""
    command = [sys.executable, "-c", "from midcourse.cli import main; main()", *arguments]
    with tempfile.TemporaryFile() as said:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begin
        if process.returncode:
            said.seek(0)
            raise MidcourseError(f"midcourse {arguments[0]} failed: {said.read().decode(errors='replace')[-500:]}")
    return {"seconds": seconds, "peak_mb": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)}


def write_models(folder: Path) -> None:
    """Write a tiny language model, a trunk reward on it, and a detector."""
    lm = tiny_language_model(dtype=torch.float32)
    lm.model.save_pretrained(folder / "lm")
    lm.tokenizer.save_pretrained(folder / "lm")
    reward = TrunkReward.create(str(folder / "lm"), template="raw", tune="head", head="trunk:8")
    for weight in reward.head.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    reward.save(folder / "trunk")
    texts = [LabelledText(text(n, 40), ("human", "machine")[n % 2]) for n in range(80)]
    detector, _ = fit(LanguageModel.load(str(folder / "lm"), dtype="float32"), texts, layers=(1,))
    detector.save(folder / "detector")
    others = [LabelledText(text(n, 40), ("human", "machine")[n % 2]) for n in range(1000, 1300)]
    calibrate(detector, others).save(folder / "detector")


def text(number: int, words: int) -> str:
    """Return a text of so many words, another for each number."""
    return " ".join([str(number), *(WORDS[(number * 7 + n * n) % len(WORDS)] for n in range(words - 1))])


def write_rows(at: Place) -> None:
    """Write prompts, pairs and texts."""
    for name, row in (
        ("prompts.jsonl", lambda n: {"prompt": text(n, 3)}),
        (
            "pairs.jsonl",
            lambda n: {"prompt": text(n, 3), "chosen": f" {WORDS[n % 5]}", "rejected": f" {WORDS[5 + n % 6]}"},
        ),
        ("texts.jsonl", lambda n: {"text": text(n, 20)}),
    ):
        with at.file(name).open("w") as file:
            file.writelines(json_of.dumps(row(n)) + "\n" for n in range(at.rows))


def slopes(found: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]], float]]:
    """Yield (verb, its rows by size, bytes that a further row costs) of each verb."""
    for verb in dict.fromkeys(row["verb"] for row in found):
        mine = sorted((row for row in found if row["verb"] == verb), key=lambda row: row["rows"])
        before, last = mine[-2:]
        yield verb, mine, 2**20 * (last["peak_mb"] - before["peak_mb"]) / (last["rows"] - before["rows"])


def _show(found: list[dict[str, Any]]) -> None:
    sizes = sorted({row["rows"] for row in found})
    table = Table(title="most memory held, MB")
    for column in ("verb", *(f"{size:,} rows" for size in sizes), "bytes a further row"):
        table.add_column(column, justify="left" if column == "verb" else "right")
    for verb, mine, slope in slopes(found):
        table.add_row(verb, *(f"{row['peak_mb']:.0f}" for row in mine), f"{slope:.0f}")
    Console().print(table)
