"""Rows of the language model and, of each reward, the rows that it guides: started, moved and read together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midcourse.decode.steps import Failures, Row
from midcourse.lm.contract import CausalModel, CausalRows
from midcourse.lm.prompt import Prefix
from midcourse.rewards.contract import FollowedRows, Reward, RewardRows, StateReader, checked_rewards

Answer = TypeVar("Answer")
Answers = dict[int, tuple[list[int], Tensor]]  # by the identity of a reward: places of rows, and what it says of them


@dataclass
class Guided:
    """The rows of a batch that one reward guides.

    Attributes:
        rows: the reward's own rows.
        followed: which rows of the batch they are, in the order of `rows`.
    """

    reward: Reward
    rows: RewardRows
    followed: FollowedRows

    @property
    def places(self) -> list[int]:
        """Return which rows of the batch they are."""
        return self.followed.places


class Rows:
    """A batch of rows under a language model, and under each reward those that it guides.

    Attributes:
        lm: the language model's rows.
        guided: by the identity of a reward, its rows.
    """

    def __init__(self, lm: CausalRows, guided: dict[int, Guided]):
        self.lm = lm
        self.guided = guided

    @classmethod
    def start(cls, lm: CausalModel, rows: Sequence[Row]) -> "Rows":
        """Read prompts and begun responses. The rows of one request that begin alike are read once."""
        begins = [(row.number, row.so_far) for row in rows]
        distinct = {repr(begin): row for begin, row in zip(begins, rows, strict=True)}
        started = cls._read(lm, list(distinct.values()))
        if len(distinct) < len(rows):
            order = list(distinct)
            started.select([order.index(repr(begin)) for begin in begins])
        return started

    @classmethod
    def _read(cls, lm: CausalModel, rows: Sequence[Row]) -> "Rows":
        rewards = {id(reward): reward for row in rows for reward in row.rewards}
        layers = sorted({reward.layer for reward in rewards.values() if reward.layer is not None})
        prefixes, room = [row.so_far for row in rows], max(row.max_new_tokens - len(row.steps) for row in rows)
        lm_rows = lm.start([prefix.token_ids for prefix in prefixes], room, layers)
        candidates = max(_candidates(lm, row) for row in rows)
        guided = {}
        for key, reward in rewards.items():
            places = [place for place, row in enumerate(rows) if any(own is reward for own in row.rewards)]
            begun = reward.start([prefixes[place] for place in places], room, candidates)
            guided[key] = Guided(reward, begun, FollowedRows(lm_rows, places))
            if reward.layer is not None:
                assert isinstance(begun, StateReader)
                begun.follow(guided[key].followed)
        return cls(lm_rows, guided)

    @property
    def count(self) -> int:
        """Return how many rows there are."""
        return len(self.lm.lengths)

    @property
    def device(self) -> torch.device:
        """Return the device of the language model's log-probabilities."""
        return self.lm.logprobs.device

    def select(self, places: Sequence[int]) -> None:
        """Keep only these rows, in this order; a row may be named again and again. Rewards without rows are let go."""
        if list(places) == list(range(self.count)):
            return
        self.lm.select(places)
        for key, part in list(self.guided.items()):
            number = {place: row for row, place in enumerate(part.places)}
            kept = [(place, number[old]) for place, old in enumerate(places) if old in number]
            if not kept:
                del self.guided[key]
                continue
            part.rows.select([row for _, row in kept])
            part.places[:] = [place for place, _ in kept]

    def replace(self, places: Sequence[int], other: "Rows") -> None:
        """Put the rows of `other` at these places, whose own rows may be under other rewards."""
        for key, part in list(self.guided.items()):
            stay = [row for row, place in enumerate(part.places) if place not in places]
            if not stay:
                del self.guided[key]
            elif len(stay) < len(part.places):
                part.rows.select(stay)
                part.places[:] = [part.places[row] for row in stay]
        self.lm.replace(places, other.lm)
        for key, theirs in other.guided.items():
            new = [places[place] for place in theirs.places]
            mine = self.guided.get(key)
            if mine is None:
                theirs.followed.rows = self.lm
                theirs.places[:] = new
                self.guided[key] = theirs
                continue
            old = len(mine.places)
            mine.rows.select([*range(old), *[0] * len(new)])  # any row: they are overwritten at once
            mine.rows.replace(range(old, old + len(new)), theirs.rows)
            mine.places[:] = [*mine.places, *new]

    def joined(self, other: "Rows") -> "Rows":
        """Return itself, with the rows of `other` behind its own."""
        count, new = self.count, other.count
        self.lm.select([*range(count), *[0] * new])  # any row: they are overwritten at once
        self.replace(range(count, count + new), other)
        return self

    def step(self, token_ids: Int[Tensor, " batch"]) -> None:
        """Append a token to every row under the language model."""
        self.lm.step(token_ids)

    def advance(self, token_ids: Int[Tensor, " batch"], rows: Sequence[Row], lm: CausalModel) -> Failures:
        """Append a token to every row under the rewards; return the places of rows for which one raises something.

        Those for which it does not go on, as in `ask`.

        Args:
            rows: the rows of the batch, which have taken the token already.
        """
        failures: Failures = {}
        for part in list(self.guided.values()):
            own = at(token_ids, part.places)
            try:
                part.rows.advance(own)
            except Exception as error:
                before = [_without_last(rows[place].so_far) for place in part.places]

                def again(begun: RewardRows, which: Sequence[int], own: Tensor = own) -> None:
                    begun.advance(own[list(which)])

                failures |= self._apart(part, error, again, before, rows, lm)[1]
        return failures

    def rewind(
        self,
        counts: Sequence[int],
        logprobs: Float[Tensor, "batch vocab"],
        states: Mapping[int, Float[Tensor, "batch hidden"]],
    ) -> None:
        """Take that many tokens off each row, to where these were the language model's log-probabilities and states."""
        self.lm.rewind(counts, logprobs, states)
        for part in self.guided.values():
            part.rows.rewind([counts[place] for place in part.places])

    def ask(
        self,
        part: Guided,
        question: Callable[[RewardRows, list[int]], Float[Tensor, "rows *asked"]],
        rows: Sequence[Row],
        lm: CausalModel,
    ) -> tuple[Float[Tensor, "rows *asked"] | None, Failures]:
        """Return what a reward answers for all its rows, and the places of those for which it raises something.

        When it raises, each row is begun anew and asked alone; those that answer go on together, and the others are no
        longer among the reward's rows. Rows that read the language model's states cannot be begun anew: all fail.

        Args:
            question: a reward's rows, and which of `part.places` they are, to its answer.
            rows: the rows of the batch.

        Returns:
            The answer, with 0 for rows that failed; None if all have.
        """
        count = len(part.places)
        try:
            return question(part.rows, list(range(count))), {}
        except Exception as error:
            prefixes = [rows[place].so_far for place in part.places]
            answers, failures = self._apart(part, error, question, prefixes, rows, lm)
        if not answers:
            return None, failures
        nothing = torch.zeros_like(next(iter(answers.values()))[0])
        return torch.stack([answers[n][0] if n in answers else nothing for n in range(count)]), failures

    def _apart(
        self,
        part: Guided,
        error: Exception,
        act: Callable[[RewardRows, list[int]], Answer],
        prefixes: Sequence[Prefix],
        rows: Sequence[Row],
        lm: CausalModel,
    ) -> tuple[dict[int, Answer], Failures]:
        """Let each row of a reward that has raised `error` do alone what all together could not.

        Args:
            prefixes: where each row begins anew.

        Returns:
            What came of it, by the row's number among `part.places`, and the errors of the others by their places.
            Only the former stay among the reward's rows.
        """
        places = list(part.places)
        if part.reward.layer is not None:  # its rows read the language model's states, and cannot begin anew
            return {}, dict.fromkeys(places, error)

        def anew(which: Sequence[int]) -> RewardRows:
            own = [rows[places[number]] for number in which]
            room = max(row.max_new_tokens - len(prefixes[n].response_ids) for row, n in zip(own, which, strict=True))
            return part.reward.start([prefixes[n] for n in which], room, max(_candidates(lm, row) for row in own))

        done: dict[int, Answer] = {}
        failures: Failures = {}
        for number, place in enumerate(places):
            try:
                done[number] = act(anew([number]), [number])
            except Exception as own:
                failures[place] = own
        if done:
            try:
                part.rows = anew(list(done))
                act(part.rows, list(done))  # what is asked next may build on it
            except Exception as together:  # each can alone, but they cannot side by side
                done, failures = {}, {**dict.fromkeys(places, together), **failures}
        if done:
            part.places[:] = [places[number] for number in done]
        else:
            del self.guided[id(part.reward)]
        return done, failures


