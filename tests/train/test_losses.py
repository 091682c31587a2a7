"""Losses of single responses and of token rewards: values by hand, what they read, and what each refuses."""

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from midcourse.train.objectives import (
    LabelledRewards,
    Loss,
    NextRewards,
    ObjectiveError,
    PairRewards,
    autoregressive,
    check_data,
    check_head,
    consistency,
    cumulative,
    make_objective,
    prefix,
    prefix_past_end,
    sequence,
    tangent_exp,
    value_max,
    value_mean,
    value_soft,
)

EXAMPLES = settings(deadline=None, max_examples=50)  # a busy machine is no failure


def soft(rewards: LabelledRewards) -> Tensor:
    return value_soft(rewards, weight=2.0)


def upper(rewards: LabelledRewards) -> Tensor:
    return value_max(rewards, expectile=0.9)


def stopped(rewards: NextRewards) -> Tensor:
    return consistency(rewards, "stop")


LOSSES = pytest.mark.parametrize("loss", [value_mean, soft, upper, cumulative])
ROWS = st.lists(st.tuples(st.lists(st.floats(-9, 9), min_size=1, max_size=6), st.floats(-3, 3)), min_size=1)


def labelled(rows: list[tuple[list[float], float]], fill: float = 0.0, width: int = 0) -> LabelledRewards:
    """Ragged rewards with labels, `fill` beyond their ends, at least `width` columns."""
    width = max([width, *(len(values) for values, _ in rows)])
    padded = [values + [fill] * (width - len(values)) for values, _ in rows]
    return LabelledRewards(
        torch.tensor(padded, dtype=torch.float64, requires_grad=True),
        torch.tensor([len(values) for values, _ in rows]),
        torch.tensor([label for _, label in rows], dtype=torch.float64),
        2.0,
    )


# ---- values ----


@pytest.mark.parametrize(
    ("loss", "want"),
    [
        # V = (1, 0), R = 0.5: errors -0.5 and 0.5
        (value_mean, 0.25),
        (soft, (math.exp(-1) + 1 + math.exp(1) - 1) / 2),
        (upper, (0.1 * 0.25 + 0.9 * 0.25) / 2),
        (cumulative, 2 / (2 * 3) * (1 * 0.25 + 2 * 0.25)),
    ],
)
def test_values_by_hand(loss, want):
    assert loss(labelled([([1.0, 0.0], 0.5)], fill=9.0, width=4)).tolist() == pytest.approx([want])


@pytest.mark.parametrize(
    ("loss", "want"),
    [
        # V = (1, 4), R = 2: errors 1 and -2
        (value_mean, (1 + 4) / 2),
        (soft, (math.exp(2) - 2 + math.exp(-4) + 4) / 2),
        (upper, (0.9 * 1 + 0.1 * 4) / 2),
        (cumulative, 2 / (2 * 3) * (1 * 1 + 2 * 4)),
    ],
)
def test_too_high_and_too_low_are_told_apart(loss, want):
    assert loss(labelled([([1.0, 4.0], 2.0)])).tolist() == pytest.approx([want])


def test_cumulative_weighs_later_prefixes_more():
    early, late = (cumulative(labelled([(values, 0.0)])).item() for values in ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]))
    assert (early, late) == pytest.approx((1 / 6, 3 / 6))


def test_soft_loss_goes_on_as_its_tangent():
    z = torch.tensor([9.0, 10.0, 11.0, 1e4], dtype=torch.float64, requires_grad=True)
    have = tangent_exp(z)
    e = math.exp(10)
    assert have.tolist() == pytest.approx([math.exp(9), e, 2 * e, (1e4 - 9) * e])
    (slope,) = torch.autograd.grad(have.sum(), z)
    assert slope.tolist() == pytest.approx([math.exp(9), e, e, e])
    far = value_soft(labelled([([-1e4], 1e4)]), weight=50.0)
    assert torch.isfinite(far).all()


def test_autoregressive_by_hand():
    """-log sigmoid(beta (sum - sum)), each sum over the response's own tokens."""
    pair = PairRewards(
        torch.tensor([[-1.0, -2.0, 99.0]]),
        torch.tensor([[-0.5, -0.25, -0.125]]),
        torch.tensor([2]),
        torch.tensor([3]),
        torch.tensor([True]),
        torch.tensor([True]),
    )
    assert autoregressive(pair, beta=0.5).item() == pytest.approx(math.log1p(math.exp(0.5 * (3 - 0.875))))


