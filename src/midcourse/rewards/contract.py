"""The contract of a reward: what decoding, training and evaluation may ask of anything that rewards prefixes.

Kinds, all of which keep the laws of `midcourse.testing`:

    scalar        one number at every position                     scalar.RewardModel
    vocabulary    one number for every possible next token         vocabulary.VocabularyReward, trained_vocabulary
    trunk         a number for a next token, from the LM's state   trunk.TrunkReward
    implicit      the log-ratio of two language models             implicit.ImplicitReward
    text          a number for a text, whatever computes it        text.TextReward, classifier.ClassifierReward
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from midcourse.lm.contract import CausalModel, CausalRows
from midcourse.lm.language_model import chat_fingerprint
from midcourse.lm.prompt import Prefix, Prompt, Template
from midcourse.progress import Advance, silent
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.info import RewardError

NO_LIMIT = 2**20  # tokens of a row, if nothing limits them


@runtime_checkable
class RewardRows(Protocol):
    """A batch of rows under a reward, each at some prefix."""

    def candidate_rewards(self, token_ids: Int[Tensor, "batch candidates"]) -> Float[Tensor, "batch candidates"]:
        """Return the reward of every row's prefix extended by each of its candidates."""

    def prefix_rewards(self) -> Float[Tensor, " batch"]:
        """Return the reward of every row's prefix as it stands."""

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
        """Return the reward of every row's prefix extended by each token of the vocabulary."""


@dataclass
class FollowedRows:
    """The language model's rows that a reward of its states guides; whoever moves the rows keeps this up to date.

    Attributes:
        rows: a batch of the language model's.
        places: which of them the reward guides, in the order of the reward's rows.
    """

    rows: CausalRows
    places: list[int] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """Return how many tokens of each row the language model has read."""
        return [self.rows.lengths[place] for place in self.places]

    def states(self, layer: int) -> Float[Tensor, "batch hidden"]:
        """Return the state of each row's last token."""
        return self.rows.states[layer][self.places]

    def previous(self, layer: int) -> Float[Tensor, "batch hidden"]:
        """Return the state of the token before each row's last."""
        return self.rows.previous[layer][self.places]

    def read_states(self, layer: int) -> Float[Tensor, "batch tokens hidden"]:
        """Return the states of all tokens that the rows were started with."""
        return self.rows.read_states[layer][self.places]

    def siblings(
        self, token_ids: Int[Tensor, "batch candidates"], layer: int
    ) -> Float[Tensor, "batch candidates hidden"]:
        """Return the states of alternative next tokens, by a forward of the language model that keeps none of them.

        A step of the language model's that takes alternatives for all its rows then costs nothing more.
        """
        if self.places == list(range(len(self.rows.lengths))):
            return self.rows.siblings(token_ids, layer)
        whole = token_ids.new_zeros(len(self.rows.lengths), token_ids.shape[1])  # other rows read any token
        whole[self.places] = token_ids
        return self.rows.siblings(whole, layer)[self.places]


@runtime_checkable
class StateReader(RewardRows, Protocol):
    """Rows that read the language model's own hidden states: those of a reward that names a `layer`."""

    def follow(self, followed: FollowedRows) -> None:
        """Go along with these rows of the language model, which have just been started at the same prefixes."""


class Text(NamedTuple):
    """A prompt with a response, or with the beginning of one if it is not finished."""

    prompt: Prompt
    response: str
    finished: bool


