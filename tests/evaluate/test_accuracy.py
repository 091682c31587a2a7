import math
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from midcourse.data.encoded import EncodedRow, PairSet
from midcourse.evaluate.accuracy import SHARES, length_baseline, outcome, pair_accuracy
from midcourse.evaluate.intervals import Resamples, mean_interval, resamples
from midcourse.rewards.info import RewardError

EOS = 9


def row(text_length: int, finished: bool = True) -> EncodedRow:
    """A response of so many tokens, and its EOS."""
    return EncodedRow((0,), (1,) * text_length + (EOS,) * finished, finished)


def pair_set(*pairs: tuple[EncodedRow, EncodedRow], prompts: list[str] | None = None) -> PairSet:
    """Each pair with rows of its own: rows 2n (chosen) and 2n + 1 (rejected), which share no token."""
    numbers = [(2 * n, 2 * n + 1) for n in range(len(pairs))]
    sides = [
        side._replace(response=tuple(token + place if token != EOS else EOS for token in side.response))
        for pair in pairs
        for place, side in enumerate(pair)
    ]
    return PairSet(sides, numbers, prompts or [str(n) for n in range(len(pairs))])


def rewards_of(*rows: list[float]) -> list[Tensor]:
    return [torch.tensor(row) for row in rows]


def column(metrics: dict, name: str) -> list[float]:
    """One figure of every share."""
    assert [row["share"] for row in metrics["shares"]] == list(SHARES)
    return [row[name] for row in metrics["shares"]]


# ---- pair accuracy ----


@settings(deadline=None)  # a busy machine is no failure
@given(chosen=st.integers(1, 60), rejected=st.integers(1, 60), finished=st.booleans())
def test_a_share_is_rounded_up_to_whole_tokens_of_the_shorter_text(chosen, rejected, finished):
    """The chosen response wins exactly at the positions that should be read, and at its last token."""
    pairs = pair_set((row(chosen, finished), row(rejected, finished)))
    first, second = (torch.zeros(length + finished) for length in (chosen, rejected))
    read = [math.ceil(Fraction(share) * min(chosen, rejected)) - 1 for share in ("0.1", "0.25", "0.5", "0.75")]
    first[[*read, -1]] = 1.0
    metrics = pair_accuracy(pairs, [first, second])
    assert column(metrics, "accuracy") == [1.0] * 5
    # With those positions alone left out it is a tie everywhere.
    metrics = pair_accuracy(pairs, [1 - first, torch.ones_like(second)])
    assert column(metrics, "accuracy") == [0.0] * 5


def test_accuracy_by_hand():
    """One pair of 4 and 2 tokens, read at tokens 1, 1, 1, 2 and at each end's EOS; one of 1 token each."""
    pairs = pair_set((row(4), row(2)), (row(1), row(1)), prompts=["a", "a"])
    rewards = rewards_of([2.0, 1.0, 9.0, 9.0, 0.0], [1.0, 3.0, 0.5], [5.0, 7.0], [5.0, 6.0])
    metrics = pair_accuracy(pairs, rewards)
    assert (metrics["pairs"], metrics["prompts"]) == (2, 1)
    assert column(metrics, "accuracy") == [0.75, 0.75, 0.75, 0.25, 0.5]
    assert column(metrics, "ties") == [0.5, 0.5, 0.5, 0.5, 0.0]


def test_the_whole_text_ends_at_its_eos_and_a_cut_one_at_its_last_token():
    pairs = pair_set((row(2), row(3, finished=False)))
    metrics = pair_accuracy(pairs, rewards_of([0.0, 0.0, 1.0], [5.0, 5.0, 0.0]))
    assert column(metrics, "accuracy") == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_a_tie_counts_one_half():
    pairs = pair_set((row(1), row(1)), (row(1), row(1)), (row(1), row(1)))
    metrics = pair_accuracy(pairs, rewards_of([1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]))
    assert column(metrics, "accuracy") == [0.5] * 5
    assert column(metrics, "ties") == [1.0] * 4 + [pytest.approx(1 / 3)]


