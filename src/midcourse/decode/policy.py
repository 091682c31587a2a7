"""The policy of a step: what rows that are drawn alike are offered, and with which probability each candidate is drawn.

Rows of one `Group` share an equation and the size of their short lists, so they are computed as one tensor. Weights,
temperatures, budgets and tolerances are each row's own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from midcourse.decode.candidates import Candidates, nucleus, short_list
from midcourse.decode.choice import draw, greedy_gap, largest_shift, normalise, uniforms_now, within_budget
from midcourse.decode.methods import Method, MethodError
from midcourse.decode.steps import Failures, Row, Step, as_steps
from midcourse.lm.contract import CausalModel
from midcourse.lm.load import ModelError
from midcourse.rewards.contract import Reward, described
from midcourse.rewards.info import RewardError


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of a batch that are drawn by one equation from short lists of one size.

    Attributes:
        rows: the rows.
        places: where each of them is in the batch.
        method: what they share: the equation, greedy or not, top_k, top_p, and what ranks their short lists.
        rewards: what guides them, one after the other.
        weight: what multiplies all of a row's rewards.
        shares: for each reward, each row's own weight of it.
        temperature: of each row's policy.
        always: tokens that are offered wherever they rank.
    """

    rows: Sequence[Row]
    places: list[int]
    method: Method
    rewards: tuple[Reward, ...]
    weight: Float[Tensor, "batch 1"]
    shares: list[Float[Tensor, "batch 1"]]
    temperature: Float[Tensor, "batch 1"]
    always: Int[Tensor, " always"] | None

    def offer(
        self, logprobs: Float[Tensor, "batch vocab"], spoken: Sequence[Float[Tensor, "batch vocab"]] = ()
    ) -> Candidates:
        """Return the candidates of every row.

        Args:
            spoken: of each reward, what it gives every token of the vocabulary, if the method ranks by it.
        """
        order = self.guide(logprobs, spoken, self.weight) if spoken else None
        return nucleus(short_list(logprobs, self.method.top_k, self.always, order), self.method.top_p, self.temperature)

    def base(self, candidates: Candidates) -> Float[Tensor, "batch candidates"]:
        """Return log b, the policy without rewards."""
        return normalise(candidates.logprobs, self.temperature)

    def guide(
        self,
        logprobs: Float[Tensor, "batch candidates"],
        rewards: Sequence[Float[Tensor, "batch candidates"]],
        weight: Float[Tensor, "batch 1"],
    ) -> Float[Tensor, "batch candidates"]:
        """Return the method's equation, applied for one reward after the other, each at its share of the weight."""
        assert self.method.guide is not None
        for reward, share in zip(rewards, self.shares, strict=True):
            logprobs = self.method.guide(logprobs, reward, weight * share)
        return logprobs

    def total(self, rewards: Sequence[Float[Tensor, "batch candidates"]]) -> Float[Tensor, "batch candidates"] | None:
        """Return the rewards' sum by their own weights, which is what a step reports; None without rewards."""
        if not rewards:
            return None
        weighted = [share * reward for reward, share in zip(rewards, self.shares, strict=True)]
        return sum(weighted[1:], weighted[0])

    def skippable(self, base: Float[Tensor, "batch candidates"], candidates: Candidates) -> list[bool]:
        """Return for which rows no reward within the range seen so far could change the choice by their tolerance."""
        tolerances = [row.limits.skip_tolerance for row in self.rows]
        if all(tolerance is None for tolerance in tolerances):
            return [False] * len(self.rows)
        seen = base.new_tensor([math.inf if row.spread is None else row.spread for row in self.rows])
        if self.method.greedy:
            sure = seen < greedy_gap(candidates.logprobs)
        else:
            allowed = base.new_tensor([-1.0 if tolerance is None else tolerance for tolerance in tolerances])
            sure = largest_shift(base, seen / self.temperature[:, 0]) <= allowed
        return [a and b is not None for a, b in zip(sure.tolist(), tolerances, strict=True)]

    def policy(
        self,
        candidates: Candidates,
        rewards: Sequence[Float[Tensor, "batch candidates"]],
        base: Float[Tensor, "batch candidates"],
        skipped: Sequence[bool],
    ) -> tuple[Float[Tensor, "batch candidates"], list[float]]:
        """Return log q and the weight that each row had of its own: what its budgets left of it, 0 if it was skipped.

        Rows remember how far their rewards spread.
        """
        if not rewards:
            return base, [0.0] * len(self.rows)
        at = partial(self._at, candidates, rewards)
        used = self.weight
        allowances = [_allowance(row) for row in self.rows]
        if min(allowances) < math.inf:
            left = torch.tensor(allowances, dtype=torch.float64, device="cpu").to(base.device)
            used = within_budget(at, base, self.weight, left)
        if any(skipped):
            used = used.masked_fill(torch.tensor(skipped, device=base.device)[:, None], 0.0)
        self._remember_spread(candidates, rewards, skipped)
        return at(used), used[:, 0].tolist()

    def _at(
        self, candidates: Candidates, rewards: Sequence[Float[Tensor, "batch candidates"]], weight: Tensor
    ) -> Float[Tensor, "batch candidates"]:
        """Return log q at a weight for each row."""
        return normalise(self.guide(candidates.logprobs, rewards, weight), self.temperature)

    def choose(self, policy: Float[Tensor, "batch candidates"]) -> Int[Tensor, " batch"]:
        """Return which candidate each row takes: the likeliest, or one drawn by its own uniform number."""
        if self.method.greedy:
            return policy.argmax(1)
        return draw(policy, uniforms_now([row.uniform for row in self.rows], policy.device))

    def steps(
        self,
        candidates: Candidates,
        rewards: Sequence[Float[Tensor, "batch candidates"]],
        base: Float[Tensor, "batch candidates"],
        policy: Float[Tensor, "batch candidates"],
        weights: Sequence[float],
        skipped: Sequence[bool],
        vocabulary: int,
    ) -> list[Step]:
        """Return each row's step, its text still to come. Rows count the rewards that were computed for them."""
        index = self.choose(policy)
        for row, count in zip(self.rows, self._rated(candidates, rewards, skipped, vocabulary), strict=True):
            row.rated += count
        return as_steps(candidates, self.total(rewards), base, policy, index, weights, skipped, self.method)

    def _rated(
        self, candidates: Candidates, rewards: Sequence[Tensor], skipped: Sequence[bool], vocabulary: int
    ) -> list[int]:
        if not rewards:
            return [0] * len(self.rows)
        if self.method.ranked_by == "sum":
            return [vocabulary] * len(self.rows)
        counts = (candidates.logprobs > -math.inf).sum(1).tolist()
        return [0 if skip else count for count, skip in zip(counts, skipped, strict=True)]

    def _remember_spread(self, candidates: Candidates, rewards: Sequence[Tensor], skipped: Sequence[bool]) -> None:
        if all(row.limits.skip_tolerance is None for row in self.rows):
            return
        possible = candidates.logprobs > -math.inf
        added = self.guide(torch.zeros_like(candidates.logprobs), rewards, self.weight)
        spread = added.masked_fill(~possible, -math.inf).amax(1) - added.masked_fill(~possible, math.inf).amin(1)
        for row, value, skip in zip(self.rows, spread.tolist(), skipped, strict=True):
            # What a skipped row did not ask for, its neighbours' pass must not tell it.
            if not skip:
                row.spread = value if row.spread is None else max(row.spread, value)


