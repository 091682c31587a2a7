"""The hidden states that training does not change: computed once, kept on disk, shared by heads and seeds.

If only the head is trained, these are the backbone's final states at the response positions (of a trunk reward, at
the positions before them); if the last layers are trained too, the states that enter those layers, at all positions.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from midcourse.data.encoded import EncodedRow
from midcourse.files import cache_folder, whole_file
from midcourse.lm.prefix_cache import pad
from midcourse.progress import progress
from midcourse.rewards.backbone import Tuning, base_of, halves_of, state_width
from midcourse.rewards.trained import Top, TrainedReward
from midcourse.train import processes
from midcourse.train.shards import check_room, make_room, open_shard, reserve

SHARD_ROWS = 128
BATCH_ROWS = 16


class Split(NamedTuple):
    """A backbone in two: `bottom` is frozen (ids to states), `top` is trained (states to rewards).

    Attributes:
        response_only: the states are those of the response's tokens, not of the whole row's.
        before: they are those of the tokens before, and `top` takes the tokens too.
    """

    bottom: nn.Module
    top: nn.Module
    frozen_layers: int
    response_only: bool
    before: bool = False


def split(reward: TrainedReward) -> Split | None:
    """Split the reward's backbone into frozen bottom and trained top; None if nothing below the head is frozen."""
    tuning = Tuning.parse(reward.info.tune)
    if not reward.every_prefix:
        return None  # it has no states of tokens to keep
    layers = reward.backbone.config.num_hidden_layers
    if tuning.kind == "head":
        return Split(reward.backbone, reward.top(None), layers, True, before=reward.speaks_for_vocabulary)
    whole = base_of(reward.backbone)
    if tuning.depth in (None, layers) or not hasattr(whole, "layers"):
        return None
    bottom, above = halves_of(whole, tuning.depth)
    made = Split(bottom, reward.top(above), layers - tuning.depth, False)
    return made if _equals_whole(made, reward) else None


@torch.inference_mode()
def _equals_whole(made: Split, reward: TrainedReward) -> bool:
    """Return whether top after bottom is the whole backbone: not so if an architecture adds something to its input."""
    ids = torch.arange(8, device=reward.device)[None] + 5
    states = made.bottom(input_ids=ids, use_cache=False).last_hidden_state
    assert isinstance(made.top, Top)
    have = made.top.hidden(states)
    want = reward.backbone(input_ids=ids, use_cache=False).last_hidden_state
    return torch.allclose(have, want, rtol=1e-3, atol=1e-3)


class FrozenStates:
    """The bottom's states of some rows, read from disk; computed first if they are not there yet.

    Rows are stored in shards named by a hash of backbone, depth and rows, so what was interrupted goes on, and what
    another run has computed is found. See `train.shards` for what keeps them bounded and true.
    """

    def __init__(self, reward: TrainedReward, made: Split, rows: Sequence[EncodedRow]):
        self.rows = rows
        self.lengths = [_width(row, made) for row in rows]
        self.starts = [0 if made.response_only else len(row.prompt) for row in rows]
        folder = cache_folder() / "states"
        folder.mkdir(parents=True, exist_ok=True)
        shards = [rows[begin : begin + SHARD_ROWS] for begin in range(0, len(rows), SHARD_ROWS)]
        common = _holds(reward, made)
        holds = [{**common, "rows": _rows_hash(shard)} for shard in shards]
        paths = [folder / f"{_shard_key(what)}.safetensors" for what in holds]
        config = reward.backbone.config
        behind_all = made.frozen_layers == config.num_hidden_layers
        hidden = state_width(config) if behind_all else config.hidden_size
        shapes = [(sum(_width(row, made) for row in shard), hidden) for shard in shards]
        size = reward.backbone.dtype.itemsize
        check_room(sum(map(math.prod, shapes)) * size, len(rows))
        reserve(folder, [path.name for path in paths], self)
        wanted = list(zip(paths, holds, shapes, strict=True))
        lacking = processes.once(lambda: [n for n, one in enumerate(wanted) if open_shard(*one) is None])
        processes.once(lambda: make_room(folder, sum(math.prod(shapes[n]) for n in lacking) * size))
        mine = processes.part(lacking)  # each shard is computed in one process

        def compute() -> None:
            total = sum(len(shards[n]) for n in mine)
            with progress("hidden states", total, quiet=not processes.first()) as advance:
                for n in mine:
                    _write_shard(reward, made, shards[n], holds[n], paths[n], advance)

        processes.everywhere(compute)
        self._files = [safe_open(path, framework="pt") for path in paths]
        self._tensors = [file.get_slice("states") for file in self._files]
        self._offsets = [0]
        for length in self.lengths:
            self._offsets.append(self._offsets[-1] + length)
        self._shard_begins = [self._offsets[begin] for begin in range(0, len(rows), SHARD_ROWS)]

    def batch(self, numbers: Sequence[int]) -> Float[Tensor, "rows tokens hidden"]:
        """Return the states of some rows, padded with zeros on the right."""
        return nn.utils.rnn.pad_sequence([self._row(number) for number in numbers], batch_first=True)

    def _row(self, number: int) -> Float[Tensor, "tokens hidden"]:
        shard = number // SHARD_ROWS
        begin = self._shard_begins[shard]
        return self._tensors[shard][self._offsets[number] - begin : self._offsets[number + 1] - begin]


def _width(row: EncodedRow, made: Split) -> int:
    return len(row.response) + (0 if made.response_only else len(row.prompt))


def _holds(reward: TrainedReward, made: Split) -> dict[str, str]:
    """Return what shards hold, as their metadata say it beside their rows: states of which model, up to where."""
    info = reward.info
    return {
        "backbone": info.backbone_fingerprint,
        "layers": f"{made.frozen_layers} of {info.layers}",
        "modules": hashlib.sha256(str(made.bottom).encode()).hexdigest(),  # with its final norm, or without
        "positions": "response" if made.response_only else "all",
        "shift": "before" if made.before else "none",
        "dtype": str(reward.backbone.dtype),
    }


def _rows_hash(shard: Sequence[EncodedRow]) -> str:
    return hashlib.sha256(json.dumps([[row.prompt, row.response] for row in shard]).encode()).hexdigest()


def _shard_key(holds: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(holds, sort_keys=True).encode()).hexdigest()[:32]


@torch.inference_mode()
def _write_shard(
    reward: TrainedReward,
    made: Split,
    shard: Sequence[EncodedRow],
    holds: dict[str, str],
    path: Path,
    advance: Callable[[int], None],
) -> None:
    states: list[Tensor] = [torch.empty(0)] * len(shard)
    order = sorted(range(len(shard)), key=lambda i: len(shard[i].prompt) + len(shard[i].response))
    for begin in range(0, len(order), BATCH_ROWS):
        part = order[begin : begin + BATCH_ROWS]
        ids, mask = pad([shard[i].prompt + shard[i].response for i in part], reward.device)
        hidden = made.bottom(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.cpu()
        for i, row in zip(part, hidden, strict=True):
            end = len(shard[i].prompt) + len(shard[i].response) - made.before
            states[i] = row[end - _width(shard[i], made) : end].clone()
        advance(len(part))
    with whole_file(path) as temporary:
        save_file({"states": torch.cat(states)}, temporary, metadata=holds)
