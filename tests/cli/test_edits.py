"""midcourse edits, and training on what it writes, as a user would call them."""

import json
from pathlib import Path
from random import Random

import pytest

from tests.cli.printed import refused


@pytest.fixture(scope="module")
def edits(tmp_path_factory) -> Path:
    """Texts in which every x is wrong and should be a y."""
    random = Random(0)
    rows = []
    for number in range(24):
        text = "".join(random.choice("abcx") for _ in range(10)) + "x"
        rows.append({"prompt": f"p{number}", "original": text, "edited": text.replace("x", "y")})
    path = tmp_path_factory.mktemp("edits") / "edits.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_labels_are_shown_and_written(midcourse, edits, lm_folder, tmp_path):
    out = tmp_path / "labels.jsonl"
    asked = ("edits", "label", edits, "--tokenizer", lm_folder, "--out", out)
    code, printed, err = midcourse(*asked, "--html", tmp_path / "page.html", "--show", 1)
    assert code == 0, err
    assert "[-x-]{+y+}" in printed or "{+" in printed
    assert "substituted" in printed and f"labels: {out}" in err and "page: " in err
    row = json.loads(out.read_text().splitlines()[0])
    assert row["original_tokens"][-1] == row["edited_tokens"][-1] == "<|im_end|>"
    assert {(token, label) for token, label in zip(row["original_tokens"], row["original_labels"], strict=True)} >= {
        ("x", "substituted"),
        ("<|im_end|>", "kept"),
    }
    code, printed, err = midcourse(*asked, "--json")  # a file of edits is written anew
    assert code == 0, err
    counts = json.loads(printed)["tokens"]
    assert counts["substituted"] == 2 * sum(
        json.loads(line)["original"].count("x") for line in edits.read_text().splitlines()
    )
    other = tmp_path / "letter.jsonl"
    other.write_text('{"dear": "friend"}\n')
    refused(midcourse(*asked[:-1], other), "holds no edits; name another")
    refused(midcourse("edits", "label", edits, "--show", -1), "--show -1 is no number of edits")


@pytest.mark.parametrize("objective", ["edited-tokens", "token-discriminator"])
def test_token_rewards_are_trained_scored_and_guide(midcourse, objective, edits, lm_folder, tmp_path):
    labels = tmp_path / "labels.jsonl"
    assert midcourse("edits", "label", edits, "--tokenizer", lm_folder, "--out", labels)[0] == 0
    shared = ("--objective", objective, "--backbone", lm_folder, "--template", "raw", "--held-out", 0.25, "--lr", 0.01)
    code, printed, err = midcourse("train", labels, *shared, "--tune", "head", "--out", tmp_path / "r")
    assert code == 0, err
    assert "Held-out edits" in printed and "AUROC, tokens added against tokens taken away" in printed
    code, printed, err = midcourse("score", "--reward", tmp_path / "r", "--prompt", "p", "--text", "abx", "--json")
    assert code == 0, err
    asked = ("guide", "--lm", lm_folder, "--reward", f"{tmp_path / 'r'}=2", "--prompt", "p", "--max-new-tokens", 3)
    code, printed, err = midcourse(*asked)
    assert code == 0, err


def test_edits_are_for_objectives_of_edits(midcourse, edits, pairs, lm_folder, tmp_path):
    shared = ("--backbone", lm_folder, "--template", "raw", "--out", tmp_path / "r")
    refused(midcourse("train", edits, *shared), "objective prefix does not learn from edits; use edited-tokens or")
    asked = ("train", pairs, "--objective", "edited-tokens", *shared)
    refused(midcourse(*asked), "learns from edits, and these are comparisons; give rows with the fields original and")
    asked = ("train", edits, "--objective", "edited-tokens", "--labels", "hard", *shared)
    refused(midcourse(*asked), "objective edited-tokens has no labels; leave it out")
