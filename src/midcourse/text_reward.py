"""Rewards of texts: at every step the candidates become texts, and whatever reads texts gives the rewards.

    TextReward         any function of a batch of texts
    FunctionReward     any function of the response alone
    ClassifierReward   a sequence-classification model of transformers with one label
    Retokenised        a scalar reward whose tokenizer is another than the language model's

The text of a response is what the language model's tokenizer decodes its tokens to, without special tokens and without
a last character whose bytes are not all there yet: a token that leaves one incomplete has the reward of the text
before that character. A candidate that ends the response has the text as it stands, and is finished.
"""

import copy
import importlib
import math
import sys
from collections.abc import Callable, Collection, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from midcourse.language_model import (
    LanguageModel,
    ModelError,
    context_length,
    load_config,
    load_tokenizer,
    quiet_transformers,
    resolve,
    resolve_device,
    resolve_dtype,
)
from midcourse.prefix_cache import PrefixCache, pad
from midcourse.prompt import Prefix, Prompt, Template, prompt_ids, response_ids
from midcourse.reward import RewardError, Score

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_NO_LIMIT = 2**20  # tokens of a row, where only its text is read


class Text(NamedTuple):
    """A prompt with a response, or with the beginning of one where it is not finished."""

    prompt: Prompt
    response: str
    finished: bool


TextScorer: TypeAlias = Callable[[Sequence[Text]], Sequence[float]]
_Key: TypeAlias = tuple[str, str, bool]  # a Text that can be looked up, though its prompt be a list of messages


# The text of a response


class _Anchor(NamedTuple):
    """A place to decode from: the tokens from `begin` to `end` decode to `known`, which follows the text `head`.

    Decoding starts at tokens that are known already, since the spaces of the next depend on them.
    """

    begin: int
    end: int
    head: str
    known: str


class _Point(NamedTuple):
    """A response after one of its tokens: its text, whether that is finished, and where to decode the next from."""

    text: str
    finished: bool
    complete: bool
    anchor: _Anchor


class ResponseText:
    """A response's tokens and its text after each of them; see the module for what that is.

    Args:
        eos_token_ids: the tokens that finish the text; they add nothing to it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int], token_ids: Sequence[int] = ()
    ):
        self.tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self.token_ids: list[int] = []
        self._points = [_Point("", False, True, _Anchor(0, 0, "", ""))]
        for token in token_ids:
            self.push(token)

    @property
    def now(self) -> _Point:
        """The text as it stands."""
        return self._points[-1]

    def after(self, token_id: int) -> _Point:
        """The text if this token came next."""
        now = self.now
        if token_id in self.eos_token_ids:
            return now._replace(finished=True)
        anchor = now.anchor
        near = self._decode([*self.token_ids[anchor.begin :], token_id])
        # Some tokenizers take characters back while bytes are missing: then all tokens are decoded.
        text = anchor.head + near if near.startswith(anchor.known) else self._decode([*self.token_ids, token_id])
        whole = text.rstrip(_INCOMPLETE)
        if whole == text:
            return _Point(whole, False, True, anchor)
        return _Point(max(now.text, whole, key=len), False, False, anchor)

    def push(self, token_id: int) -> None:
        """Append a token."""
        point = self.after(token_id)
        self.token_ids.append(token_id)
        self._points.append(point._replace(anchor=self._next_anchor(point)))

    def rewind(self, count: int) -> None:
        """Take that many tokens off the end."""
        kept = len(self.token_ids) - count
        del self.token_ids[kept:], self._points[kept + 1 :]

    def copy(self) -> "ResponseText":
        """The same response, to go on in another way."""
        other = copy.copy(self)
        other.token_ids, other._points = list(self.token_ids), list(self._points)
        return other

    def _next_anchor(self, point: _Point) -> _Anchor:
        """Behind the last token where new characters are complete with it; else the one before."""
        anchor, text = point.anchor, point.text
        # A tokenizer that cleans up spaces changes text far from where it decodes: there every text is decoded whole.
        grown = point.complete and not point.finished and text != anchor.head + anchor.known
        if not grown or self.tokenizer.clean_up_tokenization_spaces:
            return anchor
        known = self._decode(self.token_ids[anchor.end :])
        if not text.endswith(known):
            return anchor
        return _Anchor(anchor.end, len(self.token_ids), text[: len(text) - len(known)], known)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)


def _whole(
    tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int], response: str
) -> tuple[list[int], list[_Point]]:
    """The tokens of a whole response, EOS at the end, and its text after each of them."""
    text = ResponseText(tokenizer, eos_token_ids, response_ids(tokenizer, response, finished=True))
    return text.token_ids, text._points[1:]


def _as_score(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], rewards: Sequence[float]) -> Score:
    return Score(tuple(token_ids), tuple(tokenizer.decode([token]) for token in token_ids), tuple(rewards))


class _Rows:
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
        self.responses = [ResponseText(tokenizer, eos_token_ids, prefix.response_ids) for prefix in prefixes]
        self.device = device
        self.known: dict[_Key, float] = {}

    def read(self, asked: list[dict[_Key, Text]]) -> dict[_Key, float]:
        """The rewards of each row's texts, at least one per row."""
        raise NotImplementedError

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

    def _rewards(self, points: list[list[_Point]]) -> Float[Tensor, "batch texts"]:
        keys = [[(key, p.text, p.finished) for p in row] for key, row in zip(self.keys, points, strict=True)]
        if any(key not in self.known for row in keys for key in row):
            self.known = self.read(
                [{key: Text(prompt, *key[1:]) for key in row} for prompt, row in zip(self.prompts, keys, strict=True)]
            )
        values = [[self.known[key] for key in row] for row in keys]
        return torch.tensor(values, dtype=self.dtype, device=self.device)


