"""midcourse reward-bench, as a user would call it."""

import json

import pytest


@pytest.mark.parametrize("flag", ["--reward", "--reward-function"])
def test_gold_names_are_measured(midcourse, lm_folder, tmp_path, flag):
    data = tmp_path / "pairs.jsonl"
    texts = ("A lovely, wonderful evening.", "A horrible, sad evening.")
    data.write_text(
        "".join(json.dumps({"prompt": f"p{i}", "chosen": texts[0], "rejected": texts[1]}) + "\n" for i in range(4))
    )
    code, out, err = midcourse("reward-bench", flag, "vader", "--lm", lm_folder, "--comparisons", data, "--json")
    assert code == 0, err
    figures = json.loads(out)
    assert figures["reward"] == "vader"
    assert figures["shares"][-1]["accuracy"] == 1
