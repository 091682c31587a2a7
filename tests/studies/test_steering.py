"""Reading gold off at a guidance KL."""

import numpy as np
import pytest

from studies.steering import Guided, at_kl, weights_at

KLS = (2.0, 5.0, 10.0)

PLAIN = Guided(0.0, np.array([0.0, 0.2]), np.array([0.0, 0.0]))
ONE = Guided(1.0, np.array([0.4, 0.6]), np.array([1.0, 3.0]))
TWO = Guided(2.0, np.array([0.6, 0.8]), np.array([5.0, 7.0]))


@pytest.mark.parametrize(
    ("kl", "gold"), [(0.0, 0.1), (1.0, 0.3), (2.0, 0.5), (4.0, 0.6), (6.0, 0.7)], ids=lambda x: str(x)
)
def test_gold_lies_on_the_line_between_two_weights(kl, gold):
    for runs in ([PLAIN, ONE, TWO], [TWO, PLAIN, ONE]):
        mean, (low, high) = at_kl(runs, kl)
        assert mean == pytest.approx(gold)
        assert low <= mean <= high


@pytest.mark.parametrize("kl", [6.01, -0.1])
def test_nothing_is_extrapolated(kl):
    assert at_kl([PLAIN, ONE, TWO], kl) is None


@pytest.mark.slow
def test_the_interval_covers_the_curve_of_all_prompts():
    """Prompts differ in KL and gold: over 100 draws of 80 prompts the interval misses the truth 5 times or so."""
    rng = np.random.default_rng(0)
    truth, draws, held = 0.75, 100, 0
    for draw in range(draws):
        taste = rng.normal(0, 1, 80)
        runs = [
            Guided(w, 0.25 * w + 0.3 * taste, np.abs(2.0 * w + w * rng.normal(0, 0.5, 80))) for w in (0.0, 2.0, 4.0)
        ]
        _, (low, high) = at_kl(runs, 6.0, seed=draw)
        held += low <= truth <= high
    assert 89 <= held <= 99


@pytest.mark.parametrize("scale", [0.02, 1.0, 60.0])
def test_weights_at_finds_the_weights_of_kls(scale):
    tried = []

    def kl_of(weight):
        tried.append(weight)
        return 20 * (1 - np.exp(-((weight * scale) ** 2) / 20))

    for kl, weight in zip(KLS, weights_at(kl_of, KLS, tries=12), strict=True):
        assert kl_of(weight) == pytest.approx(kl, rel=0.1)
    assert len(tried) <= 3 + 9  # three here, the others from a start that is 60 times too small or too large


def test_weights_at_gives_the_nearest_where_a_kl_is_not_reached():
    low, high = weights_at(lambda weight: min(weight, 3.0), [2.0, 10.0], tries=4)
    assert low == pytest.approx(2.0, rel=0.1) and high >= 3.0


def test_weights_at_ends_where_no_weight_changes_anything():
    tried = []
    assert weights_at(lambda weight: tried.append(weight) or 0.0, [2.0], start=3.0) == [3.0]
    assert tried == [3.0, 12.0, 48.0, 192.0, 768.0]
    assert len(weights_at(lambda weight: 5.0, [2.0, 9.0])) == 2
