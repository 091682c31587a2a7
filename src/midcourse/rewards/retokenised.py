"""A scalar reward of prefixes whose tokenizer is another than the language model's."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from midcourse.lm.caches import start_cache
from midcourse.lm.contract import CausalModel
from midcourse.lm.prefix_cache import pad
from midcourse.lm.prompt import Prefix, Prompt, Rendered, Template, render, response_ids
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.contract import Reward, Score, Text
from midcourse.rewards.info import RewardError
from midcourse.rewards.text import Key, ResponseRows, as_score, whole_response


@runtime_checkable
class ScalarReward(Protocol):
    """What `Retokenised` asks of a reward: a causal backbone with a scalar read at every position."""

    backbone: Any
    tokenizer: Any
    name: str

    @property
    def template(self) -> Template:
        """Return how prompts are rendered."""

    @property
    def reward_weight(self) -> float | None:
        """Return the weight to guide at."""

    @property
    def soft_value_weight(self) -> float | None:
        """Return the weight at which it is an exact soft value."""

    @property
    def additive(self) -> bool:
        """Return whether it rewards tokens, and a text by their sum."""

    @property
    def models(self) -> Sequence[nn.Module]:
        """Return the models that guiding with it runs."""

    @property
    def context_length(self) -> int:
        """Return the most tokens, in its own tokenizer, that a row may have."""

    def read(self, hidden: Float[Tensor, "*place hidden"]) -> Float[Tensor, "*place"]:
        """Return the reward at final hidden states."""

    def score_ids(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
        """Return the rewards at every response position of (prompt ids, response ids) rows."""


class Retokenised(Reward):
    """A scalar reward for a language model that writes other tokens than the reward reads.

    The response so far, with each candidate, is tokenised anew at every step, so its last tokens may change; what all
    candidates of a row share stays cached, and the rest of all rows is read in one forward. Of a reward of tokens, a
    prefix has the sum over the reward's own tokens of its text.

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
    def name(self) -> str:
        """Return the reward's name."""
        return self.reward.name

    @property
    def template(self) -> Template:
        """Return how the reward's prompts are rendered."""
        return self.reward.template

    @property
    def score_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the language model's tokenizer: `score` rewards its tokens."""
        return self.lm_tokenizer

    @property
    def reward_weight(self) -> float | None:
        """Return the weight to guide at that the reward was stored with, if any."""
        return self.reward.reward_weight

    @property
    def soft_value_weight(self) -> float | None:
        """Return the weight at which the reward is an exact soft value, if any."""
        return self.reward.soft_value_weight

    @property
    def calibration(self) -> Calibration | None:
        """Return None: the reward's calibration is of lengths in its own tokens."""
        return None

    @property
    def models(self) -> Sequence[nn.Module]:
        """Return the reward's models."""
        return self.reward.models

    @property
    def context_length(self) -> int:
        """Return the reward's context length, in its own tokens; every text is checked when it is read."""
        return self.reward.context_length

    def bind(self, lm: CausalModel) -> "Retokenised":
        """Return itself: it was made for one language model's tokens."""
        return self

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> "RetokenisedRows":
        """Read the prefixes; RewardError if one is too long in the reward's tokens."""
        return RetokenisedRows(self, prefixes, max_new_tokens + candidates)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """Return the reward of every prefix of whole texts in the LM's tokens, ended by EOS; each is read anew."""
        return [self._score(*texts) for texts in zip(prompts, responses, strict=True)]

    def _score(self, prompt: Prompt, response: str) -> Score:
        rendered = render(self.reward.tokenizer, prompt, self.template)
        before = len(rendered.token_ids)
        ids, points = whole_response(self.lm_tokenizer, self.eos_token_ids, response)
        rows = [self.encode(rendered, point.text, point.finished) for point in points]
        if self.reward.additive:
            of_tokens = self.reward.score_ids([(row[:before], row[before:]) for row in rows])
            return as_score(self.lm_tokenizer, ids, [row.sum().item() for row in of_tokens])
        # The reward is read at a row's last token, which is the prompt's if the response is still empty.
        rewards = self.reward.score_ids([(row[:-1], row[-1:]) for row in rows])
        return as_score(self.lm_tokenizer, ids, [row[0].item() for row in rewards])

    def encode(self, prompt: Rendered, response: str, finished: bool) -> list[int]:
        """Return the reward's token ids of a prompt and a response; RewardError if they exceed its context."""
        ids = [*prompt.token_ids, *response_ids(self.reward.tokenizer, response, finished=finished, after=prompt)]
        if len(ids) > (room := self.context_length):
            raise RewardError(
                f"prompt and response have {len(ids)} tokens of the reward's tokenizer, its context is {room}; "
                "shorten the prompt or lower max_new_tokens"
            )
        return ids


