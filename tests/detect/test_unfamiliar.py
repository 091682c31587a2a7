import numpy as np

from midcourse.detect.unfamiliar import Familiar


def around(centre, n, seed, dimensions=80):
    """Texts whose features differ in few directions."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(6, dimensions))
    return centre + random.normal(size=(n, 6)) @ mixing + 0.1 * random.normal(size=(n, dimensions))


def test_few_familiar_texts_are_strange_and_most_others_are():
    words, groups = np.full(1200, 120), [str(i) for i in range(1200)]
    familiar = Familiar.of(around(0.0, 1200, 1), words, groups)
    fresh = familiar.strange(around(0.0, 4000, 2), np.full(4000, 120))
    assert fresh.mean() < 0.02
    assert familiar.strange(around(0.0, 300, 3) + 2.0, np.full(300, 120)).mean() > 0.9  # off every known direction
    assert familiar.strange(around(0.0, 300, 4) * 5, np.full(300, 120)).mean() > 0.5  # farther along the known ones


def test_a_length_that_was_not_seen_has_no_limit():
    familiar = Familiar.of(around(0.0, 400, 1), np.full(400, 120), [str(i) for i in range(400)])
    assert not familiar.strange(around(50.0, 5, 2), np.full(5, 10)).any()
    assert familiar.strange(around(50.0, 5, 2), np.full(5, 120)).all()


def test_copies_of_a_text_do_not_set_their_own_limit():
    """Texts of one group stand on one side: found from themselves, the directions would leave nothing out."""
    texts = around(0.0, 60, 1)
    copied = Familiar.of(np.repeat(texts, 10, 0), np.full(600, 120), [str(i // 10) for i in range(600)])
    assert copied.strange(around(0.0, 500, 2), np.full(500, 120)).mean() < 0.12
