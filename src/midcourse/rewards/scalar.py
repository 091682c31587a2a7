"""A reward for every prefix: a causal backbone with a scalar head read at every position.

rewards = reward.score([prompt], [response])      every prefix of whole texts, one forward
rows = reward.start(prefixes, ...)                 decoding: rewards of k candidates per row and step,
rows.candidate_rewards(ids); rows.advance(taken)             one forward over the cached prefixes
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from midcourse.files import whole_folder
from midcourse.lm.contract import CausalModel
from midcourse.lm.language_model import (
    LanguageModel,
    chat_fingerprint,
    context_length,
    eos_token_ids,
    tokenizer_fingerprint,
)
from midcourse.lm.load import (
    ModelError,
    empty_model,
    load_config,
    load_generation_config,
    load_tokenizer,
)
from midcourse.lm.prefix_cache import pad
from midcourse.lm.prompt import Arguments, Prefix, Template, end_of_turn
from midcourse.lm.weights import weights_fingerprint
from midcourse.rewards.backbone import (
    Backbone,
    Tuning,
    base_of,
    check_sharing,
    empty_backbone,
    final_norm_of,
    is_adapted,
    layers_of,
    shared_backbone,
    state_width,
    truncated_backbone,
    with_adapter,
)
from midcourse.rewards.cached_rows import CachedRows
from midcourse.rewards.classifier import RECORDED_TEMPLATE
from midcourse.rewards.contract import Reward, RewardRows, check_finite, check_rendering
from midcourse.rewards.info import RewardError, RewardInfo, check_arguments_used, read_info
from midcourse.rewards.retokenised import Retokenised
from midcourse.rewards.token_ids import TokenReward
from midcourse.rewards.trained import Top, TrainedReward, check_ranks, check_tokenizer, check_weights

NEW_PADDING = "<|padding|>"


class RewardModel(TokenReward, TrainedReward):
    """A scalar prefix reward. Its forward gives the reward at every position of a batch.

    Examples:
        >>> reward = RewardModel.load("my-reward")
        >>> reward.score(["The ferry was late, and"], [" we loved every minute."])[0].rewards
    """

    KIND = "scalar"

    def __init__(self, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, info: RewardInfo):
        super().__init__(backbone, tokenizer, info)
        self._compared: WeakKeyDictionary[nn.Module, tuple[list[tuple[int, int]], bool]] = WeakKeyDictionary()
        self._alike: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def make_head(self) -> nn.Module:
        """Make a new head, which gives one number for a state."""
        width, place = state_width(self.backbone.config), {"device": self.backbone.device, "dtype": self.backbone.dtype}
        head = nn.Linear(width, 1, bias=False, **place)
        # At zero every prefix is worth the same: training starts from the unguided policy.
        nn.init.zeros_(head.weight)
        return head

    def top(self, layers: nn.Module | None) -> nn.Module:
        """Return the head, behind these layers."""
        return ScalarTop(self, layers)

    def last_parts(self, amount: int) -> list[nn.Module]:
        """Return the backbone's last layers and what follows them."""
        norm = final_norm_of(self.backbone)
        return [layers_of(self.backbone)[-amount:], *([] if norm is None else [norm])]

    @classmethod
    def with_adapters(cls, backbone: Backbone, tuning: Tuning) -> Backbone:
        """Return a backbone with fresh LoRA adapters if the tuning asks for them."""
        return with_adapter(backbone, tuning)

    @property
    def decoder(self) -> PreTrainedModel:
        """Return the backbone as a module of transformers; with adapters, its layers are PEFT's."""
        return base_of(self.backbone)

    @property
    def models(self) -> Sequence[nn.Module]:
        """Return the backbone: one forward of it rewards all candidates of a step."""
        return [self.decoder]

    @classmethod
    def create(
        cls,
        backbone: str,
        *,
        template: Template,
        template_arguments: Arguments | None = None,
        objective: str = "prefix",
        objective_settings: dict[str, Any] | None = None,
        layers: int | None = None,
        tune: str = "last:2",
        head: str = "scalar",
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
    ) -> "RewardModel":
        """Make an untrained reward on the first `layers` layers of a pretrained causal LM ("smollm2", folder, Hub id).

        `objective` and its settings are what `train` will train it with; see `train.objectives.make_objective`.
        """
        check_arguments_used(template, template_arguments, backbone)
        tokenizer = load_tokenizer(backbone, template_arguments)
        end = end_of_turn(tokenizer, template)
        if end is None:
            raise ModelError(f"the tokenizer of {backbone} has no EOS token, which ends a finished response")
        model = truncated_backbone(backbone, layers, device, dtype)
        tuning = Tuning.parse(tune)
        tuning.check_depth(model.config.num_hidden_layers)
        eos = eos_token_ids(load_generation_config(backbone), tokenizer)
        info = RewardInfo(
            backbone=backbone,
            backbone_fingerprint=weights_fingerprint(backbone),
            layers=model.config.num_hidden_layers,
            tune=str(tuning),
            template=template,
            objective=objective,
            objective_settings=objective_settings or {},
            eos_token_id=end,
            eos_token_ids=tuple(sorted(eos)),
            tokenizer=tokenizer_fingerprint(tokenizer),
            chat_template=None if template == "raw" else chat_fingerprint(tokenizer),
            template_arguments=dict(template_arguments or {}),
            head=head,
            backbone_layers=load_config(backbone).num_hidden_layers,
        )
        torch.manual_seed(seed)  # LoRA starts from random numbers
        return cls(cls.with_adapters(model, tuning), tokenizer, info)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens"]:
        """Return the reward of every prefix of right-padded rows. A causal backbone makes later tokens invisible."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return self.read(hidden)

    def of_responses(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Bool[Tensor, "batch tokens"] | None,
        starts: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch tokens"]:
        """Do as `forward`, for rows whose responses begin at `starts`, to kinds of reward for which that matters."""
        return self(input_ids=input_ids, attention_mask=attention_mask)

    def read(self, hidden: Float[Tensor, "*place hidden"]) -> Float[Tensor, "*place"]:
        """Return the rewards that the head reads in final hidden states."""
        return self.rewards_of(self.raw(hidden))

    def raw(self, hidden: Float[Tensor, "*place hidden"]) -> Float[Tensor, "*place"]:
        """Apply the head to final hidden states."""
        return self.head(hidden).squeeze(-1).to(torch.promote_types(hidden.dtype, torch.float32))

    # Guiding

    def bind(self, lm: CausalModel) -> Reward:
        """Return itself, or if the LM writes other tokens a reward that tokenises the text anew at every step.

        Raises:
            RewardError: the LM's chat template or ends of texts are not those of training.
        """
        if self.info.tokenizer != lm.tokens:
            return Retokenised(self, lm.tokenizer, lm.eos_token_ids)
        check_rendering(lm, self.info.backbone, self.template, self.info.chat_template, self.info.eos_token_ids)
        return self

    @torch.inference_mode()
    def reads_alike(self, lm: LanguageModel) -> bool:
        """Return whether the LM's states behind as many layers are the backbone's, tried once on a short text.

        With equal weights they are, but for architectures that do something else between their layers.
        """
        if lm.model not in self._alike:
            ids = torch.arange(6, device=self.device)[None] % lm.vocab_size
            states = lm.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            want = self.backbone(input_ids=ids, use_cache=False).last_hidden_state
            have = states[self.info.layers] if self.info.layers < len(states) else want * torch.nan
            self._alike[lm.model] = have.shape == want.shape and torch.allclose(have, want, rtol=1e-3, atol=1e-3)
        return self._alike[lm.model]

    def knows(self, lm: LanguageModel) -> bool:
        """Return whether the LM's embeddings and first layers have the weights of the backbone.

        Shared tensors need no look. Others are compared once for a model, and again if either side changed.
        """
        decoder = lm.model.get_decoder()
        theirs = dict(decoder.named_parameters())
        # No state depends on what pools them, which BERT's kind has above its layers.
        mine = {name: one for name, one in self.backbone.named_parameters() if not name.startswith("pooler.")}
        pairs = [(theirs.get(name), weight) for name, weight in mine.items()]
        own = [(a, b) for a, b in pairs if a is None or a.data_ptr() != b.data_ptr() or a.shape != b.shape]
        state = [_state(tensor) for pair in own for tensor in pair if tensor is not None]
        seen = self._compared.get(decoder)
        if seen is None or seen[0] != state:
            same = all(
                a is not None and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.to(b.device), b)
                for a, b in own
            )
            seen = self._compared[decoder] = (state, same)
        return seen[1]

    @property
    def context_length(self) -> int:
        """Return the length of the longest row that the backbone was made for, in tokens."""
        return context_length(self.backbone.config)

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> RewardRows:
        """Read the prefixes' states; see `Reward.start`."""
        return ScalarRows(self, prefixes, max_new_tokens + candidates)

    # Scoring

    @torch.inference_mode()
    def score_ids(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int = 8, finite: bool = True
    ) -> list[Tensor]:
        """Return the rewards at every response position of (prompt ids, response ids) rows, in fp32 on the CPU.

        Args:
            finite: raise RewardError, naming the row, if one is NaN or infinite.
        """
        self.eval()
        by_row: list[Tensor] = [torch.empty(0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
        for begin in range(0, len(order), batch_size):
            part = order[begin : begin + batch_size]
            ids, mask = pad([[*rows[i][0], *rows[i][1]] for i in part], self.device)
            starts = [len(rows[i][0]) for i in part]
            rewards = self.of_responses(ids, mask, torch.tensor(starts, device=self.device)).cpu()
            for i, start, row in zip(part, starts, rewards, strict=True):
                by_row[i] = row[start : start + len(rows[i][1])].clone()
        if finite:
            check_finite(self.name, self.tokenizer, rows, by_row)
        return by_row

    # Loading and exporting

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        share_with: LanguageModel | None = None,
        allow_other_weights: bool = False,
    ) -> "RewardModel":
        """Load a saved reward.

        Args:
            share_with: the language model whose tensors the reward's backbone is to consist of, but for what was
                trained: no weight is there twice, and neither model sees anything of the other's adapters. What
                changes one's weights in place (training the LM, PEFT's merge) changes both, so leave them frozen;
                `.to(...)` of either gives it tensors of its own again. Device and dtype are the LM's.
            allow_other_weights: a trunk reward may share with an LM of the same shape and tokens whose weights are
                not those of its training: nearly the same, one hopes.

        Raises:
            RewardError: the folder holds no reward, its backbone has other weights or tokens than in training, or it
                cannot share them.

        Examples:
            >>> lm = LanguageModel.load("smollm2")
            >>> kind, brief = (RewardModel.load(name, share_with=lm) for name in ("kind", "brief"))
        """
        folder = Path(folder)
        info = read_info(folder)
        if info.head.partition(":")[0] != cls.KIND:
            raise RewardError(f"{folder} holds a reward with a {info.head} head; load it with midcourse.load_reward")
        if allow_other_weights and (info.head == "scalar" or share_with is None):
            raise RewardError(
                f"the reward in {folder} cannot be loaded with allow_other_weights: that is for trunk rewards, "
                "together with share_with"
            )
        tuning = Tuning.parse(info.tune)
        check_ranks(folder, info)
        if share_with is not None:
            check_sharing(folder, info, share_with, device, dtype, allow_other_weights)
            model, tokenizer = shared_backbone(share_with, info.layers), share_with.tokenizer
        elif tuning.kind == "all":
            model = empty_backbone(load_config(str(folder / "backbone")), device, dtype)
            tokenizer = load_tokenizer(str(folder / "backbone"))
        else:
            check_weights(folder, info)
            model = truncated_backbone(info.backbone, info.layers, device, dtype)
            tokenizer = load_tokenizer(info.backbone, info.template_arguments)
        check_tokenizer(folder, info, tokenizer, share_with.name if share_with else info.backbone)
        reward = cls(cls.with_adapters(model, tuning), tokenizer, info)
        reward.name = str(folder)
        if share_with is not None:
            # What was trained is read into tensors of its own, not into those of the language model.
            for parameter in reward.parameters():
                if parameter.requires_grad:
                    parameter.data = torch.empty_like(parameter)
        try:
            reward.load_trained(folder / "reward.safetensors")
        except RewardError as error:
            if share_with is None or not allow_other_weights:
                raise
            raise RewardError(f"the reward in {folder} does not fit {share_with.name}: {error}") from error
        return reward.eval()

    def export(self, folder: str | Path) -> None:
        """Write the standard full sequence-classification checkpoint (one label), readable by transformers alone.

        Its pooled score on a padded batch of EOS-terminated texts is this reward of the finished text. Pooling reads
        the last token that is not padding, so the checkpoint pads with another token than EOS. `load_reward` reads it
        as this reward reads, by the template that its config.json records. Other tools read what the tokenizer's chat
        template renders: the same if that ends with EOS, and one more place if it goes on, as ChatML's does.
        """
        backbone = copy.deepcopy(self.backbone)
        if is_adapted(backbone):
            backbone = backbone.merge_and_unload()
        config = copy.deepcopy(backbone.config)
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.add_special_tokens({"pad_token": padding_token(tokenizer)})
        tokenizer.padding_side = "right"
        config.num_labels = 1
        config.vocab_size = max(config.vocab_size, len(tokenizer))
        config.pad_token_id = tokenizer.pad_token_id
        setattr(config, RECORDED_TEMPLATE, self.template)
        if type(config) not in AutoModelForSequenceClassification._model_mapping:
            raise RewardError(
                f"transformers has no sequence classification for {config.model_type}; it cannot be exported"
            )
        model = empty_model(AutoModelForSequenceClassification, config, dtype=backbone.dtype)
        model.base_model.get_decoder().load_state_dict(_with_more_tokens(backbone, config.vocab_size))
        model.score.load_state_dict(self.head.state_dict())
        with whole_folder(Path(folder)) as work:
            model.save_pretrained(work)
            tokenizer.save_pretrained(work)


class ScalarTop(Top):
    """The trained part of a scalar reward: its head behind nothing, some layers, or the whole backbone."""

    def __init__(self, reward: RewardModel, layers: nn.Module | None):
        super().__init__(reward, layers)
        self._raw = reward.raw

    def forward(
        self,
        states: Float[Tensor, "rows tokens hidden"] | None = None,
        input_ids: Int[Tensor, "rows tokens"] | None = None,
        attention_mask: Bool[Tensor, "rows tokens"] | None = None,
    ) -> Float[Tensor, "rows tokens"]:
        """Return the head's numbers at every position.

        Args:
            states: those that enter the trained layers; None if all of the backbone is run, on ids.
        """
        if states is not None:
            return self._raw(self.hidden(states))
        assert self.layers is not None
        whole = self.layers(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return self._raw(whole.last_hidden_state)


def _state(tensor: Tensor) -> tuple[int, int]:
    """Return what tells a changed tensor: its place in memory, and the number of writes into it."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class ScalarRows(CachedRows):
    """Rows under a scalar reward: one forward scores all candidates of all rows, and those that are taken are kept."""

    def __init__(self, reward: RewardModel, prefixes: Sequence[Prefix], room: int):
        super().__init__(reward.decoder, prefixes, room, reward.info.all_eos)
        self.reward = reward
        self.offered: tuple[Tensor, Tensor] | None = None
        self.current: Tensor | None = None
        self.prefix_rewards()

    def candidate_rewards(self, token_ids: Int[Tensor, "batch candidates"]) -> Float[Tensor, "batch candidates"]:
        token_ids = self.as_trained(token_ids)
        first, counts = self.waiting()
        hidden = self.cache.branches(token_ids[:, :, None], first, counts).last_hidden_state
        rewards = self.reward.read(hidden[:, first.shape[1] :])
        self.offered = (token_ids, rewards)
        return rewards

    def prefix_rewards(self) -> Float[Tensor, " batch"]:
        if self.current is None:
            self.offered = None
            self.forget(1)
            token_ids, counts = self.waiting()
            hidden = self.cache.extend(token_ids, counts).last_hidden_state
            self.current = self.reward.read(hidden[range(len(counts)), [count - 1 for count in counts]])
        return self.current

    def advance(self, token_ids: Int[Tensor, " batch"]) -> None:
        token_ids = self.as_trained(token_ids)
        self.append(token_ids)
        offered, self.offered, self.current = self.offered, None, None
        if offered is None:
            return
        taken = offered[0] == token_ids[:, None]
        if bool(taken.any(1).all()):
            index = taken.int().argmax(1)
            self.cache.keep(index)
            self.current = offered[1].gather(1, index[:, None])[:, 0]

    def rewind(self, counts: Sequence[int]) -> None:
        super().rewind(counts)
        self.offered, self.current = None, None

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        if self.offered:
            self.offered = (self.offered[0][list(rows)], self.offered[1][list(rows)])
        if self.current is not None:
            self.current = self.current[list(rows)]

    def replace(self, places: Sequence[int], other: Any) -> None:
        super().replace(places, other)
        self.offered, self.current = None, None


def _with_more_tokens(backbone: PreTrainedModel, tokens: int) -> dict[str, Tensor]:
    """Return a backbone's weights, its embeddings filled up with zeros to that many tokens."""
    embeddings = backbone.get_input_embeddings().weight
    (name,) = (key for key, weight in backbone.named_parameters() if weight is embeddings)
    filled = torch.nn.functional.pad(embeddings.detach(), (0, 0, 0, tokens - len(embeddings)))
    return {**backbone.state_dict(), name: filled}


def padding_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a special token that never ends a text: what an exported checkpoint pads with. GPT-2 needs a new one."""
    others = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
    if not others:
        return NEW_PADDING
    preferred = (tokenizer.pad_token, tokenizer.unk_token)
    return next((token for token in preferred if token in others), others[-1])
