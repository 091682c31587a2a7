"""Rows of a reward with a model of its own, whose prefixes are cached; what scalar and vocabulary rewards share."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from midcourse.lm.caches import start_cache
from midcourse.lm.prefix_cache import pad
from midcourse.lm.prompt import Prefix


class CachedRows:
    """Rows whose prefixes are cached under a model. What was advanced by without being read waits for the next forward.

    Attributes:
        ids: each row's tokens; the cache holds the first of them.
    """

    def __init__(self, model: PreTrainedModel, prefixes: Sequence[Prefix], room: int, eos_token_ids: Sequence[int]):
        self.eos_token_id, *other = eos_token_ids or [-1]
        self.ids = [
            [*prefix.prompt_ids, *(self.eos_token_id if i in other else i for i in prefix.response_ids)]
            for prefix in prefixes
        ]
        self.cache = start_cache(model, len(prefixes), max(map(len, self.ids)) + room)
        self.other_eos = torch.tensor(other, device=model.device, dtype=torch.long)

    def as_trained(self, token_ids: Tensor) -> Tensor:
        """Replace every token that ends a text by the one that training wrote."""
        if not len(self.other_eos):
            return token_ids
        return token_ids.masked_fill(torch.isin(token_ids, self.other_eos), self.eos_token_id)

    def waiting(self) -> tuple[Int[Tensor, "batch tokens"], list[int]]:
        """Return the tokens not read yet, padded, and how many they are in each row."""
        rows = [ids[length:] for ids, length in zip(self.ids, self.cache.lengths, strict=True)]
        return pad(rows, self.other_eos.device)[0], [len(row) for row in rows]

    def append(self, token_ids: Int[Tensor, " batch"]) -> None:
        """Put a token at the end of each row, to be read later."""
        for ids, token in zip(self.ids, token_ids.tolist(), strict=True):
            ids.append(token)

    def rewind(self, counts: Sequence[int]) -> None:
        self.ids = [ids[: len(ids) - count] for ids, count in zip(self.ids, counts, strict=True)]
        self.forget(0)

    def forget(self, tokens: int) -> None:
        """Have the cache hold none of each row's last tokens, so that they wait to be read again."""
        kept = [
            min(length, max(len(ids) - tokens, 0)) for ids, length in zip(self.ids, self.cache.lengths, strict=True)
        ]
        self.cache.rewind([length - keep for length, keep in zip(self.cache.lengths, kept, strict=True)])

    def select(self, rows: Sequence[int]) -> None:
        self.cache.select(rows)
        self.ids = [list(self.ids[row]) for row in rows]

    def replace(self, places: Sequence[int], other: Any) -> None:
        self.cache.replace(places, other.cache)
        for place, ids in zip(places, other.ids, strict=True):
            self.ids[place] = ids
