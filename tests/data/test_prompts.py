"""Guided responses in a file: one writer, rows that are all asked for alike, going on after a kill."""

import copy
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from midcourse.data.jsonl import RowFileError
from midcourse.data.prompts import record_of, write_guided
from midcourse.data.sample import sample
from midcourse.decode.engine import generate
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.text import FunctionReward
from midcourse.testing import tiny_language_model, tiny_reward

PROMPTS = ["The ferry", "A", "żółć", "A", "abc"]
SETTINGS: dict[str, Any] = {"max_new_tokens": 5, "reward_weight": 2.0, "top_k": 4, "stop": ["\n"], "batch_size": 2}


@functools.cache
def lm_of() -> LanguageModel:
    return tiny_language_model()


@functools.cache
def reward_of(**settings: Any):
    return tiny_reward(**settings)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def write(out: Path, *, prompts=PROMPTS, reward=None, lm=None, resume: bool = False, **change: Any) -> tuple[int, int]:
    return write_guided(
        out, lm or lm_of(), prompts, reward or reward_of(), {**SETTINGS, **change}, resume=resume
    )  # fmt: skip


def begun(folder: Path, count: int = 2) -> Path:
    """A file with the first rows of a run."""
    out = folder / "out.jsonl"
    write(out)
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:count]))
    return out


