"""The cached prefixes of a batch of rows under one model, with room for sibling candidates.

One preallocated key/value buffer per layer. A batch of prompts of unequal length is laid into common slots (padding
on the left); every later forward appends slots behind them:

    extend     n tokens per row, one after the other (a prompt, or the token that was chosen)
    siblings   k alternatives for each row's next token, which see the prefix and themselves but not each other
    keep       of the siblings just scored, one per row stays; the others are overwritten by the next forward
    select     rows go on, others leave the batch

All attention masks are built here, from which slots hold which position of a row, so rows are independent of each
other and of padding, and sliding-window layers need no cache of their own: their window is a mask.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import ModelOutput

from midcourse.errors import MidcourseError

MASK_ATTENTION = ("sdpa", "eager")  # the attention kernels of transformers that take a 4D mask
MASK_LAYERS = {"full_attention", "sliding_attention"}


class UnsupportedModelError(MidcourseError):
    """The architecture cannot score sibling candidates over a cached prefix."""


def check_supported(config: PretrainedConfig) -> None:
    """Raise UnsupportedModelError where a model's layers or kernels cannot take midcourse's masks."""
    name = config.model_type
    if config._attn_implementation not in MASK_ATTENTION:
        raise UnsupportedModelError(
            f"attention implementation {config._attn_implementation!r} takes no 4D mask; "
            "load the model with attn_implementation='sdpa'"
        )
    other = set(getattr(config, "layer_types", None) or ["full_attention"]) - MASK_LAYERS
    if other:
        raise UnsupportedModelError(
            f"{name} has {', '.join(sorted(other))} layers, whose state cannot be shared by sibling candidates; "
            "use a model with full or sliding-window attention only"
        )
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder; use a decoder-only model")


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values, written into preallocated slots."""

    is_sliding = False

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, not empty: masked slots are multiplied by 0, and 0 * nan is nan.
        self.keys = key_states.new_zeros(*key_states.shape[:2], self.capacity, key_states.shape[3])
        self.values = value_states.new_zeros(*value_states.shape[:2], self.capacity, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class PrefixCache:
    """Cached prefixes of `batch` rows under `model`; at most `capacity` slots (prompt, response and siblings).

    `model` is a causal LM or a bare backbone of transformers; its forward is called with masks, positions and cache,
    and its output is returned. Nothing is written into the model.
    """

    def __init__(self, model: PreTrainedModel, batch: int, capacity: int):
        check_supported(model.config)
        self.model = model
        self.config = model.config
        self.layers = [_SlotLayer(capacity) for _ in range(self.config.num_hidden_layers)]
        self.cache = Cache(layers=self.layers)
        device = model.device
        # Which slot holds a token of the row's prefix, and at which position of the row.
        self.valid = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self.slot_positions = torch.zeros(batch, capacity, dtype=torch.long, device=device)
        self.next_position = torch.zeros(batch, dtype=torch.long, device=device)
        self.length = 0
        self.padded = False
        self.siblings_held = 0
        window = getattr(self.config, "sliding_window", None)
        layer_types = getattr(self.config, "layer_types", None)
        # A model with one mask for all layers but a window (Mistral) has no layer_types, or only one kind of them.
        self.layer_types = set(layer_types or ["sliding_attention" if window else "full_attention"])
        self.window = window if "sliding_attention" in self.layer_types else None

    @property
    def batch(self) -> int:
        return self.valid.shape[0]

    def extend(
        self, token_ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"] | None = None, **kwargs: Any
    ) -> ModelOutput:
        """Append tokens to every row's prefix and return the model's output at them.

        `mask` is False at padding. `kwargs` go to the model (`logits_to_keep=1`, say).
        """
        tokens = token_ids.shape[1]
        if mask is None:
            mask = torch.ones_like(token_ids, dtype=torch.bool)
        elif not bool(mask.all()):
            self.padded = True
        positions = (self.next_position[:, None] + mask.cumsum(1) - 1).clamp(min=0)
        # A lone token sees all of an unpadded prefix, an unpadded prompt is plainly causal: no mask is the fast mask.
        plain = not self.padded and (tokens == 1 or self.length == 0)
        causal = torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril()
        output = self._forward(token_ids, positions, None if plain else causal & mask[:, None, :], **kwargs)
        end = self.length + tokens
        self.valid[:, self.length : end] = mask
        self.slot_positions[:, self.length : end] = positions
        self.next_position = self.next_position + mask.sum(1)
        self._set_length(end)
        return output

    def siblings(self, token_ids: Int[Tensor, "batch candidates"], **kwargs: Any) -> ModelOutput:
        """The model's output at k alternative next tokens per row, in one forward; the prefix does not change."""
        k = token_ids.shape[1]
        alone = torch.eye(k, dtype=torch.bool, device=token_ids.device).expand(self.batch, k, k)
        positions = self.next_position[:, None].expand(-1, k)
        output = self._forward(token_ids, positions, alone, **kwargs)
        self.siblings_held = k
        return output

    def keep(self, index: Int[Tensor, " batch"]) -> None:
        """Append to each row's prefix the sibling at `index` of the last `siblings` call."""
        if not self.siblings_held:
            raise ValueError("keep() follows siblings(), with no other forward between them")
        rows = torch.arange(self.batch, device=index.device)
        for layer in self.layers:
            layer.keys[:, :, self.length] = layer.keys[rows, :, self.length + index]
            layer.values[:, :, self.length] = layer.values[rows, :, self.length + index]
        self.valid[:, self.length] = True
        self.slot_positions[:, self.length] = self.next_position
        self.next_position = self.next_position + 1
        self._set_length(self.length + 1)

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only these rows, in this order."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self.valid, self.slot_positions = self.valid[rows], self.slot_positions[rows]
        self.next_position = self.next_position[rows]

    def _set_length(self, length: int) -> None:
        self.length = length
        self.siblings_held = 0
        for layer in self.layers:
            layer.length = length

    def _forward(
        self, token_ids: Tensor, positions: Tensor, new: Bool[Tensor, "batch tokens tokens"] | None, **kwargs: Any
    ) -> ModelOutput:
        self.siblings_held = 0
        capacity = self.valid.shape[1]
        if self.length + token_ids.shape[1] > capacity:
            raise ValueError(f"{self.length + token_ids.shape[1]} slots needed, but the cache was made for {capacity}")
        return self.model(
            input_ids=token_ids,
            attention_mask=self._masks(positions, new),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **kwargs,
        )

    def _masks(
        self, positions: Int[Tensor, "batch tokens"], new: Bool[Tensor, "batch tokens tokens"] | None
    ) -> Tensor | dict[str, Tensor] | None:
        """What each new token may see, in the form the model takes.

        Args:
            positions: the new tokens' positions in their rows.
            new: which of the new tokens see which; None where every token sees all before it.
        """
        if new is None and self.window is None:
            return None
        tokens = positions.shape[1]
        if new is None:
            new = torch.ones(self.batch, tokens, tokens, dtype=torch.bool, device=positions.device).tril()
        old = self.valid[:, None, : self.length].expand(-1, tokens, -1)
        sees = torch.cat([old, new], dim=2)
        # A padding token sees itself, so that its softmax is not 0/0; nothing ever sees it.
        sees[:, torch.arange(tokens), self.length + torch.arange(tokens)] = True
        masks = {"full_attention": sees}
        if self.window is not None:
            seen_positions = torch.cat([self.slot_positions[:, : self.length], positions], dim=1)
            masks["sliding_attention"] = sees & (positions[:, :, None] - seen_positions[:, None, :] < self.window)
        additive = {kind: _additive(masks[kind], self.model.dtype) for kind in self.layer_types}
        # One kind of layer: one mask, which every architecture passes on as it is. Two kinds: a dict by kind.
        return additive if len(additive) > 1 else additive.popitem()[1]


def _additive(sees: Bool[Tensor, "batch tokens slots"], dtype: torch.dtype) -> Float[Tensor, "batch 1 tokens slots"]:
    """0 where a token is seen and the dtype's lowest number elsewhere: the form sdpa and eager attention share."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def pad(
    rows: Sequence[Sequence[int]], device: torch.device, side: Literal["left", "right"]
) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Token ids padded on one side (with id 0, which the mask hides) and the mask of real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, at] = torch.tensor(row, dtype=torch.long)
        mask[i, at] = True
    return ids.to(device), mask.to(device)
