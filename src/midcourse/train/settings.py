"""The numbers that a training is asked for with. Imports no torch, so that the command line can show them at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

from midcourse.errors import MidcourseError

Report = Literal["tensorboard", "trackio", "wandb"]
PRECISIONS = ("auto", "full", "bfloat16")
REPORTS: tuple[str, ...] = get_args(Report)


class TrainingError(MidcourseError):
    """Training that cannot start, go on, or be saved."""


@dataclass(frozen=True)
class CommonSettings:
    """How the weights are trained, of a reward or of a language model."""

    epochs: int = 2
    """Passes over the data; an objective in phases makes so many in each phase."""
    lr: float | None = None
    """Peak learning rate; it rises over the first tenth of the run and falls to 0 along a cosine. By default one that
    suits what is trained."""
    batch_size: int = 32
    """Pairs or rollouts per step."""
    max_tokens: int = 512
    """Longest prompt and response together; longer responses are cut and count as unfinished, longer prompts are bad
    rows (an encoder reads the end of such a prompt)."""
    held_out: float = 0.1
    """Share of the prompts kept out of training, for the accuracies."""
    weight_decay: float = 0.05
    """Weight decay of AdamW."""
    save_steps: int | None = None
    """Steps between checkpoints; a tenth of the run by default."""
    seed: int = 0
    """Seed of the batches and of new weights; which prompts are held out does not depend on it."""
    eval_steps: int | None = None
    """Steps between evaluations on held-out prompts; an epoch by default."""
    gradient_checkpointing: bool = False
    """Train in less memory and more time: compute again what the backward pass needs, instead of keeping it."""


@dataclass(frozen=True)
class Settings(CommonSettings):
    """How a reward is trained."""

    patience: int | None = None
    """Stop after so many evaluations without a better prefix accuracy on held-out prompts (its mean over the shares of
    the response), and keep the best weights. Half of the held-out prompts decides, the other half reports."""
    precision: str = "auto"
    """What the arithmetic is done in. bfloat16: in it if that loses nothing, with float32 weights. full: in the
    weights' own dtype. auto: bfloat16 on GPUs that have it."""


def check_settings(settings: Settings) -> None:
    """Raise TrainingError on a setting that makes no sense."""
    for name in ("epochs", "batch_size", "max_tokens"):
        if (value := getattr(settings, name)) < 1:
            raise TrainingError(f"{name.replace('_', '-')} is {value}; use 1 or more")
    for name in ("save_steps", "eval_steps", "patience"):
        if (value := getattr(settings, name)) is not None and value < 1:
            raise TrainingError(f"{name.replace('_', '-')} is {value}; use 1 or more")
    if settings.precision not in PRECISIONS:
        raise TrainingError(f"precision {settings.precision!r} is unknown; use one of: {', '.join(PRECISIONS)}")
    if not 0 < settings.held_out < 1:
        raise TrainingError(f"held-out is {settings.held_out}; use a share between 0 and 1, such as 0.1")
    if settings.lr is not None and not 0 < settings.lr < math.inf:
        raise TrainingError(f"lr is {settings.lr}; use a positive number, such as 3e-4")


def check_reports(report_to: Sequence[str]) -> None:
    """Raise TrainingError on a tracker that is not known, or not installed."""
    for name in report_to:
        if name not in REPORTS:
            raise TrainingError(f"report-to {name!r} is unknown; use one of: {', '.join(REPORTS)}")
        if find_spec(name) is None:
            raise TrainingError(f"report-to {name} needs a package that is not installed; run: pip install {name}")
