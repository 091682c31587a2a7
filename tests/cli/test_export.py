"""midcourse export."""

import json

import pytest

from tests.cli.printed import refused


def test_export_writes_a_standard_checkpoint_once(midcourse, reward_folder, tmp_path):
    out = tmp_path / "exported"
    assert midcourse("export", "--reward", reward_folder, "--out", out)[0] == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    code, _, err = midcourse("export", "--reward", reward_folder, "--out", out)
    assert (code, "exists already" in err) == (2, True)


@pytest.mark.parametrize("reward", ["vader", "civil", "LM"])
def test_what_has_no_scalar_head_is_not_exported(midcourse, lm_folder, tmp_path, reward):
    asked = ("export", "--reward", lm_folder if reward == "LM" else reward, "--out", tmp_path / "out")
    refused(midcourse(*asked), "has no scalar head", "midcourse train wrote with --head scalar")
    assert not (tmp_path / "out").exists()
