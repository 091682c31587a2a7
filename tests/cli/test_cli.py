"""The command line on a tiny model: every verb as a user would call it, and every misuse."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from midcourse.rewards.calibration import Calibration
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import tiny_language_model


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "lm"
    lm = tiny_language_model("llama", dtype=torch.float32)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reward_folder(lm_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    reward = RewardModel.create(lm_folder, template="raw", tune="head")
    torch.nn.init.normal_(reward.head.weight)
    folder = tmp_path_factory.mktemp("rewards") / "reward"
    reward.save(folder)
    return str(folder)


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# guide


def test_guide_prints_text_and_figures(midcourse, lm_folder, reward_folder):
    code, out, err = midcourse(
        "guide", "--lm", lm_folder, "--reward", f"{reward_folder}=1.5", "--prompt", "abc", "--max-new-tokens", 5
    )
    assert code == 0
    assert out.strip()
    assert "guidance KL" in err


def test_several_rewards_and_a_function(midcourse, lm_folder, reward_folder, tmp_path, monkeypatch):
    (tmp_path / "taste.py").write_text("def long(text):\n    return len(text)\n")
    monkeypatch.chdir(tmp_path)
    code, out, err = midcourse(
        "guide", "--lm", lm_folder, "--reward", f"{reward_folder}=1", "--reward", f"{reward_folder}=-1",
        "--reward-function", "taste:long=0.5", "--prompt", "abc", "--max-new-tokens", 4, "--json",
    )  # fmt: skip
    (row,) = rows(out)
    assert code == 0, err
    # The model's reward and its opposite cancel: what is left is half the text's length.
    assert row["reward"] == pytest.approx(len(row["text"]) / 2, abs=1e-5)
    assert row["tokens"][0]["weight"] == 1.0


def test_lone_reward_is_reported_as_it_is(midcourse, lm_folder, reward_folder):
    asked = ["--prompt", "abc", "--max-new-tokens", 4, "--json"]
    _, own, _ = midcourse("guide", "--lm", lm_folder, "--reward", f"{reward_folder}=1.5", "--reward-weight", 2, *asked)
    _, common, _ = midcourse("guide", "--lm", lm_folder, "--reward", reward_folder, "--reward-weight", 3, *asked)
    assert own == common
    assert rows(own)[0]["tokens"][0]["weight"] == 3.0


def test_causal_lm_guides_as_a_vocabulary_reward(midcourse, lm_folder):
    code, out, err = midcourse(
        "guide", "--lm", lm_folder, "--reward", lm_folder, "--method", "genarm", "--prompt", "abc",
        "--max-new-tokens", 4, "--json",
    )  # fmt: skip
    assert code == 0, err
    (row,) = rows(out)
    assert row["guidance_kl"] is None
    assert row["total_kl"] > 0
    code, out, err = midcourse(
        "guide",
        "--lm",
        lm_folder,
        "--reward",
        lm_folder,
        "--method",
        "genarm",
        "--prompt",
        "abc",
        "--max-new-tokens",
        4,
    )
    assert code == 0
    assert "total KL" in err
    assert "guidance KL" not in err


def test_best_of_n_may_keep_all(midcourse, lm_folder, reward_folder, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "abc"}\n{"prompt": "The ferry"}\n')
    asked = ["guide", "--lm", lm_folder, "--reward", reward_folder, "--method", "best-of-n:3", "--prompts", prompts]
    code, _, err = midcourse(*asked, "--max-new-tokens", 6, "--out", out, "--keep-all")
    assert code == 0, err
    for row in rows(out.read_text()):
        assert len(row["samples"]) == 3
        assert row["reward"] == max(sample["reward"] for sample in row["samples"])
    code, _, err = midcourse(*asked, "--max-new-tokens", 6, "--out", tmp_path / "best.jsonl")
    assert code == 0
    assert all("samples" not in row for row in rows((tmp_path / "best.jsonl").read_text()))


@pytest.mark.parametrize(
    "method", ["args", "args-stochastic", "cd", "cd-blockwise", "rad", "fudge", "best-of-n:2", "pargs-greedy"]
)
def test_every_method_of_a_scalar_reward(midcourse, lm_folder, reward_folder, method):
    asked = ["--prompt", "abc", "--max-new-tokens", 4, "--method", method]
    code, out, err = midcourse("guide", "--lm", lm_folder, "--reward", reward_folder, *asked)
    assert code == 0, err
    assert out


def test_cards_needs_its_threshold(midcourse, lm_folder, reward_folder):
    asked = ["guide", "--lm", lm_folder, "--reward", reward_folder, "--prompt", "abc", "--method", "cards"]
    refused(midcourse(*asked), "--reward-threshold")
    code, _, err = midcourse(*asked, "--max-new-tokens", 6, "--reward-threshold", -5)
    assert code == 0, err


def test_kl_budget_and_skipping(midcourse, lm_folder, reward_folder):
    code, out, err = midcourse(
        "guide", "--lm", lm_folder, "--reward", f"{reward_folder}=50", "--prompt", "abc", "--max-new-tokens", 8,
        "--kl-per-token", 0.2, "--kl-budget", 0.5, "--skip-tolerance", 0.01, "--top-p", 0.95, "--json",
    )  # fmt: skip
    assert code == 0, err
    (row,) = rows(out)
    assert row["guidance_kl"] <= 0.5


def test_methods_are_listed(midcourse):
    code, out, _ = midcourse("methods")
    assert code == 0
    assert "cd-blockwise" in out
    code, out, _ = midcourse("methods", "--json")
    assert json.loads(out)["pargs"] == {
        "guide": "add_reward", "greedy": False, "reward_weight": 2.0, "top_k": 10, "temperature": 1.0, "top_p": 1.0,
        "ranked_by": "lm", "soft_value": False, "source": json.loads(out)["pargs"]["source"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--method", "pargs", "--keep-all"], "--keep-all writes the samples of --method best-of-n"),
        (["--method", "best-of-n", "--keep-all"], "add --out FILE or --json"),
        (["--method", "best-of-n", "--reward-weight", "2"], "method best-of-n has no reward-weight"),
        (["--method", "pargs", "--samples", "2"], "method pargs has no samples"),
        (["--method", "farma"], "takes a vocabulary reward"),
        (["--method", "args", "--kl-budget", "3"], "a greedy choice has none"),
        (["--kl-per-token", "nan"], "kl-per-token nan is not a number of nats above 0"),
        (["--reward-function", "nowhere:at_all"], "no reward function 'nowhere:at_all'"),
        (["--method", "soft-value"], "soft-value needs a reward trained to estimate"),
    ],
)
def test_guides_that_make_no_sense_are_refused(midcourse, lm_folder, reward_folder, asked, words):
    refused(midcourse("guide", "--lm", lm_folder, "--reward", reward_folder, "--prompt", "abc", *asked), words)


def test_guide_json_rows_carry_every_figure(midcourse, lm_folder, reward_folder):
    code, out, _ = midcourse(
        "guide", "--lm", lm_folder, "--reward", reward_folder, "--reward-weight", 2, "--prompt", "abc",
        "--max-new-tokens", 5, "--json", "--seed", 4,
    )  # fmt: skip
    (row,) = rows(out)
    assert code == 0
    assert row.keys() == {
        "row", "prompt", "text", "finish_reason", "reward", "guidance_kl", "total_kl", "seed", "usage", "tokens"
    }  # fmt: skip
    assert row["usage"]["completion_tokens"] == len(row["tokens"]) <= 5
    assert row["text"] == "".join(token["text"] for token in row["tokens"])
    assert row["tokens"][0].keys() == {"token_id", "text", "logprob", "reference_logprob", "reward", "weight"}
    assert row["reward"] == row["tokens"][-1]["reward"]
    assert {token["weight"] for token in row["tokens"]} == {2.0}


def test_stream_prints_the_same_text(midcourse, lm_folder, reward_folder):
    same = ("guide", "--lm", lm_folder, "--reward", reward_folder, "--prompt", "abc", "--max-new-tokens", 8)
    _, streamed, _ = midcourse(*same, "--stream")
    _, printed, _ = midcourse(*same, "--json")
    assert streamed == rows(printed)[0]["text"] + "\n"


def test_a_file_of_prompts_is_appended_row_by_row_and_resumed(midcourse, lm_folder, reward_folder, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("a", "bc", "def", "ghij")))
    same = (
        "guide", "--lm", lm_folder, "--reward", reward_folder, "--prompts", prompts, "--out", out,
        "--max-new-tokens", 6, "--batch-size", 3,
    )  # fmt: skip
    assert midcourse(*same)[0] == 0
    whole = {row["row"]: row for row in rows(out.read_text())}
    assert sorted(whole) == [0, 1, 2, 3]
    assert midcourse(*same)[0] == 2  # the file exists

    lines = out.read_text().splitlines(keepends=True)
    kept = lines[:2]
    out.write_text("".join(kept) + lines[2][:40])  # killed in the middle of a line
    assert midcourse(*same, "--resume")[0] == 0
    again = out.read_text()
    assert again.startswith("".join(kept))
    have = {row["row"]: row for row in rows(again)}
    assert have.keys() == whole.keys()
    for number, row in have.items():
        assert row["text"] == whole[number]["text"]
        assert row["guidance_kl"] == pytest.approx(whole[number]["guidance_kl"], abs=1e-4)


def test_rows_of_other_prompts_are_not_resumed(midcourse, lm_folder, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    out.write_text('{"row": 0, "prompt": "b"}\n')
    code, _, err = midcourse(
        "guide", "--lm", lm_folder, "--method", "plain", "--prompts", prompts, "--out", out, "--resume"
    )
    assert code == 2
    assert "line 1: answers another prompt than row 0" in err


def test_rows_asked_for_otherwise_are_not_resumed(midcourse, lm_folder, reward_folder, tmp_path):
    prompts, out = tmp_path / "prompts.csv", tmp_path / "out.jsonl"
    prompts.write_text('prompt\na\n"b, c"\n')
    same = ["guide", "--lm", lm_folder, "--reward", reward_folder, "--prompts", prompts, "--out", out]
    same += ["--max-new-tokens", 4]
    assert midcourse(*same)[0] == 0
    for flags, said in (
        (["--reward-weight", 7], "method.reward_weight 2.0, not 7.0"),
        (["--seed", 1], "seed 0, not 1"),
        (["--stop", "x"], "stop [], not ['x']"),
    ):
        refused(midcourse(*same, "--resume", *flags), f"{out} holds rows with {said}; resume with the same arguments")
    code, _, err = midcourse(*same, "--resume", "--batch-size", 1)
    assert code == 0 and "0 rows written" in err and "2 were there already" in err
    other = tmp_path / "other.jsonl"
    other.write_bytes(out.read_bytes())
    refused(midcourse(*same[:-3], other, *same[-2:], "--resume"), "other.jsonl.asked.json", "name another file")


def test_bad_rows_are_set_aside_wherever_rows_are_read(midcourse, lm_folder, tmp_path):
    prompts, bad = tmp_path / "prompts.jsonl", tmp_path / "bad.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": 3}\n{"prompt": "b"}\n')
    rollouts = tmp_path / "rollouts.jsonl"
    calls = {
        "guide": ["--prompts", prompts, "--lm", lm_folder, "--method", "plain", "--max-new-tokens", 3, "--json"],
        "sample": ["--prompts", prompts, "--lm", lm_folder, "--max-new-tokens", 3, "--out", rollouts, "--n", 2,
                   "--label-with-function", "builtins:len"],
        "prefer": [rollouts, "--out", tmp_path / "pairs.jsonl", "--by-function", "builtins:hash"],
        "compare": ["--prompts", prompts, "--lm", lm_folder, "--methods", "plain", "--max-new-tokens", 3,
                    "--out", tmp_path / "compared"],
    }  # fmt: skip
    for verb, flags in calls.items():
        if verb == "prefer":
            assert rollouts.read_text().count("\n") == 4
            with rollouts.open("a") as file:
                file.write('{"prompt": "a", "response": 1}\n')
        line = 5 if verb == "prefer" else 2
        refused(midcourse(verb, *flags), f"jsonl, line {line}, field ", "(--skip-bad-rows leaves bad rows out)")
        code, _, err = midcourse(verb, *flags, "--skip-bad-rows", bad)
        assert code == 0, err
        assert f"skipped 1 bad rows, written to {bad}" in err
        assert json.loads(bad.read_text())["line"] == line
        bad.unlink()
    refused(midcourse("guide", "--prompt", "a", "--skip-bad-rows", bad), "--skip-bad-rows is for the rows of --prompts")


# score and export


def test_score_prints_the_reward_of_every_prefix(midcourse, reward_folder, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = midcourse(
        "score", "--reward", reward_folder, "--prompt", "abc", "--text", "defg", "--html", page, "--json"
    )
    row = json.loads(out)
    assert code == 0
    assert [token["text"] for token in row["tokens"]][:4] == list("defg")
    assert row["reward"] == row["tokens"][-1]["reward"]
    assert "defg" in page.read_text() or "d" in page.read_text()
    code, out, _ = midcourse("score", "--reward", reward_folder, "--prompt", "abc", "--text", "defg", "--unfinished")
    assert code == 0
    assert "defg" in out


def test_coloured_texts_share_a_scale_that_is_shown_once(midcourse, reward_folder, monkeypatch):
    same = ("score", "--reward", reward_folder, "--prompt", "abc", "--text", "defg", "--against", "h")
    assert "the change of the reward at this token" not in midcourse(*same)[1]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    assert midcourse(*same)[1].count("the change of the reward at this token") == 1


@pytest.fixture(scope="module")
def calibrated_folder(reward_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same reward with T = 2 for prefixes and 4 for finished texts."""
    reward = RewardModel.load(reward_folder)
    reward.info = replace(reward.info, calibration=Calibration(2.0, 4.0, (1.0, 0.5), -1.0).stored())
    folder = tmp_path_factory.mktemp("rewards") / "calibrated"
    reward.save(folder)
    return str(folder)


def test_score_shows_centred_rewards_and_probabilities(midcourse, reward_folder, calibrated_folder, tmp_path):
    same = ("score", "--reward", calibrated_folder, "--prompt", "abc", "--text", "de")
    row = json.loads(midcourse(*same, "--json")[1])
    plain = json.loads(midcourse(*same[:2], reward_folder, *same[3:], "--json")[1])
    assert (row["temperature"], row["finished_temperature"]) == (2.0, 4.0)
    have, raw = row["tokens"], [token["reward"] for token in plain["tokens"]]
    assert [token["reward"] for token in have] == raw
    centred = [raw[0] - 1, raw[1] - 0.5, raw[2] + 1]
    assert [token["centred"] for token in have] == pytest.approx(centred)
    odds = [1 / (1 + math.exp(-c / t)) for c, t in zip(centred, (2, 2, 4), strict=True)]
    assert [token["probability"] for token in have] == pytest.approx(odds)
    assert {name: row[name] for name in ("reward", "centred", "probability")} == {
        name: have[-1][name] for name in ("reward", "centred", "probability")
    }
    page = tmp_path / "page.html"
    _, out, _ = midcourse(*same, "--html", page, "--table")
    said = f"centred {centred[2]:+.3f}, preferred to an average one with probability {odds[2]:.2f}"
    assert f"reward of the finished text: {raw[2]:.3f}, {said}" in out
    assert [line.split()[-1] for line in out.splitlines()[-3:]] == [f"{p:.2f}" for p in odds]
    assert f"{centred[0]:+.3f} against the mean here, preferred with probability {odds[0]:.2f}" in page.read_text()