# Functions of texts


class TextReward:
    """A reward computed from texts, by any function of a batch of them.

    At every step the function is asked once, for the distinct texts of all candidates of all rows. Rewards are float32.

    Args:
        score_texts: gives one number for each text, whatever its neighbours in the batch.
        name: for messages.
        template: how prompts have to be rendered for the language model; None where that makes no difference.
        context_length: the most tokens of the language model that a row may have.

    Example:
        >>> reward = TextReward(lambda texts: [-abs(len(text.response) - 80) / 20 for text in texts])
        >>> generate(lm, ["The ferry was late, and"], reward)[0].text
    """

    def __init__(
        self,
        score_texts: TextScorer,
        *,
        name: str = "text reward",
        template: Template | None = None,
        context_length: int = _NO_LIMIT,
    ):
        self.score_texts = score_texts
        self.name = name
        self.template = template
        self.context_length = context_length
        self.lm: LanguageModel | None = None

    def bind(self, lm: LanguageModel) -> "TextReward":
        """A copy that reads the tokens of `lm`."""
        bound = copy.copy(self)
        bound.lm = lm
        return bound

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> "TextRows":
        """Rows at these prefixes; RewardError where no language model is bound."""
        return TextRows(self, prefixes)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """The reward of every prefix of whole texts in the bound LM's tokens, each ended by EOS."""
        lm = self.bound()
        whole = [_whole(lm.tokenizer, lm.eos_token_ids, response) for response in responses]
        texts = [
            [Text(prompt, point.text, point.finished) for point in points]
            for prompt, (_, points) in zip(prompts, whole, strict=True)
        ]
        distinct = {_key(text): text for row in texts for text in row}
        known = dict(zip(distinct, self.ask(list(distinct.values())), strict=True))
        return [
            _as_score(lm.tokenizer, ids, [known[_key(text)] for text in row])
            for (ids, _), row in zip(whole, texts, strict=True)
        ]

    def bound(self) -> LanguageModel:
        """The language model whose tokens are read; RewardError where there is none yet."""
        if self.lm is None:
            raise RewardError(f"{self.name} reads no language model's tokens yet; use what bind(lm) returns")
        return self.lm

    def ask(self, texts: Sequence[Text]) -> list[float]:
        """The function's numbers, rounded to float32.

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
            raise RewardError(f"{self.name} returned {value!r} for the text {_brief(text)}; return a number")
        # Through float32, so that a text has the same reward in a score as in a batch of rows.
        rounded = torch.tensor(_as_float(value), dtype=torch.float32).item()
        if not math.isfinite(rounded):
            raise RewardError(
                f"{self.name} returned {value!r} for the text {_brief(text)}; return a finite float32 number"
            )
        return rounded


class TextRows(_Rows):
    """Rows under a reward of texts."""

    def __init__(self, reward: TextReward, prefixes: Sequence[Prefix]):
        lm = reward.bound()
        super().__init__(lm.tokenizer, lm.eos_token_ids, prefixes, lm.model.device)
        self.reward = reward

    def read(self, asked: list[dict[_Key, Text]]) -> dict[_Key, float]:
        texts = {key: text for row in asked for key, text in row.items()}
        new = {key: text for key, text in texts.items() if key not in self.known}
        found = dict(zip(new, self.reward.ask(list(new.values())), strict=True))
        return {key: found[key] if key in found else self.known[key] for key in texts}


class FunctionReward(TextReward):
    """The reward of a response is a plain function of its text; the prompt plays no part.

    Example:
        >>> reward = FunctionReward(lambda text: -text.count("!"))
        >>> reward = FunctionReward.load("my_rewards:politeness")
    """

    def __init__(self, function: Callable[[str], float]):
        name = getattr(function, "__name__", None) or repr(function)
        super().__init__(self._call_all, name=f"reward function {name}")
        self.function = function

    @classmethod
    def load(cls, name: str) -> "FunctionReward":
        """From "MODULE:FUNCTION"; modules are found in the working directory too.

        Raises:
            RewardError: no such module or function, or the module cannot be imported.
        """
        return cls(load_function(name))

    def _call_all(self, texts: Sequence[Text]) -> list[Any]:
        called = {text.response: self._call(text) for text in texts}
        return [called[text.response] for text in texts]

    def _call(self, text: Text) -> Any:
        try:
            return self.function(text.response)
        except Exception as error:
            raise RewardError(
                f"{self.name} raised {type(error).__name__}: {error} for the text {_brief(text)}; "
                "return a finite number for any text, an empty one too"
            ) from error


def load_function(name: str) -> Callable[[str], float]:
    """The function "MODULE:FUNCTION"; RewardError where it cannot be imported or called."""
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may raise anything when it is imported
        raise RewardError(f"no reward function {name!r} ({error}); use MODULE:FUNCTION") from error
    if not callable(found):
        raise RewardError(f"{name!r} is not a function; use MODULE:FUNCTION")
    return found


def _key(text: Text) -> _Key:
    return repr(text.prompt), text.response, text.finished


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer too large for any float
        return math.inf


def _brief(text: Text) -> str:
    response = text.response
    return repr(response if len(response) <= 60 else response[:60] + "...")


# Classifiers


class ClassifierReward(TextReward):
    """The one label of a sequence-classification model of transformers, with a tokenizer of its own.

    An encoder (BERT, RoBERTa, DeBERTa) reads both ways, so nothing of a text can be kept for the next: each step costs
    one padded forward over every `batch_size` distinct texts of all rows' candidates.

    Where the tokenizer has a separator, prompt and response are a text pair. Elsewhere, as for decoders, the response
    follows the prompt, and EOS a finished one: what `RewardModel.export` writes with the raw template is read so. Chat
    messages are their contents, joined by blank lines. A text too long for the model loses the prompt's beginning.

    Args:
        model: with num_labels=1 and a pad_token_id. It is set to eval mode.
        batch_size: texts of one forward.

    Raises:
        RewardError: the model has another number of labels, or nothing to pad with.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 64,
        name: str = "classifier",
    ):
        super().__init__(self._read_all, name=name)
        check_one_label(model.config.num_labels, name)
        if model.config.pad_token_id is None:
            raise RewardError(f"{name} has no pad_token_id in its config; set it to the one the model was trained with")
        if batch_size < 1:
            raise RewardError(f"batch-size {batch_size} holds no text; use 1 or more")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str = "auto", dtype: str = "auto", batch_size: int = 64
    ) -> "ClassifierReward":
        """From a folder or Hub id with safetensors weights.

        Raises:
            ModelError: no such model, device or dtype.
            RewardError: the model has another number of labels than one, or no trained head.
        """
        name, path, place = str(folder), resolve(str(folder)), resolve_device(device)
        check_one_label(load_config(path).num_labels, name)
        try:
            with quiet_transformers():
                model, report = AutoModelForSequenceClassification.from_pretrained(
                    path, dtype=resolve_dtype(dtype, place), use_safetensors=True, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0].split(". ")[0]
            raise ModelError(
                f"{name} cannot be loaded as a sequence classifier ({reason}); "
                "use a folder that holds one in safetensors"
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise RewardError(f"{name} has no weights for {missing[0]}; train its classification head first")
        return cls(model.to(place), load_tokenizer(path), batch_size=batch_size, name=name)

    @property
    def room(self) -> int:
        """The most tokens of a text."""
        return min(self.tokenizer.model_max_length, context_length(self.model.config))

    def encode(self, text: Text) -> tuple[list[int], list[int] | None]:
        """(token ids, token type ids where the model takes them) of a text.

        Raises:
            RewardError: the response alone exceeds the model's context.
        """
        prompt = as_plain_text(text.prompt)
        if self.tokenizer.sep_token_id is not None:
            pair = self.tokenizer(prompt, text.response, verbose=False)
            ids, types = pair["input_ids"], pair.get("token_type_ids")
            places = [i for i, part in enumerate(pair.sequence_ids(0)) if part == 0]
        else:
            before = prompt_ids(self.tokenizer, prompt, "raw")
            finished = text.finished and self.tokenizer.eos_token_id is not None
            ids, types = [*before, *response_ids(self.tokenizer, text.response, finished=finished)], None
            places = list(range(len(before)))
        over = max(len(ids) - self.room, 0)
        if over > len(places):
            raise RewardError(
                f"a response has {len(ids) - len(places)} tokens of {self.name}, which reads {self.room}; "
                "lower max_new_tokens"
            )
        cut = set(places[:over])
        return (
            [token for i, token in enumerate(ids) if i not in cut],
            types and [kind for i, kind in enumerate(types) if i not in cut],
        )

    @torch.inference_mode()
    def _read_all(self, texts: Sequence[Text]) -> list[float]:
        encoded = [self.encode(text) for text in texts]
        rewards = [math.nan] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i][0]))
        for begin in range(0, len(order), self.batch_size):
            part = order[begin : begin + self.batch_size]
            for i, reward in zip(part, self._read([encoded[i] for i in part]), strict=True):
                rewards[i] = reward
        return rewards

    def _read(self, rows: Sequence[tuple[list[int], list[int] | None]]) -> list[float]:
        ids, mask = pad([ids for ids, _ in rows], self.model.device)
        inputs = {"input_ids": ids.masked_fill(~mask, self.model.config.pad_token_id), "attention_mask": mask.long()}
        if types := [types for _, types in rows if types]:
            inputs["token_type_ids"], _ = pad(types, self.model.device)
        return self.model(**inputs).logits[:, 0].float().tolist()


