"""Comparisons and rollouts to batches in which the prefixes of a pair lie at aligned positions.

A causal backbone gives the rewards of all prefixes of a response in one forward, and a response that occurs in several
pairs of a batch is read once: the pairs of a prompt stand side by side.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from midcourse.data.comparisons import Comparison, Example, prompt_groups
from midcourse.data.rollouts import Rollout
from midcourse.lm.prompt import Prompt, PromptError, prompt_ids, response_ids
from midcourse.rewards.encoder import EncoderReward
from midcourse.rewards.implicit import ImplicitReward
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.vocabulary import VocabularyReward
from midcourse.train.objectives import PairRewards

WINDOW = 16  # batches that are sorted by length together: enough to pad little, few enough to stay random
Encoder: TypeAlias = RewardModel | ImplicitReward | VocabularyReward  # its tokenizer and template


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

    @property
    def items(self) -> list[tuple[int, ...]]:
        """The row numbers of each pair."""
        return list(self.pairs)


@dataclass(frozen=True)
class RolloutSet:
    """Encoded rollouts.

    Attributes:
        rows: each distinct prompt and response once.
        items: the row number of each rollout, as a tuple of one.
        labels: the reward of each.
        prompts: what each belongs to.
    """

    rows: list[Row]
    items: list[tuple[int, ...]]
    labels: list[float]
    prompts: list[str]

    @property
    def mean_length(self) -> float:
        """Response tokens of a rollout."""
        return fmean(len(self.rows[row].response) for (row,) in self.items)

    @property
    def mean_label(self) -> float:
        """The label that is expected of a rollout of which nothing is known."""
        return fmean(self.labels)


class Batch(NamedTuple):
    """One step of training: which of an objective's phases, and the numbers of the pairs or rollouts."""

    phase: int
    numbers: list[int]


def encode_row(reward: Encoder, prompt: Prompt, response: str, finished: bool, max_tokens: int) -> Row:
    """A prompt and a response as a row of at most `max_tokens`; what is cut off makes it unfinished."""
    if isinstance(reward, EncoderReward):
        prompted, written = reward.encode_within(prompt, response, max_tokens)
        return Row(tuple(prompted), tuple(written), True)
    before = prompt_ids(reward.tokenizer, prompt, reward.template)
    ids = response_ids(reward.tokenizer, response, finished=finished)
    room = max_tokens - len(before)
    if room < 1 or not ids:
        raise PromptError(f"{len(before)} prompt and {len(ids)} response tokens leave no prefix in {max_tokens}")
    return Row(tuple(before), tuple(ids[:room]), finished and len(ids) <= room)


def prompt_limit(reward: Encoder, max_tokens: int) -> Callable[[Example], str | None]:
    """What is wrong with a row's prompt, if anything: the check that `read_comparisons` and `read_rollouts` take."""

    def problem(example: Example) -> str | None:
        if isinstance(reward, EncoderReward):
            return None  # it reads a prompt's end
        try:
            tokens = len(prompt_ids(reward.tokenizer, example.prompt, reward.template))
        except PromptError as error:
            return str(error)
        if tokens < max_tokens:
            return None
        return f"the prompt has {tokens} tokens and leaves no room in {max_tokens}; raise --max-tokens or shorten it"

    return problem


def encode(reward: Encoder, comparisons: Sequence[Comparison], max_tokens: int) -> PairSet:
    """Token ids of the comparisons, each distinct row once."""
    numbers: dict[Row, int] = {}
    pairs = []
    for c in comparisons:
        chosen = encode_row(reward, c.prompt, c.chosen, c.chosen_finished, max_tokens)
        rejected = encode_row(reward, c.prompt, c.rejected, c.rejected_finished, max_tokens)
        pairs.append((numbers.setdefault(chosen, len(numbers)), numbers.setdefault(rejected, len(numbers))))
    return PairSet(list(numbers), pairs, prompt_groups(comparisons))


def encode_rollouts(reward: Encoder, rollouts: Sequence[Rollout], max_tokens: int) -> RolloutSet:
    """Token ids of the rollouts, each distinct row once. One that is cut here keeps the label of the whole."""
    numbers: dict[Row, int] = {}
    rows = [encode_row(reward, r.prompt, r.response, r.finished, max_tokens) for r in rollouts]
    items: list[tuple[int, ...]] = [(numbers.setdefault(row, len(numbers)),) for row in rows]
    return RolloutSet(list(numbers), items, [r.reward for r in rollouts], prompt_groups(rollouts))


def plan_batches(
    prompts: Sequence[str], lengths: Sequence[int], batch_size: int, epochs: int, seed: int, window: int = WINDOW
) -> list[list[int]]:
    """The numbers of each batch's pairs or rollouts, for all epochs: in random order, but of similar length.

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
    """The share of the tokens in a plan's batches that is padding.

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
    """Every batch once in each phase: the plan is cut into `turns` runs, and each run goes through all phases.

    Two phases and three turns make 0 1 0 1 0 1, each a third of the plan long.
    """
    cuts = [round(turn * len(plan) / turns) for turn in range(turns + 1)]
    runs = [plan[begin:end] for begin, end in itertools.pairwise(cuts)]
    return [Batch(phase, numbers) for run in runs for phase in range(phases) for numbers in run]


def pairs_by_label(data: RolloutSet) -> PairSet:
    """Every two rollouts of a prompt that differ in text and label, the better one chosen."""
    by_prompt: dict[str, list[int]] = {}
    for number, prompt in enumerate(data.prompts):
        by_prompt.setdefault(prompt, []).append(number)
    found: dict[tuple[int, int], str] = {}
    for prompt, group in by_prompt.items():
        for one, other in itertools.permutations(group, 2):
            if data.labels[one] > data.labels[other] and data.items[one] != data.items[other]:
                found[data.items[one][0], data.items[other][0]] = prompt
    return PairSet(data.rows, list(found), list(found.values()))


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


def renumber(items: Sequence[tuple[int, ...]]) -> tuple[list[int], list[tuple[int, ...]]]:
    """(the distinct row numbers of some pairs or rollouts, these as positions in that list)."""
    rows = sorted({number for item in items for number in item})
    place = {number: i for i, number in enumerate(rows)}
    return rows, [tuple(place[number] for number in item) for item in items]
