"""Plots. Matplotlib draws them; a page holds them as SVG in its own font and in the colours of its theme."""

import re
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from xml.etree import ElementTree as ET

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from midcourse.show.tokens import LIGHT, Token, finite, positions

# The page's colours in its light theme, and the CSS variable that holds each of them in either theme.
QUIET, LINE, ACCENT, SURFACE = "#5a6068", "#dfe2e7", "#1f5fa8", LIGHT.zero
VARIABLES = {QUIET: "quiet", LINE: "line", ACCENT: "accent", SURFACE: "surface"}
# By the gid of an artist: the attributes of its element, or of each of its markers.
Attributes = Mapping[str, Sequence[Mapping[str, str]]]


def curve(tokens: Sequence[Token]) -> Markup | None:
    """Draw the reward by position as inline SVG; None if there are not two rewards.

    The dot of token i has the attribute data-cell="i".
    """
    points = [
        (cell, position + 1, reward)
        for cell, (token, position) in enumerate(zip(tokens, positions(tokens), strict=True))
        if (reward := finite(token.reward)) is not None
    ]
    if len(points) < 2:
        return None
    cells, at, rewards = zip(*points, strict=True)
    figure = Figure(figsize=(8.6, 2.8), layout="constrained")
    axes = styled(figure.subplots())
    axes.plot(at, rewards, color=ACCENT, linewidth=1.6)
    axes.plot(at, rewards, "o", color=ACCENT, markersize=4, gid="dots")
    low, high = axes.get_ylim()
    if low < 0 < high:
        axes.axhline(0, color=QUIET, linewidth=1, linestyle=(0, (4, 4)))
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("position", color=QUIET, fontsize=9)
    dots = [{"class": "dot", "data-cell": str(cell)} for cell in cells]
    return inline_svg(figure, "The reward by token position; the table has the numbers", {"dots": dots})


def scatter(points: Sequence[tuple[float, float]], x_label: str, y_label: str, label: str) -> Markup | None:
    """Draw points on equal axes with their diagonal as inline SVG; None if there are not two points."""
    if len(points) < 2:
        return None
    figure = Figure(figsize=(4.4, 3.4), layout="constrained")
    axes = styled(figure.subplots())
    axes.plot(*zip(*points, strict=True), "o", color=ACCENT, markersize=5, alpha=0.75, gid="dots")
    ends = [*axes.get_xlim(), *axes.get_ylim()]
    axes.set(xlim=(min(ends), max(ends)), ylim=(min(ends), max(ends)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.axline((0, 0), slope=1, transform=axes.transAxes, color=QUIET, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
    axes.set_xlabel(x_label, color=QUIET, fontsize=9)
    axes.set_ylabel(y_label, color=QUIET, fontsize=9)
    return inline_svg(figure, label, {"dots": [{"class": "dot"}] * len(points)})


def styled(axes: Axes) -> Axes:
    """Return the axes with a quiet grid and without a frame."""
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_frame_on(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=QUIET)
    return axes


def saved(figure: Figure, form: str) -> bytes:
    """Return the file of a figure, as png or svg; it may name things in any characters."""
    file = BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "midcourse"}):
        for problem in ("Glyph .* missing from font", "Matplotlib currently does not support"):
            warnings.filterwarnings("ignore", problem)
        figure.savefig(file, format=form, dpi=150, metadata=nothing if form == "svg" else None)
    return file.getvalue()


_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def inline_svg(figure: Figure, label: str, attributes: Attributes, variables: Mapping[str, str] = VARIABLES) -> Markup:
    """Return a figure as an <svg> for a page: it loads nothing, and leaves the rest of the page alone.

    Args:
        label: what a reader who cannot see the plot is told.
        attributes: what to write on the elements of artists that have these gids.
        variables: by colour ("#rrggbb"), the CSS variable that takes its place. Other colours stay as they are.
    """
    figure.patch.set_visible(False)
    root = ET.fromstring(saved(figure, "svg"))
    outlines = {f"#{path.attrib['id']}": path.attrib["d"] for path in root.iter(f"{_SVG}path") if path.get("id")}
    for group in root.iter(f"{_SVG}g"):
        parts = group.findall(f".//{_SVG}use") or group.findall(f"{_SVG}path")
        for part, more in zip(parts, attributes.get(group.get("id", ""), ()), strict=False):
            part.attrib.update(more)
    for parent in list(root.iter()):
        for element in parent.findall(f"{_SVG}defs"):
            parent.remove(element)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        if element.tag == "use":
            _in_place(element, outlines[element.attrib.pop(_LINK)])
        _simplify(element, variables)
    # Names are the page's own: ids would be found by its links and scripts, and clipping refers to them.
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": label})
    return Markup(ET.tostring(root, encoding="unicode"))


def _in_place(use: ET.Element, outline: str) -> None:
    """Turn the use of an outline into that outline where it is used; round markers into circles."""
    x, y = use.attrib.pop("x"), use.attrib.pop("y")
    round_marker = re.match(r"M 0 ([\d.]+)\s+C", outline)
    if round_marker and outline.count("C") == 8:
        use.tag = "circle"
        use.attrib.update({"cx": x, "cy": y, "r": round_marker[1]})
    else:
        use.tag = "path"
        use.attrib.update({"d": outline, "transform": f"translate({x} {y})"})


def _simplify(element: ET.Element, variables: Mapping[str, str]) -> None:
    """Leave out what a page does not need, and let it choose the font and the colours."""
    for name in ("id", "clip-path"):
        element.attrib.pop(name, None)
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if style := element.get("style"):
        style = re.sub(r"font-family:[^;]*;? ?", "", style)
        style = re.sub("#[0-9a-f]{6}", lambda c: f"var(--{variables[c[0]]})" if c[0] in variables else c[0], style)
        element.set("style", style)
    for name in ("d", "cx", "cy", "x", "y"):
        if value := element.get(name):
            element.set(name, re.sub(r"\d+\.\d+", lambda n: f"{float(n[0]):.2f}", " ".join(value.split())))
    element.tail = None
    if element.text and not element.text.strip():
        element.text = None
