"""Rewards of texts: at every step the candidates become texts, and whatever reads texts gives the rewards.

TextReward         any function of a batch of texts
FunctionReward     any function of the response alone
ClassifierReward   a sequence-classification model of transformers
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from numbers import Real
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from midcourse.errors import short_value
from midcourse.lm.contract import CausalModel
from midcourse.lm.prompt import Prefix, Prompt, Template, response_ids, turn_of
from midcourse.lm.text import Point, ResponseText, token_texts
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.contract import NO_LIMIT, Reward, Score, Text, short
from midcourse.rewards.gold import as_float, named_function
from midcourse.rewards.info import RewardError

TextScorer: TypeAlias = Callable[[Sequence[Text]], Sequence[float]]
Key: TypeAlias = tuple[str, str, bool]  # a Text that can be looked up, though its prompt be a list of messages


def whole_response(
    tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int], response: str
) -> tuple[list[int], list[Point]]:
    """Return the tokens of a whole response, EOS at the end, and its text after each of them."""
    text = ResponseText(tokenizer, eos_token_ids, response_ids(tokenizer, response, finished=True))
    return text.token_ids, text.points[1:]


def as_score(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], rewards: Sequence[float]) -> Score:
    return Score(tuple(token_ids), token_texts(tokenizer, token_ids), tuple(rewards))


def _response(tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int], prefix: Prefix) -> ResponseText:
    lead = turn_of(tokenizer, prefix.prompt, prefix.template).lead if prefix.template else ""
    return ResponseText(tokenizer, eos_token_ids, prefix.response_ids, prefix.prompt_ids, lead)


class ResponseRows(ABC):
    """Rows of responses as texts. A text of the last reading is not read again.

    Args:
        device: of the rewards.
    """

    dtype = torch.float32

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: Collection[int],
        prefixes: Sequence[Prefix],
        device: torch.device,
    ):
        self.prompts = [prefix.prompt for prefix in prefixes]
        self.keys = [repr(prompt) for prompt in self.prompts]
        self.responses = [_response(tokenizer, eos_token_ids, prefix) for prefix in prefixes]
        self.device = device
        self.known: dict[Key, float] = {}

    @abstractmethod
    def read(self, asked: list[dict[Key, Text]]) -> dict[Key, float]:
        """Return the rewards of each row's texts, at least one per row."""

    def candidate_rewards(self, token_ids: Int[Tensor, "batch candidates"]) -> Float[Tensor, "batch candidates"]:
        rows = zip(self.responses, token_ids.tolist(), strict=True)
        return self._rewards([[response.after(token) for token in tokens] for response, tokens in rows])

    def prefix_rewards(self) -> Float[Tensor, " batch"]:
        return self._rewards([[response.now] for response in self.responses])[:, 0]

    def advance(self, token_ids: Int[Tensor, " batch"]) -> None:
        for response, token in zip(self.responses, token_ids.tolist(), strict=True):
            response.push(token)

    def rewind(self, counts: Sequence[int]) -> None:
        for response, count in zip(self.responses, counts, strict=True):
            response.rewind(count)

    def select(self, rows: Sequence[int]) -> None:
        self.prompts = [self.prompts[row] for row in rows]
        self.keys = [self.keys[row] for row in rows]
        self.responses = [self.responses[row].copy() for row in rows]

    def replace(self, places: Sequence[int], other: Any) -> None:
        for row, place in enumerate(places):
            self.prompts[place], self.keys[place] = other.prompts[row], other.keys[row]
            self.responses[place] = other.responses[row].copy()
        self.known = {**self.known, **other.known}

    def _rewards(self, points: list[list[Point]]) -> Float[Tensor, "batch texts"]:
        keys = [[(key, p.text, p.finished) for p in row] for key, row in zip(self.keys, points, strict=True)]
        if any(key not in self.known for row in keys for key in row):
            self.known = self.read(
                [{key: Text(prompt, *key[1:]) for key in row} for prompt, row in zip(self.prompts, keys, strict=True)]
            )
        values = [[self.known[key] for key in row] for row in keys]
        return torch.tensor(values, dtype=self.dtype, device=self.device)


# Functions of texts


