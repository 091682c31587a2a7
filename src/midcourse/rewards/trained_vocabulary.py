"""A trained reward for every next token at once: one pass over one token rewards all of the vocabulary.

The reward of token v after a prefix with the backbone's final state h is

    r(v | h) = e(v) . (W h) + s . h

with e the backbone's own frozen output embeddings. W and s start at zero, where the guided policy is the language
model's. For the objective `autoregressive` W starts at the identity, there is no s, and rewards are normalised:

    log pi_r(v | h) = e(v) . (W h) - log sum over u of exp(e(u) . (W h))

so that training starts from the backbone's own policy. The form without normalisation is FaRMA's (Rashid et al., 2025),
whose value head is a language model's; the one with it is GenARM's (Xu et al., 2025).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from midcourse.lm.caches import AnyCache
from midcourse.lm.contract import CausalModel
from midcourse.lm.load import load_config, load_model
from midcourse.lm.prompt import Prefix
from midcourse.rewards.backbone import Backbone, Tuning, base_of, keep_layer_types, state_width
from midcourse.rewards.contract import Reward
from midcourse.rewards.info import RewardError, RewardInfo
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trained import Top, TrainedReward
from midcourse.rewards.vocabulary import ModelVocabularyRows, best_tokens, check_vocabulary, ends_alike

POSITIONS = 64  # whose rewards of the whole vocabulary are in memory at a time


class VocabularyHead(nn.Module):
    """W and s of the module's equation; there is no s if rewards are normalised, since it would cancel."""

    def __init__(self, hidden: int, width: int, normalised: bool, device: torch.device, dtype: torch.dtype):
        super().__init__()
        place: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.project = nn.Linear(hidden, width, **place)
        self.state = None if normalised else nn.Linear(hidden, 1, **place)
        if self.state is None:
            nn.init.eye_(self.project.weight)
        else:
            nn.init.zeros_(self.project.weight)
            nn.init.zeros_(self.state.weight)


