"""Edits by a language model behind a server: which answers are taken, and going on after a stop."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from midcourse.data.chat import Answer
from midcourse.data.comparisons import Comparison
from midcourse.data.edits import read_edits
from midcourse.data.jsonl import RowFileError
from midcourse.edits.make import Editor, EditorError, Made, changed_share, failed_of, make_edits, read_edit
from tests.chat_server import KEY, Server, completion

COMPARISONS = [
    Comparison("When?", " At nine.", " It go at nine oclock sharp."),
    Comparison([{"role": "user", "content": "Where?"}], "There.", "Over their, by the old pier."),
    Comparison("Who?", "We.", "Nobody can be edited here."),
]
RIGHT = {"go": "goes", "oclock": "o'clock", "their": "there"}


def edited(request: dict[str, Any]) -> str:
    response = json.loads(request["messages"][1]["content"])["response"]
    return " ".join(RIGHT.get(word.strip(","), word) for word in response.split(" "))


def reply(request: dict[str, Any]) -> tuple[int, Any]:
    return 200, completion(f"A word is wrong.\n<edited>{edited(request)}</edited>\n")


@pytest.fixture
def served(request):
    server = Server(getattr(request, "param", reply))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_edits_are_made_and_what_failed_stands_apart(served, tmp_path):
    out = tmp_path / "edits.jsonl"
    summary = make_edits(COMPARISONS, Editor.at(served.url, "m"), out)
    assert summary == (2, 1, 3)
    first, second = sorted(rows(out), key=lambda row: row["row"])
    assert first["edited"] == " It goes at nine o'clock sharp." and first["reason"] == "A word is wrong."
    assert first["changed"] == pytest.approx(4 / 9)  # go, and o ' clock for oclock
    assert second["prompt"] == [{"role": "user", "content": "Where?"}] and second["editor"] == "m"
    (failed,) = rows(failed_of(out))
    assert failed["original"] == "Nobody can be edited here."
    assert failed["failed"] == "the edited response is the response itself"
    assert [edit.edited for edit in read_edits(out)] == [row["edited"] for row in rows(out)]
    assert len(served.requests) == 2 + 3  # what fails is asked about again
    temperatures = sorted(request["temperature"] for request in served.requests)
    assert temperatures == [0, 0, 0, 0.5, 0.5]
    assert "preferred" not in served.requests[0]["messages"][1]["content"]


def test_it_goes_on_where_it_stopped(served, tmp_path):
    out = tmp_path / "edits.jsonl"
    editor = Editor.at(served.url, "m", show_preferred=True, concurrency=1)
    make_edits(COMPARISONS, editor, out)
    whole, asked = rows(out), len(served.requests)
    assert "preferred response" in served.requests[0]["messages"][1]["content"]
    with pytest.raises(RowFileError, match="exists already; add --resume"):
        make_edits(COMPARISONS, editor, out)
    assert make_edits(COMPARISONS, editor, out, resume=True) == (2, 1, 0) and len(served.requests) == asked
    out.write_bytes(out.read_bytes()[: out.read_bytes().index(b"\n") + 9])  # killed while it wrote the second row
    assert make_edits(COMPARISONS, editor, out, resume=True) == (2, 1, 1)
    assert rows(out) == whole
    with pytest.raises(RowFileError, match=r"with most 0.5, not 0.9; resume with the same arguments"):
        make_edits(COMPARISONS, Editor.at(served.url, "m", show_preferred=True, most=0.9), out, resume=True)
    with pytest.raises(RowFileError, match="is of another response than comparison 0"):
        make_edits(COMPARISONS[::-1], editor, out, resume=True)


def refuses(request: dict[str, Any]) -> tuple[int, Any]:
    return (400, {"error": {"message": "too rude"}}) if "Nobody" in str(request) else reply(request)


@pytest.mark.parametrize("served", [refuses], indirect=True)
def test_what_the_server_refuses_to_read_fails_alone(served, tmp_path):
    assert make_edits(COMPARISONS, Editor.at(served.url, "m"), tmp_path / "e.jsonl")[:2] == (2, 1)
    (failed,) = rows(failed_of(tmp_path / "e.jsonl"))
    assert "answers 400" in failed["failed"] and "too rude" in failed["failed"]


@pytest.mark.parametrize("served", [lambda request: (400, {"error": {"message": "no such model"}})], indirect=True)
def test_a_server_that_refuses_everything_is_an_error(served, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(EditorError, match=r"editor m at .* answers 400 .*no such model") as error:
        make_edits(COMPARISONS, Editor.at(served.url, "m"), tmp_path / "e.jsonl")
    assert KEY not in str(error.value)
    with pytest.raises(EditorError, match="cannot be reached"):
        make_edits(COMPARISONS, Editor.at("http://127.0.0.1:9/v1", "m"), tmp_path / "f.jsonl")


@pytest.mark.parametrize(
    ("answer", "made"),
    [
        ("Why.\n<edited>The boat is late.</edited>", Made("The boat is late.", "Why.", 0.2)),
        (
            "I write <edited> now: <edited>The boat is late.</edited> \n",
            Made("The boat is late.", "I write <edited> now:", 0.2),
        ),
        ("The boat is late.", "the answer has no <edited> ... </edited> at its end"),
        ("<edited>The boat is late.</edited> Done!", "the answer has no <edited> ... </edited> at its end"),
        ("<edited>The boat is late.", "the answer has no <edited> ... </edited> at its end"),
        ("<edited> </edited>", "the edited response is empty"),
        ("<edited>The ferry is late.</edited>", "the edited response is the response itself"),
        ("<edited>All is new here now!</edited>", "the edit changes 100% of the words, more than 50%"),
    ],
)
def test_which_answers_are_edits(answer, made):
    want = made if isinstance(made, Made) else Made(None, made)
    assert read_edit(Answer(answer, False), "The ferry is late.", 0.5) == want


def test_an_answer_that_was_cut_is_none():
    assert read_edit(Answer("<edited>The boat</edited>", True), "The ferry", 1.0).reason == "the answer does not end"


def test_white_space_at_the_ends_is_the_responses():
    assert read_edit(Answer("<edited>\nThe boat.\n</edited>", False), " The ferry.\n\n", 0.9).edited == " The boat.\n\n"


def test_the_share_of_changed_words():
    assert changed_share("a b c d", "a x c d") == 0.25
    assert changed_share("a b", "a  b") == 0
    assert changed_share("", "") == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"most": 0.0}, "most 0.0 is no share of the words"),
        ({"retries": -1}, "retries -1 is negative"),
        ({"concurrency": 0}, "concurrency 0 asks nothing"),
        ({"temperature": -1.0}, "temperature -1.0 is not a finite number from 0 on"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(EditorError, match=message):
        Editor.at("http://localhost:1/v1", "m", **settings)
