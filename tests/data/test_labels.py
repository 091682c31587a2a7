"""Labels drawn from a gold reward."""

import math

import pytest

from midcourse.data.comparisons import Comparison
from midcourse.data.labels import bayes_accuracy, draw_labels
from midcourse.demo import shipped
from midcourse.rewards.gold import load_gold


def length(text: str) -> float:
    return float(len(text))


def test_at_a_large_scale_gold_decides():
    rows = [Comparison("p", "a" * (i % 5 + 1), "b" * ((i + 1) % 5 + 1)) for i in range(50)]
    for row in draw_labels(rows, length, scale=1000.0, seed=0):
        assert len(row.chosen) > len(row.rejected)


def test_draws_follow_the_bradley_terry_probability():
    rows = [Comparison("p", "aaa", "bb")] * 4000
    wins = sum(row.chosen == "aaa" for row in draw_labels(rows, length, scale=0.5, seed=1)) / 4000
    want = 1 / (1 + math.exp(-0.5))
    assert wins == pytest.approx(want, abs=4 * math.sqrt(want * (1 - want) / 4000))


def test_the_earlier_label_does_not_matter_and_the_finished_flags_move_along():
    one = Comparison("p", "aaa", "bb", chosen_finished=True, rejected_finished=False)
    other = Comparison("p", "bb", "aaa", chosen_finished=False, rejected_finished=True)
    for seed in range(20):
        assert draw_labels([one], length, scale=0.5, seed=seed) == draw_labels([other], length, scale=0.5, seed=seed)


def test_the_ceiling_is_the_mean_probability_of_the_better_text():
    rows = [Comparison("p", "aaa", "bb"), Comparison("p", "a", "b")]
    assert bayes_accuracy(rows, length, scale=1.0) == pytest.approx((1 / (1 + math.exp(-1)) + 0.5) / 2)


@pytest.mark.slow
def test_the_shipped_labels_are_those_the_gold_reward_draws():
    """The shipped set says its gold, scale and seed: drawing again from them gives every label it has."""
    comparisons, prompts = shipped(None, 0)
    made = prompts["made_by"]
    assert draw_labels(comparisons, load_gold(made["gold"]), scale=made["scale"], seed=made["seed"]) == comparisons
    assert len({comparison.prompt for comparison in comparisons}) >= 300
    trained = {comparison.prompt for comparison in comparisons}
    assert not trained & {row["prompt"] for split in ("validation", "test") for row in prompts[split]}
    assert len(prompts["test"]) >= 100
