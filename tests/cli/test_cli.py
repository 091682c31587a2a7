"""The command line as a whole: help, misuse, and what all verbs have in common."""

import json
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from midcourse.cli.verbs import ALL, VERBS, about, parse
from tests.cli.printed import refused


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
    refused(
        midcourse("guide", "--lm", lm_folder, "--prompt", "abc", "--reward", tmp_path),
        "is not a reward",
        "midcourse train",
    )
    refused(midcourse("score", "--reward", tmp_path, "--prompt", "a", "--text", "b"), "is not a reward")


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


# Help


@pytest.mark.parametrize("asked", [(), ("-h",), ("--help",)])
def test_help_is_a_line_for_each_verb_grouped_by_what_people_do(midcourse, monkeypatch, asked):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = midcourse(*asked)
    lines = out.splitlines()
    assert code == 0
    assert [line for line in lines if line in VERBS] == ["start", "learn", "guide", "judge", "serve", "measure"]
    for group, verbs in VERBS.items():
        first = lines.index(group) + 1
        found = lines[first : first + len(verbs)]
        assert [line.split()[0] for line in found] == list(verbs)
        assert all(line.endswith(".") and len(line) < 80 for line in found)


def test_help_of_a_verb_fits_the_terminal(midcourse, monkeypatch):
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        for verb in ALL:
            code, out, _ = midcourse(*verb.split(), "--help")
            assert code == 0
            assert out.startswith(about(verb).splitlines()[0] + "\n")
            assert all(len(line) <= columns for line in out.splitlines() if not line.startswith("usage:")), verb


def test_version(midcourse):
    assert midcourse("--version")[:2] == (0, f"midcourse {version('midcourse')}\n")


def test_completion_knows_every_verb(midcourse, tmp_path):
    assert not midcourse("--tyro-write-completion", "bash", tmp_path / "complete")[0]
    assert all(word in (tmp_path / "complete").read_text() for verb in ALL for word in verb.split())


NO_TORCH = """
import json, sys
from midcourse.cli import main
for asked in json.loads(sys.argv[1]):
    sys.argv = ["midcourse", *asked]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 0, (asked, stop.code)
    heavy = {"torch", "transformers"} & sys.modules.keys()
    assert not heavy, (asked, heavy)
"""


def test_what_needs_no_model_imports_no_torch():
    """Which is what makes it answer at once. In a process of its own: this one has torch already."""
    asked = [[], ["--help"], ["--version"], ["rewards"], ["rewards", "--json"], ["methods"], ["methods", "--json"]]
    asked += [[*verb.split(), "--help"] for verb in ALL]
    found = subprocess.run([sys.executable, "-c", NO_TORCH, json.dumps(asked)], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


# Misuse


def test_an_unknown_verb_is_refused_with_a_hint(midcourse):
    refused(midcourse("gide", "--prompt", "a"), "verb 'gide' is unknown; did you mean guide?", "midcourse --help")
    refused(midcourse("--lm"), "verb '--lm' is unknown; use one of: demo, sample, prefer", "midcourse --help")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("guide", "--promt", "a"), ("--promt", "--prompt", "midcourse guide --help")),
        (("train",), ("--out PATH", "midcourse train --help")),
        (("sample", "--prompts", "p", "--out", "o", "--n", "many"), ("--n", "many", "midcourse sample --help")),
        (("bench", "everything"), ("everything", "decode", "midcourse bench --help")),
    ],
)
def test_flags_that_cannot_be_read_are_refused_with_a_hint(midcourse, asked, words):
    code, out, err = midcourse(*asked)
    assert (code, out) == (2, "")
    assert all(word in err for word in words)
    assert "Traceback" not in err


def test_none_is_a_text_like_any_other():
    assert parse("guide", ["--prompt", "None"]).read.prompt == "None"


def test_a_reader_that_has_enough_is_no_error():
    call = [sys.executable, "-m", "midcourse", "train", "--help"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE
