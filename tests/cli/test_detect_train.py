"""midcourse detect train, as a user would call it, and what is done with its detectors."""

import json
from pathlib import Path

import pytest

from tests.cli.printed import refused, rows

FORMS = {"machine": "fine fine", "mixed": "fine poor", "human": "poor poor"}


@pytest.fixture
def ladders(tmp_path: Path) -> Path:
    path = tmp_path / "ladders.jsonl"
    found = [{name: f"{i} {form}" for name, form in FORMS.items()} | {"group": f"q{i // 2}"} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


FLAGS = ("--tune", "last:1", "--epochs", 4, "--batch-size", 8, "--lr", "1e-2", "--held-out", "0.25", "--seed", 1)


def test_a_detector_is_trained_and_is_a_reward_like_any_other(midcourse, lm_folder, ladders, pairs, tmp_path):
    out = tmp_path / "detector"
    asked = ("detect", "train", "--pairs", ladders, "--reward", lm_folder, *FLAGS, "--replay", pairs)
    code, printed, err = midcourse(*asked, "--out", out)
    assert code == 0, err
    told = " ".join(printed.replace("│", " ").split())
    for words in (
        "machine above mixed",
        "AUROC, machine against human",
        "6 machine and 6 human texts of 3 groups",
        "rewards of 24 replayed texts moved by",
        f"detector, card and curves: {out}",
    ):
        assert words in told
    ends = []
    for form in FORMS.values():
        code, printed, err = midcourse("score", "--reward", out, "--prompt", "", "--text", f"7 {form}", "--json")
        assert code == 0, err
        ends.append(json.loads(printed)["reward"])
    assert ends[0] > ends[1] > ends[2]
    code, printed, err = midcourse(
        "sample", "--prompts", pairs_prompts(tmp_path), "--lm", lm_folder, "--max-new-tokens", 3, "--n", 2,
        "--template", "raw", "--out", tmp_path / "rollouts.jsonl", "--label-with", out,
    )  # fmt: skip
    assert code == 0, err
    assert all(isinstance(row["reward"], float) for row in rows((tmp_path / "rollouts.jsonl").read_text()))
    code, printed, err = midcourse(
        "compare", "--prompts", pairs_prompts(tmp_path), "--lm", lm_folder, "--methods", "plain", "--template", "raw",
        "--max-new-tokens", 3, "--judges", out, "--out", tmp_path / "compared",
    )  # fmt: skip
    assert code == 0, err
    assert all(isinstance(row["score"], float) for row in rows((tmp_path / "compared/judgements.jsonl").read_text()))
    # and its training goes on, with more to train
    code, printed, err = midcourse(
        "detect", "train", "--pairs", ladders, "--reward", out, "--tune", "last:2", "--epochs", 1, "--preset", "code",
        "--replay-reduction", "mean", "--divide-by-terms", "no", "--out", tmp_path / "second", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert {"levels", "machine_or_human", "train_ladders"} <= json.loads(printed).keys()
    info = json.loads((tmp_path / "second/midcourse.json").read_text())
    assert info["objective_settings"] == {
        "preset": "code", "extreme_weight": 1.0, "other_weight": 0.3, "logit_penalty": 0.01, "divide_by_terms": False,
        "replay_weight": 0.01, "replay_reduction": "mean",
    }  # fmt: skip
    assert info["tune"] == "last:2" and info["training"]["begun_at"]["reward"] == str(out)


def pairs_prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    return path


def test_bad_rows_of_either_file_are_left_out(midcourse, lm_folder, ladders, pairs, tmp_path):
    bad, replay = tmp_path / "bad.jsonl", tmp_path / "replay.jsonl"
    replay.write_text(pairs.read_text() + '{"prompt": "p", "chosen": "", "rejected": "x"}\n')
    with ladders.open("a") as file:
        file.write('{"machine": "a"}\n')
    asked = ("detect", "train", "--pairs", ladders, "--reward", lm_folder, "--tune", "head", "--epochs", 1)
    refused(midcourse(*asked, "--out", tmp_path / "d"), "ladders.jsonl, line 25, field human: the field is missing")
    assert not (tmp_path / "d").exists()
    code, _, err = midcourse(*asked, "--replay", replay, "--skip-bad-rows", bad, "--out", tmp_path / "d")
    assert code == 0, err
    assert f"skipped 2 bad rows, written to {bad}" in err
    assert [(Path(row["file"]).name, row["line"]) for row in rows(bad.read_text())] == [
        ("ladders.jsonl", 25), ("replay.jsonl", 13),
    ]  # fmt: skip


def test_what_makes_no_sense_is_refused_before_a_model_is_loaded(midcourse, ladders, tmp_path):
    asked = ("detect", "train", "--pairs", ladders, "--reward", tmp_path / "none", "--out", tmp_path / "d")
    refused(midcourse(*asked, "--other-weight", -1), "other-weight is -1.0; use 0 or more")
    refused(midcourse(*asked, "--epochs", 0), "epochs is 0; use 1 or more")
    refused(midcourse(*asked, "--replay", tmp_path / "absent.jsonl"), "absent.jsonl cannot be read")
    refused(midcourse(*asked), "none")
    refused(midcourse("detect", "train", "--pairs", tmp_path / "no.csv", "--out", tmp_path / "d"), "no.csv cannot")
    refused(midcourse(*asked[:4], "--out", tmp_path / "d", "--reward", "vader"), "vader is a function, which is not")
    refused(midcourse(*asked[:4], "--out", tmp_path / "d", "--reward", "sentiment", "--tune", "all"), "--tune head")
    assert not (tmp_path / "d").exists()