def test_rows_are_those_of_generate(tmp_path):
    assert write(tmp_path / "out.jsonl", seed=7) == (5, 0)
    want = generate(lm_of(), PROMPTS, reward_of(), **SETTINGS, seed=7)
    have = {row["row"]: row for row in rows(tmp_path / "out.jsonl")}
    assert [have[i]["text"] for i in range(5)] == [one.text for one in want]
    assert [have[i]["seed"] for i in range(5)] == [7, 8, 9, 10, 11]
    record = json.loads(record_of(tmp_path / "out.jsonl").read_text())
    assert (record["max_new_tokens"], record["method"]["top_k"], record["template"]) == (5, 4, "raw")


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "cd"}, r"method.source|method"),
    "greedy": ({"method": "pargs-greedy"}, "method.greedy False, not True"),
    "kind": ({"method": "best-of-n:2", "reward_weight": None}, "method.kind 'Method', not 'BestOfN'"),
    "weight": ({"reward_weight": 1.0}, r"method.reward_weight 2\.0, not 1\.0"),
    "top_k": ({"top_k": 5}, "method.top_k 4, not 5"),
    "top_p": ({"top_p": 0.9}, r"method.top_p 1\.0, not 0\.9"),
    "temperature": ({"temperature": 0.5}, r"method.temperature 1\.0, not 0\.5"),
    "length": ({"max_new_tokens": 6}, "max_new_tokens 5, not 6"),
    "stop": ({"stop": []}, r"stop \['\\n'\], not \[\]"),
    "seed": ({"seed": 1}, "seed 0, not 1"),
    "kl_budget": ({"kl_budget": 3.0}, r"kl_budget None, not 3\.0"),
    "kl_per_token": ({"kl_per_token": 1.0}, "kl_per_token None, not 1"),
    "skip": ({"skip_tolerance": 0.1}, "skip_tolerance None, not 0.1"),
    "eos": ({"always_offer_eos": True}, "always_offer_eos False, not True"),
    "own weight": ({"reward": [(reward_of(), 0.5)]}, r"reward_weights \[1\.0\], not \[0\.5\]"),
    "reward": ({"reward": FunctionReward(len)}, "rewards .*, not .'builtins:len'"),
    "head": ({"reward": reward_of(seed=5)}, "rewards "),
    "two rewards": ({"reward": [(reward_of(), 1.0), (FunctionReward(len), 1.0)]}, "rewards "),
    "template": ({"reward": FunctionReward(len), "template": "chat"}, "rewards "),
    "lm": ({"lm": tiny_language_model(seed=3)}, "lm_fingerprint '[0-9a-f]{16}', not '[0-9a-f]{16}'"),
    "prompt to come": ({"prompts": [*PROMPTS[:4], "xyz"]}, "prompts_fingerprint "),
    "fewer prompts": ({"prompts": PROMPTS[:4]}, "prompts 5, not 4"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_what_was_asked_for_otherwise_is_not_gone_on_with(tmp_path, change, said):
    out = begun(tmp_path)
    with out.open("ab") as file:
        file.write(b'{"row": 2, "pro')
    before = out.read_bytes(), record_of(out).read_bytes()
    if said.startswith("method.source"):  # the settings of cd at this weight are those of pargs: the same rows
        assert write(out, resume=True, **change) == (3, 2)
        return
    with pytest.raises(RowFileError, match=rf"^{out} holds rows with {said}") as caught:
        write(out, resume=True, **change)
    assert str(caught.value).endswith("; resume with the same arguments, or name another file for --out")
    assert (out.read_bytes(), record_of(out).read_bytes()) == before


def test_another_chat_template_is_another_prompt(tmp_path):
    """The weights are the same, and so is the template's name."""
    lm, plain = lm_of(), {"method": "plain", "max_new_tokens": 2}
    other = LanguageModel(lm.model, copy.deepcopy(lm.tokenizer), lm.name)
    other.tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    for template in ("chat", "raw"):
        write_guided(tmp_path / template, lm, ["a"], None, {**plain, "template": template})
    with pytest.raises(RowFileError, match=r"holds rows with chat_template '[0-9a-f]{16}', not '[0-9a-f]{16}'"):
        write_guided(tmp_path / "chat", other, ["a", "b"], None, {**plain, "template": "chat"}, resume=True)
    assert write_guided(tmp_path / "raw", other, ["a", "b"], None, {**plain, "template": "raw"}, resume=True) == (1, 1)


def test_what_makes_no_difference_may_change(tmp_path):
    out = begun(tmp_path)
    assert write(out, resume=True, batch_size=5, prompts=(*PROMPTS, "one more")) == (4, 2)
    whole = generate(lm_of(), [*PROMPTS, "one more"], reward_of(), **SETTINGS)
    assert {row["row"]: row["text"] for row in rows(out)} == dict(enumerate(one.text for one in whole))
    with pytest.raises(RowFileError, match="is row 5 of other prompts, here are 5"):
        write(out, resume=True)


def test_rows_of_which_nothing_says_how_they_were_asked_for_are_refused(tmp_path):
    out = begun(tmp_path)
    record_of(out).unlink()
    before = out.read_bytes()
    with pytest.raises(
        RowFileError, match=r"out\.jsonl has no out\.jsonl\.asked\.json beside it .*; name another file"
    ):
        write(out, resume=True)
    shutil.copy(out, tmp_path / "sampled.jsonl")
    with pytest.raises(RowFileError, match="is no row of this run"):
        sample(lm_of(), PROMPTS, tmp_path / "sampled.jsonl", resume=True)
    assert out.read_bytes() == before
    out.write_bytes(torn := b'{"row": 0, "prom')  # a row of nobody knows which run, or no row at all
    with pytest.raises(RowFileError, match=r"has no out\.jsonl\.asked\.json beside it"):
        write(out, resume=True)
    assert out.read_bytes() == torn
    out.write_bytes(b"")
    assert write(out, resume=True, max_new_tokens=3) == (5, 0)
    assert json.loads(record_of(out).read_text())["max_new_tokens"] == 3


def test_a_new_run_forgets_the_record_of_rows_that_are_gone(tmp_path):
    out = begun(tmp_path)
    out.unlink()
    assert write(out, max_new_tokens=2) == (5, 0)
    assert write(out, max_new_tokens=2, resume=True) == (0, 5)


# Processes

WRITER = """
import os, signal, sys
from pathlib import Path
from midcourse.data import prompts as module
from tests.data.test_prompts import write

out, then, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
append = module.append_row

def append_and_stop(file, row):
    global left
    append(file, row)
    left -= 1
    if left == 0 and then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if left == 0 and then == "wait":
        print("written", flush=True)
        sys.stdin.read()

module.append_row = append_and_stop
write(out, resume=True)
"""


def started(out: Path, then: str, count: int) -> subprocess.Popen:
    """A writer in a process of its own, which after so many rows dies, or says so and waits."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WRITER, str(out), then, str(count)]
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_two_writers_of_one_file_and_a_kill(tmp_path):
    """The second is refused while the first lives; after its death every row is there, none twice and none torn."""
    out, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    process = started(out, "wait", 2)
    try:
        assert process.stdout.readline() == "written\n"
        link.symlink_to(out.name)
        for name in (out, link):
            with pytest.raises(
                RowFileError, match=rf"^another run \(process {process.pid}\) is writing to {name}; wait"
            ):
                write(name, resume=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    kept = out.read_bytes()
    assert kept.count(b"\n") == 2
    with out.open("ab") as file:
        file.write(b'{"row": 3, "prompt": "A", "te')
    assert write(out, resume=True) == (3, 2)
    assert out.read_bytes().startswith(kept)
    write(tmp_path / "whole.jsonl")
    whole = {row["row"]: row["text"] for row in rows(tmp_path / "whole.jsonl")}
    assert sorted((row["row"], row["text"]) for row in rows(out)) == sorted(whole.items())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
