"""midcourse guide, as a user would call it."""

import json
from dataclasses import replace

import pytest

from midcourse.rewards.gold import load_gold
from midcourse.rewards.scalar import RewardModel
from midcourse.terminal import visible
from tests.cli.printed import refused, rows


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
    assert streamed == visible(rows(printed)[0]["text"]) + "\n"


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


def guide(lm_folder: str, *more: object) -> tuple[object, ...]:
    return ("guide", "--lm", lm_folder, "--prompt", "abc", "--max-new-tokens", 4, *more)


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


@pytest.mark.parametrize("flag", ["--reward", "--reward-function"])
def test_gold_names_guide(midcourse, lm_folder, flag):
    asked = ("guide", "--lm", lm_folder, "--prompt", "abc", "--max-new-tokens", 4, "--json")
    code, out, err = midcourse(*asked, flag, "vader=2")
    assert code == 0, err
    (row,) = rows(out)
    assert row["reward"] == pytest.approx(load_gold("vader")(row["text"]))
    assert {token["weight"] for token in row["tokens"]} == {2.0}


def test_functions_are_refused_before_a_model_is_loaded(midcourse):
    for flag in ("--reward", "--reward-function"):
        asked = ("guide", "--lm", "no/such-model-here", "--prompt", "a", flag, "nowhere:at_all")
        refused(
            midcourse(*asked),
            "no reward function 'nowhere:at_all'",
            "use MODULE:FUNCTION, vader or vader-once or profanity",
        )


def test_a_function_has_no_weights_to_share(midcourse, lm_folder, reward_folder):
    asked = ("guide", "--lm", lm_folder, "--prompt", "abc", "--max-new-tokens", 2, "--share-weights")
    refused(midcourse(*asked, "--reward", "vader"), "--share-weights is for rewards that midcourse train wrote")
    code, _, err = midcourse(*asked, "--reward", "vader", "--reward", reward_folder)
    assert code == 0, err


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
