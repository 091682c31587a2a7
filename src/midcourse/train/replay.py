"""Texts that are replayed while something else is learned, so that their rewards stay what they were (ReMoDetect).

Their rewards before training are computed once and kept in the run's folder, since they would cost a second model and
a forward at every step. Only texts that a step takes are read at all.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from midcourse.data.comparisons import Comparison, prompt_key
from midcourse.data.encoded import LadderSet
from midcourse.data.rollouts import Rollout, label_comparisons
from midcourse.files import whole_file
from midcourse.terminal import tell
from midcourse.train.folder import REPLAYED
from midcourse.train.scorer import Scorer


def texts_of(comparisons: Iterable[Comparison]) -> list[Rollout]:
    """Return the responses of comparisons, each with its prompt and once."""
    sides = label_comparisons(comparisons)
    return list({(prompt_key(one.prompt), one.response, one.finished): one for one in sides}.values())


def draw(texts: Sequence[Rollout], times: int, seed: int) -> list[Rollout]:
    """Return `times` of the texts: all in random order, again and again. A pure function of its arguments."""
    rng = random.Random(f"replay {seed}")
    drawn: list[Rollout] = []
    while texts and len(drawn) < times:
        drawn += rng.sample(texts, min(len(texts), times - len(drawn)))
    return drawn


def initial_rewards(scorer: Scorer, data: LadderSet, folder: Path) -> dict[int, float]:
    """Return the rewards that the scorer gives the replayed rows now, before training, by row number.

    They are written to `folder`, or read from there if a run that goes on has written them.
    """
    rows, path = sorted(set(data.replay)), folder / REPLAYED
    holds = {"rows": _hash(data, rows)}
    rewards = _kept(path, holds, len(rows))
    if rewards is None:
        rewards = end_rewards(scorer, rows)
        with whole_file(path) as temporary:
            save_file({"rewards": rewards}, temporary, metadata=holds)
    return dict(zip(rows, rewards.tolist(), strict=True))


def drift(scorer: Scorer, data: LadderSet) -> float:
    """Return the root mean square of how far the rewards of the replayed rows are from what they were."""
    rows = sorted(data.initial)
    before = torch.tensor([data.initial[row] for row in rows], dtype=torch.float64)
    return (end_rewards(scorer, rows).double() - before).square().mean().sqrt().item()


def end_rewards(scorer: Scorer, rows: Sequence[int]) -> Tensor:
    """Return the rewards of some finished texts of the set that is trained on."""
    return torch.stack([rewards[-1] for rewards in scorer.score(0, numbers=rows)])


def _hash(data: LadderSet, rows: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps([data.rows[row] for row in rows]).encode()).hexdigest()


def _kept(path: Path, holds: dict[str, str], count: int) -> Tensor | None:
    """Return the rewards in a file; None if it is missing or, with a warning, damaged or of other rows."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            rewards = file.get_tensor("rewards")
            if file.metadata() == holds and rewards.shape == (count,):
                return rewards
            problem = "is of other texts"
    except (SafetensorError, OSError) as error:
        problem = f"is damaged ({error})"
    tell(f"midcourse: {path} {problem}; the rewards before training are computed again")
    return None
