"""Guidance by whole blocks: the language model draws alone, and the reward chooses among what it drew.

    best of n    n responses; the one of the highest reward
    blockwise    K blocks of M tokens; the one of the highest value is kept, and K blocks follow it
    cards        segments up to where the LM is unsure; each is accepted by its reward or drawn again

A row's first draws use its own uniform numbers, so a choice of one in one is plain decoding. All others use streams
derived from the row's seed: nothing depends on which rows share a batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from midcourse.decode.choice import kl_divergence
from midcourse.decode.methods import BestOfN, Blockwise, Cards
from midcourse.decode.policy import plain_steps
from midcourse.decode.rows import Answers, Rows, prefix_question, started, weighted
from midcourse.decode.steps import Event, Failure, Failures, Generation, Guides, Row, remaining
from midcourse.lm.contract import CausalModel
from midcourse.rewards.contract import RewardRows, checked_rewards
from midcourse.rewards.info import RewardError

_ACCEPTANCE = 0  # the stream of a row's acceptances; its tokens' streams count from 1


# What all three share


def _generator(seed: int, stream: int) -> np.random.Generator:
    """Return a row's stream of random numbers, independent of its other streams and of its own uniforms."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))


def _uniforms(row: Row, stream: int) -> np.ndarray:
    """Return a uniform number in [0, 1) for every step: the row's own for stream 0, else derived from its seed."""
    return row.uniforms if stream == 0 else _generator(row.seed, stream).random(len(row.uniforms))


def _settle(row: Row, begin: int, reward: float, *, exact: bool) -> list[Event]:
    """Return the events of a kept block, the row's steps from `begin` on; the last has the block's reward.

    Args:
        exact: the block is a plain draw, whose KL is known; that of a choice among several is not.
    """
    if not exact:
        row.steps[begin:] = [replace(step, guidance_kl=None, total_kl=None) for step in row.steps[begin:]]
    row.steps[-1] = replace(row.steps[-1], reward=reward)
    return [(row.number, step) for step in row.steps[begin:]]


def _values(batch: Rows, rows: Sequence[Row], lm: CausalModel, failures: Failures) -> list[float]:
    """Return the reward of each row's text so far, 0 for those that have failed.

    Args:
        failures: of rows that have failed already; those whose reward raises or is not finite are added.
    """
    answers: Answers = {}
    for key, part in list(batch.guided.items()):
        places = list(part.places)
        answer, bad = batch.ask(part, prefix_question(part), rows, lm)
        failures |= bad
        if answer is not None:
            answers[key] = places, answer
    values = [0.0 if place in failures else weighted(answers, row, place) for place, row in enumerate(rows)]
    for place, value in enumerate(values):
        if not math.isfinite(value):
            failures[place] = RewardError(
                f"the reward of prompt {rows[place].number + 1} is {value} after {len(rows[place].steps)} tokens; "
                "it has to be a finite number"
            )
    return values


def _failed(failures: Failures, rows: Sequence[Row]) -> list[Event]:
    """Return the events of requests some of whose rows have failed."""
    errors: dict[int, Exception] = {}
    for place, error in sorted(failures.items()):
        errors.setdefault(rows[place].number, error)
    return [(number, Failure(error)) for number, error in errors.items()]


def _last_tokens(rows: Sequence[Row], batch: Rows) -> Tensor:
    """Return the newest token of each row; any token for a row that failed before it had one."""
    return torch.tensor([row.last_token if row.steps else 0 for row in rows], device=batch.device)


# Best of n


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
        """Return the best response, with the KL of having chosen it.

        KL(best of n || plain) <= log n - (n - 1) / n (Beirami et al., 2024, arXiv 2401.01879, theorem 1).
        """
        n, best = len(self.generations), self.generations[self.best]
        if n == 1:
            return best
        steps = tuple(replace(step, guidance_kl=None) for step in best.steps)
        return replace(best, steps=steps, guidance_kl=math.log(n) - (n - 1) / n, total_kl=None, rated=n)


