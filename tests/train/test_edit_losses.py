"""Losses of edits, by hand."""

import math

import pytest
import torch

from midcourse.data.alignment import Change
from midcourse.train.objectives import PADDING, EditRewards, ObjectiveError, edited_tokens, make_objective
from midcourse.train.objectives import token_discriminator as discriminator

KEPT, ADDED, DELETED, SUBSTITUTED, OMISSION = Change


def surprise(margin: float) -> float:
    return math.log1p(math.exp(-margin))


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


@pytest.fixture
def rewards() -> EditRewards:
    """Two edits: one of everything, and one that only deletes. What is padded is nan, so that it must not be read."""
    nan = math.nan
    return EditRewards(
        torch.tensor([[0.5, 1.0, 2.0, -0.5], [0.25, 0.1, nan, nan]], dtype=torch.float64, requires_grad=True),
        torch.tensor([[0.5, -1.0, -0.5, nan], [0.25, 3.0, 0.1, nan]], dtype=torch.float64, requires_grad=True),
        torch.tensor([[KEPT, SUBSTITUTED, ADDED, KEPT], [KEPT, KEPT, PADDING, PADDING]]),
        torch.tensor([[KEPT, SUBSTITUTED, OMISSION, PADDING], [KEPT, DELETED, KEPT, PADDING]]),
    )


@pytest.mark.parametrize(
    ("normalise", "margins"),
    [("sum", (3.0 + 1.0, 0 - 3.0)), ("mean", (1.5 + 1.0, -3.0)), ("sqrt", (3.0 / math.sqrt(2) + 1.0, -3.0))],
)
def test_edited_tokens_compares_what_was_changed(rewards, normalise, margins):
    losses = edited_tokens(rewards, normalise=normalise, kept_weight=0.0, omissions=False)
    assert losses.tolist() == pytest.approx([surprise(margin) for margin in margins])


def test_kept_tokens_are_drawn_to_zero(rewards):
    plain = edited_tokens(rewards, normalise="sum", kept_weight=0.0, omissions=False)
    drawn = edited_tokens(rewards, normalise="sum", kept_weight=2.0, omissions=False)
    means = [(0.25 + 0.25 + 0.25 + 0.25) / 4, (0.0625 + 0.01 + 0.0625 + 0.01) / 4]
    assert (drawn - plain).tolist() == pytest.approx([2 * mean for mean in means])


def test_an_omission_counts_as_taken_away_if_asked_for(rewards):
    losses = edited_tokens(rewards, normalise="sum", kept_weight=0.0, omissions=True)
    assert losses[0].item() == pytest.approx(surprise(3.0 + 1.5))


def test_the_discriminator_is_the_cross_entropy_of_soft_labels(rewards):
    def entropy(z: float, y: float) -> float:
        return -(y * math.log(sigmoid(z)) + (1 - y) * math.log(1 - sigmoid(z)))

    want = [
        (entropy(0.5, 0.5) + entropy(1.0, 1) + entropy(2.0, 1) + entropy(-0.5, 0.5)) / 4
        + (entropy(0.5, 0.5) + entropy(-1.0, 0) + entropy(-0.5, 0.5)) / 3,
        (entropy(0.25, 0.5) + entropy(0.1, 0.5)) / 2 + (entropy(0.25, 0.5) + entropy(3.0, 0) + entropy(0.1, 0.5)) / 3,
    ]
    assert discriminator(rewards, labels="soft", omissions=False).tolist() == pytest.approx(want)
    hard = [(entropy(1.0, 1) + entropy(2.0, 1)) / 2 + entropy(-1.0, 0), 0 + entropy(3.0, 0)]
    assert discriminator(rewards, labels="hard", omissions=False).tolist() == pytest.approx(hard)


@pytest.mark.parametrize(
    "loss", [make_objective(name).phases[0].loss for name in ("edited-tokens", "token-discriminator")]
)
def test_gradients_are_finite_and_leave_padding_alone(rewards, loss):
    gradients = torch.autograd.grad(loss(rewards).sum(), rewards[:2])
    for gradient, labels in zip(gradients, rewards[2:], strict=True):
        assert gradient.isfinite().all()
        assert (gradient[labels == PADDING] == 0).all()
        assert (gradient[labels == SUBSTITUTED] != 0).all()


def test_large_logits_have_finite_losses():
    far = torch.tensor([[1e4]])
    losses = discriminator(
        EditRewards(-far, far, torch.tensor([[ADDED]]), torch.tensor([[DELETED]])), labels="soft", omissions=False
    )
    assert losses.tolist() == [2e4]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("edited-tokens", {"normalise": "max"}, "normalise 'max' is unknown; use one of: sum, mean, sqrt"),
        ("edited-tokens", {"kept_weight": -1.0}, "kept-weight is -1.0; use 0 or more"),
        ("edited-tokens", {"labels": "soft"}, "objective edited-tokens has no labels"),
        ("token-discriminator", {"align": "letters"}, "align 'letters' is unknown; use one of: tokens, words"),
        ("token-discriminator", {"labels": "both"}, "labels 'both' is unknown"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, given, message):
    with pytest.raises(ObjectiveError, match=message):
        make_objective(name, **given)
