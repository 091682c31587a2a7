"""The reward of two checkpoints: nothing is trained, only measured and written."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from midcourse.data.comparisons import Comparison
from midcourse.data.encoded import encode
from midcourse.evaluate.accuracy import length_baseline, pair_accuracy
from midcourse.evaluate.calibration import calibrate
from midcourse.progress import progress
from midcourse.rewards.implicit import ImplicitReward
from midcourse.train.settings import TrainingError


def check_new(out: Path) -> None:
    """Raise TrainingError if `out` is anything but a new or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} exists already; name a new folder for --out")


def write_implicit(
    reward: ImplicitReward, comparisons: Sequence[Comparison], out: str | Path, max_tokens: int = 512, batch: int = 8
) -> dict[str, Any]:
    """Write the reward to `out`; returns its accuracy on all of the comparisons, as none of them is trained on.

    They calibrate it, too.

    Raises:
        TrainingError: `out` holds something.
    """
    check_new(Path(out))
    metrics: dict[str, Any] = {"pairs": 0}
    if comparisons:
        pairs = encode(reward, comparisons, max_tokens)
        rows = [(row.prompt, row.response) for row in pairs.rows]
        sums = []
        with progress("scoring", len(rows)) as advance:
            for begin in range(0, len(rows), batch):
                sums += [row.cumsum(0) for row in reward.score_ids(rows[begin : begin + batch])]
                advance(len(rows[begin : begin + batch]))
        metrics = pair_accuracy(pairs, sums) | {"length_baseline": length_baseline(pairs, pairs)}
        calibration, metrics["calibration"] = calibrate(pairs, sums)
        reward.info = replace(reward.info, calibration=calibration.stored())
    reward.info = replace(reward.info, metrics=metrics)
    reward.save(out)
    return metrics
