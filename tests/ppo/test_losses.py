"""Losses of PPO by hand, and on a Markov decision process small enough to enumerate."""

import itertools
import math
from typing import Any

import pytest
import torch

from midcourse.ppo.advantages import at_end, gae
from midcourse.ppo.losses import (
    KL,
    entropy,
    exact_kl,
    explained_variance,
    less_kl,
    policy_loss,
    sampled_kl,
    value_loss,
)

NAN = math.nan
MASK = torch.tensor([[True, True, True, False]])


def test_the_policy_loss_by_hand():
    logprobs = torch.log(torch.tensor([[0.5, 0.2, 0.9, NAN]], dtype=torch.float64))
    old = torch.log(torch.tensor([[0.4, 0.4, 0.6, NAN]], dtype=torch.float64))
    advantages = torch.tensor([[1.0, -2.0, 2.0, NAN]], dtype=torch.float64)
    # Ratios 1.25, 0.5, 1.5: the first and the third are cut to 1.2, the second, whose advantage is negative, to 0.8.
    loss, clipped = policy_loss(logprobs, old, advantages, MASK, clip=0.2)
    assert loss.item() == pytest.approx(-(1.2 - 2 * 0.8 + 2 * 1.2) / 3)
    assert clipped == pytest.approx(1.0)
    loss, clipped = policy_loss(logprobs, old, -advantages, MASK, clip=0.2)
    assert loss.item() == pytest.approx(-(-1.25 + 2 * 0.5 - 2 * 1.5) / 3)
    assert clipped == 0


def test_the_value_loss_by_hand():
    values, old = torch.tensor([[1.0, 0.0, 0.1, NAN]]), torch.tensor([[0.0, 0.0, 0.0, NAN]])
    returns = torch.tensor([[1.0, 1.0, 0.0, NAN]])
    assert value_loss(values, old, returns, MASK, clip=0.2).item() == pytest.approx(0.5 * (0.64 + 1.0 + 0.01) / 3)
    assert value_loss(values, old, returns, MASK, clip=None).item() == pytest.approx(0.5 * (0.0 + 1.0 + 0.01) / 3)


def test_divergences_by_hand():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    want = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert exact_kl(p.log()[None, None], q.log()[None, None] + 3.0).item() == pytest.approx(want)
    logp, logq = p.log()[None], q.log()[None]
    for kind in ("k1", "k3"):  # both are right on average
        assert (p * sampled_kl(logp, logq, kind)[0]).sum().item() == pytest.approx(want)
    assert (sampled_kl(logp, logq, "k3") >= 0).all()
    assert entropy(p.log()[None, None]).item() == pytest.approx(1.5 * math.log(2))


def test_a_token_pays_for_the_divergence_it_leads_to():
    rewards, kl = torch.tensor([[1.0, 1.0, 1.0, NAN]]), torch.tensor([[0.1, 0.2, 0.4, NAN]])
    assert less_kl(rewards, kl, MASK, 2.0, "k1").tolist()[0] == pytest.approx([0.8, 0.6, 0.2, 0.0])
    assert less_kl(rewards, kl, MASK, 2.0, "exact").tolist()[0] == pytest.approx([0.6, 0.2, 1.0, 0.0])


def test_explained_variance():
    returns = torch.tensor([[1.0, 2.0, 3.0, NAN]])
    assert explained_variance(returns.clone(), returns, MASK) == 1
    assert explained_variance(torch.full_like(returns, 2.0), returns, MASK) == 0
    assert explained_variance(-returns, returns, MASK) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones_like(returns), MASK) == 0


# Three tokens, responses of four: 81 of them, and 40 prefixes.

TOKENS, LENGTH, BETA = 3, 4, 0.5
PREFIXES = [p for n in range(LENGTH) for p in itertools.product(range(TOKENS), repeat=n)]
NUMBER = {prefix: number for number, prefix in enumerate(PREFIXES)}
ALL = torch.tensor(list(itertools.product(range(TOKENS), repeat=LENGTH)))
PLACES = torch.tensor([[NUMBER[tuple(row[:t])] for t in range(LENGTH)] for row in ALL.tolist()])
EVERY = torch.ones(len(ALL), LENGTH, dtype=torch.bool)


