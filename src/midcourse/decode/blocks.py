"""Guidance by whole blocks: the language model draws alone, and the reward chooses among what it drew.

    best of n    n responses; the one of the highest reward
    blockwise    K blocks of M tokens; the one of the highest value is kept, and K blocks follow it
    cards        segments up to where the LM is unsure; each is accepted by its reward or drawn again

A row's first draws use its own uniform numbers, so a choice of one in one is plain decoding. All others use streams
derived from the row's seed: nothing depends on which rows share a batch.
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from midcourse.decode.candidates import nucleus, short_list
from midcourse.decode.choice import draw, kl_divergence, normalise, uniforms_now
from midcourse.decode.methods import BestOfN, BlockMethod, Blockwise, Cards, Limits, Method
from midcourse.decode.steps import Generation, Row, Step, as_steps, processed, remaining
from midcourse.lm.language_model import LanguageModel, LanguageModelRows
from midcourse.lm.prompt import Prefix
from midcourse.rewards.contract import Reward, adds_up

_ACCEPTANCE = 0  # the stream of a row's acceptances; its tokens' streams count from 1


@dataclass(frozen=True)
class Samples:
    """All responses among which best-of-n chose.

    Attributes:
        generations: in the order of their draws, each as plain decoding reports it, with its reward. The first is the
            row's plain response.
        best: the place of the one of the highest reward, the first of equals.
    """

    generations: tuple[Generation, ...]
    best: int

    @property
    def winner(self) -> Generation:
        """The best one, with the KL of having chosen it.

        KL(best of n || plain) <= log n - (n - 1) / n (Beirami et al., 2024, arXiv 2401.01879, theorem 1).
        """
        n, found = len(self.generations), self.generations[self.best]
        if n == 1:
            return found
        steps = tuple(replace(step, guidance_kl=None) for step in found.steps)
        return replace(found, steps=steps, guidance_kl=math.log(n) - (n - 1) / n, total_kl=None, rated=n)


def stream_blocks(
    lm: LanguageModel,
    queue: Sequence[Row],
    guides: Sequence[tuple[Reward, float]],
    chosen: BlockMethod,
    limits: Limits,
    max_new_tokens: int,
    batch_size: int,
    keep_all: bool = False,
) -> Iterator[tuple[int, Step | Generation]]:
    """Yield (row, Step) for every token as soon as its block is chosen, and (row, Generation) for a finished row.

    Args:
        guides: rewards bound to `lm`, with their weights; their weighted sum is the reward of a text.
        batch_size: rows of the language model that are decoded together.
        keep_all: the Generation of best-of-n holds all its samples.
    """
    if not queue:
        return
    if isinstance(chosen, BestOfN):
        for number, samples in best_of_n_samples(lm, queue, guides, chosen, limits, max_new_tokens, batch_size):
            winner = replace(samples.winner, samples=samples.generations if keep_all else ())
            for step in winner.steps:
                yield number, step
            yield number, winner
        return
    call = _Call(lm, guides, chosen, limits, max_new_tokens, batch_size)
    if isinstance(chosen, Blockwise):
        yield from _blockwise(call, queue, chosen)
    else:
        yield from _cards(call, queue, chosen)


# What all three share


@dataclass(frozen=True)
class _Call:
    """What holds for every row of a call."""

    lm: LanguageModel
    guides: Sequence[tuple[Reward, float]]
    chosen: BlockMethod
    limits: Limits
    max_new_tokens: int
    batch_size: int

    def draw(self, rows: Sequence[Row], logprobs: Float[Tensor, "batch vocab"]) -> list[str | None]:
        """Continue every row by a token of the plain policy; why each is finished with it, if it is."""
        logprobs = processed(self.limits.logits_processor, rows, logprobs)
        steps = plain_steps(logprobs, [row.uniform for row in rows], self.chosen)
        return [
            row.push(
                step,
                ended=step.token_id in self.lm.eos_token_ids,
                last=len(row.steps) + 1 == self.max_new_tokens,
            )
            for row, step in zip(rows, steps, strict=True)
        ]

    def start(self, prefixes: Sequence[Prefix]) -> "_States":
        return _States(
            self.lm.start([prefix.token_ids for prefix in prefixes], self.max_new_tokens), self.rewards(prefixes)
        )

    def rewards(self, prefixes: Sequence[Prefix]) -> "_Rewards":
        return _Rewards(self.guides, prefixes, self.max_new_tokens)


class _Rewards:
    """A batch of rows under all rewards."""

    def __init__(self, guides: Sequence[tuple[Reward, float]], prefixes: Sequence[Prefix], max_new_tokens: int):
        self.rows = [guide.start(prefixes, max_new_tokens, 1) for guide, _ in guides]
        self.weights = [weight for _, weight in guides]

    def now(self) -> list[float]:
        """The reward of each row's text so far: the weighted sum of all rewards."""
        parts = [found.prefix_rewards().tolist() for found in self.rows]
        return [sum(w * part for w, part in zip(self.weights, row, strict=True)) for row in zip(*parts, strict=True)]

    def advance(self, token_ids: Tensor) -> None:
        for found in self.rows:
            found.advance(token_ids)

    def rewind(self, counts: Sequence[int]) -> None:
        for found in self.rows:
            found.rewind(counts)

    def select(self, places: Sequence[int]) -> None:
        for found in self.rows:
            found.select(places)

    def replace(self, places: Sequence[int], other: "_Rewards") -> None:
        for found, theirs in zip(self.rows, other.rows, strict=True):
            found.replace(places, theirs)


