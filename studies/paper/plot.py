"""The claims as curves, from results/TASK.json alone: every judge's score by guidance KL and by total KL.

python -m studies.paper.plot        draws paper.png
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from midcourse.evaluate.charts import COLOURS, QUIET
from midcourse.files import whole_file
from studies.paper.tables import ARGS, BEST_OF, DPO, HERE, PARGS, TRUNK, tasks_and_judges

CD, FARMA, GENARM = "cd value", "farma farma", "genarm autoregressive"
DRAWN = {
    "guidance_kl": (PARGS, TRUNK, ARGS, BEST_OF, CD),
    "total_kl": (PARGS, TRUNK, DPO, FARMA, GENARM),
}
LABELS = {"guidance_kl": "guidance KL, nats a response", "total_kl": "total KL, nats a response"}
STYLES = dict(zip(dict.fromkeys(chain(*DRAWN.values())), COLOURS, strict=True))

Found = Mapping[str, Any]


def plot(root: Path, path: Path) -> None:
    """A column for each task and judge, a row for each KL, with 95 % bands; hollow where a KL is a bound."""
    columns = list(tasks_and_judges(root))
    figure = Figure(figsize=(3.4 * len(columns), 6.8), layout="constrained")
    for axes, axis in zip(figure.subplots(2, len(columns), squeeze=False), DRAWN, strict=True):
        for plane, (task, summary, judge) in zip(axes, columns, strict=True):
            draw(plane, summary, judge, axis)
            plane.set_title(f"{task}: {judge}", loc="left", fontsize=10)
            plane.set_xlabel(LABELS[axis], fontsize=9)
    lines = {line.get_label(): line for plane in figure.axes for line in plane.lines if line.get_label()[0] != "_"}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=2 * len(columns), frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw(plane: Axes, summary: Found, judge: str, axis: str) -> None:
    """The methods' curves with their arms, and plain."""
    curves = {curve["name"]: curve for curve in summary["curves"]}
    for name in DRAWN[axis]:
        if name not in curves:
            continue
        colour, line = STYLES[name], curves[name]["bands"][axis].get(judge)
        if line:
            plane.plot(line["kl"], line["mean"], color=colour, linewidth=1.6)
            plane.fill_between(line["kl"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
        arms = [arm for arm in curves[name]["arms"] if arm != summary["plain"]]
        points = [point for arm in arms if (point := place(summary["arms"][arm], judge, axis))]
        face = "white" if curves[name]["kl_is_bound"] else colour
        xs, ys = zip(*points, strict=True)
        plane.plot(xs, ys, "o", color=colour, markersize=5, markerfacecolor=face, label=name)
    plain = place(summary["arms"]["plain"], judge, axis) or (
        0.0,
        summary["arms"]["plain"]["judges"][judge]["score"]["mean"],
    )
    plane.plot(*plain, "s", color=QUIET, markersize=5, label="plain")
    plane.grid(color="#dfe2e7", linewidth=0.6)
    plane.spines[["top", "right"]].set_visible(False)


def place(arm: Found, judge: str, axis: str) -> tuple[float, float] | None:
    """(KL, score) of an arm, where it has both."""
    kl, score = arm["figures"][axis], arm["judges"][judge]["score"]
    return (kl["mean"], score["mean"]) if kl and score else None


if __name__ == "__main__":
    plot(HERE, HERE / "paper.png")
