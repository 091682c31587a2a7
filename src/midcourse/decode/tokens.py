"""Rows that draw a token a step: the language model makes one pass for all of them, and each reward one for its own.

Rows of different methods, rewards, weights, limits and lengths stand side by side; a row's tokens do not depend on who
shares the batch. The samples of best-of-n are rows that nothing guides, compared when all of them are finished.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from midcourse.decode.blocks import BestOf
from midcourse.decode.candidates import Candidates
from midcourse.decode.guidance import add_clamped
from midcourse.decode.policy import Group, grouped, no_numbers, processed
from midcourse.decode.rows import Answers, Guided, Rows, at, prefix_question, started, weighted
from midcourse.decode.steps import Event, Failure, Failures, Row, Step, remaining
from midcourse.lm.contract import CausalModel
from midcourse.rewards.contract import Reward, RewardRows, VocabularyRows, checked_rewards
from midcourse.terminal import tell

Question: TypeAlias = Callable[[RewardRows, Sequence[int]], Tensor]  # a reward's rows, and which of its places they are


class TokenBatch:
    """The rows of an engine that draw a token a step.

    Attributes:
        best_of: by the number of a request for the best of n, its samples.
    """

    def __init__(self, lm: CausalModel):
        self.lm = lm
        self.best_of: dict[int, BestOf] = {}
        self.rows: list[Row] = []
        self.batch: Rows | None = None
        self.groups: list[Group] = []
        self._told = False

    @property
    def size(self) -> int:
        """Return how many rows of the language model the batch holds."""
        return len(self.rows)

    def enter(self, rows: Sequence[Row]) -> list[Event]:
        """Read the rows' prompts, so that they take part in the next step; a row whose reward cannot begin fails."""
        begun, good, bad = started(self.lm, rows)
        if begun is not None:
            self.batch = begun if self.batch is None else self.batch.joined(begun)
        self._hold([*self.rows, *good])
        failed = {row.number: error for row, error in bad}
        for number in failed:
            self.leave(number)
        return [(number, Failure(error)) for number, error in failed.items()]

    def leave(self, number: int) -> None:
        """Let go of a request's rows."""
        self.best_of.pop(number, None)
        self._keep([place for place, row in enumerate(self.rows) if row.number != number])

    def step(self) -> list[Event]:
        """Draw a token for every row, and let those that are finished or have failed go."""
        return [*(self._stepped(self.batch) if self.batch is not None else []), *self._compared()]

    def _stepped(self, batch: Rows) -> list[Event]:
        steps, failures = self._drawn(batch)
        reasons = {place: self.rows[place].push(step, self.lm.eos_token_ids) for place, step in steps.items()}
        drawn = [self.rows[place] for place in steps]
        events: list[Event] = [(row.number, row.steps[-1]) for row in drawn if row.number not in self.best_of]
        finished = {place: reason for place, reason in reasons.items() if reason is not None}
        last = [row.last_token if row.steps else 0 for row in self.rows]
        failures |= batch.advance(torch.tensor(last, device=batch.device), self.rows, self.lm)
        failures |= self._read_samples(batch)
        endings, gone = self._ended(batch, finished, failures)
        leaving = {place for place, row in enumerate(self.rows) if place in finished or row.number in gone}
        self._keep(remaining(len(self.rows), leaving))
        if self.batch is not None:
            self.batch.step(torch.tensor([row.last_token for row in self.rows], device=self.batch.device))
        return [*events, *endings]

    def _hold(self, rows: Sequence[Row]) -> None:
        self.rows, self.groups = list(rows), []
        if self.batch is not None:
            like = self.batch.lm.logprobs
            self.groups = grouped(self.rows, sorted(self.lm.eos_token_ids), like.device, like.dtype)

    def _keep(self, places: Sequence[int]) -> None:
        """Go on with these rows only."""
        if list(places) == list(range(len(self.rows))):
            return
        if self.batch is not None and places:
            self.batch.select(places)
        else:
            self.batch = None
        self._hold([self.rows[place] for place in places])

    # The parts of a step

    def _drawn(self, batch: Rows) -> tuple[dict[int, Step], Failures]:
        """Return the next step of each row by its place, and what went wrong with the others."""
        logprobs, failures = processed(self.rows, batch.lm.logprobs)
        spoken = self._vocabulary_rewards(batch, logprobs.shape[1], failures)
        said = [_of(group, spoken, group.method.ranked_by == "sum", logprobs.shape[1]) for group in self.groups]
        offers = [group.offer(at(logprobs, group.places), its) for group, its in zip(self.groups, said, strict=True)]
        bases = [group.base(candidates) for group, candidates in zip(self.groups, offers, strict=True)]
        skipped = [group.skippable(b, c) for group, b, c in zip(self.groups, bases, offers, strict=True)]
        rewarded = self._candidate_rewards(batch, offers, skipped, failures)
        steps: dict[int, Step] = {}
        for group, candidates, base, skips, its in zip(self.groups, offers, bases, skipped, said, strict=True):
            rewards = [one.gather(1, candidates.token_ids) for one in its]
            if group.method.ranked_by == "lm" and not all(skips):
                rewards = _of(group, rewarded, True, candidates.token_ids.shape[1])
            if group.method.guide is add_clamped and not self._told:
                self._told = _tell_of_clamping(group, rewards)
            policy, weights = group.policy(candidates, rewards, base, skips)
            failures |= no_numbers(self.lm, group, candidates, rewards, policy, failures)
            drawn = group.steps(candidates, rewards, base, policy, weights, skips, logprobs.shape[1])
            steps |= zip(group.places, drawn, strict=True)
        return {place: steps[place] for place in range(len(self.rows)) if place not in failures}, failures

    def _vocabulary_rewards(self, batch: Rows, vocabulary: int, failures: Failures) -> Answers:
        """Return what rewards give every token of the vocabulary, for rows whose method ranks by it."""
        asking = {id(reward) for group in self.groups if group.method.ranked_by == "sum" for reward in group.rewards}
        return self._answers(batch, asking, partial(_vocabulary_question, vocabulary, len(self.lm.tokenizer)), failures)

    def _candidate_rewards(
        self, batch: Rows, offers: Sequence[Candidates], skipped: Sequence[Sequence[bool]], failures: Failures
    ) -> Answers:
        """Return the rewards of the candidates: one pass of each reward for all rows that it guides.

        A reward is not asked if all its rows are so sure that they skip it. If rows have short lists of different
        length, the shorter ones are filled up with their first candidate.
        """
        asking = [
            (group, candidates)
            for group, candidates, skips in zip(self.groups, offers, skipped, strict=True)
            if group.method.ranked_by == "lm" and not all(skips)
        ]
        # Of rows that rank the vocabulary, whose rewards are known, any token will do.
        ids: dict[int, Tensor] = {}
        for group, candidates in zip(self.groups, offers, strict=True):
            width = None if group.method.ranked_by == "lm" else 1
            ids |= zip(group.places, candidates.token_ids[:, :width], strict=True)
        rewards = {id(reward) for group, _ in asking for reward in group.rewards}
        return self._answers(batch, rewards, partial(_candidate_question, asking, ids), failures)

    def _answers(
        self,
        batch: Rows,
        asking: set[int],
        question: Callable[[Guided], Question],
        failures: Failures,
    ) -> Answers:
        """Return what these rewards answer for all their rows; rows for which one raises are added to `failures`."""
        answers: Answers = {}
        for part in [part for key, part in batch.guided.items() if key in asking]:
            places = list(part.places)
            answer, bad = batch.ask(part, question(part), self.rows, self.lm)
            failures |= bad
            if answer is not None:
                answers[id(part.reward)] = places, answer
        return answers

    def _read_samples(self, batch: Rows) -> Failures:
        """Let rewards of the language model's own states say what they do of the samples of best-of-n so far."""
        failures: Failures = {}
        samples = [place for place, row in enumerate(self.rows) if row.number in self.best_of and row.guides]
        asking = {id(reward) for place in samples for reward in self.rows[place].rewards}
        for key, (places, answer) in self._answers(batch, asking, prefix_question, failures).items():
            values = dict(zip(places, answer.tolist(), strict=True))
            adds = batch.guided[key].reward.additive
            for place in samples:
                if place in values:
                    row = self.rows[place]
                    row.read[key] = values[place] + (row.read.get(key, 0.0) if adds else 0.0)
        return failures

    def _ended(self, batch: Rows, finished: dict[int, str], failures: Failures) -> tuple[list[Event], set[int]]:
        """Return the last events of requests, and the numbers of those that have failed."""
        final = self._final_rewards(batch, [place for place in finished if place not in failures], failures)
        failed = {self.rows[place].number: error for place, error in sorted(failures.items())}
        events: list[Event] = []
        for place, reason in finished.items():
            row = self.rows[place]
            if row.number in failed:
                continue
            samples = self.best_of.get(row.number)
            if samples is None:
                events.append((row.number, row.finished(reason, final[place])))
            else:
                samples.add(row, reason)
        return [*events, *((number, Failure(error)) for number, error in failed.items())], set(failed)

    def _compared(self) -> list[Event]:
        """Return the events of a request for the best of n that has all samples: one request a step, not to stall."""
        number = next((number for number, samples in self.best_of.items() if samples.complete), None)
        if number is None:
            return []
        try:
            return self.best_of.pop(number).compared(self.lm)
        except Exception as error:
            return [(number, Failure(error))]

    def _final_rewards(self, batch: Rows, places: Sequence[int], failures: Failures) -> dict[int, float | None]:
        """Return the reward of each finished response: its last step's, or if that was skipped, read now.

        Of rewards that add up it is the sum of all steps'; None if one was skipped, or if only some of them add up.
        """
        final = {place: self.rows[place].steps[-1].reward for place in places}
        skipped = []
        for place in places:
            row = self.rows[place]
            adding = [reward.additive for reward in row.rewards] if row.method.guide else []
            if any(adding):
                known = [step.reward for step in row.steps if step.reward is not None]
                final[place] = sum(known) if all(adding) and len(known) == len(row.steps) else None
            elif adding and final[place] is None:
                skipped.append(place)
        if skipped:
            asking = {id(reward) for place in skipped for reward in self.rows[place].rewards}
            answers = self._answers(batch, asking, prefix_question, failures)
            final |= {place: weighted(answers, self.rows[place], place) for place in skipped if place not in failures}
        return final


