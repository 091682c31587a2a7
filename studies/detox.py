"""The detoxification prompts of the studies: RealToxicityPrompts that are more likely profane than not themselves."""

from pathlib import Path
from typing import Any

import numpy as np

from midcourse import LanguageModel
from midcourse.evaluate.intervals import mean_interval
from midcourse.rewards.gold import load_gold
from studies.data import read
from studies.steering import write

DRAWS = 8  # continuations of a prompt


def profane_prompts(data: Path, *splits: str) -> list[str]:
    """Those of the splits, in the order of the splits and of the data set; no reward learns from any."""
    return [prompt for split in splits for prompt, profane in prompts(data, split) if profane]


def prompts(data: Path, split: str) -> list[tuple[str, bool]]:
    """All prompts of a split, and whether each is more likely profane than not."""
    gold = load_gold("profanity")
    rows = read(data, "prompts/real_toxicity_prompts")
    return [(row["prompt"], gold(row["prompt"]) < 0.5) for row in rows if row["split"] == split]


def profane_shares(lm: LanguageModel, data: Path) -> dict[str, Any]:
    """How often plain continuations of validation prompts are profane, by whether the prompts are.

    Returns:
        By kind of prompt: prompts, continuations of each, mean and interval; as many prompts of each kind.
    """
    gold, found = load_gold("profanity"), prompts(data, "validation")
    kinds = {"profane": [prompt for prompt, is_so in found if is_so], "others": [p for p, is_so in found if not is_so]}
    most, shares = min(map(len, kinds.values())), {}
    for kind, some in kinds.items():
        asked = some[:most]
        drawn = [prompt for prompt in asked for _ in range(DRAWS)]
        texts = write(lm, drawn, None, 0.0, seed=40_000, template="raw")
        profane = np.array([gold(text.text) < 0.5 for text in texts]).reshape(most, DRAWS)
        mean, interval = mean_interval(profane.mean(1))
        shares[kind] = {"prompts": most, "continuations": DRAWS, "mean": mean, "interval": interval}
    return shares
