"""Comparisons to batches in which the prefixes of a pair lie at aligned positions.

A causal backbone gives the rewards of all prefixes of a response in one forward, and a response that occurs in several
pairs of a batch is read once: the pairs of a prompt stand side by side.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from midcourse.prompt import PromptError, prompt_ids, response_ids
from midcourse.reward_model import RewardModel
from midcourse.train.comparisons import Comparison, prompt_groups
from midcourse.train.objectives import PairRewards

WINDOW = 16  # batches that are sorted by length together: enough to pad little, few enough to stay random


class Row(NamedTuple):
    """A prompt and a response in token ids; a finished response ends with EOS."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    finished: bool

    @property
    def text_length(self) -> int:
        """Tokens of the response without its EOS."""
        return len(self.response) - self.finished


@dataclass(frozen=True)
class PairSet:
    """Encoded comparisons.

    Attributes:
        rows: each distinct prompt and response once.
        pairs: row numbers (chosen, rejected).
        prompts: what each pair belongs to; see `comparisons.prompt_groups`.
    """

    rows: list[Row]
    pairs: list[tuple[int, int]]
    prompts: list[str]


def encode_row(reward: RewardModel, comparison: Comparison, side: str, max_tokens: int) -> Row:
    """One side of a comparison as a row of at most `max_tokens`; what is cut off makes it unfinished."""
    prompt = prompt_ids(reward.tokenizer, comparison.prompt, reward.template)
    finished = getattr(comparison, f"{side}_finished")
    response = response_ids(reward.tokenizer, getattr(comparison, side), finished=finished)
    room = max_tokens - len(prompt)
    if room < 1 or not response:
        raise PromptError(f"{len(prompt)} prompt and {len(response)} response tokens leave no prefix in {max_tokens}")
    return Row(tuple(prompt), tuple(response[:room]), finished and len(response) <= room)


def prompt_limit(reward: RewardModel, max_tokens: int) -> Callable[[Comparison], str | None]:
    """What is wrong with a comparison's prompt, if anything: the check that `read_comparisons` takes."""

    def problem(comparison: Comparison) -> str | None:
        try:
            tokens = len(prompt_ids(reward.tokenizer, comparison.prompt, reward.template))
        except PromptError as error:
            return str(error)
        if tokens < max_tokens:
            return None
        return f"the prompt has {tokens} tokens and leaves no room in {max_tokens}; raise --max-tokens or shorten it"

    return problem


def encode(reward: RewardModel, comparisons: Sequence[Comparison], max_tokens: int) -> PairSet:
    """Token ids of the comparisons, each distinct row once."""
    numbers: dict[Row, int] = {}
    pairs = []
    for comparison in comparisons:
        sides = [encode_row(reward, comparison, side, max_tokens) for side in ("chosen", "rejected")]
        pairs.append((numbers.setdefault(sides[0], len(numbers)), numbers.setdefault(sides[1], len(numbers))))
    return PairSet(list(numbers), pairs, prompt_groups(comparisons))


def plan_batches(
    prompts: Sequence[str], lengths: Sequence[int], batch_size: int, epochs: int, seed: int, window: int = WINDOW
) -> list[list[int]]:
    """The numbers of every batch's pairs, for all epochs: in random order, but with pairs of similar length together.

    Prompts are shuffled; each `window` batches' worth of them is put in order of length and cut into batches, which
    are shuffled. A batch has the pairs of a prompt side by side; the short one, if any, ends the epoch.

    A pure function of its arguments: training that stopped after step n goes on with item n.

    Args:
        prompts: what each pair belongs to.
        lengths: tokens of each pair's longest row.
        batch_size: pairs of a batch.
        epochs: how often each pair occurs.
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
    """The share of the tokens in a plan's batches that is padding.

    Args:
        items: the row numbers of each pair.
        lengths: tokens of each row.
        plan: the numbers of each batch's pairs.
    """
    read = computed = 0
    for batch in plan:
        rows = {row for number in batch for row in items[number]}
        read += sum(lengths[row] for row in rows)
        computed += len(rows) * max(lengths[row] for row in rows)
    return 1 - read / computed


def response_columns(rows: Sequence[Row], starts: Sequence[int]) -> Int[Tensor, "rows positions"]:
    """Where each row's response positions lie: column i is the prefix that ends with response token i.

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
    """Rewards of rows to rewards of pairs; `pairs` are (chosen, rejected) row numbers."""
    chosen, rejected = pairs.T
    return PairRewards(
        rewards[chosen], rewards[rejected], lengths[chosen], lengths[rejected], finished[chosen], finished[rejected]
    )


def renumber(pairs: Sequence[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
    """(the distinct row numbers of some pairs, the pairs as positions in that list)."""
    rows = sorted({number for pair in pairs for number in pair})
    place = {number: i for i, number in enumerate(rows)}
    return rows, [(place[a], place[b]) for a, b in pairs]
