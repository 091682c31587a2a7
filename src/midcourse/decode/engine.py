"""Requests in at any time, one step for all rows, events out.

    engine = Engine(lm)
    number = engine.add(Request.of("The ferry was late, and", reward))
    while engine:
        for number, event in engine.step(): ...

`generate` and `stream` are this for a list of prompts.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from midcourse.decode.blocks import BestOf, BlockwiseBatch, CardsBatch
from midcourse.decode.methods import AnyMethod, BestOfN, Blockwise, Method, MethodError, check_whole
from midcourse.decode.request import Request, check_room
from midcourse.decode.steps import Event, Failure, Generation, Guides, Row, Step
from midcourse.decode.tokens import TokenBatch
from midcourse.lm.contract import CausalModel
from midcourse.lm.prompt import Prefix, Prompt, PromptError, Rendered, Template, render
from midcourse.lm.text import TextStream
from midcourse.rewards.contract import Reward
from midcourse.rewards.states import on_states

Batch = TokenBatch | BlockwiseBatch | CardsBatch


@dataclass
class _Waiting:
    """Rows of a request that are still to be written.

    Attributes:
        width: how many rows of the language model each takes.
    """

    rows: deque[Row]
    batch: Batch
    width: int


class Engine:
    """An engine that writes responses to requests, which may come and go at any time.

    Rows of different methods, rewards, weights, limits and lengths share a batch; what a request gets does not depend
    on any other. Methods that choose among blocks have batches of their own. Requests begin in the order of their
    coming; the place of a row that is finished, cancelled or failed is free at the next step, and nothing of a request
    is kept once its last event is out.

    Args:
        lm: the language model; it is not changed.
        batch_size: the most rows of the language model at a time. A request that takes more has it for itself.

    Examples:
        >>> engine = Engine(LanguageModel.load())
        >>> first, second = engine.add(Request.of("A ferry", reward)), engine.add(Request.of("A train"))
        >>> events = engine.step()
        >>> engine.cancel(second)
        True
    """

    def __init__(self, lm: CausalModel, batch_size: int = 16):
        check_whole("batch_size", batch_size)
        if batch_size < 1:
            raise MethodError(f"batch-size {batch_size} holds no row; use 1 or more")
        self.lm = lm
        self.batch_size = batch_size
        self._tokens, self._blockwise, self._cards = TokenBatch(lm), BlockwiseBatch(lm), CardsBatch(lm)
        self._waiting: dict[int, _Waiting] = {}
        self._requests: dict[int, Guides] = {}  # those whose last event is still to come
        # Rewards by their identity and whether they guide token by token, and as they read the model's tokens.
        self._bound: dict[tuple[int, bool], tuple[Reward, Reward]] = {}
        self._next = 0

    def __bool__(self) -> bool:
        """Return whether there is anything left to do."""
        return bool(self._requests)

    def add(self, request: Request) -> int:
        """Take a request; return its number, by which its events and `cancel` name it.

        Raises:
            RewardError, PromptError: a reward that cannot guide this model, or a prompt that is too long.
        """
        number = self.put(self._row(request, self._next + 1), request.keep_all)
        self._requests[number] = request.guides
        return number

    def put(self, row: Row, keep_all: bool = False) -> int:
        """Take a row that has been begun already; return its number."""
        row.number, self._next = self._next, self._next + 1
        batch, rows, width = self._place(row, keep_all)
        self._waiting[row.number] = _Waiting(rows, batch, width)
        self._requests[row.number] = ()
        return row.number

    def check(self, request: Request, number: int) -> None:
        """Raise what `add` would raise for a request.

        Args:
            number: what messages call its prompt.
        """
        self._checked(request, number)

    @property
    def waiting(self) -> int:
        """Return how many requests have rows that are still to begin."""
        return len(self._waiting)

    @torch.inference_mode()
    def cancel(self, number: int) -> bool:
        """Stop writing a request; return whether there was one. It has no further event."""
        if number not in self._requests:
            return False
        self._leave(number)
        return True

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Let waiting requests begin if there is room, draw a token for every row, and return what has happened.

        Events are (number, Step) for every token, as soon as it is certain, then (number, Generation) for a finished
        request, or (number, Failure) for one that cannot be finished, such as one whose reward raises something.
        """
        events = self._begin()
        for batch in (self._tokens, self._blockwise, self._cards):
            events += batch.step()
        for number in {number: None for number, event in events if not isinstance(event, Step)}:
            self._leave(number)
        return events

    def _place(self, row: Row, keep_all: bool) -> tuple[Batch, deque[Row], int]:
        """Return the batch that a request belongs in, its rows, and how many places each takes."""
        if row.block is None:
            return self._tokens, deque([row]), 1
        if isinstance(row.block, BestOfN):
            samples = BestOf(row, keep_all, self.batch_size)
            self._tokens.best_of[row.number] = samples
            return self._tokens, deque(samples.rows()), 1
        if isinstance(row.block, Blockwise):
            return self._blockwise, deque([row]), row.block.samples
        return self._cards, deque([row]), 1

    def _checked(self, request: Request, number: int) -> tuple[Guides, Rendered]:
        """Return a request's rewards as they read the model's tokens, and its prompt as the model reads it."""
        guides = [(self._bind(reward, isinstance(request.method, Method)), weight) for reward, weight in request.guides]
        rendered = render(self.lm.tokenizer, request.prompt, request.template)
        if request.prompt_ids is not None:
            rendered = rendered._replace(token_ids=list(request.prompt_ids))
        prefix = Prefix(request.prompt, rendered.token_ids, template=request.template)
        check_room(self.lm, [reward for reward, _ in guides], prefix, request.max_new_tokens, number)
        return guides, rendered

    def _row(self, request: Request, number: int) -> Row:
        """Return a request as it begins.

        Args:
            number: what messages call its prompt.
        """
        guides, rendered = self._checked(request, number)
        prefix = Prefix(request.prompt, rendered.token_ids, template=request.template)
        text = TextStream(self.lm.tokenizer, request.stop, rendered.token_ids, rendered.turn.lead)
        method, block = request.method, None
        if not isinstance(method, Method):
            block = method
            greedy = block.temperature == 0
            method = Method(None, greedy, 0.0, block.top_k, 1.0 if greedy else block.temperature, block.top_p)
        return Row.begin(
            self._next, prefix, request.seed, text, request.max_new_tokens, method, guides, request.limits, block
        )

    def _bind(self, reward: Reward, by_token: bool) -> Reward:
        """Return the reward as it reads the model's tokens: one object for all requests that it guides at a time.

        Args:
            by_token: it guides token by token, perhaps on the model's own states.
        """
        key = id(reward), by_token
        if key not in self._bound:
            bound = reward.bind(self.lm)
            self._bound[key] = reward, on_states(bound, self.lm) if by_token else bound
        return self._bound[key][1]

    def _begin(self) -> list[Event]:
        """Let requests begin in the order of their coming, as far as there is room."""
        used = self._tokens.size + self._blockwise.size + self._cards.size
        entering: dict[int, tuple[Batch, list[Row]]] = {}
        for number, waiting in list(self._waiting.items()):
            while waiting.rows and (used + waiting.width <= self.batch_size or not used):
                entering.setdefault(id(waiting.batch), (waiting.batch, []))[1].append(waiting.rows.popleft())
                used += waiting.width
            if waiting.rows:
                break
            del self._waiting[number]
        return [event for batch, rows in entering.values() for event in batch.enter(rows)]

    def _leave(self, number: int) -> None:
        """Forget a request."""
        del self._requests[number]
        self._waiting.pop(number, None)
        for batch in (self._tokens, self._blockwise, self._cards):
            batch.leave(number)
        used = {id(reward) for guides in self._requests.values() for reward, _ in guides}
        self._bound = {key: both for key, both in self._bound.items() if key[0] in used}


