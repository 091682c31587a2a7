"""The loop of PPO: write responses, pay their tokens, learn from them; step by step, from any step on.

Processes that train together write a step's responses in parts, know all of them, and compute parts of every update:
they end at the policy that one process ends at, but for rounding.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from midcourse.errors import MidcourseError
from midcourse.lm.prompt import Prompt, Template
from midcourse.ppo.advantages import centred, gae, group_relative, whitened
from midcourse.ppo.losses import (
    entropy,
    exact_kl,
    explained_variance,
    less_kl,
    mean,
    policy_loss,
    sampled_kl,
    value_loss,
)
from midcourse.ppo.policy import Policy, Tokens, chosen
from midcourse.ppo.rollouts import Payment, Rollout, write
from midcourse.ppo.settings import PPOError, PPOSettings
from midcourse.progress import Advance, silent
from midcourse.rewards.contract import Reward
from midcourse.train import processes

READ_AT_A_TIME = 16  # responses whose logits are held at once
KL_RATE = 0.1  # the most that the weight of the divergence changes by in a step, relative to itself
NORM = 1.0  # gradients are cut to
WRITING, READING = 0.4, 0.3  # about what share of a step's time it takes to write responses, and to read them again


class Measured(NamedTuple):
    """What the policy that wrote responses, and the reference, say of their tokens; all (batch, tokens).

    Attributes:
        kl: the exact divergence from the reference at the prefix before each token, in nats.
    """

    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    kl: Tensor
    entropy: Tensor


class Batch(NamedTuple):
    """A step's responses, ready to be learned from.

    Attributes:
        entering: of each, the states that enter the layers which are trained; see `Policy.entering`.
    """

    rows: list[tuple[Sequence[int], Sequence[int]]]
    entering: list[Tensor] | None
    tokens: Tokens
    measured: Measured
    advantages: Float[Tensor, "batch tokens"]
    returns: Float[Tensor, "batch tokens"]


@dataclass
class State:
    """What changes from step to step besides the weights.

    Attributes:
        step: how many are done.
        kl_weight: what a nat costs now.
        metrics: a row for each step.
        samples: texts to look at, with what their tokens were paid.
    """

    step: int = 0
    kl_weight: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)


class BadBatch(PPOError):
    """Rewards or a loss that nothing can be learned from; `record` holds the responses they are of."""

    def __init__(self, message: str, record: dict[str, Any]):
        super().__init__(message)
        self.record = record


class Run:
    """A run of PPO on its way.

    Args:
        policy: what is trained.
        prompts: all of them; they take turns.
        payment: what tokens are paid.
        gold: a reward that is measured beside it and that nothing learns from.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        payment: Payment,
        settings: PPOSettings,
        template: Template,
        gold: Reward | None = None,
    ):
        self.policy, self.prompts, self.payment, self.settings = policy, prompts, payment, settings
        self.template, self.gold = template, gold
        self.steps, self.total, self.save_every = settings.steps, settings.rollouts, settings.save_every
        self.state = State(kl_weight=settings.kl_weight)
        head = list(policy.head.parameters())
        others = [weight for weight in policy.trained().values() if all(weight is not own for own in head)]
        optimizer = torch.optim.AdamW(
            [{"params": others, "base": settings.lr}, {"params": head, "base": settings.value_lr}], weight_decay=0.0
        )
        self.accelerator = Accelerator(cpu=policy.head.weight.device.type == "cpu")
        self.model, self.optimizer = self.accelerator.prepare(policy, optimizer)

    def step(self, advance: Advance = silent) -> dict[str, Any]:
        """Do a step; return its row of metrics.

        Args:
            advance: told on the way how many responses' worth of work is done, less than all of it.

        Raises:
            BadBatch: rewards of a wrong shape, or a number that is none; a gold reward that fails.
        """
        settings, state = self.settings, self.state
        begin = state.step * settings.batch_size
        numbers = range(begin, min(begin + settings.batch_size, settings.rollouts))
        mine = processes.part(numbers)

        def writing(amount: int | float) -> None:
            advance(WRITING * amount)

        written = write(self.policy.lm, self.prompts, mine, settings, self.template, writing) if mine else []
        rollouts = processes.gathered(written)
        tokens = Tokens.of([one.row for one in rollouts], self.policy.head.weight.device)
        entering, measured = self._measured(rollouts, advance)
        paid, gold = self._paid(rollouts, tokens), self._gold(rollouts)
        batch = self._batch(rollouts, entering, tokens, measured, paid)
        learned = self._learn(batch, rollouts, advance)
        state.step += 1
        row = self._row(rollouts, tokens.mask, measured, paid, batch.returns) | gold | learned
        state.metrics.append(row)
        if settings.samples_every and (state.step % settings.samples_every == 0 or state.step in (1, settings.steps)):
            state.samples += _samples(state.step, rollouts, paid)
        if settings.kl_target is not None:
            state.kl_weight = adapted(state.kl_weight, row["kl"], settings.kl_target)
        return row

    @torch.no_grad()
    def _measured(self, rollouts: Sequence[Rollout], advance: Advance) -> tuple[list[Tensor] | None, Measured]:
        """Return what enters the layers that are trained, and what models say of the responses."""
        states: list[Tensor] = []
        parts, width = [], max(len(one.response_ids) for one in rollouts)
        for some in _chunks(processes.part(rollouts), READ_AT_A_TIME):
            tokens = Tokens.of([one.row for one in some], self.policy.head.weight.device)
            entering = self.policy.entering(tokens)
            if entering is not None:
                states += [own[: sum(map(len, one.row))].cpu() for own, one in zip(entering, some, strict=True)]
            outlook, reference = self.policy(tokens, entering), self.policy.reference_logits(tokens, entering)
            found = (
                outlook.logprobs(tokens),
                chosen(reference, tokens),
                outlook.values,
                exact_kl(outlook.logits, reference),
                entropy(outlook.logits),
            )
            room = (0, width - tokens.mask.shape[1])
            own = [torch.nn.functional.pad(torch.where(tokens.mask, one, 0.0), room) for one in found]
            parts.append(torch.stack(own, 1).cpu())
            advance(READING * len(some))
        whole = torch.cat(processes.gathered(parts)).to(self.policy.head.weight.device)
        return processes.gathered(states) or None, Measured(*whole.unbind(1))

    def _paid(self, rollouts: Sequence[Rollout], tokens: Tokens) -> Float[Tensor, "batch tokens"]:
        try:
            return self.payment(rollouts, tokens.mask).to(self.policy.head.weight.dtype)
        except MidcourseError as error:
            raise BadBatch(str(error), _record(rollouts)) from error

    def _gold(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Return the mean gold reward as an entry of a step's row; none without a gold reward."""
        if self.gold is None:
            return {}
        try:
            golds = self.gold.rate([one.as_text for one in rollouts])
        except MidcourseError as error:
            raise BadBatch(str(error), _record(rollouts)) from error
        return {"gold": sum(map(float, golds)) / len(golds)}

    def _batch(
        self,
        rollouts: Sequence[Rollout],
        entering: list[Tensor] | None,
        tokens: Tokens,
        measured: Measured,
        paid: Tensor,
    ) -> Batch:
        """Return what to learn from."""
        settings, mask = self.settings, tokens.mask
        rewards = centred(paid, mask) if settings.centre else paid
        cost = measured.kl
        if settings.kl != "exact":
            cost = sampled_kl(measured.logprobs, measured.reference_logprobs, settings.kl)
        rewards = less_kl(rewards, cost, mask, self.state.kl_weight, settings.kl)
        advantages, returns = gae(rewards, measured.values, mask, gamma=settings.gamma, lam=settings.lam)
        if settings.advantages == "group":
            groups = [one.prompt_number for one in rollouts]
            places = torch.tensor([sorted(set(groups)).index(group) for group in groups], device=mask.device)
            advantages = group_relative(rewards, mask, places, shaping=settings.shaping)
        if settings.whiten:
            advantages = whitened(advantages, mask)
        return Batch([one.row for one in rollouts], entering, tokens, measured, advantages, returns)

    def _learn(self, batch: Batch, rollouts: Sequence[Rollout], advance: Advance) -> dict[str, Any]:
        """Update the policy by a step's responses; return means over its updates."""
        settings, figures = self.settings, []
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * share_of_rate(self.state.step, settings.steps)
        drawn = random.Random(f"{settings.seed} updates {self.state.step}")
        for _ in range(settings.epochs):
            order = drawn.sample(range(len(batch.rows)), len(batch.rows))
            for some in _chunks(order, settings.minibatch):
                found = self._update(batch, some, rollouts)
                figures.append(found)
                advance((1 - WRITING - READING) * len(some) / settings.epochs)
                if settings.kl_stop and found["moved"] > settings.kl_stop:
                    return _means(figures)
        return _means(figures)

    def _update(self, batch: Batch, some: Sequence[int], rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Take a step of the optimiser on some of a batch's responses."""
        settings = self.settings
        mine = processes.part(some)
        whole = batch.tokens.mask[list(some)].sum()
        picked = list(mine or some[:1])  # a process without any computes along, for nothing
        tokens = Tokens.of([batch.rows[number] for number in picked], batch.tokens.mask.device)
        width = tokens.mask.shape[1]
        old = Measured(*(one[picked, :width] for one in batch.measured))
        entering = None
        if batch.entering is not None:
            entering = pad_sequence([batch.entering[number] for number in picked], batch_first=True)
            entering = entering.to(tokens.mask.device)
        outlook = self.model(tokens, entering)
        logprobs = outlook.logprobs(tokens)
        policy = policy_loss(logprobs, old.logprobs, batch.advantages[picked, :width], tokens.mask, settings.clip)
        returns = batch.returns[picked, :width]
        values = value_loss(outlook.values, old.values, returns, tokens.mask, settings.value_clip)
        # With no values to learn advantages from, the head is still part of the pass, and gains nothing.
        loss = policy.loss + (settings.value_weight if settings.advantages == "gae" else 0.0) * values
        if settings.kl == "exact" and self.state.kl_weight:
            apart = exact_kl(outlook.logits, self.policy.reference_logits(tokens, entering))
            loss = loss + self.state.kl_weight * mean(apart, tokens.mask)
        # Gradients are averaged over processes: weighted so, their mean is that of the tokens of all.
        share = len(mine) and (tokens.mask.sum() / whole).item()
        weight = processes.count() * share
        moved = mean(sampled_kl(old.logprobs, logprobs.detach(), "k3"), tokens.mask)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss * weight)
        norm = self.accelerator.clip_grad_norm_(list(self.policy.trained().values()), NORM)
        found = torch.tensor([policy.loss.item(), values.item(), policy.clipped, moved.item()]) * share
        sums = torch.tensor(processes.gathered([found.tolist()])).sum(0).tolist()
        named = dict(zip(("policy_loss", "value_loss", "clipped", "moved"), sums, strict=True))
        named["grad_norm"] = float(norm)
        if broken := [name for name, value in named.items() if not math.isfinite(value)]:
            raise BadBatch(
                f"the {broken[0].replace('_', ' ')} is {named[broken[0]]} in step {self.state.step + 1}; lower lr, "
                f"which is {settings.lr:g}, or look for broken weights in {self.policy.lm.name}",
                _record(rollouts),
            )
        self.optimizer.step()
        return named

    def _row(
        self, rollouts: Sequence[Rollout], mask: Tensor, measured: Measured, paid: Tensor, returns: Tensor
    ) -> dict[str, Any]:
        rewards, lengths = paid.sum(1), mask.sum(1)
        return {
            "step": self.state.step,
            "rollouts": rollouts[-1].number + 1,
            "reward": rewards.mean().item(),
            "kl": measured.kl.sum(1).mean().item(),
            "kl_weight": self.state.kl_weight,
            "entropy": mean(measured.entropy, mask).item(),
            "explained_variance": explained_variance(measured.values, returns, mask),
            "length": lengths.float().mean().item(),
            "finished": sum(one.finished for one in rollouts) / len(rollouts),
            "length_correlation": correlation(rewards, lengths.to(rewards.dtype)),
        }


def adapted(weight: float, kl: float, target: float) -> float:
    """Return the weight of the divergence after a step: higher if it was beyond the target, in nats per response.

    It changes in proportion to the relative error, fully from 20% of it on (as in Ziegler et al., 2019, but faster).
    """
    return weight * (1 + KL_RATE * max(-1.0, min(1.0, (kl / target - 1) / 0.2)))


def correlation(one: Tensor, other: Tensor) -> float | None:
    """Return Pearson's correlation; None if either does not vary."""
    if len(one) < 2 or not one.var() or not other.var():
        return None
    return torch.corrcoef(torch.stack([one, other]))[0, 1].item()


def share_of_rate(step: int, steps: int) -> float:
    """Return what share of the learning rate a step has: a short rise, then a cosine down to a tenth."""
    rise = max(1, round(0.05 * steps))
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def _means(figures: Sequence[dict[str, float]]) -> dict[str, Any]:
    found = {name: sum(one[name] for one in figures) / len(figures) for name in figures[0]}
    return {**found, "updates": len(figures)}


def _record(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return responses as JSON, for who wants to see what could not be learned from."""
    return {
        "rollouts": [
            {"prompt": one.prompt, "text": one.text, "token_ids": list(one.response_ids), "finished": one.finished}
            for one in rollouts
        ]
    }


def _samples(step: int, rollouts: Sequence[Rollout], paid: Tensor, most: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "prompt": one.prompt,
            "token_ids": list(one.response_ids),
            "rewards": paid[row, : len(one.response_ids)].tolist(),
        }
        for row, one in enumerate(rollouts[:most])
    ]