def test_score_without_calibration_says_so(midcourse, reward_folder):
    same = ("score", "--reward", reward_folder, "--prompt", "abc", "--text", "de", "--against", "f")
    _, out, _ = midcourse(*same)
    assert "no calibration is stored with this reward" in out
    assert "probability 0" not in out and "centred" not in out
    row = json.loads(midcourse(*same, "--json")[1])
    assert row["temperature"] is row["finished_temperature"] is row["centred"] is row["preferred"] is None
    assert all(token["centred"] is token["probability"] is None for token in row["tokens"])


def test_two_texts_are_compared_at_their_ends_or_at_the_shorter_one(midcourse, calibrated_folder):
    def compared(a: str, b: str, *more: str) -> tuple[dict, str]:
        same = ("score", "--reward", calibrated_folder, "--prompt", "abc", "--text", a, "--against", b, *more)
        return json.loads(midcourse(*same, "--json")[1]), midcourse(*same)[1]

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    row, out = compared("defg", "hi")
    other = row["against"]
    assert (row["text"], other["text"], len(row["tokens"]), len(other["tokens"])) == ("defg", "hi", 5, 3)
    assert row["preferred"] == pytest.approx(sigmoid((row["reward"] - other["reward"]) / 4))
    assert f"A is preferred to B with probability {row['preferred']:.2f}" in out
    assert "A: defg" in out and "B: hi" in out
    assert compared("hi", "defg")[0]["preferred"] == pytest.approx(1 - row["preferred"])
    assert compared("hi", "hi")[0]["preferred"] == 0.5
    row, out = compared("defg", "hi", "--unfinished")
    second = [side["tokens"][1]["reward"] for side in (row, row["against"])]
    assert len(row["tokens"]) == 4
    assert row["preferred"] == pytest.approx(sigmoid((second[0] - second[1]) / 2))
    assert "both cut to 2 tokens" in out


