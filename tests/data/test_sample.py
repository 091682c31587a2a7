"""Prompts to rollouts, on a tiny model: what a row depends on, its label, and going on after a crash."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from midcourse.data.formats import DataError
from midcourse.data.jsonl import RowFileError
from midcourse.data.prefer import prefer
from midcourse.data.prompts import read_prompts
from midcourse.data.rollouts import Rollout, read_samples
from midcourse.data.sample import SampleError, rewards_of, sample
from midcourse.decode.engine import generate
from midcourse.decode.methods import Method, MethodError
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import PromptError
from midcourse.rewards.info import RewardError
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.text import TextReward
from midcourse.testing import tiny_language_model, tiny_reward, tiny_vocabulary_reward
from midcourse.train.settings import Settings
from midcourse.train.training import train
from studies.forked import in_fork

MORE_EOS = (65, 66, 200, 31, 90, 150)
PROMPTS = ["The ferry was late, and", "A", "żółć \u2028 🙂", "A"]


@functools.cache
def lm_of() -> LanguageModel:
    return tiny_language_model(more_eos=MORE_EOS)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def letters(text: str) -> float:
    return float(sum(character.isalpha() for character in text))


# Rows


def test_rows_have_the_stated_fields_and_come_back_by_prompt_and_sample(tmp_path):
    found = sample(lm_of(), PROMPTS, tmp_path / "out.jsonl", n=3, label=letters, max_new_tokens=8, batch_size=5)
    written = rows(tmp_path / "out.jsonl")
    assert {tuple(row) for row in written} == {("row", "sample", "prompt", "response", "finished", "reward", "seed")}
    assert sorted((row["row"], row["sample"]) for row in written) == [(r, s) for r in range(4) for s in range(3)]
    for row in written:
        assert row["prompt"] == PROMPTS[row["row"]]
        assert row["seed"] == 3 * row["row"] + row["sample"]
        assert row["reward"] == letters(row["response"])
        assert found[row["seed"]] == Rollout(row["prompt"], row["response"], row["finished"], row["reward"])
    assert read_samples(tmp_path / "out.jsonl") == found
    assert {rollout.finished for rollout in found} == {True, False}


def test_a_text_depends_on_its_own_seed_alone(tmp_path):
    found = sample(lm_of(), PROMPTS, tmp_path / "a.jsonl", n=3, max_new_tokens=8, seed=7, batch_size=12)
    one_by_one = sample(lm_of(), PROMPTS, tmp_path / "b.jsonl", n=3, max_new_tokens=8, seed=7, batch_size=1)
    assert found == one_by_one
    assert [rollout.prompt for rollout in found[3:6]] == [rollout.prompt for rollout in found[9:]] == ["A"] * 3
    assert found[3:6] != found[9:]  # a prompt that comes twice is answered anew
    assert len({rollout.response for rollout in found}) > 9


@pytest.mark.parametrize("cut", [{"top_k": 10}, {"top_k": None}, {"top_k": 5, "top_p": 0.7, "temperature": 0.5}])
def test_it_is_plain_decoding_of_the_policy_asked_for(tmp_path, cut):
    found = sample(lm_of(), PROMPTS[:2], tmp_path / "out.jsonl", n=2, max_new_tokens=8, **cut)
    asked = [prompt for prompt in PROMPTS[:2] for _ in range(2)]
    want = generate(lm_of(), asked, method=Method(None, reward_weight=0.0, **cut), max_new_tokens=8)
    assert [(r.response, r.finished) for r in found] == [(w.text, w.finish_reason == "stop") for w in want]
    if cut == {"top_k": 10}:
        assert found == sample(lm_of(), PROMPTS[:2], tmp_path / "default.jsonl", n=2, max_new_tokens=8)
    if cut["top_k"] is None:  # beyond the ten that a named method would keep
        listed = [{c.token_id for c in step.candidates[:10]} for row in want for step in row.steps]
        drawn = [step.token_id for row in want for step in row.steps]
        assert any(token not in first for token, first in zip(drawn, listed, strict=True))


def test_messages_take_the_chat_template(tmp_path):
    messages = [{"role": "user", "content": "Is it late?"}]
    label = tiny_reward(template="chat")
    by_label = sample(lm_of(), [messages], tmp_path / "a.jsonl", n=2, max_new_tokens=6, label=label)
    asked = sample(lm_of(), [messages], tmp_path / "b.jsonl", n=2, max_new_tokens=6, template="chat")
    assert [r.response for r in by_label] == [r.response for r in asked]
    assert read_samples(tmp_path / "a.jsonl")[0].prompt == messages
    with pytest.raises(PromptError, match="use --template chat"):
        sample(lm_of(), [messages], tmp_path / "c.jsonl")


# Labels


def test_a_finished_response_has_the_reward_of_the_finished_text_a_cut_one_that_of_the_prefix(tmp_path):
    reward = tiny_reward()
    found = sample(lm_of(), PROMPTS, tmp_path / "out.jsonl", n=3, label=reward, max_new_tokens=8)
    assert {rollout.finished for rollout in found} == {True, False}
    for rollout in found:
        if rollout.response:
            (score,) = reward.score([rollout.prompt], [rollout.response], finished=rollout.finished)
            assert rollout.reward == pytest.approx(score.rewards[-1], abs=1e-5)


@pytest.mark.parametrize("kind", ["scalar", "vocabulary", "text"])
def test_every_kind_of_reward_tells_finished_from_cut(kind):
    reward = {
        "scalar": tiny_reward,
        "vocabulary": tiny_vocabulary_reward,
        "text": lambda: TextReward(lambda texts: [len(t.response) + 0.5 * t.finished for t in texts]),
    }[kind]()
    ended, cut, empty = rewards_of(
        reward, [Rollout("a", "bcd", True), Rollout("a", "bcd", False), Rollout("a", "", 0 > 1)]
    )
    assert ended != cut
    assert empty == empty
    if kind == "text":
        assert (ended, cut, empty) == (3.5, 3.0, 0.0)


def test_rows_without_a_label_get_one_and_their_texts_stay(tmp_path):
    out = tmp_path / "out.jsonl"
    plain = sample(lm_of(), PROMPTS, out, n=2, max_new_tokens=8)
    assert "reward" not in rows(out)[0]
    kept = out.read_bytes().splitlines(keepends=True)[:5]
    out.write_bytes(b"".join(kept))
    labelled = sample(lm_of(), PROMPTS, out, n=2, max_new_tokens=8, label=letters, resume=True)
    assert [r.response for r in labelled] == [r.response for r in plain]
    assert [r.reward for r in labelled] == [letters(r.response) for r in plain]
    # A label that is there stays, and no other reward labels rows beside it.
    assert sample(lm_of(), PROMPTS, out, n=2, max_new_tokens=8, resume=True) == labelled
    with pytest.raises(RowFileError, match=r"holds rows with label '.*:letters', not 'builtins:len'; resume with"):
        sample(lm_of(), PROMPTS, out, n=2, max_new_tokens=8, label=len, resume=True)
    assert read_samples(out) == labelled


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        (lambda text: 1 / 0, "raised ZeroDivisionError"),
        (lambda text: float("nan"), "returned nan"),
        (lambda text: "good", "returned 'good'"),
    ],
)
def test_a_label_that_fails_names_the_row_and_keeps_those_before(tmp_path, label, problem):
    out, calls = tmp_path / "out.jsonl", []

    def third_time(text: str) -> float:
        calls.append(text)
        return label(text) if len(calls) == 3 else 1.0

    with pytest.raises(SampleError, match=rf"^row \d, sample \d: reward function third_time {problem}"):
        sample(lm_of(), PROMPTS, out, n=2, max_new_tokens=8, label=third_time)
    before = rows(out)
    assert len(before) == 2
    found = sample(lm_of(), PROMPTS, out, n=2, max_new_tokens=8, label=third_time, resume=True)
    assert len(found) == 8 and rows(out)[:2] == before


def test_labels_of_rows_that_are_there_are_asked_for_together_and_outlive_a_mistake(tmp_path, monkeypatch):
    out, asked = tmp_path / "out.jsonl", []
    plain = sample(lm_of(), PROMPTS, out, n=2, max_new_tokens=8)
    written = rows(out)
    number, bad = next((n, row) for n, row in enumerate(written) if n > 2 and row["response"])
    reward = tiny_reward()
    score = reward.score

    def score_but(prompts: list, texts: list[str]) -> list:
        if bad["response"] in texts:
            raise RewardError("no idea")
        return score(prompts, texts)

    monkeypatch.setattr(reward, "score", score_but)
    with pytest.raises(SampleError, match=rf"^row {bad['row']}, sample {bad['sample']}: no idea"):
        sample(lm_of(), PROMPTS, out, n=2, max_new_tokens=8, label=reward, resume=True)
    whole = rewards_of(tiny_reward(), plain)
    want = [whole[2 * row["row"] + row["sample"]] if n < number else None for n, row in enumerate(written)]
    assert [row.get("reward") for row in rows(out)] == [one and pytest.approx(one) for one in want]
    monkeypatch.setattr(reward, "score", lambda prompts, texts: asked.append(len(prompts)) or score(prompts, texts))
    found = sample(lm_of(), PROMPTS, out, n=2, max_new_tokens=8, label=reward, resume=True)
    assert asked == [len(plain) - number]
    assert [one.response for one in found] == [one.response for one in plain]


def test_a_reward_that_is_no_number_is_refused(tmp_path):
    reward = tiny_reward()
    with torch.no_grad():
        reward.head.weight.fill_(float("nan"))
    with pytest.raises(SampleError, match="row 0, sample 0: the reward is nan"):
        sample(lm_of(), ["A"], tmp_path / "out.jsonl", n=1, label=reward, max_new_tokens=4)


# Going on


KILLED = """
import os, signal, sys
from midcourse.data.sample import sample
from midcourse.testing import tiny_language_model
calls = []
def label(text):
    calls.append(text)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(sum(character.isalpha() for character in text))
