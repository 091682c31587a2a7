"""How a reward is trained: the numbers, and the precision of the arithmetic."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from midcourse.rewards.backbone import Tuning
from midcourse.rewards.scalar import RewardModel
from midcourse.train.folder import TrainingError

# By what is trained: a head alone bears large steps, pretrained weights do not.
LEARNING_RATES = {
    "head": 3e-3,
    "trunk": 1e-4,
    "vocabulary": 1e-4,
    "encoder": 1e-3,
    "last": 3e-4,
    "lora": 3e-4,
    "all": 3e-5,
}
REPORTS = ("tensorboard", "trackio", "wandb")
PRECISIONS = ("auto", "full", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """How a reward is trained.

    Attributes:
        epochs: passes over the data; of an objective in phases, passes of each phase.
        lr: peak learning rate (cosine to 0, 10 % warm-up); by default one that suits what is trained.
        batch_size: pairs or rollouts per step.
        max_tokens: longest prompt and response together; longer responses are cut and count as unfinished.
        held_out: share of the prompts kept for the accuracies.
        weight_decay: of AdamW.
        save_steps: steps between checkpoints; by default a tenth of the run.
        seed: of the batches and the weights; the split does not depend on it.
        eval_steps: steps between evaluations on held-out prompts; by default an epoch's.
        patience: stop after so many evaluations without a better prefix accuracy (its mean over the shares of the
            response) and keep the best weights. Half of the held-out prompts then decide, the other half reports.
        gradient_checkpointing: keep less for the backward pass and compute it again: slower, in less memory.
        precision: "bfloat16" computes in it where that loses nothing, with weights in float32; "full" computes in the
            weights' own dtype; "auto" is bfloat16 on GPUs that have it.
    """

    epochs: int = 2
    lr: float | None = None
    batch_size: int = 32
    max_tokens: int = 512
    held_out: float = 0.1
    weight_decay: float = 0.05
    save_steps: int | None = None
    seed: int = 0
    eval_steps: int | None = None
    patience: int | None = None
    gradient_checkpointing: bool = False
    precision: str = "auto"


def learning_rate(reward: RewardModel) -> float:
    """The peak learning rate for what a reward trains."""
    tuned = Tuning.parse(reward.info.tune).kind
    head = reward.info.head.partition(":")[0]
    return LEARNING_RATES[head if tuned == "head" and head != "scalar" else tuned]


def computes_in_bfloat16(reward: RewardModel, settings: Settings) -> bool:
    """Whether mixed precision is asked for, or the hardware has it; TrainingError where it is asked for in vain."""
    able = reward.device.type == "cuda" and torch.cuda.is_bf16_supported()
    if settings.precision == "bfloat16" and not able:
        raise TrainingError(
            f"precision bfloat16 needs a GPU that computes in it, and this is {reward.device}; use auto"
        )
    weights = {p.dtype for p in reward.parameters()}
    return settings.precision == "bfloat16" or (
        settings.precision == "auto" and able and weights <= {torch.float32, torch.bfloat16}
    )


@contextmanager
def master_weights(reward: RewardModel, mixed: bool) -> Iterator[None]:
    """Train bfloat16 weights as float32 ones, whose small steps are not lost; afterwards they are what they were."""
    low = [p for p in reward.parameters() if p.requires_grad and p.dtype == torch.bfloat16] if mixed else []
    for p in low:
        p.data = p.data.float()
    try:
        yield
    finally:
        for p in low:
            p.data = p.data.to(torch.bfloat16)


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