@runtime_checkable
class Reward(Protocol):
    """Anything that gives every prefix a reward. `midcourse.testing` holds the laws it has to pass.

    A kind that derives from this class defines `bind`, `start` and `score`, and of the rest what is not as here.
    """

    @property
    def name(self) -> str:
        """Return what messages call the reward."""
        return type(self).__name__

    @property
    def template(self) -> Template | None:
        """Return how prompts were rendered in training and must be in decoding; None if that makes no difference."""
        return None

    @property
    def context_length(self) -> int:
        """Return the most tokens that a row may have, prompt and response together."""
        return NO_LIMIT

    @property
    def score_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer of the tokens that `score` rewards; None: that of the language model to be bound."""
        return None

    @property
    def additive(self) -> bool:
        """Return whether it rewards tokens: a text's reward is the sum of its tokens', else that of its last prefix."""
        return False

    @property
    def every_prefix(self) -> bool:
        """Return whether one forward over a text rewards all its prefixes; otherwise each is read by itself."""
        return True

    @property
    def reward_weight(self) -> float | None:
        """Return the weight to guide at if none is asked for; None if nothing speaks for one."""
        return None

    @property
    def soft_value_weight(self) -> float | None:
        """Return the weight w at which the reward is exact, (1/w) log E exp(w R); None if it is no soft value."""
        return None

    @property
    def calibration(self) -> Calibration | None:
        """Return what turns rewards into probabilities for a reader; None if none is stored with it."""
        return None

    @property
    def layer(self) -> int | None:
        """Return after how many layers it reads the language model's own states; None if it reads none.

        The rows of a reward with a layer are `StateReader`s.
        """
        return None

    @property
    def speaks_for_vocabulary(self) -> bool:
        """Return whether its rows reward every token of the vocabulary at once, and are `VocabularyRows`."""
        return False

    @property
    def models(self) -> Sequence[nn.Module]:
        """Return the models whose forwards are the cost of guiding with it."""
        return ()

    def bind(self, lm: CausalModel) -> "Reward":
        """Return this reward as it reads the tokens of `lm`; RewardError if it cannot guide that model."""

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> RewardRows:
        """Begin at these prefixes; at most `candidates` candidates will be asked for at a time."""

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list["Score"]:
        """Return the reward of every prefix of whole texts."""

    def rate(self, texts: Sequence[Text]) -> list[float]:
        """Return the reward of each response as a whole: of the finished text, or if it was cut of the prefix it is."""
        scores = self.score([text.prompt for text in texts], [text.response for text in texts])
        return [score.of_response(text.finished) for score, text in zip(scores, texts, strict=True)]

    def rate_alone(self, texts: Sequence[str], advance: Advance = silent) -> "Alone":
        """Return the reward of each finished text without a prompt, and what else was read of it.

        Args:
            advance: told of every text that was read, perhaps in parts.
        """
        rewards = self.rate([Text("", text, True) for text in texts])
        advance(len(texts))
        return Alone(rewards, None, [1] * len(texts))

    def of_tokens(self, text: str) -> "Score":
        """Return what each token of a text without a prompt adds to the reward, the first to 0; no EOS among them."""
        score = self.score([""], [text])[0].without_end()
        if score.additive:
            return score
        before = (0.0, *score.rewards[:-1])
        changes = tuple(now - then for now, then in zip(score.rewards, before, strict=True))
        return replace(score, rewards=changes, additive=True)


class Alone(NamedTuple):
    """What is read of texts without a prompt.

    Attributes:
        rewards: of each.
        features: of each what the reward is made of, (texts, features); None for kinds that have none.
        windows: in how many parts each was read, one after the other; 1 if at once.
    """

    rewards: list[float]
    features: np.ndarray | None
    windows: list[int]


@dataclass(frozen=True)
class Score:
    """Rewards of a response's prefixes: `rewards[i]` is the reward of the prefix that ends with token i.

    Attributes:
        additive: `rewards[i]` is the reward of token i alone, and a text's reward is the sum of its tokens'.
    """

    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    rewards: tuple[float, ...]
    additive: bool = False

    @property
    def prefixes(self) -> tuple[float, ...]:
        """Return the reward of every prefix: if rewards are of tokens, what has added up until there."""
        return tuple(accumulate(self.rewards)) if self.additive else self.rewards

    @property
    def whole(self) -> float:
        """Return the reward of the whole text; without tokens, the sum is 0."""
        return self.prefixes[-1] if self.rewards or not self.additive else 0.0

    def without_end(self) -> "Score":
        """Return the score without the last token, a finished text's EOS: no earlier reward depends on it."""
        return replace(self, token_ids=self.token_ids[:-1], texts=self.texts[:-1], rewards=self.rewards[:-1])

    def of_response(self, finished: bool) -> float:
        """Return the reward of the finished text or, if it was cut, of the prefix before the EOS.

        A cut response without a token is worth the empty sum, 0, if rewards add up. If they are of prefixes it has none
        of its own, and counts as the finished text.
        """
        cut = not finished and (self.additive or len(self.rewards) > 1)
        return self.without_end().whole if cut else self.whole


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


def checked_rewards(reward: Reward, asked: str, answer: Any, shape: Sequence[int], tokens: int = 0) -> Tensor:
    """Return what a reward's rows answered; RewardError if it is no tensor of rewards of that shape.

    Args:
        asked: the method of `RewardRows` or `VocabularyRows` that answered; rewards of a vocabulary may be of more
            tokens than the language model has, or of fewer: one tokenizer's vocabulary is padded to different sizes.
        tokens: how many of these have a text.
    """
    if isinstance(answer, Tensor) and answer.ndim == len(shape):
        if asked == "vocabulary_rewards" and len(answer) == shape[0] and tokens <= answer.shape[1]:
            missing = shape[1] - answer.shape[1]
            return answer if missing <= 0 else torch.nn.functional.pad(answer, (0, missing))
        if tuple(answer.shape) == tuple(shape):
            return answer
    raise RewardError(
        f"{asked} of {reward.name} returned {described(answer)}; return the rewards as a tensor of shape {tuple(shape)}"
    )


def described(answer: Any) -> str:
    """Return what a function returned instead of a tensor of the right shape, for a message."""
    if isinstance(answer, Tensor):
        return f"a tensor of {answer.dtype} of shape {tuple(answer.shape)}"
    return "None" if answer is None else f"an object of type {type(answer).__name__}"


def short(text: str) -> str:
    """Quote a text for a message, at most 60 characters of it."""
    return repr(text if len(text) <= 60 else text[:60] + "...")


def check_rendering(
    lm: CausalModel, name: str, template: Template | None, chat_template: str | None, eos_token_ids: Collection[int]
) -> None:
    """Raise RewardError if the LM's chat template or ends of texts are not those a reward was trained with.

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
