"""Texts to be told apart: files of many kinds in, each text with what is known about it."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from midcourse.data.formats import FORMATS, BadRow, DataError, Problem, optional_text, read_rows, short, text_of
from midcourse.detect.disguise import plain

Label: TypeAlias = Literal["human", "mixed", "machine"]
COLUMNS = ("text", "label", "group", "domain", "model", "human", "machine", "mixed", "llm")
# What other data sets call them.
_LABELS: dict[Any, Label] = {
    "human": "human", "machine": "machine", "llm": "machine", "ai": "machine", "mixed": "mixed",
    0: "human", 1: "machine", "0": "human", "1": "machine",
}  # fmt: skip
_SIDES: dict[str, Label] = {"human": "human", "mixed": "mixed", "machine": "machine", "llm": "machine"}
PLAIN_TEXT = (".txt", ".md", ".text", "")


@dataclass(frozen=True)
class LabelledText:
    """A text, who wrote it, and what it belongs to.

    Attributes:
        label: who wrote it; None if nobody says. A mixed text is partly a person's, partly a machine's.
        group: texts that must stay together, such as a prompt's; "" if it stands alone.
        domain: what kind of text it is, such as news.
        model: the language model that wrote it.
        name: where it stands, for messages.
    """

    text: str
    label: Label | None = None
    group: str = ""
    domain: str = ""
    model: str = ""
    name: str = ""

    @property
    def prompt(self) -> str:
        """Return "": a text stands alone."""
        return ""

    @property
    def responses(self) -> tuple[str, ...]:
        """Return the text."""
        return (self.text,)


def check_labels(texts: Iterable[LabelledText]) -> None:
    """Raise DataError if a text is labelled as a person's and as a machine's."""
    known: dict[str, LabelledText] = {}
    for text in texts:
        other = known.setdefault(plain(text.text).text, text)
        if other.label != text.label:
            places = " and ".join(one.name for one in (other, text) if one.name)
            raise DataError(
                f"{short(text.text)} is labelled {other.label} and {text.label}{f' ({places})' if places else ''}; "
                "give each text one label"
            )


def read_texts(source: str | Path, *, rejects: list[BadRow] | None = None) -> list[LabelledText]:
    """Read texts from a file, a folder of files, or standard input ("-").

    A .txt or .md file is one text, and so is standard input, which must be no rows. JSON Lines (also gzipped), CSV and
    Parquet have rows with a field `text` and optionally `label` (human or 0; mixed; machine, llm, ai or 1), `domain`,
    `model` and `group`; or with the fields `human` and `machine` (or `llm`), perhaps `mixed`, whose texts belong
    together. Of a folder every such file is read, in the order of their names; see `passed_over`.

    Args:
        rejects: bad rows are appended to it and reading goes on.

    Raises:
        DataError: what cannot be read, is no text, or holds none; without `rejects`, the first bad row.
    """
    if str(source) == "-":
        text = _plain_text(sys.stdin.buffer.read(), "standard input")
        if _is_row(text.text):
            raise DataError("standard input holds rows, and is read as one text; name a file of them instead of -")
        return [text]
    if not str(source):
        raise DataError("no file of texts is named; name one, a folder, or - for standard input")
    path = Path(source)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file() and _readable(file)]
        if not files:
            raise DataError(f"{path} has no file of texts; put some of these in it: .txt, .md, {', '.join(FORMATS)}")
        return [text for file in files for text in read_texts(file, rejects=rejects)]
    if not _of_rows(path) and path.suffix.lower() in PLAIN_TEXT:
        try:
            return [_plain_text(path.read_bytes(), str(path))]
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from None
    numbers: list[int] = []
    rows = read_rows(path, _texts_of, "texts", COLUMNS, rejects=rejects, numbers=numbers)
    return [text for number, row in zip(numbers, rows, strict=True) for text in _placed(row, f"{path}, row {number}")]


def passed_over(source: str | Path) -> list[str]:
    """Return the names of what `read_texts` does not read in a folder: other files, and folders."""
    folder = Path(source)
    if str(source) == "-" or not folder.is_dir():
        return []
    return [path.name for path in sorted(folder.iterdir()) if not (path.is_file() and _readable(path))]


def of_label(texts: Iterable[LabelledText], label: Label) -> list[LabelledText]:
    """Return the texts with that label."""
    return [text for text in texts if text.label == label]


def groups_of(texts: Sequence[LabelledText]) -> list[str]:
    """Return one name per text, the same for those that must stay together."""
    return [text.group or f"\0{number}" for number, text in enumerate(texts)]


def _placed(row: Sequence[LabelledText], name: str) -> list[LabelledText]:
    """Give the texts of a row its name; if there are several, they belong together."""
    return [replace(text, name=name, group=text.group or (name if len(row) > 1 else "")) for text in row]


def _texts_of(fields: dict[str, Any]) -> list[LabelledText]:
    about = {name: optional_text(fields, name) or "" for name in ("group", "domain", "model")}
    if "text" in fields:
        both = [name for name in _SIDES if fields.get(name)]
        if both:
            raise Problem("text", f"stands beside {both[0]}; give a row one text with a label, or texts of both kinds")
        return [LabelledText(filled(fields, "text"), _label(fields), **about)]
    sides = [name for name in _SIDES if fields.get(name)]
    if not sides:
        raise Problem("text", f"the field is missing; each row needs a text, or a {' or '.join(_SIDES)} text")
    return [LabelledText(filled(fields, name), _SIDES[name], **about) for name in sides]


def filled(fields: dict[str, Any], field: str) -> str:
    """Return a field that is a text; Problem if it is empty."""
    text = text_of(fields, field)
    if not text.strip():
        raise Problem(field, "the text is empty; write one or leave the row out")
    return text


def _label(fields: dict[str, Any]) -> Label | None:
    value = fields.get("label")
    if value is None or value == "":
        return None
    known = value.strip().lower() if isinstance(value, str) else value
    if isinstance(known, bool) or not isinstance(known, str | int) or known not in _LABELS:
        raise Problem("label", f"{short(value)} is unknown; write human, mixed or machine, or leave it out")
    return _LABELS[known]


def _is_row(text: str) -> bool:
    """Say whether a text begins with a row of JSON Lines that has a text."""
    try:
        row = json.loads(text.strip().partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and bool(row.keys() & {"text", *_SIDES})


def _of_rows(path: Path) -> bool:
    return any(path.name.lower().endswith(ending) for ending in FORMATS)


def _readable(path: Path) -> bool:
    return not path.name.startswith(".") and (_of_rows(path) or path.suffix.lower() in PLAIN_TEXT)


def _plain_text(data: bytes, name: str) -> LabelledText:
    if b"\0" in data:
        raise DataError(f"{name} is no text: it holds the byte 0; give a text file in UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = f"byte {error.start + 1} is 0x{data[error.start]:02x}"
        raise DataError(f"{name} is not UTF-8 ({at}); save it as UTF-8") from None
    if not text.strip():
        raise DataError(f"{name} is empty; give a text")
    return LabelledText(text, name=name)