def test_score_reads_vocabulary_rewards_and_classifiers(midcourse, lm_folder, reward_folder, tmp_path):
    same = ("--prompt", "abc", "--text", "de", "--json")
    vocabulary = json.loads(midcourse("score", "--reward", lm_folder, *same)[1])
    assert len(vocabulary["tokens"]) == 3
    assert all(token["reward"] < 0 for token in vocabulary["tokens"])  # log-probabilities
    midcourse("export", "--reward", reward_folder, "--out", tmp_path / "classifier")
    read = json.loads(midcourse("score", "--reward", tmp_path / "classifier", "--lm", lm_folder, *same)[1])
    want = json.loads(midcourse("score", "--reward", reward_folder, *same)[1])
    rewards = [[token["reward"] for token in row["tokens"]] for row in (read, want)]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-4)
    unfinished = json.loads(midcourse("score", "--reward", lm_folder, *same, "--unfinished")[1])
    assert [token["reward"] for token in unfinished["tokens"]] == [t["reward"] for t in vocabulary["tokens"][:2]]


def test_score_refuses_what_it_cannot_show(midcourse, reward_folder, tmp_path):
    same = ("score", "--reward", reward_folder, "--prompt", "abc")
    refused(midcourse(*same, "--text", "", "--unfinished"), "no token to reward")
    refused(midcourse(*same, "--text", "a", "--against", "", "--unfinished"), "no token to reward")
    refused(midcourse(*same, "--text", "a", "--against", "b", "--html", tmp_path / "p.html"), "leave out --against")
    assert not (tmp_path / "p.html").exists()


