"""The methods and their papers' settings."""

import math
import re

import pytest

from midcourse.decode.guidance import add_clamped, add_log_sigmoid, add_reward
from midcourse.decode.methods import METHODS, BestOfN, Blockwise, Cards, Method, MethodError, method, with_settings

NAMES = (
    "plain, pargs, pargs-greedy, args, args-stochastic, cd, cd-blockwise, rad, fudge, farma, genarm, soft-value, "
    "cards, best-of-n"
)


def test_settings_of_the_papers():
    tokenwise = {name: m for name, m in METHODS.items() if isinstance(m, Method)}
    assert {
        name: (m.guide, m.greedy, m.reward_weight, m.top_k, m.temperature, m.ranked_by) for name, m in tokenwise.items()
    } == {
        "plain": (None, False, 0.0, 10, 1.0, "lm"),
        "pargs": (add_reward, False, 2.0, 10, 1.0, "lm"),
        "pargs-greedy": (add_reward, True, 1.0, 10, 1.0, "lm"),
        "args": (add_reward, True, 1.5, 10, 1.0, "lm"),
        "args-stochastic": (add_reward, False, 1.5, 10, 0.7, "lm"),
        "cd": (add_reward, False, 1.0, 10, 1.0, "lm"),
        "rad": (add_clamped, False, 10.0, 20, 1.0, "lm"),
        "fudge": (add_log_sigmoid, False, 1.0, 200, 1.0, "lm"),
        "farma": (add_reward, False, 1.0, 10, 1.0, "sum"),
        "genarm": (add_reward, False, 1.0, None, 1.0, "sum"),
        "soft-value": (add_reward, False, 1.0, 10, 1.0, "lm"),
    }
    assert METHODS["best-of-n"] == BestOfN(samples=16)
    assert METHODS["cd-blockwise"] == Blockwise(samples=6, block_tokens=16)
    cards = METHODS["cards"]
    assert isinstance(cards, Cards)
    assert (cards.entropy_threshold, cards.start_share, cards.temperature, cards.retries) == (3.0, 0.5, 0.7, 20)


def test_every_method_names_its_source():
    assert all(m.source for m in METHODS.values())


def test_number_of_samples_in_the_name():
    assert method("best-of-n:4") == BestOfN(samples=4)
    assert method("cd-blockwise:3") == Blockwise(samples=3)
    for name in ("pargs:4", "cards:4", "best-of-n:x", "best-of-n:"):
        with pytest.raises(MethodError, match=f"method '{name}' is unknown; only best-of-n:N"):
            method(name)


@pytest.mark.parametrize("name", ["pragmatic", "", "PARGS"])
def test_unknown_method_lists_the_known_ones(name):
    want = f"method {name!r} is unknown; use one of: {NAMES}"
    with pytest.raises(MethodError, match=re.escape(want)):
        method(name)


def test_settings_replace_those_of_the_method():
    assert with_settings(Method(), "mine", {"top_k": 3, "temperature": None}) == Method(top_k=3)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("pargs", {"samples": 4}, "method pargs has no samples; leave it out or use another method"),
        ("best-of-n", {"reward_weight": 2.0}, "method best-of-n has no reward-weight"),
        ("pargs", {"top_p": 0.0}, "top-p 0.0 is not a share above 0 and up to 1"),
        ("pargs", {"top_p": math.nan}, "top-p nan is not a share"),
        ("best-of-n", {"samples": 0}, "samples 0 is too few; use 1 or more"),
        ("best-of-n", {"temperature": 0.0}, "at temperature 0 all samples are the same"),
        ("cd-blockwise", {"block_tokens": 0}, "block-tokens 0 is too few"),
        ("cards", {}, "cards needs the reward that a good response has"),
        ("cards", {"reward_threshold": math.nan}, "reward-threshold is not a number"),
        ("cards", {"reward_threshold": 1.0, "temperature": 0.0}, "cards accepts by its temperature"),
        ("cards", {"reward_threshold": 1.0, "start_share": 1.5}, "start-share 1.5 is not between 0 and 1"),
        ("soft-value", {"temperature": 0.7}, "soft-value is exact when sampled at temperature 1, not 0.7"),
        ("soft-value", {"temperature": 0.0}, "soft-value is exact when sampled at temperature 1, not 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, settings, words):
    with pytest.raises(MethodError, match=re.escape(words)):
        with_settings(METHODS[name], name, settings)
