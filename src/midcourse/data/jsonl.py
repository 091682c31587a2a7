"""Rows of JSON that outlive a crash: each is on disk as soon as it is appended, and a second run finds it again."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from midcourse.data.formats import Problem, json_fields
from midcourse.errors import MidcourseError
from midcourse.files import as_json, naming

PART = 2**16  # bytes that are looked through at a time for the end of the last row
Key = TypeVar("Key")
Item = TypeVar("Item")


class RowFileError(MidcourseError):
    """A file of rows that cannot be gone on with."""


def whole_rows(path: Path, parse: Callable[[dict[str, Any]], Item], what: str, remedy: str) -> Iterator[Item]:
    """Yield the parsed rows that midcourse wrote into a file, one by one; none if there is no file.

    A last line without its end is left out: somebody is writing it, or was killed. The file stays as it is.

    Args:
        parse: turns a row into what it is. Raises Problem (or what a value of the wrong kind raises) if it is not ours.
        what: what the rows are of, for messages.
        remedy: what to do about a row that is not ours.

    Raises:
        RowFileError: a row that is not ours.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                item = parse(_row(line[:-1], what))
            except Problem as problem:
                raise RowFileError(f"{problem.at(path, 'line', number)}; {remedy}") from None
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                strange = Problem("row", f"is no row of {what} ({error!r})")
                raise RowFileError(f"{strange.at(path, 'line', number)}; {remedy}") from error
            yield item


def _row(line: bytes, what: str) -> dict[str, Any]:
    try:
        return json_fields(line)
    except Problem as problem:
        raise Problem("row", f"is no row of {what} ({str(problem).partition(';')[0]})") from None


def written_rows(path: Path, resume: bool, key_of: Callable[[Any], Key]) -> dict[Key, dict[str, Any]]:
    """Return the rows that a file already holds, by their keys; see `kept_rows`."""
    return kept_rows(path, resume, key_of, lambda row: row)


def kept_rows(
    path: Path, resume: bool, key_of: Callable[[Any], Key], keep: Callable[[dict[str, Any]], Item]
) -> dict[Key, Item]:
    """Return what is kept of the rows that a file already holds, by their keys.

    Args:
        key_of: names a row. Raises Problem for one that is not ours.
        keep: what is kept of a row.

    Raises:
        RowFileError: the file is not empty and `resume` is not set, or a row is not ours.
    """
    if not resume:
        check_unwritten(path)
    rows = dict(whole_rows(path, lambda row: (key_of(row), keep(row)), "this run", "name another file"))
    if not rows and path.exists():
        # A killed run leaves the beginning of a row. Without any row, what lies there may be something else.
        with path.open("rb") as file:
            torn = file.read(2)
        if torn != b'{"'[: len(torn)]:
            raise RowFileError(f"{path} holds a line that is no row of this run; name another file")
    return rows


def keys_alone(row: dict[str, Any]) -> None:
    """Keep nothing of a row but its key, for `kept_rows`."""


def check_unwritten(path: Path) -> None:
    """Raise RowFileError if a file holds something already."""
    if path.exists() and path.stat().st_size:
        raise RowFileError(f"{path} exists already; add --resume to go on with it, or name another file for --out")


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """Open a file to append rows to; a torn last line is cut off. Only its one writer may (see `record`)."""
    with path.open("ab+") as file:
        file.truncate(_end_of_rows(file))
        yield file


def _end_of_rows(file: BinaryIO) -> int:
    """Return how many bytes the whole lines of a file have."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(end - PART, 0)
        file.seek(begin)
        last = file.read(end - begin).rfind(b"\n")
        if last >= 0:
            return begin + last + 1
        end = begin
    return 0


def append_row(file: BinaryIO, row: dict[str, Any]) -> None:
    """Append a row to an open file; it is on disk when this returns."""
    append_rows(file, [row])


def append_rows(file: BinaryIO, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to an open file; all are on disk when this returns."""
    with naming(Path(file.name)):
        file.write(b"".join(map(as_line, rows)))
        file.flush()
        os.fsync(file.fileno())


def as_line(row: dict[str, Any]) -> bytes:
    """Return a row as its line."""
    return as_json(row, ensure_ascii=False).encode() + b"\n"