def _allowance(row: Row) -> float:
    """Return the nats that the row's next step may have; of its response's budget, a rounding error less is left."""
    step, response = row.limits.kl_per_token, row.limits.kl_budget
    left = math.inf if response is None else max(response * (1 - 1e-9) - row.spent, 0.0)
    return left if step is None else min(step, left)


def grouped(
    rows: Sequence[Row],
    eos_token_ids: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    places: Sequence[int] | None = None,
) -> list[Group]:
    """Return the rows of a batch in as few groups as can be.

    Args:
        eos_token_ids: what rows are offered that always want to be offered ends.
        dtype: of the language model's log-probabilities.
        places: where the rows are in the batch; by default in this order.
    """
    together: dict[tuple, list[int]] = {}
    for number, row in enumerate(rows):
        method = row.method
        rewards = tuple(id(reward) for reward in row.rewards) if method.guide else ()
        shape = method.guide, method.greedy, method.top_k, method.top_p, method.ranked_by
        together.setdefault((*shape, row.limits.always_offer_eos, rewards), []).append(number)
    return [
        _group([rows[n] for n in numbers], [n if places is None else places[n] for n in numbers], eos_token_ids, like)
        for numbers in together.values()
        for like in [torch.empty(0, device=device, dtype=dtype)]
    ]


def _group(rows: Sequence[Row], places: list[int], eos_token_ids: Sequence[int], like: Tensor) -> Group:
    first, always = rows[0], None
    guides = first.guides if first.method.guide else ()
    if first.limits.always_offer_eos:
        always = torch.tensor(sorted(eos_token_ids), device=like.device)
    return Group(
        rows,
        places,
        replace(first.method, reward_weight=1.0, temperature=1.0),
        tuple(reward for reward, _ in guides),
        like.new_tensor([[row.method.reward_weight] for row in rows]),
        [like.new_tensor([[row.guides[i][1]] for row in rows]) for i in range(len(guides))],
        like.new_tensor([[row.method.policy_temperature] for row in rows]),
        always,
    )


