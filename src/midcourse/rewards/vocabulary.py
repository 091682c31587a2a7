"""A reward for every next token at once: a causal language model whose outputs are rewards.

One pass over one token rewards all of the vocabulary, while a scalar reward needs one over every candidate. FaRMA's
value head and GenARM's autoregressive reward model are of this kind.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from midcourse.lm.caches import AnyCache, check_supported
from midcourse.lm.contract import CausalModel
from midcourse.lm.language_model import (
    chat_fingerprint,
    context_length,
    eos_token_ids,
    log_probabilities,
    tokenizer_fingerprint,
)
from midcourse.lm.load import check_tokens, load_model, load_tokenizer
from midcourse.lm.prefix_cache import pad
from midcourse.lm.prompt import Arguments, Prefix, Template, end_of_turn
from midcourse.rewards.cached_rows import CachedRows
from midcourse.rewards.contract import check_finite, check_rendering
from midcourse.rewards.info import RewardError, check_arguments_used
from midcourse.rewards.token_ids import TokenReward

PLACES = 256  # whose rewards of the whole vocabulary are in memory at a time


class VocabularyReward(TokenReward):
    """A reward read from a causal LM: a prefix's is the output of `model` for its last token, one position before.

    Args:
        model: a causal LM of transformers. It is not changed.
        tokenizer: its tokenizer, which has to be the steered model's.
        normalised: rewards are log pi_r(v | prefix), as GenARM's are (Xu et al., GenARM, 2025, arXiv 2410.08193);
            otherwise the outputs themselves, as FaRMA's (Rashid et al., 2025, arXiv 2502.04517).
        name: for messages.

    Examples:
        >>> reward = VocabularyReward.load("my-autoregressive-reward", template="raw")
        >>> generate(lm, ["The ferry was late, and"], reward, method="genarm")[0].text
    """

    speaks_for_vocabulary = True
    name: str = "model"
    template: Template = "raw"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: Template = "raw",
        normalised: bool = True,
        name: str = "model",
    ):
        check_supported(model.config)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.template = template
        self.normalised = normalised
        self.name = name
        self.tokens = tokenizer_fingerprint(tokenizer)
        check_tokens(self.model, tokenizer, name)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        template: Template = "raw",
        normalised: bool = True,
        device: str = "auto",
        dtype: str = "auto",
        template_arguments: Arguments | None = None,
    ) -> "VocabularyReward":
        """Load a causal LM from a folder or Hub id; ModelError if there is none, or if it has another head beside."""
        check_arguments_used(template, template_arguments, str(name))
        model = load_model(AutoModelForCausalLM, str(name), device=device, dtype=dtype, other_heads=False)
        tokenizer = load_tokenizer(str(name), template_arguments)
        return cls(model, tokenizer, template=template, normalised=normalised, name=str(name))

    @property
    def models(self) -> Sequence[nn.Module]:
        """Return the model: one forward over one token rewards all of the vocabulary."""
        return [self.model]

    @property
    def additive(self) -> bool:
        """Return whether a text's reward is the sum of its tokens': of log-probabilities it is."""
        return self.normalised

    @property
    def eos_token_ids(self) -> list[int]:
        """Return every token that ends a text, first what ends one in this template."""
        first = end_of_turn(self.tokenizer, self.template)
        others = sorted(eos_token_ids(self.model.generation_config, self.tokenizer) - {first})
        return others if first is None else [first, *others]

    @property
    def context_length(self) -> int:
        """Return the length of the longest row that the model was made for, in tokens."""
        return context_length(self.model.config)

    def bind(self, lm: CausalModel) -> "VocabularyReward":
        """Return itself; RewardError if the LM writes other tokens, or renders or ends texts otherwise."""
        chat_template = chat_fingerprint(self.tokenizer)
        check_vocabulary(lm, self.name, self.tokens, self.template, chat_template, self.eos_token_ids)
        return self

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> "ModelVocabularyRows":
        """Read the prefixes; see `Reward.start`."""
        return ModelVocabularyRows(self, prefixes, max_new_tokens)

    def read(self, logits: Float[Tensor, "*place vocab"]) -> Float[Tensor, "*place vocab"]:
        """Return outputs as rewards of the next token; every end of a text has the same, see `ends_alike`."""
        if self.normalised:
            named = len(self.tokenizer)
            rewards = log_probabilities(logits, named)
            rewards[..., named:] = 0.0  # what has no text has no reward, which a weight could turn into no number
        else:
            rewards = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return ends_alike(rewards, self.eos_token_ids, together=self.normalised)

    def read_next(
        self, cache: AnyCache, token_ids: Int[Tensor, "batch tokens"], counts: Sequence[int], places: list[int]
    ) -> Float[Tensor, "batch places vocab"]:
        """Append tokens to cached rows; return the rewards of what may follow those at `places`."""
        keep = torch.tensor(places, device=token_ids.device)
        return self.read(cache.extend(token_ids, counts, logits_to_keep=keep).logits)

    def of_all(self, read: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """Return them."""
        return read

    def of_some(
        self, read: Float[Tensor, "batch vocab"], token_ids: Int[Tensor, "batch candidates"]
    ) -> Float[Tensor, "batch candidates"]:
        """Return those of some tokens."""
        return read.gather(1, token_ids)

    @torch.inference_mode()
    def score_ids(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int = 8, finite: bool = True
    ) -> list[Tensor]:
        """Return the rewards at every response position of (prompt ids, response ids) rows, on the CPU.

        Args:
            finite: raise RewardError, naming the row, if one is NaN or infinite.
        """
        by_row = []
        for begin in range(0, len(rows), batch_size):
            part = rows[begin : begin + batch_size]
            ids, mask = pad([[*prompt, *response] for prompt, response in part], self.model.device)
            rewards = self.read(self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits).cpu()
            for (prompt, response), row in zip(part, rewards, strict=True):
                before = range(len(prompt) - 1, len(prompt) + len(response) - 1)
                by_row.append(row[list(before), list(response)])
        if finite:
            check_finite(self.name, self.tokenizer, rows, by_row)
        return by_row


@runtime_checkable
class VocabularyModel(Protocol):
    """A reward with a model that reads prefixes and rewards every next token."""

    @property
    def model(self) -> Any:
        """Return what reads prefixes: a model of transformers."""

    @property
    def eos_token_ids(self) -> list[int]:
        """Return every token that ends a text, first the one that training wrote."""

    def read_next(
        self, cache: AnyCache, token_ids: Int[Tensor, "batch tokens"], counts: Sequence[int], places: list[int]
    ) -> Float[Tensor, "batch places read"]:
        """Append tokens to cached rows; return what the rewards of tokens that follow those at `places` are read from.

        That is the rewards themselves, or states of which each token's reward is read by itself.
        """

    def of_all(self, read: Float[Tensor, "batch read"]) -> Float[Tensor, "batch vocab"]:
        """Return the rewards of all next tokens."""

    def of_some(
        self, read: Float[Tensor, "batch read"], token_ids: Int[Tensor, "batch candidates"]
    ) -> Float[Tensor, "batch candidates"]:
        """Return the rewards of some next tokens."""


def check_vocabulary(
    lm: CausalModel,
    name: str,
    tokens: str,
    template: Template | None,
    chat_template: str | None,
    eos_token_ids: Collection[int],
) -> None:
    """Raise RewardError if an LM's tokens, rendering or ends of texts are not those of a vocabulary reward."""
    if tokens != lm.tokens:
        raise RewardError(
            f"{name} rewards the tokens of its own vocabulary, {lm.name} writes others; a vocabulary reward "
            "guides only models with its tokenizer, so use one of those or a scalar reward"
        )
    check_rendering(lm, name, template, chat_template, eos_token_ids)


