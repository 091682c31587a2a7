"""Responses that a policy writes, and what their tokens are paid."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from midcourse.data.alignment import Span
from midcourse.decode.engine import stream
from midcourse.decode.methods import Method
from midcourse.decode.steps import Generation
from midcourse.errors import MidcourseError
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Prompt, Template, prompt_ids
from midcourse.lm.text import TextStream
from midcourse.ppo.advantages import at_end, check_rewards, differences, projected, shuffled, uniform
from midcourse.ppo.settings import Density, PPOError, PPOSettings
from midcourse.progress import Advance, silent
from midcourse.rewards.contract import Reward, Score, Text
from midcourse.rewards.token_ids import TokenReward


@dataclass(frozen=True)
class Rollout:
    """A response that a policy wrote.

    Attributes:
        number: counts all responses of a run, from 0.
        prompt_number: of its prompt, in the order in which prompts take their turns; a group's responses share it.
        response_ids: the tokens it emitted, EOS included if it was finished.
        finished: whether it ended by itself.
    """

    number: int
    prompt_number: int
    prompt: Prompt
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    text: str
    finished: bool

    @property
    def as_text(self) -> Text:
        """Return the response as rewards of whole texts read it."""
        return Text(self.prompt, self.text, self.finished)

    @property
    def row(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (prompt ids, response ids)."""
        return self.prompt_ids, self.response_ids


EVERYTHING = Method(None, reward_weight=0.0, top_k=None)  # the model's own distribution, nothing cut off
AT_ONCE = 64  # responses that are written side by side
# What a user's function is: from responses and the mask of their tokens to rewards (batch, tokens).
TokenFunction: TypeAlias = Callable[[Sequence[Rollout], Bool[Tensor, "batch tokens"]], Tensor]


def function_name(function: TokenFunction) -> str:
    """Return what a user's function is called in messages and records."""
    return getattr(function, "__qualname__", type(function).__name__)


