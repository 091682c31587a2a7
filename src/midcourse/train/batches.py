"""Encoded pairs and rollouts to padded batches in which the prefixes of a pair lie at aligned positions.

A causal backbone gives the rewards of all prefixes of a response in one forward, and a response that occurs in several
pairs of a batch is read once: the pairs of a prompt stand side by side.
"""

import itertools
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from midcourse.data.encoded import EncodedRow
from midcourse.train.objectives import PairRewards

WINDOW = 16  # batches that are sorted by length together: enough to pad little, few enough to stay random


class Batch(NamedTuple):
    """One step of training: which of an objective's phases, and the numbers of the pairs, rollouts or ladders.

    Attributes:
        replay: numbers of the rows that are replayed, one with each ladder; none with anything else.
    """

    phase: int
    numbers: list[int]
    replay: Sequence[int] = ()


def plan_batches(
    prompts: Sequence[str], lengths: Sequence[int], batch_size: int, epochs: int, seed: int, window: int = WINDOW
) -> list[list[int]]:
    """Return the numbers of each batch's pairs or rollouts, for all epochs: in random order, but of like length.

    Prompts are shuffled; each `window` batches' worth of them is put in order of length and cut into batches, which
    are shuffled. A batch has those of a prompt side by side; the short one, if any, ends the epoch.

    A pure function of its arguments: training that stopped after step n goes on with item n.

    Args:
        prompts: what each pair or rollout belongs to.
        lengths: tokens of its longest row.
        batch_size: pairs or rollouts of a batch.
        epochs: how often each occurs.
        seed: of the order.
        window: batches that are sorted together; 1 is a plain shuffle.
    """
    by_prompt: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(number)
    rng = random.Random(seed)
    plan = []
    for _ in range(epochs):
        groups = list(by_prompt.values())
        rng.shuffle(groups)
        order: list[int] = []
        while groups:
            taken: list[list[int]] = []
            while groups and sum(map(len, taken)) < window * batch_size:
                taken.append(groups.pop())
            taken.sort(key=lambda group: max(lengths[number] for number in group))
            order += [number for group in taken for number in group]
        batches = [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]
        last = [batches.pop()] if len(batches[-1]) < batch_size else []
        rng.shuffle(batches)
        plan += batches + last
    return plan


def padding_share(items: Sequence[Sequence[int]], lengths: Sequence[int], plan: Sequence[Sequence[int]]) -> float:
    """Return the share of the tokens in a plan's batches that is padding.

    Args:
        items: the row numbers of each pair or rollout.
        lengths: tokens of each row.
        plan: the numbers of each batch's pairs or rollouts.
    """
    read = computed = 0
    for batch in plan:
        rows = {row for number in batch for row in items[number]}
        read += sum(lengths[row] for row in rows)
        computed += len(rows) * max(lengths[row] for row in rows)
    return 1 - read / computed


def in_turns(plan: Sequence[list[int]], phases: int, turns: int) -> list[Batch]:
    """Return every batch once in each phase: the plan is cut into `turns` runs, each of which goes through all phases.

    Two phases and three turns make 0 1 0 1 0 1, each a third of the plan long.
    """
    cuts = [round(turn * len(plan) / turns) for turn in range(turns + 1)]
    runs = [plan[begin:end] for begin, end in itertools.pairwise(cuts)]
    return [Batch(phase, numbers) for run in runs for phase in range(phases) for numbers in run]


def with_replay(
    plan: Sequence[Batch], replay: Sequence[int], lengths: Sequence[int], longest: Sequence[int], window: int = WINDOW
) -> list[Batch]:
    """Return the plan with a replayed row for each ladder, taken in order but for their length.

    Of the rows that `window` batches take, the longer ones go to batches of longer ladders, so that little is padded.

    Args:
        replay: rows to replay, at least as many as the plan has ladders.
        lengths: tokens of each row.
        longest: tokens of each ladder's longest row.
        window: 1 leaves them in order.
    """
    batches, taken = list(plan), 0
    for begin in range(0, len(plan), window):
        part = range(begin, min(begin + window, len(plan)))
        count = sum(len(plan[step].numbers) for step in part)
        rows = sorted(replay[taken : taken + count], key=lengths.__getitem__)
        taken += count
        for step in sorted(part, key=lambda step: max(longest[number] for number in plan[step].numbers)):
            size = len(plan[step].numbers)
            batches[step] = plan[step]._replace(replay=tuple(rows[:size]))
            rows = rows[size:]
    return batches


def response_columns(rows: Sequence[EncodedRow], starts: Sequence[int]) -> Int[Tensor, "rows positions"]:
    """Return where each row's response positions lie: column i is the prefix that ends with response token i.

    `starts` are the columns of the first response tokens. Past a row's end its last column is repeated.
    """
    lengths = torch.tensor([len(row.response) for row in rows])
    i = torch.arange(int(lengths.max()))
    return torch.tensor(starts)[:, None] + torch.minimum(i, lengths[:, None] - 1)


def pair_rewards(
    rewards: Float[Tensor, "rows positions"],
    pairs: Int[Tensor, "pairs 2"],
    lengths: Int[Tensor, " rows"],
    finished: Bool[Tensor, " rows"],
) -> PairRewards:
    """Turn rewards of rows into rewards of pairs; `pairs` are (chosen, rejected) row numbers."""
    chosen, rejected = pairs.T
    return PairRewards(
        rewards[chosen], rewards[rejected], lengths[chosen], lengths[rejected], finished[chosen], finished[rejected]
    )


def renumber(items: Sequence[tuple[int, ...]]) -> tuple[list[int], list[tuple[int, ...]]]:
    """Return (the distinct row numbers of some pairs or rollouts, these as positions in that list)."""
    rows = sorted({number for item in items for number in item})
    place = {number: i for i, number in enumerate(rows)}
    return rows, [tuple(place[number] for number in item) for item in items]
