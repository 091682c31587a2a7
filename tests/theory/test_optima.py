"""Each objective on a language whose every text is listed: its minimiser is what its docstring says."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from midcourse.train.objectives import (
    Loss,
    autoregressive,
    consistency,
    cumulative,
    prefix,
    sequence,
    value_max,
    value_mean,
    value_soft,
)
from tests.pace import slow_except
from tests.theory.tabular import (
    Language,
    bradley_terry_preferences,
    expected_label_loss,
    expected_loss,
    expectile_value,
    guided,
    law,
    max_value,
    mean_value,
    minimise,
    next_rewards,
    normals,
    random_preferences,
    random_text_rewards,
    rewards_of_pairs,
    soft_value,
    tilted,
    token_logprobs,
)

WEIGHT = 0.7
ENDINGS = pytest.mark.parametrize("eos", [None, 2], ids=["equal-lengths", "with-eos"])
SEEDS = pytest.mark.parametrize("seed", slow_except([0], range(3)))


def small(seed: int, eos: int | None = None) -> Language:
    return Language(seed, length=3, eos=eos)


def gradient(loss: Loss, at: Tensor) -> Tensor:
    point = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(point), point)
    return found


# ---- prefix: solved independently, by Zermelo's iteration ----


@SEEDS
def test_prefix_loss_has_no_slope_at_an_independent_solution(seed):
    """Equal-length texts: the loss is a Bradley-Terry likelihood per length, which Zermelo's iteration solves."""
    language = Language(seed, length=3)
    preferences = random_preferences(language, seed)
    rewards = torch.zeros(len(language.prefixes), dtype=torch.float64)
    for depth in range(1, language.length + 1):
        nodes = [n for n, length in enumerate(language.depth.tolist()) if length == depth]
        place = {node: i for i, node in enumerate(nodes)}
        wins = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)
        for (a, b), mass in zip(language.pairs.tolist(), preferences.tolist(), strict=True):
            one, other = (place[int(language.paths[text, depth - 1])] for text in (a, b))
            wins[one, other] += mass * (one != other)
        strengths = torch.ones(len(nodes), dtype=torch.float64)
        for _ in range(3000):
            meetings = (wins + wins.T) / (strengths[:, None] + strengths)
            strengths = wins.sum(1) / meetings.sum(1)
            strengths = strengths / strengths.log().mean().exp()
        rewards[nodes] = strengths.log()
    slope = gradient(lambda table: expected_loss(language, prefix, table, preferences), rewards)
    assert slope.abs().max() < 1e-12
    assert rewards[1:].std() > 0.05


# ---- value ----


@ENDINGS
@SEEDS
@pytest.mark.parametrize("kind", ["mean", "soft"])
def test_values_are_exact(seed, eos, kind):
    """E[R | prefix] and (1/w) log E[exp(w R) | prefix], also where texts have different lengths."""
    language = small(seed, eos)
    labels = random_text_rewards(language, seed)
    loss = {"mean": value_mean, "soft": partial(value_soft, weight=WEIGHT)}[kind]
    want = mean_value(language, labels) if kind == "mean" else soft_value(language, labels, WEIGHT)

    def expected(table: Tensor) -> Tensor:
        return expected_label_loss(language, loss, table, labels)

    assert gradient(expected, want).abs().max() < 1e-14
    have = minimise(expected, normals("start", seed, len(want)))
    assert torch.allclose(have[1:], want[1:], atol=1e-5)


@ENDINGS
@SEEDS
def test_soft_value_that_was_learned_guides_to_the_optimum(seed, eos):
    """pi exp(w V) token by token is the law pi exp(w R) / Z over texts."""
    language = small(seed, eos)
    labels = random_text_rewards(language, seed)
    table = minimise(
        lambda table: expected_label_loss(language, partial(value_soft, weight=WEIGHT), table, labels),
        torch.zeros(len(language.prefixes), dtype=torch.float64),
    )
    have = law(language, guided(language, table, WEIGHT))
    assert torch.allclose(have, tilted(law(language, language.logprobs), labels, WEIGHT), atol=1e-5)


