"""The diagrams of docs/how-it-works.md.

python -m studies.figures [FOLDER]        writes them, by default to docs/figures
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from midcourse.files import whole_file

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "figures"
# Read on white and on dark grey alike.
INK, QUIET, BLUE, ORANGE, GREEN = "#7d8590", "#a3abb5", "#4184c4", "#d1782f", "#4f9a64"


def prefixes() -> Figure:
    """Two responses to one prompt, compared at every length that they share."""
    figure, axes = canvas(8.4, 3.1)
    words = (["A", "warm", "and", "lovely", "evening", "out", "."], ["A", "dull", "and", "endless", "evening", "again"])
    for row, (name, tokens, colour) in enumerate(zip(("chosen", "rejected"), words, (BLUE, ORANGE), strict=True)):
        y = 2.0 - 1.35 * row
        axes.text(-0.1, y + 0.3, name, ha="right", va="center", color=INK, fontsize=11)
        for i, token in enumerate(tokens):
            box(axes, i, y, 0.9, 0.6, token, colour)
    for i in range(6):
        arrow(axes, (i + 0.45, 1.95), (i + 0.45, 1.3), INK, style="<->")
        axes.text(i + 0.52, 1.62, f"{i + 1}", color=INK, fontsize=9, va="center")
    axes.text(
        3.0, 0.3, "loss: the mean over these lengths of  -log sigmoid( r(chosen prefix) - r(rejected prefix) )",
        ha="center", color=INK, fontsize=11,
    )  # fmt: skip
    axes.set(xlim=(-1.3, 7.2), ylim=(0.1, 2.8))
    return figure


def candidates() -> Figure:
    """All candidates of a step as siblings behind one cached prefix, and who sees whom."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    prefix, children = ["The", "night", "train", "was"], ["late", "full", "warm", "gone"]
    for axes in (left, right):
        axes.set_axis_off()
    for i, token in enumerate(prefix):
        box(left, i, 1.5, 0.9, 0.6, token, QUIET)
    for i, token in enumerate(children):
        y = 3.0 - i
        box(left, 5.4, y, 0.9, 0.6, token, BLUE)
        arrow(left, (4.0, 1.8), (5.35, y + 0.3), INK)
    left.text(1.9, 2.45, "read once, kept in the cache", ha="center", color=INK, fontsize=10)
    left.text(5.85, -0.65, "one forward pass", ha="center", color=INK, fontsize=10)
    left.set(xlim=(-0.1, 6.5), ylim=(-0.9, 3.8))
    seen = np.zeros((4, 8))
    seen[:, :4] = 1
    seen[:, 4:] = np.eye(4)
    for (row, column), sees in np.ndenumerate(seen):
        colour = (QUIET if column < 4 else BLUE) if sees else "none"
        right.add_patch(FancyBboxPatch((column, 3 - row), 0.8, 0.8, "square,pad=0", facecolor=colour, edgecolor=QUIET))
    for i, token in enumerate([*prefix, *children]):
        right.text(i + 0.4, 4.0, token, rotation=60, color=INK, fontsize=9, ha="left", va="bottom")
    for i, token in enumerate(children):
        right.text(-0.15, 3.4 - i, token, color=INK, fontsize=9, ha="right", va="center")
    right.text(3.9, -0.65, "what each candidate sees", ha="center", color=INK, fontsize=10)
    right.set(xlim=(-1.3, 8.4), ylim=(-0.9, 5.3))
    return figure


def trunk() -> Figure:
    """A head on the steered model's own states beside a reward with a model of its own."""
    figure, axes = canvas(8.4, 3.6)
    for x, name in ((0, "with a model of its own"), (4.6, "on the trunk")):
        box(axes, x, 0.6, 1.6, 2.2, "language\nmodel", QUIET)
        axes.text(x + 1.7, 3.75, name, ha="center", color=INK, fontsize=11)
        box(axes, x, 3.05, 1.6, 0.42, "log π", QUIET)
        arrow(axes, (x + 0.8, 2.8), (x + 0.8, 3.05), INK)
        axes.text(x + 0.8, 0.25, "tokens so far", ha="center", color=INK, fontsize=10)
        arrow(axes, (x + 0.8, 0.38), (x + 0.8, 0.6), INK)
    box(axes, 2.1, 0.6, 1.6, 2.2, "reward\nmodel", BLUE)
    box(axes, 2.1, 3.05, 1.6, 0.42, "r of 10 candidates", BLUE)
    arrow(axes, (2.9, 2.8), (2.9, 3.05), INK)
    arrow(axes, (2.9, 0.38), (2.9, 0.6), INK)
    axes.text(2.9, 0.25, "10 candidates", ha="center", color=INK, fontsize=10)
    box(axes, 6.9, 1.85, 1.5, 0.6, "small head", BLUE)
    box(axes, 6.7, 3.05, 1.9, 0.42, "r of every next token", BLUE)
    arrow(axes, (6.2, 2.15), (6.9, 2.15), BLUE)
    arrow(axes, (7.65, 2.45), (7.65, 3.05), INK)
    axes.text(6.55, 2.25, "state", ha="center", color=INK, fontsize=9)
    axes.text(7.65, 1.2, "embeddings of\nnext tokens", ha="center", color=INK, fontsize=10)
    arrow(axes, (7.65, 1.5), (7.65, 1.85), INK)
    axes.set(xlim=(-0.1, 8.8), ylim=(0.05, 4.0))
    return figure


def divergences() -> Figure:
    """One step's policies: pi over the vocabulary, b over the short list, q with the reward; and both KLs."""
    pi = np.array([0.30, 0.20, 0.14, 0.10, 0.08, 0.06, 0.04, 0.03, 0.03, 0.02])
    rewards = np.array([-0.4, 0.8, 0.1, 1.3])
    base = pi[:4] / pi[:4].sum()
    guided = base * np.exp(rewards)
    guided /= guided.sum()
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(pi))
    axes.bar(places - 0.27, pi, 0.26, color=QUIET, label="π: the language model, over the vocabulary")
    axes.bar(places[:4], base, 0.26, color=ORANGE, label="b: π on its top k (here 4)")
    axes.bar(places[:4] + 0.27, guided, 0.26, color=BLUE, label="q: with the reward")
    axes.axvline(3.55, color=INK, linestyle=(0, (4, 4)), linewidth=1)
    guidance = float((guided * np.log(guided / base)).sum())
    total = float((guided * np.log(guided / pi[:4])).sum())
    axes.text(
        3.75, 0.22, f"guidance KL = KL(q ‖ b) = {guidance:.2f} nats\ntotal KL = KL(q ‖ π) = {total:.2f} nats",
        color=INK, fontsize=11,
    )  # fmt: skip
    axes.set_xticks(places, [f"token {i + 1}" for i in places], color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of that size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """Draw a box with a text."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, "round,pad=0,rounding_size=0.08", facecolor="none", edgecolor=colour, lw=1.6
        )
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=INK, fontsize=10)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, style: str = "->") -> None:
    """Draw an arrow."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=9, color=colour, lw=1.1))


FIGURES: dict[str, Callable[[], Figure]] = {
    "prefixes": prefixes,
    "candidates": candidates,
    "trunk": trunk,
    "divergences": divergences,
}


def write(folder: Path) -> None:
    """Write every figure as SVG, the same bytes at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "midcourse"}):
        for name, draw in FIGURES.items():
            with whole_file(folder / f"{name}.svg") as path:
                draw().savefig(path, format="svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    write(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)
