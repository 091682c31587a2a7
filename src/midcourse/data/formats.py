"""Read files of rows: JSON Lines or an array of JSON (also gzipped), CSV and Parquet, for every kind of row.

A kind of row is a function from fields to what they are. What is wrong with a row is said in one form:

    FILE, line N, field F: what is wrong; what to do
"""

import codecs
import contextlib
import csv
import glob
import gzip
import json
import math
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

from midcourse.errors import MidcourseError
from midcourse.files import write_text
from midcourse.lm.prompt import Message, Prompt

# (path, folder for a cache, columns that matter) -> the rows of a table.
TableLoader: TypeAlias = Callable[[str, str, Sequence[str]], Iterator[dict[str, Any]]]
# How messages begin that are stored as text, as tables without nested columns have them: one of JSON's or Python's.
_MESSAGES_AS_TEXT = re.compile(r"\s*(array\()?(\[\s*)?\{\s*['\"]")
_PRINTED = re.compile(r"\s*(array\()?\[?\s*\{\s*['\"].*['\"](content|value)['\"]\s*:", re.DOTALL)
# What stands beside a prompt in other tools' rows, and changes what a model is asked.
BESIDE_PROMPT = ("system", "system_prompt", "tools", "chat_template_kwargs", "images", "image", "documents")
# What a message may have beside its content that a template would render, and that no text of a response can hold.
_BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
# ShareGPT's names of the roles.
_ROLES = {"human": "user", "gpt": "assistant"}

Item = TypeVar("Item")
Renamed: TypeAlias = Mapping[str, str]  # the names of fields here -> theirs in the file


class DataError(MidcourseError):
    """A file of rows, or a row of it, that cannot be used."""


class Problem(Exception):
    """What is wrong with a row, and in which field ("row" if it is the row itself)."""

    def __init__(self, field: str, text: str):
        super().__init__(text)
        self.field = field

    def at(self, path: Path, unit: str, number: int) -> str:
        """Say where it is: the beginning of the one form that messages about rows have."""
        field = "" if self.field == "row" else f", field {self.field}"
        return f"{path}, {unit} {number}{field}: {self}"


@dataclass(frozen=True)
class BadRow:
    """A row that was left out: its number from 1 (a line of JSON Lines, a row of a table), field, text and file."""

    line: int
    field: str
    problem: str
    row: str
    file: str = ""


class CsvCell(str):
    """A cell of CSV: a text, from which numbers and booleans are read. A blank one may count as absent."""


def read_rows(
    path: str | Path,
    parse: Callable[[dict[str, Any]], Item],
    what: str,
    columns: Sequence[str],
    *,
    limit: Callable[[Any], str | None] | None = None,
    rejects: list[BadRow] | None = None,
    reader: "Reader | None" = None,
    numbers: list[int] | None = None,
    renamed: Renamed | None = None,
) -> list[Item]:
    """Return the parsed rows of a file, or of the files of a folder or a pattern one after another, in order.

    Args:
        parse: turns fields into what they are, or raises Problem.
        what: what the rows are called in messages.
        columns: the fields that matter: of CSV and Parquet only these columns are read.
        limit: says what is wrong with the length of a row, or None.
        rejects: bad rows are appended to it and reading goes on.
        reader: how the file is read, if its name does not say.
        numbers: where each of the rows stands in the file, from 1, is appended to it.
        renamed: fields that the file has by other names.

    Raises:
        DataError: a file that cannot be read or has no usable row; without `rejects`, the first bad row.
    """
    kept: list[Item] = []
    first = None
    columns = [*columns, *((*BESIDE_PROMPT, "input") if "prompt" in columns else ()), *(renamed or {}).values()]
    for file in files_of(path):
        how = reader or _reader(file, what)
        for number, row in how.rows(file, columns):
            try:
                kept.append(_within(limit, parse(_by_our_names(how.fields(row), renamed))))
                if numbers is not None:
                    numbers.append(number)
            except Problem as problem:
                message = problem.at(file, how.unit, number)
                if rejects is None:
                    raise DataError(f"{message} (--skip-bad-rows leaves bad rows out)") from None
                rejects.append(BadRow(number, problem.field, str(problem), how.text(row), str(file)))
                first = first or message
    if not kept:
        why = f"has no usable row, the first bad one being {first}" if first else f"has no rows; add {what} to it"
        raise DataError(f"{path} {why}")
    return kept


