"""Pair accuracy and fit to labels at a share of the response, their baselines and intervals.

For shares below 1 both responses are cut to ceil(share x the shorter one's tokens); at 1 the whole texts are compared,
finished ones at their EOS. Ties count one half.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from midcourse.data.encoded import EncodedRow, PairSet, RolloutSet
from midcourse.evaluate.intervals import mean_interval
from midcourse.rewards.info import RewardError

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
EQUAL_LENGTH = 0.1  # lengths within 10 % of the longer count as equal


def pair_accuracy(pairs: PairSet, rewards: Sequence[Tensor]) -> dict[str, Any]:
    """Return accuracy by share of the response, with 95 % intervals over prompts.

    Args:
        pairs: the comparisons.
        rewards: for each of `pairs.rows`, the rewards at its response positions.

    Returns:
        pairs, prompts; shares: a list of {share, accuracy, interval, ties}; equal_length: the same at share 1 on pairs
        of equal length, or None if there are none.
    """
    shares = [{"share": share, **_accuracy(pairs, rewards, share)} for share in SHARES]
    equal = [n for n, (a, b) in enumerate(pairs.pairs) if equal_length(pairs.rows[a], pairs.rows[b])]
    return {
        "pairs": len(pairs.pairs),
        "prompts": len(set(pairs.prompts)),
        "shares": shares,
        "equal_length": {"pairs": len(equal), **_accuracy(pairs, rewards, 1.0, equal)} if equal else None,
    }


def length_baseline(train: PairSet, held_out: PairSet) -> dict[str, Any]:
    """Return the accuracy on `held_out` of preferring the longer response, or the shorter if `train` says so."""
    sign = 1.0 if np.mean(_length_outcomes(train)) >= 0.5 else -1.0
    outcomes = 0.5 + sign * (_length_outcomes(held_out) - 0.5)
    mean, interval = mean_interval(outcomes, held_out.prompts, proportion=True)
    return {"prefers": "longer" if sign > 0 else "shorter", "accuracy": mean, "interval": interval}


def label_fit(data: RolloutSet, rewards: Sequence[Tensor], guess: float) -> dict[str, Any]:
    """Measure how well the rewards of prefixes foretell the labels of their rollouts, by share of the response.

    Args:
        data: the rollouts.
        rewards: for each of `data.rows`, the rewards at its response positions.
        guess: the label that is expected of every rollout by the baseline.

    Returns:
        rollouts, prompts; shares: a list of {share, correlation (Pearson's; None if one side is constant),
        squared_error, interval (of the error, 95 % over prompts)}; baseline: {guess, squared_error, interval}.
    """
    labels = np.array(data.labels)

    def error(guesses: np.ndarray) -> dict[str, Any]:
        mean, interval = mean_interval((guesses - labels) ** 2, data.prompts)
        return {"squared_error": mean, "interval": interval}

    shares = []
    for share in SHARES:
        values = np.array([_at_share(data.rows[row], rewards[row], share) for (row,) in data.items])
        varies = values.std() > 0 and labels.std() > 0
        correlation = float(np.corrcoef(values, labels)[0, 1]) if varies else None
        shares.append({"share": share, "correlation": correlation, **error(values)})
    return {
        "rollouts": len(data.items),
        "prompts": len(set(data.prompts)),
        "shares": shares,
        "baseline": {"guess": guess, **error(np.full(len(labels), guess))},
    }


def _at_share(row: EncodedRow, rewards: Tensor, share: float) -> float:
    at = -1 if share == 1 else max(math.ceil(share * row.text_length) - 1, 0)
    return float(rewards[at])


def outcome(difference: float) -> float:
    """Return 1 if the chosen response wins, 0 if it loses, one half for a tie; RewardError for no number."""
    if math.isnan(difference):
        raise RewardError("a difference of rewards is nan; train the reward again with a lower --lr")
    return 0.5 + 0.5 * ((difference > 0) - (difference < 0))


def _accuracy(
    pairs: PairSet, rewards: Sequence[Tensor], share: float, numbers: Sequence[int] | None = None
) -> dict[str, Any]:
    numbers = range(len(pairs.pairs)) if numbers is None else numbers
    differences = [difference(pairs, rewards, number, share) for number in numbers]
    outcomes = np.array([outcome(difference) for difference in differences])
    mean, interval = mean_interval(outcomes, [pairs.prompts[number] for number in numbers], proportion=True)
    ties = float(np.mean([difference == 0 for difference in differences]))
    return {"accuracy": mean, "interval": interval, "ties": ties}


def difference(pairs: PairSet, rewards: Sequence[Tensor], number: int, share: float) -> float:
    """Return r_chosen - r_rejected of a pair at a share; exactly 0 if both prefixes have the same tokens.

    Rounding may tell equal prefixes apart: rows are scored in batches of different widths.
    """
    a, b = pairs.pairs[number]
    if share == 1:
        return float(rewards[a][-1] - rewards[b][-1])
    at = cut_at(pairs, (a, b), share)
    chosen, rejected = pairs.rows[a], pairs.rows[b]
    if chosen.prompt == rejected.prompt and chosen.response[: at + 1] == rejected.response[: at + 1]:
        return 0.0
    return float(rewards[a][at] - rewards[b][at])


def cut_at(pairs: PairSet, sides: tuple[int, int], share: float) -> int:
    """Return the last position of both responses of a pair at a share below 1; `sides` are their row numbers."""
    shorter = min(pairs.rows[number].text_length for number in sides)
    return max(math.ceil(share * shorter) - 1, 0)


def equal_length(a: EncodedRow, b: EncodedRow) -> bool:
    """Return whether two responses are of equal length, within 10 % of the longer."""
    longer = max(a.text_length, b.text_length)
    return abs(a.text_length - b.text_length) <= EQUAL_LENGTH * longer


def _length_outcomes(pairs: PairSet) -> np.ndarray:
    lengths = [row.text_length for row in pairs.rows]
    return np.array([outcome(float(lengths[a] - lengths[b])) for a, b in pairs.pairs])