class RetokenisedRows(ResponseRows):
    """Rows under a reward with tokens of its own.

    Attributes:
        before: the prompts as the reward reads them.
        cached: each row's tokens in the cache.
        gained: of a reward of tokens, what each cached token gained, 0 in the prompt.
    """

    def __init__(self, reward: Retokenised, prefixes: Sequence[Prefix], room: int):
        backbone, tokenizer = reward.reward.backbone, reward.reward.tokenizer
        super().__init__(reward.lm_tokenizer, reward.eos_token_ids, prefixes, backbone.device)
        self.reward = reward
        self.dtype = torch.promote_types(backbone.dtype, torch.float32)
        self.before = [render(tokenizer, prefix.prompt, prefix.template or reward.template) for prefix in prefixes]
        now = [response.now for response in self.responses]
        # The prompt is read here, once, and with it the reward of the prefix as it stands.
        self.cached = [reward.encode(ids, p.text, p.finished) for ids, p in zip(self.before, now, strict=True)]
        self.cache = start_cache(backbone, len(prefixes), max(map(len, self.cached)) + room)
        token_ids, _ = pad(self.cached, self.device)
        hidden = self.cache.extend(token_ids, counts := [len(ids) for ids in self.cached]).last_hidden_state
        self.gained = [[0.0] * len(ids) for ids in self.cached]
        if reward.reward.additive:
            values = self.reward.reward.read(hidden).tolist()
            self.gained = [
                [0.0] * len(before.token_ids) + row[len(before.token_ids) : count]
                for before, row, count in zip(self.before, values, counts, strict=True)
            ]
            rewards = [sum(row, 0.0) for row in self.gained]
        else:
            at_ends = hidden[range(len(counts)), [count - 1 for count in counts]]
            rewards = self.reward.reward.read(at_ends).tolist()
        keys = [(key, p.text, p.finished) for key, p in zip(self.keys, now, strict=True)]
        self.known = dict(zip(keys, rewards, strict=True))

    def read(self, asked: list[dict[Key, Text]]) -> dict[Key, float]:
        """Read the texts in one forward; the cache then holds what the texts of each row share."""
        rows = [
            [self.reward.encode(before, text.response, text.finished) for text in row.values()]
            for before, row in zip(self.before, asked, strict=True)
        ]
        # Tokenised anew, texts of a row may differ before their candidates: only what all of them begin with is cached.
        # At least the last token of each text is read, since the reward is read there.
        shared = [min(_shared(row), min(map(len, row)) - 1) for row in rows]
        # Padding has positions too, and a model may have none beyond its context: a row near the end of it shares less
        # and reads some again, where others need that much padding.
        depth = max(len(ids) - n for row, n in zip(rows, shared, strict=True) for ids in row)
        shared = [min(n, self.reward.context_length - depth) for n in shared]
        # Of that beginning, the cache has some: what follows it there may have been tokenised otherwise, and goes.
        kept = [_shared([old, row[0][:n]]) for old, row, n in zip(self.cached, rows, shared, strict=True)]
        ahead = max(n - keep for n, keep in zip(shared, kept, strict=True))
        kept = [min(keep, self.reward.context_length - ahead) for keep in kept]

        self.cache.rewind([len(old) - keep for old, keep in zip(self.cached, kept, strict=True)])
        self.cached = [row[0][:n] for row, n in zip(rows, shared, strict=True)]
        self.gained = [gained[:keep] for gained, keep in zip(self.gained, kept, strict=True)]
        # What is shared and new goes in before the branches, in the same forward; only it stays in the cache.
        first, _ = pad([ids[keep:] for ids, keep in zip(self.cached, kept, strict=True)], self.device)
        ends = [[ids[n:] for ids in row] for row, n in zip(rows, shared, strict=True)]
        rewards = self._branches(ends, first, [n - keep for n, keep in zip(shared, kept, strict=True)])
        by_text: dict[Key, float] = {}
        for row, values in zip(asked, rewards, strict=True):
            by_text.update(zip(row, values, strict=True))
        return by_text

    def _branches(
        self, ends: list[list[list[int]]], first: Int[Tensor, "batch first"], counts: list[int]
    ) -> list[list[float]]:
        """Return the rewards of each row's texts: of their alternative ends, which follow `first`."""
        # A cache takes as many branches of each row: rows with fewer texts are filled up by one token of no meaning.
        width = max(map(len, ends))
        filled = [end for row in ends for end in [*row, *[[0]] * (width - len(row))]]
        token_ids, _ = pad(filled, self.device)
        branches = token_ids.view(len(ends), width, -1)
        states = self.cache.branches(branches, first, counts).last_hidden_state
        hidden = states[:, first.shape[1] :].reshape(len(filled), token_ids.shape[1], -1)
        if self.reward.reward.additive:
            return self._sums(
                ends, self.reward.reward.read(states[:, : first.shape[1]]).tolist(), counts, hidden, width
            )
        last = torch.tensor([len(end) - 1 for end in filled], device=self.device)
        rewards = self.reward.reward.read(hidden[range(len(filled)), last]).view(len(ends), width).tolist()
        return [values[: len(row)] for row, values in zip(ends, rewards, strict=True)]

    def _sums(
        self, ends: list[list[list[int]]], first: list[list[float]], counts: list[int], hidden: Tensor, width: int
    ) -> list[list[float]]:
        """Return the sums of the tokens' rewards of each row's texts, and remember those of `first`."""
        values = self.reward.reward.read(hidden).tolist()
        for gained, new, count, before in zip(self.gained, first, counts, self.before, strict=True):
            gained += [0.0 if len(gained) + n < len(before.token_ids) else value for n, value in enumerate(new[:count])]
        found = []
        for number, row in enumerate(ends):
            known = len(self.gained[number])
            prompt = max(len(self.before[number].token_ids) - known, 0)  # tokens of the prompt among those of an end
            branches = values[number * width : number * width + len(row)]
            start = sum(self.gained[number], 0.0)
            found.append([sum(branch[prompt : len(end)], start) for branch, end in zip(branches, row, strict=True)])
        return found

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.cache.select(rows)
        self.before = [self.before[row] for row in rows]
        self.cached = [self.cached[row] for row in rows]
        self.gained = [list(self.gained[row]) for row in rows]

    def replace(self, places: Sequence[int], other: Any) -> None:
        super().replace(places, other)
        self.cache.replace(places, other.cache)
        for row, place in enumerate(places):
            self.before[place], self.cached[place] = other.before[row], other.cached[row]
            self.gained[place] = other.gained[row]


def _shared(rows: Sequence[list[int]]) -> int:
    """Return the length of the longest beginning that all rows have: what the first and the last in order share."""
    first, last = min(rows), max(rows)  # whatever lies between two rows in order begins with what they share
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