def files_of(path: str | Path) -> list[Path]:
    """Return the files that a path names: itself, those of a folder in the formats here, or those of a pattern ("*").

    Raises:
        DataError: a folder or a pattern without such files, or a folder with files of several formats.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "dataset_info.json").is_file() and list(path.glob("*.arrow")):
            raise DataError(f"the folder {path} is one of save_to_disk; write it anew with the data set's to_parquet")
        found = sorted(one for one in path.iterdir() if one.is_file() and _ending(one) and one.name[0] != ".")
        endings = {_ending(one) for one in found}
        if len(endings) != 1:
            which = f"files of several formats ({', '.join(map(str, endings))})" if endings else "no file of rows"
            raise DataError(f"the folder {path} has {which}; name one, or a pattern such as '{path}/*.jsonl'")
        return found
    if path.exists() or not any(letter in str(path) for letter in "*?["):
        return [path]
    found = sorted(Path(one) for one in glob.glob(str(path), recursive=True))
    if not found:
        raise DataError(f"no file matches {path}; check the pattern")
    return found


def _by_our_names(fields: dict[str, Any], renamed: Renamed | None) -> dict[str, Any]:
    """Return a row with the names of its fields that are known here; Problem if one that is named is missing."""
    if not renamed:
        return fields
    if renamed.get("prompt") == "instruction" and (more := fields.get("input")) and str(more).strip():
        raise Problem("input", f"{short(more)} belongs to the instruction (Alpaca's format); join both into one prompt")
    for ours, theirs in renamed.items():
        if theirs not in fields:
            raise Problem(theirs, f"the field is missing among {names(fields)}; it is to be the {ours}")
    others = {name: value for name, value in fields.items() if name not in renamed.values()}
    return {**others, **{ours: fields[theirs] for ours, theirs in renamed.items()}}


def field_names(path: str | Path, columns: Sequence[str], renamed: Renamed | None = None) -> set[str]:
    """Return the fields of a file's first row, of a table those among `columns`; none if they cannot be read."""
    try:
        path = files_of(path)[0]
        reader = _reader(path, "rows")
        _, row = next(reader.rows(path, [*columns, *(renamed or {}).values()]))
        return set(_by_our_names(reader.fields(row), renamed))
    except (DataError, Problem, StopIteration):
        return set()


def _within(limit: Callable[[Any], str | None] | None, item: Item) -> Item:
    if limit is not None and (problem := limit(item)) is not None:
        raise Problem("prompt", problem)
    return item


def check_bad_rows_file(path: str | Path) -> None:
    """Raise DataError if something else than an earlier call's bad rows is at `path`, such as the rows themselves."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file for --skip-bad-rows")
    if not path.exists():
        return
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        ours = all(isinstance(row, dict) and row.keys() == BadRow.__annotations__.keys() for row in rows)
    except (OSError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise DataError(f"{path} is there and holds no bad rows of an earlier call; name another for --skip-bad-rows")


def write_bad_rows(path: str | Path, rejects: Iterable[BadRow]) -> None:
    """Write the rows that were left out to `path`, one JSON object a line; its folder is made if it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(asdict(bad), ensure_ascii=False) + "\n" for bad in rejects))


# ---- fields ----