class TrainedVocabularyReward(RewardModel):
    """A reward with a backbone of its own that speaks for the whole vocabulary; see the module for its form.

    The reward of a prefix is that of its last token, read one position before; a lone token has the reward 0. Under
    `autoregressive` that is a log-probability, and the reward of a text is the sum over its tokens (`info.additive`).

    Examples:
        >>> reward = TrainedVocabularyReward.load("my-farma-reward")
        >>> generate(lm, ["The ferry was late, and"], reward, method="farma")[0].text
    """

    KIND = "vocabulary"
    HEAD_LEARNING_RATE = 1e-4
    speaks_for_vocabulary = True

    def __init__(self, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, info: RewardInfo):
        super().__init__(backbone, tokenizer, info)
        if not backbone.config.tie_word_embeddings:
            # To be filled by `create` or `load`. Trained, and saved, only if all of the backbone is.
            empty = torch.empty_like(self.embeddings)
            self.output = nn.Parameter(empty, requires_grad=Tuning.parse(info.tune).kind == "all")

    @classmethod
    def create(cls, backbone: str, **settings: Any) -> "RewardModel":
        """Do as `RewardModel.create`; the objective "autoregressive" makes the rewards log-probabilities."""
        reward = super().create(backbone, **settings)
        assert isinstance(reward, TrainedVocabularyReward)
        return reward.with_outputs(backbone)

    @classmethod
    def load(cls, folder: str | Path, **settings: Any) -> RewardModel:
        """Load a saved reward, as `RewardModel.load` does."""
        reward = super().load(folder, **settings)
        assert isinstance(reward, TrainedVocabularyReward)
        return reward if reward.info.tune == "all" else reward.with_outputs(reward.info.backbone)

    def to_train_on(self, folder: Path, tune: str | None, seed: int, **recorded: Any) -> TrainedReward:
        """Return this reward, to be trained further; see `TrainedReward.to_train_on`."""
        made = super().to_train_on(folder, tune, seed, **recorded)
        assert isinstance(made, TrainedVocabularyReward)
        if not self.backbone.config.tie_word_embeddings:
            made.output.data = self.output.data
        return made

    def with_outputs(self, name: str) -> "TrainedVocabularyReward":
        """Read the output embeddings from that model unless they are the input embeddings; return itself."""
        if self.backbone.config.tie_word_embeddings:
            return self
        config = load_config(name)
        config.num_hidden_layers = 1  # of the model only the ends are wanted
        keep_layer_types(config, slice(1))
        dtype = str(self.backbone.dtype).removeprefix("torch.")
        model = load_model(AutoModelForCausalLM, name, config, device=str(self.device), dtype=dtype)
        outputs = model.get_output_embeddings()
        if outputs is None or outputs.weight.shape != self.output.shape:
            raise RewardError(f"{name} has no output embeddings of its states' width; use --head scalar")
        self.output.data = outputs.weight.detach().clone()
        return self

    def make_head(self) -> nn.Module:
        hidden = state_width(self.backbone.config)
        width = self.embeddings.shape[1]
        return VocabularyHead(hidden, width, self.normalised, self.backbone.device, self.backbone.dtype)

    def top(self, layers: nn.Module | None) -> nn.Module:
        """Return the head, behind these layers."""
        return VocabularyTop(self, layers)

    @property
    def normalised(self) -> bool:
        """Return whether rewards are log-probabilities."""
        return self.info.objective == "autoregressive"

    @property
    def embeddings(self) -> Float[Tensor, "vocab width"]:
        """Return the input embeddings."""
        return self.backbone.get_input_embeddings().weight

    @property
    def outputs(self) -> Float[Tensor, "vocab width"]:
        """Return e(v), the output embedding of every token."""
        return self.embeddings if self.backbone.config.tie_word_embeddings else self.output

    @property
    def model(self) -> PreTrainedModel:
        """Return what reads prefixes: the backbone; with adapters, its layers are PEFT's."""
        return base_of(self.backbone)

    @property
    def eos_token_ids(self) -> list[int]:
        """Return every token that ends a text, first the one that training wrote."""
        return self.info.all_eos

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens"]:
        """Return the reward of every prefix of right-padded rows; a row's first token has reward 0."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        later = self.next_rewards(hidden[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten()).view(len(hidden), -1)
        return torch.cat([later.new_zeros(len(later), 1), later], 1)

    def next_rewards(
        self, states: Float[Tensor, "*#place hidden"], token_ids: Int[Tensor, "*#place"]
    ) -> Float[Tensor, "*place"]:
        """Return the reward of a token after each state, or of several."""
        return self.rewards_of(self.raw_next(states, token_ids))

    def raw_next(
        self, states: Float[Tensor, "*#place hidden"], token_ids: Int[Tensor, "*#place"]
    ) -> Float[Tensor, "*place"]:
        """Return the head's number for a token after each state, or for several; see `rewards_of`."""
        assert isinstance(self.head, VocabularyHead)
        projected = self.head.project(states)
        rewards = promoted((projected * self.outputs[token_ids]).sum(-1))
        if self.head.state is not None:
            return rewards + promoted(self.head.state(states)[..., 0])
        return rewards - log_normaliser(projected.flatten(0, -2), self.outputs).view(projected.shape[:-1])

    def vocabulary_rewards(self, states: Float[Tensor, "*place hidden"]) -> Float[Tensor, "*place vocab"]:
        """Return the reward of every token after each state; every end of a text has that of training's EOS."""
        assert isinstance(self.head, VocabularyHead)
        rewards = promoted(self.head.project(states) @ self.outputs.T)
        rewards = rewards.log_softmax(-1) if self.head.state is None else rewards + promoted(self.head.state(states))
        return ends_alike(self.rewards_of(rewards), self.eos_token_ids)

    def read_next(
        self, cache: AnyCache, token_ids: Int[Tensor, "batch tokens"], counts: Sequence[int], places: list[int]
    ) -> Float[Tensor, "batch places read"]:
        """Append tokens to cached rows; return the states at `places`, or log-probabilities of what may follow."""
        states = cache.extend(token_ids, counts).last_hidden_state[:, places]
        return self.vocabulary_rewards(states) if self.normalised else states

    def of_all(self, read: Float[Tensor, "batch read"]) -> Float[Tensor, "batch vocab"]:
        """Return the rewards of all tokens behind these states."""
        return read if self.normalised else self.vocabulary_rewards(read)

    def of_some(
        self, read: Float[Tensor, "batch read"], token_ids: Int[Tensor, "batch candidates"]
    ) -> Float[Tensor, "batch candidates"]:
        """Return the rewards of some tokens: of the vocabulary's matrix only their rows are read."""
        if self.normalised:
            return read.gather(1, token_ids)
        return self.next_rewards(read[:, None], token_ids)

    def bind(self, lm: CausalModel) -> Reward:
        """Return itself; RewardError if the LM writes other tokens, or renders or ends texts otherwise."""
        check_vocabulary(
            lm, self.info.backbone, self.info.tokenizer, self.template, self.info.chat_template, self.info.eos_token_ids
        )
        return self

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> ModelVocabularyRows:
        """Read the prefixes; see `Reward.start`."""
        return ModelVocabularyRows(self, prefixes, max_new_tokens)

    def export(self, folder: Any) -> None:
        """Raise RewardError: a sequence classifier has no such head."""
        raise RewardError("a vocabulary reward has no form that transformers reads; export a scalar one")


