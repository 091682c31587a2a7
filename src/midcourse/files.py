"""Files that are whole or absent: temporary name, fsync, rename. And files and folders with one writer at a time."""

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

LOCK = ".lock"


class InUse(Exception):
    """A folder or file that another process writes to; `process` is its number, or "unknown"."""

    def __init__(self, process: str):
        super().__init__(f"process {process}")
        self.process = process


@contextlib.contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Hold a folder, made if it is missing, for this process alone; InUse if another one that is alive holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / LOCK):
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


@contextlib.contextmanager
def sole_use_of_file(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a file, which need not be there yet, for this process alone; InUse if another one that is alive holds it.

    The lock is a hidden file beside it, so that the file itself may be replaced meanwhile.

    Args:
        wait: until the other one lets it go, instead of raising InUse.
    """
    path = path.resolve()  # all names of a file have one lock
    lock = path.with_name(f".{path.name}{LOCK}")
    with _lock(lock, wait):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _lock(path: Path, wait: bool = False) -> IO[str]:
    """Open a lock file that is this process's alone, its number in it, until the file is closed.

    The system gives a lock back when its process ends, however it ends: what a dead one left does not block.
    """
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                return file
            file.close()  # its holder deleted it in between
        except BlockingIOError as error:
            file.seek(0)
            with file:
                raise InUse(file.read() or "unknown") from error


def cache_folder() -> Path:
    """Return the user's cache folder for midcourse (XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "midcourse"


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, atomically."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def as_json(value: Any, **layout: Any) -> str:
    """Return a value as JSON, which has no NaN and no infinity.

    Args:
        layout: of `json.dumps`, such as indent.

    Raises:
        MidcourseError: a number in it is none of those that JSON has; the sentence says where.
    """
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError as error:
        from midcourse.errors import MidcourseError  # tests run this file alone

        found = next(_no_numbers(value, ""), None)
        if found is None:
            raise
        raise MidcourseError(
            f"{found} cannot be written as JSON, which has finite numbers only; where a model gave it, restore its "
            "weights or try --dtype float32"
        ) from error


def _no_numbers(value: Any, place: str) -> Iterator[str]:
    """Yield what is NaN or infinite in a value, such as "tokens.3.reward = nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place} = {value}" if place else f"{value}"
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, part in parts:
        yield from _no_numbers(part, f"{place}.{name}" if place else str(name))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system that comes up in the block say which file or folder it is about: `path`.

    A full disk names none, a temporary file is nothing to whoever reads the message, and libraries in Rust raise errors
    of their own.
    """
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write, which takes the place of `path` when the block ends without an error.

    Where `path` is a link, what it leads to is replaced.
    """
    with naming(path):
        path = path.resolve()
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, 0o644)
            _fsync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _fsync(path.parent)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, which takes the place of `folder` when the block ends without an error.

    A folder of that name stays as it was until the new one is complete on disk. Where it is a link, what it leads to is
    replaced.
    """
    with naming(folder):
        folder = folder.resolve()
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            yield work
            os.chmod(work, 0o755)
            publish_folder(work, folder, replace=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def leftovers(path: Path) -> list[Path]:
    """Return what killed processes left of a file or folder that they were writing, under its temporary names."""
    return list(path.parent.glob(f".{path.name}-*"))


def publish_folder(work: Path, folder: Path, *, replace: bool) -> None:
    """Flush `work` to disk and rename it to `folder`.

    If `folder` exists: with `replace` it is moved aside and then deleted, without it `folder` is kept.
    """
    for path in work.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
        _fsync(path)
    _fsync(work)
    if folder.exists() and not replace:
        return
    aside = folder.with_name(f".{folder.name}-old-{os.getpid()}")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)  # left by a process of that number that was killed
        os.rename(folder, aside)
    try:
        os.rename(work, folder)
    except OSError:
        if aside.exists():
            os.rename(aside, folder)
        if replace or not folder.is_dir():  # otherwise another process was first, with the same content
            raise
    _fsync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
