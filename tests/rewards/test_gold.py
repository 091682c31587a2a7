"""Gold rewards by name."""

import math
import subprocess
import sys

import pytest

from midcourse.rewards.contract import Text
from midcourse.rewards.gold import load_gold
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.rewards.text import FunctionReward


def test_vader_tells_good_from_bad():
    gold = load_gold("vader")
    assert gold("A lovely, wonderful evening.") > 0 > gold("A horrible, sad evening.")


def compound(*valences):
    """VADER's squashing of a sum of valences, as it rounds it."""
    return round(sum(valences) / math.sqrt(sum(valences) ** 2 + 15), 4)


@pytest.mark.parametrize(
    ("text", "valences"),
    [
        ("good", [1.9]),
        ("good, good, good", [1.9]),
        ("Good and GOOD and good", [1.9 + 0.733]),  # capitals among small letters
        ("good, VERY good", [1.9 + 0.293 + 0.733]),  # the same, whichever comes first
        ("VERY good, good", [1.9 + 0.293 + 0.733]),
        ("not good", [-0.74 * 1.9]),
        ("not good, not good", [-0.74 * 1.9]),
        ("not good there, but good here", [1.5 * 1.9]),  # what follows a "but" weighs more
        ("good, great, good, great", [1.9, 3.1]),
        ("good, bad, good, bad", [1.9, -2.5]),
        ("good good!", [1.9, 0.292]),
        ("the the the the", [0.0]),
        ("", [0.0]),
    ],
)
def test_vader_once_counts_a_word_once_where_it_is_strongest(text, valences):
    assert load_gold("vader-once")(text) == pytest.approx(compound(*valences), abs=1e-4)


def test_without_a_repeated_word_vader_once_is_vader():
    for text in (
        "A lovely, wonderful evening!",
        "It was not bad, but I hated the soup.",
        "We left.",
        "\U0001f600 fine",
    ):
        assert load_gold("vader-once")(text) == load_gold("vader")(text)
    assert load_gold("vader-once")("good, good") < load_gold("vader")("good, good")


def test_profanity_tells_rude_from_polite():
    gold = load_gold("profanity")
    rude, polite = gold("You are a fucking idiot."), gold("You are a lovely person.")
    assert 0 <= rude < 0.1 and 0.9 < polite <= 1
    assert 0 <= gold("") <= 1


def test_profanity_is_loaded_only_when_asked_for():
    """Its model is a pickle. A new process: this one may have it already."""
    code = "from midcourse.rewards.gold import load_gold; import sys; load_gold('vader'); "
    code += "print('profanity_check' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(RewardError, match="run: pip install alt-profanity-check"):
        load_gold("profanity")


def test_any_function_of_a_text(tmp_path, monkeypatch):
    (tmp_path / "my_taste.py").write_text("def words(text):\n    return len(text.split())\n")
    monkeypatch.chdir(tmp_path)
    assert load_gold("my_taste:words")("three short words") == 3.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "no gold reward 'no_such_module:f'"),
        ("math:no_such_function", "no gold reward"),
        ("math", "use vader, vader-once, profanity or MODULE:FUNCTION"),
        ("", "use vader, vader-once, profanity or MODULE:FUNCTION"),
        ("math:pi", "is not a function"),
    ],
)
def test_what_cannot_be_loaded_says_so(name, message):
    with pytest.raises(RewardError, match=message):
        load_gold(name)


@pytest.mark.parametrize("function", ["builtins:str", "builtins:list", "test_gold_values:nan"])
def test_only_finite_numbers_are_rewards(function, tmp_path, monkeypatch):
    (tmp_path / "test_gold_values.py").write_text("def nan(text):\n    return float('nan')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RewardError, match="return a finite number"):
        load_gold(function)("a")


@pytest.mark.parametrize(
    ("digits", "words"), [(400, "returned 1" + "0" * 59 + r"\.\.\. for a text"), (5000, "returned a whole number of")]
)
def test_a_number_beyond_any_float_is_no_reward(digits, words, tmp_path, monkeypatch):
    (tmp_path / f"test_gold_{digits}.py").write_text(f"def huge(text):\n    return 10**{digits}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RewardError, match=words):
        load_gold(f"test_gold_{digits}:huge")("a")


@pytest.mark.parametrize("name", ["vader", "profanity"])
def test_a_reward_of_a_gold_name_is_called_by_it(name):
    reward = FunctionReward.load(name)
    assert reward.name == f"reward function {name}"
    assert reward.ask([Text("p", "What a lovely day.", True)]) == pytest.approx([load_gold(name)("What a lovely day.")])


@pytest.mark.parametrize("function", ["builtins:str", "builtins:list"])
def test_rewards_are_numbers_whichever_way_they_are_named(function):
    with pytest.raises(RewardError, match=r"reward function .* returned .* return a number"):
        load_reward(function).ask([Text("p", "a", True)])
