"""What fills the tables of READMEs from committed results.

A table stands between two comments, and only the modules that name tables write what is between them:

    <!-- table: NAME -->
    <!-- end -->

`studies/readme.py` has the README's own tables; the tables of a study's README stand beside the study.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from midcourse.files import write_text

Table = Callable[[Path], str]
PARADETOX = {
    "as published": "ParaDetox as published: its originals are tokenised, and that spelling and spacing alone all but "
    "tell the edited side.",
    "repaired": "ParaDetox repaired: both sides in lower case with punctuation joined to its words, so that spelling "
    "and spacing do not tell the edited side.",
}

_BLOCK = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)
_BEGIN = "<!-- table:"


class TablesError(ValueError):
    """A block or a results file that cannot be used."""


def read(root: Path, path: str, command: str) -> str:
    """The text of `root / path`; TablesError names the command that makes it where it is missing."""
    try:
        return (root / path).read_text()
    except FileNotFoundError as error:
        raise TablesError(f"{path} is missing; make it with: {command}") from error


def load(root: Path, path: str, command: str) -> Any:
    """The results in `root / path`; TablesError names the command that makes them where they are missing."""
    try:
        return json.loads(read(root, path, command))
    except json.JSONDecodeError as error:
        raise TablesError(f"{path} is not JSON ({error}); make it again with: {command}") from error


@contextmanager
def results(root: Path, path: str, command: str) -> Iterator[Any]:
    """The results in `root / path`; TablesError names the command where they are missing or lack a field asked for."""
    found = load(root, path, command)
    try:
        yield found
    except KeyError as error:
        raise TablesError(f"{path} has no {error.args[0]!r}; make it again with: {command}") from error


def load_each(root: Path, names: Sequence[str], command: str) -> dict[str, Any]:
    """By name, what is in `root / "results/NAME.json"`; names that have nothing yet are left out."""
    paths = {name: f"results/{name}.json" for name in names}
    return {name: load(root, path, command) for name, path in paths.items() if (root / path).is_file()}


def number(value: float | None, digits: int = 2) -> str:
    """A rounded number; an empty cell for None."""
    return "" if value is None else f"{value:.{digits}f}"


def with_interval(value: float, interval: Sequence[float], digits: int = 2) -> str:
    """A number and its interval: 1.62 [1.58, 1.67]."""
    low, high = interval
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def with_paradetox(table: str, found: dict[str, Any]) -> str:
    """Return a table with a line below on how its rows of ParaDetox were made, which the results say."""
    return f"{table}\n\n{PARADETOX[found['paradetox']]}"


def read_off(places: Sequence[dict[str, Any]]) -> list[str]:
    """A cell for each place at which a guide's gold was read off: its `gold` and `interval`, if it was reached."""
    return [with_interval(at["gold"], at["interval"]) if at["interval"] else "not reached" for at in places]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned in the source too; the first column is text, the others numbers."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (aligned[0], rule, *aligned[1:]))


def fill(text: str, root: Path, tables: dict[str, Table]) -> tuple[str, list[str]]:
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


def fill_readme(root: Path, *, check: bool, tables: dict[str, Table]) -> tuple[int, str]:
    """Fill or check the README of `root`; the exit status and a sentence about it."""
    return fill_page(root / "README.md", root, check=check, tables=tables)


def fill_page(page: Path, root: Path, *, check: bool, tables: dict[str, Table]) -> tuple[int, str]:
    """Fill or check the tables of a page from the results in `root`; return the exit status and a sentence about it."""
    text = page.read_text() if page.is_file() else ""
    if _BEGIN not in text:
        return 0, f"{page} has no table blocks; nothing to fill"
    filled, stale = fill(text, root, tables)
    if not stale:
        return 0, f"every table in {page} is up to date"
    names = ", ".join(stale)
    if check:
        return 1, f"{page} differs from the committed results in: {names}; run: make tables"
    write_text(page, filled)
    return 0, f"filled in {page}: {names}"


def main(arguments: Sequence[str], root: Path, tables: dict[str, Table], pages: Sequence[Path] = ()) -> int:
    """Run with the arguments of the command line, for these pages, by default the README of `root`."""
    if list(arguments) not in ([], ["--check"]):
        print(f"arguments {' '.join(arguments)!r} are unknown; give none, or --check", file=sys.stderr)
        return 2
    worst = 0
    for page in pages or [root / "README.md"]:
        try:
            status, sentence = fill_page(page, root, check=bool(arguments), tables=tables)
        except TablesError as error:
            print(f"{page}: {error}", file=sys.stderr)
            return 2
        print(sentence, file=sys.stderr if status else sys.stdout)
        worst = max(worst, status)
    return worst