@pytest.mark.parametrize("gradient", ["stop", "both"])
def test_consistency_by_hand(gradient):
    """V = (1, 2, 4) and, where each token stands, the best of all would have had (7, 3, 5): gaps 1 - 3 and 2 - 5."""
    rewards = torch.tensor([[1.0, 2.0, 4.0, 99.0], [6.0, 99.0, 99.0, 99.0]], requires_grad=True)
    best = torch.tensor([[7.0, 3.0, 5.0, 99.0], [6.0, 99.0, 99.0, 99.0]], requires_grad=True)
    loss = consistency(NextRewards(rewards, best, torch.tensor([3, 1])), gradient)
    assert loss.tolist() == pytest.approx([(0.5 * 4 + 0.5 * 9) / 2, 0.0])
    loss.sum().backward()
    assert rewards.grad.tolist() == [[-1.0, -1.5, 0, 0], [0, 0, 0, 0]]
    assert (best.grad is None) == (gradient == "stop")
    if gradient == "both":
        assert best.grad.tolist() == [[0, 1.0, 1.5, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_every_constant_is_consistent(constant):
    """FaRMA's second loss alone teaches nothing: the Bradley-Terry loss has to anchor it."""
    flat = torch.full((1, 4), constant)
    assert stopped(NextRewards(flat, flat, torch.tensor([4]))).item() == 0


# ---- what is read, and weights ----


@LOSSES
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), -1e300])
@EXAMPLES
@given(rows=ROWS)
def test_padding_reaches_neither_loss_nor_gradient(loss: Loss, fill, rows):
    found = []
    for batch in (labelled(rows, fill, width=9), labelled(rows, width=9)):
        value = loss(batch)
        found.append((value, torch.autograd.grad(value.sum(), batch.rewards)[0]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@LOSSES
@EXAMPLES
@given(rows=ROWS)
def test_responses_do_not_touch_each_other(loss: Loss, rows):
    assert loss(labelled(rows)).tolist() == pytest.approx([loss(labelled([row])).item() for row in rows], rel=1e-12)


@pytest.mark.parametrize("loss", [value_mean, soft, upper])
def test_every_prefix_weighs_the_same_in_values(loss: Loss):
    """Not every response: a prefix's value is an expectation over responses, whatever their lengths."""
    found = loss(labelled([([1.5] * length, 0.5) for length in (1, 7, 50)])).tolist()
    assert found == pytest.approx([found[0], 7 * found[0], 50 * found[0]])


def test_every_response_weighs_the_same_in_rad():
    found = cumulative(labelled([([1.5] * length, 0.5) for length in (1, 7, 50)])).tolist()
    assert found == pytest.approx([1.0] * 3)


@LOSSES
def test_derivatives_are_those_of_the_loss(loss: Loss):
    batch = labelled([([0.1, -2.0, 3.0], 0.7), ([1.0], -1.0)])
    assert torch.autograd.gradcheck(lambda rewards: loss(batch._replace(rewards=rewards)), (batch.rewards,))


def test_expectile_one_half_is_half_the_squared_error():
    batch = labelled([([0.1, -2.0, 3.0], 0.7)])
    assert value_max(batch, 0.5).item() == pytest.approx(0.5 * value_mean(batch).item())


# ---- objectives ----


@pytest.mark.parametrize(
    ("name", "settings", "recorded"),
    [
        ("prefix", {}, {"past_end": "drop"}),
        ("sequence", {"past_end": None}, {}),
        ("value", {}, {"value": "mean"}),
        ("value", {"value": "soft", "value_weight": 2.0}, {"value": "soft", "value_weight": 2.0}),
        ("value", {"value": "max"}, {"value": "max", "expectile": 0.9}),
        ("cumulative", {}, {}),
        ("farma", {}, {"alternations": 7, "farma_gradient": "stop"}),
        ("autoregressive", {}, {"beta": 0.05}),
    ],
)
def test_settings_are_recorded_with_their_defaults(name, settings, recorded):
    objective = make_objective(name, **settings)
    assert objective.settings == recorded
    assert make_objective(name, **objective.settings).settings == recorded


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cumulative", {"beta": 1.0}, "objective cumulative has no beta; leave it out"),
        ("value", {"value": "median"}, "value 'median' is unknown; use one of: mean, soft, max"),
        ("value", {"expectile": 0.9}, "value mean has no expectile, which is for value max"),
        ("value", {"value": "max", "expectile": 0.3}, "expectile 0.3 is not from 0.5"),
        ("farma", {"alternations": 0}, "alternations is 0; use 1 or more"),
        ("farma", {"farma_gradient": "none"}, "farma-gradient 'none' is unknown; use one of: stop, both"),
        ("autoregressive", {"beta": float("nan")}, "beta is nan; use a positive number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, settings, message):
    with pytest.raises(ObjectiveError, match=message):
        make_objective(name, **settings)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("prefix", {"scalar", "vocabulary", "trunk:4"}),
        ("sequence", {"scalar", "vocabulary", "trunk:4"}),
        ("value", {"scalar", "vocabulary", "trunk:4"}),
        ("cumulative", {"scalar"}),
        ("farma", {"vocabulary", "trunk:4"}),
        ("autoregressive", {"vocabulary"}),
    ],
)
def test_heads_of_objectives(name, heads):
    for head in ("scalar", "vocabulary", "trunk:4"):
        if head in heads:
            check_head(make_objective(name), head)
        else:
            with pytest.raises(ObjectiveError, match=f"objective {name} does not train a {head.partition(':')[0]}"):
                check_head(make_objective(name), head)


@pytest.mark.parametrize("name", ["prefix", "sequence", "farma", "autoregressive"])
def test_what_compares_responses_takes_no_rollouts(name):
    check_data(make_objective(name), "comparisons")
    with pytest.raises(ObjectiveError, match="make comparisons of them with midcourse prefer"):
        check_data(make_objective(name), "rollouts")


@pytest.mark.parametrize("name", ["value", "cumulative"])
def test_what_learns_from_labels_takes_rollouts_and_comparisons(name):
    for kind in ("rollouts", "comparisons"):
        check_data(make_objective(name), kind)


@pytest.mark.parametrize("name", ["edited-tokens", "token-discriminator"])
def test_what_learns_from_edits_takes_edits_alone_and_nothing_else_does(name):
    check_data(make_objective(name), "edits")
    for kind in ("comparisons", "rollouts", "ladders"):
        with pytest.raises(ObjectiveError, match=f"learns from edits, and these are {kind}; give rows with the fields"):
            check_data(make_objective(name), kind)
    for other in ("prefix", "value"):
        with pytest.raises(ObjectiveError, match=f"objective {other} does not learn from edits; use edited-tokens or"):
            check_data(make_objective(other), "edits")


@pytest.mark.parametrize(
    ("name", "settings", "phases", "turns", "reward_weight", "from_mean"),
    [
        ("prefix", {}, [("pairs", "prefix")], 1, None, False),
        ("prefix", {"past_end": "paper"}, [("pairs", "prefix")], 1, None, False),
        ("sequence", {}, [("pairs", "sequence")], 1, None, False),
        ("value", {}, [("labels", "value mean")], 1, None, True),
        ("value", {"value": "soft", "value_weight": 2.0}, [("labels", "value soft")], 1, 2.0, True),
        ("value", {"value": "max"}, [("labels", "value max")], 1, None, True),
        ("cumulative", {}, [("labels", "cumulative")], 1, None, False),
        ("farma", {}, [("pairs", "sequence"), ("chosen", "consistency")], 7, None, False),
        ("farma", {"alternations": 1}, [("pairs", "sequence"), ("chosen", "consistency")], 1, None, False),
        ("autoregressive", {}, [("pairs", "autoregressive")], 1, None, False),
    ],
)
def test_what_objectives_are_made_of(name, settings, phases, turns, reward_weight, from_mean):
    objective = make_objective(name, **settings)
    assert objective.name == name and objective.of == phases[0][0]
    assert [(phase.of, phase.name) for phase in objective.phases] == phases
    assert (objective.turns, objective.reward_weight, objective.from_mean) == (turns, reward_weight, from_mean)
    with pytest.raises(FrozenInstanceError):
        objective.turns = 3


PAIR = PairRewards(
    torch.tensor([[1.0, -0.5, 2.0]]),
    torch.tensor([[0.5, 1.5, 0.25]]),
    torch.tensor([2]),
    torch.tensor([3]),
    torch.tensor([True]),
    torch.tensor([True]),
)
NEXT = NextRewards(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[7.0, 3.0, 5.0]]), torch.tensor([3]))
LABELLED = labelled([([1.0, 0.0], 0.5)])