label.__module__, label.__qualname__ = {letters.__module__!r}, "letters"
sample(tiny_language_model(more_eos={eos}), {prompts!r}, sys.argv[1], n=2, label=label, max_new_tokens=8, batch_size=3)
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_file(tmp_path):
    whole = sample(lm_of(), PROMPTS, tmp_path / "whole.jsonl", n=2, label=letters, max_new_tokens=8, batch_size=3)
    out = tmp_path / "out.jsonl"
    script = KILLED.format(eos=MORE_EOS, prompts=PROMPTS, letters=letters)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(in_fork(script, str(out)), env=environment, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    kept = out.read_bytes()
    assert kept.count(b"\n") == 3  # what was finished is on disk
    out.write_bytes(kept + b'{"row": 3, "sa')  # and a line was torn
    assert sample(lm_of(), PROMPTS, out, n=2, label=letters, max_new_tokens=8, batch_size=3, resume=True) == whole
    assert out.read_bytes().startswith(kept)
    assert out.read_bytes().count(b"\n") == 8


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"prompts": ["A", "C"]}, "answers another prompt than row 1"),
        ({"prompts": ["A"]}, "is row 1 of other prompts"),
        ({"n": 3}, "another --n or --seed than 3 and 0"),
        ({"n": 1}, "another --n or --seed than 1 and 0"),
        ({"seed": 1}, "another --n or --seed than 2 and 1"),
    ],
)
def test_rows_of_another_run_are_not_gone_on_with(tmp_path, change, problem):
    out = tmp_path / "out.jsonl"
    same = {"prompts": ["A", "B"], "n": 2, "max_new_tokens": 4}
    sample(lm_of(), out=out, **same)
    before = out.read_bytes()
    with pytest.raises(RowFileError, match="exists already; add --resume"):
        sample(lm_of(), out=out, **same)
    with pytest.raises(RowFileError, match=problem):
        sample(lm_of(), out=out, resume=True, **{**same, **change})
    assert out.read_bytes() == before


