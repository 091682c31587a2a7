"""midcourse prefer, as a user would call it: from midcourse sample down to midcourse train."""

import json

import pytest

from midcourse.data.comparisons import read_comparisons
from midcourse.data.rollouts import read_samples
from tests.chat_server import KEY, longer


@pytest.mark.slow
def test_from_prompts_to_a_reward(midcourse, lm_folder, prompts, taste, tmp_path):
    rollouts, comparisons, reward = tmp_path / "rollouts.jsonl", tmp_path / "comparisons.jsonl", tmp_path / "reward"
    asked = ("sample", "--lm", lm_folder, "--prompts", prompts, "--out", rollouts, "--n", 4, "--max-new-tokens", 6)
    code, out, err = midcourse(*asked, "--label-with-function", "my_data_taste:length")
    assert (code, out) == (0, ""), err
    assert "24 responses to 6 prompts" in err and "mean reward" in err
    assert midcourse(*asked)[0] == 2
    assert midcourse(*asked, "--resume")[0] == 0
    assert all(rollout.reward == len(rollout.response) for rollout in read_samples(rollouts))

    code, out, err = midcourse("prefer", rollouts, "--out", comparisons, "--scale", 2, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["pairs"] == len(read_comparisons(comparisons)) > 10
    assert 0.5 < summary["bayes_accuracy"] <= 1
    code, out, err = midcourse("prefer", rollouts, "--out", comparisons)
    assert code == 2 and "exists already" in err

    code, _, err = midcourse(
        "train", comparisons, "--backbone", lm_folder, "--out", reward, "--template", "raw", "--tune", "head",
        "--epochs", 3, "--batch-size", 8, "--held-out", 0.3, "--json",
    )  # fmt: skip
    assert code == 0, err

    again = tmp_path / "again.jsonl"
    code, out, err = midcourse("prefer", rollouts, "--out", again, "--by-reward", reward, "--pairs", "best-worst")
    assert code == 0, err
    assert "mean gap" in out and "accuracy no reward can exceed" not in out
    by_reward = tmp_path / "by-reward.jsonl"
    code, _, err = midcourse(*asked[:6], by_reward, *asked[7:], "--label-with", reward)
    assert code == 0, err
    assert all(rollout.reward is not None for rollout in read_samples(by_reward))


def test_a_judge_decides_and_is_asked_once(midcourse, lm_folder, prompts, tmp_path, serve):
    rollouts, out = tmp_path / "rollouts.jsonl", tmp_path / "comparisons.jsonl"
    asked = ("sample", "--lm", lm_folder, "--prompts", prompts, "--out", rollouts, "--n", 3, "--max-new-tokens", 6)
    assert midcourse(*asked)[0] == 0
    assert "reward" not in json.loads(rollouts.read_text().splitlines()[0])
    code, _, err = midcourse("prefer", rollouts, "--out", out)
    assert code == 2 and "has no reward; label it with midcourse sample --label-with REWARD --resume" in err

    server = serve(longer)
    (tmp_path / "rubric.txt").write_text("Longer is żółć.\n")
    judged = ("prefer", rollouts, "--out", out, "--judge", server.url, "--judge-model", "m")
    code, printed, err = midcourse(*judged, "--rubric", tmp_path / "rubric.txt")
    assert code == 0, err
    assert "agreement of both orders" in printed and KEY not in printed + err
    assert "Longer is żółć." in server.requests[0]["messages"][0]["content"]
    assert all(len(c.chosen) > len(c.rejected) for c in read_comparisons(out))
    assert (tmp_path / "comparisons.verdicts.jsonl").exists()
    before, asked_for = out.read_bytes(), len(server.requests)
    assert midcourse(*judged, "--rubric", tmp_path / "rubric.txt", "--resume")[0] == 0
    assert (out.read_bytes(), len(server.requests)) == (before, asked_for)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--out", "out.csv"), "is no JSON Lines"),
        (("--by-reward", "a", "--by-function", "b:c"), "exclude one another"),
        (("--by-function", "b:c", "--judge", "http://x/v1"), "exclude one another"),
        (("--judge", "http://x/v1"), "needs --judge-model NAME and --rubric TEXT"),
        (("--judge", "http://x/v1", "--judge-model", "m", "--rubric", "r", "--scale", 2), "a judge gives no numbers"),
        (("--judge", "x", "--judge-model", "m", "--rubric", "r"), "'x' is no address"),
        (("--judge-model", "m"), "--judge-model is for a judge"),
        (("--resume",), "--resume goes on with a judge's verdicts"),
        (("--by-function", "my_data_taste:broken"), "reward function broken raised KeyError"),
        (("--out", "no/such/folder/out.jsonl"), "no/such/folder"),
    ],
)
def test_prefer_refuses_in_one_sentence(midcourse, taste, tmp_path, flags, problem):
    rollouts = tmp_path / "rollouts.jsonl"
    row = {"prompt": "p", "finished": True}
    lines = [json.dumps({**row, "response": text, "reward": len(text)}) + "\n" for text in ("a", "bb")]
    rollouts.write_text("".join(lines))
    code, _, err = midcourse("prefer", rollouts, "--out", tmp_path / "out.jsonl", *flags)
    assert code == 2
    assert problem in err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("flag", ["--by-reward", "--by-function"])
def test_gold_names_decide(midcourse, tmp_path, flag):
    rollouts, out = tmp_path / "rollouts.jsonl", tmp_path / "comparisons.jsonl"
    texts = ("A horrible, sad evening.", "A lovely, wonderful evening.")
    lines = [json.dumps({"prompt": "p", "finished": True, "response": text}) + "\n" for text in texts]
    rollouts.write_text("".join(lines))
    code, _, err = midcourse("prefer", rollouts, "--out", out, "--pairs", "all", flag, "vader")
    assert code == 0, err
    (comparison,) = read_comparisons(out)
    assert (comparison.rejected, comparison.chosen) == texts
