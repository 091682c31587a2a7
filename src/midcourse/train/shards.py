"""The folder of cached hidden states: shared by runs, bounded in size, and never trusted blindly.

A shard is a safetensors file that says in its metadata what it holds. A run reserves its shards while it lives; when
room is needed, the shards used longest ago that no living run has reserved are deleted.
"""

import fcntl
import json
import math
import os
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from midcourse.errors import MidcourseError
from midcourse.terminal import tell

CACHE_GB = 20.0
TORN_SECONDS = 3600  # a file still being written is younger


def cache_limit() -> int:
    """Return the bytes that cached states may take: MIDCOURSE_CACHE_GB, 20 by default; MidcourseError if no number."""
    text = os.environ.get("MIDCOURSE_CACHE_GB") or str(CACHE_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise MidcourseError(f"MIDCOURSE_CACHE_GB is {text!r}; use a number of gigabytes, such as {CACHE_GB:g}")
    return int(gigabytes * 1e9)


def check_room(needed: int, rows: int) -> None:
    """Raise MidcourseError if the states of some rows take more bytes than all cached states may."""
    if needed > cache_limit():
        raise MidcourseError(
            f"the hidden states of {rows} texts take {needed / 1e9:.3g} GB, more than the {cache_limit() / 1e9:.3g} GB "
            "that may be kept; set MIDCOURSE_CACHE_GB higher if there is room, --max-tokens lower, or learn from fewer"
        )


def reserve(folder: Path, names: Sequence[str], owner: object) -> None:
    """Keep these shards from being deleted for as long as `owner` lives, or its process, in whatever way that ends."""
    with _locked(folder):
        handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".new")
        fcntl.flock(handle, fcntl.LOCK_EX)  # the system lets go of it when the process ends
        os.write(handle, json.dumps(list(names)).encode())
        path = Path(name).with_suffix(".run")
        os.rename(name, path)

    def release() -> None:
        path.unlink(missing_ok=True)
        os.close(handle)

    weakref.finalize(owner, release)


def make_room(folder: Path, needed: int) -> None:
    """Delete what was used longest ago and no living run has reserved, until `needed` bytes more stay in the limit."""
    with _locked(folder):
        kept = _reserved(folder)
        shards = []
        for path in folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):
                shards.append((path.stat().st_mtime, path.stat().st_size, path))
        total = needed + sum(size for _, size, _ in shards)
        for used, size, path in sorted(shards):
            torn = path.name.startswith(".")
            if path.name in kept or (torn and time.time() - used < TORN_SECONDS):
                continue
            if torn or total > cache_limit():
                path.unlink(missing_ok=True)
                total -= size


def open_shard(path: Path, holds: dict[str, str], shape: Sequence[int]) -> Any | None:
    """Open the shard at `path` and note its use; None if it is missing, or, with a warning, another's or damaged."""
    if not path.is_file():
        return None
    try:
        file = safe_open(path, framework="pt")
        problem = None if file.metadata() == holds else "holds the states of another model, layer or text"
        if problem is None and list(file.get_slice("states").get_shape()) != list(shape):
            problem = "has another shape than its rows"
    except (SafetensorError, OSError) as error:
        problem = f"is damaged ({error})"
    if problem:
        tell(f"midcourse: {path} {problem}; it is computed again")
        path.unlink(missing_ok=True)
        return None
    with suppress(OSError):
        os.utime(path)
    return file


def _reserved(folder: Path) -> set[str]:
    """Return the shards of living runs; what dead ones left is removed."""
    names: set[str] = set()
    for path in folder.glob("*.run"):
        with suppress(FileNotFoundError), path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                names.update(json.load(file))
            else:
                path.unlink(missing_ok=True)
    return names


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's bookkeeping for this process alone."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
