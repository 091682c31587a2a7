"""A comparison's plots: each judge's score by KL and by time. One description for curves.png and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Literal, NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from midcourse.compare.rows import REFERENCE_RESPONSES
from midcourse.show.plots import QUIET, SURFACE, VARIABLES, inline_svg, saved, styled
from midcourse.show.tokens import number
from midcourse.terminal import CONTROLS

# Okabe and Ito's colours, which most people tell apart, in a lighter form for dark pages.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a3518a", "#8a6d00", "#3f8fc4", "#7a4b1f", "#5b5fc7")
DARK_COLOURS = ("#5bb0ea", "#ff9a4d", "#3fcf9f", "#e39acb", "#e0c04a", "#9fd3f5", "#d0a070", "#a9abff")
DASHES: tuple[Literal["solid", "dashed", "dotted"], ...] = ("solid", "dashed", "dotted")
# On a page each colour is a variable, which is another colour in the dark.
_VARIABLES = {**VARIABLES, **{colour: f"s{i}" for i, colour in enumerate(COLOURS)}}
LONGEST_NAME = 40

Found = Mapping[str, Any]


class CurvePoint(NamedTuple):
    """An arm: its KL or time, its score with the interval's ends, and whether its x is a bound."""

    arm: str
    x: float
    y: float
    low: float
    high: float
    bound: bool


@dataclass(frozen=True)
class Series:
    """A method's curve and points in a chart.

    Attributes:
        style: its number, the same in every chart of a comparison.
        line: x, mean, low, high along the curve; None draws straight lines between the points.
    """

    name: str
    style: int
    points: Sequence[CurvePoint]
    line: Mapping[str, Sequence[float]] | None = None


@dataclass(frozen=True)
class Chart:
    """One plot of a judge, by KL or cost; `level` is the score of the reference responses."""

    judge: str
    by: str
    x_label: str
    series: Sequence[Series]
    level: float | None = None


def charts(summary: Found, judge: str) -> list[Chart]:
    """Return the charts of a judge: by guidance KL, total KL (greedy methods apart) and time, if not empty."""
    arms = summary["arms"]
    reference = _score(arms[REFERENCE_RESPONSES], judge) if REFERENCE_RESPONSES in arms else None
    level = reference["mean"] if reference else None
    plots = [
        ("guidance KL", "guidance KL, nats per response", _by_kl(summary, judge, "guidance_kl", False)),
        ("total KL", "total KL, nats per response", _by_kl(summary, judge, "total_kl", False)),
        ("guidance KL, greedy choices", "-log b of the response, nats", _by_kl(summary, judge, "guidance_kl", True)),
        ("cost", "time per token, relative to plain", _by_time(summary, judge)),
    ]
    return [Chart(judge, name, label, series, level) for name, label, series in plots if series]


def _by_kl(summary: Found, judge: str, axis: str, greedy: bool) -> list[Series]:
    series = []
    for style, curve in enumerate(summary["curves"]):
        points = [point for arm in curve["arms"] if (point := _point(summary, arm, judge, summary["arms"][arm], axis))]
        own = [point for point in points if point.arm != summary["plain"]]
        if curve["greedy"] == greedy and own:
            line = curve["bands"][axis].get(judge)
            band = line and {"x": line["kl"], **{name: line[name] for name in ("mean", "low", "high")}}
            series.append(Series(curve["name"], style, points, band))
    return series


def _by_time(summary: Found, judge: str) -> list[Series]:
    series = []
    plain = summary["plain"]
    curves = [(style, curve["name"], curve["arms"]) for style, curve in enumerate(summary["curves"])]
    for style, name, arms in [*curves, *([(-1, plain, [plain])] if plain else [])]:
        points = [
            point
            for arm in arms
            if style < 0 or arm != plain
            if (point := _point(summary, arm, judge, summary["arms"][arm], "relative_time"))
        ]
        if points:
            series.append(Series(name, style, points))
    return series if any(one.style >= 0 for one in series) else []


def _point(summary: Found, arm: str, judge: str, figures: Found, x: str) -> CurvePoint | None:
    at, score = figures["figures"][x], _score(figures, judge)
    if not at or not score:
        return None
    low, high = score["interval"] or (score["mean"], score["mean"])
    return CurvePoint(arm, at["mean"], score["mean"], low, high, figures["kl_is_bound"] and x.endswith("_kl"))


def _score(of_arm: Found, judge: str) -> Found | None:
    return of_arm["judges"][judge]["score"]


# curves.png