@pytest.mark.parametrize(
    ("name", "settings", "losses"),
    [
        ("prefix", {}, [prefix(PAIR)]),
        ("prefix", {"past_end": "drop"}, [prefix(PAIR)]),
        ("prefix", {"past_end": "paper"}, [prefix_past_end(PAIR)]),
        ("sequence", {}, [sequence(PAIR)]),
        ("value", {}, [value_mean(LABELLED)]),
        ("value", {"value": "soft", "value_weight": 3.0}, [value_soft(LABELLED, weight=3.0)]),
        ("value", {"value": "max"}, [value_max(LABELLED, expectile=0.9)]),
        ("value", {"value": "max", "expectile": 0.5}, [value_max(LABELLED, expectile=0.5)]),
        ("cumulative", {}, [cumulative(LABELLED)]),
        ("farma", {}, [sequence(PAIR), consistency(NEXT, "stop")]),
        ("autoregressive", {}, [autoregressive(PAIR, beta=0.05)]),
        ("autoregressive", {"beta": 2.0}, [autoregressive(PAIR, beta=2.0)]),
    ],
)
def test_objectives_have_the_losses_that_they_name(name, settings, losses):
    given = {"pairs": PAIR, "labels": LABELLED, "chosen": NEXT}
    phases = make_objective(name, **settings).phases
    assert [phase.loss(given[phase.of]).tolist() for phase in phases] == [loss.tolist() for loss in losses]