class TextReward(Reward):
    """A reward computed from texts, by any function of a batch of them.

    At every step the function is asked once, for the distinct texts of all candidates of all rows. Rewards are float32.

    Attributes:
        calibration: what `score` shows beside the rewards, if it was trained by midcourse.

    Args:
        score_texts: gives one number for each text, whatever its neighbours in the batch.
        name: for messages.
        template: how prompts have to be rendered for the language model; None if that makes no difference.
        context_length: the most tokens of the language model that a row may have.

    Examples:
        >>> reward = TextReward(lambda texts: [-abs(len(text.response) - 80) / 20 for text in texts])
        >>> generate(lm, ["The ferry was late, and"], reward)[0].text
    """

    every_prefix = False
    name: str = "text reward"
    template: Template | None = None
    context_length: int = NO_LIMIT
    calibration: Calibration | None = None
    remedy = "return a finite float32 number"

    def __init__(
        self,
        score_texts: TextScorer,
        *,
        name: str = "text reward",
        template: Template | None = None,
        context_length: int = NO_LIMIT,
    ):
        self.score_texts = score_texts
        self.name = name
        self.template = template
        self.context_length = context_length
        self.lm: CausalModel | None = None

    @property
    def score_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the bound language model's tokenizer; None until one is bound."""
        return self.lm and self.lm.tokenizer

    def bind(self, lm: CausalModel) -> "TextReward":
        """Return a copy that reads the tokens of `lm`."""
        bound = copy.copy(self)
        bound.lm = lm
        return bound

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> "TextRows":
        """Begin at these prefixes; RewardError if no language model is bound."""
        return TextRows(self, prefixes)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """Return the reward of every prefix of whole texts in the bound LM's tokens, each ended by EOS."""
        lm = self.bound()
        whole = [whole_response(lm.tokenizer, lm.eos_token_ids, response) for response in responses]
        texts = [
            [Text(prompt, point.text, point.finished) for point in points]
            for prompt, (_, points) in zip(prompts, whole, strict=True)
        ]
        distinct = {_key(text): text for row in texts for text in row}
        known = dict(zip(distinct, self.ask(list(distinct.values())), strict=True))
        return [
            as_score(lm.tokenizer, ids, [known[_key(text)] for text in row])
            for (ids, _), row in zip(whole, texts, strict=True)
        ]

    def bound(self) -> CausalModel:
        """Return the language model whose tokens are read; RewardError if there is none yet."""
        if self.lm is None:
            raise RewardError(f"{self.name} reads no language model's tokens yet; use what bind(lm) returns")
        return self.lm

    @property
    def room(self) -> int | None:
        """Return the most tokens of a text that are read; None if texts are read whole."""
        return None

    def within(self, max_tokens: int) -> "TextReward":
        """Return a copy that reads at most so many tokens of a text; itself, if texts are read whole."""
        return self

    def lost(self, text: Text) -> int:
        """Return how many tokens of its prompt are not read."""
        return 0

    def rate(self, texts: Sequence[Text]) -> list[float]:
        """Return the reward of each text, an empty one too; no language model has to be bound."""
        return self.ask(texts)

    def ask(self, texts: Sequence[Text]) -> list[float]:
        """Return the function's numbers, rounded to float32.

        Raises:
            RewardError: it returned another count of numbers, something else, or none that is finite.
        """
        if not texts:
            return []
        values = list(self.score_texts(texts))
        if len(values) != len(texts):
            raise RewardError(f"{self.name} returned {len(values)} numbers for {len(texts)} texts; return one for each")
        return [self._checked(text, value) for text, value in zip(texts, values, strict=True)]

    def _checked(self, text: Text, value: Any) -> float:
        if not isinstance(value, Real):
            raise RewardError(
                f"{self.name} returned {short_value(value)} for the text {short(text.response)}; return a number"
            )
        # Through float32, so that a text has the same reward in a score as in a batch of rows.
        rounded = torch.tensor(as_float(value), dtype=torch.float32).item()
        if not math.isfinite(rounded):
            raise RewardError(
                f"{self.name} returned {short_value(value)} for the text {short(text.response)}; {self.remedy}"
            )
        return rounded


class TextRows(ResponseRows):
    """Rows under a reward of texts."""

    def __init__(self, reward: TextReward, prefixes: Sequence[Prefix]):
        lm = reward.bound()
        super().__init__(lm.tokenizer, lm.eos_token_ids, prefixes, lm.device)
        self.reward = reward

    def read(self, asked: list[dict[Key, Text]]) -> dict[Key, float]:
        texts = {key: text for row in asked for key, text in row.items()}
        new = {key: text for key, text in texts.items() if key not in self.known}
        answers = dict(zip(new, self.reward.ask(list(new.values())), strict=True))
        return {key: answers[key] if key in answers else self.known[key] for key in texts}


class FunctionReward(TextReward):
    """A reward that is a plain function of the response's text; the prompt plays no part.

    Examples:
        >>> reward = FunctionReward(lambda text: -text.count("!"))
        >>> reward = FunctionReward.load("my_rewards:politeness")
    """

    def __init__(self, function: Callable[[str], float]):
        name = getattr(function, "__name__", None) or repr(function)
        super().__init__(self._call_all, name=f"reward function {name}")
        self.function = function

    @classmethod
    def load(cls, name: str) -> "FunctionReward":
        """Load "vader", "profanity" or "MODULE:FUNCTION"; modules are found in the working directory too.

        Raises:
            RewardError: no such module or function, or a module that cannot be imported.
        """
        return cls(named_function(name))

    def _call_all(self, texts: Sequence[Text]) -> list[Any]:
        called = {text.response: self._call(text) for text in texts}
        return [called[text.response] for text in texts]

    def _call(self, text: Text) -> Any:
        try:
            return self.function(text.response)
        except Exception as error:
            raise RewardError(
                f"{self.name} raised {type(error).__name__}: {error} for the text {short(text.response)}; "
                "return a finite number for any text, an empty one too"
            ) from error


def _key(text: Text) -> Key:
    return repr(text.prompt), text.response, text.finished
