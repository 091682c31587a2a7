"""A reward of whole texts on a bidirectional encoder (BERT, MiniLM, RoBERTa, DeBERTa, ModernBERT, ...), to be trained.

An encoder's reward of a prefix needs a forward of its own, so only full sequences are compared in training, and what
guides, scores and judges is a `ClassifierReward` of the same weights: whole texts at every step. Prompt and response
are a text pair, and the architecture's own classification head reads them (BERT's: the pooled first token).
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from midcourse.files import whole_folder
from midcourse.lm.contract import CausalModel
from midcourse.lm.language_model import context_length, tokenizer_fingerprint
from midcourse.lm.load import (
    ModelError,
    empty_model,
    load_config,
    load_model,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from midcourse.lm.prefix_cache import pad
from midcourse.lm.prompt import Arguments, Prefix, Prompt
from midcourse.lm.weights import weights_fingerprint
from midcourse.rewards.backbone import Backbone, Tuning, layers_of, with_adapter
from midcourse.rewards.classifier import ClassifierReward, as_plain_text
from midcourse.rewards.contract import Reward, RewardRows, Score
from midcourse.rewards.info import RewardError, RewardInfo, read_info
from midcourse.rewards.trained import TrainedReward, check_ranks, check_tokenizer, check_weights


def is_encoder(config: PretrainedConfig) -> bool:
    """Return whether a model of that configuration reads both ways: transformers can fill in its masks."""
    mixed = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    return type(config) in AutoModelForMaskedLM._model_mapping and not mixed


class EncoderReward(TrainedReward):
    """A sequence classifier of one label in training. `classifier()` is the reward that everything else uses.

    Its `backbone` is the whole classifier; its `head` are the parts of it behind the encoder's layers, a pooler
    included. A row longer than the context loses the prompt's beginning, as in `ClassifierReward`, and a response that
    is still too long its end. Whether a response is finished makes no difference to it.

    Examples:
        >>> reward = EncoderReward.create("minilm", objective="sequence")
        >>> train(reward, comparisons, "judge", Settings())
        >>> load_reward("judge").bind(lm).score(["The ferry was late, and"], [" we loved it."])[0].rewards[-1]
    """

    KIND = "encoder"
    HEAD_LEARNING_RATE = 1e-3
    every_prefix = False
    head: nn.ModuleList

    def __init__(self, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, info: RewardInfo):
        super().__init__(backbone, tokenizer, info)
        probe = tokenizer("a", "b")
        parts, types = probe.sequence_ids(0), probe.get("token_type_ids")
        if parts[-1] is not None or parts[-2] != 1 or parts[0] == 1:
            raise RewardError(f"the tokenizer of {info.backbone} does not end pairs of texts with one separator")
        self.token_types = types and (types[parts.index(0)], types[-1])

    @classmethod
    def create(
        cls,
        backbone: str,
        *,
        objective: str = "sequence",
        tune: str = "last:2",
        layers: int | None = None,
        head: str = "encoder",
        template: str | None = None,
        template_arguments: Arguments | None = None,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        **recorded: Any,
    ) -> "EncoderReward":
        """Make an untrained reward on a pretrained encoder ("minilm", folder or Hub id).

        Args:
            template: makes no difference: the encoder reads a prompt's text, of messages their contents.
            recorded: further fields of `RewardInfo`.

        Raises:
            RewardError: another objective, too few layers, or an encoder that cannot be trained so.
        """
        if objective not in ("sequence", "ordered"):
            raise RewardError(
                f"{backbone} is an encoder, which would need a forward for every prefix with objective {objective}; "
                "use --objective sequence"
            )
        if template_arguments:
            raise RewardError(f"{backbone} is an encoder, which has no chat template; leave the template-argument out")
        if layers is not None:
            raise RewardError(f"{backbone} is an encoder, which is used whole; leave --layers {layers} out")
        torch.manual_seed(seed)  # a new head and LoRA start from random numbers
        model = _pretrained(backbone, device, dtype)
        tokenizer = load_tokenizer(backbone)
        if tokenizer.sep_token_id is None:
            raise RewardError(f"the tokenizer of {backbone} has no separator for prompt and response")
        tuning = Tuning.parse(tune)
        tuning.check_depth(model.config.num_hidden_layers)
        info = RewardInfo(
            backbone=backbone,
            backbone_fingerprint=weights_fingerprint(backbone),
            layers=model.config.num_hidden_layers,
            tune=str(tuning),
            template="raw",
            objective=objective,
            eos_token_id=tokenizer.sep_token_id,
            eos_token_ids=(tokenizer.sep_token_id,),
            tokenizer=tokenizer_fingerprint(tokenizer),
            head=head,
            backbone_layers=model.config.num_hidden_layers,
            **recorded,
        )
        return cls(cls.with_adapters(model, tuning), tokenizer, info)

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto", dtype: str = "auto") -> "EncoderReward":
        """Load a saved reward with what trained it; `load_reward` gives the classifier alone.

        Raises:
            RewardError: the folder holds no such reward, or its encoder has other weights or tokens than in training.
        """
        folder = Path(folder)
        info = read_info(folder)
        if info.head != cls.KIND:
            raise RewardError(f"{folder} holds a reward with a {info.head} head; load it with midcourse.load_reward")
        tuning = Tuning.parse(info.tune)
        check_ranks(folder, info)
        if tuning.kind == "all":
            model = _empty(load_config(str(folder / "backbone")), device, dtype)
            tokenizer = load_tokenizer(str(folder / "backbone"))
        else:
            check_weights(folder, info)
            model = _pretrained(info.backbone, device, dtype)
            tokenizer = load_tokenizer(info.backbone)
        check_tokenizer(folder, info, tokenizer, info.backbone)
        reward = cls(cls.with_adapters(model, tuning), tokenizer, info)
        reward.load_trained(folder / "reward.safetensors")
        reward.name = str(folder)
        return reward.eval()

    @classmethod
    def with_adapters(cls, backbone: Backbone, tuning: Tuning) -> Backbone:
        """Return a classifier with fresh LoRA adapters in its encoder if the tuning asks for them."""
        setattr(backbone, backbone.base_model_prefix, with_adapter(backbone.base_model, tuning))
        return backbone

    def top(self, layers: nn.Module | None) -> nn.Module:
        """Raise RewardError: an encoder has no states of tokens to keep."""
        raise RewardError(f"{self.info.backbone} is an encoder, which is not trained on states of tokens")

    def make_head(self) -> nn.ModuleList:
        """Return what the classifier has behind the encoder's layers, in the order of its forward."""
        encoder = self.backbone.base_model
        parts = [getattr(encoder, "pooler", None), *(part for part in self.backbone.children() if part is not encoder)]
        return nn.ModuleList(part for part in parts if part is not None and any(True for _ in part.parameters()))

    def last_parts(self, amount: int) -> list[nn.Module]:
        """Return the last layers of the encoder."""
        return list(layers_of(self.backbone)[-amount:])

    # Texts to ids

    @property
    def context_length(self) -> int:
        """Return the most tokens of a row: those of its training, if it has been trained."""
        limits = [self.tokenizer.model_max_length, context_length(self.backbone.config)]
        if self.info.training:
            limits.append(self.info.training["settings"]["max_tokens"])
        return min(limits)

    def encode_within(
        self, prompt: Prompt, response: str, *, finished: bool, max_tokens: int
    ) -> tuple[list[int], list[int], bool]:
        """Return ([CLS] prompt [SEP], response [SEP]) in at most `max_tokens`: the prompt loses its beginning first.

        Whether the response is finished makes no difference: every row is one.

        Raises:
            RewardError: not even a token of the response has room.
        """
        pair = self.tokenizer(as_plain_text(prompt), response, verbose=False)
        ids, parts = pair["input_ids"], pair.sequence_ids(0)
        room = min(max_tokens, self.context_length) - parts.count(None)
        if room < 1:
            raise RewardError(f"max-tokens {max_tokens} leaves no room for a response; use 16 or more")
        after = min(parts.count(1), room)
        dropped = max(parts.count(0) + after - room, 0)
        begin = len(ids) - 1 - parts.count(1)
        first = parts.index(0) if 0 in parts else 0
        return [*ids[:first], *ids[first + dropped : begin]], [*ids[begin : begin + after], ids[-1]], True

    def prompt_problem(self, prompt: Prompt, max_tokens: int) -> str | None:
        """Return None: of a prompt that is too long the end is read."""
        return None

    def inputs(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, Tensor]:
        """Return what the classifier takes for (prompt ids, response ids) rows, padded on the right."""
        ids, mask = pad([[*before, *after] for before, after in rows], torch.device("cpu"))
        inputs = {"input_ids": ids.masked_fill(~mask, self.backbone.config.pad_token_id), "attention_mask": mask.long()}
        if self.token_types:
            first, second = self.token_types
            # Without a response transformers' tokenizers read the prompt alone: all is its first part.
            types = [
                [first] * len(before) + [second if len(after) > 1 else first] * len(after) for before, after in rows
            ]
            inputs["token_type_ids"] = pad(types, torch.device("cpu"))[0]
        return inputs

    # Rewards

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        token_type_ids: Int[Tensor, "batch tokens"] | None = None,
        entering: Float[Tensor, "batch 1 hidden"] | None = None,
    ) -> Float[Tensor, "batch tokens"]:
        """Return the reward of each whole text, at every one of its places.

        Args:
            entering: what enters the head, if it is known; see `read_frozen`.
        """
        if entering is None:
            more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            rewards = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **more).logits[:, 0]
        else:
            rewards = self.read_head(entering)
        rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
        return rewards[:, None].expand(-1, input_ids.shape[1])

    def read_head(self, entering: Float[Tensor, "batch 1 hidden"]) -> Float[Tensor, " batch"]:
        """Apply the head to what the encoder gave it."""
        for part in self.head:
            entering = part(entering)
        return entering.reshape(len(entering))

    @torch.no_grad()
    def read_frozen(self, inputs: dict[str, Tensor]) -> Float[Tensor, "batch 1 hidden"] | None:
        """Return what enters the head, all that a frozen encoder gives; None if the head cannot be run by itself.

        A head that reads all states takes its first one, as every architecture's does, so only that is kept.
        """
        seen: list[Tensor] = []
        with self.head[0].register_forward_pre_hook(lambda _, given: seen.append(given[0])):
            want = self.backbone(**inputs).logits[:, 0]
        entering = seen[0][:, :1] if seen[0].ndim == 3 else seen[0][:, None]
        try:
            have = self.read_head(entering)
        except (RuntimeError, IndexError):
            return None
        return entering if torch.allclose(have, want, rtol=1e-4, atol=1e-4) else None

    def classifier(self, name: str = "encoder reward") -> ClassifierReward:
        """Return the reward that everything else uses, on the same weights."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.model_max_length = self.context_length
        made = ClassifierReward(self.backbone, tokenizer, name=name)
        made.calibration = self.calibration
        return made

    def bind(self, lm: CausalModel) -> Reward:
        """Return the classifier as it reads the texts of `lm`."""
        return self.classifier().bind(lm)

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> RewardRows:
        """Raise RewardError: texts are read once `bind` has said whose."""
        return self.classifier().start(prefixes, max_new_tokens, candidates)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], **settings: Any) -> list[Score]:
        """Raise RewardError: texts are read once `bind` has said whose."""
        return self.classifier().score(prompts, responses)

    def export(self, folder: str | Path) -> None:
        """Write the standard sequence-classification checkpoint (one label), readable by transformers alone."""
        model = copy.deepcopy(self.backbone)
        if Tuning.parse(self.info.tune).kind == "lora":
            setattr(model, model.base_model_prefix, model.base_model.merge_and_unload())
        with whole_folder(Path(folder)) as work:
            model.save_pretrained(work)
            self.classifier().tokenizer.save_pretrained(work)


def _pretrained(name: str, device: str, dtype: str) -> PreTrainedModel:
    """Load the classifier on a pretrained encoder; its head is new if the checkpoint has none."""
    config = load_config(name)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError(f"transformers has no sequence classification for {config.model_type}; use a BERT")
    config.num_labels = 1
    config.architectures = None
    # With the architecture's own attention: DeBERTa's has no other.
    settings: dict[str, Any] = {"device": device, "dtype": dtype, "attention": None, "own_head": False}
    return load_model(AutoModelForSequenceClassification, name, config, **settings)


def _empty(config: PretrainedConfig, device: str, dtype: str) -> PreTrainedModel:
    """Make a classifier whose weights are still to be read."""
    place = resolve_device(device)
    wanted = resolve_dtype(dtype, place)
    wanted = config.dtype if isinstance(wanted, str) else wanted
    return empty_model(AutoModelForSequenceClassification, config, dtype=wanted, attention=None).to(place)
