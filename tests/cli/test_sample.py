"""midcourse sample, as a user would call it."""

import pytest

from midcourse.data.rollouts import read_samples
from midcourse.rewards.gold import load_gold


def test_the_whole_vocabulary_and_a_label_for_rows_that_are_there(midcourse, lm_folder, prompts, taste, tmp_path):
    out = tmp_path / "rollouts.jsonl"
    asked = ("sample", "--lm", lm_folder, "--prompts", prompts, "--out", out, "--n", 1, "--max-new-tokens", 4,
             "--top-k", 0)  # fmt: skip
    assert midcourse(*asked)[0] == 0
    before = [rollout.response for rollout in read_samples(out)]
    code, _, err = midcourse(*asked, "--resume", "--label-with-function", "my_data_taste:length")
    assert code == 0, err
    assert [(r.response, r.reward) for r in read_samples(out)] == [(text, len(text)) for text in before]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--label-with-function", "my_data_taste:broken"), "row 0, sample 0: reward function broken raised KeyError"),
        (("--label-with-function", "my_data_taste:missing"), "no reward function"),
        (("--label-with", "nothing-here"), "nothing-here is no reward"),
        (("--label-with", "a", "--label-with-function", "b:c"), "leave one out"),
        (("--n", 0), "n 0 asks for no sample"),
        (("--top-p", 2), "top-p 2.0"),
        (("--prompts", "missing.jsonl"), "missing.jsonl cannot be read"),
    ],
)
def test_sample_refuses_in_one_sentence(midcourse, lm_folder, prompts, taste, tmp_path, flags, problem):
    code, _, err = midcourse(
        "sample", "--lm", lm_folder, "--prompts", prompts, "--out", tmp_path / "out.jsonl", "--max-new-tokens", 4,
        "--batch-size", 1, *flags,
    )  # fmt: skip
    assert code == 2
    assert problem in err
    assert "Traceback" not in err


@pytest.mark.parametrize("flag", ["--label-with", "--label-with-function"])
def test_gold_names_label(midcourse, lm_folder, prompts, tmp_path, flag):
    out = tmp_path / "rollouts.jsonl"
    asked = ("sample", "--lm", lm_folder, "--prompts", prompts, "--out", out, "--n", 1, "--max-new-tokens", 4)
    code, _, err = midcourse(*asked, flag, "vader")
    assert code == 0, err
    gold = load_gold("vader")
    assert all(rollout.reward == pytest.approx(gold(rollout.response)) for rollout in read_samples(out))
