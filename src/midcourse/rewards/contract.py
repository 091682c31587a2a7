"""The contract of a reward: what decoding, training and evaluation may ask of anything that rewards prefixes.

Kinds, all of which keep the laws of `midcourse.testing`:

    scalar        one number at every position                     reward_model.RewardModel
    vocabulary    one number for every possible next token         vocabulary_reward.VocabularyReward
    trunk         a number for a next token, from the LM's state   trunk_reward.TrunkReward
    text          a number for a text, whatever computes it        text_reward.TextReward
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from midcourse.errors import MidcourseError
from midcourse.lm.language_model import LanguageModel, LanguageModelRows, chat_fingerprint
from midcourse.lm.prompt import Prefix, Prompt, Template


class RewardError(MidcourseError):
    """A reward that cannot be loaded, or does not fit the language model or the call."""


@runtime_checkable
class RewardRows(Protocol):
    """A batch of rows under a reward, each at some prefix."""

    def candidate_rewards(self, token_ids: Int[Tensor, "batch candidates"]) -> Float[Tensor, "batch candidates"]:
        """The reward of every row's prefix extended by each of its candidates."""

    def prefix_rewards(self) -> Float[Tensor, " batch"]:
        """The reward of every row's prefix as it stands."""

    def advance(self, token_ids: Int[Tensor, " batch"]) -> None:
        """Extend every row's prefix by a token. One of the last `candidate_rewards` call costs nothing more."""

    def rewind(self, counts: Sequence[int]) -> None:
        """Take that many tokens off the end of each row's prefix, at most those of the response."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; a row may be named again and again."""

    def replace(self, places: Sequence[int], other: Any) -> None:
        """Put the rows of `other` (of the same reward) at these places."""


@runtime_checkable
class VocabularyRows(RewardRows, Protocol):
    """Rows whose reward speaks for every token of the vocabulary at once."""

    def vocabulary_rewards(self) -> Float[Tensor, "batch vocab"]:
        """The reward of every row's prefix extended by each token of the vocabulary."""


@runtime_checkable
class StateReader(Protocol):
    """Rows that read the language model's own hidden states."""

    def follow(self, lm_rows: LanguageModelRows) -> None:
        """Go along with these rows of the language model, which keep the states of the reward's layer."""


@runtime_checkable
class ReadsStates(Protocol):
    """A reward whose rows are StateReaders."""

    @property
    def layer(self) -> int:
        """After how many layers of the language model the states are read."""


@runtime_checkable
class Reward(Protocol):
    """Anything that gives every prefix a reward. `midcourse.testing` holds the laws it has to pass."""

    @property
    def template(self) -> Template | None:
        """How prompts were rendered in training, and must be at decoding; None where that makes no difference."""

    @property
    def context_length(self) -> int:
        """The most tokens a row may have, prompt and response together."""

    def bind(self, lm: LanguageModel) -> "Reward":
        """This reward as it reads the tokens of `lm`; RewardError where it cannot guide that model."""

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> RewardRows:
        """Begin at these prefixes; at most `candidates` candidates will be asked for at a time."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list["Score"]:
        """The reward of every prefix of whole texts."""


@dataclass(frozen=True)
class Score:
    """Rewards of a response's prefixes: `rewards[i]` is that of the prefix ending with token i.

    Attributes:
        additive: `rewards[i]` is that of token i, and a text's is the sum of its tokens'.
    """

    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    additive: bool = False

    @property
    def prefixes(self) -> tuple[float, ...]:
        """The reward of every prefix: what has added up until there, where rewards are of tokens."""
        return tuple(accumulate(self.rewards)) if self.additive else self.rewards

    @property
    def whole(self) -> float:
        """The reward of the whole text."""
        return self.prefixes[-1]

    def without_end(self) -> "Score":
        """Less the last token, a finished text's EOS: what was read before the end does not depend on it."""
        return replace(self, token_ids=self.token_ids[:-1], texts=self.texts[:-1], rewards=self.rewards[:-1])


def check_finite(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    rewards: Sequence[Tensor],
) -> None:
    """Raise RewardError, naming the model and the row, if a reward is NaN or infinite.

    Args:
        rows: (prompt ids, response ids).
        rewards: of every response token of each row.
    """
    for (prompt, response), row in zip(rows, rewards, strict=True):
        broken = row[~row.isfinite()]
        if len(broken):
            before, text = (short(tokenizer.decode(list(ids))) for ids in (prompt, response))
            raise RewardError(
                f"the reward is {broken[0].item()}, no finite number: {name} gives it to the response {text} after the "
                f"prompt {before}; restore the weights, train it again, or try --dtype float32"
            )


def short(text: str) -> str:
    """Quote a text for a message, at most 60 characters of it."""
    return repr(text if len(text) <= 60 else text[:60] + "...")


def adds_up(reward: Reward) -> bool:
    """Whether it rewards tokens, and a text's reward is the sum of its tokens'; otherwise that of its last prefix."""
    return getattr(reward, "additive", False)


def check_rendering(
    lm: LanguageModel, name: str, template: Template | None, chat_template: str | None, eos_token_ids: Collection[int]
) -> None:
    """Raise RewardError where the LM's chat template or ends of texts are not those a reward was trained with.

    Args:
        name: of the reward's backbone.
        chat_template: its fingerprint.
        eos_token_ids: every token that ended a text in training.
    """
    remedy = f"train a reward with --backbone {lm.name}, or guide the model it was made for"
    if template in ("chat", "mixed") and chat_fingerprint(lm.tokenizer) != chat_template:
        raise RewardError(f"the reward was trained with the chat template of {name}, {lm.name} has another; {remedy}")
    if unknown := sorted(lm.eos_token_ids - set(eos_token_ids)):
        raise RewardError(f"{lm.name} also ends texts with the token ids {unknown}, {name} does not; {remedy}")
