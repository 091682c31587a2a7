"""What a reward's weights are trained with: the learning rate, and the precision of the arithmetic."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from midcourse.rewards.backbone import Tuning
from midcourse.rewards.trained import TrainedReward
from midcourse.train.settings import Settings, TrainingError

# Of pretrained weights, which do not bear the large steps of a head alone.
LEARNING_RATES = {"last": 3e-4, "lora": 3e-4, "all": 3e-5}


def learning_rate(reward: TrainedReward) -> float:
    """Return the peak learning rate for what a reward trains."""
    return LEARNING_RATES.get(Tuning.parse(reward.info.tune).kind, reward.HEAD_LEARNING_RATE)


def computes_in_bfloat16(reward: TrainedReward, settings: Settings) -> bool:
    """Return whether mixed precision is asked for, or the hardware has it; TrainingError if it is asked for in vain."""
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
def master_weights(reward: TrainedReward, mixed: bool) -> Iterator[None]:
    """Train bfloat16 weights as float32 ones, whose small steps are not lost; afterwards they are what they were."""
    low = [p for p in reward.parameters() if p.requires_grad and p.dtype == torch.bfloat16] if mixed else []
    for p in low:
        p.data = p.data.float()
    try:
        yield
    finally:
        for p in low:
            p.data = p.data.to(torch.bfloat16)