def ends_alike(
    rewards: Float[Tensor, "*place vocab"], eos_token_ids: Sequence[int], *, together: bool = False
) -> Float[Tensor, "*place vocab"]:
    """Return the rewards, in which every end of a text has the same.

    Args:
        together: rewards are log-probabilities, and an end has the probability of any of its ends; otherwise it has the
            reward of the first of `eos_token_ids`, which training wrote.
    """
    if len(eos_token_ids) < 2:
        return rewards
    ends = torch.tensor(eos_token_ids, device=rewards.device)
    end = rewards[..., ends].logsumexp(-1) if together else rewards[..., eos_token_ids[0]]
    return rewards.index_copy(-1, ends, end[..., None].expand(*rewards.shape[:-1], len(ends)))


@torch.no_grad()
def best_tokens(reward: Any, states: Float[Tensor, "places hidden"]) -> Int[Tensor, " places"]:
    """Return the token of the highest reward after each state, of few places at a time: all would fill the memory.

    The maximum's gradient is that of its token's reward, so nothing else has to be kept for it.
    """
    tokens = torch.cat([reward.vocabulary_rewards(part).argmax(-1) for part in states.split(PLACES)])
    ends = torch.tensor(reward.info.all_eos, device=tokens.device)
    return tokens.masked_fill(torch.isin(tokens, ends), reward.info.eos_token_id)