def task() -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of the tokens of every response, and the reference's logits at every prefix."""
    generator = torch.Generator().manual_seed(0)
    of_next = torch.randn(len(PREFIXES), TOKENS, generator=generator, dtype=torch.float64)
    reference = torch.randn(len(PREFIXES), TOKENS, generator=generator, dtype=torch.float64)
    return of_next[PLACES, ALL], reference


def objective(logits: torch.Tensor, rewards: torch.Tensor, reference: torch.Tensor) -> float:
    """E[R] - beta KL, over all responses."""
    logprobs, known = (table.log_softmax(-1)[PLACES, ALL].sum(1) for table in (logits, reference))
    return (logprobs.exp() * (rewards.sum(1) - BETA * (logprobs - known))).sum().item()


def best(rewards: torch.Tensor, reference: torch.Tensor) -> float:
    """beta log E_ref exp(R / beta)."""
    known = reference.log_softmax(-1)[PLACES, ALL].sum(1)
    return BETA * (known + rewards.sum(1) / BETA).logsumexp(0).item()


def ppo(
    rewards: torch.Tensor, reference: torch.Tensor, kind: KL, *, term: bool = True, steps: int = 250, batch: int = 256
) -> torch.Tensor:
    """Train a table of logits and one of values from the reference on, by the functions under test.

    Args:
        term: the exact divergence is a term of the loss too.
    """
    torch.manual_seed(0)
    logits = reference.clone().requires_grad_()
    values = torch.zeros(len(PREFIXES), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, values], lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 * steps)
    mask = torch.ones(batch, LENGTH, dtype=torch.bool)
    for _ in range(steps):
        with torch.no_grad():
            chances = logits.log_softmax(-1)[PLACES, ALL].sum(1).exp()
            drawn = torch.multinomial(chances, batch, replacement=True)
            places, tokens = PLACES[drawn], ALL[drawn]
            old, known = (table.log_softmax(-1)[places, tokens] for table in (logits, reference))
            kl = exact_kl(logits, reference)[places] if kind == "exact" else sampled_kl(old, known, kind)
            paid = less_kl(rewards[drawn], kl, mask, BETA, kind)
            before = values[places].clone()
            advantages, returns = gae(paid, before, mask, lam=0.95)
        for _ in range(4):
            now = logits.log_softmax(-1)[places, tokens]
            loss = policy_loss(now, old, advantages, mask).loss
            loss = loss + value_loss(values[places], before, returns, mask, None)
            if kind == "exact" and term:
                loss = loss + BETA * exact_kl(logits, reference)[places].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    return logits.detach()


def missed(paid: torch.Tensor, kind: KL, **settings: Any) -> float:
    """What share of the way from the reference to the optimum is missed."""
    rewards, reference = task()
    reached = objective(ppo(paid, reference, kind, **settings), rewards, reference)
    most, least = best(rewards, reference), objective(reference, rewards, reference)
    return (most - reached) / (most - least)


@pytest.mark.parametrize("density", ["dense", "sparse"])
@pytest.mark.parametrize("kind", ["exact", "k1"])
def test_ppo_reaches_the_regularised_optimum(kind, density):
    rewards, _ = task()
    assert missed(rewards if density == "dense" else at_end(rewards.sum(1), EVERY), kind) < 0.02


def test_what_is_wrong_shows_itself():
    """Each reaches another policy: rewards paid a token late, as in TLCR's code, the exact divergence without its term
    of the loss, and k3 as a reward, whose gradient is not that of the divergence."""
    rewards, _ = task()
    late = torch.cat([torch.zeros_like(rewards[:, :1]), rewards[:, :-1]], 1)
    assert missed(late, "k1") > 0.1
    assert missed(rewards, "exact", term=False) > 0.03
    assert 0.02 < missed(rewards, "k3") < 0.1