def test_farmas_gradient_is_as_asked_for():
    for gradient in ("stop", "both"):
        best = NEXT.best.clone().requires_grad_()
        loss = make_objective("farma", farma_gradient=gradient).phases[1].loss(NEXT._replace(best=best))
        assert loss.requires_grad == (gradient == "both")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ppo", {}, "objective 'ppo' is unknown; use one of: prefix, sequence, value, cumulative, farma, autoregr"),
        ("prefix", {"past_end": "pad"}, "past-end 'pad' is unknown; use one of: drop, paper"),
        ("cumulative", {"value_weight": 1.0}, "objective cumulative has no value-weight; leave it out"),
        ("cumulative", {"beta": 1.0, "value": "max"}, "objective cumulative has no beta; leave it out"),
        ("value", {"value_weight": 2.0}, "value mean has no value-weight, which is for value soft; leave it out"),
        ("value", {"value": "max", "value_weight": 2.0}, "value max has no value-weight, which is for value soft"),
        ("value", {"value": "soft", "value_weight": 2.0, "expectile": 0.9}, "value soft has no expectile, which is"),
        ("value", {"value": "soft"}, "value soft is exact at one weight; say which, such as --value-weight 2"),
        ("value", {"value": "soft", "value_weight": 0.0}, "value-weight is 0.0; use a positive number"),
        ("value", {"value": "soft", "value_weight": math.inf}, "value-weight is inf; use a positive number"),
        ("value", {"value": "max", "expectile": 1.0}, "expectile 1.0 is not from 0.5 .the mean. to below 1; use 0.9"),
        ("value", {"value": "max", "expectile": 0.49}, "expectile 0.49 is not from 0.5"),
        ("autoregressive", {"beta": -1.0}, "beta is -1.0; use a positive number"),
    ],
)
def test_what_is_next_to_what_makes_sense_is_refused_too(name, settings, message):
    with pytest.raises(ObjectiveError, match=message):
        make_objective(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("value", {"value": "max", "expectile": 0.5}),
        ("value", {"value": "max", "expectile": 0.999}),
        ("value", {"value": "soft", "value_weight": 1e-6}),
        ("farma", {"alternations": 1}),
        ("farma", {"farma_gradient": "both"}),
        ("autoregressive", {"beta": 1e-6}),
        ("autoregressive", {"beta": 100.0}),
    ],
)
def test_settings_just_within_their_bounds_are_taken(name, settings):
    assert make_objective(name, **settings).settings.items() >= settings.items()


def test_heads_of_other_kinds_are_not_the_objectives_business():
    check_head(make_objective("cumulative"), "classifier")
