"""What verbs share: refusing arguments, texts in files, and tables."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from midcourse.errors import MidcourseError
from midcourse.terminal import tell, visible

if TYPE_CHECKING:
    from midcourse.data.formats import BadRow


_MADE = b'<meta name="generator" content="midcourse">'


class UsageError(MidcourseError):
    """Arguments that do not go together."""


def table(
    title: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    justify: Literal["left", "right"] = "right",
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(visible(title)), title_justify="left")
    for column in columns:
        first = column == columns[0]
        table.add_column(column, justify="left" if first else justify, overflow="fold" if first else "ellipsis")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    Console().print(table)


def check_rate(fpr: float) -> None:
    """Raise UsageError if `fpr` is no false-positive rate that a detector can be asked for."""
    if not 1e-9 <= fpr < 0.5:
        raise UsageError(f"--fpr {fpr:g} is no rate between 0 and 0.5; use 0.01 for 1%, say")


def check_page(path: Path | None) -> None:
    """Raise UsageError if `path` cannot be a page: one of midcourse's may be replaced, another file never."""
    if path is None:
        return
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {path} is no page; name a file that ends in .html")
    if path.exists() and not (path.is_file() and _MADE in path.read_bytes()[:1000]):
        raise UsageError(f"--html {path} is there and no page of midcourse's; name another file")
    if not path.parent.is_dir():
        raise UsageError(f"--html {path} lies in no folder that is there; make {path.parent} first")


def read_text(text: str, flag: str) -> str:
    """Return a text, or what is in the file of that name."""
    if not os.path.isfile(text):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag} {text} cannot be read ({error}); write it as UTF-8") from error


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Return the fields that "prompt=instruction" and the like rename, ours to the file's."""
    found = {}
    for pair in pairs:
        ours, _, theirs = pair.partition("=")
        if not (ours and theirs):
            raise UsageError(f"--columns {pair} names no column; write prompt=instruction")
        found[ours] = theirs
    return found


def parse_arguments(pairs: Sequence[str]) -> dict[str, str | bool | int | float]:
    """Return the values that "enable_thinking=false" and the like give arguments of a chat template, by name.

    A value is read as JSON (true, false, a number, a quoted text), or is a text as it stands.
    """
    found: dict[str, str | bool | int | float] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not (name and sign):
            raise UsageError(f"--template-argument {pair} has no value; write enable_thinking=false")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if not isinstance(value, str | bool | int | float):
            raise UsageError(f"--template-argument {pair} is no text, number, true or false; write one of these")
        found[name] = value
    return found


@contextmanager
def bad_rows(file: Path | None, *, write: bool = True) -> Iterator["list[BadRow] | None"]:
    """Give readers a list for bad rows, and write it to `file` at the end; None, so that they stop, without a file.

    Args:
        write: write the file and say so; another reading of the same rows does.
    """
    if file:
        from midcourse.data.formats import check_bad_rows_file

        check_bad_rows_file(file)
    rejects: list[BadRow] | None = [] if file else None
    yield rejects
    if file and rejects and write:
        from midcourse.data.formats import write_bad_rows

        write_bad_rows(file, rejects)
        tell(f"skipped {len(rejects)} bad rows, written to {file}")
