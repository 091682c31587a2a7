"""The rewards that come with midcourse: found by name, small, safe, with cards that say what they are."""

import json
import re
from pathlib import Path

import pytest

from midcourse.compare.independence import of_reward, why_dependent
from midcourse.decode.engine import generate
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.info import place_of, read_info, shipped
from midcourse.rewards.named import load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trunk import TrunkReward

NAMES = ("civil", "civil-tokens", "readable", "sentiment")
MOST_BYTES = 4 << 20

# A prompt, and two responses to it of which the reward prefers the first.
RUDE = ("What do you think of my answer?", "I think that it is wrong.", "I think that it is fucking stupid.")
PREFERRED = {
    "civil": RUDE,
    "civil-tokens": RUDE,
    "readable": (
        "What is rain?",
        "Rain is drops of water. They fall from the sky.",
        "Precipitation constitutes atmospheric condensation descending gravitationally, characteristically liquid.",
    ),
    "sentiment": ("The ferry was late, and", " we loved every minute of it.", " we hated every minute of it."),
}


def test_every_reward_is_there_by_name():
    assert tuple(shipped()) == NAMES


def test_a_folder_here_comes_before_a_shipped_reward(tmp_path, monkeypatch):
    assert Path(place_of("civil")) == shipped()["civil"]
    (tmp_path / "civil").mkdir()
    monkeypatch.chdir(tmp_path)
    assert place_of("civil") == "civil"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_nothing_in_it_is_unpickled(name):
    files = [path for path in shipped()[name].rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".md", ".safetensors"}
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_the_reward_says_of_itself(name):
    folder = shipped()[name]
    info, card = read_info(folder), (folder / "README.md").read_text()
    assert "**Do not use it**" in card
    assert "**Trained on**" in card
    assert info.reward_weight is not None and f"at weight {info.reward_weight:g}" in card
    for row in info.metrics["shares"]:
        low, high = row["interval"]
        assert f"| {100 * row['share']:.0f}% | {row['accuracy']:.3f} | {low:.3f} to {high:.3f} |" in card
    assert info.backbone_fingerprint in card
    # No folder of whoever trained it, and no text that it was trained on.
    assert not re.search(r"/(home|root|work|tmp)/", json.dumps(info.training))


def test_rewards_lists_them(midcourse):
    code, out, _ = midcourse("rewards", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["name"] for row in rows] == list(NAMES)
    assert all(0.5 < row["interval"][0] < row["accuracy"] and row["about"].startswith("Prefers") for row in rows)
    assert all(Path(row["card"]).is_file() for row in rows)
    assert "civil" in midcourse("rewards")[1]


@pytest.mark.slow
def test_a_comparison_knows_by_name_what_a_shipped_reward_learned_from():
    by_name, by_folder = (of_reward(source, "guide") for source in ("civil", str(shipped()["civil"])))
    assert by_name.rows is not None and len(by_name.rows) > 1000
    assert by_name.rows.tolist() == by_folder.rows.tolist()
    assert by_name.fingerprint == by_folder.fingerprint
    assert why_dependent(by_name, by_folder) == "is the guide guide itself"
    assert "shares weights with the guide" in (why_dependent(of_reward("readable", "judge"), by_name) or "")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_prefers_what_it_should(name):
    prompt, better, worse = PREFERRED[name]
    reward = load_reward(name)
    assert isinstance(reward, RewardModel)
    if name != "sentiment":
        prompt = [{"role": "user", "content": prompt}]
    first, second = ([*score.rewards] for score in reward.score([prompt, prompt], [better, worse]))
    if reward.additive:
        assert sum(first) > sum(second)
    else:
        assert first[-1] > second[-1]


@pytest.mark.slow
def test_guiding_by_name_has_the_stored_weight_and_no_second_copy_of_the_model(midcourse):
    code, out, err = midcourse("guide", "--reward", "civil", "--prompt", "Hello", "--max-new-tokens", 4, "--json")
    assert code == 0, err
    row = json.loads(out)
    assert {token["weight"] for token in row["tokens"]} == {read_info(shipped()["civil"]).reward_weight}
    lm = LanguageModel.load("smollm2")
    reward = load_reward("civil", share_with=lm)
    assert isinstance(reward, TrunkReward)
    assert reward.embeddings.data_ptr() == lm.model.get_input_embeddings().weight.data_ptr()
    # A text is continued, a message answered.
    for prompt in ("Hello", [{"role": "user", "content": "Hello"}]):
        (same,) = generate(lm, [prompt], reward, max_new_tokens=4)
        assert len(same.steps) <= 4