def turns(prompts: int, settings: PPOSettings, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return for responses of these numbers (the place of the prompt in its turns, the prompt).

    Prompts take turns in an order drawn anew for every pass over all of them.
    """

    def prompt_at(turn: int) -> int:
        passes, place = divmod(turn, prompts)
        order = list(range(prompts))
        random.Random(f"{settings.seed} {passes}").shuffle(order)
        return order[place]

    taken = [number // settings.group_size for number in numbers]
    found = {turn: prompt_at(turn) for turn in set(taken)}
    return [(turn, found[turn]) for turn in taken]


def write(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    settings: PPOSettings,
    template: Template,
    advance: Advance = silent,
) -> list[Rollout]:
    """Write the responses of these numbers: from the model's own distribution, nothing of it cut off.

    What is written depends on the weights, the seed and the number alone.

    Args:
        advance: told of every token, in parts of a response.
    """
    taken = turns(len(prompts), settings, numbers)
    asked = [prompts[prompt] for _, prompt in taken]
    seeds = [random.Random(f"{settings.seed} {number}").getrandbits(31) for number in numbers]
    events = stream(
        lm,
        asked,
        method=EVERYTHING,
        template=template,
        seed=seeds,
        max_new_tokens=settings.max_new_tokens,
        batch_size=min(settings.batch_size, AT_ONCE),
    )
    written: dict[int, Generation] = {}
    for place, event in events:
        if isinstance(event, Generation):
            written[place] = event
        else:
            advance(1 / settings.max_new_tokens)
    in_order = [written[place] for place in range(len(asked))]
    return [
        Rollout(
            number,
            turn,
            one.prompt,
            tuple(prompt_ids(lm.tokenizer, one.prompt, template)),
            tuple(step.token_id for step in one.steps),
            one.text,
            one.finish_reason == "stop",
        )
        for number, (turn, _), one in zip(numbers, taken, in_order, strict=True)
    ]


# ---- rewards of tokens ----


@dataclass(frozen=True)
class Payment:
    """What pays a policy: rewards of tokens, and rewards of whole responses at their ends.

    Make it before the policy is: a reward on a language model's states is checked against the model as it was.

    Attributes:
        lm: the model that writes; rewards that read other tokens are laid onto its own by the characters they share.
        density: what a token gets of `reward`; see `PPOSettings`.
        at_end: a second reward, of whole responses, paid at the last token, times `end_scale`.
        scale: what `reward` is multiplied by.
        missing_eos: what is taken off the last token of a response that was cut.
        seed: of the placebo's order.
    """

    lm: LanguageModel
    reward: Reward | TokenFunction
    density: Density = "tokens"
    scale: float = 1.0
    at_end: Reward | None = None
    end_scale: float = 1.0
    missing_eos: float = 0.0
    seed: int = 0
    _own: "_Read | None" = field(init=False, repr=False)
    _end: "_Read | None" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, reward in (("_own", self.reward), ("_end", self.at_end)):
            object.__setattr__(self, name, _Read(reward, self.lm) if isinstance(reward, Reward) else None)

    def __call__(self, rollouts: Sequence[Rollout], mask: Bool[Tensor, "batch tokens"]) -> Tensor:
        """Return the reward of every token; PPOError or RewardError if a policy could not learn from them."""
        paid = self.scale * self._spread(rollouts, mask)
        if self._end is not None:
            ends = torch.tensor(self._end.whole(rollouts), device=mask.device)
            paid = paid + self.end_scale * at_end(ends, mask)
        if self.missing_eos:
            cut = torch.tensor([float(not one.finished) for one in rollouts], device=mask.device)
            paid = paid - at_end(self.missing_eos * cut, mask)
        return check_rewards(paid, mask)

    def _spread(self, rollouts: Sequence[Rollout], mask: Bool[Tensor, "batch tokens"]) -> Tensor:
        if self.density in ("tokens", "shuffled"):
            own = self._of_tokens(rollouts, mask)
            return shuffled(own, mask, self._generator(rollouts)) if self.density == "shuffled" else own
        if self._own is not None:  # a whole text is read once, not prefix by prefix
            whole = torch.tensor(self._own.whole(rollouts), device=mask.device)
        else:
            whole = self._of_tokens(rollouts, mask).sum(1)
        return at_end(whole, mask) if self.density == "end" else uniform(whole, mask)

    def _of_tokens(self, rollouts: Sequence[Rollout], mask: Bool[Tensor, "batch tokens"]) -> Tensor:
        if self._own is not None:
            found = pad_sequence(self._own.of_tokens(rollouts), batch_first=True).to(mask.device)
        else:
            found = self._by_function(rollouts, mask)
        return torch.where(mask, check_rewards(found, mask), 0.0).to(torch.float32)

    def _by_function(self, rollouts: Sequence[Rollout], mask: Bool[Tensor, "batch tokens"]) -> Any:
        assert not isinstance(self.reward, Reward)
        try:
            with torch.no_grad():
                found = self.reward(rollouts, mask.clone())
        except MidcourseError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise PPOError(
                f"the token function {function_name(self.reward)} failed ({type(error).__name__}: {error}); it takes "
                "(rollouts, mask) and returns the rewards of their tokens"
            ) from error
        return found.detach() if isinstance(found, Tensor) else found

    def _generator(self, rollouts: Sequence[Rollout]) -> torch.Generator:
        seed = random.Random(f"{self.seed} {rollouts[0].number}").getrandbits(62)
        return torch.Generator().manual_seed(seed)


class _Read:
    """A reward as it reads what a language model emitted."""

    def __init__(self, reward: Reward, lm: LanguageModel):
        self.lm, self.reward = lm, reward.bind(lm)

    def of_tokens(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """Return the rewards of each response's tokens: of a reward of prefixes, what each token adds."""
        if isinstance(self.reward, TokenReward):  # it reads the very tokens that were emitted
            rows = self.reward.score_ids([one.row for one in rollouts])
            return [row.float() if self.reward.additive else _steps(row.float()) for row in rows]
        scores = self.reward.score([one.prompt for one in rollouts], [one.text for one in rollouts])
        return [torch.tensor(self._laid_on(*pair)) for pair in zip(scores, rollouts, strict=True)]

    def whole(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return the reward of each response."""
        if isinstance(self.reward, TokenReward):
            rows = self.reward.score_ids([one.row for one in rollouts])
            return [row.sum().item() if self.reward.additive else row[-1].item() for row in rows]
        return [float(reward) for reward in self.reward.rate([one.as_text for one in rollouts])]

    def _laid_on(self, score: Score, rollout: Rollout) -> list[float]:
        """Return the rewards of a text's tokens as those of the tokens that were emitted for it."""
        score = score if rollout.finished else score.without_end()
        rewards = list(score.rewards)
        if not score.additive:
            rewards = [now - before for now, before in zip(rewards, [0.0, *rewards], strict=False)]
        if score.token_ids == rollout.response_ids:
            return rewards
        emitted, read = (spans_of(self.lm.tokenizer, ids) for ids in (rollout.response_ids, score.token_ids))
        return projected(rewards, read, emitted)


def _steps(prefixes: Tensor) -> Tensor:
    return differences(prefixes[None], torch.ones(1, len(prefixes), dtype=torch.bool))[0]


def spans_of(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[Span]:
    """Return the characters that each token writes; one that several tokens write belongs to the last of them."""
    stream, spans, end = TextStream(tokenizer), [], 0
    for token_id in token_ids:
        begin, end = end, end + len(stream.push(token_id))
        spans.append((begin, end))
    return spans
