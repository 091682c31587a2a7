"""The loss of ladders: ReMoDetect's two weightings by hand, and their generalisation to any number of levels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from midcourse.train.objectives import (
    PRESETS,
    LadderRewards,
    ObjectiveError,
    PairRewards,
    check_data,
    check_head,
    make_objective,
    sequence,
)


def f(p: float, n: float, penalty: float = 0.0) -> float:
    """-log sigmoid(p - n), in plain arithmetic, and the penalty on both."""
    return math.log1p(math.exp(n - p)) + penalty * 0.5 * (p * p + n * n)


def loss_of(rewards: LadderRewards, **settings) -> Tensor:
    return make_objective("ordered", **settings).phases[0].loss(rewards)


# machine 2, mixed 0.5, human -1; replayed texts at 3 and 1, before training at 1 and 1.5
LEVELS = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 0.25]], dtype=torch.float64)
COUNTS = torch.tensor([3, 3])
NOW, BEFORE = torch.tensor([3.0, 1.0], dtype=torch.float64), torch.tensor([1.0, 1.5], dtype=torch.float64)
STEP = LadderRewards(LEVELS, COUNTS, NOW, BEFORE, 2)


def test_the_papers_weighting_by_hand():
    """L = F(machine, human) + 0.3 F(mixed, human) + 0.3 F(machine, mixed) + 0.01 mean (r - r0)^2."""
    want = [
        f(2, -1) + 0.3 * f(0.5, -1) + 0.3 * f(2, 0.5) + 0.01 * (3 - 1) ** 2,
        f(0, 0.25) + 0.3 * f(1, 0.25) + 0.3 * f(0, 1) + 0.01 * (1 - 1.5) ** 2,
    ]
    have = loss_of(STEP)
    assert have.tolist() == pytest.approx(want, abs=1e-12)
    assert have[0].item() == pytest.approx(0.048587 + 0.3 * 0.201413 + 0.3 * 0.201413 + 0.04, abs=1e-6)


def test_the_codes_weighting_by_hand():
    """1/3 [0.3 F(machine, mixed) + F(machine, human) + 0.3 F(mixed, human)] + 0.01 sum (r - r0)^2, F with a penalty."""
    first = 0.3 * f(2, 0.5, 0.01) + f(2, -1, 0.01) + 0.3 * f(0.5, -1, 0.01)
    second = 0.3 * f(0, 1, 0.01) + f(0, 0.25, 0.01) + 0.3 * f(1, 0.25, 0.01)
    want = ((first + second) / 3) / 2 + 0.01 * ((3 - 1) ** 2 + (1 - 1.5) ** 2)
    assert loss_of(STEP, preset="code").mean().item() == pytest.approx(want, abs=1e-12)


def test_the_three_traps_between_paper_and_code():
    """Each setting by itself takes the paper's value to what the code's differs in, and all three make them equal."""
    plain = make_objective("ordered").settings
    code = make_objective("ordered", preset="code").settings
    assert {name for name in plain if plain[name] != code[name]} == {
        "preset", "logit_penalty", "divide_by_terms", "replay_reduction",
    }  # fmt: skip
    alone = LadderRewards(LEVELS, COUNTS)
    # (a) the mean over three terms: a third of the loss, so that lambda counts for three times as much
    assert loss_of(alone, divide_by_terms=True).tolist() == pytest.approx((loss_of(alone) / 3).tolist(), abs=1e-12)
    # (b) the penalty on rewards: of 2, 0.5, -1 with weights 0.3, 1, 0.3
    more = 0.01 * 0.5 * (0.3 * (4 + 0.25) + 1.0 * (4 + 1) + 0.3 * (0.25 + 1))
    assert (loss_of(alone, logit_penalty=0.01) - loss_of(alone))[0].item() == pytest.approx(more, abs=1e-12)
    # (c) a sum that grows with the batch while the rest does not
    drift = [(loss_of(one) - loss_of(alone)).mean().item() for one in (STEP, STEP._replace(step=32))]
    summed = [
        (loss_of(one, replay_reduction="sum") - loss_of(alone)).mean().item() for one in (STEP, STEP._replace(step=32))
    ]
    assert drift == pytest.approx([0.01 * 4.25 / 2] * 2, abs=1e-12)
    assert summed == pytest.approx([0.01 * 4.25, 16 * 0.01 * 4.25], abs=1e-12)
    all_three = {"logit_penalty": 0.01, "divide_by_terms": True, "replay_reduction": "sum"}
    assert torch.equal(loss_of(STEP, **all_three), loss_of(STEP, preset="code"))
    assert abs(loss_of(STEP).mean() - loss_of(STEP, preset="code").mean()) > 0.3


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_gradients_by_hand(preset):
    levels, now = LEVELS[:1].clone().requires_grad_(), NOW[:1].clone().requires_grad_()
    loss_of(LadderRewards(levels, COUNTS[:1], now, BEFORE[:1], 4), preset=preset).sum().backward()

    def slope(p: float, n: float) -> float:
        return 1 / (1 + math.exp(p - n))  # of F by n; by p it is minus that

    m, x, h = 2.0, 0.5, -1.0
    mh, xh, mx = slope(m, h), 0.3 * slope(x, h), 0.3 * slope(m, x)
    want = [-mh - mx, mx - xh, mh + xh]
    drift = 0.01 * 2 * (3 - 1)
    if preset == "code":
        squared = [0.01 * m * 1.3, 0.01 * x * 0.6, 0.01 * h * 1.3]
        want = [(one + other) / 3 for one, other in zip(want, squared, strict=True)]
        drift *= 4
    assert levels.grad[0].tolist() == pytest.approx(want, abs=1e-12)
    assert now.grad.tolist() == pytest.approx([drift], abs=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_derivatives_are_those_of_the_loss(preset):
    loss = make_objective("ordered", preset=preset).phases[0].loss
    levels, now = LEVELS.clone().requires_grad_(), NOW.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(LadderRewards(a, COUNTS, b, BEFORE, 2)), (levels, now))


def test_any_number_of_levels_by_hand():
    """Weight 1 for the first and the last level, 0.3 for each of the other nine pairs of five levels."""
    levels = [1.5, 1.0, 0.75, -0.25, -1.0]
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    want = sum((1.0 if (i, j) == (0, 4) else 0.3) * f(levels[i], levels[j]) for i, j in pairs)
    rewards = LadderRewards(torch.tensor([levels], dtype=torch.float64), torch.tensor([5]))
    assert loss_of(rewards).item() == pytest.approx(want, abs=1e-12)
    assert loss_of(rewards, divide_by_terms=True).item() == pytest.approx(want / 10, abs=1e-12)
    weighted = sum((2.0 if (i, j) == (0, 4) else 0.5) * f(levels[i], levels[j]) for i, j in pairs)
    assert loss_of(rewards, extreme_weight=2.0, other_weight=0.5).item() == pytest.approx(weighted, abs=1e-12)


def test_two_levels_are_an_ordinary_pair():
    pair = PairRewards(
        *(torch.tensor([[value]]) for value in (2.0, -1.0)), *[torch.tensor([1])] * 2, *[torch.tensor([True])] * 2
    )
    rewards = LadderRewards(torch.tensor([[2.0, -1.0]]), torch.tensor([2]))
    for given_settings in ({}, {"other_weight": 0.0}, {"divide_by_terms": True}):
        assert loss_of(rewards, **given_settings).tolist() == sequence(pair).tolist()


@settings(max_examples=50)
@given(
    ladders=st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=5), min_size=1, max_size=4),
    fill=st.sampled_from([0.0, math.nan, math.inf]),
    preset=st.sampled_from(list(PRESETS)),
)
def test_ladders_of_all_lengths_share_a_batch(ladders, fill, preset):
    """What stands beyond a ladder's levels reaches neither the loss nor the gradient, and no ladder another's."""
    widest = max(map(len, ladders))
    padded = torch.tensor([[*one, *[fill] * (widest - len(one))] for one in ladders], dtype=torch.float64)
    padded.requires_grad_()
    together = loss_of(LadderRewards(padded, torch.tensor([len(one) for one in ladders])), preset=preset)
    together.sum().backward()
    for i, one in enumerate(ladders):
        alone = torch.tensor([one], dtype=torch.float64, requires_grad=True)
        loss = loss_of(LadderRewards(alone, torch.tensor([len(one)])), preset=preset)
        loss.sum().backward()
        assert together[i].item() == pytest.approx(loss.item(), abs=1e-12)
        assert padded.grad[i, : len(one)].tolist() == pytest.approx(alone.grad[0].tolist(), abs=1e-12)
        assert not padded.grad[i, len(one) :].any()


def test_settings_overrule_a_preset_and_are_recorded():
    assert make_objective("ordered").settings == {"preset": "paper", **PRESETS["paper"]}
    made = make_objective("ordered", preset="code", other_weight=0.35, divide_by_terms=False, replay_weight=0.0)
    assert made.settings == {
        "preset": "code", "extreme_weight": 1.0, "other_weight": 0.35, "logit_penalty": 0.01,
        "divide_by_terms": False, "replay_weight": 0.0, "replay_reduction": "sum",
    }  # fmt: skip
    assert make_objective("ordered", **made.settings).settings == made.settings
    assert made.of == "ladders" and made.turns == 1 and not made.from_mean
    assert PRESETS["code"]["other_weight"] == 0.3  # the preset itself stays as it is


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "slides"}, "preset 'slides' is unknown; use one of: paper, code"),
        ({"replay_reduction": "max"}, "replay-reduction 'max' is unknown; use one of: mean, sum"),
        ({"other_weight": -0.1}, "other-weight is -0.1; use 0 or more"),
        ({"replay_weight": math.inf}, "replay-weight is inf; use 0 or more"),
        ({"logit_penalty": math.nan}, "logit-penalty is nan; use 0 or more"),
        ({"extreme_weight": 0.0, "other_weight": 0.0}, "extreme-weight and other-weight are both 0"),
        ({"beta": 0.3}, "objective ordered has no beta; leave it out"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ObjectiveError, match=message):
        make_objective("ordered", **given)


def test_it_learns_from_ladders_alone_and_nothing_else_does():
    ordered = make_objective("ordered")
    check_data(ordered, "ladders")
    for kind in ("comparisons", "rollouts", "edits"):
        with pytest.raises(
            ObjectiveError, match="objective ordered learns from ladders of texts; use midcourse detect"
        ):
            check_data(ordered, kind)
    with pytest.raises(ObjectiveError, match="objective sequence does not learn from ladders; use ordered"):
        check_data(make_objective("sequence"), "ladders")
    for head in ("scalar", "vocabulary", "trunk:4", "encoder"):
        check_head(ordered, head)
