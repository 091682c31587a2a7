import math
from itertools import zip_longest
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from midcourse.train.objectives import Loss, PairRewards, prefix, prefix_past_end, sequence
from tests.pace import slow_except


class Side(NamedTuple):
    """A response's rewards, one per token, and whether it is finished."""

    rewards: list[float]
    finished: bool = True


def batch(pairs: list[tuple[Side, Side]], fill: float = 0.0, width: int = 0) -> PairRewards:
    """Pairs (chosen, rejected) of ragged rewards, `fill` beyond their ends, at least `width` columns."""
    width = max([width, *(len(side.rewards) for pair in pairs for side in pair)])
    chosen, rejected = ([pair[i] for pair in pairs] for i in range(2))

    def rows(sides: list[Side]) -> Tensor:
        padded = [side.rewards + [fill] * (width - len(side.rewards)) for side in sides]
        return torch.tensor(padded, dtype=torch.float64, requires_grad=True)

    def lengths(sides: list[Side]) -> Tensor:
        return torch.tensor([len(side.rewards) for side in sides])

    def finished(sides: list[Side]) -> Tensor:
        return torch.tensor([side.finished for side in sides])

    return PairRewards(
        rows(chosen), rows(rejected), lengths(chosen), lengths(rejected), finished(chosen), finished(rejected)
    )


def gradients(objective: Loss, rewards: PairRewards) -> tuple[Tensor, Tensor]:
    """The derivatives of the summed loss by the chosen and the rejected rewards."""
    return torch.autograd.grad(objective(rewards).sum(), (rewards.chosen, rewards.rejected))


def surprise(difference: float) -> float:
    """-log sigmoid(difference)."""
    return math.log1p(math.exp(-difference))


def compared(objective: Loss, chosen: Side, rejected: Side) -> list[tuple[int, int]]:
    """The positions of the two responses that a loss compares, said plainly."""
    ends = len(chosen.rewards) - 1, len(rejected.rewards) - 1
    if objective is sequence:
        return [ends]
    shared = [(i, i) for i in range(min(ends) + 1)]
    shorter = chosen if ends[0] < ends[1] else rejected
    if objective is prefix or not shorter.finished:
        return shared
    return shared + [(min(i, ends[0]), min(i, ends[1])) for i in range(min(ends) + 1, max(ends) + 1)]


def plain(objective: Loss, chosen: Side, rejected: Side) -> float:
    """The loss of a pair, one comparison after another."""
    losses = [surprise(chosen.rewards[i] - rejected.rewards[j]) for i, j in compared(objective, chosen, rejected)]
    return sum(losses) / len(losses)


EXAMPLES = settings(deadline=None, max_examples=50)  # a busy machine is no failure
OBJECTIVE = pytest.mark.parametrize("objective", [sequence, prefix, prefix_past_end])
REWARDS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=6)
PAIRS = st.lists(
    st.tuples(st.builds(Side, REWARDS, st.booleans()), st.builds(Side, REWARDS, st.booleans())), min_size=1
)
LONG, SHORT = Side([1.0, -0.5, 2.0, 0.25]), Side([0.5, 1.5])


# ---- values ----


@pytest.mark.parametrize(
    ("objective", "want"),
    [
        (sequence, surprise(0.25 - 1.5)),
        (prefix, (surprise(0.5) + surprise(-2.0)) / 2),
        (prefix_past_end, (surprise(0.5) + surprise(-2.0) + surprise(0.5) + surprise(-1.25)) / 4),
    ],
)
def test_values_by_hand(objective, want):
    assert objective(batch([(LONG, SHORT)])).tolist() == pytest.approx([want])


def test_values_by_hand_the_other_way_round():
    have = [objective(batch([(SHORT, LONG)])).item() for objective in (sequence, prefix, prefix_past_end)]
    want = [
        surprise(1.25),
        (surprise(-0.5) + surprise(2.0)) / 2,
        (surprise(-0.5) + surprise(2.0) + surprise(-0.5) + surprise(1.25)) / 4,
    ]
    assert have == pytest.approx(want)


@OBJECTIVE
def test_one_token_each(objective):
    assert objective(batch([(Side([2.0]), Side([-1.0]))])).item() == pytest.approx(surprise(3.0))