def test_score_of_a_reward_calibrated_on_cut_texts_compares_prefixes_only(midcourse, reward_folder, tmp_path):
    reward = RewardModel.load(reward_folder)
    reward.info = replace(reward.info, calibration=Calibration(2.0, None, (1.0,), None).stored())
    reward.save(tmp_path / "cut")
    same = ("score", "--reward", tmp_path / "cut", "--prompt", "abc", "--text", "de", "--against", "fg")
    _, out, _ = midcourse(*same)
    assert "no finished text was seen in calibration" in out and "probability" not in out
    row = json.loads(midcourse(*same, "--json")[1])
    assert row["probability"] is row["preferred"] is None and row["tokens"][0]["probability"] is not None
    assert "A is preferred to B with probability 0." in midcourse(*same, "--unfinished")[1]


def test_export_writes_a_standard_checkpoint_once(midcourse, reward_folder, tmp_path):
    out = tmp_path / "exported"
    assert midcourse("export", "--reward", reward_folder, "--out", out)[0] == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    code, _, err = midcourse("export", "--reward", reward_folder, "--out", out)
    assert (code, "exists already" in err) == (2, True)


# train


def test_train_prints_accuracies_and_leaves_bad_rows_out(midcourse, lm_folder, tmp_path):
    data, bad = tmp_path / "pairs.jsonl", tmp_path / "bad.jsonl"
    pairs = [{"prompt": f"p{i}", "chosen": " good", "rejected": " poor text"} for i in range(12)]
    data.write_text(
        "".join(json.dumps(row) + "\n" for row in pairs) + '{"prompt": "p", "chosen": "", "rejected": "x"}\n'
    )
    same = ("train", data, "--backbone", lm_folder, "--template", "raw", "--tune", "head", "--epochs", 1)
    code, _, err = midcourse(*same, "--out", tmp_path / "refused")
    assert code == 2
    assert "pairs.jsonl, line 13, chosen" in err
    assert not (tmp_path / "refused").exists()
    code, out, err = midcourse(*same, "--out", tmp_path / "reward", "--skip-bad-rows", bad)
    assert code == 0
    assert "10% of the response" in out
    assert "baseline: the shorter response" in out
    assert "Expected calibration error" in out
    assert "Of finished texts, a is preferred to b with probability sigmoid((r_a - r_b) / " in out
    assert "skipped 1 bad rows" in err
    assert rows(bad.read_text())[0]["line"] == 13


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


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    found = [{"prompt": f"p{i}", "chosen": " good", "rejected": " poor text"} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As midcourse sample writes them."""
    path = tmp_path_factory.mktemp("data") / "rollouts.jsonl"
    found = [
        {"row": i // 2, "sample": i % 2, "prompt": f"p{i // 2}", "response": " good" if i % 2 else " poor text",
         "finished": True, "reward": float(i % 2), "seed": i}
        for i in range(24)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.mark.parametrize(
    ("flags", "data", "head", "settings"),
    [
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
    ],
)  # fmt: skip
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


def test_a_soft_value_guides_at_its_own_weight_unless_told_otherwise(midcourse, lm_folder, tmp_path):
    settings = {"value": "soft", "value_weight": 2.0}
    soft = RewardModel.create(lm_folder, template="raw", tune="head", objective="value", objective_settings=settings)
    soft.info = replace(soft.info, reward_weight=2.0)
    soft.save(tmp_path / "soft")
    asked = ("guide", "--lm", lm_folder, "--prompt", "a", "--max-new-tokens", 3, "--json", "--reward")
    for given in (tmp_path / "soft", f"{tmp_path / 'soft'}=2"):
        code, out, err = midcourse(*asked, given)
        assert code == 0, err
        assert [token["weight"] for token in rows(out)[0]["tokens"]] == [2.0] * 3
    other = f"{tmp_path / 'soft'}=3"
    refused(midcourse(*asked, other), "exact at weight 2 only, not at 3; use --reward-weight 2 or method 'cd'")
    refused(midcourse(*asked, tmp_path / "soft", "--kl-budget", 1), "soft-value is exact at one; use method 'cd'")
    refused(midcourse(*asked, tmp_path / "soft", "--temperature", 0), "leave the temperature out, or use method 'cd'")
    code, out, err = midcourse(*asked, other, "--method", "cd")
    assert code == 0, err
    assert rows(out)[0]["tokens"][0]["weight"] == 3.0


# Misuse: exit code 2, one sentence, no traceback, nothing half-written


def refused(result: tuple[int, str, str], *parts: str) -> None:
    code, _, err = result
    assert code == 2, err
    assert "Traceback" not in err
    assert err.startswith("midcourse: ")
    assert len(err.strip().splitlines()) == 1
    for part in parts:
        assert part in err


def guide(lm_folder: str, *more: object) -> tuple[object, ...]:
    return ("guide", "--lm", lm_folder, "--prompt", "abc", "--max-new-tokens", 4, *more)


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


def test_no_such_file(midcourse, tmp_path):
    refused(midcourse("train", tmp_path / "none.jsonl", "--out", tmp_path / "r"), "none.jsonl")
    refused(
        midcourse("guide", "--method", "plain", "--prompts", tmp_path / "none.jsonl"), "none.jsonl", "cannot be read"
    )


def test_empty_file(midcourse, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    refused(midcourse("train", empty, "--out", tmp_path / "r"), "empty.jsonl")
    refused(midcourse("guide", "--method", "plain", "--prompts", empty), "is empty; add prompts to it")
    assert not (tmp_path / "r").exists()


def test_a_folder_that_is_no_reward_model(midcourse, lm_folder, tmp_path):
    refused(midcourse(*guide(lm_folder, "--reward", tmp_path)), "is not a reward", "midcourse train")
    refused(midcourse("score", "--reward", tmp_path, "--prompt", "a", "--text", "b"), "is not a reward")


def test_an_empty_chat_prompt(midcourse, lm_folder):
    result = midcourse("guide", "--lm", lm_folder, "--method", "plain", "--template", "chat", "--prompt", " ")
    refused(result, "the prompt is empty", "--template raw")


def test_an_empty_raw_prompt_starts_from_bos(midcourse, lm_folder):
    code, out, _ = midcourse(
        "guide", "--lm", lm_folder, "--method", "plain", "--prompt", "", "--max-new-tokens", 3, "--json"
    )
    assert code == 0
    assert rows(out)[0]["usage"]["prompt_tokens"] == 1


def test_a_prompt_longer_than_the_context(midcourse, lm_folder):
    refused(
        midcourse("guide", "--lm", lm_folder, "--method", "plain", "--prompt", "a" * 5000),
        "5000 tokens", "exceed the context of", "--max-new-tokens",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--top-k", 0), "top-k 0 leaves no candidates"),
        (("--max-new-tokens", -1), "max-new-tokens -1 asks for no token"),
        (("--max-new-tokens", 0), "max-new-tokens 0 asks for no token"),
        (("--reward-weight", "nan"), "reward weight nan is not a finite number"),
        (("--reward-weight", "inf"), "reward weight inf is not a finite number"),
        (("--temperature", -0.5), "temperature -0.5"),
        (("--batch-size", 0), "batch-size 0"),
        (("--template", "chat"), "trained with template 'raw', not 'chat'"),
        (("--method", "psychic"), "method 'psychic' is unknown; use one of: plain, pargs, pargs-greedy"),
        (("--device", "abacus"), "device 'abacus'"),
        (("--dtype", "decimal"), "dtype 'decimal' is unknown"),
    ],
)
def test_settings_that_make_no_sense(midcourse, lm_folder, reward_folder, flags, message):
    refused(midcourse(*guide(lm_folder, "--reward", reward_folder, *flags)), message)


def test_arguments_that_do_not_go_together(midcourse, lm_folder, reward_folder):
    refused(midcourse("guide", "--lm", lm_folder), "either --prompt TEXT or --prompts FILE")
    refused(midcourse(*guide(lm_folder)), "method pargs needs a reward")
    refused(midcourse(*guide(lm_folder, "--reward", f"{reward_folder}=much")), "weight 'much'", "is not a number")
    refused(midcourse(*guide(lm_folder, "--reward", reward_folder, "--stream", "--json")), "--stream")
    refused(midcourse(*guide(lm_folder, "--reward", reward_folder, "--resume")), "--resume", "--out")


def test_an_unknown_model(midcourse):
    refused(
        midcourse("guide", "--lm", "no/such-model-here", "--method", "plain", "--prompt", "a"),
        "no/such-model-here",
        "smollm2",
    )


def test_an_output_folder_that_cannot_be_written(midcourse, lm_folder, reward_folder, tmp_path):
    """A file stands where a folder is needed: the same for root, whom permissions do not stop."""
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"p{i}", "chosen": " a", "rejected": " b"}) + "\n" for i in range(4)))
    train = ("train", data, "--backbone", lm_folder, "--template", "raw", "--tune", "head")
    refused(midcourse(*train, "--out", blocked / "reward"), str(blocked))
    refused(midcourse(*train, "--out", blocked), "is a file")
    refused(midcourse("export", "--reward", reward_folder, "--out", blocked / "model"), str(blocked))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    refused(
        midcourse("guide", "--lm", lm_folder, "--method", "plain", "--prompts", prompts, "--out", blocked / "o.jsonl"),
        "file",
    )
    assert Path(blocked).read_text() == "in the way"


def test_help_names_every_verb(midcourse):
    code, out, _ = midcourse("--help")
    assert code == 0
    for verb in ("train", "dpo", "guide", "score", "export", "reward-bench", "demo", "bench"):
        assert verb in out


def test_help_of_training_lists_objectives_line_by_line_and_each_flag_once(midcourse):
    code, out, _ = midcourse("train", "--help")
    assert code == 0
    lines = [line.strip() for line in out.splitlines()]
    for objective in ("prefix", "sequence", "value", "cumulative", "farma", "autoregressive", "implicit"):
        assert sum(line.startswith(f"- {objective}: ") for line in lines) == 1
    assert "--resume" in out and "--no-resume" not in out
