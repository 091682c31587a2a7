"""How well rewards of tokens tell what an edit made better from what it took away."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from midcourse.data.alignment import Change
from midcourse.data.encoded import EditSet, pairs_of_edits
from midcourse.evaluate.accuracy import equal_length, outcome
from midcourse.evaluate.intervals import interval_of, mean_interval
from midcourse.evaluate.separation import auroc, draws


def edit_figures(data: EditSet, rewards: Sequence[Tensor]) -> dict[str, Any]:
    """Measure rewards of tokens on edits, with 95 % intervals over what the edits belong to.

    Args:
        data: edits that were not trained on.
        rewards: for each of its rows, the rewards of its response tokens.

    Returns:
        edits, tokens: how many, and (added or substituted, deleted or substituted) tokens; auroc, auroc_interval: the
        chance that a token of the first kind has a higher reward than one of the second, None if there is none of one;
        kept_auroc, kept_auroc_interval: likewise of the original's kept tokens and of the second kind; mean_reward:
        {pairs, accuracy, interval, ties, equal_length} of ranking the edited text above the original by the mean over
        tokens; kept: (mean, standard deviation) of the rewards of kept tokens.
    """
    better, worse, kept = (
        _of_tokens(data, rewards, *which) for which in (("edited", False), ("original", False), ("original", True))
    )
    return {
        "edits": len(data.items),
        "tokens": [len(better[0]), len(worse[0])],
        **_auroc("auroc", worse, better),
        **_auroc("kept_auroc", worse, kept),
        "mean_reward": _mean_reward(data, rewards),
        "kept": kept_rewards(data, rewards),
    }


def kept_rewards(data: EditSet, rewards: Sequence[Tensor]) -> tuple[float, float]:
    """Return the mean and the standard deviation of the rewards of tokens that no edit touched, a text's once."""
    values = [
        float(reward)
        for row, labels in {row: of for pair in _sides(data) for row, of in pair if of}.items()
        for reward, label in zip(rewards[row], labels, strict=True)
        if label is Change.KEPT
    ]
    return (float(np.mean(values)), float(np.std(values))) if values else (0.0, 0.0)


def _sides(data: EditSet) -> list[tuple[tuple[int, tuple[Change, ...]], tuple[int, tuple[Change, ...]]]]:
    """Return the (row, labels) of each edit's two texts, the edited one first; of none there are no labels."""
    return [
        ((edited, labels.edited), (original, labels.original))
        for (edited, original), labels in zip(data.items, data.labels, strict=True)
    ]


def _of_tokens(
    data: EditSet, rewards: Sequence[Tensor], side: Literal["edited", "original"], kept: bool
) -> tuple[np.ndarray, list[str]]:
    """Return the rewards of the changed or the kept tokens of one side, and what each belongs to."""
    values, groups = [], []
    for pair, group in zip(_sides(data), data.prompts, strict=True):
        row, labels = pair[0 if side == "edited" else 1]
        mine = [float(r) for r, label in zip(rewards[row][: len(labels)], labels, strict=True) if label.kept == kept]
        values += mine
        groups += [group] * len(mine)
    return np.array(values), groups


def _auroc(name: str, worse: tuple[np.ndarray, list[str]], better: tuple[np.ndarray, list[str]]) -> dict[str, Any]:
    if not len(worse[0]) or not len(better[0]):
        return {name: None, f"{name}_interval": None}
    drawn = draws(worse[0], better[0], worse[1], better[1])
    groups = min(len(set(worse[1])), len(set(better[1])))
    interval = interval_of(np.array([auroc(n, p) for n, p in drawn]), groups, proportion=True)
    return {name: auroc(worse[0], better[0]), f"{name}_interval": interval}


def _mean_reward(data: EditSet, rewards: Sequence[Tensor]) -> dict[str, Any]:
    """Return how often the mean reward of the edited text's tokens is above the original's."""
    pairs = pairs_of_edits(data)
    if not pairs.pairs:
        return {"pairs": 0, "accuracy": None, "interval": None, "ties": None, "equal_length": None}
    means = [float(row.mean()) for row in rewards]
    differences = [means[edited] - means[original] for edited, original in pairs.pairs]
    equal = [n for n, (a, b) in enumerate(pairs.pairs) if equal_length(data.rows[a], data.rows[b])]

    def of(numbers: Sequence[int]) -> dict[str, Any]:
        outcomes = [outcome(differences[n]) for n in numbers]
        mean, interval = mean_interval(outcomes, [pairs.prompts[n] for n in numbers], proportion=True)
        ties = float(np.mean([differences[n] == 0 for n in numbers]))
        return {"pairs": len(numbers), "accuracy": mean, "interval": interval, "ties": ties}

    return {**of(range(len(differences))), "equal_length": of(equal) if equal else None}
