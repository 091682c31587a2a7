"""Preference files to comparisons: (prompt, chosen, rejected), bad rows refused with file, line and field.

Reads JSON Lines (also gzipped), CSV and Parquet in the preference formats of TRL: texts or message lists, the prompt
in its own field or shared by both sides.
"""

import codecs
import contextlib
import gzip
import hashlib
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from midcourse.errors import MidcourseError
from midcourse.files import write_text
from midcourse.prompt import Message, Prompt, split_transcript

_FIELDS = ("prompt", "chosen", "rejected", "chosen_finished", "rejected_finished")
_MESSAGES_AS_TEXT = re.compile(r"\s*\[\s*\{\s*['\"](role|content)['\"]\s*:")


class ComparisonError(MidcourseError):
    """A preference file, or a row of it, that cannot be used."""


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt, and which of them is preferred.

    A response cut at a length limit is not finished: it gets no EOS and teaches nothing about ends.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    chosen_finished: bool = True
    rejected_finished: bool = True


@dataclass(frozen=True)
class BadRow:
    """A row that was left out: its 1-based number (line of JSON Lines, row of a table), the field, and its text."""

    line: int
    field: str
    problem: str
    row: str


def read_comparisons(
    path: str | Path,
    *,
    limit: Callable[[Comparison], str | None] | None = None,
    rejects: list[BadRow] | None = None,
) -> list[Comparison]:
    """The comparisons of a .jsonl, .json (one object a line), .jsonl.gz, .json.gz, .csv or .parquet file, in order.

    Fields: `chosen` and `rejected`, optionally `prompt`, `chosen_finished` and `rejected_finished` (true where
    absent); others are ignored. Each of the first three is a text or, except in CSV, a list of {role, content}. With
    `prompt`, a list in `chosen` or `rejected` is one assistant message. Without it the prompt is what both sides
    share: the messages before the last, the transcript ("\\n\\nHuman: ...\\n\\nAssistant: ...") up to its last
    "\\n\\nAssistant:", or the longest common beginning that ends with a whole word.

    `limit` says what is wrong with the length of a comparison, or None. With `rejects`, bad rows are appended to it
    and reading goes on.

    Raises:
        ComparisonError: a file that cannot be read or has no usable row; without `rejects`, the first bad row.
    """
    path = Path(path)
    reader = _reader(path)
    comparisons: list[Comparison] = []
    first = None
    for number, row in reader.rows(path):
        try:
            comparisons.append(_within(limit, _comparison(reader.fields(row))))
        except _Problem as problem:
            message = f"{path}, {reader.unit} {number}, {problem.field}: {problem}"
            if rejects is None:
                raise ComparisonError(f"{message} (--skip-bad-rows leaves bad rows out)") from None
            rejects.append(BadRow(number, problem.field, str(problem), reader.text(row)))
            first = first or message
    if not comparisons:
        why = f"has no usable row, the first bad one being {first}" if first else "has no rows; add comparisons to it"
        raise ComparisonError(f"{path} {why}")
    return comparisons


def write_bad_rows(path: str | Path, rejects: Iterable[BadRow]) -> None:
    """Write the rows that were left out to `path`, one JSON object a line; its folder is made where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(asdict(bad), ensure_ascii=False) + "\n" for bad in rejects))


def prompt_key(prompt: Prompt) -> str:
    """A prompt as one text, the same in every process: itself, or its messages as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(list(prompt), sort_keys=True, ensure_ascii=False)


def prompt_groups(comparisons: Sequence[Comparison]) -> list[str]:
    """What must stay together, one name per comparison: the prompt.

    Where the prompt is empty (edits, unconditional texts) it says nothing; there comparisons that share a text belong
    together, directly or through others, and the first of their texts in alphabetical order names them.
    """
    smaller: dict[str, str] = {}

    def root(text: str) -> str:
        while (other := smaller.setdefault(text, text)) != text:
            smaller[text] = text = smaller[other]
        return text

    for c in comparisons:
        if not prompt_key(c.prompt):
            low, high = sorted((root(c.chosen), root(c.rejected)))
            smaller[high] = low
    return [prompt_key(c.prompt) or root(c.chosen) for c in comparisons]