@dataclass
class BestOf:
    """The samples of a request for the best of n: rows that nothing guides, collected as they are finished.

    Rewards of the language model's own states read them while the samples are drawn, the others when all are there.

    Attributes:
        first: what the request begins with; its guides are the rewards that compare.
        keep_all: the winner holds all samples.
        together: how many responses the rewards read at a time.
    """

    first: Row
    keep_all: bool
    together: int
    finished: dict[int, tuple[Row, str]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Return n, the number of samples."""
        assert isinstance(self.first.block, BestOfN)
        return self.first.block.samples

    def rows(self) -> Iterator[Row]:
        """Yield the n samples as rows to be drawn."""
        reading = tuple(guide for guide in self.first.guides if guide[0].layer is not None)
        for sample in range(self.count):
            row = self.first.branch(_uniforms(self.first, sample))
            yield replace(row, guides=reading, sample=sample, read={})

    @property
    def complete(self) -> bool:
        """Return whether all samples are there."""
        return len(self.finished) == self.count

    def add(self, row: Row, reason: str) -> None:
        """Take a finished sample."""
        self.finished[row.sample] = row, reason

    def compared(self, lm: CausalModel) -> list[Event]:
        """Return the events of the request: the steps of the best sample, and its response."""
        samples = self.samples(lm)
        winner = replace(samples.winner, samples=samples.generations if self.keep_all else ())
        return [*((self.first.number, step) for step in winner.steps), (self.first.number, winner)]

    def samples(self, lm: CausalModel) -> Samples:
        """Return all samples with their rewards, the weighted sums of all rewards.

        Raises:
            RewardError: a reward that is not a finite number.
        """
        rows = [row for _, (row, _) in sorted(self.finished.items())]
        rewards = [0.0] * len(rows)
        for guide, weight in self.first.guides:
            if guide.layer is not None:
                rewards = [one + weight * row.read[id(guide)] for one, row in zip(rewards, rows, strict=True)]
        for adding in (False, True):
            if guides := [one for one in self.first.guides if one[0].layer is None and one[0].additive == adding]:
                parts = _read_responses(lm, guides, rows, adding, self.together)
                rewards = [one + other for one, other in zip(rewards, parts, strict=True)]
        if broken := [reward for reward in rewards if not math.isfinite(reward)]:
            raise RewardError(
                f"the reward of a sample for prompt {self.first.number + 1} is {broken[0]}; "
                "it has to be a finite number"
            )
        for row, reward in zip(rows, rewards, strict=True):
            _settle(row, 0, reward, exact=True)
            row.rated = 1
        reasons = [reason for _, (_, reason) in sorted(self.finished.items())]
        generations = [row.finished(*end) for row, end in zip(rows, zip(reasons, rewards, strict=True), strict=True)]
        return Samples(tuple(generations), rewards.index(max(rewards)))


def _read_responses(lm: CausalModel, guides: Guides, rows: Sequence[Row], adding: bool, together: int) -> list[float]:
    """Return the rewards at the ends of whole responses to one prompt; with `adding`, the sums of their tokens'.

    Responses of about equal length share a forward; if rewards add up, there is one for each of their tokens.
    """
    responses = [[step.token_id for step in row.steps] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(responses[i]))  # so that little of a forward is padding
    rewards = [math.nan] * len(rows)
    for begin in range(0, len(order), together):
        part = [responses[i] for i in order[begin : begin + together]]
        longest = len(part[-1])
        # The responses follow as tokens, not as begun ones: only then is every EOS the one of training.
        reward_rows = [reward.start([rows[0].prefix], longest, 1) for reward, _ in guides]
        # The prompt is read once; its row is then copied for each response.
        for one in reward_rows:
            one.select([0] * len(part))
        sums = [0.0] * len(part)
        # Shorter responses repeat their last token, to stay in step; what comes of that is not added, or taken back.
        for place, column in enumerate(zip(*(ids + ids[-1:] * (longest - len(ids)) for ids in part), strict=True)):
            for one in reward_rows:
                one.advance(torch.tensor(column, device=lm.device))
            if adding:
                step = zip(sums, _weighted_now(reward_rows, guides, len(part)), part, strict=True)
                sums = [total + reward if place < len(ids) else total for total, reward, ids in step]
        if not adding:
            for one in reward_rows:
                one.rewind([longest - len(ids) for ids in part])
            sums = _weighted_now(reward_rows, guides, len(part))
        for i, reward in zip(order[begin : begin + together], sums, strict=True):
            rewards[i] = reward
    return rewards


def _weighted_now(rows: Sequence[RewardRows], guides: Guides, count: int) -> list[float]:
    """Return the weighted sum of all rewards of the prefix of each of `count` rows."""
    parts = [
        [weight * value for value in checked_rewards(reward, "prefix_rewards", one.prefix_rewards(), (count,)).tolist()]
        for one, (reward, weight) in zip(rows, guides, strict=True)
    ]
    return [sum(row) for row in zip(*parts, strict=True)]


# Blockwise controlled decoding


@dataclass
class _Blocks:
    """A request's K rows, which draw a block from the same place.

    Attributes:
        first: whose uniform numbers the first of them has, block after block.
        begin: how many tokens came before the block.
        reasons: why each row is finished, if it is.
    """

    rows: list[Row]
    first: Row
    begin: int
    reasons: list[str | None]

    @classmethod
    def follow(cls, row: Row, first: Row) -> "_Blocks":
        """Make K rows that continue `row`."""
        assert isinstance(first.block, Blockwise)
        count = first.block.samples
        rows = [row.branch(_uniforms(first, j)) for j in range(count)]
        return cls(rows, first, len(row.steps), [None] * count)

    @property
    def complete(self) -> bool:
        """Return whether every row has drawn a whole block or is finished."""
        assert isinstance(self.first.block, Blockwise)
        end = self.begin + self.first.block.block_tokens
        return all(reason or len(row.steps) == end for row, reason in zip(self.rows, self.reasons, strict=True))


class BlockwiseBatch:
    """The rows of an engine that draw blocks: K of every request."""

    def __init__(self, lm: CausalModel):
        self.lm = lm
        self.requests: list[_Blocks] = []
        self.batch: Rows | None = None

    @property
    def size(self) -> int:
        """Return how many rows of the language model the batch holds."""
        return len(self.rows)

    @property
    def rows(self) -> list[Row]:
        """Return the rows of all requests."""
        return [row for request in self.requests for row in request.rows]

    def enter(self, rows: Sequence[Row]) -> list[Event]:
        """Read each row's prompt once for all of its K rows; a row whose reward cannot begin fails."""
        begun, good, bad = started(self.lm, rows)
        new = [_Blocks.follow(row, row) for row in good]
        if begun is not None:
            begun.select([place for place, request in enumerate(new) for _ in request.rows])
            self.batch = begun if self.batch is None else self.batch.joined(begun)
        self.requests += new
        return [(row.number, Failure(error)) for row, error in bad]

    def leave(self, number: int) -> None:
        """Let go of a request's rows."""
        places = [place for place, row in enumerate(self.rows) if row.number != number]
        self.requests = [request for request in self.requests if request.first.number != number]
        self._select(places)

    def step(self) -> list[Event]:
        """Draw a token for every row, and choose among blocks that are complete."""
        if self.batch is None:
            return []
        rows, failures = self.rows, self._draw(self.batch)
        # Rewards are asked for all rows or none: a batch's rows of a reward are read together.
        values: list[float] = []
        if any(request.complete for request in self.requests):
            values = _values(self.batch, rows, self.lm, failures)
        failed = {rows[place].number for place in failures}
        events = _failed(failures, rows)
        going: list[_Blocks] = []
        sources: list[int] = []  # whose state each row goes on with
        first = 0
        for request in self.requests:
            places = range(first, first := first + len(request.rows))
            if request.first.number in failed:
                continue
            if not request.complete:
                going.append(request)
                sources += places
                continue
            best = max(places, key=values.__getitem__)
            kept, reason = request.rows[best - places[0]], request.reasons[best - places[0]]
            kept.rated += len(places)
            events += _settle(kept, request.begin, values[best], exact=len(places) == 1)
            if reason is not None:
                events.append((kept.number, kept.finished(reason, values[best])))
                continue
            going.append(_Blocks.follow(kept, request.first))
            sources += [best] * len(places)
        self.requests = going
        self._select(sources)
        return events

    def _draw(self, batch: Rows) -> Failures:
        """Continue every row by a token; a row that has ended reads its last token again, and stays where it is."""
        rows = self.rows
        ended = [reason is not None for request in self.requests for reason in request.reasons]
        live = [place for place, over in enumerate(ended) if not over]
        steps, failures = plain_steps([rows[place] for place in live], batch.lm.logprobs[live], self.lm)
        # All rows of a batch take the same step: one that has ended forgets its last token, to read it again.
        if any(ended):
            over = torch.tensor(ended, device=batch.device)[:, None]
            before = {layer: one.where(over, batch.lm.states[layer]) for layer, one in batch.lm.previous.items()}
            batch.rewind([int(one) for one in ended], batch.lm.logprobs, before)
        reasons = [reason for request in self.requests for reason in request.reasons]
        for number, step in steps.items():
            reasons[live[number]] = rows[live[number]].push(step, self.lm.eos_token_ids)
        token_ids = _last_tokens(rows, batch)
        batch.step(token_ids)
        failures = {live[number]: error for number, error in failures.items()}
        failures |= batch.advance(token_ids, rows, self.lm)
        for request in self.requests:
            request.reasons, reasons = reasons[: len(request.rows)], reasons[len(request.rows) :]
        return failures

    def _select(self, places: Sequence[int]) -> None:
        if not places:
            self.batch = None
        elif self.batch is not None:
            self.batch.select(places)


# Cascade reward sampling


class _Trial(NamedTuple):
    """A proposed segment: the row that ends with it, that row's reward, and why it is finished, if it is."""

    row: Row
    reward: float
    reason: str | None


class _Start(NamedTuple):
    """The place where a segment begins, as the language model sees it.

    Attributes:
        logprobs: of its first token.
        states: by layer, those of the token before it.
    """

    logprobs: Float[Tensor, " vocab"]
    states: dict[int, Float[Tensor, " hidden"]]

    @classmethod
    def of(cls, batch: Rows, place: int) -> "_Start":
        """Keep where a row of a batch stands."""
        states = {layer: one[place].clone() for layer, one in batch.lm.states.items()}
        return cls(batch.lm.logprobs[place].clone(), states)


@dataclass
class _Segments:
    """A row and the trial of its next segment.

    Attributes:
        kept: the row as far as it is accepted.
        start: what the LM says after it, to come back to.
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
    start: "_Start"
    prompt_reward: float
    acceptance: np.random.Generator
    trial: Row
    rejected: int = 0
    best: _Trial | None = None
    rejected_here: int = 0
    rated: int = 0

    @classmethod
    def begin(cls, row: Row, start: "_Start", prompt_reward: float) -> "_Segments":
        return cls(row, start, prompt_reward, _generator(row.seed, _ACCEPTANCE), row.branch(row.uniforms))

    @property
    def length(self) -> int:
        """Return how many tokens the trial proposes."""
        return len(self.trial.steps) - len(self.kept.steps)

    @property
    def method(self) -> Cards:
        """Return the method's settings: how segments end and are accepted."""
        assert isinstance(self.kept.block, Cards)
        return self.kept.block

    @property
    def exact(self) -> bool:
        """Return whether everything is accepted, so that its KL is known."""
        return self.method.reward_threshold == -math.inf

    def complete(self, entropy: float) -> bool:
        """Return whether the segment ends before the next token, whose distribution has this entropy."""
        method = self.method
        unsure = self.length >= method.least_tokens and entropy >= method.entropy_threshold
        return unsure or self.length >= method.segment_tokens

    def judge(self, trial: _Trial) -> _Trial | None:
        """Return the trial that is kept: this one, or after the last rejection the best. None: another is drawn."""
        method = self.method
        tau = threshold(method, self.prompt_reward, len(trial.row.steps), trial.row.max_new_tokens)
        self.rated += 1
        # Accepted with probability min(1, exp((r - tau) / T)).
        if trial.reward >= tau or self.acceptance.random() < math.exp((trial.reward - tau) / method.temperature):
            return trial
        self.rejected += 1
        self.rejected_here += 1
        if self.best is None or trial.reward > self.best.reward:
            self.best = trial
        if self.rejected_here == method.retries:
            return self.best
        self.trial = self.kept.branch(_uniforms(self.kept, self.rejected))
        return None

    def accept(self, row: Row, start: "_Start") -> None:
        """Accept the segment, and go on from its end."""
        self.kept, self.start = row, start
        self.best, self.rejected_here = None, 0
        self.trial = row.branch(_uniforms(row, self.rejected))


def threshold(method: Cards, prompt_reward: float, tokens: int, max_new_tokens: int) -> float:
    """Return tau(n) = min(r*, tau0 + n (r* - tau0) / N), tau0 = (1 - alpha) r(prompt) + alpha r*.

    So it is in the authors' code.

    Args:
        tokens: n, of the response with its new segment.
        max_new_tokens: N.
    """
    goal = method.reward_threshold
    assert goal is not None
    if math.isinf(goal):
        return goal
    first = (1 - method.start_share) * prompt_reward + method.start_share * goal
    return min(goal, first + tokens * (goal - first) / max_new_tokens)


class CardsBatch:
    """The rows of an engine that draw segments: each draws and judges its own, all read a token a step."""

    def __init__(self, lm: CausalModel):
        self.lm = lm
        self.active: list[_Segments] = []
        self.batch: Rows | None = None

    @property
    def size(self) -> int:
        """Return how many rows of the language model the batch holds."""
        return len(self.active)

    def enter(self, rows: Sequence[Row]) -> list[Event]:
        """Read the rows' prompts; a row whose reward cannot begin fails."""
        begun, good, bad = started(self.lm, rows)
        if begun is None:
            return [(row.number, Failure(error)) for row, error in bad]
        failures: Failures = {}
        rewards = _values(begun, good, self.lm, failures)
        kept = [place for place in range(len(good)) if place not in failures]
        self.active += [_Segments.begin(good[place], _Start.of(begun, place), rewards[place]) for place in kept]
        if kept:
            begun.select(kept)
            self.batch = begun if self.batch is None else self.batch.joined(begun)
        return [*((row.number, Failure(error)) for row, error in bad), *_failed(failures, good)]

    def leave(self, number: int) -> None:
        """Let go of a request's row."""
        self._keep([place for place, row in enumerate(self.active) if row.kept.number != number])

    def step(self) -> list[Event]:
        """Draw a token for every row, and judge the segments that are complete."""
        if self.batch is None:
            return []
        trials = [row.trial for row in self.active]
        reasons, failures = self._draw(self.batch, trials)
        entropies = _entropy(self.batch.lm.logprobs).tolist()
        complete = [
            place
            for place, row in enumerate(self.active)
            if place not in failures and (reasons[place] or row.complete(entropies[place]))
        ]
        events: list[Event] = []
        leaving: set[int] = set()
        if complete:
            rewards = _values(self.batch, trials, self.lm, failures)
            judged, leaving = self._judge(self.batch, [p for p in complete if p not in failures], rewards, reasons)
            events += judged
        events += _failed(failures, trials)
        self._keep(remaining(len(self.active), leaving | set(failures)))
        return events

    def _draw(self, batch: Rows, trials: Sequence[Row]) -> tuple[list[str | None], Failures]:
        """Continue every trial by a token; return why each is finished, if it is."""
        steps, failures = plain_steps(trials, batch.lm.logprobs, self.lm)
        reasons: list[str | None] = [None] * len(trials)
        for place, step in steps.items():
            reasons[place] = trials[place].push(step, self.lm.eos_token_ids)
        token_ids = _last_tokens(trials, batch)
        batch.step(token_ids)
        return reasons, failures | batch.advance(token_ids, trials, self.lm)

    def _judge(
        self, batch: Rows, complete: Sequence[int], rewards: Sequence[float], reasons: Sequence[str | None]
    ) -> tuple[list[Event], set[int]]:
        """Accept or reject these segments; return the events of what was accepted, and the places of finished rows."""
        events: list[Event] = []
        back = [0] * len(self.active)
        other: list[int] = []  # rows that go on from another trial than the one just drawn
        leaving: set[int] = set()
        for place in complete:
            row = self.active[place]
            proposed, length = _Trial(row.trial, rewards[place], reasons[place]), row.length
            kept = row.judge(proposed)
            if kept is None:
                back[place] = length
                continue
            events += _settle(kept.row, len(row.kept.steps), kept.reward, exact=row.exact)
            if kept.reason is None:
                row.accept(kept.row, _Start.of(batch, place))
                if kept is not proposed:
                    other.append(place)
                continue
            kept.row.rated = row.rated
            events.append((kept.row.number, kept.row.finished(kept.reason, kept.reward)))
            leaving.add(place)
        # A rejected segment is taken back out of the caches; the row draws again from where the segment began.
        if any(back):
            starts = [row.start if back[place] else _Start.of(batch, place) for place, row in enumerate(self.active)]
            states = {layer: torch.stack([start.states[layer] for start in starts]) for layer in batch.lm.states}
            batch.rewind(back, torch.stack([start.logprobs for start in starts]), states)
        # The best rejected trial was taken back when it was rejected: its row is read anew.
        if other:
            arrived = Rows.start(self.lm, [self.active[place].kept for place in other])
            batch.replace(other, arrived)
            for number, place in enumerate(other):
                self.active[place].start = _Start.of(arrived, number)
        return events, leaving

    def _keep(self, places: Sequence[int]) -> None:
        if not places:
            self.batch = None
        elif self.batch is not None:
            self.batch.select(places)
        self.active = [self.active[place] for place in places]


def _entropy(logprobs: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
    """Return -sum p log p, in nats."""
    return -kl_divergence(logprobs, torch.zeros_like(logprobs))
