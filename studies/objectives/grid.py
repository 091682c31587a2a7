"""The grid of the objectives study: sets, backbones, objectives, and the rule that cuts it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from midcourse.train.objectives import make_objective

SETS = ("sentiment", "paradetox", "hh")
GUIDED = ("sentiment", "paradetox")
TIMED = (1, 16)  # rows in a batch


class Backbone(NamedTuple):
    """A kind of reward: its layers, what is trained, its head; how many seeds, pairs at most, and epochs."""

    name: str
    head: str | None
    layers: int | None
    tune: str
    seeds: int
    pairs: int
    epochs: int
    model: str = "smollm2"


TRUNK = "trunk, head"
BACKBONES = (
    Backbone(TRUNK, "trunk", None, "head", 3, 4000, 2),
    Backbone("20 layers, head", "scalar", 20, "head", 3, 4000, 4),
    Backbone("20 layers, vocabulary head", "vocabulary", 20, "head", 3, 4000, 2),
    Backbone("10 layers, last:2", "scalar", 10, "last:2", 1, 1500, 2),
    Backbone("10 layers, last:2, vocabulary head", "vocabulary", 10, "last:2", 1, 1500, 2),
    Backbone("10 layers, lora:8", "scalar", 10, "lora:8", 1, 500, 2),
    Backbone("MiniLM, all", None, None, "all", 1, 1500, 2, "minilm"),
)
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "prefix": ("prefix", {}),
    "sequence": ("sequence", {}),
    "value mean": ("value", {"value": "mean"}),
    "value soft": ("value", {"value": "soft", "value_weight": 3.0}),
    "value max": ("value", {"value": "max"}),
    "cumulative": ("cumulative", {}),
    "farma": ("farma", {"alternations": 2}),
    "autoregressive": ("autoregressive", {}),
}


@dataclass(frozen=True)
class Run:
    """One reward to train."""

    set: str
    backbone: Backbone
    objective: str
    seed: int

    @property
    def name(self) -> str:
        kind = self.backbone.name.replace(", ", "-").replace(" ", "-").replace(":", "")
        return f"{self.set}-{kind}-{self.objective.replace(' ', '-')}-{self.seed}"


def plan(name: str) -> list[Run]:
    """Every run of a set that makes sense, the most telling ones first: seed by seed, objective by objective."""
    return [
        Run(name, backbone, objective, seed)
        for seed in range(max(backbone.seeds for backbone in BACKBONES))
        for objective in OBJECTIVES
        for backbone in BACKBONES
        if seed < backbone.seeds and trainable(backbone, objective)
    ]


def trainable(backbone: Backbone, objective: str) -> bool:
    """Whether that head can learn it; an encoder learns whole sequences only."""
    if backbone.head is None:
        return objective == "sequence"
    name, settings = OBJECTIVES[objective]
    return backbone.head in make_objective(name, **settings).heads


def next_run(runs: Sequence[Run], rows: Sequence[dict[str, Any]], budget: float) -> Run | None:
    """The rule that cuts the grid: of the runs that are left, the cheapest; None where what is left is too dear.

    A run costs what one of its backbone and objective took, and before there is one, what the pilot's run of its
    backbone took: frozen states aside, which the pilot computed. `budget` is in seconds and counts what `rows` took.
    """
    took = {(row["backbone"], row["objective"]): seconds_of(row) for row in reversed(rows)}
    pilot = pilot_seconds(rows)

    def cost(run: Run) -> float:
        return took.get((run.backbone.name, run.objective), pilot[run.backbone.name])

    found = min(left(runs, rows), key=cost, default=None)
    return found if found and sum(map(seconds_of, rows)) + cost(found) <= budget else None


def left(runs: Sequence[Run], rows: Sequence[dict[str, Any]]) -> list[Run]:
    """The runs without a row."""
    names = {row["name"] for row in rows}
    return [run for run in runs if run.name not in names]


def seconds_of(row: dict[str, Any]) -> float:
    """What a run took beside the frozen states."""
    return row["run_seconds"] - 60 * row["states_minutes"]


def pilot_seconds(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By backbone, what its first run took."""
    return {row["backbone"]: seconds_of(row) for row in reversed(rows)}