@pytest.mark.parametrize(
    ("long_finished", "short_finished", "positions"),
    [(True, True, 4), (False, True, 4), (True, False, 2), (False, False, 2)],
)
@pytest.mark.parametrize("long_is_chosen", [True, False])
def test_a_cut_response_ends_the_comparison_where_it_ends(long_finished, short_finished, positions, long_is_chosen):
    """Past the shorter end its text is compared only if it is finished; the longer one may well be cut."""
    long, short = Side(LONG.rewards, long_finished), Side(SHORT.rewards, short_finished)
    pair = batch([(long, short) if long_is_chosen else (short, long)])
    (of_long, of_short) = gradients(prefix_past_end, pair)[:: 1 if long_is_chosen else -1]
    assert (of_long[0] != 0).tolist() == [i < positions for i in range(4)]
    differences = [0.5, -2.0, 0.5, -1.25][:positions]
    sign = 1 if long_is_chosen else -1
    want = sum(surprise(sign * difference) for difference in differences) / positions
    assert prefix_past_end(pair).item() == pytest.approx(want)
    assert (of_short[0] != 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("objective", [sequence, prefix])
@EXAMPLES
@given(pairs=PAIRS)
def test_only_past_end_asks_whether_a_response_is_finished(objective, pairs):
    flipped = [tuple(Side(side.rewards, not side.finished) for side in pair) for pair in pairs]
    assert torch.equal(objective(batch(pairs)), objective(batch(flipped)))


@OBJECTIVE
@EXAMPLES
@given(pairs=PAIRS)
def test_values_are_those_of_plain_lines(objective, pairs):
    have = objective(batch(pairs)).tolist()
    assert have == pytest.approx([plain(objective, *pair) for pair in pairs], abs=1e-12)


@OBJECTIVE
def test_far_apart_rewards_give_finite_losses(objective):
    have = objective(batch([(Side([-1e4]), Side([1e4])), (Side([1e4]), Side([-1e4]))]))
    assert have.tolist() == [2e4, 0.0]


# ---- what is read ----


@OBJECTIVE
@pytest.mark.parametrize("fill", slow_except([-1e300], [float("nan"), float("inf"), -1e300]))
@EXAMPLES
@given(pairs=PAIRS)
def test_padding_never_reaches_the_loss(objective, fill, pairs):
    have, want = objective(batch(pairs, fill, width=9)), objective(batch(pairs, width=9))
    assert torch.equal(have, want)


@OBJECTIVE
@pytest.mark.parametrize("fill", slow_except([float("inf"), 1e300], [float("nan"), float("inf"), 1e300, -1e300]))
@EXAMPLES
@given(pairs=PAIRS)
def test_padding_never_reaches_the_gradient(objective, fill, pairs):
    for have, want in zip(
        gradients(objective, batch(pairs, fill, width=9)), gradients(objective, batch(pairs, width=9)), strict=True
    ):
        assert torch.equal(have, want)


@OBJECTIVE
@EXAMPLES
@given(pairs=PAIRS)
def test_gradients_reach_the_compared_positions_only(objective, pairs):
    sides = zip_longest(*gradients(objective, batch(pairs)))
    for (chosen, rejected), pair in zip(sides, pairs, strict=True):
        at = compared(objective, *pair)
        others = (set(range(len(chosen))) - {i for i, _ in at}, set(range(len(rejected))) - {j for _, j in at})
        assert not chosen[list(others[0])].any()
        assert not rejected[list(others[1])].any()
        # The two sides pull equally, by at most 1 together.
        assert -1 <= chosen.sum() <= 0
        assert (chosen.sum() + rejected.sum()).item() == pytest.approx(0, abs=1e-12)


@OBJECTIVE
def test_derivatives_are_those_of_the_loss(objective):
    rewards = batch([(LONG, SHORT), (SHORT, LONG), (Side([0.1, 0.2], False), LONG), (SHORT, SHORT)])

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return objective(rewards._replace(chosen=chosen, rejected=rejected))

    assert torch.autograd.gradcheck(loss, (rewards.chosen, rewards.rejected))


# ---- weights ----


@OBJECTIVE
@EXAMPLES
@given(pairs=PAIRS)
def test_pairs_do_not_touch_each_other(objective, pairs):
    """The loss of a pair is that of the pair alone."""
    have = objective(batch(pairs)).tolist()
    assert have == pytest.approx([objective(batch([pair])).item() for pair in pairs], abs=1e-12)


@OBJECTIVE
def test_every_pair_weighs_the_same_whatever_its_length(objective):
    """Equal differences at every position give equal losses and equal pulls, over 1 token or 50."""
    pairs = [(Side([1.5] * length), Side([0.5] * length)) for length in (1, 7, 50)]
    rewards = batch(pairs)
    assert objective(rewards).tolist() == pytest.approx([surprise(1.0)] * 3)
    pull = -1 / (1 + math.exp(1.0))
    assert gradients(objective, rewards)[0].sum(1).tolist() == pytest.approx([pull] * 3)


@EXAMPLES
@given(
    pairs=st.lists(
        st.integers(1, 6).flatmap(
            lambda length: st.tuples(
                *[st.builds(Side, st.lists(st.floats(-9, 9), min_size=length, max_size=length), st.booleans())] * 2
            )
        ),
        min_size=1,
    )
)
def test_past_end_changes_nothing_for_equal_lengths(pairs):
    """Law 9 of the design: the two variants differ only past the shorter end."""
    for first, second in [
        (prefix(batch(pairs)), prefix_past_end(batch(pairs))),
        *zip(gradients(prefix, batch(pairs)), gradients(prefix_past_end, batch(pairs)), strict=True),
    ]:
        assert torch.equal(first, second)
