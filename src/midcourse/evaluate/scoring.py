"""Rewards of encoded rows, in batches of like length."""

from collections.abc import Sequence

import torch
from torch import Tensor

from midcourse.data.encoded import EncodedRow
from midcourse.progress import progress
from midcourse.rewards.token_ids import TokenReward

BATCH_TOKENS = 2048  # of one forward pass


def score_rows(
    reward: TokenReward,
    rows: Sequence[EncodedRow],
    batch_tokens: int = BATCH_TOKENS,
) -> list[Tensor]:
    """Return the rewards at the response positions of every row; a forward takes `batch_tokens`, padding included.

    They may be NaN or infinite: who compares them says of which comparison they are.
    """
    lengths = [len(row.prompt) + len(row.response) for row in rows]
    rewards: list[Tensor] = [torch.empty(0)] * len(rows)
    with progress("scoring", len(rows)) as advance:
        for part in _batches(lengths, batch_tokens):
            ids = [(rows[number].prompt, rows[number].response) for number in part]
            for number, row in zip(part, reward.score_ids(ids, batch_size=len(part), finite=False), strict=True):
                rewards[number] = row
            advance(len(part))
    return rewards


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return the numbers of all rows in batches of like length; one of several rows has at most so many tokens."""
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        if not batches or (len(batches[-1]) + 1) * lengths[number] > batch_tokens:
            batches.append([])
        batches[-1].append(number)
    return batches
