"""The cached prefixes of a batch of rows under one model, with room for sibling candidates.

One preallocated key/value buffer per layer. Slot j of a row holds the row's token at position j, so a prefix is a
length, and going back is a smaller one. Rows have lengths of their own: a batch needs no padding inside its cache, and
a row can be replaced by another while its neighbours go on.

    extend     n tokens per row, one after the other (a prompt, or the token that was taken)
    branches   k alternative continuations of each row, which see the prefix and themselves but not each other
    keep       of alternatives of one token, one per row stays; whatever is not kept is overwritten by the next forward
    rewind     rows forget their last tokens
    select     rows go on, others leave the batch
    replace    rows of another cache take the places of rows here

`compile_forward(model)` has later caches of that model run their short forwards through torch.compile.

All attention masks are built here, so rows are independent of each other and of padding, and sliding-window layers
need no cache of their own: their window is a mask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import ModelOutput

_STEP_TOKENS = 64  # the longest forward that is compiled; a prompt's length differs every time
_ROOM = 256  # capacities of compiled caches are multiples of this, so that few shapes are compiled
_compiled: "WeakKeyDictionary[PreTrainedModel, Callable[..., ModelOutput]]" = WeakKeyDictionary()


def compile_forward(model: PreTrainedModel) -> None:
    """Have caches of a model that are made from now on run its short forwards compiled; see `caches.compile_steps`."""
    _compiled[model] = torch.compile(model.forward, dynamic=False)


@dataclass
class _Slots:
    """Where the forward under way writes: `count` slots from each row's length on. Shared by all layers.

    Attributes:
        places: the slots as a tensor, in a compiled forward: it must not depend on numbers that change at every step.
    """

    lengths: list[int]
    count: int = 0
    places: Int[Tensor, "batch count"] | None = None

    @property
    def end(self) -> int:
        """Return one past the last slot that the forward needs."""
        return max(self.lengths) + self.count

    @property
    def level(self) -> bool:
        """Return whether all rows have the same length."""
        return min(self.lengths) == max(self.lengths)


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values, written into preallocated slots."""

    is_sliding = False

    def __init__(self, capacity: int, slots: _Slots):
        super().__init__()
        self.capacity = capacity
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, not empty: masked slots are multiplied by 0, and 0 * nan is nan.
        self.store(
            key_states.new_zeros(*key_states.shape[:2], self.capacity, key_states.shape[3]),
            value_states.new_zeros(*value_states.shape[:2], self.capacity, value_states.shape[3]),
        )
        self.is_initialized = True

    def store(self, keys: Tensor, values: Tensor) -> None:
        """Take these tensors for the rows of the batch."""
        self.stored = (keys, values)
        self.keys, self.values = keys, values

    def hold(self, batch: int) -> None:
        """Have room for so many rows, of which the first stay as they are. Places of rows that left are used again."""
        if batch > len(self.stored[0]):
            # Half as many again: rows that come one by one do not copy all others each time.
            more = max(batch, len(self.stored[0]) * 3 // 2) - len(self.keys)
            spare = self.keys.new_zeros(more, *self.keys.shape[1:]), self.values.new_zeros(more, *self.values.shape[1:])
            self.stored = torch.cat([self.keys, spare[0]]), torch.cat([self.values, spare[1]])
        self.keys, self.values = self.stored[0][:batch], self.stored[1][:batch]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.slots.places is not None:
            rows = torch.arange(len(key_states), device=key_states.device)[:, None]
            self.keys[rows, :, self.slots.places] = key_states.transpose(1, 2)
            self.values[rows, :, self.slots.places] = value_states.transpose(1, 2)
            return self.keys, self.values
        end = self.slots.end
        if self.slots.level:
            begin = end - self.slots.count
            self.keys[:, :, begin:end] = key_states
            self.values[:, :, begin:end] = value_states
        else:
            rows = torch.arange(len(self.slots.lengths), device=key_states.device)[:, None]
            starts = torch.tensor(self.slots.lengths, device=key_states.device)[:, None]
            places = starts + torch.arange(self.slots.count, device=key_states.device)
            self.keys[rows, :, places] = key_states.transpose(1, 2)
            self.values[rows, :, places] = value_states.transpose(1, 2)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reserve(self, capacity: int) -> None:
        """Make room for that many slots."""
        self.capacity = capacity
        if self.is_initialized:
            old_keys, old_values = self.keys, self.values
            self.lazy_initialization(old_keys, old_values)
            self.keys[:, :, : old_keys.shape[2]] = old_keys
            self.values[:, :, : old_values.shape[2]] = old_values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.end, 0

    def get_seq_length(self) -> int:
        return max(self.slots.lengths)

    def get_max_length(self) -> int:
        return self.capacity


class PrefixCache:
    """Cached prefixes of `batch` rows under `model`, with room for `capacity` slots (it grows if that is exceeded).

    `model` is a causal LM or a bare backbone of transformers; its forward is called with masks, positions and cache,
    and its output is returned. Nothing is written into the model.

    Attributes:
        lengths: each row's tokens in the cache.
    """

    def __init__(self, model: PreTrainedModel, batch: int, capacity: int):
        self.model = model
        self.config = model.config.get_text_config()
        self.compiled = _compiled.get(model)
        self.compiled_batch = batch
        self.capacity = self._rounded(capacity)
        self.slots = _Slots([0] * batch)
        self.layers = [_SlotLayer(self.capacity, self.slots) for _ in range(self.config.num_hidden_layers)]
        self.cache = Cache(layers=self.layers)
        self._held: tuple[list[int], int] | None = None
        window = getattr(self.config, "sliding_window", None)
        layer_types = getattr(self.config, "layer_types", None)
        # A model with one mask for all layers but a window (Mistral) has no layer_types, or only one kind of them.
        self.layer_types = set(layer_types or ["sliding_attention" if window else "full_attention"])
        self.window = window if "sliding_attention" in self.layer_types else None

    @property
    def batch(self) -> int:
        return len(self.slots.lengths)

    @property
    def lengths(self) -> list[int]:
        return self.slots.lengths

    @property
    def written(self) -> list[_SlotLayer]:
        """Return the layers that have keys and values: some models let later layers read those of earlier ones."""
        return [layer for layer in self.layers if layer.is_initialized]

    def extend(
        self, token_ids: Int[Tensor, "batch tokens"], counts: Sequence[int] | None = None, **kwargs: Any
    ) -> ModelOutput:
        """Append tokens to every row's prefix and return the model's output at them.

        Args:
            counts: how many of each row's tokens are real, from the left; the rest is padding. All by default.
            kwargs: for the model (`logits_to_keep=1`, say).
        """
        tokens = token_ids.shape[1]
        counts = counts or [tokens] * self.batch
        # Padding stands at its row's last position: a model may know none beyond its context.
        last = torch.tensor(counts, device=token_ids.device)[:, None] - 1
        steps = torch.arange(tokens, device=token_ids.device).minimum(last.clamp(min=0))
        positions = self._lengths_column(token_ids.device) + steps
        # Later tokens are invisible, so padding is. A lone token sees all of its prefix if all are equally long, and
        # a prompt is plainly causal: no mask is the fast mask.
        plain = max(self.lengths) == 0 or (tokens == 1 and self.slots.level)
        causal = None if plain else torch.ones(tokens, tokens, dtype=torch.bool, device=token_ids.device).tril()
        output = self._forward(token_ids, positions, causal, **kwargs)
        for row, count in enumerate(counts):
            self.lengths[row] += count
        return output

    def branches(
        self,
        token_ids: Int[Tensor, "batch branches depth"],
        first: Int[Tensor, "batch first"] | None = None,
        counts: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Return the model's output at k alternative continuations per row, of `depth` tokens each, in one forward.

        `first` is appended to the prefix on the way, as by `extend`; the alternatives continue it, and do not stay.

        Returns:
            The output at tokens (batch, first + branches * depth), in this order.
        """
        # One forward reads first | branch 1 | ... | branch k, in slots behind the prefix. The mask makes each branch
        # follow `first` alone, and positions count as if it did; `first` may be padded on the right (`counts`).
        batch, k, depth = token_ids.shape
        device = token_ids.device
        if first is None:
            first = token_ids.new_zeros(batch, 0)
        waiting = first.shape[1]
        ahead = torch.tensor(counts or [waiting] * batch, device=device)
        steps = torch.arange(waiting, device=device).expand(batch, -1)
        offsets = ahead[:, None] + torch.arange(depth, device=device).repeat(k)
        places = steps.minimum((ahead[:, None] - 1).clamp(min=0))
        positions = self._lengths_column(device) + torch.cat([places, offsets], 1)
        tokens = waiting + k * depth
        new = torch.zeros(batch, tokens, tokens, dtype=torch.bool, device=device)
        new[:, :, :waiting] = steps[:, None, :] < ahead[:, None, None]
        new[:, :waiting, :waiting] = torch.ones(waiting, waiting, dtype=torch.bool, device=device).tril()
        # Of the branches, a token sees those of its own that stand before it.
        branch = torch.arange(k * depth, device=device) // depth
        new[:, waiting:, waiting:] = (branch[:, None] == branch).tril()
        output = self._forward(torch.cat([first, token_ids.flatten(1)], 1), positions, new, **kwargs)
        # Where `keep` will find the alternatives: behind `first` with its padding.
        self._held = ([length + waiting for length in self.lengths], k) if depth == 1 else None
        for row, count in enumerate(ahead.tolist()):
            self.lengths[row] += count
        return output

    def siblings(self, token_ids: Int[Tensor, "batch candidates"], **kwargs: Any) -> ModelOutput:
        """Return the output at k alternative next tokens per row, in one forward; the prefix does not change."""
        return self.branches(token_ids[:, :, None], **kwargs)

    def keep(self, index: Int[Tensor, " batch"]) -> None:
        """Append to each row's prefix the alternative at `index` of the last forward, which was one of one token each.

        Raises:
            ValueError: there was no such forward, or another since.
        """
        if self._held is None:
            raise ValueError("keep() follows branches() of one token, with no other forward between them")
        rows = torch.arange(self.batch, device=index.device)
        # The alternative's keys and values were computed at the position that it takes: to be kept they are only moved.
        places = torch.tensor(self._held[0], device=index.device) + index
        ends = torch.tensor(self.lengths, device=index.device)
        for layer in self.written:
            layer.keys[rows, :, ends] = layer.keys[rows, :, places]
            layer.values[rows, :, ends] = layer.values[rows, :, places]
        self._held = None
        self.slots.lengths[:] = [length + 1 for length in self.lengths]

    def rewind(self, counts: Sequence[int]) -> None:
        """Drop that many of each row's last tokens."""
        self._held = None
        self.slots.lengths[:] = [length - count for length, count in zip(self.lengths, counts, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; a row may be named again and again, and the batch may grow by that."""
        moved = [(place, row) for place, row in enumerate(rows) if place != row]
        # Rows move one by one if none is overwritten before it is read: the last ones into the places of those that
        # leave, or copies behind the others. Nothing else is copied then.
        unharmed = {*range(len(rows), self.batch), *(row for place, row in enumerate(rows) if place == row)}
        one_by_one = all(row in unharmed for _, row in moved)
        for layer in self.written:
            if one_by_one:
                layer.hold(max(len(rows), self.batch))
                for place, row in moved:
                    # Alternatives that `keep` may still ask for lie behind the prefix, and move with it.
                    end = self._held[0][row] + self._held[1] if self._held else self.lengths[row]
                    layer.keys[place, :, :end] = layer.keys[row, :, :end]
                    layer.values[place, :, :end] = layer.values[row, :, :end]
                layer.hold(len(rows))
            else:
                layer.store(layer.keys[list(rows)], layer.values[list(rows)])
        self.slots.lengths[:] = [self.lengths[row] for row in rows]
        if self._held:
            self._held = ([self._held[0][row] for row in rows], self._held[1])

    def replace(self, places: Sequence[int], other: Any) -> None:
        """Put the rows of `other` (of the same model) at these places."""
        self._held = None
        self._reserve(max(other.lengths))
        for layer, source in zip(self.written, other.written, strict=True):
            for row, place in enumerate(places):
                length = other.lengths[row]
                layer.keys[place, :, :length] = source.keys[row, :, :length]
                layer.values[place, :, :length] = source.values[row, :, :length]
        for row, place in enumerate(places):
            self.lengths[place] = other.lengths[row]

    def _lengths_column(self, device: torch.device) -> Int[Tensor, "batch 1"]:
        return torch.tensor(self.lengths, device=device)[:, None]

    def _reserve(self, needed: int) -> None:
        if needed > self.capacity:
            # With a quarter to spare: all that is cached is copied each time.
            self.capacity = self._rounded(needed + self.capacity // 4)
            for layer in self.layers:
                layer.reserve(self.capacity)

    def _forward(
        self, token_ids: Tensor, positions: Tensor, new: Bool[Tensor, "*batch tokens tokens"] | None, **kwargs: Any
    ) -> ModelOutput:
        self._held = None
        self.slots.count = token_ids.shape[1]
        self._reserve(self.slots.end)
        forward: Callable[..., ModelOutput] = self.model
        # A batch that has lost rows goes on uncompiled: its shape may not come again.
        if (
            self.compiled
            and token_ids.shape[1] <= _STEP_TOKENS
            and self.batch == self.compiled_batch
            and min(self.lengths)
        ):
            forward = self.compiled
            self.slots.places = self._lengths_column(token_ids.device) + torch.arange(
                token_ids.shape[1], device=token_ids.device
            )
        output = forward(
            input_ids=token_ids,
            attention_mask=self._masks(positions, new),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **kwargs,
        )
        self.slots.places = None
        return output

    def _rounded(self, capacity: int) -> int:
        return capacity if self.compiled is None else -(-capacity // _ROOM) * _ROOM

    @property
    def _width(self) -> int:
        """Return how many slots the forward under way attends to."""
        return self.slots.end if self.slots.places is None else self.capacity

    def _masks(
        self, positions: Int[Tensor, "batch tokens"], new: Bool[Tensor, "*batch tokens tokens"] | None
    ) -> Tensor | dict[str, Tensor] | None:
        """Return what each new token may see, in the form the model takes.

        Args:
            positions: the new tokens' positions in their rows.
            new: which of the new tokens see which; None if every token sees all before it.
        """
        if new is None and self.window is None and self.slots.places is None:
            return None
        tokens, device = positions.shape[1], positions.device
        if new is None:
            new = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
        new = new.expand(self.batch, tokens, tokens)
        if self.slots.level and self.slots.places is None:
            old = self.slots.end - tokens
            sees = torch.cat([new.new_ones(self.batch, tokens, old), new], 2)
        else:
            # Rows of different length: from the left, slots hold a row's old tokens, then its new ones, then nothing.
            which = torch.arange(self._width, device=device) - self._lengths_column(device)
            new_slot = new.gather(2, which.clamp(0, tokens - 1)[:, None, :].expand(-1, tokens, -1))
            sees = (which < 0)[:, None, :] | (new_slot & ((which >= 0) & (which < tokens))[:, None, :])
        masks = {"full_attention": sees}
        if self.window is not None:
            # A window counts positions, and branches have positions other than their slots.
            which = torch.arange(self._width, device=device) - self._lengths_column(device)
            new_positions = positions.gather(1, which.clamp(0, tokens - 1))
            slot_positions = torch.where(which < 0, torch.arange(self._width, device=device), new_positions)
            masks["sliding_attention"] = sees & (positions[:, :, None] - slot_positions[:, None, :] < self.window)
        additive = {kind: _additive(masks[kind], self.model.dtype) for kind in self.layer_types}
        # One kind of layer: one mask, which every architecture passes on as it is. Two kinds: a dict by kind.
        return additive if len(additive) > 1 else additive.popitem()[1]


def _additive(sees: Bool[Tensor, "batch tokens slots"], dtype: torch.dtype) -> Float[Tensor, "batch 1 tokens slots"]:
    """Return 0 where a token is seen and the dtype's lowest number elsewhere, as sdpa and eager attention take it."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def pad(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Return token ids padded on the right (with id 0, which the mask hides) and the mask of real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return ids.to(device), mask.to(device)
