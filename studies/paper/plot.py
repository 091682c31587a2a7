"""The claims as curves, from results/TASK.json alone: every judge's score by guidance KL and by total KL.

python -m studies.paper.plot        draws paper.png
"""

from dataclasses import replace
from itertools import chain
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from midcourse.compare.report.charts import charts, colour, draw_chart
from midcourse.files import whole_file
from studies.paper.tables import ARGS, BEST_OF, DPO, HERE, PARGS, TRUNK, tasks_and_judges

CD, FARMA, GENARM = "cd value", "farma farma", "genarm autoregressive"
DRAWN = {"guidance KL": (PARGS, TRUNK, ARGS, BEST_OF, CD), "total KL": (PARGS, TRUNK, DPO, FARMA, GENARM)}
STYLES = {name: style for style, name in enumerate(dict.fromkeys(chain(*DRAWN.values())))}


def plot(root: Path, path: Path) -> None:
    """A column for each task and judge, a row for each KL, with 95 % bands; hollow where a KL is a bound."""
    columns = list(tasks_and_judges(root))
    figure = Figure(figsize=(3.6 * len(columns), 7), layout="constrained")
    planes = figure.subplots(len(DRAWN), len(columns), squeeze=False)
    for (task, summary, judge), column in zip(columns, planes.T, strict=True):
        found = {chart.by: chart for chart in charts(summary, judge)}
        for by, plane in zip(DRAWN, column, strict=True):
            series = [replace(s, style=STYLES[s.name]) for s in found[by].series if s.name in DRAWN[by]]
            draw_chart(plane, replace(found[by], judge=f"{task}: {judge}", series=series))
    lines = [Line2D([], [], color=colour(style), marker="o", markersize=4) for style in STYLES.values()]
    figure.legend(lines, STYLES, loc="outside lower center", ncols=2 * len(columns), frameon=False, fontsize=8)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


if __name__ == "__main__":
    plot(HERE, HERE / "paper.png")
