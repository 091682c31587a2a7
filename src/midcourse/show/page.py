"""HTML pages that stand alone, with texts coloured token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.ticker import MaxNLocator

from midcourse.files import write_text
from midcourse.lm.prompt import Prompt
from midcourse.show.tokens import (
    CONTROLS,
    DARK,
    LIGHT,
    SHADES,
    Colouring,
    Token,
    _finite,
    _positions,
    by_change,
    calibrated,
    chance,
    changes,
    mark,
    number,
    prompt_text,
    shade,
)


def write_score_page(path: Path, prompt: Prompt, tokens: Sequence[Token], title: str) -> None:
    """A page on one text: its tokens coloured by change, the reward by token, and the numbers."""
    colouring = by_change(tokens)
    write_page(
        path,
        "show/score.html.jinja",
        title=title,
        prompt=prompt_text(prompt),
        cells=cells_of(tokens, colouring),
        colouring=colouring,
        curve=curve_of(tokens),
        calibrated=calibrated(tokens),
    )


@dataclass(frozen=True)
class ShownToken:
    """A token as the templates show it."""

    token: Token
    position: int
    shade: int | None
    change: float | None
    mark: str
    title: str


def cells_of(tokens: Sequence[Token], colouring: Colouring) -> list[ShownToken]:
    rows = zip(tokens, _positions(tokens), colouring.values(tokens), changes(tokens), strict=True)
    return [
        ShownToken(
            token=token,
            position=position + 1,
            shade=None if value is None else shade(value, colouring.scale),
            change=change,
            mark=mark(token),
            title=_title(token, position, value, colouring),
        )
        for token, position, value, change in rows
    ]


def _title(token: Token, position: int, value: float | None, colouring: Colouring) -> str:
    name = "end of the text" if token.end else repr(token.text)
    against = "change" if colouring.offsets is None else "against the mean here"
    shown = "" if value is None else f", {against} {number(value, 3, sign=True)}"
    against_mean = "" if token.centred is None else f"{number(token.centred, 3, sign=True)} against the mean here"
    if token.probability is not None:
        against_mean += f", preferred with probability {chance(token.probability)}"
    lines = (f"{name}, position {position + 1}", f"reward {number(token.reward, 3)}{shown}", against_mean, token.detail)
    return "\n".join(line for line in lines if line)


def curve_of(tokens: Sequence[Token]) -> dict[str, Any] | None:
    """The reward by position, in per cent of the plot, with ticks; None where there are not two points."""
    found = [
        (cell, position + 1.0, reward)
        for cell, (token, position) in enumerate(zip(tokens, _positions(tokens), strict=True))
        if (reward := _finite(token.reward)) is not None
    ]
    if len(found) < 2:
        return None
    x_ticks, y_ticks = axis_ticks([position for _, position, _ in found]), axis_ticks([reward for *_, reward in found])
    first, last = found[0][1], found[-1][1]
    x, y = percent(first, last), percent(y_ticks[-1], y_ticks[0])
    return {
        "points": [{"cell": cell, "x": x(position), "y": y(reward)} for cell, position, reward in found],
        "x_ticks": [(x(tick), f"{tick:g}") for tick in x_ticks if first <= tick <= last and tick == round(tick)],
        "y_ticks": [(y(tick), f"{tick:.4g}") for tick in y_ticks],
        "zero": y(0.0) if y_ticks[0] < 0 < y_ticks[-1] else None,
    }


def axis_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, evenly spaced, from below the values to above them."""
    found = MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=2).tick_values(min(values), max(values))
    return [float(tick) for tick in found]


def percent(first: float, last: float) -> Callable[[float], float]:
    return lambda number: round(100 * (number - first) / (last - first), 2)


def write_page(path: Path, template: str, **content: Any) -> None:
    environment = Environment(
        loader=PackageLoader("midcourse", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, chance=chance, repr=repr)
    environment.globals.update(light=LIGHT, dark=DARK, shades=range(-SHADES, SHADES + 1))
    page = environment.get_template(template).render(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    # An HTML parser would read a bare carriage return as a line feed.
    write_text(path, page.translate({**CONTROLS, 13: "&#13;"}))
