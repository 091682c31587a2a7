"""midcourse export."""

import json


def test_export_writes_a_standard_checkpoint_once(midcourse, reward_folder, tmp_path):
    out = tmp_path / "exported"
    assert midcourse("export", "--reward", reward_folder, "--out", out)[0] == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    code, _, err = midcourse("export", "--reward", reward_folder, "--out", out)
    assert (code, "exists already" in err) == (2, True)