def generate(
    lm: CausalModel, prompts: Sequence[Prompt], reward: Reward | Guides | None = None, **settings: Any
) -> list[Generation]:
    """Continue each prompt; `settings` are those of `stream`. Generations come in the order of the prompts.

    Examples:
        >>> generate(lm, ["The ferry was late, and"], reward, max_new_tokens=24, seed=1)[0].text
    """
    done: dict[int, Generation] = {}
    for row, event in stream(lm, prompts, reward, **settings):
        if isinstance(event, Generation):
            done[row] = event
    return [done[row] for row in range(len(prompts))]


def stream(
    lm: CausalModel,
    prompts: Sequence[Prompt],
    reward: Reward | Guides | None = None,
    *,
    method: str | AnyMethod = "pargs",
    template: Template | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 16,
    **settings: Any,
) -> Iterator[tuple[int, Step | Generation]]:
    """Yield (row, Step) for every token as it is drawn, and (row, Generation) when a row is finished.

    Args:
        lm: the language model; it is not changed.
        prompts: texts or chat messages.
        reward: what guides, or several as (reward, weight) pairs, whose weighted rewards add up. Not needed by method
            "plain" or weight 0, which decode the LM alone.
        method: a name from `METHODS`, or one of its kinds with settings of your own.
        template: how prompts become tokens; by default the reward's own, else "raw".
        seed: row i uses seed + i; a sequence gives every row its own.
        batch_size: rows decoded together. A finished row's place goes to the next prompt; a row's sample does not
            depend on its neighbours.
        settings: `max_new_tokens` (64) is the most tokens of a response, which ends before the first of the strings in
            `stop`. `always_offer_eos`: EOS is a candidate even if the LM does not rank it among the top k.
            `kl_per_token`: each token has the largest weight up to the method's whose guidance KL is within these nats;
            `kl_budget`: the same for the whole response. `skip_tolerance`: if the LM is so sure that no reward within
            the range seen so far in the row could change the choice by more than this in total variation, the token is
            drawn from the LM and the reward reads it later; for a greedy method any tolerance means that the choice
            cannot change. A pass is saved if all rows of a batch are so sure. `logits_processor` is called with (token
            ids of prompt and response, log-probabilities) before the short list; what it sets to -inf stays impossible.
            `keep_all`: the Generation of best-of-n holds all its samples. All others are the method's: `reward_weight`,
            `top_k`, `top_p`, `temperature`, `samples`, ... (None: its own; a lone reward that was stored with a weight,
            as the shipped ones are, brings that).

    Raises:
        MethodError, PromptError, RewardError: a setting, prompt or reward that cannot be used, before any decoding;
            whatever a reward or a processor raises, in between.
    """
    engine = Engine(lm, batch_size)
    request = Request.of("", reward, method=method, template=template, **settings)
    if isinstance(prompts, str):
        raise PromptError("the prompts are a single text; give a list of texts")
    seeds = list(seed) if isinstance(seed, Iterable) else _seeds_from(seed, len(prompts))
    if len(seeds) != len(prompts):
        raise MethodError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one each, or a single number")
    for number, (prompt, own) in enumerate(zip(prompts, seeds, strict=True), 1):
        engine.check(request.of_prompt(prompt, own), number)
    return _until_failure(engine, map(request.of_prompt, prompts, seeds))


def _seeds_from(seed: int, count: int) -> list[int]:
    """Return the seeds of so many rows, from the first one's; MethodError if that is no whole number."""
    check_whole("seed", seed)
    return [seed + i for i in range(count)]


def _until_failure(engine: Engine, requests: Iterator[Request]) -> Iterator[tuple[int, Step | Generation]]:
    """Yield the events of all requests; raise the error of the first that fails.

    A request enters the engine when its turn is near: none of a million waits there.
    """
    while True:
        for request in islice(requests, max(engine.batch_size - engine.waiting, 0)):
            engine.add(request)
        if not engine:
            return
        for number, event in engine.step():
            if isinstance(event, Failure):
                raise event.error
            yield number, event
