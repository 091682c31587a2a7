"""The speed benchmark runs and its rows say what they should."""

import json

import pytest

from midcourse.bench import bench_decode


@pytest.mark.slow
def test_a_quick_benchmark_writes_its_rows(tmp_path):
    bench_decode(json=tmp_path / "decode.json", quick=True)
    found = json.loads((tmp_path / "decode.json").read_text())
    assert {row["method"] for row in found["rows"]} == {"generate", "weight 0", "pargs"}
    rewards = {row["reward"] for row in found["rows"]}
    assert rewards == {"none", "30 layers", "10 layers", "vocabulary, 30 layers", "trunk"}
    for row in found["rows"]:
        low, high = row["ratio_interval"]
        assert 0 < low <= row["ratio_to_plain"] <= high
        assert row["seconds_per_token"] > 0
        assert (row["batch"], row["context"], row["new_tokens"]) == (1, 64, 32)
        assert row["ratio_to_floor"] > 0
        assert row["peak_mb"] is None or row["peak_mb"] >= 0
    assert found["rows"][0]["ratio_to_plain"] == 1
    parts = {part["part"]: part["share"] for part in found["profile"]}
    assert 0.5 < parts["language model, one token"] + parts["reward, all candidates"] <= 1
    assert {"commit", "date", "versions", "cores"} <= found.keys()
