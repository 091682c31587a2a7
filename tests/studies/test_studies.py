"""What the studies decide by rule."""

import json

import pytest

from midcourse.errors import MidcourseError
from studies.objectives import run
from studies.objectives.grid import BACKBONES, Run, left, next_run
from studies.trunk import run as trunk

CHEAP, DEAR = BACKBONES[0], BACKBONES[-2]


def row(run: Run, seconds: float) -> dict:
    """What a run leaves: half a minute of frozen states besides."""
    names = {"name": run.name, "backbone": run.backbone.name, "objective": run.objective}
    return {**names, "run_seconds": seconds + 30, "states_minutes": 0.5}


def test_the_grid_is_cut_by_what_like_runs_took_the_cheapest_first():
    cheap, slow, slow_again = (Run("hh", CHEAP, *rest) for rest in (("prefix", 0), ("farma", 0), ("farma", 1)))
    dear, dear_too = Run("hh", DEAR, "prefix", 0), Run("hh", DEAR, "sequence", 0)
    runs = [dear_too, slow, slow_again, cheap, dear]
    rows = [row(cheap, 10), row(dear, 100)]
    assert left(runs, rows) == [dear_too, slow, slow_again]
    # No farma yet: it is taken for as cheap as the pilot's run of its backbone.
    assert next_run(runs, rows, 1000) == slow
    # It took long, and so will its next seed.
    rows.append(row(slow, 300))
    assert next_run(runs, rows, 1000) == dear_too
    rows.append(row(dear_too, 100))
    assert next_run(runs, rows, 10 + 100 + 300 + 100 + 300) == slow_again
    assert next_run(runs, rows, 10 + 100 + 300 + 100 + 299) is None
    assert next_run(runs, [*rows, row(slow_again, 1)], 10_000) is None


def test_results_of_paradetox_as_published_are_not_added_to(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "HERE", tmp_path)
    assert run.begun("paradetox") == {"paradetox": "repaired", "rows": [], "guided": [], "timed": [], "left_out": []}
    (tmp_path / "results").mkdir()
    for name, made in (("hh", {}), ("paradetox", {"paradetox": "repaired"})):
        (tmp_path / f"results/{name}.json").write_text(json.dumps({**made, "rows": [1], "commit": "x"}))
        assert run.begun(name) == {**made, "rows": [1], "guided": [], "timed": [], "left_out": []}
    (tmp_path / "results/paradetox.json").write_text(json.dumps({"paradetox": "as published", "rows": [1]}))
    with pytest.raises(MidcourseError, match=r"paradetox.json is of ParaDetox as published.* move it away"):
        run.begun("paradetox")


def test_sets_of_the_trunk_study_are_made_anew_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(trunk, "HERE", tmp_path)
    assert trunk.begun(["paradetox"]) == {"paradetox": "repaired", "sweep": [], "guided": []}
    rows = [{"set": name} for name in ("sentiment", "paradetox", "hh_helpful")]
    stored = {"paradetox": "as published", "sweep": rows, "guided": [1], "commit": "x"}
    (tmp_path / "results.json").write_text(json.dumps(stored))
    assert trunk.begun(["paradetox"]) == {"paradetox": "repaired", "sweep": [rows[0], rows[2]], "guided": [1]}
    assert trunk.begun(["sentiment"]) == {"paradetox": "as published", "sweep": rows[1:], "guided": []}
