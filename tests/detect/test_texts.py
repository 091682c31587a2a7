import io
import json
import sys

import pytest

from midcourse.data.formats import DataError
from midcourse.detect.texts import LabelledText, groups_of, of_label, read_texts


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_plain_file_is_one_text(tmp_path, monkeypatch):
    path = tmp_path / "letter.txt"
    path.write_bytes(b"\xef\xbb\xbfDear all,\n\nThe ferry was late.\n")
    assert read_texts(path) == [LabelledText("Dear all,\n\nThe ferry was late.\n", name=str(path))]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Ein Brief, später.".encode())))
    assert read_texts("-") == [LabelledText("Ein Brief, später.", name="standard input")]


def test_rows_of_texts_with_what_is_known_about_them(tmp_path):
    path = lines(
        tmp_path / "texts.jsonl",
        {"text": "One.", "label": "human", "domain": "news", "group": "g1"},
        {"text": "Two.", "label": "llm", "model": "m", "more": 1},
        {"text": "Three.", "label": 1},
        {"text": "Four."},
    )
    texts = read_texts(path)
    assert [text.label for text in texts] == ["human", "machine", "machine", None]
    assert [text.name for text in texts] == [f"{path}, row {i}" for i in range(1, 5)]
    assert (texts[0].domain, texts[0].group) == ("news", "g1")
    assert of_label(texts, "machine") == texts[1:3]
    assert len(set(groups_of(texts))) == 4


def test_texts_of_one_row_belong_together(tmp_path):
    path = lines(
        tmp_path / "pairs.jsonl",
        {"human": "One.", "llm": "Uno.", "domain": "news"},
        {"human": "Two.", "mixed": "Two, due.", "machine": "Due.", "group": "own"},
    )
    texts = read_texts(path)
    assert [text.label for text in texts] == ["human", "machine", "human", "mixed", "machine"]
    first, second, *others = groups_of(texts)
    assert first == second
    assert set(others) == {"own"}


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden.txt").write_text("hidden")
    lines(tmp_path / "c.jsonl", {"text": "third"}, {"text": "fourth"})
    assert [text.text for text in read_texts(tmp_path)] == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "is empty; give a text"),
        ("a.txt", b" \n\n", "is empty; give a text"),
        ("a.txt", b"caf\xe9", "is not UTF-8 (byte 4 is 0xe9); save it as UTF-8"),
        ("a.txt", b"\x7fELF\0\1", "is no text: it holds the byte 0; give a text file in UTF-8"),
        ("a.pdf", b"%PDF", "has an unknown extension"),
        ("a.jsonl", b"", "is empty; add texts to it"),
        ("a.jsonl", b'{"text": " "}\n', "line 1, field text: the text is empty; write one or leave the row out"),
        ("a.jsonl", b'{"words": "a"}\n', "line 1, field text: the field is missing"),
        ("a.jsonl", b'{"text": "a", "label": "robot"}\n', "field label: 'robot' is unknown; write human, mixed or"),
        ("a.jsonl", b'{"text": "a", "label": true}\n', "field label: True is unknown"),
        ("a.jsonl", b'{"text": 5}\n', "field text: 5 is not a text; write one"),
    ],
)
def test_what_is_no_text_is_refused_in_a_sentence(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as refusal:
        read_texts(path)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_texts(tmp_path / "nothing.txt")
    with pytest.raises(DataError, match="has no file of texts"):
        read_texts(tmp_path)


def test_bad_rows_can_be_left_out(tmp_path):
    path = lines(tmp_path / "texts.jsonl", {"text": "One."}, {"text": ""}, {"text": "Three."})
    rejects = []
    assert [text.text for text in read_texts(path, rejects=rejects)] == ["One.", "Three."]
    assert [bad.line for bad in rejects] == [2]
