import numpy as np
import pytest

from midcourse.detect.measures import cut, realised, resolves, separation, tpr_at
from midcourse.evaluate.separation import auroc


def test_auroc_by_hand():
    assert auroc([1.0, 3.0], [2.0, 4.0]) == 3 / 4  # 2>1, 4>1, 4>3; not 2>3
    assert auroc([1.0, 1.0], [1.0]) == 1 / 2
    assert auroc([0.0, 1.0], [5.0]) == 1
    assert auroc([5.0], [0.0, 1.0]) == 0


def test_auroc_is_the_share_of_pairs_in_order():
    random = np.random.default_rng(0)
    humans, machines = random.integers(0, 9, size=40), random.integers(2, 11, size=30)
    pairs = [(m > h) + 0.5 * (m == h) for h in humans for m in machines]
    assert auroc(humans, machines) == pytest.approx(np.mean(pairs))


def test_the_cut_never_exceeds_its_rate():
    humans = [float(i) for i in range(100)]
    assert cut(humans, 0.01) == 98  # one of 100 lies above
    assert cut(humans, 0.0199) == 98
    assert cut(humans, 0.05) == 94
    assert cut([1.0, 1.0, 1.0, 1.0], 0.5) == 1.0  # equal scores are not flagged in part
    assert cut(humans[:50], 0.01) == 49  # below one text in 100 nothing is above
    assert tpr_at(humans, [97.0, 98.0, 98.5, 200.0], 0.01) == 1 / 2
    assert resolves(100, 0.01)
    assert not resolves(99, 0.01)


def test_groups_are_drawn_whole():
    """Ten copies of each text say no more than one: intervals by group are as wide as those of the single texts."""
    random = np.random.default_rng(0)
    humans, machines = random.normal(size=30), random.normal(size=30) + 1
    single = separation(humans, machines)
    copies = separation(
        np.repeat(humans, 10), np.repeat(machines, 10), [f"h{i // 10}" for i in range(300)],
        [f"m{i // 10}" for i in range(300)],
    )  # fmt: skip
    naive = separation(np.repeat(humans, 10), np.repeat(machines, 10))
    width = {name: np.ptp(one["auroc_interval"]) for name, one in
             {"single": single, "copies": copies, "naive": naive}.items()}  # fmt: skip
    assert copies["auroc"] == pytest.approx(single["auroc"])
    assert width["copies"] == pytest.approx(width["single"], rel=0.25)
    assert width["naive"] < 0.5 * width["single"]
    assert single["auroc_interval"][0] < single["auroc"] < single["auroc_interval"][1]
    assert not single["resolves_1"]
    assert copies["resolves_1"]


def test_pairs_that_share_a_group_are_drawn_together():
    """Texts on one prompt are scored alike: drawn together, their difference varies less than drawn apart."""
    random = np.random.default_rng(0)
    topic = random.normal(size=60)
    humans, machines = topic, topic + 0.8
    names = [str(i) for i in range(60)]
    together, apart = separation(humans, machines, names, names), separation(humans, machines)
    assert np.ptp(together["auroc_interval"]) < 0.8 * np.ptp(apart["auroc_interval"])


def test_realised_rates_come_with_their_interval():
    figures = realised([0.0] * 95 + [2.0] * 5, 1.0)
    assert figures["rate"] == 0.05
    assert (figures["flagged"], figures["texts"]) == (5, 100)
    assert figures["interval"][0] < 0.05 < figures["interval"][1]