@dataclass
class _States:
    """A batch of rows under the language model and the rewards, moved together."""

    lm: LanguageModelRows
    rewards: _Rewards

    def step(self, token_ids: Sequence[int]) -> None:
        tokens = torch.tensor(token_ids, device=self.lm.logprobs.device)
        self.lm.step(tokens)
        self.rewards.advance(tokens)

    def rewind(self, counts: Sequence[int], logprobs: Float[Tensor, "batch vocab"]) -> None:
        self.lm.rewind(counts, logprobs)
        self.rewards.rewind(counts)

    def select(self, places: Sequence[int]) -> None:
        self.lm.select(places)
        self.rewards.select(places)

    def replace(self, places: Sequence[int], other: "_States") -> None:
        self.lm.replace(places, other.lm)
        self.rewards.replace(places, other.rewards)


def plain_steps(logprobs: Float[Tensor, "batch vocab"], uniforms: Sequence[float], chosen: BlockMethod) -> list[Step]:
    """Each row's next step as plain decoding draws and reports it, its text still to come.

    Args:
        uniforms: one number in [0, 1) a row.
        chosen: its top_k, top_p and temperature; at temperature 0 the likeliest token.
    """
    plain = Method(None, greedy=chosen.temperature == 0, temperature=chosen.temperature, top_k=chosen.top_k)
    candidates = nucleus(short_list(logprobs, chosen.top_k), chosen.top_p, plain.policy_temperature)
    base = normalise(candidates.logprobs, plain.policy_temperature)
    index = base.argmax(1) if plain.greedy else draw(base, uniforms_now(uniforms, base.device))
    return as_steps(candidates, None, base, base, index, [0.0] * len(base), [], plain)


def _generator(seed: int, stream: int) -> np.random.Generator:
    """A row's stream of random numbers of that number, independent of its other streams and of its own uniforms."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))


def _uniforms(row: Row, stream: int) -> np.ndarray:
    """A uniform number in [0, 1) for every step: of stream 0 the row's own, of another derived from its seed."""
    return row.uniforms if stream == 0 else _generator(row.seed, stream).random(len(row.uniforms))


def _branch(row: Row, uniforms: np.ndarray) -> Row:
    """The row as it stands, to be continued apart from it."""
    return replace(row, text=row.text.copy(), uniforms=uniforms, steps=list(row.steps))


def _settle(row: Row, begin: int, reward: float, *, exact: bool) -> list[Step]:
    """The row's steps from `begin` on as a block that was kept: the reward at its end.

    Args:
        exact: the block is a plain draw, whose KL is known; that of a choice among several is not.
    """
    if not exact:
        row.steps[begin:] = [replace(step, guidance_kl=None, total_kl=None) for step in row.steps[begin:]]
    row.steps[-1] = replace(row.steps[-1], reward=reward)
    return row.steps[begin:]


# Best of n


