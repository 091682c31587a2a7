"""Edits to look at: what was taken away and what was added, in the terminal and as a page."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from midcourse.data.alignment import Change, align
from midcourse.data.edits import Edit
from midcourse.show.page import write_page
from midcourse.show.tokens import prompt_text
from midcourse.terminal import visible

_PIECES = re.compile(r"\s+|\w+|[^\w\s]")
STYLES = {Change.KEPT: "", Change.DELETED: "red strike", Change.ADDED: "green underline"}
MARKS = {Change.KEPT: ("", ""), Change.DELETED: ("[-", "-]"), Change.ADDED: ("{+", "+}")}


class Piece(NamedTuple):
    """A part of a text that an edit kept, deleted or added."""

    change: Change
    text: str


def pieces(edit: Edit) -> list[Piece]:
    """Return both texts of an edit as one: what was kept, and where they differ what was deleted before what was added.

    Words, marks and white space are aligned. Of a text with marked spans these are deleted.
    """
    if edit.edited is None:
        return _marked(edit)
    before, after = (_PIECES.findall(text) for text in (edit.original, edit.edited))
    made: list[Piece] = []
    for operation in align(before, after):
        old, new = "".join(before[slice(*operation.original)]), "".join(after[slice(*operation.edited)])
        if operation.change is Change.KEPT:
            made.append(Piece(Change.KEPT, new))
        else:
            made += [Piece(Change.DELETED, old)] * bool(old) + [Piece(Change.ADDED, new)] * bool(new)
    return made


def _marked(edit: Edit) -> list[Piece]:
    """Return a text's marked and other parts, in order."""
    edges = sorted({0, len(edit.original), *(edge for span in edit.spans or () for edge in span)})
    return [
        Piece(
            Change.DELETED if any(a <= begin and end <= b for a, b in edit.spans or ()) else Change.KEPT,
            edit.original[begin:end],
        )
        for begin, end in pairwise(edges)
    ]


def coloured(edit: Edit) -> Text:
    """Return an edit for a terminal with colours: what was taken away red and struck through, what was added green."""
    text = Text()
    for change, part in pieces(edit):
        text.append(visible(part), STYLES[change])
    return text


def marked(edit: Edit) -> str:
    """Return an edit without colours: [-what was taken away-]{+what was added+}."""
    return "".join("".join((MARKS[change][0], part, MARKS[change][1])) for change, part in pieces(edit))


def write_edits_page(path: Path, edits: Sequence[Edit], title: str) -> None:
    """Write a page of edits, additions and deletions coloured and marked as such for readers of any kind."""
    shown = [{"prompt": prompt_text(edit.prompt) if edit.prompt else "", "pieces": pieces(edit)} for edit in edits]
    write_page(path, "edits/edits.html.jinja", title=title, edits=shown, Change=Change)