def split_by_prompt(
    comparisons: Sequence[Comparison], held_out: float, seed: int
) -> tuple[list[Comparison], list[Comparison]]:
    """(kept, held out) comparisons, each in the order given; no prompt is on both sides.

    `held_out` is a share of the distinct prompts; at least one goes to each side. Which ones depends on the seed and
    on the set of prompts, not on the order of rows.

    Raises:
        ComparisonError: fewer than two distinct prompts, or a share that is not between 0 and 1.
    """
    if not 0 < held_out < 1:
        raise ComparisonError(f"the held-out share is {held_out}; use a number between 0 and 1, such as 0.05")
    groups = prompt_groups(comparisons)
    prompts = set(groups)
    if len(prompts) < 2:
        raise ComparisonError(
            f"{len(prompts)} distinct prompts cannot be split into kept and held out; add comparisons of other prompts"
        )
    ordered = sorted(prompts, key=lambda key: (_digest([seed, key]), key))
    aside = set(ordered[: min(max(round(held_out * len(prompts)), 1), len(prompts) - 1)])
    sides: tuple[list[Comparison], list[Comparison]] = ([], [])
    for comparison, group in zip(comparisons, groups, strict=True):
        sides[group in aside].append(comparison)
    return sides


def fingerprint(comparisons: Iterable[Comparison]) -> str:
    """16 hexadecimal digits that name these comparisons in this order."""
    return _digest([asdict(comparison) for comparison in comparisons])[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class _Problem(Exception):
    """What is wrong with a row, and in which field ("row" where it is the row itself)."""

    def __init__(self, field: str, text: str):
        super().__init__(text)
        self.field = field


# ---- rows: fields to a comparison ----


def _within(limit: Callable[[Comparison], str | None] | None, comparison: Comparison) -> Comparison:
    if limit is not None and (problem := limit(comparison)) is not None:
        raise _Problem("prompt", problem)
    return comparison


def _comparison(fields: dict[str, Any]) -> Comparison:
    for side in ("chosen", "rejected"):
        if side not in fields:
            raise _Problem(side, f"the field is missing among {_names(fields)}; each row needs chosen and rejected")
    prompt, chosen, rejected = _explicit(fields) if "prompt" in fields else _implicit(fields)
    for side, response in (("chosen", chosen), ("rejected", rejected)):
        if not response.strip():
            raise _Problem(side, f"the response {_short(response)} is empty; write one or remove the row")
    if chosen == rejected:
        raise _Problem("rejected", f"the response {_short(rejected)} equals the chosen one; remove the row")
    return Comparison(prompt, chosen, rejected, _flag(fields, "chosen_finished"), _flag(fields, "rejected_finished"))


def _explicit(fields: dict[str, Any]) -> tuple[Prompt, str, str]:
    prompt = _value(fields, "prompt")
    if not isinstance(prompt, str) and not prompt:
        raise _Problem("prompt", "the list of messages is empty; write a message or leave the field out")
    return prompt, _response(fields, "chosen"), _response(fields, "rejected")


def _response(fields: dict[str, Any], side: str) -> str:
    value = _value(fields, side)
    if isinstance(value, str):
        return value
    remedy = "leave the prompt field out where chosen and rejected hold the whole conversation"
    return _one_assistant_message(side, value, remedy)


def _implicit(fields: dict[str, Any]) -> tuple[Prompt, str, str]:
    chosen, rejected = _value(fields, "chosen"), _value(fields, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_transcripts(chosen, rejected) or _split_texts(chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise _Problem("rejected", "one side is a text and the other a list of messages; write both in the same way")
    return _split_conversations(chosen, rejected)


def _split_conversations(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    shared = _shared_length(chosen, rejected)
    if chosen == rejected:
        raise _Problem("rejected", "the messages equal the chosen ones; remove the row")
    if not shared:
        raise _Problem("prompt", "chosen and rejected share no first message; add a prompt field")
    remedy = f"after the {shared} shared messages, which are the prompt, write the response"
    chosen_response = _one_assistant_message("chosen", chosen[shared:], remedy)
    return chosen[:shared], chosen_response, _one_assistant_message("rejected", rejected[shared:], remedy)


def _one_assistant_message(side: str, messages: list[Message], remedy: str) -> str:
    if [message["role"] for message in messages] != ["assistant"]:
        roles = ", ".join(_short(message["role"]) for message in messages[:4]) or "none"
        raise _Problem(side, f"{len(messages)} messages (roles: {roles}) where one of the assistant is due; {remedy}")
    return messages[0]["content"]


def _split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Prompt and responses where either side is a transcript."""
    one, other = split_transcript(chosen), split_transcript(rejected)
    if one is None and other is None:
        return None
    if one is None or other is None or one[0] != other[0]:
        raise _Problem(
            "prompt", "the transcripts differ before their last '\\n\\nAssistant:'; make their prompts equal"
        )
    return *one, other[1]


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The longest common beginning, cut back to the end of a word; its white space goes to the responses."""
    end = _shared_length(chosen, rejected)
    while end and not (chosen[end : end + 1].isspace() and rejected[end : end + 1].isspace()):
        end -= 1
    prompt = chosen[:end].rstrip()
    if not prompt:
        raise _Problem("prompt", "chosen and rejected share no first word; add a prompt field, empty if there is none")
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def _shared_length(left: Sequence, right: Sequence) -> int:
    pairs = zip(left, right, strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))


def _value(fields: dict[str, Any], field: str) -> str | list[Message]:
    value = fields[field]
    if isinstance(value, list):
        return [_message(field, number, message) for number, message in enumerate(value, 1)]
    if not isinstance(value, str):
        raise _Problem(field, f"{_short(value)} is neither a text nor a list of messages; write one of them")
    return _whole(field, value)


def _message(field: str, number: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise _Problem(field, f"message {number} is {_short(message)}; write it as {{role, content}}")
    for part in ("role", "content"):
        if not isinstance(message.get(part), str):
            raise _Problem(field, f"message {number} has the {part} {_short(message.get(part))}; write a text")
    return {part: _whole(field, message[part]) for part in ("role", "content")}


def _whole(field: str, text: str) -> str:
    # JSON can spell half a surrogate pair ("\ud83d"), which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Problem(field, f"character {error.start + 1} is half a surrogate pair; write it whole") from None
    return text


def _flag(fields: dict[str, Any], field: str) -> bool:
    value = fields.get(field)
    if value is not None and not isinstance(value, bool):
        raise _Problem(field, f"{_short(value)} is not a boolean; write true or false or leave it out")
    return value is not False


def _names(fields: Iterable[str]) -> str:
    return ", ".join(_short(name) for name in list(fields)[:8]) or "no fields"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


# ---- files: formats to numbered rows ----


class _Reader(NamedTuple):
    """How one format is read: numbered raw rows, the fields of one, and its text for people."""

    unit: str
    rows: Callable[[Path], Iterator[tuple[int, Any]]]
    fields: Callable[[Any], dict[str, Any]]
    text: Callable[[Any], str]


def _reader(path: Path) -> _Reader:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ComparisonError(f"{path} cannot be read ({error.strerror}); check the path") from None
    if path.is_dir():
        raise ComparisonError(f"{path} is a folder; name one file in it")
    ending = next((ending for ending in _READERS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise ComparisonError(f"{path} has an unknown extension; use one of: {', '.join(_READERS)}")
    if not size:
        raise ComparisonError(f"{path} is empty; add comparisons to it")
    return _READERS[ending]


def _lines(path: Path, opener: Callable[..., Any]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends; blank ones are counted but left out."""
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise ComparisonError(f"{path} cannot be read ({error}); check its permissions or write it again") from error


def _open_gzip(path: Path, mode: str) -> Any:
    # Its checksum stands at the end: without this pass, broken data would first show as a bad row.
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass
    return gzip.open(path, mode)


def _json_fields(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(_utf8("row", line))
    except json.JSONDecodeError as error:
        problem = f"not JSON ({error.msg} at column {error.colno})"
        raise _Problem("row", f"{problem}; write one object a line") from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, brackets in thousands
        raise _Problem("row", f"not usable JSON ({_short(str(error))}); write one object a line") from None
    if not isinstance(fields, dict):
        raise _Problem("row", f"{_short(fields)} is not an object; write one object a line")
    return fields


def _json_text(line: bytes) -> str:
    return line.decode(errors="backslashreplace")


def _utf8(field: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} is 0x{data[error.start]:02x}"
        raise _Problem(field, f"not UTF-8 ({byte}); save the file as UTF-8") from None


def _table_rows(
    path: Path, kind: str, load: Callable[[str, str], Any], remedy: str
) -> Iterator[tuple[int, dict[str, Any]]]:
    from datasets.exceptions import DatasetsError

    try:
        yield from enumerate(_table(path, load), 1)
    except (DatasetsError, ValueError, OSError, NotImplementedError) as error:
        # What datasets says of a table with a header and no row; the caller reports that there are none.
        if "corresponds to no data" not in str(error):
            reason = " ".join(str(error.__cause__ or error).split())
            raise ComparisonError(f"{path} cannot be read as {kind} ({reason}); {remedy}") from error


def _table(path: Path, load: Callable[[str, str], Any]) -> Any:
    """The columns of a table that matter, in memory."""
    with tempfile.TemporaryDirectory() as folder, _quiet_datasets():
        # A link with a plain name: datasets takes "pairs[1].csv" for a pattern.
        link = Path(folder) / f"rows{path.suffix.lower()}"
        link.symlink_to(path.resolve())
        table = load(str(link), folder)
        columns = [name for name in table.column_names if name in _FIELDS]
        if not columns:
            raise ValueError(f"its columns are {_names(table.column_names)}, none of {', '.join(_FIELDS)}")
        return table.select_columns(columns)


def _load_parquet(path: str, cache: str) -> Any:
    from datasets import Dataset

    # The batch size that datasets chooses for a table without rows is 0, which it then refuses.
    return Dataset.from_parquet(path, cache_dir=cache, keep_in_memory=True, batch_size=1000)


def _load_csv(path: str, cache: str) -> Any:
    import pandas
    from datasets import Dataset

    header = pandas.read_csv(path, nrows=0, encoding_errors="backslashreplace")
    names = list(header.columns)
    table = Dataset.from_csv(
        path,
        cache_dir=cache,
        keep_in_memory=True,
        names=names,
        header=0,
        # Each cell as it stands: "NA" and "1.0" are texts too.
        converters=dict.fromkeys(names, str),
        na_filter=False,
        # One character a byte: a row that is not UTF-8 is then refused alone (see _csv_fields).
        encoding="latin-1",
    )
    if table.column_names != names:  # pandas made an index of the surplus, and shifted every cell
        raise ValueError("rows have more cells than the header has names")
    return table


def _csv_fields(row: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {name: _utf8(name, cell.encode("latin-1")) for name, cell in row.items()}
    for name in fields.keys() & {"chosen_finished", "rejected_finished"}:
        fields[name] = {"true": True, "false": False, "": None}.get(fields[name].strip().lower(), fields[name])
    for name in ("prompt", "chosen", "rejected"):
        if _MESSAGES_AS_TEXT.match(fields.get(name, "")):
            raise _Problem(name, "CSV cannot hold lists of messages; write them as JSON Lines or Parquet")
    return fields


def _csv_text(row: dict[str, str]) -> str:
    return _row_text({name: _json_text(cell.encode("latin-1")) for name, cell in row.items()})


def _row_text(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    """No progress bars and no log lines from datasets; its settings are put back at the end."""
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


_LINES = _Reader("line", partial(_lines, opener=open), _json_fields, _json_text)
_GZIPPED_LINES = _LINES._replace(rows=partial(_lines, opener=_open_gzip))
_CSV_REMEDY = "put texts that hold commas, quotes or line ends between double quotes"
_CSV_ROWS = partial(_table_rows, kind="CSV", load=_load_csv, remedy=_CSV_REMEDY)
_PARQUET_ROWS = partial(_table_rows, kind="Parquet", load=_load_parquet, remedy="write it again")
_READERS = {
    ".jsonl": _LINES,
    ".json": _LINES,
    ".jsonl.gz": _GZIPPED_LINES,
    ".json.gz": _GZIPPED_LINES,
    ".csv": _Reader("row", _CSV_ROWS, _csv_fields, _csv_text),
    ".parquet": _Reader("row", _PARQUET_ROWS, dict, _row_text),
}
