"""Rewards of encoded rows in training: through cached frozen states where there are any."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from midcourse.data.encoded import Row, response_columns
from midcourse.lm.prefix_cache import pad
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trained_vocabulary import TrainedVocabularyReward
from midcourse.train.states import FrozenStates, VocabularyTop, split


class Scorer(nn.Module):
    """Rewards at the response positions of rows, through cached frozen states where there are any.

    Its forward is what the Trainer wraps: all trained parameters are reached through it. An encoder's forward rewards
    whole texts at every position, so it is refused here: `encoder.make_scorer` takes either.
    """

    every_prefix = True  # whether `score` gives the rewards of all prefixes, or nan for those that nobody reads

    def __init__(self, reward: RewardModel, row_sets: Sequence[list[Row]]):
        super().__init__()
        if self.every_prefix and reward.KIND == "encoder":
            raise ValueError("an encoder's forward rewards whole texts, not their prefixes; use make_scorer")
        self.row_sets = row_sets
        self.additive = reward.info.additive
        made = split(reward)
        whole = VocabularyTop(reward, reward.backbone) if isinstance(reward, TrainedVocabularyReward) else reward
        self.trained = made.top if made else whole
        self.before = bool(made and made.before)
        self.states = [FrozenStates(reward, made, rows) for rows in row_sets] if made else None
        self._no_split_modules = getattr(reward.backbone, "_no_split_modules", None)  # what FSDP keeps together

    def checkpoint_gradients(self) -> None:
        """Let the trained layers compute anew in the backward pass what they would otherwise keep for it."""
        layers: Any = self.trained.backbone if isinstance(self.trained, RewardModel) else self.trained.layers
        new = hasattr(layers, "activation_checkpointing_enable")  # its name from transformers 5.23 on
        enable = layers.activation_checkpointing_enable if new else layers.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def lengths(self, row_set: int) -> list[int]:
        """Tokens of each row that a forward reads."""
        if self.states:
            return self.states[row_set].lengths
        return [len(row.prompt) + len(row.response) for row in self.row_sets[row_set]]

    def inputs(self, row_set: int, numbers: Sequence[int]) -> dict[str, Tensor]:
        """What `forward` takes for some rows of a row set."""
        rows = [self.row_sets[row_set][number] for number in numbers]
        if self.before:
            ids, mask = pad([row.response for row in rows], torch.device("cpu"))
        else:
            ids, mask = pad([row.prompt + row.response for row in rows], torch.device("cpu"))
        found = {"states": self.states[row_set].batch(numbers)} if self.states else {"attention_mask": mask}
        if isinstance(self.trained, VocabularyTop):
            starts = torch.tensor(self.starts(row_set, numbers))[:, None]
            return {**found, "token_ids": ids, "wanted": mask & (torch.arange(ids.shape[1]) >= starts)}
        if self.before:
            found["token_ids"] = ids
        return found if self.states else {**found, "input_ids": ids}

    def starts(self, row_set: int, numbers: Sequence[int]) -> list[int]:
        """The columns of `forward`'s result at which each row's response begins."""
        if self.states:
            return [self.states[row_set].starts[number] for number in numbers]
        return [len(self.row_sets[row_set][number].prompt) for number in numbers]

    def forward(self, **inputs: Any) -> Any:
        """Rewards of shape (rows, tokens); with `best`, also the best rewards that other tokens there would have."""
        found = self.trained(**inputs)
        # FSDP2 wants no view of another tensor here.
        return found.clone() if isinstance(found, Tensor) else tuple(one.clone() for one in found)

    @torch.no_grad()
    def score(self, row_set: int, batch_rows: int = 32) -> list[Tensor]:
        """The rewards at the response positions of every row of a set."""
        rows = self.row_sets[row_set]
        device = next(self.parameters()).device
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].response))
        for begin in range(0, len(order), batch_rows):
            part = order[begin : begin + batch_rows]
            rewards = self(**{name: value.to(device) for name, value in self.inputs(row_set, part).items()}).cpu()
            aligned = rewards.gather(1, response_columns([rows[i] for i in part], self.starts(row_set, part)))
            for i, row in zip(part, aligned, strict=True):
                found[i] = row[: len(rows[i].response)].clone()
        return found
