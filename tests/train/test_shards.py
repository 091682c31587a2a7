"""The cache of frozen states: foreign and damaged shards are never read, and it stays in its limit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from midcourse.data.comparisons import Comparison
from midcourse.data.encoded import encode
from midcourse.errors import MidcourseError
from midcourse.testing import tiny_language_model, tiny_reward, tiny_trained_vocabulary_reward, tiny_trunk_reward
from midcourse.train.scorer import Scorer
from midcourse.train.shards import cache_limit, make_room, open_shard, reserve


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "midcourse/states"
    folder.mkdir(parents=True)
    return folder


def scores(reward, text: str = "cde") -> list[torch.Tensor]:
    rows = encode(reward, [Comparison("ab", text, "f" * 12), Comparison("abcd", text, "gh")], max_tokens=32).rows
    return Scorer(reward, [rows]).score(0)


def put(path: Path, content: bytes) -> None:
    """Another file in the place of one that may still be mapped into memory."""
    path.unlink()
    path.write_bytes(content)


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_cache_of_another_model_layer_or_text_is_not_used(states, capsys):
    """Each has shards of its own; and one that was put in another's place is noticed by what it says it holds."""
    mine, other = tiny_reward("llama", tune="head"), tiny_reward("llama", tune="head", seed=5)
    mine.info, other.info = (replace(one.info, backbone_fingerprint=name) for one, name in ((mine, "a"), (other, "b")))
    want = scores(mine)
    (own,) = states.glob("*.safetensors")
    scores(other)
    scores(tiny_reward("llama", tune="last:1"))
    scores(mine, "cdf")
    found = set(states.glob("*.safetensors"))
    assert len(found) == 4
    for foreign in found - {own}:
        put(own, foreign.read_bytes())
        assert same(scores(mine), want)
        assert "holds the states of another model, layer or text; it is computed again" in capsys.readouterr().err
    assert same(scores(mine), want)
    assert not capsys.readouterr().err  # what was computed again stays


def test_heads_that_read_a_layer_differently_share_no_states(states):
    """Behind the last of its layers a vocabulary reward reads normalised states; a trunk reward, those between layers.

    A trunk head that was trained on the former would rank texts as well, and guide badly: decoding reads the latter.
    """
    lm = tiny_language_model()
    trunk = tiny_trunk_reward(lm, layers=2)
    vocabulary = tiny_trained_vocabulary_reward(tune="head", layers=2)
    vocabulary.backbone.load_state_dict(trunk.backbone.state_dict(), strict=False)
    rows = encode(trunk, [Comparison("ab", "cde", "f" * 12)], max_tokens=32).rows
    Scorer(vocabulary, [rows])
    for row, found in zip(rows, Scorer(trunk, [rows]).score(0), strict=True):
        ids, start = torch.tensor([[*row.prompt, *row.response]]), len(row.prompt)
        want = trunk.of_responses(ids, None, torch.tensor([start]))[0, start:]
        assert torch.allclose(found, want, atol=1e-6)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "shape"])
def test_a_damaged_shard_is_computed_again(states, capsys, damage):
    mine = tiny_reward("llama", tune="head")
    want = scores(mine)
    (own,) = states.glob("*.safetensors")
    whole, tensors = own.read_bytes(), load_file(own)
    if damage == "shape":
        with safe_open(own, framework="pt") as file:
            metadata = file.metadata()
        put(own, save({"states": tensors["states"][1:].clone()}, metadata=metadata))
    else:
        put(own, {"cut": whole[: len(whole) // 2], "garbage": b"\xff" * 100, "empty": b""}[damage])
    assert same(scores(mine), want)
    assert "it is computed again" in capsys.readouterr().err
    assert torch.equal(load_file(own)["states"], tensors["states"])


# Its size


def shard(folder: Path, name: str, used: int, size: int = 400_000) -> Path:
    path = folder / f"{name}.safetensors"
    save_file({"states": torch.zeros(size // 4)}, path)
    os.utime(path, (used, used))
    return path


def test_what_was_used_longest_ago_goes_first(states, monkeypatch):
    monkeypatch.setenv("MIDCOURSE_CACHE_GB", "0.001")  # one megabyte: two of these, and room for a little more
    old, newer, newest = (shard(states, name, used) for name, used in (("c", 1), ("a", 2), ("b", 3)))
    make_room(states, 0)
    assert [path.exists() for path in (old, newer, newest)] == [False, True, True]
    make_room(states, 300_000)
    assert [path.exists() for path in (newer, newest)] == [False, True]


def test_reading_a_shard_counts_as_use(states, monkeypatch):
    monkeypatch.setenv("MIDCOURSE_CACHE_GB", "0.0005")
    read, unread = (states / f"{name}.safetensors" for name in ("read", "unread"))
    for path, used in ((read, 1), (unread, 2)):
        save_file({"states": torch.zeros(100, 1000)}, path, metadata={"of": path.stem})
        os.utime(path, (used, used))
    assert open_shard(read, {"of": "read"}, [100, 1000]) is not None
    make_room(states, 0)
    assert read.exists() and not unread.exists()


HOLDING = """
import sys
from pathlib import Path
from midcourse.train.shards import reserve
class Run: pass
run = Run()
reserve(Path(sys.argv[1]), ["held.safetensors"], run)
print("reserved", flush=True)
sys.stdin.read()
"""


def test_shards_of_a_living_run_stay_and_those_of_a_dead_one_go(states, monkeypatch):
    monkeypatch.setenv("MIDCOURSE_CACHE_GB", "0")
    held, free = shard(states, "held", 1), shard(states, "free", 2)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = [sys.executable, "-c", HOLDING, str(states)]
    with subprocess.Popen(start, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "reserved\n"
        make_room(states, 0)
        assert held.exists() and not free.exists()
        run.kill()
    make_room(states, 0)
    assert not held.exists()
    assert not list(states.glob("*.run"))


def test_a_reservation_ends_with_its_owner(states, monkeypatch):
    monkeypatch.setenv("MIDCOURSE_CACHE_GB", "0")
    held = shard(states, "held", 1)

    class Run:
        pass

    run = Run()
    reserve(states, [held.name], run)
    (listed,) = states.glob("*.run")
    assert json.loads(listed.read_text()) == [held.name]
    make_room(states, 0)
    assert held.exists()
    del run
    make_room(states, 0)
    assert not held.exists()


def test_states_that_could_never_be_kept_are_not_begun(monkeypatch, states):
    monkeypatch.setenv("MIDCOURSE_CACHE_GB", "0.000001")
    with pytest.raises(MidcourseError, match=r"hidden states of \d+ texts take .* GB, more than the 1e-06 GB"):
        scores(tiny_reward("llama", tune="head"))
    assert not list(states.glob("*.safetensors"))


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch, text):
    monkeypatch.setenv("MIDCOURSE_CACHE_GB", text)
    with pytest.raises(MidcourseError, match=f"MIDCOURSE_CACHE_GB is '{text}'; use a number of gigabytes, such as 20"):
        cache_limit()


def test_the_default_limit(monkeypatch):
    monkeypatch.delenv("MIDCOURSE_CACHE_GB", raising=False)
    assert cache_limit() == 20_000_000_000
