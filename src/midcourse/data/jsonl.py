"""Rows of JSON that outlive a crash: each is on disk as soon as it is appended, and a second run finds it again."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from midcourse.errors import MidcourseError
from midcourse.files import as_json

Key = TypeVar("Key")


class RowFileError(MidcourseError):
    """A file of rows that cannot be gone on with; names file and line."""


class ForeignRow(Exception):
    """What is wrong with a row of somebody else's, such as "answers another prompt than row 3"."""


def written_rows(path: Path, resume: bool, key_of: Callable[[Any], Key]) -> dict[Key, Any]:
    """The rows that `path` already holds, by their keys; a torn last line is dropped from the file.

    Args:
        key_of: names a row. Raises ForeignRow (or what a value of the wrong kind raises) for one that is not ours;
            then the file stays as it is.

    Raises:
        RowFileError: the file has rows and `resume` is not set, or one of them is not ours.
    """
    if not path.exists() or not path.stat().st_size:
        return {}
    if not resume:
        raise RowFileError(f"{path} exists already; add --resume to go on with it, or name another file for --out")
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    found = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            found[key_of(row)] = row
        except ForeignRow as problem:
            raise RowFileError(f"{path}, line {number} {problem}; name another file") from None
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise RowFileError(f"{path}, line {number} is no row of this run ({error!r}); name another file") from error
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return found


def append_row(file: BinaryIO, row: dict[str, Any]) -> None:
    """Append a row to an open file; it is on disk when this returns."""
    append_rows(file, [row])


def append_rows(file: BinaryIO, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to an open file; all are on disk when this returns."""
    file.write(b"".join(map(as_line, rows)))
    file.flush()
    os.fsync(file.fileno())


def as_line(row: dict[str, Any]) -> bytes:
    """A row as its line."""
    return as_json(row, ensure_ascii=False).encode() + b"\n"
