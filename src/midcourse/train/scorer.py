"""Rewards of encoded rows in training: through cached frozen states if there are any, of texts one by one."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from midcourse.data.encoded import EncodedRow, EncodedSet, PairSet
from midcourse.evaluate.accuracy import SHARES, cut_at
from midcourse.lm.prefix_cache import pad
from midcourse.progress import progress
from midcourse.rewards.backbone import Tuning
from midcourse.rewards.encoder import EncoderReward
from midcourse.rewards.trained import Top, TrainedReward
from midcourse.rewards.trained_vocabulary import VocabularyTop
from midcourse.train import processes
from midcourse.train.batches import response_columns
from midcourse.train.states import FrozenStates, split


class Scorer(nn.Module):
    """Rewards at the response positions of rows, through cached frozen states if there are any.

    Its forward is what the Trainer wraps: all trained parameters are reached through it. An encoder's forward rewards
    whole texts at every position, so it is refused here: `encoder.make_scorer` takes either.
    """

    every_prefix = True  # whether `score` gives the rewards of all prefixes, or nan for those that nobody reads

    def __init__(self, reward: TrainedReward, row_sets: Sequence[list[EncodedRow]]):
        super().__init__()
        if self.every_prefix and not reward.every_prefix:
            raise ValueError("an encoder's forward rewards whole texts, not their prefixes; use make_scorer")
        self.row_sets = row_sets
        self.additive = reward.info.additive
        made = split(reward)
        # An encoder is run as it is.
        self.trained = made.top if made else reward.top(reward.backbone) if reward.every_prefix else reward
        self.rewards_of = reward.rewards_of
        self.before = bool(made and made.before)
        self.states = [FrozenStates(reward, made, rows) for rows in row_sets] if made else None
        self._no_split_modules = getattr(reward.backbone, "_no_split_modules", None)  # what FSDP keeps together

    def checkpoint_gradients(self) -> None:
        """Let the trained layers compute anew in the backward pass what they would otherwise keep for it."""
        layers: Any = self.trained.layers if isinstance(self.trained, Top) else self.trained.backbone
        new = hasattr(layers, "activation_checkpointing_enable")  # its name from transformers 5.23 on
        enable = layers.activation_checkpointing_enable if new else layers.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def lengths(self, row_set: int) -> list[int]:
        """Return how many tokens of each row a forward reads."""
        if self.states:
            return self.states[row_set].lengths
        return [len(row.prompt) + len(row.response) for row in self.row_sets[row_set]]

    def inputs(self, row_set: int, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Return what `forward` takes for some rows of a row set."""
        rows = [self.row_sets[row_set][number] for number in numbers]
        if self.before:
            ids, mask = pad([row.response for row in rows], torch.device("cpu"))
        else:
            ids, mask = pad([row.prompt + row.response for row in rows], torch.device("cpu"))
        inputs = {"states": self.states[row_set].batch(numbers)} if self.states else {"attention_mask": mask}
        if isinstance(self.trained, VocabularyTop):
            starts = torch.tensor(self.starts(row_set, numbers))[:, None]
            return {**inputs, "token_ids": ids, "wanted": mask & (torch.arange(ids.shape[1]) >= starts)}
        if self.before:
            inputs["token_ids"] = ids
        return inputs if self.states else {**inputs, "input_ids": ids}

    def starts(self, row_set: int, numbers: Sequence[int]) -> list[int]:
        """Return the columns of `forward`'s result at which each row's response begins."""
        if self.states:
            return [self.states[row_set].starts[number] for number in numbers]
        return [len(self.row_sets[row_set][number].prompt) for number in numbers]

    def forward(self, **inputs: Any) -> Any:
        """Return what heads say of rows, (rows, tokens); with `best`, also of the best tokens that could stand there.

        See `TrainedReward.rewards_of` for the rewards that this stands for.
        """
        rewards = self.trained(**inputs)
        # FSDP2 wants no view of another tensor here.
        return rewards.clone() if isinstance(rewards, Tensor) else tuple(one.clone() for one in rewards)

    @torch.no_grad()
    def score(self, row_set: int, batch_rows: int = 32, numbers: Sequence[int] | None = None) -> list[Tensor]:
        """Return the rewards at the response positions of every row of a set, or of the rows of those numbers."""
        rows = self.row_sets[row_set]
        wanted = range(len(rows)) if numbers is None else numbers
        device = next(self.parameters()).device
        by_row: dict[int, Tensor] = {}
        order = sorted(wanted, key=lambda i: len(rows[i].prompt) + len(rows[i].response))
        for begin in range(0, len(order), batch_rows):
            part = order[begin : begin + batch_rows]
            rewards = self(**{name: value.to(device) for name, value in self.inputs(row_set, part).items()}).cpu()
            columns = response_columns([rows[i] for i in part], self.starts(row_set, part))
            aligned = self.rewards_of(rewards.gather(1, columns))
            for i, row in zip(part, aligned, strict=True):
                by_row[i] = row[: len(rows[i].response)].clone()
        return [by_row[i] for i in wanted]


