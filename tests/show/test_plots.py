"""Plots in a page: what is drawn stands where its numbers say, and nothing of it reaches beyond its own element."""

import re
from xml.etree import ElementTree as ET

import pytest
from matplotlib.figure import Figure

from midcourse.show.plots import ACCENT, QUIET, curve, inline_svg, saved, scatter, styled
from midcourse.show.tokens import Token

HOSTILE = "</svg><script>bad()</script> \"two\" & 'one'\n$x^2$ \u05e9 {{ 7 }}"


def plotted(attributes=None, label="A plot") -> ET.Element:
    """Three points on a line, with a name of every kind in the figure."""
    figure = Figure(figsize=(4, 3))
    axes = styled(figure.subplots())
    axes.plot([0, 1, 2], [0, 10, 5], color=ACCENT, gid="line")
    axes.plot([0, 1, 2], [0, 10, 5], "o", color="#d55e00", markersize=4, gid="dots")
    axes.set_xlabel("x of it", color=QUIET)
    return ET.fromstring(inline_svg(figure, label, attributes or {}))


def circles(root: ET.Element) -> list[tuple[float, float, float]]:
    return [(float(c.attrib["cx"]), float(c.attrib["cy"]), float(c.attrib["r"])) for c in root.iter("circle")]


def test_nothing_in_it_is_named_loaded_or_styles_the_page():
    root = plotted()
    assert {element.tag for element in root.iter()} <= {"svg", "g", "path", "circle", "text"}
    names = {name for element in root.iter() for name in element.attrib}
    assert not {name for name in names if name.startswith(("id", "clip", "{", "xlink", "on")) or "href" in name}
    text = ET.tostring(root, encoding="unicode")
    assert not re.search(r"https?:|url\(|font-family|<style|<!|<\?", text)
    assert "x of it" in [element.text for element in root.iter("text")]  # words, not outlines


def test_points_stand_where_their_numbers_say():
    (x0, y0, r0), (x1, y1, _), (x2, y2, _) = circles(plotted())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02) and x1 > x0
    assert (y0 - y2) / (y0 - y1) == pytest.approx(5 / 10, abs=1e-3) and y1 < y2 < y0
    assert r0 == 2


def test_areas_and_other_markers_keep_their_outlines():
    """Matplotlib writes what is used once or often as a reference: both have to arrive where they belong."""
    figure = Figure(figsize=(4, 3))
    axes = styled(figure.subplots())
    x = [i / 50 for i in range(51)]
    axes.fill_between(x, [0.0] * 51, [1.0] * 51, color="#d55e00", gid="band")
    axes.plot([0.0, 1.0], [0.0, 1.0], "s", markersize=4, color="#009e73", gid="squares")
    root = ET.fromstring(inline_svg(figure, "", {"band": [{"class": "band"}], "squares": [{"class": "s"}] * 2}))
    assert not circles(root)
    places = {name: [_ends(p) for p in root.iter("path") if p.get("class") == name] for name in ("band", "s")}
    ((left, top, right, bottom),) = places["band"]
    (x0, y0), (x1, y1) = [((a + c) / 2, (b + d) / 2) for a, b, c, d in places["s"]]
    assert (x0, x1) == pytest.approx((left, right), abs=0.05) and (y1, y0) == pytest.approx((top, bottom), abs=0.05)


def _ends(path: ET.Element) -> tuple[float, float, float, float]:
    """The left, upper, right and lower end of a path of straight lines."""
    dx, dy = map(float, re.findall(r"-?[\d.]+", path.get("transform", "translate(0 0)")))
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
    return min(numbers[::2]) + dx, min(numbers[1::2]) + dy, max(numbers[::2]) + dx, max(numbers[1::2]) + dy


def test_colours_follow_the_page_where_it_has_one():
    styles = {element.get("style", "") for element in plotted().iter()}
    assert any("stroke: var(--accent)" in style for style in styles)
    assert any("fill: var(--quiet)" in style for style in styles)
    assert any("fill: #d55e00" in style for style in styles)
    assert not any(ACCENT in style or QUIET in style for style in styles)


def test_attributes_go_to_the_markers_one_by_one_and_come_back_as_they_were():
    dots = [{"class": "dot", "data-cell": str(i), "data-detail": HOSTILE} for i in range(3)]
    root = plotted({"dots": dots, "line": [{"class": "series"}]}, HOSTILE)
    assert [dict(c.attrib) for c in root.iter("circle")] == [
        {**dot, **{name: c.attrib[name] for name in ("cx", "cy", "r", "style")}}
        for dot, c in zip(dots, root.iter("circle"), strict=True)
    ]
    assert [p.get("class") for p in root.iter("path") if p.get("class")] == ["series"]
    assert root.attrib.keys() == {"viewBox", "role", "aria-label"} and root.attrib["aria-label"] == HOSTILE


def test_the_curve_has_a_dot_for_every_reward_and_ties_it_to_its_token():
    rewards = [1.0, None, float("nan"), 3.0, 2.0]
    root = ET.fromstring(curve([Token("x", reward, tokens=2) for reward in rewards]))
    assert [c.attrib["data-cell"] for c in root.iter("circle")] == ["0", "3", "4"]
    (x0, y0, _), (x3, y3, _), (x4, y4, _) = circles(root)
    assert (x4 - x0) / (x3 - x0) == pytest.approx(8 / 6, abs=1e-3)  # positions 2, 8 and 10: tokens of the model
    assert (y0 - y4) / (y0 - y3) == pytest.approx(1 / 2, abs=1e-2)
    assert curve([Token("x", 1.0), Token("y", None)]) is None


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e9, 1e300])
def test_a_curve_of_any_size(size):
    for rewards in ((size, size), (-size, size), (0.0, size)):
        found = circles(ET.fromstring(curve([Token("x", reward) for reward in rewards])))
        assert len(found) == 2 and (found[0][1] > found[1][1]) == (rewards[0] < rewards[1])


def test_the_scatter_has_equal_axes():
    """Points on the diagonal stand on a straight line through the corners, though their range is another one."""
    root = ET.fromstring(scatter([(0.0, 0.0), (0.5, 0.5), (0.2, 4.0)], "base", "guided", "Points"))
    (x0, y0, _), (x1, y1, _), (x2, y2, _) = circles(root)
    assert (x2 - x0) / (x1 - x0) == pytest.approx(0.2 / 0.5, abs=1e-2)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(4.0 / 0.5, rel=1e-2)
    dashed = next(p for p in root.iter("path") if "dasharray" in p.get("style", ""))
    ax, ay, bx, by = map(float, re.findall(r"[\d.]+", dashed.attrib["d"]))
    assert (y0 - ay) / (x0 - ax) == pytest.approx((by - ay) / (bx - ax), rel=1e-2)
    assert {"base", "guided"} <= {element.text for element in root.iter("text")}
    assert scatter([(0.0, 1.0)], "", "", "") is None


def test_a_picture_may_name_what_no_font_has():
    figure = Figure()
    figure.suptitle("\u05e9 \U0001f600 \ue000", parse_math=False)
    assert saved(figure, "png").startswith(b"\x89PNG")