def expected_value_max(language: Language, labels: Tensor, tau: float, table: Tensor) -> Tensor:
    return expected_label_loss(language, partial(value_max, expectile=tau), table, labels)


@SEEDS
def test_expectiles_rise_from_the_mean_towards_the_best(seed):
    language = small(seed)
    labels = random_text_rewards(language, seed)
    taus = (0.5, 0.9, 0.99, 0.9999)
    tables = [expectile_value(language, labels, tau) for tau in taus]
    for tau, table in zip(taus, tables, strict=True):
        slope = gradient(partial(expected_value_max, language, labels, tau), table)
        assert slope.abs().max() < 1e-14
    inner = slice(1, language.inner)
    best = max_value(language, labels)[inner]
    assert torch.allclose(tables[0], mean_value(language, labels))
    for lower, higher in pairwise(tables):
        assert (lower[inner] < higher[inner]).all()
    assert (tables[-1][inner] < best).all()
    assert (best - tables[-1][inner]).max() < 0.1 * (best - tables[0][inner]).max()


@SEEDS
def test_rad_learns_the_expected_label(seed):
    """Texts of one length: positions weigh differently, but all texts alike at each."""
    language = small(seed)
    labels = (random_text_rewards(language, seed) > 0).double()
    slope = gradient(
        lambda table: expected_label_loss(language, cumulative, table, labels), mean_value(language, labels)
    )
    assert slope.abs().max() < 1e-14


# ---- farma ----


@ENDINGS
@pytest.mark.parametrize("seed", slow_except([0], range(2)))
def test_farma_reaches_the_best_value(seed, eos):
    """Its two losses in alternation, from a random start: texts at R up to a constant, prefixes at their best end."""
    language = Language(seed, vocab=2 if eos is None else 3, length=3, eos=eos)
    labels = random_text_rewards(language, seed, scale=1.0)
    uniform = torch.full((len(labels),), 1 / len(labels), dtype=torch.float64).log()
    preferences = bradley_terry_preferences(language, labels, uniform)
    table = normals("start", seed, len(language.prefixes)).requires_grad_()
    optimizer = torch.optim.Adam([table], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1200)
    for _ in range(600):
        for phase in (0, 1):
            optimizer.zero_grad()
            loss = (
                expected_loss(language, sequence, table, preferences)
                if phase == 0
                else consistency(next_rewards(language, table), "stop").mean()
            )
            loss.backward()
            optimizer.step()
            schedule.step()
    want = max_value(language, labels)
    shift = (table.detach()[language.inner :] - labels).mean()
    assert torch.allclose(table.detach()[1:] - shift, want[1:], atol=0.02)


# ---- autoregressive ----


@ENDINGS
@SEEDS
def test_autoregressive_policy_is_that_of_the_reward(seed, eos):
    """With preferences by Bradley-Terry on R, pi_r(y) is proportional to exp(R / beta)."""
    language, beta = small(seed, eos), 0.5
    labels = random_text_rewards(language, seed, scale=1.0)
    preferences = bradley_terry_preferences(language, labels, law(language, language.logprobs))
    want = (labels / beta).log_softmax(0)

    def expected(rewards: Tensor) -> Tensor:
        return preferences @ autoregressive(rewards_of_pairs(language, rewards), beta)

    def of_logits(logits: Tensor) -> Tensor:
        found = torch.zeros(len(language.prefixes), dtype=torch.float64)
        return found.index_copy(
            0, language.children.flatten(), logits.view(language.inner, -1).log_softmax(1).flatten()
        )

    slope = gradient(lambda logits: expected(of_logits(logits)), logits_of(language, want))
    assert slope.abs().max() < 1e-13
    fitted = minimise(lambda logits: expected(of_logits(logits)), normals("start", seed, language.inner * 3))
    have = torch.stack([of_logits(fitted)[path.unique()].sum() for path in language.paths])
    assert torch.allclose(have, want, atol=1e-3)


def logits_of(language: Language, text_logprobs: Tensor) -> Tensor:
    return token_logprobs(language, text_logprobs)[language.children].flatten()