def draw(summary: Found) -> bytes | None:
    """Draw a PNG with a row of charts for each judge; None if there is nothing to draw."""
    rows = [of_judge for judge in summary["judges"] if (of_judge := charts(summary, judge))]
    if not rows:
        return None
    wide = max(map(len, rows))
    names = {series.name: series for row in rows for chart in row for series in chart.series}
    figure = Figure(figsize=(4.4 * wide, 3.4 * len(rows) + 0.5 + 0.22 * -(-len(names) // wide)), layout="constrained")
    for i, row in enumerate(rows):
        for j, chart in enumerate(row):
            draw_chart(figure.add_subplot(len(rows), wide, i * wide + j + 1), chart)
    handles = [
        Line2D([], [], color=colour(s.style), linestyle=dash(s.style), marker="o", markersize=4) for s in names.values()
    ]
    legend = figure.legend(
        handles, [_plain(name) for name in names], loc="outside lower center", ncols=wide, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return saved(figure, "png")


def chart_svg(chart: Chart) -> Markup:
    """Return a chart as inline SVG for the report.

    The elements of a series have the class "series" and its name as data-series; a point says what it is to whoever
    points at it.
    """
    figure = Figure(figsize=(4.4, 3.0), layout="constrained")
    draw_chart(figure.subplots(), chart, titles=False)
    attributes = {}
    for i, series in enumerate(chart.series):
        own = {"class": "series", "data-series": series.name}
        for part in ("line", "band"):
            attributes[f"{part} {i}"] = [own]
        attributes[f"whiskers {i}"] = [own] * len(series.points)
        for bound in (False, True):
            attributes[f"points {i} {bound}"] = [
                {**own, "class": "series t point", "data-detail": point_text(point, chart)}
                for point in series.points
                if point.bound == bound
            ]
    return inline_svg(figure, f"{title(chart)}; the tables have the numbers", attributes, _VARIABLES)


def draw_chart(axes: Axes, chart: Chart, *, titles: bool = True) -> None:
    """Draw the methods' curves with their bands and arms; hollow if an arm's x is a bound.

    Args:
        titles: whether to name the chart, the judge and the line of the reference responses.
    """
    styled(axes)
    for i, series in enumerate(chart.series):
        points, shade = series.points, colour(series.style)
        x, y = [point.x for point in points], [point.y for point in points]
        line = series.line or {"x": x, "mean": y}
        axes.plot(line["x"], line["mean"], linestyle=dash(series.style), linewidth=1.6, color=shade, gid=f"line {i}")
        if series.line:
            band = line["x"], line["low"], line["high"]
            axes.fill_between(*band, alpha=0.15, linewidth=0, color=shade, gid=f"band {i}")
        whiskers = [point.low for point in points], [point.high for point in points]
        axes.vlines(x, *whiskers, linewidth=0.8, color=shade, gid=f"whiskers {i}")
        for bound in (False, True):
            which = [point.bound == bound for point in points]
            here, face = (list(compress(x, which)), list(compress(y, which))), SURFACE if bound else shade
            axes.plot(*here, "o", markersize=4.5, color=shade, markerfacecolor=face, gid=f"points {i} {bound}")
    if chart.level is not None:
        axes.axhline(chart.level, color=QUIET, linestyle=(0, (2, 3)), linewidth=1)
    axes.set_xlabel(chart.x_label, fontsize=9, color=QUIET)
    if titles and chart.level is not None:
        axes.annotate(
            "reference responses", (1, chart.level), (0, 2), xycoords=("axes fraction", "data"), ha="right",
            textcoords="offset points", color=QUIET, fontsize=8,
        )  # fmt: skip
    if titles:
        axes.set_title(f"{_plain(chart.judge)} by {chart.by}", fontsize=10, loc="left", parse_math=False)
        axes.set_ylabel(_plain(chart.judge), fontsize=9, color=QUIET, parse_math=False)


def colour(style: int) -> str:
    """Return the colour of a series on a light page; -1 is plain."""
    return QUIET if style < 0 else COLOURS[style % len(COLOURS)]


def dash(style: int) -> Literal["solid", "dashed", "dotted"]:
    """Return the dash of a series' line: the colours' second round is dashed, the third dotted."""
    return DASHES[max(style, 0) // len(COLOURS) % len(DASHES)]


def _plain(name: str) -> str:
    """Return a name on one line, no longer than a plot has room for."""
    one_line = " ".join(name.translate(CONTROLS).split())
    return one_line if len(one_line) <= LONGEST_NAME else one_line[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def title(chart: Chart) -> str:
    """Return what a chart shows: the judge by KL or cost."""
    return f"{chart.judge} by {chart.by}"


def point_text(point: CurvePoint, chart: Chart) -> str:
    """Return what the report says of a point."""
    interval = f" [{number(point.low)}, {number(point.high)}]" if point.low < point.high else ""
    return f"{point.arm}\n{chart.judge} {number(point.y)}{interval}\n{chart.x_label} {number(point.x)}"