def prompt_of(fields: dict[str, Any]) -> Prompt:
    """Return the prompt: a text, or a list of messages that is not empty."""
    if "prompt" not in fields:
        raise Problem("prompt", f"the field is missing among {names(fields)}; each row needs a prompt")
    check_beside_prompt(fields)
    prompt = text_or_messages(fields, "prompt")
    if not isinstance(prompt, str) and not prompt:
        raise Problem("prompt", "the list of messages is empty; write a message or leave the field out")
    return prompt


def check_beside_prompt(fields: dict[str, Any]) -> None:
    """Raise Problem if a row has something beside its prompt that would change what a model is asked."""
    for field in BESIDE_PROMPT:
        value = fields.get(field)
        if value and not (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null", "None")):
            remedy = "write it as the prompt's first message" if field.startswith("system") else "remove it or the row"
            raise Problem(field, f"{short(value)} stands beside the prompt, and is no part of it; {remedy}")


def text_of(fields: dict[str, Any], field: str) -> str:
    """Return a field that is a text."""
    value = fields[field]
    if not isinstance(value, str):
        raise Problem(field, f"{short(value)} is not a text; write one")
    if _messages_in_text(field, value) is not None:
        raise Problem(field, f"{short(value)} is a list of messages, and one text is due; write its content")
    return _whole(field, value)


def text_or_messages(fields: dict[str, Any], field: str) -> str | list[Message]:
    """Return a field that is a text, a message, or a list of messages: {role, content}, or ShareGPT's {from, value}."""
    value = fields[field]
    if isinstance(value, str):
        value = value if (messages := _messages_in_text(field, value)) is None else messages
    if isinstance(value, dict):
        roles, contents = value.get("role"), value.get("content")
        if isinstance(roles, list) and isinstance(contents, list) and len(roles) == len(contents):
            # As datasets stores sequences of messages.
            value = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        else:
            value = [value]
    if isinstance(value, list):
        return [_message(field, number, message) for number, message in enumerate(value, 1)]
    if not isinstance(value, str):
        raise Problem(field, f"{short(value)} is neither a text nor a list of messages; write one of them")
    return _whole(field, value)


def response_in(field: str, message: Message) -> str:
    """Return the text of an assistant's message; Problem if it has more than a text."""
    beside = [name for name in _BESIDE_CONTENT if message.get(name)]
    if beside:
        raise Problem(field, f"the response has {beside[0]} beside its content, which is no text of it; leave it out")
    return message["content"]


def _messages_in_text(field: str, text: str) -> list[Any] | None:
    """Return messages, or one, that are stored as a text of JSON; None if it is a text like any other."""
    if not _MESSAGES_AS_TEXT.match(text):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        if not (_PRINTED.match(text) and re.search(r"['\"](role|from)['\"]\s*:", text)):
            return None
        raise Problem(
            field, f"{short(text)} looks like messages, and is no JSON; write them as a list or as JSON"
        ) from None
    if isinstance(found, dict) and found.keys() == {"messages"}:
        found = found["messages"]
    messages = found if isinstance(found, list) else [found]
    return messages if messages and all(map(_is_message, messages)) else None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def flag(fields: dict[str, Any], field: str) -> bool:
    """Return a field that is true unless it says false."""
    value = _given(fields, field)
    if isinstance(value, CsvCell):
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower(), value)
    if value is not None and not isinstance(value, bool):
        raise Problem(field, f"{short(value)} is not a boolean; write true or false or leave it out")
    return value is not False


def number_of(fields: dict[str, Any], field: str, remedy: str) -> float | None:
    """Return a field that is a finite number, or a boolean as 1 or 0; None if it is absent.

    Args:
        remedy: what to do about anything else.
    """
    value = _given(fields, field)
    if value is None:
        return None
    if isinstance(value, CsvCell):
        value = {"true": True, "false": False}.get(value.strip().lower(), value)
    try:
        if isinstance(value, CsvCell | int | float | Decimal):
            number = float(value)
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):  # a cell of other text, an integer beyond all floats
        pass
    raise Problem(field, f"{short(value)} is not a finite number; {remedy}")