BATCH_ROWS = 32


def make_scorer(reward: TrainedReward, data: Sequence[EncodedSet]) -> Scorer:
    """Make what gives the rewards of some sets of rows in training; the first set is the one trained on."""
    if isinstance(reward, EncoderReward):  # the one kind whose texts are read one by one
        return EncoderScorer(reward, data)
    return Scorer(reward, [one.rows for one in data])


class EncoderScorer(Scorer):
    """Rewards of whole texts, and of the cut ones that pair accuracy reads: the other positions hold nan.

    If the head alone is trained, what enters it is computed once, in batches that are the same in every run.
    """

    every_prefix = False

    def __init__(self, reward: EncoderReward, data: Sequence[EncodedSet]):
        super().__init__(reward, [one.rows for one in data])
        self._reward = (reward,)  # in a tuple: `trained` is this module already
        measured = [cut_rows(one) if isinstance(one, PairSet) else {} for one in data[1:]]
        self.cuts: list[dict[tuple[int, int], EncodedRow]] = [{}, *measured]
        self.texts = [
            list(dict.fromkeys([*one.rows, *cuts.values()])) for one, cuts in zip(data, self.cuts, strict=True)
        ]
        frozen = Tuning.parse(reward.info.tune).kind == "head"
        self.entering = self._read_frozen() if frozen else None

    @property
    def reward(self) -> EncoderReward:
        """Return the reward that is trained."""
        return self._reward[0]

    def inputs(self, row_set: int, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Return what `forward` takes for some texts of a set; its rows come first among them."""
        inputs = self._ids(row_set, numbers)
        if self.entering:
            inputs["entering"] = torch.stack([self.entering[row_set][number] for number in numbers])
        return inputs

    @torch.no_grad()
    def score(self, row_set: int, batch_rows: int = BATCH_ROWS, numbers: Sequence[int] | None = None) -> list[Tensor]:
        """Return, for every row of a set or some, the rewards of the text cut behind each position.

        What is not read is nan; of some rows only the ends are read.
        """
        texts, rows = self.texts[row_set], self.row_sets[row_set]
        device = next(self.parameters()).device
        rewards: dict[EncodedRow, float] = {}
        for part in self._batches(row_set, batch_rows, numbers):
            values = self(**{name: value.to(device) for name, value in self.inputs(row_set, part).items()})
            rewards |= {texts[number]: value for number, value in zip(part, values[:, 0].tolist(), strict=True)}
        wanted = range(len(rows)) if numbers is None else numbers
        by_row = {number: torch.full((len(rows[number].response),), math.nan) for number in wanted}
        for number, values in by_row.items():
            values[-1] = rewards[rows[number]]
        for (number, place), text in self.cuts[row_set].items() if numbers is None else ():
            by_row[number][place] = rewards[text]
        return [by_row[number] for number in wanted]

    def _ids(self, row_set: int, numbers: Sequence[int]) -> dict[str, Tensor]:
        texts = [self.texts[row_set][number] for number in numbers]
        return self.reward.inputs([(text.prompt, text.response) for text in texts])

    def _batches(self, row_set: int, batch_rows: int, numbers: Sequence[int] | None = None) -> list[list[int]]:
        """Return the numbers of all texts or some, those of like length together."""
        texts = self.texts[row_set]
        wanted = range(len(texts)) if numbers is None else numbers
        order = sorted(wanted, key=lambda i: len(texts[i].prompt) + len(texts[i].response))
        return [order[begin : begin + batch_rows] for begin in range(0, len(order), batch_rows)]

    def _read_frozen(self) -> list[list[Tensor]] | None:
        """Return what enters the head for the texts of every set; None if this head has to be run with its encoder."""
        states: list[list[Tensor]] = [[torch.empty(0)] * len(texts) for texts in self.texts]
        with progress("hidden states", sum(map(len, self.texts)), quiet=not processes.first()) as advance:
            for row_set, entering in enumerate(states):
                for part in self._batches(row_set, BATCH_ROWS):
                    inputs = {name: value.to(self.reward.device) for name, value in self._ids(row_set, part).items()}
                    read = self.reward.read_frozen(inputs)
                    if read is None:
                        return None
                    for number, vector in zip(part, read.cpu(), strict=True):
                        entering[number] = vector.clone()
                    advance(len(part))
        return states


def cut_rows(pairs: PairSet) -> dict[tuple[int, int], EncodedRow]:
    """Return, by (row, position), the row cut behind that position, for all that pair accuracy reads but the ends."""
    rows = {}
    for sides in pairs.pairs:
        for share in SHARES[:-1]:
            place = cut_at(pairs, sides, share)
            for number in sides:
                row = pairs.rows[number]
                rows[number, place] = row._replace(response=(*row.response[:-1][: place + 1], row.response[-1]))
    return rows
