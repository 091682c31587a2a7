"""What a reward reads its states from: the layers of a causal language model, without its LM head.

truncated_backbone   the first layers, read from a model's files
shared_backbone      the first layers on the tensors of a model in memory: no weight is there twice
check_sharing        whether a saved reward may stand on those tensors
empty_backbone       of a configuration, its weights still to be read
halves_of            any of them in two, on the same tensors
with_adapter         any of them with LoRA adapters of its own
"""

import contextlib
import copy
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from midcourse.lm.caches import check_supported
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.load import (
    adapters_of,
    empty_model,
    load_config,
    load_model,
    of_several_media,
    resolve_device,
    resolve_dtype,
)
from midcourse.lm.weights import loaded_fingerprint
from midcourse.rewards.contract import check_rendering
from midcourse.rewards.info import RewardError, RewardInfo

# What architectures call the norm behind their last layer.
FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "embedding_norm", "norm_f")

if TYPE_CHECKING:
    from peft import PeftModel

    Backbone: TypeAlias = PreTrainedModel | PeftModel
else:
    Backbone = nn.Module  # peft takes its time to be imported, and most models have no adapters


def is_adapted(model: nn.Module) -> bool:
    """Return whether a model has adapters of its own, which no model has where peft was not imported."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def base_of(model: Backbone) -> Any:
    """Return the model that adapters were put into; one without adapters as it is."""
    return cast(Any, model).get_base_model() if is_adapted(model) else model


@dataclass(frozen=True)
class Tuning:
    """Which of the backbone's weights a reward trains.

    kind "head": none. "last": its last `amount` layers and final norm. "lora": adapters of rank `amount` on all linear
    modules (Hu et al., 2021) of the last `layers` layers, None being all of them. "all": everything.
    """

    kind: str
    amount: int = 0
    layers: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Tuning":
        """Read a tuning from "head", "last:2", "lora", "lora:8", "lora:8:4" or "all"."""
        kind, *numbers = text.split(":")
        most = {"head": 0, "last": 1, "lora": 2, "all": 0}.get(kind)
        if most is None or len(numbers) > most or not all(one.isdecimal() and int(one) >= 1 for one in numbers):
            raise RewardError(f"tune {text!r} is unknown; use head, last:N, lora, lora:RANK, lora:RANK:LAYERS or all")
        given = [int(one) for one in numbers]
        amount = given[0] if given else {"last": 2, "lora": 8}.get(kind, 0)
        return cls(kind, amount, given[1] if len(given) > 1 else None)

    @property
    def depth(self) -> int | None:
        """Return how many of the last layers it trains, if it leaves those below as they are; else None."""
        return self.amount if self.kind == "last" else self.layers

    def check_depth(self, layers: int) -> None:
        """Raise RewardError if it trains more layers than there are."""
        if self.depth and self.depth > layers:
            raise RewardError(f"tune {self} trains more than the {layers} layers there are")

    def covers(self, other: "Tuning") -> bool:
        """Return whether this tuning trains, and so stores, at least what the other one does."""
        if other.kind == "last" and self.kind == "last":
            return self.amount >= other.amount
        return self == other or other.kind == "head" or (other.kind == "last" and self.kind == "all")

    def __str__(self) -> str:
        return ":".join([self.kind, *(str(number) for number in (self.amount, self.layers) if number)])


def truncated_backbone(name: str, layers: int | None, device: str, dtype: str) -> PreTrainedModel:
    """Load the first `layers` layers of a pretrained causal LM (None: all), without its LM head."""
    # Adapters name the layers of the whole model, and are merged there; models of several media have theirs within.
    if adapters_of(name) or of_several_media(name):
        lm = LanguageModel.load(name, device=device, dtype=dtype)
        return shared_backbone(lm, layers or lm.model.get_decoder().config.num_hidden_layers)
    config = load_config(name)
    if layers is not None:
        keep_layers(config, layers, name)
    model = load_model(AutoModel, name, config, device=device, dtype=dtype, own_head=False)
    check_supported(model.config)
    return model.get_decoder()  # OPT's layers are one module further in


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
        backbone = empty_model(AutoModel, config, dtype=lm.model.dtype).get_decoder()
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
    keep_layer_types(config, slice(layers))


def keep_layer_types(config: PretrainedConfig, which: slice) -> None:
    """Let a configuration name the kinds of these layers alone, if it names kinds of layers."""
    if kinds := getattr(config, "layer_types", None):
        with contextlib.suppress(AttributeError):  # some have them follow from how many layers there are (Mamba, Bamba)
            config.layer_types = kinds[which]


def empty_backbone(config: PretrainedConfig, device: str, dtype: str) -> PreTrainedModel:
    """Make a backbone of that configuration, whose weights are still to be read."""
    place = resolve_device(device)
    wanted = resolve_dtype(dtype, place)
    # Made in its dtype, not cast to it: a cast would round the rotary frequencies, which are float32 in any dtype.
    wanted = config.dtype if isinstance(wanted, str) else wanted
    return empty_model(AutoModel, config, dtype=wanted).to(place).get_decoder()


def with_adapter(backbone: PreTrainedModel, tuning: Tuning) -> Backbone:
    """Return the backbone, with fresh LoRA adapters if the tuning asks for them."""
    if tuning.kind != "lora":
        return backbone
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=tuning.amount,
        lora_alpha=2 * tuning.amount,
        target_modules="all-linear" if tuning.layers is None else _linear_modules(backbone, tuning),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in backbone.modules()),  # GPT-2
    )
    with warnings.catch_warnings():  # PEFT asks transformers by a name that is going
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        return get_peft_model(backbone, config)


def _linear_modules(model: PreTrainedModel, tuning: Tuning) -> list[str]:
    """Return the names of the linear modules in the layers that are tuned; RewardError if there are fewer layers."""
    layers = layers_of(model)
    tuning.check_depth(len(layers))
    inside = {module for layer in layers[len(layers) - (tuning.depth or 0) :] for module in layer.modules()}
    return [
        name for name, module in model.named_modules() if module in inside and isinstance(module, nn.Linear | Conv1D)
    ]


def layers_of(backbone: nn.Module) -> nn.ModuleList:
    """Return the list of a backbone's layers, whatever its architecture calls it."""
    config: PretrainedConfig | None = getattr(backbone, "config", None)
    count = config.get_text_config().num_hidden_layers if config else None
    for part in backbone.modules():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return part
    raise RewardError(f"no list of layers found in {type(backbone).__name__}; use --tune head, lora or all")