class VocabularyTop(Top):
    """The trained part of a vocabulary reward: its head behind nothing, some layers, or the whole backbone."""

    def __init__(self, reward: TrainedVocabularyReward, layers: nn.Module | None):
        super().__init__(reward, layers)
        if reward.info.tune == "all" and not reward.backbone.config.tie_word_embeddings:
            self.output = reward.output
        self._reward = (reward,)

    def forward(
        self,
        token_ids: Int[Tensor, "rows tokens"],
        wanted: Bool[Tensor, "rows tokens"],
        states: Float[Tensor, "rows tokens hidden"] | None = None,
        attention_mask: Bool[Tensor, "rows tokens"] | None = None,
        best: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return rewards at the wanted positions, 0 elsewhere; with `best`, also the best rewards of any tokens there.

        Args:
            states: those before the tokens if only the head is trained; those that enter the trained layers; None
                if all of the backbone is run.
        """
        if states is None:
            assert self.layers is not None
            hidden = self.layers(input_ids=token_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        else:
            hidden = self.hidden(states)
        # States of whole rows are moved to the tokens after them. Rows begin with prompts: no first token is wanted.
        flat = (hidden if self.layers is None else hidden.roll(1, 1))[wanted]
        (reward,) = self._reward
        rewards = _spread(reward.raw_next(flat, token_ids[wanted]), wanted)
        if not best:
            return rewards
        return rewards, _spread(reward.raw_next(flat, best_tokens(reward, flat)), wanted)


def _spread(values: Float[Tensor, " places"], wanted: Bool[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens"]:
    """Return the values at the wanted positions, 0 elsewhere."""
    return values.new_zeros(wanted.shape).masked_scatter(wanted, values)


def promoted(values: Float[Tensor, "*place"]) -> Float[Tensor, "*place"]:
    """Return values in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def log_normaliser(
    projected: Float[Tensor, "places width"], outputs: Float[Tensor, "vocab width"]
) -> Float[Tensor, " places"]:
    """Return log sum over v of exp(e(v) . p), of few places at a time: the logits of all would fill the memory."""

    def of_part(part: Tensor) -> Tensor:
        return promoted(part @ outputs.T).logsumexp(-1)

    parts = projected.split(POSITIONS)
    if torch.is_grad_enabled() and (projected.requires_grad or outputs.requires_grad):
        return torch.cat([checkpoint(of_part, part, use_reentrant=False) for part in parts])
    return torch.cat([of_part(part) for part in parts])
