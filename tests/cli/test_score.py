"""midcourse score, as a user would call it."""

import json
import math
from dataclasses import replace

import pytest

from midcourse.rewards.calibration import Calibration
from midcourse.rewards.gold import load_gold
from midcourse.rewards.scalar import RewardModel
from tests.cli.printed import refused


def test_score_prints_the_reward_of_every_prefix(midcourse, reward_folder, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = midcourse(
        "score", "--reward", reward_folder, "--prompt", "abc", "--text", "defg", "--html", page, "--json"
    )
    row = json.loads(out)
    assert code == 0
    assert [token["text"] for token in row["tokens"]][:4] == list("defg")
    assert row["reward"] == row["tokens"][-1]["reward"]
    assert "defg" in page.read_text() or "d" in page.read_text()
    code, out, _ = midcourse("score", "--reward", reward_folder, "--prompt", "abc", "--text", "defg", "--unfinished")
    assert code == 0
    assert "defg" in out


def test_coloured_texts_share_a_scale_that_is_shown_once(midcourse, reward_folder, monkeypatch):
    same = ("score", "--reward", reward_folder, "--prompt", "abc", "--text", "defg", "--against", "h")
    assert "the change of the reward at this token" not in midcourse(*same)[1]
    monkeypatch.setenv("TERM", "xterm-256color")  # a dumb terminal shows no colours, and needs no legend
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    assert midcourse(*same)[1].count("the change of the reward at this token") == 1


def test_score_shows_centred_rewards_and_probabilities(midcourse, reward_folder, calibrated_folder, tmp_path):
    same = ("score", "--reward", calibrated_folder, "--prompt", "abc", "--text", "de")
    row = json.loads(midcourse(*same, "--json")[1])
    plain = json.loads(midcourse(*same[:2], reward_folder, *same[3:], "--json")[1])
    assert (row["temperature"], row["finished_temperature"]) == (2.0, 4.0)
    have, raw = row["tokens"], [token["reward"] for token in plain["tokens"]]
    assert [token["reward"] for token in have] == raw
    centred = [raw[0] - 1, raw[1] - 0.5, raw[2] + 1]
    assert [token["centred"] for token in have] == pytest.approx(centred)
    odds = [1 / (1 + math.exp(-c / t)) for c, t in zip(centred, (2, 2, 4), strict=True)]
    assert [token["probability"] for token in have] == pytest.approx(odds)
    assert {name: row[name] for name in ("reward", "centred", "probability")} == {
        name: have[-1][name] for name in ("reward", "centred", "probability")
    }
    page = tmp_path / "page.html"
    _, out, _ = midcourse(*same, "--html", page, "--table")
    said = f"centred {centred[2]:+.3f}, preferred to an average one with probability {odds[2]:.2f}"
    assert f"reward of the finished text: {raw[2]:.3f}, {said}" in out
    assert [line.split()[-1] for line in out.splitlines()[-3:]] == [f"{p:.2f}" for p in odds]
    assert f"{centred[0]:+.3f} against the mean here, preferred with probability {odds[0]:.2f}" in page.read_text()


def test_score_without_calibration_says_so(midcourse, reward_folder):
    same = ("score", "--reward", reward_folder, "--prompt", "abc", "--text", "de", "--against", "f")
    _, out, _ = midcourse(*same)
    assert "no calibration is stored with this reward" in out
    assert "probability 0" not in out and "centred" not in out
    row = json.loads(midcourse(*same, "--json")[1])
    assert row["temperature"] is row["finished_temperature"] is row["centred"] is row["preferred"] is None
    assert all(token["centred"] is token["probability"] is None for token in row["tokens"])


def test_two_texts_are_compared_at_their_ends_or_at_the_shorter_one(midcourse, calibrated_folder):
    def compared(a: str, b: str, *more: str) -> tuple[dict, str]:
        same = ("score", "--reward", calibrated_folder, "--prompt", "abc", "--text", a, "--against", b, *more)
        return json.loads(midcourse(*same, "--json")[1]), midcourse(*same)[1]

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    row, out = compared("defg", "hi")
    other = row["against"]
    assert (row["text"], other["text"], len(row["tokens"]), len(other["tokens"])) == ("defg", "hi", 5, 3)
    assert row["preferred"] == pytest.approx(sigmoid((row["reward"] - other["reward"]) / 4))
    assert f"A is preferred to B with probability {row['preferred']:.2f}" in out
    assert "A: defg" in out and "B: hi" in out
    assert compared("hi", "defg")[0]["preferred"] == pytest.approx(1 - row["preferred"])
    assert compared("hi", "hi")[0]["preferred"] == 0.5
    row, out = compared("defg", "hi", "--unfinished")
    second = [side["tokens"][1]["reward"] for side in (row, row["against"])]
    assert len(row["tokens"]) == 4
    assert row["preferred"] == pytest.approx(sigmoid((second[0] - second[1]) / 2))
    assert "both cut to 2 tokens" in out


def test_score_reads_vocabulary_rewards_and_classifiers(midcourse, lm_folder, reward_folder, tmp_path):
    same = ("--prompt", "abc", "--text", "de", "--json")
    vocabulary = json.loads(midcourse("score", "--reward", lm_folder, *same)[1])
    assert len(vocabulary["tokens"]) == 3
    assert all(token["reward"] < 0 for token in vocabulary["tokens"])  # log-probabilities
    midcourse("export", "--reward", reward_folder, "--out", tmp_path / "classifier")
    read = json.loads(midcourse("score", "--reward", tmp_path / "classifier", "--lm", lm_folder, *same)[1])
    want = json.loads(midcourse("score", "--reward", reward_folder, *same)[1])
    rewards = [[token["reward"] for token in row["tokens"]] for row in (read, want)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-4)
    unfinished = json.loads(midcourse("score", "--reward", lm_folder, *same, "--unfinished")[1])
    assert [token["reward"] for token in unfinished["tokens"]] == [t["reward"] for t in vocabulary["tokens"][:2]]


def test_score_refuses_what_it_cannot_show(midcourse, reward_folder, tmp_path):
    same = ("score", "--reward", reward_folder, "--prompt", "abc")
    refused(midcourse(*same, "--text", "", "--unfinished"), "no token to reward")
    refused(midcourse(*same, "--text", "a", "--against", "", "--unfinished"), "no token to reward")
    refused(midcourse(*same, "--text", "a", "--against", "b", "--html", tmp_path / "p.html"), "leave out --against")
    assert not (tmp_path / "p.html").exists()
    refused(midcourse(*same, "--text", "a", "--html", tmp_path / "p.txt"), "is no page; name a file that ends in .html")


def test_score_of_a_reward_calibrated_on_cut_texts_compares_prefixes_only(midcourse, reward_folder, tmp_path):
    reward = RewardModel.load(reward_folder)
    reward.info = replace(reward.info, calibration=Calibration(2.0, None, (1.0,), None).stored())
    reward.save(tmp_path / "cut")
    same = ("score", "--reward", tmp_path / "cut", "--prompt", "abc", "--text", "de", "--against", "fg")
    _, out, _ = midcourse(*same)
    assert "no finished text was seen in calibration" in out and "probability" not in out
    row = json.loads(midcourse(*same, "--json")[1])
    assert row["probability"] is row["preferred"] is None and row["tokens"][0]["probability"] is not None
    assert "A is preferred to B with probability 0." in midcourse(*same, "--unfinished")[1]


def test_gold_names_score(midcourse, lm_folder):
    asked = ("score", "--lm", lm_folder, "--reward", "vader", "--prompt", "abc", "--text", "good", "--json")
    code, out, err = midcourse(*asked)
    assert code == 0, err
    assert json.loads(out)["reward"] == pytest.approx(load_gold("vader")("good")) != 0