def test_equal_prefixes_are_ties_whatever_rounding_makes_of_them():
    """Two responses of 4 tokens that share the first 2: rounding may not decide at 10, 25 and 50%."""
    pairs = PairSet(
        [EncodedRow((0,), (1, 2, 3, 4, EOS), True), EncodedRow((0,), (1, 2, 5, 6, EOS), True)], [(0, 1)], ["a"]
    )
    metrics = pair_accuracy(pairs, rewards_of([1e-7, 1e-7, 1.0, 1.0, 1.0], [0.0] * 5))
    assert column(metrics, "accuracy") == [0.5, 0.5, 0.5, 1.0, 1.0]
    assert column(metrics, "ties") == [1.0, 1.0, 1.0, 0.0, 0.0]
    # After another prompt they are other prefixes.
    elsewhere = PairSet([pairs.rows[0]._replace(prompt=(7,)), pairs.rows[1]], pairs.pairs, pairs.prompts)
    assert column(pair_accuracy(elsewhere, rewards_of([1e-7] * 5, [0.0] * 5)), "accuracy") == [1.0] * 5


def test_rows_may_belong_to_several_pairs():
    pairs = PairSet([row(1), row(1), row(1)], [(0, 1), (1, 2), (0, 2)], ["a", "a", "a"])
    metrics = pair_accuracy(pairs, rewards_of([0.0, 3.0], [0.0, 2.0], [0.0, 2.5]))
    assert column(metrics, "accuracy")[-1] == pytest.approx(2 / 3)


def test_equal_length_means_within_a_tenth_of_the_longer():
    """Lengths without EOS: 10 and 9 count as equal, 10 and 8 do not, 9 and 8 neither; cut responses count too."""
    pairs = pair_set((row(10), row(9)), (row(8), row(10)), (row(9), row(8)), (row(20, finished=False), row(18)))
    # Only the last token of a winner has a reward; the second and third pair are lost.
    rewards = [torch.zeros(len(row.response)) for row in pairs.rows]
    for winner in (0, 3, 5, 7):
        rewards[winner][-1] = 1.0
    metrics = pair_accuracy(pairs, rewards)
    assert metrics["equal_length"]["pairs"] == 2
    assert metrics["equal_length"]["accuracy"] == 0.5
    assert column(metrics, "accuracy")[-1] == 0.25
    assert metrics["equal_length"]["interval"] == mean_interval([1.0, 0.0], ["0", "3"])[1]


def test_no_pairs_of_equal_length_give_none():
    assert pair_accuracy(pair_set((row(10), row(8))), rewards_of([1.0] * 11, [0.0] * 9))["equal_length"] is None


def test_intervals_are_over_prompts():
    prompts = ["a"] * 4 + ["b"] * 4
    pairs = pair_set(*[(row(1), row(1))] * 8, prompts=prompts)
    wins = [1.0] * 4 + [0.0] * 4
    rewards = [side for win in wins for side in rewards_of([win, win], [0.5, 0.5])]
    for have in pair_accuracy(pairs, rewards)["shares"]:
        assert (have["accuracy"], have["interval"]) == mean_interval(wins, prompts)


# ---- the baseline that looks at lengths only ----

LONGER, SHORTER, SAME = (row(5), row(3)), (row(3), row(5)), (row(4), row(4))


@pytest.mark.parametrize(
    ("train", "held_out", "want"),
    [
        ([LONGER, LONGER, SHORTER], [LONGER, SHORTER, SHORTER, SHORTER], ("longer", 0.25)),
        ([SHORTER, LONGER, SHORTER], [LONGER, SHORTER, SHORTER, SHORTER], ("shorter", 0.75)),
        ([SHORTER, SAME], [SAME, SAME, SHORTER, SHORTER], ("shorter", 0.75)),
        ([LONGER, SHORTER], [LONGER], ("longer", 1.0)),
    ],
)
def test_length_baseline_learns_its_direction_on_train(train, held_out, want):
    have = length_baseline(pair_set(*train), pair_set(*held_out))
    assert (have["prefers"], have["accuracy"]) == want


def test_the_interval_of_the_baseline_is_over_prompts():
    prompts = ["a", "a", "a", "b"]
    have = length_baseline(pair_set(LONGER), pair_set(LONGER, LONGER, LONGER, SHORTER, prompts=prompts))
    assert (have["accuracy"], have["interval"]) == mean_interval([1.0, 1.0, 1.0, 0.0], prompts)


def test_length_baseline_counts_text_not_eos():
    """A cut response of 3 tokens is as long as a finished one of 3 tokens and EOS."""
    have = length_baseline(pair_set(LONGER), pair_set((row(3, finished=False), row(3))))
    assert have["accuracy"] == 0.5


# ---- intervals ----


def test_equal_values_have_no_spread():
    assert mean_interval([0.25] * 7) == (0.25, (0.25, 0.25))
    assert mean_interval([0.25] * 7, list("abababa")) == (0.25, (0.25, 0.25))


