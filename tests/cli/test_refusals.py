"""What the command line refuses before it shows a wrong number or runs somebody's code."""

import io
import json
import math
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from midcourse.cli.verbs import parse
from tests.lm.test_load import own_architecture

TENSOR = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def broken(model_folder) -> str:
    """A language model with NaN in its weights."""
    folder = model_folder(name="broken")
    tensors = {name: tensor.clone() for name, tensor in load_file(f"{folder}/model.safetensors").items()}
    tensors[TENSOR][0] = math.nan
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_folders_code_never_runs(midcourse, model_folder, monkeypatch):
    folder = Path(model_folder())
    (folder / "own.py").write_text(f"open({str(folder / 'it-ran')!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    for verb in (["guide", "--lm", folder], ["score", "--reward", folder, "--text", "b"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
        code, out, err = midcourse(*verb, "--prompt", "hi")
        assert (code, out) == (2, "")
        assert err == (
            f"midcourse: {folder} cannot be loaded: it comes with Python code of its own (auto_map), which is not run; "
            "use a model that transformers has itself, or, for a language model that you trust, --trust-remote-code\n"
        )
    assert not (folder / "it-ran").exists()


def test_trusted_code_is_said_aloud(midcourse, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = own_architecture(Path(model_folder()))
    verb = ["guide", "--lm", folder, "--trust-remote-code", "--prompt", "hi", "--method", "plain"]
    code, _, err = midcourse(*verb, "--max-new-tokens", 3)
    assert code == 0, err
    assert f"warning: Python code that comes with {folder} is run, if there is any" in err


def test_a_torn_checkpoint_writes_nothing(midcourse, model_folder):
    folder = model_folder()
    tensors = {name: tensor.clone() for name, tensor in load_file(f"{folder}/model.safetensors").items()}
    del tensors[TENSOR]
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    code, out, err = midcourse("guide", "--lm", folder, "--prompt", "hi")
    assert (code, out) == (2, "")
    assert f"it lacks 1 tensor ({TENSOR}) of LlamaForCausalLM; restore its weights" in err


@pytest.mark.parametrize(
    "flags",
    [
        ["guide", "--lm", "{folder}", "--method", "plain", "--prompt", "a\udcffb"],
        ["guide", "--lm", "{folder}", "--method", "plain", "--prompt", "a", "--prompt", "a\udcffb"],
        ["guide", "--lm", "a\udcffb", "--method", "plain", "--prompt", "a"],
        ["score", "--reward", "vader", "--prompt", "x", "--text", "a\udcffb"],
    ],
)
def test_an_argument_that_is_not_utf8_is_refused(midcourse, model_folder, flags):
    folder = model_folder()
    code, out, err = midcourse(*(flag.format(folder=folder) for flag in flags))
    assert (code, out) == (2, "")
    assert err == "midcourse: argument 'a\\udcffb' holds bytes that are not UTF-8; write it as UTF-8\n"


def test_names_of_files_may_be_no_utf8(tmp_path):
    folder = tmp_path / "a\udcffb"
    folder.mkdir()
    flags = parse("sample", ["--lm", str(folder), "--prompts", "p\udcff.jsonl", "--out", "c\udcff.jsonl"])
    assert (flags.model.lm, flags.read.prompts, flags.write.out) == (
        str(folder),
        Path("p\udcff.jsonl"),
        Path("c\udcff.jsonl"),
    )


@pytest.mark.parametrize("more", [[], ["--json"], ["--table"]])
def test_score_shows_no_nan(more, midcourse, broken):
    code, out, err = midcourse("score", "--reward", broken, "--prompt", "a", "--text", "b", *more)
    assert (code, out) == (2, "")
    assert err.startswith(
        f"midcourse: the reward is nan, no finite number: {broken} gives it to the response 'b<|im_en"
    )


def test_no_rollout_is_labelled_with_nan(midcourse, model_folder, broken, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    code, _, err = midcourse(
        *("sample", "--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "out.jsonl", "--lm", model_folder()),
        *("--label-with", broken, "--n", 1, "--max-new-tokens", 3),
    )
    assert code == 2
    assert f"row 0, sample 0: the reward is nan, no finite number: {broken} gives it" in err
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_no_rollout_is_preferred_by_nan(midcourse, broken, tmp_path):
    rows = [{"row": 0, "sample": n, "prompt": "a", "response": text, "finished": True} for n, text in enumerate("xy")]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = midcourse(
        *("prefer", tmp_path / "rollouts.jsonl", "--out", tmp_path / "pairs.jsonl", "--by-reward", broken)
    )
    assert (code, out) == (2, "")
    assert f"the reward is nan, no finite number: {broken} gives it to the response 'x<|im_end|>' after" in err
    assert not (tmp_path / "pairs.jsonl").exists()


def test_reward_bench_compares_no_nan(midcourse, broken, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    code, out, err = midcourse(
        *("reward-bench", "--reward", broken, "--comparisons", tmp_path / "pairs.jsonl", "--json")
    )
    assert (code, out) == (2, "")
    assert "1 comparisons have rewards that are no finite numbers, the first with the prompt 'a'" in err


@pytest.mark.parametrize("verb", ["guide", "sample", "ppo", "compare"])
def test_a_prompt_that_a_template_refuses_is_a_bad_row(midcourse, model_folder, tmp_path, verb):
    """Gemma's template knows no system role, and others want roles in turns."""
    folder = model_folder()
    refused = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    strict = refused + "{{ messages[0].content }}"
    (Path(folder) / "chat_template.jinja").write_text(strict)
    rows = [[{"role": "user", "content": "a"}], [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}]]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    more = {
        "guide": ["--reward-function", "vader", "--max-new-tokens", 2],
        "sample": ["--max-new-tokens", 2],
        "ppo": ["--reward", "vader", "--rollouts", 2, "--batch-size", 2, "--max-new-tokens", 2, "--tune", "lora:1"],
        "compare": [
            "--methods",
            "pargs",
            "--rewards",
            "vader",
            "--judges",
            "vader",
            "--force-judges",
            "--max-new-tokens",
            2,
        ],
    }[verb]
    call = [verb, "--prompts", path, "--lm", folder, "--template", "chat", *more]
    code, _, err = midcourse(*call, "--out", tmp_path / "out")
    assert code == 2 and f"{path}, line 2, field prompt: the chat template" in err.replace("\n", " ")
    code, _, err = midcourse(*call, "--out", tmp_path / "other", "--skip-bad-rows", tmp_path / "bad.jsonl")
    assert code == 0 and "skipped 1 bad rows" in err


def test_columns_that_name_none_are_refused(midcourse, tmp_path):
    code, _, err = midcourse("train", tmp_path / "pairs.jsonl", "--columns", "instruction", "--out", tmp_path / "out")
    assert code == 2 and "--columns instruction names no column; write prompt=instruction" in err.replace("\n", " ")


@pytest.mark.parametrize("verb", ["guide", "ppo", "compare"])
def test_a_label_that_no_reward_has_to_choose_is_refused(midcourse, tmp_path, verb):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n')
    more = ["--rewards", "vader", "--judges", "vader"] if verb == "compare" else ["--reward", "vader"]
    call = [verb, "--prompts", path, *more, "--label", "good", "--out", tmp_path / "out"]
    code, _, err = midcourse(*call)
    assert code == 2 and "no reward is a classifier of several labels; leave --label good out" in " ".join(err.split())
