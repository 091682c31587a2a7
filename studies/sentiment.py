"""The sentiment task of the studies: SmolLM2's own continuations of film review openings, and what VADER says of them.

Sampled as guided texts are, from the LM's top 10, so that they are what the guided policy starts from.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from midcourse import LanguageModel
from midcourse.data.comparisons import Comparison
from midcourse.data.rollouts import Rollout
from midcourse.data.sample import sample
from midcourse.rewards.gold import load_gold
from studies.data import openings as of_split

RUNS = Path(__file__).parents[1] / "runs/sentiment"
NEW_TOKENS = 24
TRAIN, SAMPLES = 600, {"train": 4, "validation": 6, "test": 6}
SPARE = 160  # openings at the end of the train split's order, which go with the test split's: no reward sees them
GAP = 0.1  # two continuations are compared where their gold differs by more


@cache
def openings(data: Path, part: str) -> list[str]:
    """The first words of reviews, of train, validation or test."""
    if part == "train":
        return of_split(data, "train")[:TRAIN]
    return of_split(data, part) + (of_split(data, "train")[-SPARE:] if part == "test" else [])


@cache
def rollouts(data: Path, part: str) -> list[Rollout]:
    """Continuations of the part's openings by the plain LM, labelled with their gold; kept in runs/sentiment/."""
    RUNS.mkdir(parents=True, exist_ok=True)
    found = sample(
        LanguageModel.load("smollm2"),
        openings(data, part),
        RUNS / f"{part}.jsonl",
        n=SAMPLES[part],
        label=load_gold("vader"),
        max_new_tokens=NEW_TOKENS,
        template="raw",
        batch_size=96,
        resume=True,
    )
    return [Rollout(s.prompt, s.response, s.finished, s.reward or 0.0) for s in found if s.response.strip()]


def comparisons(found: Sequence[Rollout], gap: float = GAP) -> list[Comparison]:
    """Every two continuations of an opening, the one of higher gold preferred where they differ by more than `gap`."""
    pairs = (
        pair
        for _, group in itertools.groupby(found, key=lambda rollout: rollout.prompt)
        for pair in itertools.permutations(group, 2)
    )
    return [
        Comparison(a.prompt, a.response, b.response, a.finished, b.finished)
        for a, b in pairs
        if a.reward - b.reward > gap
    ]
