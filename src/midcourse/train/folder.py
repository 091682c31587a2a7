"""The folder a reward is trained in: one run's, from its first step to the finished reward.

While training goes on it holds run.json and the last whole checkpoint, from which `resume` goes on to the same model
as an undisturbed run; when it is done, midcourse.json (written last) makes it a reward.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from midcourse.data.comparisons import Example
from midcourse.data.learned import write_learned_rows
from midcourse.data.record import check_same, only_writer, read_record, write_record
from midcourse.files import LOCK, leftovers, write_text
from midcourse.rewards.trained import TrainedReward
from midcourse.terminal import tell
from midcourse.train import processes
from midcourse.train.card import plot_training, write_card
from midcourse.train.settings import TrainingError

RUN = "run.json"
SEAL = "checksums.json"
REPLAYED = "replayed.safetensors"


def only_training(out: Path) -> AbstractContextManager[None]:
    """Hold `out` for this training alone; TrainingError if another process that is alive trains there."""
    return only_writer(out, "folder", "training", TrainingError)


class Prepared(NamedTuple):
    """A folder that is ready for a run.

    Attributes:
        checkpoint: to go on from; None to start from the beginning.
        metrics: what the run has measured, if it was finished before and nothing is left to do.
    """

    checkpoint: Path | None = None
    metrics: dict[str, Any] | None = None


def prepare_folder(
    out: Path, run: dict[str, Any], resume: bool, *, made: str = "reward", record: str = "midcourse.json"
) -> Prepared:
    """Make `out` ready for this run.

    Args:
        made: what a finished run leaves, for messages.
        record: the file that it writes last; a reward's holds the run as "training".

    Raises:
        TrainingError: `out` holds something else, a run that is not to be resumed, or one with other settings.
    """
    run_file, remedy = out / RUN, f"delete {out} and train again"
    if (out / record).is_file():
        if not resume:
            raise TrainingError(f"{out} already holds a finished {made}; name another folder for --out, or delete it")
        found = read_record(out / record, TrainingError, remedy)
        earlier = found.get("training", {name: value for name, value in found.items() if name != "metrics"})
        check_same(earlier, run, out, f"a finished {made}", TrainingError)
        metrics = found.get("metrics")
        if not isinstance(metrics, dict) or not metrics.keys() & {"pairs", "kl", "loss"}:
            raise TrainingError(f"{out / record} is damaged (it has no metrics); {remedy}")
        tell(f"midcourse: the {made} in {out} was finished before")
        return Prepared(metrics=metrics)
    left = leftovers(run_file)
    if run_file.is_file():
        if not resume:
            raise TrainingError(f"{out} holds an unfinished run; add --resume to go on with it, or delete it")
        check_same(read_record(run_file, TrainingError, remedy), run, out, "a run", TrainingError)
        left = list(out.glob(".*-*"))
    elif any(path.name != LOCK and path not in left for path in out.iterdir()):
        raise TrainingError(f"{out} is not empty and holds no run of midcourse; name a new folder for --out")
    for part in left:  # what a kill left of a file or checkpoint being written
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    (out / "bad_batch.json").unlink(missing_ok=True)
    newest = checkpoints(out)[-1] if checkpoints(out) else None
    if newest:
        check_sealed(newest)
    write_record(run_file, run)
    return Prepared(newest)


def seal(checkpoint: Path) -> None:
    """Write down what a checkpoint's files hold, so that none is read that has changed since."""
    write_text(checkpoint / SEAL, json.dumps(_digests(checkpoint), indent=1) + "\n")


def check_sealed(checkpoint: Path) -> None:
    """Raise TrainingError if a file of a checkpoint is missing, damaged or another's."""
    try:
        sealed = dict(json.loads((checkpoint / SEAL).read_text()))
        digests = _digests(checkpoint)
        changed = [name for name, digest in sealed.items() if digests.get(name) != digest]
    except (OSError, ValueError, TypeError):
        changed = [SEAL]
    if changed:
        raise TrainingError(
            f"{checkpoint} is damaged ({', '.join(changed)}); delete it and add --resume: training then goes on from "
            "an earlier checkpoint, or from the beginning"
        )


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / SEAL:
            with path.open("rb") as file:
                digests[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def finish_folder(reward: TrainedReward, out: Path, learned: Sequence[Example], before: np.ndarray | None) -> None:
    """Turn a run's folder into a reward: curves, card, weights, then midcourse.json; then drop what resuming needed.

    Args:
        learned: the rows it learned from.
        before: hashes of those that it had learned from before; None if nobody knows, and then it does not say.
    """
    if not processes.first():
        reward.trained_state()  # all processes bring their parts together, one writes
        return
    plot_training(out / "metrics.jsonl", reward.info, out / "training.png")
    write_card(reward.info, out / "README.md")
    if before is not None:
        write_learned_rows(out, learned, before)
    reward.write(out)
    drop_run(out)


def drop_run(out: Path) -> None:
    """Drop what only resuming needs."""
    for checkpoint in checkpoints(out):
        shutil.rmtree(checkpoint)
    (out / REPLAYED).unlink(missing_ok=True)
    (out / RUN).unlink()


def checkpoints(out: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first. Each appears whole or not at all."""
    found = [path for path in out.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
