"""The contract of a language model: what decoding asks of it, whatever runtime stands behind it.

`lm.language_model` keeps it with transformers; `midcourse.testing` holds the laws that any other has to keep too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@runtime_checkable
class CausalRows(Protocol):
    """A batch of rows under a language model, each a prompt and what has been appended to it."""

    @property
    def logprobs(self) -> Float[Tensor, "batch vocab"]:
        """Return the log-probabilities of each row's next token, over the whole vocabulary."""

    @property
    def lengths(self) -> Sequence[int]:
        """Return how many tokens of each row have been read."""

    @property
    def states(self) -> Mapping[int, Float[Tensor, "batch hidden"]]:
        """Return, by layer, the hidden state of each row's last token; behind the last layer it is normalised."""

    @property
    def previous(self) -> Mapping[int, Float[Tensor, "batch hidden"]]:
        """Return, by layer, the hidden state of the token before each row's last."""

    @property
    def read_states(self) -> Mapping[int, Float[Tensor, "batch tokens hidden"]]:
        """Return, by layer, the hidden states of all tokens that the rows were started with, until another call."""

    def step(self, token_ids: Int[Tensor, " batch"]) -> None:
        """Append one token to every row."""

    def siblings(
        self, token_ids: Int[Tensor, "batch candidates"], layer: int
    ) -> Float[Tensor, "batch candidates hidden"]:
        """Return a layer's hidden states at alternative next tokens, in one forward; the rows stay as they are.

        Each is what `states` would hold after a `step` with that alternative. If the next `step` takes alternatives, it
        may cost nothing more.
        """

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; a row may be named again and again."""

    def replace(self, places: Sequence[int], other: Any) -> None:
        """Put the rows of `other`, of the same model, at these places."""

    def rewind(
        self,
        counts: Sequence[int],
        logprobs: Float[Tensor, "batch vocab"],
        states: Mapping[int, Float[Tensor, "batch hidden"]],
    ) -> None:
        """Take that many tokens off the end of each row.

        Args:
            logprobs, states: what these were of each row there, as whoever goes back has kept them. `previous` is not
                known there before the next step.
        """


@runtime_checkable
class CausalModel(Protocol):
    """A frozen causal language model with its tokenizer."""

    @property
    def name(self) -> str:
        """Return what the model was loaded from, for messages."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the model's tokenizer."""

    @property
    def tokens(self) -> str:
        """Return the tokenizer's fingerprint: rewards with the same one read this model's token ids as they are."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Return every token id that ends a response."""

    @property
    def context_length(self) -> int:
        """Return the most tokens that a row may have, prompt and response together."""

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens that have a log-probability."""

    @property
    def device(self) -> torch.device:
        """Return the device of `logprobs` and states."""

    def start(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, layers: Sequence[int] = ()) -> CausalRows:
        """Read a batch of prompts (token ids, none empty) and be ready for `max_new_tokens` more per row.

        Args:
            layers: after how many layers hidden states are to be kept, for rewards that read them.
        """
