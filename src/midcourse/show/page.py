"""HTML pages that stand alone, with texts coloured token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from midcourse.files import write_text
from midcourse.lm.prompt import Prompt
from midcourse.show.plots import ACCENT, LINE, QUIET, curve
from midcourse.show.tokens import (
    DARK,
    LIGHT,
    SHADES,
    Colouring,
    Token,
    by_change,
    calibrated,
    chance,
    changes,
    mark,
    number,
    positions,
    prompt_text,
    shade,
)
from midcourse.terminal import CONTROLS


def write_score_page(path: Path, prompt: Prompt, tokens: Sequence[Token], title: str) -> None:
    """Write a page on one text: its tokens coloured by change, the reward by token, and the numbers."""
    colouring = by_change(tokens)
    write_page(
        path,
        "show/score.html.jinja",
        title=title,
        prompt=prompt_text(prompt),
        cells=cells_of(tokens, colouring),
        colouring=colouring,
        curve=curve(tokens),
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
    rows = zip(tokens, positions(tokens), colouring.values(tokens), changes(tokens), strict=True)
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


def write_page(path: Path, template: str, **content: Any) -> None:
    """Write a page that stands alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, rendered(template, **content))


def rendered(template: str, **content: Any) -> str:
    """Return a page that stands alone."""
    environment = Environment(
        loader=PackageLoader("midcourse", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, chance=chance, repr=repr)
    environment.globals.update(light=LIGHT, dark=DARK, shades=range(-SHADES, SHADES + 1))
    environment.globals.update(quiet=QUIET, line=LINE, accent=ACCENT)
    page = environment.get_template(template).render(content)
    # An HTML parser would read a bare carriage return as a line feed.
    return page.translate({**CONTROLS, 13: "&#13;"})
