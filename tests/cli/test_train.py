"""midcourse train, as a user would call it, and what is done with its rewards."""

import json
import math
import subprocess
import sys

import pytest
import torch

from midcourse.testing import tiny_language_model
from tests.cli.printed import refused, rows
from tests.pace import slow_except


def test_train_prints_accuracies_and_leaves_bad_rows_out(midcourse, lm_folder, tmp_path):
    data, bad = tmp_path / "pairs.jsonl", tmp_path / "bad.jsonl"
    pairs = [{"prompt": f"p{i}", "chosen": " good", "rejected": " poor text"} for i in range(12)]
    data.write_text(
        "".join(json.dumps(row) + "\n" for row in pairs) + '{"prompt": "p", "chosen": "", "rejected": "x"}\n'
    )
    same = ("train", data, "--backbone", lm_folder, "--template", "raw", "--tune", "head", "--epochs", 1)
    code, _, err = midcourse(*same, "--out", tmp_path / "refused")
    assert code == 2
    assert "pairs.jsonl, line 13, field chosen" in err
    assert not (tmp_path / "refused").exists()
    code, out, err = midcourse(*same, "--out", tmp_path / "reward", "--skip-bad-rows", bad)
    assert code == 0
    assert "10% of the response" in out
    assert "baseline: the shorter response" in out
    assert "Expected calibration error" in out
    assert "Of finished texts, a is preferred to b with probability sigmoid((r_a - r_b) / " in out
    assert "skipped 1 bad rows" in err
    assert rows(bad.read_text())[0]["line"] == 13
    before = data.read_bytes()
    for taken in (data, tmp_path):  # what holds no bad rows is not written over
        refused(midcourse(*same, "--out", tmp_path / "other", "--skip-bad-rows", taken), "for --skip-bad-rows")
    assert data.read_bytes() == before
    assert midcourse(*same, "--out", tmp_path / "other", "--skip-bad-rows", bad)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "flags"), [("train", ("--tune", "lora:2")), ("dpo", ("--rank", 2))])
def test_the_log_of_training_is_quiet(lm_folder, pairs, tmp_path, verb, flags):
    """In a process of its own, where nothing but the command line says what is shown: a bar and no warnings."""
    model = "--lm" if verb == "dpo" else "--backbone"
    asked = [verb, pairs, model, lm_folder, "--template", "raw", "--epochs", 1, "--out", tmp_path / "out", *flags]
    call = [sys.executable, "-m", "midcourse", *map(str, asked)]
    found = subprocess.run(call, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "Warning" not in found.stderr
    assert all("training" in line or "about" in line for line in found.stderr.replace("\r", "\n").splitlines() if line)


def test_trunk_is_trained_and_guides(midcourse, lm_folder, tmp_path):
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"p{i}", "chosen": " good", "rejected": " poor text"} for i in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    same = ("train", data, "--backbone", lm_folder, "--template", "raw", "--epochs", 1)
    code, out, err = midcourse(*same, "--head", "trunk:4", "--out", tmp_path / "trunk")
    assert code == 0, err
    assert "100% of the response" in out
    info = json.loads((tmp_path / "trunk" / "midcourse.json").read_text())
    assert (info["head"], info["layers"], info["backbone_layers"], info["tune"]) == ("trunk:4", 2, 3, "head")
    code, out, err = midcourse(
        "guide", "--lm", lm_folder, "--reward", f"{tmp_path / 'trunk'}=2", "--prompt", "p1", "--max-new-tokens", 4
    )
    assert code == 0, err
    assert "guidance KL" in err
    code, out, _ = midcourse("score", "--reward", tmp_path / "trunk", "--prompt", "p1", "--text", " good", "--json")
    assert code == 0
    assert len(json.loads(out)["tokens"]) == len(" good") + 1
    refused(
        midcourse(*same, "--head", "tree", "--out", tmp_path / "x"),
        "head 'tree' is unknown; use scalar, vocabulary, trunk or",
    )
    refused(midcourse(*same, "--head", "trunk", "--tune", "last:1", "--out", tmp_path / "x"), "trains its head alone")


