import numpy as np
import pytest

from midcourse.detect.learned import LearnedError, direction, learned, n_grams
from midcourse.detect.texts import LabelledText
from midcourse.testing import tiny_language_model


def test_n_grams_know_the_habits_of_machines():
    known = [f"the ferry {i} was late, mate" for i in range(20)] + [f"we delve into tapestry {i}" for i in range(20)]
    labels = np.array([False] * 20 + [True] * 20)
    human, machine = n_grams(known, labels, ["was the bus late, mate", "delve into a rich tapestry"])
    assert human < 0 < machine


def test_the_direction_is_that_of_the_differences_within_groups():
    """Subjects differ far more than people and machines do; machines differ from people along the second axis."""
    random = np.random.default_rng(0)
    subjects = random.normal(scale=50, size=(30, 1, 3)) * [1, 0, 1]
    humans = subjects + random.normal(scale=0.1, size=(30, 2, 3))
    machines = subjects + np.array([0, 1.0, 0]) + random.normal(scale=0.1, size=(30, 2, 3))
    groups = [f"g{i}" for i in range(30)] * 2
    known, labels = np.concatenate([humans, machines]), np.arange(60) >= 30
    asked = np.array([[[7.0, 1, 7]] * 2, [[7.0, 0, 7]] * 2])
    machine, human = direction(known, labels, groups, asked)
    assert machine - human > 1  # both far along the others: what the subjects share is not looked at
    other = direction(known, labels, [""] * 60, asked)  # without groups the subjects lead it astray
    assert abs(other[0] - other[1]) < machine - human


def test_both_stand_beside_each_other_and_need_both_kinds():
    lm = tiny_language_model("llama")
    learn = [LabelledText(f"the ferry was late {i}", "human", f"g{i}") for i in range(6)]
    learn += [LabelledText(f"ZZZZ ZZZZ ZZZZ {i}", "machine", f"g{i}") for i in range(6)]
    asked = [LabelledText("ZZZZ ZZZ ZZZZ"), LabelledText("the ferry is late")]
    found = learned(lm, learn, asked)
    assert set(found) == {"character n-grams", "direction"}
    assert all(scores[0] > scores[1] for scores in found.values())
    with pytest.raises(LearnedError, match="no texts of both people and machines"):
        learned(lm, learn[:6], asked)
