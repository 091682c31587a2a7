"""Gold rewards by name."""

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
        ("math", "use vader, profanity or MODULE:FUNCTION"),
        ("", "use vader, profanity or MODULE:FUNCTION"),
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


@pytest.mark.parametrize("name", ["vader", "profanity"])
def test_a_reward_of_a_gold_name_is_called_by_it(name):
    reward = FunctionReward.load(name)
    assert reward.name == f"reward function {name}"
    assert reward.ask([Text("p", "What a lovely day.", True)]) == pytest.approx([load_gold(name)("What a lovely day.")])


@pytest.mark.parametrize("function", ["builtins:str", "builtins:list"])
def test_rewards_are_numbers_whichever_way_they_are_named(function):
    with pytest.raises(RewardError, match=r"reward function .* returned .* return a number"):
        load_reward(function).ask([Text("p", "a", True)])