def _vocabulary_question(vocabulary: int, named: int, part: Guided) -> Question:
    """Return what asks a reward's rows for the rewards of the whole vocabulary, of which `named` ids have a token."""
    return lambda rows, which: _vocabulary_rewards(part.reward, rows, (len(which), vocabulary), named)


def _vocabulary_rewards(reward: Reward, rows: RewardRows, shape: tuple[int, int], named: int) -> Tensor:
    assert isinstance(rows, VocabularyRows)
    return checked_rewards(reward, "vocabulary_rewards", rows.vocabulary_rewards(), shape, named)


def _candidate_question(
    asking: Sequence[tuple[Group, Candidates]], ids: Mapping[int, Tensor], part: Guided
) -> Question:
    """Return what asks a reward's rows for the rewards of their candidates.

    Args:
        asking: groups that ask, whose candidates stand side by side.
        ids: the candidates of each row of the batch.
    """
    whole = next((c.token_ids for g, c in asking if g.places == part.places), None)
    token_ids = _filled([ids[place] for place in part.places]) if whole is None else whole
    return lambda rows, which: _candidate_rewards(part.reward, rows, at(token_ids, which))


def _candidate_rewards(reward: Reward, rows: RewardRows, token_ids: Tensor) -> Tensor:
    return checked_rewards(reward, "candidate_rewards", rows.candidate_rewards(token_ids), token_ids.shape)


