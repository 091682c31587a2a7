"""Memory of verbs by the number of rows they work on: midcourse bench scale.

Each verb runs in a process of its own, on 1,000, 10,000 and 100,000 rows with tiny models, and the most memory that it
held is what the system says of it. What a row costs is the slope between the two largest sizes.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from midcourse.data.jsonl import as_line
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
# Starts what it is called with; prints how that ended, and the most memory it held. The system counts for a process
# what the one that started it held too, so a small one has to.
_LAUNCHER = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""
WORDS = ("ferry", "late", "nobody", "minded", "the", "harbour", "lights", "came", "on", "slowly", "and", "rain")

LM, SHORT = "--lm {models}/lm", "--max-new-tokens 4 --batch-size 64"
# What each verb is asked, with the folders of models and of rows.
VERBS = {
    "guide": f"guide {LM} --reward {{models}}/trunk --prompts {{rows}}/prompts.jsonl --out {{rows}}/guided.jsonl "
    f"--top-k 3 {SHORT}",
    "sample": f"sample {LM} --prompts {{rows}}/prompts.jsonl --out {{rows}}/sampled.jsonl --n 1 {SHORT}",
    "detect score": "detect score {rows}/texts.jsonl --detector {models}/detector --out {rows}/verdicts.jsonl",
    "reward-bench": f"reward-bench {LM} --reward {{models}}/trunk --comparisons {{rows}}/pairs.jsonl",
    "train": "train {rows}/pairs.jsonl --backbone {models}/lm --head trunk:8 --epochs 1 --batch-size 64 "
    "--out {rows}/trained",
    "compare": f"compare {LM} --rewards {{models}}/trunk --prompts {{rows}}/prompts.jsonl --out {{rows}}/compared "
    f"--methods plain pargs --sweep reward_weight=1 --judges vader {SHORT}",
}


def bench_scale(json: Path | None = None, quick: bool = False) -> list[dict[str, Any]]:
    """Run all verbs at all sizes, print the table, and write it to `json`; returns the rows.

    Raises:
        MidcourseError: a verb failed.
    """
    found = []
    sizes = QUICK if quick else ROWS
    with tempfile.TemporaryDirectory() as folder, progress("verbs by rows", len(VERBS) * len(sizes)) as advance:
        models = Path(folder)
        write_models(models)
        for count in sizes:
            rows = models / str(count)
            write_rows(rows, count)
            for verb, asked in VERBS.items():
                arguments = asked.format(models=models, rows=rows).split()
                found.append({"verb": verb, "rows": count, **measured(arguments)})
                advance(1)
    _show(found)
    if json:
        write_results(json, {"rows": found, "threads": torch.get_num_threads()})
    return found


def measured(arguments: list[str]) -> dict[str, float]:
    """Run a verb in a process of its own; return its seconds, and the most memory that it held in MB."""
    with tempfile.TemporaryFile() as said:
        begin = time.perf_counter()
        launched = [sys.executable, "-SIc", _LAUNCHER, sys.executable, "-m", "midcourse", *arguments]
        status, peak = map(int, subprocess.run(launched, stdout=subprocess.PIPE, stderr=said).stdout.split())
        seconds = time.perf_counter() - begin
        if status:
            said.seek(0)
            raise MidcourseError(f"midcourse {arguments[0]} failed: {said.read().decode(errors='replace')[-500:]}")
    return {"seconds": seconds, "peak_mb": peak / (2**20 if sys.platform == "darwin" else 2**10)}


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


def write_rows(folder: Path, count: int) -> None:
    """Write that many prompts, pairs and texts to a new folder."""
    folder.mkdir()
    numbers = range(count)
    for name, rows in (
        ("prompts", ({"prompt": text(n, 3)} for n in numbers)),
        (
            "pairs",
            ({"prompt": text(n, 3), "chosen": f" {WORDS[n % 5]}", "rejected": f" {WORDS[5 + n % 6]}"} for n in numbers),
        ),
        ("texts", ({"text": text(n, 20)} for n in numbers)),
    ):
        with (folder / f"{name}.jsonl").open("wb") as file:
            file.writelines(map(as_line, rows))


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
