"""A reward on the hidden states that the steered language model computes anyway: guidance without a pass of its own.

Of every next token y_t a small head says two numbers, from the state h_{t-1} of the prefix before it, at a named layer
of the language model, and the model's own embedding e(y_t):

    r(y_1 .. y_t | x) = f(h_{t-1}, e(y_t)) + sum over i <= t of g(h_{i-1}, e(y_i))
    f, g (h, e) = a . n(h) + b . n(e) + (A n(h)) . (B n(e))

with n a normalisation without weights and A, B of low rank. The sum remembers what the tokens so far have won or lost,
so that f is left with what the next one decides. Candidates of a step share the sum up to it, and differ by f + g. The
model stays frozen; the head is trained on states computed once. A head of the form f alone is RAD-Q's (Deng et al.,
2025), which distils another reward; this one is trained on preferences itself. A reward of tokens, which edits teach,
is f + g of each token alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from midcourse.lm.contract import CausalModel
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.load import load_config
from midcourse.lm.prompt import Prefix
from midcourse.rewards.backbone import FINAL_NORMS, Backbone
from midcourse.rewards.contract import FollowedRows, Reward, check_rendering
from midcourse.rewards.info import RewardError, RewardInfo
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.vocabulary import best_tokens, ends_alike

TRUNK_RANK = 16


class TrunkHead(nn.Module):
    """(f, g) of a next token from the state before it and its embedding.

    Args:
        hidden: width of states and embeddings.
        rank: of the bilinear parts.
    """

    def __init__(self, hidden: int, rank: int, device: torch.device, dtype: torch.dtype):
        super().__init__()
        place: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.state = nn.Linear(hidden, 2, **place)
        self.token = nn.Linear(hidden, 2, **place)
        self.left = nn.Linear(hidden, 2 * rank, **place)
        self.right = nn.Linear(hidden, 2 * rank, **place)
        # At zero every token is worth the same; one side of the product starts at random, or neither would ever move.
        for part in (self.state, self.token, self.right):
            nn.init.zeros_(part.weight)

    def forward(
        self, states: Float[Tensor, "*#place hidden"], embeddings: Float[Tensor, "*#place hidden"]
    ) -> Float[Tensor, "*place 2"]:
        h, e = normed(states), normed(embeddings)
        products = (self.left(h) * self.right(e)).unflatten(-1, (2, -1)).sum(-1)
        terms = self.state(h) + self.token(e) + products
        return terms.to(torch.promote_types(terms.dtype, torch.float32))

    def of_all(
        self, states: Float[Tensor, "*place hidden"], embeddings: Float[Tensor, "vocab hidden"]
    ) -> Float[Tensor, "*place vocab"]:
        """Return f + g of every token after each state, as products of matrices."""
        h, e = normed(states), normed(embeddings)
        terms = self.left(h) @ self.right(e).T + self.state(h).sum(-1, keepdim=True) + self.token(e).sum(-1)
        return terms.to(torch.promote_types(terms.dtype, torch.float32))


def normed(vectors: Float[Tensor, "*place hidden"]) -> Float[Tensor, "*place hidden"]:
    """Bring each vector to root mean square 1, so that states of any depth and tokens of any frequency compare."""
    return vectors * torch.rsqrt(vectors.pow(2).mean(-1, keepdim=True) + 1e-6)


class TrunkReward(RewardModel):
    """A prefix reward that reads the steered model's own states at layer `info.layers`; see the module for its form.

    It has the first layers of that model itself, to be trained and to score whole texts. Guiding reads the states of
    the model it steers and needs none of them; loaded with `share_with`, it has no tensors of its own but the head's.

    Examples:
        >>> reward = TrunkReward.load("my-trunk-reward")
        >>> generate(lm, ["The ferry was late, and"], reward, max_new_tokens=24)[0].text
    """

    KIND = "trunk"
    HEAD_LEARNING_RATE = 1e-4
    speaks_for_vocabulary = True
    models = ()
    head: TrunkHead

    def __init__(self, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, info: RewardInfo):
        if info.tune != "head":
            raise RewardError(f"a trunk reward trains its head alone, not {info.tune}; use --tune head")
        super().__init__(backbone, tokenizer, info)
        if info.layers < info.backbone_layers:
            # States between layers are read as they are; those behind the last one come normalised out of any model.
            _remove_final_norm(backbone)

    @classmethod
    def create(cls, backbone: str, *, layers: int | None = None, **settings: Any) -> "RewardModel":
        """Do as `RewardModel.create`, on the states after two thirds of the layers by default."""
        if layers is None:
            layers = max(1, 2 * load_config(backbone).num_hidden_layers // 3)
        made = super().create(backbone, layers=layers, **settings)
        _check_runs(made.backbone)
        return made

    def make_head(self) -> nn.Module:
        rank = self.info.head.partition(":")[2]
        if not rank.isdecimal() or not int(rank):
            raise RewardError(f"head {self.info.head!r} of a trunk reward has no rank, as in trunk:16; train it again")
        if self.embeddings.shape[1] != self.backbone.config.hidden_size:  # as OPT-350m's and RemBERT's
            kind = type(self.backbone).__name__
            raise RewardError(f"the states of {kind} are wider than its embeddings; use --head scalar")
        return TrunkHead(self.backbone.config.hidden_size, int(rank), self.backbone.device, self.backbone.dtype)

    def top(self, layers: nn.Module | None) -> nn.Module:
        """Return the head, which reads frozen states alone."""
        return TrunkTop(self)

    @property
    def layer(self) -> int:
        """Return after how many layers of the language model the states are read."""
        return self.info.layers

    @property
    def embeddings(self) -> Float[Tensor, "vocab hidden"]:
        """Return e(v): the backbone's own embeddings, frozen."""
        return self.backbone.get_input_embeddings().weight

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens"]:
        """Return the reward of every prefix of right-padded rows; all tokens but the first count as response."""
        return self.of_responses(input_ids, attention_mask, torch.ones_like(input_ids[:, 0]))

    def of_responses(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Bool[Tensor, "batch tokens"] | None,
        starts: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch tokens"]:
        """Return the reward of every prefix of a response; a prompt's tokens add nothing, and have the reward 0."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        inside = torch.arange(1, input_ids.shape[1], device=input_ids.device) >= starts[:, None]
        raw = self.raw_rewards(self.of_next(hidden[:, :-1], input_ids[:, 1:]) * inside[..., None])
        rewards = torch.where(inside, self.rewards_of(raw), 0.0) if self.additive else raw
        return torch.cat([rewards.new_zeros(len(rewards), 1), rewards], 1)

    def of_next(
        self, states: Float[Tensor, "*#place hidden"], token_ids: Int[Tensor, "*#place"]
    ) -> Float[Tensor, "*place 2"]:
        """Return (f, g) of a token after each state, or of several."""
        return self.head(states, self.embeddings[token_ids])

    def raw_rewards(self, terms: Float[Tensor, "rows tokens 2"]) -> Float[Tensor, "rows tokens"]:
        """Return f + sum of g, of rewards of tokens f + g alone, for the (f, g) of a row's tokens one after another."""
        return terms.sum(-1) if self.additive else terms[..., 0] + terms[..., 1].cumsum(1)

    def vocabulary_rewards(self, states: Float[Tensor, "*place hidden"]) -> Float[Tensor, "*place vocab"]:
        """Return f + g of every token after each state; every end of a text has that of training's EOS."""
        return ends_alike(self.rewards_of(self.head.of_all(states, self.embeddings)), self.info.all_eos)

    def bind(self, lm: CausalModel) -> Reward:
        """Return itself; RewardError if the LM's tokens, templates or weights are not those it was trained on."""
        trained = f"the trunk reward was trained on the states of {self.info.backbone}"
        remedy = f"train one with --backbone {lm.name} --head trunk"
        if self.info.tokenizer != lm.tokens:
            raise RewardError(f"{trained}, and {lm.name} has other tokens; {remedy}")
        if not isinstance(lm, LanguageModel):
            raise RewardError(f"{trained}, and the weights of {lm.name} cannot be compared with them; {remedy}")
        if lm.model.dtype != self.backbone.dtype:
            raise RewardError(f"{trained} and has dtype {self.backbone.dtype}, not {lm.model.dtype}; load both alike")
        if not self.knows(lm):
            raise RewardError(
                f"{trained}, and {lm.name} has other weights; {remedy}, or load this one with share_with and "
                "allow_other_weights (guide: --allow-other-weights) if they are nearly the same"
            )
        if not self.reads_alike(lm):
            raise RewardError(
                f"{trained}, and {lm.name} gives others between its layers, so a trunk reward cannot read them; "
                "train one with --head scalar"
            )
        check_rendering(lm, self.info.backbone, self.template, self.info.chat_template, self.info.eos_token_ids)
        return self

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> "TrunkRows":
        """Return rows that read a language model's states once they `follow` its rows; see `Reward.start`."""
        return TrunkRows(self, prefixes)

    def export(self, folder: Any) -> None:
        """Raise RewardError: transformers has no such form."""
        raise RewardError("a trunk reward has no form that transformers reads; export a scalar one")


class TrunkTop(nn.Module):
    """The trained part of a trunk reward: its head, on the states before tokens and their frozen embeddings."""

    def __init__(self, reward: TrunkReward):
        super().__init__()
        self.head = reward.head
        self._reward = (reward,)  # in a tuple: no module of this one, which is trained

    def forward(
        self, states: Float[Tensor, "rows tokens hidden"], token_ids: Int[Tensor, "rows tokens"], best: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        (reward,) = self._reward
        terms = reward.of_next(states, token_ids)
        rewards = reward.raw_rewards(terms)
        if not best:
            return rewards
        tokens = best_tokens(reward, states.flatten(0, 1)).view(token_ids.shape)
        return rewards, rewards - terms.sum(-1) + reward.of_next(states, tokens).sum(-1)


class TrunkRows:
    """Rows under a trunk reward. They go along with the language model's rows, at most one token ahead.

    Attributes:
        ids: each row's prompt and response; `starts` says where the response begins.
        sums: of each row, the sum of g up to every token of its response.
    """

    def __init__(self, reward: TrunkReward, prefixes: Sequence[Prefix]):
        self.reward = reward
        self.ids = [
            [*prefix.prompt_ids, *(self._as_trained(token) for token in prefix.response_ids)] for prefix in prefixes
        ]
        self.starts = [len(prefix.prompt_ids) for prefix in prefixes]
        self.sums: list[list[float]] = [[] for _ in prefixes]
        self.lm: FollowedRows | None = None
        ends = [token for token in reward.info.all_eos if token < len(reward.embeddings)]
        self.place = torch.arange(len(reward.embeddings), device=reward.device)
        self.place[ends] = reward.info.eos_token_id  # every end of a text is the one that training wrote

    def follow(self, followed: FollowedRows) -> None:
        """Read these rows' states from now on; they have just been started at the same prefixes."""
        self.lm = followed
        for row, (ids, start) in enumerate(zip(self.ids, self.starts, strict=True)):
            if response := ids[start:]:
                states = followed.read_states(self.reward.layer)[row, start - 1 : len(ids) - 1]
                gains = self._gains(self._of_next(states, torch.tensor(response, device=states.device)))
                self.sums[row] = gains.cumsum(0).tolist()

    def candidate_rewards(self, token_ids: Int[Tensor, "batch candidates"]) -> Float[Tensor, "batch candidates"]:
        terms = self._of_next(self._rows().states(self.reward.layer)[:, None], token_ids).sum(-1)
        return self.reward.rewards_of(terms + self._totals(terms)[:, None])

    def vocabulary_rewards(self) -> Float[Tensor, "batch vocab"]:
        terms = self.reward.vocabulary_rewards(self._rows().states(self.reward.layer))
        return terms + self._totals(terms)[:, None]

    def prefix_rewards(self) -> Float[Tensor, " batch"]:
        known = torch.tensor([len(ids) > start for ids, start in zip(self.ids, self.starts, strict=True)])
        terms = self._of_last()
        own = terms.sum(-1) if self.reward.additive else terms[:, 0]
        return torch.where(known.to(own.device), self.reward.rewards_of(own + self._totals(own)), 0.0)

    def advance(self, token_ids: Int[Tensor, " batch"]) -> None:
        for ids, token in zip(self.ids, token_ids.tolist(), strict=True):
            ids.append(self._as_trained(token))
        for sums, gain in zip(self.sums, self._gains(self._of_last()).tolist(), strict=True):
            sums.append((sums[-1] if sums else 0.0) + gain)

    def rewind(self, counts: Sequence[int]) -> None:
        self.ids = [ids[: len(ids) - count] for ids, count in zip(self.ids, counts, strict=True)]
        self.sums = [sums[: len(sums) - count] for sums, count in zip(self.sums, counts, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        self.ids = [list(self.ids[row]) for row in rows]
        self.starts = [self.starts[row] for row in rows]
        self.sums = [list(self.sums[row]) for row in rows]

    def replace(self, places: Sequence[int], other: Any) -> None:
        for place, ids, start, sums in zip(places, other.ids, other.starts, other.sums, strict=True):
            self.ids[place], self.starts[place], self.sums[place] = ids, start, sums

    def _as_trained(self, token: int) -> int:
        return self.reward.info.eos_token_id if token in self.reward.info.eos_token_ids else token

    def _rows(self) -> FollowedRows:
        if self.lm is None:
            raise RewardError(
                "a trunk reward reads the language model's own states, which this call does not have; "
                "use midcourse.generate or custom_generate=midcourse.guided"
            )
        return self.lm

    def _of_last(self) -> Float[Tensor, "batch 2"]:
        """Return (f, g) of each row's last token, which the language model may have read already or not."""
        rows, layer = self._rows(), self.reward.layer
        ahead = [len(ids) > length for ids, length in zip(self.ids, rows.lengths, strict=True)]
        before = torch.tensor(ahead, device=self.reward.device)[:, None]
        states = torch.where(before, rows.states(layer), rows.previous(layer))
        return self._of_next(states, torch.tensor([ids[-1] for ids in self.ids], device=self.reward.device))

    def _of_next(self, states: Tensor, token_ids: Tensor) -> Tensor:
        return self.reward.of_next(states, self.place[token_ids])

    def _gains(self, terms: Float[Tensor, "tokens 2"]) -> Float[Tensor, " tokens"]:
        """Return what tokens add to all that follow: g, and nothing if rewards are of tokens."""
        return torch.zeros_like(terms[:, 1]) if self.reward.additive else terms[:, 1]

    def _totals(self, like: Tensor) -> Float[Tensor, " batch"]:
        return torch.tensor([sums[-1] if sums else 0.0 for sums in self.sums], dtype=like.dtype, device=like.device)


@torch.no_grad()
def _check_runs(backbone: nn.Module) -> None:
    """Raise RewardError if a backbone, whose final norm is left out, does not run so."""
    try:
        backbone(input_ids=torch.zeros(1, 2, dtype=torch.long, device=next(backbone.parameters()).device))
    except Exception as error:  # of any kind, from within the model
        kind = type(backbone).__name__
        raise RewardError(f"{kind} gives no states between its layers ({error}); use --head scalar") from error


def _remove_final_norm(backbone: nn.Module) -> None:
    for name in FINAL_NORMS:
        if isinstance(getattr(backbone, name, None), nn.Module):
            setattr(backbone, name, nn.Identity())
            return
