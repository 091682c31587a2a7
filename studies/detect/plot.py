"""The study as a picture, from results/ alone: what is told apart, whom thresholds flag, what is left after changes.

python -m studies.detect.plot        draws detect.png
"""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from midcourse.files import whole_file
from studies.detect.heads import LAYER, LAYERS, OURS

HERE = Path(__file__).parent
COLOURS = {"pubmed": "#0072b2", "xsum": "#d55e00"}
DRAWN = (
    OURS, "states alike", "last state", "likelihoods", "character n-grams", "direction", "log-likelihood", "log-rank",
    "fast-detectgpt", "entropy", "lrr", "rank", "MiniLM", "trivial: newline", "trivial: characters per word",
)  # fmt: skip


def plot(root: Path, path: Path) -> None:
    """Four panes: by detector, by layer, by group of writers, by change."""
    found = {
        name: json.loads((root / f"results/{name}.json").read_text()) for name in ("domains", "writers", "changes")
    }
    figure = Figure(figsize=(13, 9), layout="constrained")
    (first, second), (third, fourth) = figure.subplots(2, 2)
    draw_detectors(first, found["domains"]["cells"])
    draw_layers(second, found["domains"]["cells"])
    draw_writers(third, found["writers"]["flagged"], found["writers"]["rate"])
    draw_changes(fourth, found["changes"]["changes"])
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def mean_of(rows: list[dict[str, Any]], detector: str, domain: str, key: str) -> float:
    return fmean(row[key] for row in rows if (row["detector"], row["domain"]) == (detector, domain))


def draw_detectors(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """AUROC of each detector on each domain left out, the mean over models."""
    for domain, colour in COLOURS.items():
        values = [mean_of(rows, name, domain, "auroc") for name in DRAWN]
        axis.plot(values, range(len(DRAWN)), "o", color=colour, label=f"{domain} left out")
    axis.set_yticks(range(len(DRAWN)), DRAWN, fontsize=8)
    axis.invert_yaxis()
    axis.axvline(0.5, color="#999", linewidth=1)
    axis.set(title="Machine texts of a domain not learned from", xlabel="AUROC, mean over models")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False)


def draw_layers(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """AUROC and the share found at 1%, by the layer whose states are read."""
    layers = sorted((*LAYERS, LAYER))
    for domain, colour in COLOURS.items():
        for key, style, said in (("auroc", "-", "AUROC"), ("tpr_at_1", "--", "TPR at 1%")):
            values = [mean_of(rows, OURS if n == LAYER else f"layer {n}", domain, key) for n in layers]
            axis.plot(layers, values, style, marker="o", markersize=4, color=colour, label=f"{domain}, {said}")
    axis.set(title="By layer", xlabel="layer of 30 whose states are read", ylim=(0, 1.02))
    axis.legend(frameon=False, fontsize=8)


def draw_writers(axis: Axes, rows: list[dict[str, Any]], rate: float) -> None:
    """The share of other people's texts above a threshold set on the people of two domains."""
    names = list(dict.fromkeys(row["domain"] for row in rows))
    detectors = list(dict.fromkeys(row["detector"] for row in rows))
    height = 0.8 / len(detectors)
    for number, detector in enumerate(detectors):
        mine = {row["domain"]: row for row in rows if row["detector"] == detector}
        places = [place + (number - (len(detectors) - 1) / 2) * height for place in range(len(names))]
        values = [mine[name]["rate"] for name in names]
        ends = zip(*(mine[name]["interval"] for name in names), strict=True)
        low, high = ([abs(end - value) for end, value in zip(side, values, strict=True)] for side in ends)
        axis.barh(places, values, height, xerr=[low, high], label=detector, error_kw={"linewidth": 1, "alpha": 0.6})
    axis.axvline(rate, color="black", linewidth=1)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set(title=f"People flagged at {rate:.0%} of other people", xlabel="share of their texts, 95%")
    axis.legend(frameon=False, fontsize=8)


def draw_changes(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """The share of machine texts that is found before and after a change, at one threshold."""
    labels = [f"{row['change']}:\n{row['detector']}" for row in rows]
    places = range(len(rows))
    axis.barh([n - 0.2 for n in places], [row["before"] for row in rows], 0.38, color="#888", label="before")
    axis.barh([n + 0.2 for n in places], [row["after"] for row in rows], 0.38, color="#009e73", label="after")
    axis.set_yticks(places, labels, fontsize=8)
    axis.invert_yaxis()
    axis.set(title="Machine texts found before and after a change", xlabel="share found at 1%", xlim=(0, 1))
    axis.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    plot(HERE, HERE / "detect.png")
