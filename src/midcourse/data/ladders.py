"""Ladders: texts on one source, from the most to the least machine-like, as detectors are trained on.

Two levels are a machine's and a person's text; a person's text that a machine rephrased in part stands between them
(ReMoDetect, Lee et al., 2024); any number of levels may grade how much was mixed in, or polished.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midcourse.data.formats import (
    BadRow,
    CsvCell,
    DataError,
    Problem,
    Reader,
    names,
    optional_text,
    read_rows,
    short,
    text_of,
)

# What the ends of a ladder are called, the last names being ReMoDetect's.
MACHINE, HUMAN = ("machine", "llm", "sampled"), ("human", "original")
COLUMNS = ("levels", *MACHINE, "mixed", *HUMAN, "group")
_SHAPE = "each row needs machine (or llm) and human, or levels"


@dataclass(frozen=True)
class Ladder:
    """Two or more texts on one source, the most machine-like first, a person's last.

    Attributes:
        levels: the texts.
        group: what it belongs to besides its texts, such as a question; "" if nothing. Ladders of a group stay together
            if some are held out.
    """

    levels: tuple[str, ...]
    group: str = ""

    @property
    def prompt(self) -> str:
        """Return "": the texts stand alone."""
        return ""

    @property
    def responses(self) -> tuple[str, ...]:
        """Return its texts."""
        return self.levels


def read_ladders(path: str | Path, *, rejects: list[BadRow] | None = None) -> list[Ladder]:
    """Read the ladders of a .jsonl or .json (perhaps .gz), .csv, .tsv or .parquet file, in order.

    Fields: `machine` (or `llm`, `sampled`), optionally `mixed`, and `human` (or `original`); or, except in CSV,
    `levels`, a list of texts of which the first is the most machine-like; and optionally `group`. Others are ignored.
    ReMoDetect's own files are read too: a .json file that is one object of two equally long lists, `original` and
    `sampled`.

    Args:
        rejects: bad rows are appended to it and reading goes on.

    Raises:
        DataError: a file that cannot be read or has no usable row; without `rejects`, the first bad row.
    """
    lists = _two_lists(Path(path))
    reader = None if lists is None else Reader("pair", lambda *_: enumerate(lists, 1), dict, json.dumps)
    return read_rows(path, ladder_of, "ladders", COLUMNS, rejects=rejects, reader=reader)


def ladder_of(fields: dict[str, Any]) -> Ladder:
    """Return the ladder in a row's fields; Problem if there is none."""
    texts = _levels(fields) if fields.get("levels") is not None else _sides(fields)
    for field, text in texts:
        if not text.strip():
            raise Problem(field, "the text is empty; write one or remove the row")
    seen: dict[str, str] = {}
    for field, text in texts:
        if (other := seen.setdefault(text, field)) != field:
            raise Problem(field, f"the text equals that of {other}, so neither can come first; remove the row")
    return Ladder(tuple(text for _, text in texts), optional_text(fields, "group") or "")


def level_names(levels: int) -> list[str]:
    """Return what the levels of a ladder are called: machine, mixed, human, or with more between "mixed 1 of 3", ..."""
    between = [f"mixed {number} of {levels - 2}" for number in range(1, levels - 1)]
    return ["machine", *(between if levels > 3 else ["mixed"] * len(between)), "human"]


def _levels(fields: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the texts of the field `levels`, each with the name that messages have for it."""
    levels = fields["levels"]
    if isinstance(levels, CsvCell):
        raise Problem("levels", "CSV cannot hold lists of texts; write them as JSON Lines or Parquet")
    if not isinstance(levels, list) or len(levels) < 2:
        raise Problem("levels", f"{short(levels)} is no list of two or more texts; write one, most machine-like first")
    if doubled := [name for name in (*MACHINE, "mixed", *HUMAN) if fields.get(name) is not None]:
        raise Problem(doubled[0], "the row has levels as well; leave one of them out")
    return [(f"levels[{i}]", text_of({f"levels[{i}]": text}, f"levels[{i}]")) for i, text in enumerate(levels)]


def _sides(fields: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the texts of machine, mixed and human, each with the name of its field."""
    mixed = optional_text(fields, "mixed")
    between = [] if mixed is None else [("mixed", mixed)]
    machine, human = (_only(fields, known) for known in (MACHINE, HUMAN))
    return [(machine, text_of(fields, machine)), *between, (human, text_of(fields, human))]


def _only(fields: dict[str, Any], known: Sequence[str]) -> str:
    """Return which of the names of a side a row has."""
    given = [name for name in known if fields.get(name) is not None]
    if not given:
        filled = {name: value for name, value in fields.items() if value is not None}
        raise Problem(known[0], f"the field is missing among {names(filled)}; {_SHAPE}")
    if len(given) > 1:
        raise Problem(given[1], f"the row has {given[0]} as well; leave one of them out")
    return given[0]


# ReMoDetect's own files


def _two_lists(path: Path) -> list[dict[str, Any]] | None:
    """Return the pairs of a file in ReMoDetect's own form; None if it is not one, or cannot be read.

    Raises:
        DataError: its two sides are no lists of the same length.
    """
    if not path.name.lower().endswith((".json", ".json.gz")) or not path.is_file():
        return None
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            whole = json.load(file)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return None  # one object a line, or what reading it so has a sentence for
    if not isinstance(whole, dict) or not {"original", "sampled"} <= whole.keys():
        return None
    sides = whole["sampled"], whole["original"]
    if all(isinstance(side, str) for side in sides):
        return None  # a single row
    if not all(isinstance(side, list) for side in sides) or len(sides[0]) != len(sides[1]):
        sizes = " and ".join(str(len(side)) if isinstance(side, list) else short(side) for side in sides)
        raise DataError(f"{path} has {sizes} as sampled and original; write two lists of the same length")
    return [{"sampled": machine, "original": human} for machine, human in zip(*sides, strict=True)]