def test_more_samples_of_one_prompt_may_follow(tmp_path):
    out = tmp_path / "out.jsonl"
    few = sample(lm_of(), ["A"], out, n=2, max_new_tokens=4)
    assert sample(lm_of(), ["A"], out, n=4, max_new_tokens=4, resume=True)[:2] == few


@pytest.mark.parametrize(
    ("settings", "error", "problem"),
    [
        ({"n": 0}, SampleError, "n 0 asks for no sample"),
        ({"seed": -1}, SampleError, "seed -1 is negative"),
        ({"top_k": 0}, MethodError, "top-k 0 leaves no candidates"),
        ({"top_p": 0.0}, MethodError, "top-p 0.0"),
        ({"max_new_tokens": 0}, MethodError, "asks for no token"),
        ({"max_new_tokens": 1000}, PromptError, "exceed the context"),
    ],
)
def test_settings_that_make_no_sense_write_nothing(tmp_path, settings, error, problem):
    with pytest.raises(error, match=problem):
        sample(lm_of(), ["A"], tmp_path / "out.jsonl", **settings)
    assert not (tmp_path / "out.jsonl").exists() or not (tmp_path / "out.jsonl").read_bytes()


# Reading


GOOD = {"row": 0, "sample": 0, "prompt": "A", "response": "b", "finished": True, "seed": 0}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[1]", r"line 2: \[1\] is not an object"),
        (b'{"row": 0', "line 2: not JSON"),
        (b"\xff", "line 2: not UTF-8"),
        (json.dumps({**GOOD, "prompt": None}).encode(), "line 2, field prompt: None is neither"),
        (json.dumps({**GOOD, "response": ["b"]}).encode(), r"line 2, field response: \['b'\] is not a text"),
        (json.dumps({**GOOD, "finished": 1}).encode(), "line 2, field finished: 1 is not a boolean"),
        (json.dumps({**GOOD, "reward": float("nan")}).encode(), "line 2, field reward: nan is not a finite number"),
        (json.dumps({**GOOD, "reward": "1"}).encode(), "line 2, field reward: '1' is not a finite number"),
        (json.dumps({**GOOD, "response": "\ud83d"}).encode(), "line 2, field response: character 1 is half"),
    ],
)
def test_bad_rows_are_refused_with_their_line(tmp_path, line, problem):
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=problem):
        read_samples(path)