OBJECTIVES = [
    (["--objective", "prefix", "--past-end", "paper"], "pairs", "scalar", {"past_end": "paper"}),
    (["--objective", "sequence", "--head", "vocabulary"], "pairs", "vocabulary", {}),
    (["--objective", "value"], "rollouts", "scalar", {"value": "mean"}),
    (
        ["--objective", "value", "--value", "soft", "--value-weight", 2, "--head", "trunk:4"],
        "rollouts", "trunk:4", {"value": "soft", "value_weight": 2.0},
    ),
    (["--objective", "value", "--value", "max"], "pairs", "scalar", {"value": "max", "expectile": 0.9}),
    (["--objective", "cumulative"], "rollouts", "scalar", {}),
    (
        ["--objective", "farma", "--alternations", 2],
        "pairs", "vocabulary", {"alternations": 2, "farma_gradient": "stop"},
    ),
    (
        ["--objective", "farma", "--farma-gradient", "both", "--head", "trunk:4"],
        "pairs", "trunk:4", {"alternations": 7, "farma_gradient": "both"},
    ),
    (["--objective", "autoregressive", "--tune", "lora:2"], "pairs", "vocabulary", {"beta": 0.05}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "data", "head", "settings"), slow_except([OBJECTIVES[3], OBJECTIVES[-1]], OBJECTIVES)
)
def test_every_objective_from_the_command_line(
    midcourse, lm_folder, pairs, rollouts, tmp_path, flags, data, head, settings
):
    path = {"pairs": pairs, "rollouts": rollouts}[data]
    same = ("--backbone", lm_folder, "--template", "raw", "--epochs", 1, "--out", tmp_path / "reward")
    code, out, err = midcourse("train", path, *flags, *same)
    assert code == 0, err
    assert "100% of the response" in out
    assert ("squared error" in out) == (data == "rollouts")
    info = json.loads((tmp_path / "reward" / "midcourse.json").read_text())
    assert (info["objective"], info["head"], info["objective_settings"]) == (flags[1], head, settings)
    code, out, err = midcourse(
        "guide", "--lm", lm_folder, "--reward", tmp_path / "reward", "--prompt", "p1", "--max-new-tokens", 3, "--json"
    )
    assert code == 0, err
    weight = {"value": settings.get("value_weight")}.get(flags[1]) or 2.0  # that of pargs
    assert rows(out)[0]["tokens"][0]["weight"] == weight
    code, out, err = midcourse("score", "--reward", tmp_path / "reward", "--prompt", "p1", "--text", " good", "--json")
    assert code == 0, err
    assert len(json.loads(out)["tokens"]) == len(" good") + 1


def test_two_models_are_an_implicit_reward(midcourse, lm_folder, pairs, tmp_path):
    lm = tiny_language_model("llama", dtype=torch.float32, seed=7)
    lm.model.save_pretrained(tmp_path / "aligned")
    lm.tokenizer.save_pretrained(tmp_path / "aligned")
    asked = ("train", "--objective", "implicit", "--backbone", tmp_path / "aligned", "--template", "raw")
    code, out, err = midcourse(*asked, pairs, "--reference", lm_folder, "--beta", 0.5, "--out", tmp_path / "reward")
    assert code == 0, err
    assert "Pair accuracy (12 pairs of 12 prompts" in " ".join(out.split())
    code, out, err = midcourse(*asked, "--reference", lm_folder, "--out", tmp_path / "unmeasured", "--json")
    assert (code, json.loads(out)) == (0, {"pairs": 0})
    code, out, err = midcourse(
        "guide", "--lm", lm_folder, "--reward", tmp_path / "reward", "--method", "genarm", "--prompt", "p1",
        "--max-new-tokens", 3, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert rows(out)[0]["tokens"][0]["weight"] == 2.0  # 1 / beta: the aligned model's own policy
    asked_score = ("score", "--reward", tmp_path / "reward", "--prompt", "p1", "--text", " good")
    code, out, _ = midcourse(*asked_score, "--json")
    assert code == 0
    found = json.loads(out)
    # A text's reward is the sum of its tokens', here and in what calibrates it.
    assert found["reward"] == pytest.approx(sum(token["reward"] for token in found["tokens"]))
    stored = json.loads((tmp_path / "reward/midcourse.json").read_text())["calibration"]
    assert found["centred"] == pytest.approx(found["reward"] - stored["finished_mean"])
    out = midcourse(*asked_score, "--against", " bad")[1]
    assert "the sum of its 6 tokens'" in out
    other = json.loads(midcourse(*asked_score, "--against", " bad", "--json")[1])
    margin = other["reward"] - other["against"]["reward"]
    assert other["preferred"] == pytest.approx(1 / (1 + math.exp(-margin / stored["finished_temperature"])))
    refused(midcourse(*asked, "--out", tmp_path / "x"), "name the one to compare with by --reference")
    given = (*asked, "--reference", lm_folder)
    refused(midcourse(*given, "--out", tmp_path / "reward"), "exists already; name a new folder")
    refused(midcourse(*given, "--tune", "all", "--out", tmp_path / "x"), "trains nothing and has no tune; leave it out")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--objective", "prefix"], "make comparisons of them with midcourse prefer"),
        (["--objective", "farma"], "objective farma learns from comparisons, and rollouts are single responses"),
        (["--objective", "value", "--beta", 0.1], "objective value has no beta; leave it out"),
        (["--objective", "value", "--value", "soft"], "say which, such as --value-weight 2"),
        (["--objective", "value", "--reference", "smollm2"], "has no reference, which is for implicit"),
        (["--objective", "cumulative", "--head", "trunk"], "does not train a trunk head; use --head scalar"),
        (["--objective", "implicit", "--reference", "smollm2"], "objective implicit is measured on comparisons"),
    ],
)
def test_objectives_that_make_no_sense(midcourse, lm_folder, rollouts, tmp_path, flags, part):
    refused(midcourse("train", rollouts, *flags, "--backbone", lm_folder, "--out", tmp_path / "r"), part)
    assert not (tmp_path / "r").exists()


def test_objectives_without_a_file(midcourse, tmp_path):
    refused(
        midcourse("train", "--objective", "value", "--out", tmp_path / "r"), "name one with comparisons or rollouts"
    )
