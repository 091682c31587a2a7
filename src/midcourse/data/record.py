"""An output that is gone on with as it was begun: one writer at a time, and beside it a record of what was asked.

Training and comparisons keep theirs in a folder, `guide` and `sample` beside the file of their rows:

    texts.jsonl               the rows
    texts.jsonl.asked.json    what was asked: models, rewards, method, lengths, prompts
    .texts.jsonl.lock         only while a process writes
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from midcourse.errors import MidcourseError
from midcourse.files import InUse, as_json, leftovers, sole_use, sole_use_of_file, write_bytes


@contextmanager
def only_writer(out: Path, kind: Literal["file", "folder"], writer: str, error: type[MidcourseError]) -> Iterator[None]:
    """Hold an output for this process alone.

    Args:
        writer: what another process that holds it is called, such as "training".
        error: raised if the output is in use, or of the other kind.
    """
    if kind == "file":
        _check_file(out, error)
    elif out.exists() and not out.is_dir():
        raise error(f"{out} is a file; name a folder for --out")
    try:
        with sole_use_of_file(out) if kind == "file" else sole_use(out):
            yield
    except InUse as use:
        raise error(
            f"another {writer} (process {use.process}) is writing to {out}; "
            f"wait for it, or name another {kind} for --out"
        ) from use


def _check_file(out: Path, error: type[MidcourseError]) -> None:
    if out.is_dir():
        raise error(f"{out} is a folder; name a file for --out")
    if out.exists() and not out.is_file():
        raise error(f"{out} is no file that rows can be kept in; name another for --out, or leave it out")
    if not out.parent.is_dir():
        raise error(f"{out.parent} is no folder; make it, or name another file for --out")


def read_record(path: Path, error: type[MidcourseError], remedy: str) -> dict[str, Any]:
    """Return what a record says; `error` with the remedy if it is damaged."""
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is damaged ({problem}); {remedy}") from problem
    if not isinstance(record, dict):
        raise error(f"{path} is damaged (no JSON object); {remedy}")
    return record


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all; what was left of earlier tries goes. Only the output's one writer may."""
    for left in leftovers(path):
        left.unlink(missing_ok=True)
    text = as_json(record, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))  # half a surrogate pair stays one, as JSON spells it


def check_same(
    earlier: Mapping[str, Any], asked: Mapping[str, Any], out: Path, holds: str, error: type[MidcourseError]
) -> None:
    """Raise `error` with the first setting of `asked` that an output was begun otherwise with.

    Args:
        holds: what the output holds, such as "a run".
    """
    have, want = _flat(earlier), _flat(json.loads(json.dumps(asked)))
    for name in {**want, **have}:
        if have.get(name) != want.get(name):
            kind = "folder" if out.is_dir() else "file"
            raise error(
                f"{out} holds {holds} with {name} {have.get(name)!r}, not {want.get(name)!r}; "
                f"resume with the same arguments, or name another {kind} for --out"
            )


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested settings by their names, joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat
