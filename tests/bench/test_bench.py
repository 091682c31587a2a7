"""The speed benchmark runs and its rows say what they should."""

import json

import numpy as np
import pytest
import torch

from midcourse.bench import scale
from midcourse.bench.decode import bench_decode
from midcourse.bench.detect import BARE, bench_detect
from midcourse.bench.train import WAYS, bench_train, published_step, step
from midcourse.data.comparisons import Comparison
from midcourse.data.encoded import encode
from midcourse.errors import MidcourseError
from midcourse.testing import tiny_reward
from midcourse.train.objectives import make_objective
from midcourse.train.scorer import Scorer


@pytest.mark.slow
def test_a_quick_benchmark_writes_its_rows(tmp_path):
    bench_decode(json=tmp_path / "decode.json", quick=True)
    found = json.loads((tmp_path / "decode.json").read_text())
    assert {row["method"] for row in found["rows"]} == {"generate", "weight 0", "pargs"}
    rewards = {row["reward"] for row in found["rows"]}
    assert rewards == {"none", "30 layers", "10 layers", "vocabulary, 30 layers", "trunk", "the model's states"}
    for row in found["rows"]:
        low, high = row["ratio_interval"]
        assert 0 < low <= row["ratio_to_plain"] <= high
        assert row["seconds_per_token"] > 0
        assert (row["batch"], row["context"], row["new_tokens"]) == (1, 64, 16)
        assert row["ratio_to_floor"] > 0
        assert row["peak_mb"] is None or row["peak_mb"] >= 0
    assert found["rows"][0]["ratio_to_plain"] == 1
    parts = {part["part"]: part["share"] for part in found["profile"]}
    assert 0.5 < parts["language model, one token"] + parts["reward, all candidates"] <= 1
    assert 0.2 < parts["matrix products (within all)"] + parts["attention (within all)"] < 1
    assert {"commit", "date", "versions", "cores"} <= found.keys()


def test_a_quick_training_benchmark_writes_its_rows(tmp_path):
    bench_train(json=tmp_path / "train.json", quick=True)
    found = json.loads((tmp_path / "train.json").read_text())
    assert [row["way"] for row in found["rows"]] == list(WAYS)
    for row in found["rows"]:
        low, high = row["ratio_interval"]
        assert 0 < low <= row["ratio_to_sequence"] <= high
        assert row["seconds_per_pair"] > 0
        assert (row["peak_mb"] is None) == (row["way"] == "a row per prefix") or row["peak_mb"] is None
    assert found["rows"][1]["ratio_to_sequence"] == 1
    assert {"commit", "date", "versions", "cores", "threads"} <= found.keys()


@pytest.mark.slow
def test_a_quick_benchmark_of_memory_writes_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "VERBS", {"sample": scale.VERBS["sample"]})
    scale.bench_scale(json=tmp_path / "scale.json", quick=True)
    found = json.loads((tmp_path / "scale.json").read_text())
    assert [(row["verb"], row["rows"]) for row in found["rows"]] == [("sample", 20), ("sample", 60)]
    assert all(row["seconds"] > 0 and 50 < row["peak_mb"] < 4000 for row in found["rows"])
    assert {"commit", "date", "versions", "cores", "threads"} <= found.keys()


def test_memory_is_that_of_the_verb_alone():
    """This process holds more than a process that does nothing."""
    held = np.ones(2**27, dtype=np.uint8)
    assert scale.measured(["--version"])["peak_mb"] < 100 < held.nbytes / 2**20
    with pytest.raises(MidcourseError, match=r"midcourse guide failed: .*nowhere"):
        scale.measured(["guide", "--prompts", "nowhere", "--out", "x"])


def test_what_a_further_row_costs():
    rows = [{"verb": "v", "rows": count, "peak_mb": mb} for count, mb in ((1000, 9.0), (10, 5.0), (100, 6.0))]
    ((verb, by_size, slope),) = scale.slopes(rows)
    assert (verb, [row["rows"] for row in by_size]) == ("v", [10, 100, 1000])
    assert slope == pytest.approx(3 * 2**20 / 900)


@pytest.mark.slow
def test_a_quick_benchmark_of_detection_writes_its_rows(tmp_path):
    bench_detect(json=tmp_path / "detect.json", quick=True)
    found = json.loads((tmp_path / "detect.json").read_text())
    assert [row["way"] for row in found["rows"]] == [BARE, "detect score", "all zero-shot statistics"]
    for row in found["rows"]:
        low, high = row["ratio_interval"]
        assert 0 < low <= row["ratio_to_bare"] <= high
        assert row["texts"] == 4 and row["tokens"] > 4 * 40
    assert found["rows"][0]["ratio_to_bare"] == 1
    assert {"commit", "date", "versions", "cores", "threads"} <= found.keys()


def test_the_published_way_has_the_gradients_of_the_prefix_objective():
    """So that what is timed is the same training, a row per prefix instead of one per response."""
    found = []
    for way in ("prefix", "a row per prefix"):
        reward = tiny_reward("llama", tune="all").train()
        pairs = encode(reward, [Comparison("ab", "cdefgh" * 4, "cdxf"), Comparison("b", "gh", "efg")], max_tokens=64)
        kept = Gradients([p for p in reward.parameters() if p.requires_grad])
        if way == "prefix":
            step(Scorer(reward, [pairs.rows]), pairs, make_objective("prefix"), kept)
        else:
            published_step(reward, pairs, kept)
        found.append(kept.seen)
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), (a - b).abs().max()


class Gradients(torch.optim.SGD):
    """Keeps the gradients of a step instead of following them."""

    def __init__(self, parameters: list[torch.nn.Parameter]):
        super().__init__(parameters, lr=0.0)
        self.seen: list[torch.Tensor] = []

    def step(self, closure=None):
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]