def _of(group: Group, answers: Answers, asked: bool, width: int) -> list[Tensor]:
    """Return what each of a group's rewards answered for its rows, in `width` columns; nothing if not asked."""
    if not asked:
        return []
    columns = []
    for reward in group.rewards:
        places, answer = answers.get(id(reward), ([], group.weight))
        if places == group.places:
            columns.append(answer[:, :width])
        elif places:
            columns.append(answer[[places.index(place) for place in group.places], :width])
        else:  # it failed for all of its rows
            columns.append(group.weight.new_zeros(len(group.rows), width))
    return columns


def _filled(lists: Sequence[Tensor]) -> Tensor:
    """Return rows of candidates at one length, the shorter ones filled up with their first."""
    longest = max(map(len, lists))
    return torch.stack([torch.cat([ids, ids[:1].expand(longest - len(ids))]) for ids in lists])


def _tell_of_clamping(group: Group, rewards: Sequence[Tensor]) -> bool:
    """Say it if a reward lies beyond what RAD looks at, where it can steer nothing; return whether one did."""
    for reward, values in zip(group.rewards, rewards, strict=True):
        beyond = values[(values < 0) | (values > 1)]
        if len(beyond):
            tell(
                f"warning: rad takes every reward below 0 for 0 and above 1 for 1, and {reward.name} gives "
                f"{float(beyond[0]):.3g}; train it on labels from 0 to 1 (--objective cumulative), or use pargs"
            )
            return True
    return False