def test_one_group_has_no_interval():
    """Nothing is known about other groups, and no interval pretends it is."""
    assert mean_interval([0.0, 1.0], ["a", "a"]) == (0.5, None)
    assert mean_interval([1.0], proportion=True) == (1.0, None)


@pytest.mark.parametrize(("groups", "least"), [(2, 0.1581), (6, 0.5407), (100, 0.9638)])
def test_a_proportion_that_never_fails_has_the_interval_of_clopper_and_pearson(groups, least):
    """6 of 6 are not "1.000 to 1.000": (0.025)^(1/6) is the least share of which that still happens once in 40."""
    mean, (low, high) = mean_interval(np.ones(groups), proportion=True)
    assert (mean, high) == (1.0, 1.0) and low == pytest.approx(least, abs=1e-4)
    assert low == pytest.approx(scipy.stats.binomtest(groups, groups).proportion_ci().low)
    assert mean_interval(np.zeros(groups), proportion=True)[1] == pytest.approx((0.0, 1 - low))


def test_a_proportion_of_nothing_but_ties_is_not_known_exactly():
    """Of 6 prompts all are even. Were more than 1 - 0.025^(1/6) others, all won or all lost, that would be rare."""
    mean, interval = mean_interval([0.5] * 6, proportion=True)
    others = 1 - 0.025 ** (1 / 6)
    assert mean == 0.5 and interval == pytest.approx((0.5 - others / 2, 0.5 + others / 2))


def test_intervals_of_few_values_cover_the_mean_as_often_as_they_say():
    """A plain percentile interval of 8 values covers it in 88 of 100 cases."""
    rng = np.random.default_rng(4)
    intervals = [mean_interval(rng.normal(size=8), seed=n)[1] for n in range(400)]
    assert np.mean([low <= 0 <= high for low, high in intervals]) > 0.92


@pytest.mark.parametrize("groups", [1, 7, 300, 2000])
def test_a_bootstrap_sample_draws_as_many_groups_as_there_are(groups):
    drawn = Resamples(groups, seed=3)
    assert (drawn @ np.ones(groups) == groups).all()
    some = np.array(list(islice(drawn, 500)))
    assert some.shape == (500, groups) and some.mean() == 1
    assert some.var() == pytest.approx(1 - 1 / groups, abs=0.05)  # of a multinomial


def test_many_groups_are_drawn_in_lots_with_the_same_variance(monkeypatch):
    """The error of a mean of 3,000 values, some prompts of which have more than one: from all, and from 500 lots."""
    rng = np.random.default_rng(1)
    groups = rng.integers(1500, size=3000)
    values = rng.normal(size=3000) + rng.normal(size=1500)[groups]
    mean, (low, high) = mean_interval(values, groups.tolist())
    monkeypatch.setattr("midcourse.evaluate.intervals.LOTS", 500)
    resamples.cache_clear()
    again, (lower, higher) = mean_interval(values, groups.tolist())
    drawn = Resamples(1500, seed=3)
    resamples.cache_clear()
    assert again == mean and higher - lower == pytest.approx(high - low, rel=0.12)
    assert (drawn @ np.ones((1500, 2)) == 1500).all()  # lots of three each
    some = np.array(list(islice(drawn, 500)))
    assert np.allclose(some @ values[:1500], (drawn @ values[:1500])[:500])


def test_the_interval_of_many_values_is_the_normal_one():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    mean, interval = mean_interval(values)
    error = values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    assert interval == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)


def test_whole_groups_are_resampled():
    """Copies of a value in its group add nothing: the interval is that of the groups, not the narrower one of rows."""
    values = np.random.default_rng(1).normal(size=40)
    copies, groups = np.repeat(values, 25), [f"{n // 25:02}" for n in range(1000)]
    assert mean_interval(copies, groups)[1] == pytest.approx(mean_interval(values)[1])
    (low, high), (narrow_low, narrow_high) = mean_interval(copies, groups)[1], mean_interval(copies)[1]
    assert high - low == pytest.approx(5 * (narrow_high - narrow_low), rel=0.1)


def test_larger_groups_weigh_more():
    """The mean is over values: three of one group and one of the other."""
    mean, (low, high) = mean_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert (mean, low, high) == (0.75, 0.0, 1.0)


def test_intervals_repeat():
    values = np.random.default_rng(2).normal(size=30)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="no values to average"):
        mean_interval([])


def test_no_number_is_the_learning_rates_fault():
    assert [outcome(difference) for difference in (-0.5, 0.0, math.inf)] == [0.0, 0.5, 1.0]
    with pytest.raises(RewardError, match="a difference of rewards is nan; train the reward again with a lower --lr"):
        outcome(math.nan)
