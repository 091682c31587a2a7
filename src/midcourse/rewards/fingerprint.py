"""What a reward in memory is made of: whether two runs had the same one."""

import hashlib
import json
from typing import Any

from torch import nn

from midcourse.lm.weights import tensors_fingerprint
from midcourse.rewards.contract import Reward


def reward_fingerprint(reward: Reward) -> str:
    """Return the name of a reward's function, or 16 hexadecimal digits of its weights and how they are read.

    A function is named by its module and its own name: what it computes is not looked at.
    """
    weights = _weights(reward)
    if not weights:
        return _function_name(getattr(reward, "function", None) or getattr(reward, "score_texts", reward))
    info = getattr(reward, "info", None)
    read = {name: getattr(info, name, None) for name in ("objective_settings", "reward_weight")}
    read |= {name: getattr(reward, name, None) for name in ("template", "normalised")}
    if (label := getattr(reward, "label", None)) is not None:
        read["label"] = label
    return hashlib.sha256(json.dumps([weights, read], sort_keys=True).encode()).hexdigest()[:16]


def _weights(part: Any) -> list[str]:
    """Return the fingerprints of the models that a reward holds, also within rewards of which it is made."""
    if isinstance(part, nn.Module):
        return [tensors_fingerprint(part)]
    held = [value for value in vars(part).values() if isinstance(value, nn.Module | Reward)]
    return [fingerprint for value in held for fingerprint in _weights(value)]


def _function_name(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"