def halves_of(backbone: PreTrainedModel, last: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return a backbone without its last layers and final norm, and these alone, on the same parameters.

    Whoever runs one after the other has to check that this is the whole: it is not where an architecture adds something
    to what its layers take.
    """
    cut = len(layers_of(backbone)) - last
    below, above = _part(backbone, slice(0, cut)), _part(backbone, slice(cut, None))
    for name in FINAL_NORMS:
        if name in below._modules:
            setattr(below, name, nn.Identity())
    return below, above


def _part(backbone: PreTrainedModel, layers: slice) -> PreTrainedModel:
    """Return a backbone of some of the layers; the original is not changed."""
    part = copy.copy(backbone)
    part._modules = dict(backbone._modules)
    part.config = copy.deepcopy(backbone.config)
    whole = layers_of(backbone)
    own = nn.ModuleList(whole[layers])
    part._modules |= {name: own for name, module in backbone._modules.items() if module is whole}
    part.config.num_hidden_layers = len(own)
    keep_layer_types(part.config, layers)
    return part


def final_norm_of(backbone: nn.Module) -> nn.Module | None:
    """Return the norm behind a backbone's last layer (`norm` in most architectures, `ln_f` in GPT-2's).

    None if it has none, as OPT-350m, whose layers end with norms of their own.
    """
    found = (getattr(backbone, name, None) for name in FINAL_NORMS)
    return next((norm for norm in found if isinstance(norm, nn.Module)), None)


def state_width(config: PretrainedConfig) -> int:
    """Return the width of the states behind the last layer; OPT-350m projects them to that of its embeddings."""
    config = config.get_text_config()
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size