def best_of_n_samples(
    lm: LanguageModel,
    queue: Sequence[Row],
    guides: Sequence[tuple[Reward, float]],
    chosen: BestOfN,
    limits: Limits,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[tuple[int, Samples]]:
    """Yield (row, its n plain samples) as rows are finished; see `stream_blocks`.

    A finished sample's place goes to the next one, of the same prompt or the next.
    """
    if not queue:
        return
    call = _Call(lm, guides, chosen, limits, max_new_tokens, batch_size)
    waiting = ((j, _branch(row, _uniforms(row, j))) for row in queue for j in range(chosen.samples))
    active = list(islice(waiting, batch_size))
    finished: dict[int, dict[int, tuple[Row, str]]] = defaultdict(dict)
    read: tuple[int, LanguageModelRows] | None = None  # the prompt of the newest sample, to be copied for the next
    prompts = {row.number: row.prefix.token_ids for _, row in active}
    lm_rows = lm.start(list(prompts.values()), max_new_tokens)
    lm_rows.select([list(prompts).index(row.number) for _, row in active])

    while active:
        reasons = call.draw([row for _, row in active], lm_rows.logprobs)
        ended = []
        for place, ((j, row), reason) in enumerate(zip(active, reasons, strict=True)):
            if reason is None:
                continue
            ended.append(place)
            finished[row.number][j] = row, reason
            if len(finished[row.number]) == chosen.samples:
                yield row.number, _compared(call, [sample for _, sample in sorted(finished.pop(row.number).items())])
        if len(ended) < len(active):
            tokens = [row.steps[-1].token_id for _, row in active]
            lm_rows.step(torch.tensor(tokens, device=lm_rows.logprobs.device))
        successors = list(islice(waiting, len(ended)))
        for place, (j, row) in zip(ended, successors, strict=False):
            if read is None or read[0] != row.number:
                read = row.number, lm.start([row.prefix.token_ids], max_new_tokens)
            lm_rows.replace([place], read[1])
            active[place] = j, row
        if leaving := ended[len(successors) :]:
            kept = remaining(len(active), set(leaving))
            active = [active[place] for place in kept]
            if kept:
                lm_rows.select(kept)


def _compared(call: _Call, samples: Sequence[tuple[Row, str]]) -> Samples:
    """One prompt's samples with their rewards."""
    rewards = _response_rewards(call, [row for row, _ in samples])
    for (row, _), reward in zip(samples, rewards, strict=True):
        _settle(row, 0, reward, exact=True)
        row.rated = 1
    generations = [row.finished(reason, reward) for (row, reason), reward in zip(samples, rewards, strict=True)]
    return Samples(tuple(generations), rewards.index(max(rewards)))


def _response_rewards(call: _Call, rows: Sequence[Row]) -> list[float]:
    """The reward of each whole response to one prompt: the weighted sum of all rewards."""
    found = [0.0] * len(rows)
    for adding in (False, True):
        if guides := [guide for guide in call.guides if adds_up(guide[0]) == adding]:
            parts = _read_responses(replace(call, guides=guides), rows, adding)
            found = [one + other for one, other in zip(found, parts, strict=True)]
    return found


def _read_responses(call: _Call, rows: Sequence[Row], adding: bool) -> list[float]:
    """The rewards at the ends of whole responses, or with `adding` the sums of their tokens'.

    A forward for several responses of about equal length, and where rewards add up one for each of their tokens.
    """
    responses = [[step.token_id for step in row.steps] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(responses[i]))
    rewards = [math.nan] * len(rows)
    for begin in range(0, len(order), call.batch_size):
        part = [responses[i] for i in order[begin : begin + call.batch_size]]
        longest = len(part[-1])
        # The responses follow as tokens, not as begun ones: only then is every EOS the one of training.
        found = call.rewards([rows[0].prefix])
        found.select([0] * len(part))
        sums = [0.0] * len(part)
        for place, column in enumerate(zip(*(ids + ids[-1:] * (longest - len(ids)) for ids in part), strict=True)):
            found.advance(torch.tensor(column, device=call.lm.model.device))
            if adding:
                now = zip(sums, found.now(), part, strict=True)
                sums = [total + reward if place < len(ids) else total for total, reward, ids in now]
        if not adding:
            found.rewind([longest - len(ids) for ids in part])
            sums = found.now()
        for i, reward in zip(order[begin : begin + call.batch_size], sums, strict=True):
            rewards[i] = reward
    return rewards


# Blockwise controlled decoding


def _blockwise(call: _Call, queue: Sequence[Row], chosen: Blockwise) -> Iterator[tuple[int, Step | Generation]]:
    """K rows of every prompt draw a block; all K go on from the one of the highest value."""
    count = chosen.samples
    waiting = deque(queue)
    prompts = [waiting.popleft() for _ in range(min(max(1, call.batch_size // count), len(waiting)))]
    states = _repeated(call, prompts, count)
    groups = [_candidates(row, row, count) for row in prompts]

    while groups:
        begins = [len(group[0].steps) for group in groups]
        rows = [row for group in groups for row in group]
        reasons = _draw_block(call, rows, states, chosen.block_tokens)
        values = states.rewards.now()
        going: list[list[Row]] = []
        sources: list[int] = []  # whose state each row goes on with
        entering: list[tuple[int, Row]] = []  # (first place, row) of prompts that take a finished one's places
        for first, begin, group in zip(range(0, len(rows), count), begins, groups, strict=True):
            places = range(first, first + count)
            best = max(places, key=values.__getitem__)
            kept, reason = rows[best], reasons[best]
            kept.rated += count
            for step in _settle(kept, begin, values[best], exact=count == 1):
                yield kept.number, step
            if reason is None:
                going.append(_candidates(kept, group[0], count))
                sources += [best] * count
                continue
            yield kept.number, kept.finished(reason, values[best])
            if waiting:
                successor = waiting.popleft()
                entering.append((len(sources), successor))
                going.append(_candidates(successor, successor, count))
                sources += places
        groups = going
        if groups:
            states.select(sources)
        if entering:
            places_taken = [place for first, _ in entering for place in range(first, first + count)]
            states.replace(places_taken, _repeated(call, [row for _, row in entering], count))


def _repeated(call: _Call, rows: Sequence[Row], count: int) -> _States:
    """The states after the rows' prompts, each read once and repeated."""
    states = call.start([row.prefix for row in rows])
    states.select([place for place in range(len(rows)) for _ in range(count)])
    return states


def _candidates(row: Row, first: Row, count: int) -> list[Row]:
    """`count` rows that continue `row`; the first with the uniform numbers that `first` had."""
    return [_branch(row, _uniforms(first, j)) for j in range(count)]


def _draw_block(call: _Call, rows: Sequence[Row], states: _States, tokens: int) -> list[str | None]:
    """Continue every row by a block of tokens; why each finished inside it, if it did."""
    reasons: list[str | None] = [None] * len(rows)
    for _ in range(tokens):
        live = [place for place, reason in enumerate(reasons) if reason is None]
        if not live:
            break
        found = call.draw([rows[place] for place in live], states.lm.logprobs[live])
        if len(live) < len(rows):
            # A row that has ended reads its last token again: it stays where it is.
            states.rewind([int(reason is not None) for reason in reasons], states.lm.logprobs)
        states.step([row.steps[-1].token_id for row in rows])
        for place, reason in zip(live, found, strict=True):
            reasons[place] = reason
    return reasons


# Cascade reward sampling


class _Trial(NamedTuple):
    """A proposed segment: the row that ends with it, that row's reward, and why it is finished, if it is."""

    row: Row
    reward: float
    reason: str | None


@dataclass
class _Segments:
    """A row and the trial of its next segment.

    Attributes:
        kept: the row as far as it is accepted.
        start: the LM's log-probabilities of the token after it, to come back to.
        prompt_reward: r(prompt).
        acceptance: the row's stream of uniform numbers that decide acceptances.
        trial: `kept` and the tokens that are proposed.
        rejected: trials of the row rejected so far. Each starts a new stream of uniform numbers: what a rejected trial
            has seen of its stream must not decide a token again.
        best: the best rejected trial of this segment.
        rejected_here: trials of this segment rejected so far.
        rated: trials of the row judged so far.
    """

    kept: Row
    start: Float[Tensor, " vocab"]
    prompt_reward: float
    acceptance: np.random.Generator
    trial: Row
    rejected: int = 0
    best: _Trial | None = None
    rejected_here: int = 0
    rated: int = 0

    @classmethod
    def begin(cls, row: Row, start: Float[Tensor, " vocab"], prompt_reward: float) -> "_Segments":
        return cls(row, start.clone(), prompt_reward, _generator(row.seed, _ACCEPTANCE), _branch(row, row.uniforms))

    @property
    def length(self) -> int:
        """Tokens proposed."""
        return len(self.trial.steps) - len(self.kept.steps)

    def complete(self, entropy: float, chosen: Cards) -> bool:
        """Whether the segment ends before the next token, whose distribution has this entropy."""
        unsure = self.length >= chosen.least_tokens and entropy >= chosen.entropy_threshold
        return unsure or self.length >= chosen.segment_tokens

    def judge(self, trial: _Trial, chosen: Cards, max_new_tokens: int) -> _Trial | None:
        """The trial that is kept: this one, after the last rejection the best, or None, and another is drawn."""
        tau = threshold(chosen, self.prompt_reward, len(trial.row.steps), max_new_tokens)
        self.rated += 1
        # Accepted with probability min(1, exp((r - tau) / T)).
        if trial.reward >= tau or self.acceptance.random() < math.exp((trial.reward - tau) / chosen.temperature):
            return trial
        self.rejected += 1
        self.rejected_here += 1
        if self.best is None or trial.reward > self.best.reward:
            self.best = trial
        if self.rejected_here == chosen.retries:
            return self.best
        self.trial = _branch(self.kept, _uniforms(self.kept, self.rejected))
        return None

    def accept(self, row: Row, start: Float[Tensor, " vocab"]) -> None:
        """Go on from here."""
        self.kept, self.start = row, start.clone()
        self.best, self.rejected_here = None, 0
        self.trial = _branch(row, _uniforms(row, self.rejected))


def threshold(chosen: Cards, prompt_reward: float, tokens: int, max_new_tokens: int) -> float:
    """tau(n) = min(r*, tau0 + n (r* - tau0) / N) with tau0 = (1 - alpha) r(prompt) + alpha r*, as in the authors' code.

    Args:
        tokens: n, of the response with its new segment.
        max_new_tokens: N.
    """
    goal = chosen.reward_threshold
    assert goal is not None
    if math.isinf(goal):
        return goal
    first = (1 - chosen.start_share) * prompt_reward + chosen.start_share * goal
    return min(goal, first + tokens * (goal - first) / max_new_tokens)


def _cards(call: _Call, queue: Sequence[Row], chosen: Cards) -> Iterator[tuple[int, Step | Generation]]:
    """Every row draws and judges its segments at its own pace; all of them read a token a step."""
    waiting = deque(queue)
    rows = [waiting.popleft() for _ in range(min(call.batch_size, len(waiting)))]
    states = call.start([row.prefix for row in rows])
    active = [_Segments.begin(*of) for of in zip(rows, states.lm.logprobs, states.rewards.now(), strict=True)]
    exact = chosen.reward_threshold == -math.inf  # everything is accepted

    while active:
        reasons = call.draw([row.trial for row in active], states.lm.logprobs)
        states.step([row.trial.steps[-1].token_id for row in active])
        entropies = _entropy(states.lm.logprobs).tolist()
        complete = [
            place for place, row in enumerate(active) if reasons[place] or row.complete(entropies[place], chosen)
        ]
        if not complete:
            continue
        rewards = states.rewards.now()
        back = [0] * len(active)
        reading: dict[int, Row] = {}
        leaving: list[int] = []
        for place in complete:
            row = active[place]
            proposed, length = _Trial(row.trial, rewards[place], reasons[place]), row.length
            found = row.judge(proposed, chosen, call.max_new_tokens)
            if found is None:
                back[place] = length
                continue
            for step in _settle(found.row, len(row.kept.steps), found.reward, exact=exact):
                yield found.row.number, step
            if found.reason is None:
                row.accept(found.row, states.lm.logprobs[place])
                if found is not proposed:
                    reading[place] = found.row
                continue
            found.row.rated = row.rated
            yield found.row.number, found.row.finished(found.reason, found.reward)
            if waiting:
                reading[place] = waiting.popleft()
            else:
                leaving.append(place)
        if any(back):
            _go_back(states, active, back)
        if reading:
            _read(call, states, active, reading)
        if leaving:
            kept = remaining(len(active), set(leaving))
            active = [active[place] for place in kept]
            if kept:
                states.select(kept)


def _go_back(states: _States, active: Sequence[_Segments], counts: Sequence[int]) -> None:
    """Take the rejected trials off the rows: so many tokens each."""
    now = states.lm.logprobs
    logprobs = [row.start if count else old for row, count, old in zip(active, counts, now, strict=True)]
    states.rewind(counts, torch.stack(logprobs))


def _read(call: _Call, states: _States, active: list[_Segments], rows: dict[int, Row]) -> None:
    """Read rows into these places: new prompts, and rows that go on from another trial than the last."""
    arrived = call.start([_prefix(row) for row in rows.values()])
    states.replace(list(rows), arrived)
    for (place, row), start, reward in zip(rows.items(), arrived.lm.logprobs, arrived.rewards.now(), strict=True):
        if row is active[place].kept:
            active[place].start = start.clone()
        else:
            active[place] = _Segments.begin(row, start, reward)


def _prefix(row: Row) -> Prefix:
    """The row's prompt and its response so far."""
    return row.prefix._replace(response_ids=[step.token_id for step in row.steps])


def _entropy(logprobs: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
    """-sum p log p, in nats."""
    return -kl_divergence(logprobs, torch.zeros_like(logprobs))
