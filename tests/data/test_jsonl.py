"""Rows on disk: found again, torn lines dropped, other people's files left alone."""

import json

import pytest

from midcourse.data.formats import Problem
from midcourse.data.jsonl import RowFileError, append_row, appending, kept_rows, keys_alone, written_rows


def key_of(row: dict) -> int:
    if row["number"] > 9:
        raise Problem("row", "has a large number")
    return row["number"]


def test_rows_are_found_again_and_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"number": 1, "text": "żółć \u2028 \r\n \x00 🙂"}, {"number": 0, "text": ""}]
    with path.open("ab") as file:
        for row in rows:
            append_row(file, row)
            assert path.read_bytes().endswith(b"\n")  # nothing waits in a buffer
    whole = path.read_bytes()
    for torn in (b"", b"{", whole[:30], "żó".encode()[:-1]):
        path.write_bytes(whole + torn)
        assert list(written_rows(path, True, key_of).values()) == rows
        assert path.read_bytes() == whole + torn  # whoever writes it may go on
        with appending(path) as file:
            append_row(file, {"number": 2})
        assert path.read_bytes() == whole + b'{"number": 2}\n'


def test_a_torn_line_may_be_long(tmp_path):
    path = tmp_path / "rows.jsonl"
    for whole in (b'{"number": 1}\n', b""):
        path.write_bytes(whole + b'{"number": 2, "text": "' + b"a" * 200_000)
        assert list(written_rows(path, True, key_of)) == ([1] if whole else [])
        with appending(path):
            pass
        assert path.read_bytes() == whole


def test_no_more_of_a_row_is_kept_than_is_asked_for(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"number": 1, "text": "a"}\n{"number": 2, "text": "b"}\n')
    assert kept_rows(path, True, key_of, lambda row: row["text"]) == {1: "a", 2: "b"}
    assert kept_rows(path, True, key_of, keys_alone) == {1: None, 2: None}


def test_what_is_not_there_holds_nothing(tmp_path):
    assert written_rows(tmp_path / "none", False, key_of) == {}
    (tmp_path / "empty").touch()
    assert written_rows(tmp_path / "empty", False, key_of) == {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"number": 10}', "line 1: has a large number; name another file"),
        ("[1]", "is no row of this run"),
        ("7", "is no row of this run"),
        ("{}", "is no row of this run"),
        ("not JSON", "is no row of this run"),
        ('{"number": "x"}', "is no row of this run"),
        ("[" * 100_000, "is no row of this run"),
    ],
)
def test_a_file_of_others_is_refused_and_stays_as_it_is(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n" + json.dumps({"number": 1}))  # its last line ends without a line end
    before = path.read_bytes()
    with pytest.raises(RowFileError, match=problem):
        written_rows(path, True, key_of)
    with pytest.raises(RowFileError, match="exists already; add --resume"):
        written_rows(path, False, key_of)
    assert path.read_bytes() == before
