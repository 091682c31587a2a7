"""Responses that keep to a JSON schema or a regular expression, by llguidance (pip install 'midcourse[grammar]')."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from midcourse.errors import MidcourseError

_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_MATCHERS = 256  # kept; another one is made from the response if it is needed again


class GrammarError(MidcourseError):
    """A grammar that cannot be used."""


def json_grammar(
    tokenizer: PreTrainedTokenizerBase, schema: Mapping[str, Any], eos_token_ids: Collection[int] | None = None
) -> "Grammar":
    """Return a logits processor under which every finished response is JSON that is valid under the schema.

    Spaces are those that `json.dumps` writes, so that no response runs on in white space. One that is cut at its
    length limit may be unfinished JSON: bound the schema's strings and arrays.

    Raises:
        GrammarError: llguidance is not installed, or cannot use the schema or the tokenizer.

    Examples:
        >>> schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
        >>> generate(lm, prompts, reward, logits_processor=json_grammar(lm.tokenizer, schema, lm.eos_token_ids))
    """
    matcher = _llguidance().LLMatcher
    return Grammar(
        tokenizer, matcher.grammar_from_json_schema(json.dumps(dict(schema)), overrides=_SPACES), eos_token_ids
    )


def regex_grammar(
    tokenizer: PreTrainedTokenizerBase, pattern: str, eos_token_ids: Collection[int] | None = None
) -> "Grammar":
    """Return a logits processor under which every finished response matches the pattern (Rust's regex syntax).

    Raises:
        GrammarError: as by `json_grammar`.

    Examples:
        >>> generate(lm, prompts, reward, logits_processor=regex_grammar(lm.tokenizer, "(yes|no)[.]"))
    """
    return Grammar(tokenizer, _llguidance().LLMatcher.grammar_from_regex(pattern), eos_token_ids)


class Grammar:
    """A logits processor that leaves only tokens with which the response still begins a text of the grammar.

    EOS is possible only where the text may end, and is all that is possible where it has to.

    Rows are asked in any order, may join, leave and go back. The processor is told no prompt: ids that are those of an
    earlier call and one possible token more go on with that response, any others are a prompt. So use one object for
    one call of `generate`, and do not decode a prompt together with that prompt and the beginning of its answer.

    Args:
        tokenizer: the language model's.
        grammar: in llguidance's own notation.
        eos_token_ids: every token that ends a response under the language model; None for the tokenizer's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, grammar: str, eos_token_ids: Collection[int] | None = None):
        llguidance = _llguidance()
        if problem := llguidance.LLMatcher.validate_grammar(grammar):
            raise GrammarError(f"llguidance cannot use this grammar ({problem.splitlines()[0]}); change it")
        ends = sorted(eos_token_ids) if eos_token_ids is not None else [tokenizer.eos_token_id]
        try:
            vocabulary = llguidance.hf.from_tokenizer(tokenizer, eos_token=ends)
        except ValueError as error:
            raise GrammarError(f"llguidance cannot use this tokenizer ({error}); use a fast one with EOS") from error
        self._fresh = llguidance.LLMatcher(vocabulary, grammar)
        self._starts: dict[bytes, int] = {}  # where the response begins in ids that were asked about
        self._matchers: OrderedDict[bytes, Any] = OrderedDict()  # the latest of these

    def __call__(
        self, token_ids: Int[Tensor, "batch tokens"], logprobs: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Return the log-probabilities (or scores) with -inf at impossible tokens.

        Args:
            token_ids: prompt and response of each row; left padding counts as prompt.
        """
        possible = np.zeros(tuple(logprobs.shape), dtype=bool)
        for row, ids in zip(possible, token_ids.tolist(), strict=True):
            matcher = self._matcher(ids)
            mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            if error := matcher.get_error():
                raise GrammarError(f"llguidance gave this grammar up ({error.splitlines()[0]}); use a simpler one")
            # A model's vocabulary may be padded beyond the tokenizer's, and a mask is padded to whole words.
            tokens = np.unpackbits(mask, bitorder="little")[: len(row)]
            row[: len(tokens)] = tokens
        return logprobs.masked_fill(~torch.from_numpy(possible).to(logprobs.device), float("-inf"))

    def _matcher(self, ids: list[int]) -> Any:
        """Return the matcher that has read the response in these ids."""
        here = _key(ids)
        if here not in self._starts:
            before = _key(ids[:-1])
            start = self._starts.get(before)
            matcher = None if start is None else self._advanced(ids, before, start)
            # What the grammar does not allow was not drawn under it: a prompt that begins as another row.
            self._starts[here] = len(ids) if matcher is None or start is None else start
            self._keep(here, matcher or self._fresh.deep_copy())
        elif here not in self._matchers:
            self._keep(here, self._read(ids[self._starts[here] :]))
        self._matchers.move_to_end(here)
        return self._matchers[here]

    def _advanced(self, ids: list[int], before: bytes, start: int) -> Any | None:
        """Return the matcher of `ids[:-1]`, one token on; None if the grammar does not allow the token."""
        matcher = self._matchers[before] if before in self._matchers else self._read(ids[start:-1])
        if not matcher.validate_tokens(ids[-1:]):
            return None
        # Moved on, not copied: it is made anew only if rows part, or one goes back.
        self._matchers.pop(before, None)
        matcher.consume_token(ids[-1])
        return matcher

    def _read(self, response: list[int]) -> Any:
        matcher = self._fresh.deep_copy()
        matcher.consume_tokens(response)
        return matcher

    def _keep(self, key: bytes, matcher: Any) -> None:
        self._matchers[key] = matcher
        if len(self._matchers) > _MATCHERS:
            self._matchers.popitem(last=False)


def _key(ids: list[int]) -> bytes:
    """Return a key of ids, as short for many as for few: a response is asked about at every one of its tokens."""
    return hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16).digest()


def _llguidance() -> Any:
    try:
        import llguidance.hf
    except ImportError as error:
        raise GrammarError("grammars need llguidance; install it with pip install 'midcourse[grammar]'") from error
    return llguidance
