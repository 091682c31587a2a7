"""A scalar head on the language model's own states: one forward serves the reward and the language model.

A head that was trained on a frozen model reads what that very model computes. Guided by it, the model reads the
candidates of a step side by side, the head rewards their states, and the one that is drawn is the model's next step
already: no other forward is needed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midcourse.lm.contract import CausalModel
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Prefix
from midcourse.rewards.contract import FollowedRows, Reward
from midcourse.rewards.scalar import RewardModel


def on_states(reward: Reward, lm: CausalModel) -> Reward:
    """Return a reward as it reads the language model's own candidates, or as it is if it takes a forward of its own.

    None is needed for a scalar head on frozen layers that are all of the language model's. On fewer layers a forward of
    its own costs less than to read every candidate through all of them. For methods that guide tokens.
    """
    if type(reward) is not RewardModel or reward.info.tune != "head" or not isinstance(lm, LanguageModel):
        return reward
    depth = lm.model.config.get_text_config().num_hidden_layers
    if reward.info.layers != depth or lm.model.dtype != reward.backbone.dtype or not reward.knows(lm):
        return reward
    return OnStates(reward) if reward.reads_alike(lm) else reward


class OnStates(RewardModel):
    """A scalar reward as it reads the language model's states: it has the other's weights, and no pass of its own."""

    models = ()

    def __init__(self, reward: RewardModel):
        super().__init__(reward.backbone, reward.tokenizer, reward.info)
        self.head, self.name = reward.head, reward.name

    @property
    def layer(self) -> int:
        """Return after how many layers of the language model the states are read."""
        return self.info.layers

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> "StateRows":
        """Return rows that read a language model's states once they `follow` its rows; see `Reward.start`."""
        return StateRows(self, prefixes)


class StateRows:
    """Rows under a scalar head on the language model's states, at most one token ahead of the model's own rows.

    Attributes:
        ids: each row's prompt and response.
    """

    def __init__(self, reward: OnStates, prefixes: Sequence[Prefix]):
        self.reward = reward
        self.ids = [prefix.token_ids for prefix in prefixes]
        self.lm: FollowedRows | None = None

    def follow(self, followed: FollowedRows) -> None:
        """Read these rows' states from now on; they have just been started at the same prefixes."""
        self.lm = followed

    def candidate_rewards(self, token_ids: Int[Tensor, "batch candidates"]) -> Float[Tensor, "batch candidates"]:
        return self.reward.read(self._rows().siblings(self._as_trained(token_ids), self.reward.layer))

    def prefix_rewards(self) -> Float[Tensor, " batch"]:
        rows, layer = self._rows(), self.reward.layer
        states = rows.states(layer)
        ahead = torch.tensor([len(ids) > read for ids, read in zip(self.ids, rows.lengths, strict=True)])
        if bool(ahead.any()):
            newest = torch.tensor([ids[-1:] for ids in self.ids], device=states.device)
            waiting = rows.siblings(self._as_trained(newest), layer)[:, 0]
            states = torch.where(ahead.to(states.device)[:, None], waiting, states)
        return self.reward.read(states)

    def advance(self, token_ids: Int[Tensor, " batch"]) -> None:
        for ids, token in zip(self.ids, token_ids.tolist(), strict=True):
            ids.append(token)

    def rewind(self, counts: Sequence[int]) -> None:
        self.ids = [ids[: len(ids) - count] for ids, count in zip(self.ids, counts, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        self.ids = [list(self.ids[row]) for row in rows]

    def replace(self, places: Sequence[int], other: Any) -> None:
        for place, ids in zip(places, other.ids, strict=True):
            self.ids[place] = ids

    def _rows(self) -> FollowedRows:
        assert self.lm is not None, "rows that read states follow the language model's"
        return self.lm

    def _as_trained(self, token_ids: Tensor) -> Tensor:
        """Replace every token that ends a text by the one that training wrote."""
        ends = torch.tensor(self.reward.info.all_eos[1:], device=token_ids.device, dtype=torch.long)
        return token_ids.masked_fill(torch.isin(token_ids, ends), self.reward.info.eos_token_id)