def processed(
    rows: Sequence[Row], logprobs: Float[Tensor, "batch vocab"]
) -> tuple[Float[Tensor, "batch vocab"], Failures]:
    """Return the log-probabilities after the rows' processors: each sees its own prompt and response, unpadded.

    Returns:
        They, and the places of rows whose processor raises something, returns no log-probabilities or leaves no token.
    """
    if all(row.limits.logits_processor is None for row in rows):
        return logprobs, {}
    scores: list[Tensor] = []
    failures: Failures = {}
    for place, row in enumerate(rows):
        scores.append(logprobs[place : place + 1])
        if row.limits.logits_processor is None:
            continue
        try:
            scores[-1] = _processed_row(row, scores[-1])
        except Exception as error:
            failures[place] = error
    return torch.cat(scores), failures


def _processed_row(row: Row, logprobs: Float[Tensor, "1 vocab"]) -> Float[Tensor, "1 vocab"]:
    """Return a row's log-probabilities after its processor; MethodError if that returns something else."""
    assert row.limits.logits_processor is not None
    where = f"for prompt {row.number + 1} at step {len(row.steps) + 1}"
    numbers = not bool(logprobs.isnan().any())  # before the processor, which may change them in place
    changed: Any = row.limits.logits_processor(torch.tensor([row.token_ids], device=logprobs.device), logprobs)
    right = isinstance(changed, Tensor) and changed.is_floating_point() and changed.shape == logprobs.shape
    if not right:
        raise MethodError(
            f"the logits processor returned {described(changed)} {where}; "
            f"return log-probabilities as a tensor of {logprobs.dtype} of shape {tuple(logprobs.shape)}"
        )
    if numbers and bool((changed.isnan() | (changed == math.inf)).any()):
        strange = "nan" if bool(changed.isnan().any()) else "inf"
        raise MethodError(
            f"the logits processor gives a token the log-probability {strange} {where}; "
            "return finite numbers, and -inf for what is impossible"
        )
    if bool((changed == -math.inf).all()):
        raise MethodError(
            f"the logits processor leaves prompt {row.number + 1} no token at step {len(row.steps) + 1}; "
            "it has to leave at least one"
        )
    return changed.to(logprobs)


def plain_steps(
    rows: Sequence[Row], logprobs: Float[Tensor, "batch vocab"], lm: CausalModel
) -> tuple[dict[int, Step], Failures]:
    """Return the next step of each row, by its place, as plain decoding draws and reports it; its text is to come.

    Returns:
        They, and what is wrong with rows that have none.
    """
    logprobs, failures = processed(rows, logprobs)
    drawn: dict[int, Step] = {}
    for group in grouped(rows, (), logprobs.device, logprobs.dtype):
        candidates = group.offer(logprobs[group.places])
        base, nobody = group.base(candidates), [False] * len(group.rows)
        failures |= no_numbers(lm, group, candidates, (), base, failures)
        steps = group.steps(candidates, (), base, base, [0.0] * len(group.rows), nobody, 0)
        drawn |= {place: step for place, step in zip(group.places, steps, strict=True) if place not in failures}
    return drawn, failures


def no_numbers(
    lm: CausalModel,
    group: Group,
    candidates: Candidates,
    rewards: Sequence[Float[Tensor, "batch candidates"]],
    policy: Float[Tensor, "batch candidates"],
    known: Failures,
) -> Failures:
    """Return what is wrong with rows whose policy is not a number: the language model or a reward says nothing.

    Args:
        known: rows of the batch that have failed already.
    """
    failures: Failures = {}
    for number, broken in enumerate(policy.isnan().any(1).tolist()):
        place, row = group.places[number], group.rows[number]
        if not broken or place in known:
            continue
        where = f"for prompt {row.number + 1} at step {len(row.steps) + 1}"
        if bool(candidates.logprobs[number].isnan().any()):
            failures[place] = ModelError(
                f"the language model {lm.name} gives log-probabilities that are not numbers {where}; "
                "restore its weights, or try another dtype, such as float32"
            )
            continue
        possible = candidates.logprobs[number] > -math.inf
        strange = [
            (reward.name, float(value))
            for reward, values in zip(group.rewards, rewards, strict=True)
            for value in values[number][possible]
            if not math.isfinite(value)
        ]
        name, value = strange[0] if strange else ("the reward", math.inf)
        failures[place] = RewardError(
            f"{name} gives a candidate the reward {value} {where}; it has to be a finite number"
        )
    return failures