def test_files_joined_are_read_as_one(tmp_path):
    sample(lm_of(), ["A", "B"], tmp_path / "a.jsonl", n=2, max_new_tokens=4)
    sample(lm_of(), ["A", "B"], tmp_path / "b.jsonl", n=2, max_new_tokens=4, seed=100)
    both = tmp_path / "both.jsonl"
    both.write_bytes((tmp_path / "a.jsonl").read_bytes() + (tmp_path / "b.jsonl").read_bytes())
    found = read_samples(both)
    assert [r.prompt for r in found] == ["A"] * 4 + ["B"] * 4
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no rows"):
        read_samples(tmp_path / "empty.jsonl")


def test_half_a_surrogate_pair_in_a_prompt_is_refused_with_its_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "\\ud83d"}\n')
    with pytest.raises(DataError, match="line 2, field prompt: character 1 is half a surrogate pair"):
        read_prompts(path)


# From prompts to a reward


def test_a_reward_from_nothing_but_prompts_and_a_function(tmp_path, model_folder):
    folder = model_folder(dtype=torch.float32)
    rollouts = sample(LanguageModel.load(folder), [f"{i}" for i in range(8)], tmp_path / "rollouts.jsonl", n=4,
                      label=letters, max_new_tokens=8)  # fmt: skip
    comparisons, summary = prefer(rollouts, scale=2.0)
    metrics = train(RewardModel.create(folder, template="raw", tune="head"), comparisons, tmp_path / "reward",
                    Settings(epochs=1, max_tokens=64, held_out=0.25))  # fmt: skip
    assert metrics["pairs"] > 0
    assert summary.pairs == len(comparisons) > 20
    reward = RewardModel.load(tmp_path / "reward")
    assert generate(LanguageModel.load(folder), ["1"], reward, max_new_tokens=4)[0].reward is not None
