"""The main job, end to end on SmolLM2, as `make demo` runs it."""

import json

import pytest

from midcourse import load_reward
from midcourse.demo import MORE_REPEATED, best_weight, run_demo


@pytest.mark.slow
def test_the_demo_passes_and_leaves_what_it_promises(tmp_path):
    summary, pairs = run_demo(tmp_path / "demo")
    assert summary["passed"]
    assert summary["gold_difference"]["interval"][0] > 0
    assert summary["guidance_kl"] <= 10
    written = json.loads((tmp_path / "demo/summary.json").read_text())
    promised = {
        "prompts", "gold_base", "gold_guided", "gold_difference", "guidance_kl", "total_kl", "perplexity",
        "repeated_bigrams", "repeated_words", "tokens_per_second",
    }  # fmt: skip
    assert promised <= written.keys()
    assert written["prompts"] == len(pairs) >= 100
    page = (tmp_path / "demo/report.html").read_text()
    assert all(pair.prompt.split(",")[0].replace("'", "&#39;") in page for pair in pairs)
    assert (tmp_path / "demo/reward/training.png").stat().st_size > 1000
    assert "Held-out pair accuracy" in (tmp_path / "demo/reward/README.md").read_text()
    reward = load_reward(tmp_path / "demo/reward")
    assert reward.info.reward_weight == summary["weight"]
    good, bad = reward.score(["The concert was"] * 2, [" a wonderful, happy evening.", " a terrible, sad evening."])
    assert good.rewards[-1] > bad.rewards[-1]


def test_the_weight_is_the_best_within_the_validation_limit():
    trials = [
        {"weight": weight, "gold": gold, "guidance_kl": kl, "repeated_words": 0.05}
        for weight, gold, kl in [(0.0, 0.9, 0.0), (1.0, 0.3, 1.0), (2.0, 0.5, 6.9), (4.0, 0.8, 7.1)]
    ]
    assert best_weight(trials) == 2.0
    assert best_weight([trials[0], trials[3]]) == 4.0


def test_a_weight_whose_texts_repeat_themselves_is_passed_over():
    plain = {"weight": 0.0, "gold": 0.1, "guidance_kl": 0.0, "repeated_words": 0.05}
    modest = {"weight": 1.0, "gold": 0.3, "guidance_kl": 1.0, "repeated_words": 0.05 + 0.9 * MORE_REPEATED}
    lists = {"weight": 2.0, "gold": 0.5, "guidance_kl": 2.0, "repeated_words": 0.05 + 1.1 * MORE_REPEATED}
    assert best_weight([plain, modest, lists]) == 1.0
    assert best_weight([plain | {"repeated_words": 0.06}, modest, lists]) == 2.0  # what plain texts do is the measure
    assert best_weight([plain, lists]) == 2.0
