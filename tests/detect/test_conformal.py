import numpy as np
import pytest
from scipy.stats import binom

from midcourse.detect.conformal import highest_rank, rate_interval, texts_needed, threshold
from tests.pace import slow_except


@pytest.mark.parametrize(
    ("fpr", "guarantee", "texts"),
    [(0.01, "average", 99), (0.05, "average", 19), (0.01, "confidence", 299), (0.05, "confidence", 59)],
)
def test_the_smallest_number_of_texts_that_resolves_a_rate(fpr, guarantee, texts):
    assert texts_needed(fpr, guarantee) == texts
    assert threshold(np.arange(texts - 1.0), fpr, guarantee).score is None
    lowest = threshold(np.arange(float(texts)), fpr, guarantee)
    assert lowest == (texts - 1, texts)  # the largest human score: only what lies above all of them is flagged


def test_ranks_by_hand():
    assert highest_rank(199, 0.01, "average") == 2  # 2 / 200
    assert highest_rank(198, 0.01, "average") == 1
    assert threshold([5.0, 1.0, 4.0, 2.0, 3.0], 0.5, "average").score == 3.0  # 3 / 6
    # With 473 texts the second largest holds: at least 2 of 473 exceed 1% with probability 1 - P(Bin(473, 1%) <= 1).
    assert 1 - binom.cdf(1, 473, 0.01) >= 0.95 > 1 - binom.cdf(1, 472, 0.01)
    assert highest_rank(473, 0.01, "confidence") == 2
    assert highest_rank(472, 0.01, "confidence") == 1


@pytest.mark.parametrize("distribution", slow_except(["normal"], ["normal", "cauchy", "ties"]))
def test_thresholds_hold_their_rate_on_exchangeable_texts(distribution):
    """On average at most 2%; and with confidence in at least 95 of 100 calibrations."""
    draw = {
        "normal": lambda random, n: random.normal(size=n),
        "cauchy": lambda random, n: random.standard_cauchy(size=n),
        "ties": lambda random, n: random.integers(0, 40, size=n).astype(float),
    }[distribution]
    random = np.random.default_rng(0)
    average, held = [], []
    fresh = draw(random, 20_000)
    for _ in range(400):
        humans = draw(random, 200)
        average.append((fresh > threshold(humans, 0.02).score).mean())
        held.append((fresh > threshold(humans, 0.02, "confidence").score).mean() <= 0.02)
    assert np.mean(average) <= 0.0225  # 4 / 201, and the noise of the 20,000 fresh texts
    assert np.mean(held) >= 0.93
    if distribution != "ties":
        assert np.mean(average) >= 0.017  # and no less than it may


def test_thresholds_do_not_hold_on_texts_of_another_kind():
    """Exchangeability is all that they rest on: people who write a little more like machines are flagged far more."""
    random = np.random.default_rng(1)
    limit = threshold(random.normal(size=999), 0.01).score
    assert (random.normal(loc=1.0, size=5000) > limit).mean() > 0.05


def test_the_interval_of_a_rate_is_exact():
    low, high = rate_interval(3, 100)
    assert binom.sf(2, 100, low) == pytest.approx(0.025)
    assert binom.cdf(3, 100, high) == pytest.approx(0.025)
    assert rate_interval(0, 10)[0] == 0
    assert rate_interval(10, 10)[1] == 1
    assert rate_interval(0, 30)[1] == pytest.approx(1 - 0.025 ** (1 / 30))
