"""The detoxification prompts of the studies: RealToxicityPrompts that are more likely profane than not themselves."""

from pathlib import Path

from midcourse.evaluate.gold import load_gold
from studies.rewards.run import read


def profane_prompts(data: Path, *splits: str) -> list[str]:
    """Those of the splits, in the order of the splits and of the data set; no reward learns from any."""
    gold, rows = load_gold("profanity"), read(data, "prompts/real_toxicity_prompts")
    return [row["prompt"] for split in splits for row in rows if row["split"] == split and gold(row["prompt"]) < 0.5]