def optional_text(fields: dict[str, Any], field: str, *, blank: bool = False) -> str | None:
    """Return a field that is a text; None if it is absent.

    Args:
        blank: a blank cell of a table is a text, and not absent.
    """
    value = fields.get(field) if blank else _given(fields, field)
    if value is not None and not isinstance(value, str):
        raise Problem(field, f"{short(value)} is not a text; write one or leave it out")
    return None if value is None else _whole(field, value)


def _given(fields: dict[str, Any], field: str) -> Any:
    """Return the value of a field, None if it is absent: a table has every column in every row."""
    value = fields.get(field)
    return None if isinstance(value, CsvCell) and not value.strip() else value


def _message(field: str, number: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise Problem(field, f"message {number} is {short(message)}; write it as {{role, content}}")
    message = _named_by_openai(message)
    content = message.get("content")
    if isinstance(content, list):
        content = _text_of_parts(field, number, content)
    for part, text in (("role", message.get("role")), ("content", content)):
        if not isinstance(text, str):
            raise Problem(field, f"message {number} has the {part} {short(text)}; write a text")
    # A table has every field in every message; what is absent from one is None there.
    others = {name: value for name, value in message.items() if name not in ("role", "content") and value is not None}
    try:
        json.dumps(others, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Problem(field, f"message {number} has fields that are no JSON ({error}); leave them out") from None
    return {"role": _whole(field, message["role"]), "content": _whole(field, str(content)), **others}


def _named_by_openai(message: dict[str, Any]) -> dict[str, Any]:
    """Return one of ShareGPT's messages, {from, value}, as {role, content}; any other as it is."""
    if not {"from", "value"} <= message.keys() or message.keys() & {"role", "content"}:
        return message
    others = {name: value for name, value in message.items() if name not in ("from", "value")}
    role = message["from"]
    return {"role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": message["value"], **others}


def _text_of_parts(field: str, number: int, parts: list[Any]) -> str:
    """Return the text of a message whose content is a list of parts, [{"type": "text", "text": ...}]."""
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        other = next(part for part, text in zip(parts, texts, strict=True) if not isinstance(text, str))
        raise Problem(field, f"message {number} has the part {short(other)}; only parts of text are read")
    return "".join(map(str, texts))


def _whole(field: str, text: str) -> str:
    """Return the text as a plain str. JSON can spell half a surrogate pair ("\\ud83d"), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Problem(field, f"character {error.start + 1} is half a surrogate pair; write it whole") from None
    return str(text)


def names(fields: Iterable[str]) -> str:
    """Return some of the fields there are, for a message."""
    return ", ".join(short(name) for name in list(fields)[:8]) or "no fields"


def short(value: Any) -> str:
    """Return a value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


# ---- files: formats to numbered rows ----


class Reader(NamedTuple):
    """How one format is read: numbered raw rows, the fields of one, and its text for people."""

    unit: str
    rows: Callable[[Path, Sequence[str]], Iterator[tuple[int, Any]]]
    fields: Callable[[Any], dict[str, Any]]
    text: Callable[[Any], str]


def _reader(path: Path, what: str) -> Reader:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from None
    ending = _ending(path)
    if ending is None:
        raise DataError(f"{path} has an unknown extension; use one of: {', '.join(FORMATS)}")
    if not size:
        raise DataError(f"{path} is empty; add {what} to it")
    return _ARRAYS[ending] if ending in _ARRAYS and _is_array(path, ending) else FORMATS[ending]


def _ending(path: Path) -> str | None:
    """Return the ending by which a file's format is known; None if it has none of them."""
    return next((ending for ending in FORMATS if path.name.lower().endswith(ending)), None)


def _check_encoding(path: Path, begin: bytes) -> None:
    """Raise DataError if a text file begins as UTF-16 or UTF-32 does."""
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or begin[:4] == codecs.BOM_UTF32_BE:
        raise DataError(f"{path} is UTF-16 or UTF-32, as Excel and PowerShell write; save it as UTF-8")


def _lines(path: Path, columns: Sequence[str], *, opener: Callable[..., Any]) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines without their ends; blank ones are counted but left out, and no field is."""
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    _check_encoding(path, line)
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); check its permissions or write it again") from error


def _is_array(path: Path, ending: str) -> bool:
    """Return whether a file of JSON is one array, and not an object a line."""
    opener: Callable[..., Any] = gzip.open if ending.endswith(".gz") else open
    with contextlib.suppress(OSError, EOFError, zlib.error), opener(path, "rb") as file:
        return file.read(1 << 16).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
    return False  # whoever reads it says what is wrong with it


def _array(path: Path, columns: Sequence[str], *, opener: Callable[..., Any]) -> Iterator[tuple[int, bytes]]:
    """Yield the numbered items of a file that is one array of JSON, each as a line of JSON."""
    try:
        with opener(path, "rb") as file:
            rows = json.loads(file.read().removeprefix(codecs.BOM_UTF8))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); check its permissions or write it again") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is a damaged array of JSON ({short(str(error))}); write it again") from error
    for number, row in enumerate(rows, 1):
        yield number, json.dumps(row).encode()


def _open_gzip(path: Path, mode: str) -> Any:
    # Its checksum stands at the end: without this pass, broken data would first show as a bad row.
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass
    return gzip.open(path, mode)


def json_fields(line: bytes) -> dict[str, Any]:
    """Return the fields of a line; Problem if it is no JSON object."""
    try:
        fields = json.loads(_utf8("row", line))
    except json.JSONDecodeError as error:
        problem = f"not JSON ({error.msg} at column {error.colno})"
        raise Problem("row", f"{problem}; write one object a line") from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, brackets in thousands
        raise Problem("row", f"not usable JSON ({short(str(error))}); write one object a line") from None
    if not isinstance(fields, dict):
        raise Problem("row", f"{short(fields)} is not an object; write one object a line")
    return fields


def _json_text(line: bytes) -> str:
    return line.decode(errors="backslashreplace")


def _utf8(field: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} is 0x{data[error.start]:02x}"
        raise Problem(field, f"not UTF-8 ({byte}); save the file as UTF-8") from None


def _table_rows(
    path: Path, columns: Sequence[str], *, kind: str, load: TableLoader, remedy: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    from datasets.exceptions import DatasetsError

    try:
        yield from enumerate(_table(path, load, columns), 1)
    except (DatasetsError, ValueError, OSError, NotImplementedError) as error:
        # What datasets says of a table with a header and no row; the caller reports that there are none.
        if "corresponds to no data" not in str(error):
            reason = " ".join(str(error.__cause__ or error).split())
            raise DataError(f"{path} cannot be read as {kind} ({reason}); {remedy}") from error


def _table(path: Path, load: TableLoader, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, of the columns that matter."""
    with tempfile.TemporaryDirectory() as folder, _quiet_datasets():
        # A link with a plain name: datasets takes "pairs[1].csv" for a pattern.
        link = Path(folder) / f"rows{path.suffix.lower()}"
        link.symlink_to(path.resolve())
        yield from load(str(link), folder, columns)


def _load_parquet(path: str, cache: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    with ParquetFile(path) as file:
        # Only what is needed is looked at: a column beside it may be of a kind that cannot be read.
        wanted = _wanted(file.schema_arrow.names, columns)
        for batch in file.iter_batches(batch_size=1000, columns=wanted):
            yield from batch.to_pylist()


def _wanted(there: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return those of a table's columns that matter; ValueError if none does."""
    if wanted := [name for name in there if name in columns]:
        return wanted
    raise ValueError(f"its columns are {names(there)}, none of {', '.join(columns[:5])}")


def _load_csv(path: str, cache: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    from datasets import Dataset

    with open(path, "rb") as file:
        _check_encoding(Path(path), file.read(4))
    separator, header = _header(path, columns)
    names = [name.strip() for name in header]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"its header names {twice[0]!r} twice")
    plain = separator == "\t" and _is_plain(path, len(names))
    table = Dataset.from_csv(
        path,
        cache_dir=cache,
        keep_in_memory=True,
        sep=separator,
        names=names,
        header=0,
        # Each cell as it stands: "NA" and "1.0" are texts too.
        converters=dict.fromkeys(names, str),
        na_filter=False,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
        skipinitialspace=any(name[:1] == " " for name in header),  # "prompt, chosen", and so all its rows
        # One character a byte: a row that is not UTF-8 is then refused alone (see _csv_fields).
        encoding="latin-1",
    )
    if table.column_names != names:  # pandas made an index of the surplus, and shifted every cell
        raise ValueError("rows have more cells than the header has names")
    rows = table.select_columns(_wanted(names, columns))
    yield from ({name: _unquoted(cell) for name, cell in row.items()} for row in rows) if plain else rows


def _is_plain(path: str, cells: int) -> bool:
    """Return whether every line has that many cells between its tabs, so that quotes hold nothing together."""
    with open(path, "rb") as file:
        return all(line.count(b"\t") == cells - 1 for line in file if line.strip())


def _unquoted(cell: str) -> str:
    """Return a cell without the quotes around the whole of it, which some writers put there nevertheless."""
    return cell[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', cell) else cell


def _header(path: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    """Return what stands between a table's cells, the first in which its header has a column that matters; its names.

    Spreadsheets write semicolons where the comma is the mark of decimals, and tabs into .tsv.
    """
    import pandas

    found = {}
    for separator in (",", ";", "\t"):
        settings: dict[str, Any] = {"dtype": str, "na_filter": False, "encoding_errors": "backslashreplace"}
        header = pandas.read_csv(path, sep=separator, header=None, nrows=1, **settings)
        found[separator] = list(map(str, header.iloc[0]))
    named = ((mark, names) for mark, names in found.items() if {name.strip() for name in names} & {*columns})
    return next(named, (",", found[","]))


def _csv_fields(row: dict[str, str]) -> dict[str, Any]:
    return {name: CsvCell(_utf8(name, cell.encode("latin-1"))) for name, cell in row.items()}


def _csv_text(row: dict[str, str]) -> str:
    return _row_text({name: _json_text(cell.encode("latin-1")) for name, cell in row.items()})


def _row_text(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Keep datasets from showing progress bars and log lines; its settings are put back at the end."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    verbosity, had_bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    if had_bars:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            enable_progress_bars()


_LINES = Reader("line", partial(_lines, opener=open), json_fields, _json_text)
_GZIPPED_LINES = _LINES._replace(rows=partial(_lines, opener=_open_gzip))
_ARRAYS = {
    ".json": _LINES._replace(unit="row", rows=partial(_array, opener=open)),
    ".json.gz": _LINES._replace(unit="row", rows=partial(_array, opener=_open_gzip)),
}
_CSV_REMEDY = "put texts that hold commas, quotes or line ends between double quotes"
_CSV = partial(_table_rows, kind="CSV", load=_load_csv, remedy=_CSV_REMEDY)
_PARQUET = partial(_table_rows, kind="Parquet", load=_load_parquet, remedy="write it again")
FORMATS = {
    ".jsonl": _LINES,
    ".json": _LINES,
    ".jsonl.gz": _GZIPPED_LINES,
    ".json.gz": _GZIPPED_LINES,
    ".csv": Reader("row", _CSV, _csv_fields, _csv_text),
    ".tsv": Reader("row", _CSV, _csv_fields, _csv_text),
    ".parquet": Reader("row", _PARQUET, dict, _row_text),
}
