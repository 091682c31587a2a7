"""In which cache a model's prefixes are kept: siblings side by side where its layers allow it, else a row at a time."""

from collections.abc import Callable
from inspect import signature
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from midcourse.errors import MidcourseError
from midcourse.lm.prefix_cache import PrefixCache, compile_forward, pad
from midcourse.lm.row_cache import RowCache

AnyCache: TypeAlias = PrefixCache | RowCache

MASK_ATTENTION = ("sdpa", "eager")  # the attention kernels of transformers that take a 4D mask
MASK_LAYERS = {"full_attention", "sliding_attention"}
# Architectures whose rows were seen to be those of single passes; any other is tried when it is first used.
KNOWN = frozenset(
    [
        "cohere",
        "deepseek_v3",
        "gemma",
        "gemma3_text",
        "glm4",
        "gpt2",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "stablelm",
        "starcoder2",
    ]
)


class UnsupportedModelError(MidcourseError):
    """The architecture cannot continue a prefix that it has read."""


def check_supported(config: PretrainedConfig) -> None:
    """Raise UnsupportedModelError if a model is no decoder, or its attention takes no mask of ours."""
    name = config.model_type
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder; use a decoder-only model")
    both_ways = getattr(config.get_text_config(), "use_bidirectional_attention", None)
    if getattr(config, "is_causal", True) is False or both_ways in (True, "all"):
        raise UnsupportedModelError(
            f"this {name} reads both ways (see is_causal and use_bidirectional_attention in its config.json), so a "
            "prefix's state would depend on what follows; use one that reads forwards"
        )
    if config._attn_implementation not in MASK_ATTENTION:
        raise UnsupportedModelError(
            f"attention implementation {config._attn_implementation!r} takes no 4D mask; "
            "load the model with attn_implementation='sdpa'"
        )


def why_by_row(model: PreTrainedModel) -> str | None:
    """Return why a model has to read a row at a time; None if rows and siblings can be told apart by masks."""
    config = model.config.get_text_config()
    other = set(getattr(config, "layer_types", None) or ["full_attention"]) - MASK_LAYERS
    if other:
        return f"has {', '.join(sorted(other))} layers"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return "has local attention, whose window counts slots"  # GPT-Neo's, which no mask of ours moves
    if getattr(config, "alibi", False):
        return "has ALiBi attention, which goes by slots"
    if "position_ids" not in signature(model.forward).parameters:
        return "cannot be told the positions of its tokens"
    for name, module in model.named_modules():
        # RoBERTa and its kin keep a row of the table for padding, and count tokens from the next one.
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            return f"counts positions from {module.padding_idx + 1}"
    return None


def compile_steps(model: PreTrainedModel) -> None:
    """Compile the model's short forwards over a cache: the steps of decoding, once for every shape they come in.

    The first step of each shape takes a minute or so (a batch size, a number of candidates, 256 slots more); what
    follows is faster, since attention, norms and activations run without Python between them. Nothing is written into
    the model; caches made from now on use it.

    Raises:
        UnsupportedModelError: a model that reads a row at a time.
    """
    check_supported(model.config)
    if not side_by_side(model):
        kind = model.config.get_text_config().model_type
        raise UnsupportedModelError(f"{kind} reads a row at a time, and is not compiled; leave --compile out")
    compile_forward(model)


Kind: TypeAlias = Callable[[PreTrainedModel, int, int], AnyCache]  # model, batch and capacity to a cache
KINDS: tuple[Kind, ...] = (
    PrefixCache,
    lambda model, batch, capacity: RowCache(model, batch, positions=True),
    lambda model, batch, capacity: RowCache(model, batch, positions=False),
)
_found: "WeakKeyDictionary[nn.Module, Kind]" = WeakKeyDictionary()


def start_cache(model: PreTrainedModel, batch: int, capacity: int) -> AnyCache:
    """Return an empty cache of `batch` rows under a model, with room for `capacity` tokens (it grows beyond).

    Which kind it is, a trial tells once for each model, unless its architecture is known: a batch with siblings against
    single passes.

    Raises:
        UnsupportedModelError: rows in a batch are read otherwise than alone, by every kind.
    """
    check_supported(model.config)
    return _kind(model)(model, batch, capacity)


def side_by_side(model: PreTrainedModel) -> bool:
    """Return whether a model's siblings can be read side by side; UnsupportedModelError if no rows can be read."""
    return _kind(model) is PrefixCache


def _kind(model: PreTrainedModel) -> Kind:
    if model not in _found:
        _found[model] = _tried(model)
    return _found[model]


def _tried(model: PreTrainedModel) -> Kind:
    kind = model.config.get_text_config().model_type
    by_row = why_by_row(model) is not None
    if kind in KNOWN and not by_row:
        return PrefixCache
    for one in KINDS:
        if not (one is PrefixCache and by_row) and _right(model, one):
            return one
    raise UnsupportedModelError(
        f"{kind} reads rows of a batch otherwise than alone when tried, so what it would write or reward is not its "
        "own; use a model of another architecture"
    )


@torch.inference_mode()
def _right(model: PreTrainedModel, kind: Kind) -> bool:
    """Try a cache of two rows: return whether two alternatives of each are read as in passes of their own."""
    words = model.config.get_text_config().vocab_size
    prompts = [[(7 * place + 3) % words for place in range(length)] for length in (4, 7)]
    ends = [[5 % words, 11 % words]] * 2
    try:
        cache = kind(model, 2, 16)
        cache.extend(pad(prompts, model.device)[0], [len(prompt) for prompt in prompts])
        have = _outputs(cache.siblings(torch.tensor(ends, device=model.device)))
        alone = [
            _outputs(model(input_ids=torch.tensor([[*prompt, end]], device=model.device), use_cache=False))[0, -1]
            for prompt, both in zip(prompts, ends, strict=True)
            for end in both
        ]
    except Exception:  # of any kind, from within the model
        return False
    want = torch.stack(alone).view_as(have)
    apart = (have - want).abs().max() / want.abs().max().clamp(min=1e-6)
    return bool(apart <= (1e-2 if model.dtype in (torch.float32, torch.float64) else 0.2))


def _outputs(output: ModelOutput) -> Tensor:
    found = output.get("logits")
    return (output.last_hidden_state if found is None else found).float()
