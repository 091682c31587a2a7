"""The methods and their papers' settings."""

import re

import pytest

from midcourse.decode.guidance import add_reward
from midcourse.decode.methods import METHODS, Method, MethodError, method


def test_settings_of_the_paper():
    assert {name: (m.guide, m.greedy, m.reward_weight, m.top_k, m.temperature) for name, m in METHODS.items()} == {
        "plain": (None, False, 0.0, 10, 1.0),
        "pargs": (add_reward, False, 2.0, 10, 1.0),
        "pargs-greedy": (add_reward, True, 1.0, 10, 1.0),
    }


def test_known_method():
    assert isinstance(method("pargs"), Method)


@pytest.mark.parametrize("name", ["pragmatic", "", "PARGS"])
def test_unknown_method_lists_the_known_ones(name):
    want = f"method {name!r} is unknown; use one of: plain, pargs, pargs-greedy"
    with pytest.raises(MethodError, match=re.escape(want)):
        method(name)