def check_one_label(labels: int, name: str) -> None:
    """Raise RewardError where a classifier's output is not one number."""
    if labels != 1:
        raise RewardError(f"{name} has {labels} labels, a reward is one number; use a classifier with num_labels=1")


def as_plain_text(prompt: Prompt) -> str:
    """A text as it is; of chat messages the contents, joined by blank lines."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


# A scalar reward in other tokens


@runtime_checkable
class ScalarReward(Protocol):
    """What `Retokenised` asks of a reward: a causal backbone with a scalar read at every position."""

    backbone: Any
    tokenizer: Any

    @property
    def template(self) -> Template:
        """How prompts are rendered."""

    @property
    def context_length(self) -> int:
        """The most tokens of its own that a row may have."""

    def read(self, hidden: Float[Tensor, "*place hidden"]) -> Float[Tensor, "*place"]:
        """The reward at final hidden states."""

    def score_ids(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
        """The rewards at every response position of (prompt ids, response ids) rows."""


class Retokenised:
    """A scalar reward for a language model that writes other tokens than the reward reads.

    The response so far, with each candidate, is tokenised anew at every step, so its last tokens may change; what all
    candidates of a row share stays cached, and the rest of all rows is read in one forward.

    Args:
        reward: a causal scalar reward, such as a RewardModel.
        eos_token_ids: the tokens of the language model that end a text; its tokenizer's EOS by default. Each stands
            for the EOS of the reward's tokenizer.
    """

    def __init__(
        self,
        reward: ScalarReward,
        lm_tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: Collection[int] | None = None,
    ):
        self.reward = reward
        self.lm_tokenizer = lm_tokenizer
        self.eos_token_ids = frozenset([lm_tokenizer.eos_token_id] if eos_token_ids is None else eos_token_ids)

    @property
    def template(self) -> Template:
        """That of the reward."""
        return self.reward.template

    @property
    def context_length(self) -> int:
        """That of the reward, in its own tokens; every text is checked when it is read."""
        return self.reward.context_length

    def bind(self, lm: LanguageModel) -> "Retokenised":
        """Itself: it was made for one language model's tokens."""
        return self

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> "RetokenisedRows":
        """Read the prefixes; RewardError where one is too long in the reward's tokens."""
        return RetokenisedRows(self, prefixes, max_new_tokens + candidates)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """The reward of every prefix of whole texts in the LM's tokens, ended by EOS; each is read from scratch."""
        return [self._score(*texts) for texts in zip(prompts, responses, strict=True)]

    def _score(self, prompt: Prompt, response: str) -> Score:
        before = prompt_ids(self.reward.tokenizer, prompt, self.template)
        ids, points = _whole(self.lm_tokenizer, self.eos_token_ids, response)
        rows = [self.encode(before, point.text, point.finished) for point in points]
        # The reward is read at a row's last token, which is the prompt's where the response is still empty.
        rewards = self.reward.score_ids([(row[:-1], row[-1:]) for row in rows])
        return _as_score(self.lm_tokenizer, ids, [row[0].item() for row in rewards])

    def encode(self, before: Sequence[int], response: str, finished: bool) -> list[int]:
        """The reward's token ids of a prompt's ids and a response; RewardError where they exceed its context."""
        ids = [*before, *response_ids(self.reward.tokenizer, response, finished=finished)]
        if len(ids) > (room := self.context_length):
            raise RewardError(
                f"prompt and response have {len(ids)} tokens of the reward's tokenizer, its context is {room}; "
                "shorten the prompt or lower max_new_tokens"
            )
        return ids


