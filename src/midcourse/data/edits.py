"""Edits: a response and what a person or a model made of it by changing as little as possible."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midcourse.data.formats import BadRow, Problem, field_names, names, optional_text, prompt_of, read_rows, text_of
from midcourse.lm.prompt import Prompt

COLUMNS = ("prompt", "original", "edited", "group")


@dataclass(frozen=True)
class Edit:
    """A response to a prompt, and a better one that was made of it.

    Attributes:
        prompt: "" if the texts stand alone.
        original, edited: the response before and after; either may be empty, and they differ.
        group: what the row belongs to besides its texts, such as a passage; "" if nothing.
    """

    prompt: Prompt
    original: str
    edited: str
    group: str = ""

    @property
    def responses(self) -> tuple[str, ...]:
        """Return the edited text and the original, the better one first."""
        return self.edited, self.original


def read_edits(
    path: str | Path,
    *,
    limit: Callable[[Edit], str | None] | None = None,
    rejects: list[BadRow] | None = None,
) -> list[Edit]:
    """Read the edits of a .jsonl or .json (one object a line, perhaps .gz), .csv or .parquet file, in order.

    Fields: `original` and `edited`, the better text; optionally `prompt` (a text or, except in CSV, a list of {role,
    content}) and `group`. Others are ignored.

    Args:
        limit: says what is wrong with the length of a row, or None.
        rejects: bad rows are appended to it and reading goes on.

    Raises:
        DataError: a file that cannot be read or has no usable row; without `rejects`, the first bad row.
    """
    return read_rows(path, edit_of, "edits", COLUMNS, limit=limit, rejects=rejects)


def are_edits(path: str | Path) -> bool:
    """Say whether a file's first row has the fields of an edit."""
    return field_names(path, COLUMNS) >= {"original", "edited"}


def edit_of(fields: dict[str, Any]) -> Edit:
    """Return the edit in a row's fields; Problem if there is none."""
    for field in ("original", "edited"):
        if fields.get(field) is None:
            raise Problem(field, f"the field is missing among {names(fields)}; each row needs original and edited")
    original, edited = text_of(fields, "original"), text_of(fields, "edited")
    if original == edited:
        raise Problem("edited", "the text equals the original, so nothing was edited; remove the row")
    prompt = prompt_of(fields) if fields.get("prompt") is not None else ""
    return Edit(prompt, original, edited, optional_text(fields, "group") or "")