def prefix_question(part: Guided) -> Callable[[RewardRows, Sequence[int]], Float[Tensor, " rows"]]:
    """Return what asks a reward's rows for the rewards of their prefixes."""
    return lambda rows, which: checked_rewards(part.reward, "prefix_rewards", rows.prefix_rewards(), (len(which),))


def _without_last(prefix: Prefix) -> Prefix:
    """Return the prefix before the newest token of its response, if it has one."""
    return prefix._replace(response_ids=prefix.response_ids[:-1])


def at(values: Tensor, places: Sequence[int]) -> Tensor:
    """Return what a tensor holds for these rows of a batch; the tensor itself if they are all of them, in order."""
    return values if list(places) == list(range(len(values))) else values[list(places)]


def _candidates(lm: CausalModel, row: Row) -> int:
    """Return the most candidates that a row's step may have."""
    ends = len(lm.eos_token_ids) if row.limits.always_offer_eos else 0
    return min(row.method.top_k or 0, lm.vocab_size) + ends


def started(lm: CausalModel, rows: Sequence[Row]) -> tuple[Rows | None, list[Row], list[tuple[Row, Exception]]]:
    """Return a batch of those rows whose rewards can begin at them, these rows, and the others with their errors."""
    try:
        return Rows.start(lm, rows), list(rows), []
    except Exception as error:
        if len(rows) == 1:
            return None, [], [(rows[0], error)]
    good: list[Row] = []
    bad: list[tuple[Row, Exception]] = []
    for row in rows:
        try:
            Rows.start(lm, [row])
            good.append(row)
        except Exception as error:
            bad.append((row, error))
    return (Rows.start(lm, good) if good else None), good, bad


def weighted(prefix_rewards: Answers, row: Row, place: int) -> float:
    """Return the reward of a row's text: the sum of all its rewards by their weights.

    Args:
        prefix_rewards: what each reward says of the prefix of each of its rows.
    """
    answers = [(prefix_rewards[id(reward)], weight) for reward, weight in row.guides]
    return sum(weight * float(answer[places.index(place)]) for (places, answer), weight in answers)
