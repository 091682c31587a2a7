"""Fill the README's tables from committed results.

A table stands between two comments, and only this script writes what is between them:

    <!-- table: NAME -->
    <!-- end -->

    python studies/tables.py           fill every block
    python studies/tables.py --check   exit 1 where a block is not what its results say
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Table = Callable[[Path], str]

_BLOCK = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)
_BEGIN = "<!-- table:"


class TablesError(ValueError):
    """A block or a results file that cannot be used."""


def demo(root: Path) -> str:
    """The demo's figures without and with guidance."""
    path, command = "studies/demo/results.json", "make demo && cp runs/demo/results.json studies/demo/"
    found = load(root, path, command)
    try:
        difference = found["gold_difference"]
        rows = [
            ["gold score", number(found["gold_base"]), number(found["gold_guided"])],
            ["gold difference [95% interval]", "", with_interval(difference["mean"], difference["interval"])],
            ["guidance KL (nats)", "", number(found["guidance_kl"])],
            ["total KL (nats)", "", number(found["total_kl"])],
        ]
        for name, label, digits in [
            ("perplexity", "perplexity", 1),
            ("repeated_bigrams", "repeated bigrams", 3),
            ("length", "length (tokens)", 1),
            ("tokens_per_second", "tokens per second", 0),
        ]:
            rows.append([label, *(number(found[name][side], digits) for side in ("base", "guided"))])
        return markdown([f"{found['prompts']} prompts", "base", "guided"], rows)
    except KeyError as error:
        raise _lacks(path, error, command) from error


def decode(root: Path) -> str:
    """Decoding speed: seconds per token and the ratio to plain decoding."""
    path, command = "benchmarks/results/decode.json", "make bench"
    found = load(root, path, command)
    try:
        rows = [
            [
                row["method"],
                row["reward"] or "",
                str(row["batch"]),
                str(row["context"]),
                str(row["new_tokens"]),
                number(1000 * row["seconds_per_token"], 1),
                with_interval(row["ratio_to_plain"], row["ratio_interval"]),
            ]
            for row in found["rows"]
        ]
    except KeyError as error:
        raise _lacks(path, error, command) from error
    return markdown(
        ["method", "reward", "batch", "context", "new tokens", "ms per token", "ratio to plain [95% interval]"], rows
    )


def rewards(root: Path) -> str:
    """Pair accuracy by set and objective at each share of the response, averaged over runs."""
    path, command = "studies/rewards/results.json", "python studies/rewards/run.py"
    found = load(root, path, command)
    accuracies: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    try:
        for row in found["rows"]:
            accuracies[row["set"], row["objective"]][row["share"]].append(row["accuracy"])
    except KeyError as error:
        raise _lacks(path, error, command) from error
    shares = sorted({share for by_share in accuracies.values() for share in by_share})
    rows = [
        [*names, *(number(mean(by_share[share]), 3) if share in by_share else "" for share in shares)]
        for names, by_share in accuracies.items()
    ]
    return markdown(["set", "objective", *(f"{share:.0%}" for share in shares)], rows)


TABLES: dict[str, Table] = {"demo": demo, "decode": decode, "rewards": rewards}


def load(root: Path, path: str, command: str) -> Any:
    """The results in `root / path`; TablesError names the command that makes them where they are missing."""
    try:
        return json.loads((root / path).read_text())
    except FileNotFoundError as error:
        raise TablesError(f"{path} is missing; make it with: {command}") from error
    except json.JSONDecodeError as error:
        raise TablesError(f"{path} is not JSON ({error}); make it again with: {command}") from error


def number(value: float | None, digits: int = 2) -> str:
    """A rounded number; an empty cell for None."""
    return "" if value is None else f"{value:.{digits}f}"


def with_interval(value: float, interval: Sequence[float], digits: int = 2) -> str:
    """A number and its interval: 1.62 [1.58, 1.67]."""
    low, high = interval
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in the source too; the first column is text, the others numbers."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (aligned[0], rule, *aligned[1:]))


def fill(text: str, root: Path, tables: dict[str, Table] = TABLES) -> tuple[str, list[str]]:
    """`text` with every block filled, and the names of the blocks that were not so already.

    Raises:
        TablesError: a block without an end, a name that `tables` lacks, or results that cannot be read.
    """
    if (begun := text.count(_BEGIN)) != len(blocks := _BLOCK.findall(text)) or any(_BEGIN in b for _, b in blocks):
        raise TablesError(
            f"{len(blocks)} of {begun} table blocks can be read; "
            "write each as a line '<!-- table: NAME -->' and a line '<!-- end -->'"
        )
    stale: list[str] = []

    def replaced(block: re.Match[str]) -> str:
        name = block[1]
        if name not in tables:
            raise TablesError(f"table {name!r} is unknown; use one of: {', '.join(tables)}")
        new = f"<!-- table: {name} -->\n{tables[name](root)}\n<!-- end -->"
        if new != block[0]:
            stale.append(name)
        return new

    return _BLOCK.sub(replaced, text), stale


def run(root: Path, *, check: bool, tables: dict[str, Table] = TABLES) -> tuple[int, str]:
    """Fill or check the README of `root`; the exit status and a sentence about it."""
    readme = root / "README.md"
    text = readme.read_text() if readme.is_file() else ""
    if _BEGIN not in text:
        return 0, "README.md has no table blocks; nothing to fill"
    filled, stale = fill(text, root, tables)
    if not stale:
        return 0, "every table in README.md is up to date"
    names = ", ".join(stale)
    if check:
        return 1, f"README.md differs from the committed results in: {names}; run: make tables"
    readme.write_text(filled)
    return 0, f"filled in README.md: {names}"


def _lacks(path: str, error: KeyError, command: str) -> TablesError:
    return TablesError(f"{path} has no {error.args[0]!r}; make it again with: {command}")


def main(arguments: Sequence[str]) -> int:
    """Run with the arguments of the command line."""
    if list(arguments) not in ([], ["--check"]):
        print(f"arguments {' '.join(arguments)!r} are unknown; give none, or --check", file=sys.stderr)
        return 2
    try:
        status, sentence = run(Path(__file__).resolve().parent.parent, check=bool(arguments))
    except TablesError as error:
        print(error, file=sys.stderr)
        return 2
    print(sentence, file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