class ModelVocabularyRows(CachedRows):
    """Rows under a vocabulary reward: one forward over the newest token of each.

    Attributes:
        next: what the rewards of next tokens are read from; None if a forward has to give it first.
        current: the rewards of the prefixes; None if they have to be read.
        size: how many tokens have a reward.
    """

    def __init__(self, reward: VocabularyModel, prefixes: Sequence[Prefix], room: int):
        super().__init__(reward.model, prefixes, room, reward.eos_token_ids)
        self.reward, self.size = reward, reward.model.get_input_embeddings().num_embeddings
        self.next: Tensor | None = None
        self.current: Tensor | None = None
        self._read()

    def vocabulary_rewards(self) -> Float[Tensor, "batch vocab"]:
        return self.reward.of_all(self._next())

    def candidate_rewards(self, token_ids: Int[Tensor, "batch candidates"]) -> Float[Tensor, "batch candidates"]:
        known = self.as_trained(token_ids.clamp(max=self.size - 1))  # ids beyond have no text, and no chance
        return self.reward.of_some(self._next(), known)

    def prefix_rewards(self) -> Float[Tensor, " batch"]:
        if self.current is None:
            self.forget(2)
            self._read()
        assert self.current is not None
        return self.current

    def advance(self, token_ids: Int[Tensor, " batch"]) -> None:
        token_ids = self.as_trained(token_ids)
        self.append(token_ids)
        self.current = None if self.next is None else self.reward.of_some(self.next, token_ids[:, None])[:, 0]
        self.next = None

    def rewind(self, counts: Sequence[int]) -> None:
        super().rewind(counts)
        self.forget(1)
        self.next, self.current = None, None

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.next = None if self.next is None else self.next[list(rows)]
        self.current = None if self.current is None else self.current[list(rows)]

    def replace(self, places: Sequence[int], other: Any) -> None:
        super().replace(places, other)
        for name in ("next", "current"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None and theirs is not None:
                mine[list(places)] = theirs
            else:
                setattr(self, name, None)
        if self.next is None:
            self.forget(1)

    def _next(self) -> Tensor:
        if self.next is None:
            self._read()
        assert self.next is not None
        return self.next

    def _read(self) -> None:
        """Read the waiting tokens; keep what is said of next tokens, and the reward of the last if two tokens waited.

        A row that is a lone token has no token before it, and the reward 0.
        """
        token_ids, counts = self.waiting()
        device = token_ids.device
        places = sorted({place for count in counts for place in (count - 1, count - 2) if place >= 0})
        read = self.reward.read_next(self.cache, token_ids, counts, places)
        rows = range(len(counts))
        self.next = read[rows, [places.index(count - 1) for count in counts]]
        if all(count > 1 or len(ids) == 1 for count, ids in zip(counts, self.ids, strict=True)):
            last = torch.tensor([ids[-1] for ids in self.ids], device=device)
            before = [places.index(max(count - 2, 0)) for count in counts]
            known = torch.tensor([len(ids) > 1 for ids in self.ids], device=device)
            self.current = torch.where(known, self.reward.of_some(read[rows, before], last[:, None])[:, 0], 0.0)
