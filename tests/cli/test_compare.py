"""midcourse compare, as a user would call it."""

import json

import pytest

from midcourse.rewards.gold import load_gold
from tests.cli.printed import refused, rows


@pytest.fixture
def asked(lm_folder, prompts, tmp_path):
    return ("compare", "--lm", lm_folder, "--prompts", prompts, "--limit-prompts", 2, "--max-new-tokens", 4,
            "--out", tmp_path / "out", "--sweep", "reward_weight=1", "--rewards", "vader")  # fmt: skip


def test_gold_names_guide_and_judge(midcourse, asked, tmp_path):
    code, _, err = midcourse(*asked, "--judges", "builtins:len", "profanity")
    assert code == 0, err
    texts = {row["key"]: row["text"] for row in rows((tmp_path / "out/results.jsonl").read_text())}
    scores = rows((tmp_path / "out/judgements.jsonl").read_text())
    golds = {name: load_gold(name) for name in ("builtins:len", "profanity")}
    assert {one["judge"] for one in scores} == golds.keys()
    assert all(one["score"] == pytest.approx(golds[one["judge"]](texts[one["key"]])) for one in scores)
    record = json.loads((tmp_path / "out/compare.json").read_text())
    assert record["guides"] == {"vader": "vader"}


def test_a_function_does_not_judge_itself(midcourse, asked):
    refused(midcourse(*asked, "--judges", "vader"), "judge vader is the guide vader itself")
