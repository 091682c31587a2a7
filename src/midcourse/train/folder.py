"""The folder a reward is trained in: one run's, from its first step to the finished reward.

While training goes on it holds run.json and the last whole checkpoint, from which `resume` goes on to the same model
as an undisturbed run; when it is done, midcourse.json (written last) makes it a reward.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from midcourse.data.comparisons import Example
from midcourse.data.learned import write_learned_rows
from midcourse.errors import MidcourseError
from midcourse.files import LOCK, InUse, as_json, sole_use, write_text
from midcourse.rewards.scalar import RewardModel
from midcourse.train import processes
from midcourse.train.card import plot_training, write_card

SEAL = "checksums.json"


class TrainingError(MidcourseError):
    """Training that cannot start, go on, or be saved."""


@contextmanager
def only_training(out: Path) -> Iterator[None]:
    """Hold `out` for this training alone; TrainingError where another process that is alive trains there."""
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out} is a file; name a folder for --out")
    try:
        with sole_use(out):
            yield
    except InUse as use:
        raise TrainingError(
            f"another training (process {use.process}) is writing to {out}; "
            "wait for it, or name another folder for --out"
        ) from use


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
        check_same_run(_read_run(run_file), json.loads(json.dumps(run)), out)
    elif any(path.name != LOCK for path in out.iterdir()):
        raise TrainingError(f"{out} is not empty and holds no run of midcourse; name a new folder for --out")
    for torn in out.glob(".*-*"):  # what a kill left of a file or checkpoint being written
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
    (out / "bad_batch.json").unlink(missing_ok=True)
    newest = checkpoints(out)[-1] if checkpoints(out) else None
    if newest:
        check_sealed(newest)
    write_text(run_file, as_json(run, indent=2) + "\n")
    return newest


def _read_run(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({error}); delete {path.parent} and train again") from error


def seal(checkpoint: Path) -> None:
    """Write down what a checkpoint's files hold, so that none is read that has changed since."""
    write_text(checkpoint / SEAL, json.dumps(_digests(checkpoint), indent=1) + "\n")


def check_sealed(checkpoint: Path) -> None:
    """Raise TrainingError where a file of a checkpoint is missing, damaged or another's."""
    try:
        sealed = dict(json.loads((checkpoint / SEAL).read_text()))
        found = _digests(checkpoint)
        changed = [name for name, digest in sealed.items() if found.get(name) != digest]
    except (OSError, ValueError, TypeError):
        changed = [SEAL]
    if changed:
        raise TrainingError(
            f"{checkpoint} is damaged ({', '.join(changed)}); delete it and add --resume: training then goes on from "
            "an earlier checkpoint, or from the beginning"
        )


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / SEAL:
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


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


def finish_folder(reward: RewardModel, out: Path, learned: Sequence[Example]) -> None:
    """Turn a run's folder into a reward: curves, card, weights, then midcourse.json; then drop what resuming needed.

    Args:
        learned: the rows it learned from.
    """
    if not processes.first():
        reward.trained_state()  # all processes bring their parts together, one writes
        return
    plot_training(out / "metrics.jsonl", reward.info, out / "training.png")
    write_card(reward.info, out / "README.md")
    write_learned_rows(out, learned)
    reward.write(out)
    drop_run(out)


def drop_run(out: Path) -> None:
    """Drop what only resuming needs."""
    for checkpoint in checkpoints(out):
        shutil.rmtree(checkpoint)
    (out / "run.json").unlink()


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first. Each appears whole or not at all."""
    found = [path for path in out.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
