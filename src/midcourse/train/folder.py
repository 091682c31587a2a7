"""The folder a reward is trained in: one run's, from its first step to the finished reward.

While training goes on it holds run.json and the last whole checkpoint, from which `resume` goes on to the same model
as an undisturbed run; when it is done, midcourse.json (written last) makes it a reward.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from midcourse.errors import MidcourseError
from midcourse.files import write_text
from midcourse.reward_model import RewardModel
from midcourse.train import processes
from midcourse.train.card import plot_training, write_card

LOCK = ".lock"


class TrainingError(MidcourseError):
    """Training that cannot start, go on, or be saved."""


@contextmanager
def only_training(out: Path) -> Iterator[None]:
    """Hold `out` for this training alone; TrainingError where another process that is alive trains there.

    The system gives a lock back when its process ends, however it ends: what a dead one left does not block.
    """
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out} is a file; name a folder for --out")
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out / LOCK) as file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            (out / LOCK).unlink(missing_ok=True)
            if not any(out.iterdir()):
                out.rmdir()


def _lock(path: Path) -> IO[str]:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
            file.close()  # its holder deleted it in between
        except BlockingIOError as error:
            file.seek(0)
            with file:
                raise TrainingError(
                    f"another training (process {file.read() or 'unknown'}) is writing to {path.parent}; "
                    "wait for it, or name another folder for --out"
                ) from error


def prepare_folder(
    out: Path, run: dict[str, Any], resume: bool, *, made: str = "reward", record: str = "midcourse.json"
) -> Path | None:
    """Make `out` ready for this run; the checkpoint to go on from, or None for a start from the beginning.

    Args:
        made: what a finished run leaves, for messages.
        record: the file that it writes last.
    """
    run_file = out / "run.json"
    if (out / record).is_file():
        raise TrainingError(f"{out} already holds a finished {made}; name another folder for --out, or delete it")
    if run_file.is_file():
        if not resume:
            raise TrainingError(f"{out} holds an unfinished run; add --resume to go on with it, or delete it")
        check_same_run(json.loads(run_file.read_text()), json.loads(json.dumps(run)), out)
    elif any(path.name != LOCK for path in out.iterdir()):
        raise TrainingError(f"{out} is not empty and holds no run of midcourse; name a new folder for --out")
    for torn in out.glob(".*-*"):  # what a kill left of a file or checkpoint being written
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
    (out / "bad_batch.json").unlink(missing_ok=True)
    write_text(run_file, json.dumps(run, indent=2) + "\n")
    return checkpoints(out)[-1] if checkpoints(out) else None


def check_same_run(have: dict[str, Any], want: dict[str, Any], out: Path) -> None:
    """Raise TrainingError where a folder's unfinished run had other data or settings."""
    if have == want:
        return
    flat = [
        {
            f"{a}.{b}": v
            for a, part in run.items()
            for b, v in (part.items() if isinstance(part, dict) else [("", part)])
        }
        for run in (have, want)
    ]
    name = next(key for key in flat[1] if flat[0].get(key) != flat[1][key])
    raise TrainingError(
        f"{out} holds a run with {name.strip('.')} {flat[0].get(name)!r}, not {flat[1][name]!r}; "
        "resume with the same arguments, or name another folder for --out"
    )


def finish_folder(reward: RewardModel, out: Path) -> None:
    """Turn a run's folder into a reward: curves, card, weights, then midcourse.json; then drop what resuming needed."""
    if not processes.first():
        reward.trained_state()  # all processes bring their parts together, one writes
        return
    plot_training(out / "metrics.jsonl", reward.info, out / "training.png")
    write_card(reward.info, out / "README.md")
    reward.write(out)
    for checkpoint in checkpoints(out):
        shutil.rmtree(checkpoint)
    (out / "run.json").unlink()


def checkpoints(out: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    found = [path for path in out.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
