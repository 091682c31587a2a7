"""The prefixes of a batch of rows in the model's own cache, a row at a time: for layers that keep a state.

Linear attention, state-space layers and convolutions fold all that a row has read into one state, which siblings cannot
share and padding would spoil; chunks, local windows and ALiBi go by where tokens lie in a cache. Here no row is padded,
every forward is one that the model itself would do, alternatives are copies of their row, and going back is to take up
an earlier state, or to read the row again if none is kept. So whatever transformers can continue can be guided, at a
forward for each row that stands elsewhere than its neighbours.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin
from transformers.modeling_outputs import ModelOutput

from midcourse.errors import MidcourseError

KEPT = 4  # earlier states of a row: to read its last token again takes one
HELD = Cache | CacheLayerMixin | LinearAttentionCacheLayerMixin
NAMES = ("past_key_values", "cache_params")  # what models call their caches


@dataclass(frozen=True)
class _Row:
    """A row that has been read.

    Attributes:
        token_ids: all of its tokens.
        states: the model's cache, a batch of one, by how many tokens it has read; the last few of them.
    """

    token_ids: tuple[int, ...] = ()
    states: Mapping[int, Any] = field(default_factory=dict)

    @property
    def state(self) -> Any | None:
        """Return the cache of all tokens; None if there are none."""
        return self.states.get(len(self.token_ids))

    def after(self, token_ids: Sequence[int], state: Any) -> "_Row":
        """Return the row with more tokens."""
        whole = (*self.token_ids, *token_ids)
        kept = dict(list(self.states.items())[1 - KEPT :])
        return _Row(whole, {**kept, len(whole): state})

    def before(self, count: int) -> "_Row":
        """Return the row without its last tokens, as far as a state is known: it may have fewer than that."""
        length = len(self.token_ids) - count
        known = {read: state for read, state in self.states.items() if read <= length}
        return replace(self, token_ids=self.token_ids[: max(known, default=0)], states=known)


class RowCache:
    """Cached prefixes of `batch` rows under `model`, as `PrefixCache` has them, by forwards of whole rows alone.

    Args:
        positions: whether the model is told the positions of its tokens. Some count them wrongly behind a cache, and
            some, which begin elsewhere than at 0, have to count for themselves.
    """

    def __init__(self, model: PreTrainedModel, batch: int, *, positions: bool):
        self.model, self.positions = model, positions
        self.name = cache_name(model)
        self.selects = "logits_to_keep" in signature(model.forward).parameters
        self.rows = [_Row()] * batch
        self._offered: list[Any] | None = None
        self._tokens: Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        """Return each row's tokens in the cache."""
        return [len(row.token_ids) for row in self.rows]

    def extend(
        self, token_ids: Int[Tensor, "batch tokens"], counts: Sequence[int] | None = None, **kwargs: Any
    ) -> ModelOutput:
        """Append tokens to every row's prefix; see `PrefixCache.extend`."""
        self._offered = None
        counts = counts or [token_ids.shape[1]] * len(self.rows)
        kwargs = _with_places(kwargs, token_ids.shape[1])
        own = [ids[:count] for ids, count in zip(token_ids.tolist(), counts, strict=True)]
        outputs, self.rows = self._read(self.rows, own, kwargs)
        return _stacked(outputs, token_ids.shape[1], kwargs.get("logits_to_keep"))

    def branches(
        self,
        token_ids: Int[Tensor, "batch branches depth"],
        first: Int[Tensor, "batch first"] | None = None,
        counts: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Return the output at alternative continuations of each row; see `PrefixCache.branches`."""
        batch, k, depth = token_ids.shape
        waiting = 0 if first is None else first.shape[1]
        places = _with_places(kwargs, waiting + k * depth).pop("logits_to_keep", None)
        kwargs.pop("logits_to_keep", None)
        begun = None
        if first is not None and waiting:
            begun = self.extend(first, counts, **kwargs)
        copies = [row for row in self.rows for _ in range(k)]
        if places is not None and not len(places):
            kwargs["logits_to_keep"] = places
        outputs, after = self._read(copies, token_ids.flatten(0, 1).tolist(), kwargs)
        if depth == 1:
            self._offered, self._tokens = [row.state for row in after], token_ids[:, :, 0]
        behind = _stacked(outputs, depth, kwargs.get("logits_to_keep"))
        joined: dict[str, Any] = {name: _side_by_side(value, batch) for name, value in behind.items()}
        if begun is not None:
            joined = {name: _behind(begun[name], value) for name, value in joined.items()}
        if places is not None and "logits" in joined:
            joined["logits"] = joined["logits"][:, places]
        return ModelOutput(**joined)

    def siblings(self, token_ids: Int[Tensor, "batch candidates"], **kwargs: Any) -> ModelOutput:
        """Return the output at k alternative next tokens per row; the prefix does not change."""
        return self.branches(token_ids[:, :, None], **kwargs)

    def keep(self, index: Int[Tensor, " batch"]) -> None:
        """Append to each row's prefix the alternative at `index` of the last `branches`, of one token each."""
        if self._offered is None or self._tokens is None:
            raise ValueError("keep() follows branches() of one token, with no other forward between them")
        k = self._tokens.shape[1]
        taken = zip(self.rows, index.tolist(), self._tokens.tolist(), strict=True)
        self.rows = [row.after([ids[i]], self._offered[n * k + i]) for n, (row, i, ids) in enumerate(taken)]
        self._offered = None

    def rewind(self, counts: Sequence[int]) -> None:
        """Drop that many of each row's last tokens. Where no state of that place is kept, the row is read again."""
        self._offered = None
        for place, count in enumerate(counts):
            if count:
                row = self.rows[place]
                ids, back = row.token_ids[: len(row.token_ids) - count], row.before(count)
                if missing := ids[len(back.token_ids) :]:
                    _, (back,) = self._read([back], [list(missing)], {})
                self.rows[place] = back

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; a row may be named again and again."""
        if self._offered is not None and self._tokens is not None:
            k = self._tokens.shape[1]
            self._offered = [self._offered[row * k + i] for row in rows for i in range(k)]
            self._tokens = self._tokens[list(rows)]
        self.rows = [self.rows[row] for row in rows]

    def replace(self, places: Sequence[int], other: Any) -> None:
        """Put the rows of `other` (of the same model) at these places."""
        self._offered = None
        for place, row in zip(places, other.rows, strict=True):
            self.rows[place] = row

    def _read(
        self, rows: Sequence[_Row], token_ids: Sequence[Sequence[int]], kwargs: Mapping[str, Any]
    ) -> tuple[list[ModelOutput], list[_Row]]:
        """Let rows read tokens of their own; return each one's output, a batch of one, and the row behind them.

        Rows that have read as many tokens, and read as many now, share a forward if their states have equal shapes.
        """
        alike: dict[tuple[Any, ...], list[int]] = {}
        for number, (row, ids) in enumerate(zip(rows, token_ids, strict=True)):
            alike.setdefault((len(row.token_ids), len(ids), *_shapes(row.state)), []).append(number)
        outputs: list[ModelOutput] = [ModelOutput()] * len(rows)
        after = list(rows)
        for (_, count, *_), numbers in alike.items():
            if not count:
                continue
            output, states = self._forward([rows[n] for n in numbers], [token_ids[n] for n in numbers], kwargs)
            for place, number in enumerate(numbers):
                outputs[number] = _row_of(output, place)
                after[number] = rows[number].after(token_ids[number], states[place])
        return outputs, after

    def _forward(
        self, rows: Sequence[_Row], token_ids: Sequence[Sequence[int]], kwargs: Mapping[str, Any]
    ) -> tuple[ModelOutput, list[Any]]:
        """Read tokens in one forward of the model over copies of the rows' states."""
        states = [row.state for row in rows]
        given = {} if states[0] is None else {self.name: mapped(states, torch.cat)}
        places = kwargs.get("logits_to_keep")
        more = {name: value for name, value in kwargs.items() if name != "logits_to_keep"}
        if places is not None:  # of the widest row; a row that is shorter has no such place
            places = places[places < len(token_ids[0])]
            if self.selects:
                more["logits_to_keep"] = places
        ids = torch.tensor([list(own) for own in token_ids], device=self.model.device)
        if self.positions:
            read = len(rows[0].token_ids)
            more["position_ids"] = torch.arange(read, read + ids.shape[1], device=ids.device).expand_as(ids)
        output = self.model(input_ids=ids, use_cache=True, **given, **more)
        cache = output[self.name]
        if places is not None and not self.selects:
            output["logits"] = output["logits"][:, places]
        return output, [mapped([cache], lambda parts, at=place: parts[0][at : at + 1]) for place in range(len(rows))]


def cache_name(model: PreTrainedModel) -> str:
    """Return what a model calls its cache; MidcourseError if it has none that can be continued."""
    known = signature(model.forward).parameters
    for name in NAMES:
        if name in known:
            return name
    raise MidcourseError(f"{model.config.model_type} has no cache that can be continued; use another model")


def mapped(parts: Sequence[Any], join: Callable[..., Tensor]) -> Any:
    """Return a cache whose every tensor is `join` of those of these caches, which stay as they are.

    Args:
        parts: caches, or what is at the same place in each: layers, lists and tables of tensors.
        join: a list of tensors, rows first, to one.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return join(list(parts)) if first.dim() and all(isinstance(part, Tensor) for part in parts) else first
    if isinstance(first, list | tuple):
        return type(first)(mapped(beside, join) for beside in zip(*parts, strict=True))
    if isinstance(first, dict):
        return {key: mapped([part[key] for part in parts], join) for key in first}
    if not isinstance(first, HELD):
        return first
    made = copy.copy(first)
    for name in vars(first):
        setattr(made, name, mapped([getattr(part, name) for part in parts], join))
    return made


def _shapes(part: Any) -> Iterator[torch.Size]:
    """Yield the shapes of a cache's tensors: some fold tokens together, as many as they were given at a time."""
    if isinstance(part, Tensor):
        yield part.shape
    elif isinstance(part, list | tuple | dict | HELD):
        inner = part if isinstance(part, list | tuple) else (part if isinstance(part, dict) else vars(part)).values()
        for one in inner:
            yield from _shapes(one)


# Outputs of rows, side by side


def _row_of(output: ModelOutput, place: int) -> ModelOutput:
    """Return a row of an output: its logits, last states and all states, those that there are."""
    found: dict[str, Any] = {}
    for name in ("logits", "last_hidden_state"):
        if output.get(name) is not None:
            found[name] = output[name][place : place + 1]
    if output.get("hidden_states") is not None:
        found["hidden_states"] = tuple(one[place : place + 1] for one in output.hidden_states)
    return ModelOutput(**found)


def _stacked(outputs: Sequence[ModelOutput], tokens: int, places: Tensor | None) -> ModelOutput:
    """Return rows of their own widths as one output, 0 behind a shorter row's end."""
    kept = tokens if places is None else len(places)
    like = next(output for output in outputs if output)
    found: dict[str, Any] = {}
    for name, value in like.items():
        if isinstance(value, tuple):
            columns = zip(*(output.get(name) or value for output in outputs), strict=True)
            found[name] = tuple(_padded(column, tokens) for column in columns)
        else:
            empty = value[:, :0]
            found[name] = _padded([output.get(name, empty) for output in outputs], kept if name == "logits" else tokens)
    return ModelOutput(**found)


def _padded(parts: Iterable[Tensor], width: int) -> Tensor:
    filled = [torch.cat([part, part.new_zeros(len(part), width - part.shape[1], *part.shape[2:])], 1) for part in parts]
    return torch.cat(filled)


def _side_by_side(values: Any, batch: int) -> Any:
    """Return (batch * k, depth, n) as (batch, k * depth, n); of a tuple each."""
    if isinstance(values, tuple):
        return tuple(_side_by_side(one, batch) for one in values)
    return values.reshape(batch, len(values) // batch * values.shape[1], *values.shape[2:])


def _behind(before: Any, after: Any) -> Any:
    if isinstance(before, tuple):
        return tuple(torch.cat(pair, 1) for pair in zip(before, after, strict=True))
    return torch.cat([before, after], 1)


def _with_places(kwargs: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Return a forward's settings with `logits_to_keep`, if it is there, as places among so many tokens."""
    kept = kwargs.get("logits_to_keep")
    if kept is None or isinstance(kept, Tensor):
        return dict(kwargs)
    places = torch.arange(tokens)[-kept:] if kept else torch.arange(tokens)
    return {**kwargs, "logits_to_keep": places}