class RetokenisedRows(_Rows):
    """Rows under a reward with tokens of its own.

    Attributes:
        before: the prompts in the reward's tokens.
        cached: each row's tokens in the cache.
    """

    def __init__(self, reward: Retokenised, prefixes: Sequence[Prefix], room: int):
        backbone, tokenizer = reward.reward.backbone, reward.reward.tokenizer
        super().__init__(reward.lm_tokenizer, reward.eos_token_ids, prefixes, backbone.device)
        self.reward = reward
        self.dtype = torch.promote_types(backbone.dtype, torch.float32)
        self.before = [prompt_ids(tokenizer, prompt, reward.template) for prompt in self.prompts]
        now = [response.now for response in self.responses]
        self.cached = [reward.encode(ids, p.text, p.finished) for ids, p in zip(self.before, now, strict=True)]
        self.cache = PrefixCache(backbone, len(prefixes), max(map(len, self.cached)) + room)
        token_ids, _ = pad(self.cached, self.device)
        hidden = self.cache.extend(token_ids, counts := [len(ids) for ids in self.cached]).last_hidden_state
        rewards = self.reward.reward.read(hidden[range(len(counts)), [count - 1 for count in counts]])
        keys = [(key, p.text, p.finished) for key, p in zip(self.keys, now, strict=True)]
        self.known = dict(zip(keys, rewards.tolist(), strict=True))

    def read(self, asked: list[dict[_Key, Text]]) -> dict[_Key, float]:
        """One forward; the cache then holds what the texts of each row share."""
        rows = [
            [self.reward.encode(before, text.response, text.finished) for text in row.values()]
            for before, row in zip(self.before, asked, strict=True)
        ]
        # At least the last token of each text is read, since the reward is read there.
        shared = [min(_shared(row), min(map(len, row)) - 1) for row in rows]
        # Padding has positions too, and a model may have none beyond its context: a row near the end of it shares less
        # and reads some again, where others need that much padding.
        depth = max(len(ids) - n for row, n in zip(rows, shared, strict=True) for ids in row)
        shared = [min(n, self.reward.context_length - depth) for n in shared]
        kept = [_shared([old, row[0][:n]]) for old, row, n in zip(self.cached, rows, shared, strict=True)]
        ahead = max(n - keep for n, keep in zip(shared, kept, strict=True))
        kept = [min(keep, self.reward.context_length - ahead) for keep in kept]

        self.cache.rewind([len(old) - keep for old, keep in zip(self.cached, kept, strict=True)])
        self.cached = [row[0][:n] for row, n in zip(rows, shared, strict=True)]
        first, _ = pad([ids[keep:] for ids, keep in zip(self.cached, kept, strict=True)], self.device)
        ends = [[ids[n:] for ids in row] for row, n in zip(rows, shared, strict=True)]
        rewards = self._branches(ends, first, [n - keep for n, keep in zip(shared, kept, strict=True)])
        found: dict[_Key, float] = {}
        for row, values in zip(asked, rewards, strict=True):
            found.update(zip(row, values, strict=True))
        return found

    def _branches(
        self, ends: list[list[list[int]]], first: Int[Tensor, "batch first"], counts: list[int]
    ) -> list[list[float]]:
        """The rewards at the last tokens of each row's alternative ends, which follow `first`."""
        width = max(map(len, ends))
        filled = [end for row in ends for end in [*row, *[[0]] * (width - len(row))]]
        token_ids, _ = pad(filled, self.device)
        branches = token_ids.view(len(ends), width, -1)
        hidden = self.cache.branches(branches, first, counts).last_hidden_state[:, first.shape[1] :]
        last = torch.tensor([len(end) - 1 for end in filled], device=self.device)
        at_ends = hidden.reshape(len(filled), token_ids.shape[1], -1)[range(len(filled)), last]
        rewards = self.reward.reward.read(at_ends).view(len(ends), width).tolist()
        return [values[: len(row)] for row, values in zip(ends, rewards, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.cache.select(rows)
        self.before = [self.before[row] for row in rows]
        self.cached = [self.cached[row] for row in rows]

    def replace(self, places: Sequence[int], other: Any) -> None:
        super().replace(places, other)
        self.cache.replace(places, other.cache)
        for row, place in enumerate(places):
            self.before[place], self.cached[place] = other.before[row], other.cached[row]


def _shared(rows: Sequence[list[int]]) -> int:
    """The length of the longest beginning that all rows have: what the first and the last in order share."""
    first, last = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
