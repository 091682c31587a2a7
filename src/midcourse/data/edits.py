"""Edits: a response and what a person or a model made of it by changing as little as possible."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midcourse.data.alignment import Change, Labels, Span
from midcourse.data.formats import (
    BadRow,
    CsvCell,
    Problem,
    Renamed,
    field_names,
    names,
    optional_text,
    prompt_of,
    read_rows,
    short,
    text_of,
)
from midcourse.lm.prompt import Prompt

COLUMNS = (
    "prompt", "original", "edited", "group", "text", "spans", "original_labels", "edited_labels", "tokenizer",
)  # fmt: skip
_SHAPE = "each row needs original and edited, or text and spans"


@dataclass(frozen=True)
class Edit:
    """A response to a prompt, and a better one that was made of it, or marks of what is wrong with it.

    Attributes:
        prompt: "" if the texts stand alone.
        original, edited: the response before and after; either may be empty, and they differ. None as edited if nobody
            said what would be right.
        group: what the row belongs to besides its texts, such as a passage; "" if nothing.
        spans: the characters (begin, end) of the original that somebody marked as wrong; None if nobody did.
        labels: what became of each token, EOS included, if that was said; see `tokenizer`.
        tokenizer: fingerprint of the tokenizer whose tokens are labelled.
    """

    prompt: Prompt
    original: str
    edited: str | None
    group: str = ""
    spans: tuple[Span, ...] | None = None
    labels: Labels | None = None
    tokenizer: str = ""

    @property
    def responses(self) -> tuple[str, ...]:
        """Return the edited text, if there is one, and the original."""
        return (self.original,) if self.edited is None else (self.edited, self.original)


def read_edits(
    path: str | Path,
    *,
    limit: Callable[[Edit], str | None] | None = None,
    rejects: list[BadRow] | None = None,
    renamed: Renamed | None = None,
) -> list[Edit]:
    """Read the edits of a .jsonl or .json (perhaps .gz), .csv, .tsv or .parquet file, in order.

    Fields: `original` and `edited`, the better text; or `text` and `spans`, a list of {start, end} in characters, end
    exclusive, of what is wrong with it (not in CSV); optionally `prompt` (a text or, except in CSV, a list of {role,
    content}) and `group`. Rows of `midcourse edits label` hold labels of tokens too. Other fields are ignored.

    Args:
        limit: says what is wrong with the length of a row, or None.
        rejects: bad rows are appended to it and reading goes on.
        renamed: fields that the file has by other names.

    Raises:
        DataError: a file that cannot be read or has no usable row; without `rejects`, the first bad row.
    """
    return read_rows(path, edit_of, "edits", COLUMNS, limit=limit, rejects=rejects, renamed=renamed)


def are_edits(path: str | Path, renamed: Renamed | None = None) -> bool:
    """Say whether a file's first row has the fields of an edit."""
    found = field_names(path, COLUMNS, renamed)
    return found >= {"original", "edited"} or found >= {"text", "spans"} or "original_labels" in found


def edit_of(fields: dict[str, Any]) -> Edit:
    """Return the edit in a row's fields; Problem if there is none."""
    about: dict[str, Any] = {
        "prompt": prompt_of(fields) if fields.get("prompt") is not None else "",
        "group": optional_text(fields, "group") or "",
    }
    if fields.get("original") is None and fields.get("spans") is not None:
        if fields.get("text") is None:
            raise Problem("text", f"the field is missing among {names(fields)}; {_SHAPE}")
        text = text_of(fields, "text")
        return Edit(original=text, edited=None, spans=_spans(fields, text), **about)
    labels, tokenizer = _labels(fields)
    for field in ("original", "edited"):
        if fields.get(field) is None and (field == "original" or labels is None):
            raise Problem(field, f"the field is missing among {names(fields)}; {_SHAPE}")
    original, edited = text_of(fields, "original"), optional_text(fields, "edited", blank=True)
    if original == edited:
        raise Problem("edited", "the text equals the original, so nothing was edited; remove the row")
    return Edit(original=original, edited=edited, labels=labels, tokenizer=tokenizer, **about)


def _spans(fields: dict[str, Any], text: str) -> tuple[Span, ...]:
    """Return the marked characters of a text."""
    spans = fields["spans"]
    if isinstance(spans, CsvCell) or not isinstance(spans, list):
        raise Problem("spans", f"{short(spans)} is no list; write one of objects with start and end, as JSON Lines")
    made = []
    for number, span in enumerate(spans, 1):
        begin, end = (span.get(name) if isinstance(span, dict) else None for name in ("start", "end"))
        if type(begin) is not int or type(end) is not int or not 0 <= begin < end <= len(text):
            raise Problem(
                "spans",
                f"span {number}, {short(span)}, is no part of the {len(text)} characters; give start < end within them",
            )
        made.append((begin, end))
    return tuple(made)


def _labels(fields: dict[str, Any]) -> tuple[Labels | None, str]:
    """Return the labels of tokens that a row holds, and whose tokens they are."""
    if fields.get("original_labels") is None:
        return None, ""
    sides = [_label_row(fields, field) for field in ("original_labels", "edited_labels")]
    tokenizer = optional_text(fields, "tokenizer")
    if not tokenizer:
        raise Problem("tokenizer", "labels of tokens need the fingerprint of their tokenizer; label the edits again")
    return Labels(*sides), tokenizer


def _label_row(fields: dict[str, Any], field: str) -> tuple[Change, ...]:
    found = fields.get(field)
    if found is None and field == "edited_labels":
        return ()
    known = {change.name.lower(): change for change in Change}
    if not isinstance(found, list) or any(not isinstance(one, str) or one not in known for one in found):
        raise Problem(field, f"{short(found)} is no list of labels; use {', '.join(known)}")
    return tuple(known[one] for one in found)
