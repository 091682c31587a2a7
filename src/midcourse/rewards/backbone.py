"""What a reward reads its states from: the layers of a causal language model, without its LM head.

truncated_backbone   the first layers, read from a model's files
shared_backbone      the first layers on the tensors of a model in memory: no weight is there twice
check_sharing        whether a saved reward may stand on those tensors
empty_backbone       of a configuration, its weights still to be read
part_of              some layers of any of them, on the same tensors
with_adapter         any of them with LoRA adapters of its own
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from midcourse.lm.language_model import LanguageModel
from midcourse.lm.load import empty_model, load_config, load_model, resolve, resolve_device, resolve_dtype
from midcourse.lm.prefix_cache import check_positions, check_supported
from midcourse.lm.weights import loaded_fingerprint
from midcourse.rewards.contract import check_rendering
from midcourse.rewards.info import RewardError, RewardInfo

FINAL_NORMS = ("norm", "ln_f", "final_layernorm")  # what architectures call the norm behind their last layer
Backbone: TypeAlias = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Tuning:
    """Which of the backbone's weights a reward trains.

    kind "head": none. "last": its last `amount` layers and final norm. "lora": adapters of rank `amount` on all linear
    layers (Hu et al., 2021). "all": everything.
    """

    kind: str
    amount: int = 0

    @classmethod
    def parse(cls, text: str) -> "Tuning":
        """Read a tuning from "head", "last:2", "lora", "lora:8" or "all"."""
        kind, _, amount = text.partition(":")
        default = {"head": 0, "last": 2, "lora": 8, "all": 0}.get(kind)
        if default is None or (amount and (kind in ("head", "all") or not amount.isdecimal() or int(amount) < 1)):
            raise RewardError(f"tune {text!r} is unknown; use head, last:N, lora, lora:RANK or all")
        return cls(kind, int(amount or default))

    def covers(self, other: "Tuning") -> bool:
        """Return whether this tuning trains, and so stores, at least what the other one does."""
        if other.kind == "last" and self.kind == "last":
            return self.amount >= other.amount
        return self == other or other.kind == "head" or (other.kind == "last" and self.kind == "all")

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount}" if self.amount else self.kind


def truncated_backbone(name: str, layers: int | None, device: str, dtype: str) -> PreTrainedModel:
    """Load the first `layers` layers of a pretrained causal LM (None: all), without its LM head."""
    config = load_config(resolve(name))
    if layers is not None:
        keep_layers(config, layers, name)
    model = load_model(AutoModel, name, config, device=device, dtype=dtype, own_head=False)
    check_supported(model.config)
    check_positions(model)
    return model


def shared_backbone(lm: LanguageModel, layers: int) -> PreTrainedModel:
    """Make a module of the first `layers` layers of a language model in memory, on the LM's very tensors.

    Nothing is copied. Its parameters are frozen and objects of their own, so that freezing, `.to(...)` and adapters
    stay its own affair; only a change of the tensors in place would reach the LM.

    Raises:
        RewardError: fewer layers, or weights that are not all there in one place in their usual form.
    """
    base = lm.model.get_decoder()
    config = copy.deepcopy(base.config)
    keep_layers(config, layers, lm.name)
    with torch.device("meta"):
        backbone = empty_model(AutoModel, config, dtype=lm.model.dtype)
    theirs = _tensors(base)
    for name, blank in _tensors(backbone).items():
        tensor = theirs.get(name)
        if tensor is None or tensor.shape != blank.shape or tensor.device != lm.model.device or tensor.is_meta:
            raise RewardError(
                f"{lm.name} in memory does not hold the weights {name} in their usual form and place, so no reward "
                "can share them; leave share_with (guide: --share-weights) out"
            )
        path, _, leaf = name.rpartition(".")
        shared = tensor.detach()
        # Buffers too, such as rotary frequencies: what is not saved would otherwise stay without values.
        shared = nn.Parameter(shared, requires_grad=False) if isinstance(blank, nn.Parameter) else shared
        setattr(backbone.get_submodule(path), leaf, shared)
    check_supported(backbone.config)
    return backbone.eval()


def check_sharing(
    folder: Path, info: RewardInfo, lm: LanguageModel, device: str, dtype: str, allow_other_weights: bool
) -> None:
    """Raise RewardError if a saved reward cannot stand on the weights of a language model in memory."""
    if info.tune == "all":
        raise RewardError(
            f"the reward in {folder} trained all of its weights (tune all) and has none to share with {lm.name}; "
            "leave share_with (guide: --share-weights) out"
        )
    model = lm.model
    for name, asked, has in (
        ("device", device if device == "auto" else resolve_device(device), model.device),
        ("dtype", dtype if dtype == "auto" else resolve_dtype(dtype, model.device), model.dtype),
    ):
        if asked not in ("auto", has):
            raise RewardError(
                f"the reward in {folder} cannot have {name} {asked} on the weights of {lm.name}, which have {has}; "
                f"leave {name} out"
            )
    fingerprint = None if allow_other_weights else loaded_fingerprint(model)
    if not allow_other_weights and fingerprint != info.backbone_fingerprint:
        which = f"fingerprint {fingerprint}" if fingerprint else "it was not loaded from files, or was changed since"
        remedy = ", or allow other weights (--allow-other-weights) if they are nearly the same"
        raise RewardError(
            f"the reward in {folder} was trained on the weights of {info.backbone} (fingerprint "
            f"{info.backbone_fingerprint}), and {lm.name} in memory has others ({which}); leave share_with "
            "(guide: --share-weights) out" + (remedy if info.head != "scalar" else "")
        )
    if info.backbone_layers and info.backbone_layers != model.get_decoder().config.num_hidden_layers:
        raise RewardError(
            f"the reward in {folder} was trained on {info.backbone} of {info.backbone_layers} layers, and {lm.name} "
            f"has {model.get_decoder().config.num_hidden_layers}; train one on {lm.name}"
        )
    if info.tokenizer == lm.tokens:  # load refuses others, as of any reward
        check_rendering(lm, info.backbone, info.template, info.chat_template, info.eos_token_ids)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, a tensor with two names by both."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def keep_layers(config: PretrainedConfig, layers: int, name: str) -> None:
    """Cut a configuration to its first layers; RewardError if it has fewer."""
    if not 1 <= layers <= config.num_hidden_layers:
        raise RewardError(f"layers {layers} is not between 1 and the {config.num_hidden_layers} that {name} has")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]


def empty_backbone(config: PretrainedConfig, device: str, dtype: str) -> PreTrainedModel:
    """Make a backbone of that configuration, whose weights are still to be read."""
    place = resolve_device(device)
    wanted = resolve_dtype(dtype, place)
    # Made in its dtype, not cast to it: a cast would round the rotary frequencies, which are float32 in any dtype.
    wanted = config.dtype if isinstance(wanted, str) else wanted
    return empty_model(AutoModel, config, dtype=wanted).to(place)


def with_adapter(backbone: PreTrainedModel, tuning: Tuning) -> Backbone:
    """Return the backbone, with fresh LoRA adapters if the tuning asks for them."""
    if tuning.kind != "lora":
        return backbone
    config = LoraConfig(
        r=tuning.amount,
        lora_alpha=2 * tuning.amount,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in backbone.modules()),  # GPT-2
    )
    return get_peft_model(backbone, config)


def layers_of(backbone: nn.Module) -> nn.ModuleList:
    """Return the list of a backbone's layers (`layers` in most architectures, `h` in GPT-2's)."""
    for name in ("layers", "h"):
        if isinstance(found := getattr(backbone, name, None), nn.ModuleList):
            return found
    raise RewardError(f"no list of layers found in {type(backbone).__name__}; use --tune head, lora or all")


def part_of(backbone: PreTrainedModel, layers: slice) -> PreTrainedModel:
    """Return a backbone of some of the layers, on the same parameters; the original is not changed."""
    part = copy.copy(backbone)
    part._modules = dict(backbone._modules)
    part.config = copy.deepcopy(backbone.config)
    own = nn.ModuleList(layers_of(backbone)[layers])
    setattr(part, "layers" if hasattr(part, "layers") else "h", own)
    part.config.num_hidden_layers = len(own)
    if getattr(part.config, "layer_types", None):
        part.config.layer_types = part.config.layer_types[layers]
    return part


def final_norm_of(backbone: nn.Module) -> nn.Module:
    """Return the norm behind a backbone's last layer (`norm` in most architectures, `ln_f` in GPT-2's)."""
    for name in FINAL_NORMS:
        if isinstance(found := getattr(backbone, name, None), nn.Module):
            return found
    raise RewardError(f"no final norm found in {type(backbone).__name__}; use --tune head, lora or all")
