import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow as pa
import pyarrow.parquet
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midcourse.data.comparisons import (
    Comparison,
    fingerprint,
    prompt_groups,
    prompt_key,
    read_comparisons,
    split_by_prompt,
)
from midcourse.data.formats import BadRow, DataError, write_bad_rows

USER = {"role": "user", "content": "What colour is the sky?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write_lines(path: Path, *rows: object, end: str = "\n") -> Path:
    """Each row a JSON value, or a text or bytes that stands as it is."""
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    data = b"".join(line + end.encode() for line in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_csv(path: Path, rows: list[dict], **options) -> Path:
    with path.open("w", newline="", **{"encoding": "utf-8", **options}) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


TEXTS = [
    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    {"prompt": "", "chosen": "NA", "rejected": "1.0"},
    {"prompt": 'Say "a,\nb"', "chosen": "żółć \N{SNOWMAN}\r\n, and\u2028\x85more", "rejected": ' "" ,\n\n'},
]
FLAGS = [(True, True), (False, True), (True, False)]
TEXTS_WANT = [Comparison(**row) for row in TEXTS]
FLAGGED = [
    row | {"chosen_finished": c, "rejected_finished": r, "id": 7} for row, (c, r) in zip(TEXTS, FLAGS, strict=True)
]
FLAGGED_WANT = [Comparison(*row.values(), *flags) for row, flags in zip(TEXTS, FLAGS, strict=True)]

MESSAGES = [
    {"prompt": [SYSTEM, USER], "chosen": [said("Blue.")], "rejected": [said("Green.")]},
    {"prompt": [USER], "chosen": [said("Bleu \N{SNOWMAN}")], "rejected": [said(" Blue.")]},
]
MESSAGES_WANT = [
    Comparison(row["prompt"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in MESSAGES
]
CONVERSATIONS = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in MESSAGES]


# ---- formats ----


@pytest.mark.parametrize(
    "name", ["p.jsonl", "p.json", "p.jsonl.gz", "p.json.gz", "P.JSONL", "p.csv", "p[1].csv", "p.parquet"]
)
@pytest.mark.parametrize(("rows", "want"), [(TEXTS, TEXTS_WANT), (FLAGGED, FLAGGED_WANT)], ids=["plain", "flagged"])
def test_texts_come_back_as_they_were_written(tmp_path, name, rows, want):
    path = tmp_path / name
    if path.suffix == ".csv":
        write_csv(path, rows)
    elif path.suffix == ".parquet":
        write_parquet(path, rows)
    else:
        write_lines(path, *rows)
    have = read_comparisons(path)
    assert have == want
    assert read_comparisons(str(path)) == want


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
@pytest.mark.parametrize("rows", [MESSAGES, CONVERSATIONS], ids=["explicit prompt", "implicit prompt"])
def test_messages_come_back_with_the_shared_ones_as_the_prompt(tmp_path, name, rows):
    path = tmp_path / name
    if path.suffix == ".parquet":
        write_parquet(path, rows)
    else:
        write_lines(path, *rows)
    have = read_comparisons(path)
    assert have == MESSAGES_WANT


def test_a_long_conversation_keeps_earlier_turns_and_all_that_a_template_may_render(tmp_path):
    call = {"tool_calls": [{"function": {"name": "look", "arguments": {"at": "sky"}}}]}
    turns = [USER | call | {"name": None}, said("Blue."), {"role": "user", "content": "Sure?"}]
    path = write_lines(tmp_path / "p.jsonl", {"chosen": [*turns, said("Yes.")], "rejected": [*turns, said("No.")]})
    have = read_comparisons(path)
    assert have == [Comparison([USER | call, said("Blue."), {"role": "user", "content": "Sure?"}], "Yes.", "No.")]


# What lies on the Hub, in all the forms that TRL documents
HUB = {
    "UltraFeedback": {"prompt": USER["content"], "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
    "a message as response": {"prompt": [USER], "chosen": [said("a")], "rejected": [said("b")]},
    "implicit prompt": {"chosen": [USER, said("a")], "rejected": [USER, said("b")]},
    "JSON in texts": {"prompt": json.dumps([USER]), "chosen": json.dumps([said("a")]), "rejected": "b"},
    "parts of text": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": USER["content"]}]}],
        "chosen": "a",
        "rejected": "b",
    },
    "other columns beside": {"prompt": [USER], "chosen": "a", "rejected": "b", "question": "Sky?", "score": 1.0},
}


@pytest.mark.parametrize("row", HUB.values(), ids=HUB)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_comparisons_are_read_as_they_lie_on_the_hub(tmp_path, row, ending):
    path = tmp_path / f"p.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        write_lines(path, row)
    (have,) = read_comparisons(path)
    prompt = have.prompt if isinstance(have.prompt, list) else [{"role": "user", "content": have.prompt}]
    assert (prompt, have.chosen, have.rejected) == ([USER], "a", "b")


def test_a_system_message_before_the_prompt_is_of_the_prompt(tmp_path):
    row = {"prompt": USER["content"], "chosen": [SYSTEM, USER, said("a")], "rejected": [SYSTEM, USER, said("b")]}
    assert read_comparisons(write_lines(tmp_path / "p.jsonl", row)) == [Comparison([SYSTEM, USER], "a", "b")]


def test_several_rejected_are_a_comparison_each(tmp_path):
    """RewardBench 2 has one chosen response and three rejected ones."""
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"]})
    assert read_comparisons(path) == [Comparison("p", "a", other) for other in "bcd"]


def test_folders_and_patterns_are_read_file_by_file(tmp_path):
    for name, chosen in (("b.jsonl", "2"), ("a.jsonl", "1"), ("c.txt", "3")):
        write_lines(tmp_path / name, {"prompt": "p", "chosen": chosen, "rejected": "x"})
    for path in (tmp_path, tmp_path / "*.jsonl", tmp_path / "[ab].jsonl"):
        assert [one.chosen for one in read_comparisons(path)] == ["1", "2"]
    write_lines(tmp_path / "b.jsonl", {"prompt": "p", "chosen": "2"})
    with pytest.raises(DataError, match=r"b\.jsonl, line 1, field rejected"):
        read_comparisons(tmp_path)
    (tmp_path / "d.csv").write_text("prompt,chosen,rejected\np,a,b\n")
    with pytest.raises(DataError, match="has files of several formats"):
        read_comparisons(tmp_path)
    with pytest.raises(DataError, match="no file matches"):
        read_comparisons(tmp_path / "*.parquet")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_fields_may_have_other_names(tmp_path, ending):
    row, path = {"instruction": "p", "better": "a", "worse": "b"}, tmp_path / f"p.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif ending == "csv":
        path.write_text("instruction,better,worse\np,a,b\n")
    else:
        write_lines(path, row)
    renamed = {"prompt": "instruction", "chosen": "better", "rejected": "worse"}
    assert read_comparisons(path, renamed=renamed) == [Comparison("p", "a", "b")]
    with pytest.raises(DataError, match=r"field worst: the field is missing among .*; it is to be the rejected"):
        read_comparisons(path, renamed={**renamed, "rejected": "worst"})


def test_headers_with_spaces_and_utf16_are_read_or_named(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt, chosen ,rejected\np,a,b\n")
    assert read_comparisons(path) == [Comparison("p", "a", "b")]
    for text in ("prompt,chosen,rejected\np,a,b\n", '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'):
        path = tmp_path / ("u.csv" if text[0] == "p" else "u.jsonl")
        path.write_bytes(text.encode("utf-16"))
        with pytest.raises(DataError, match=r"is UTF-16 or UTF-32, .*; save it as UTF-8"):
            read_comparisons(path)


def test_a_column_that_cannot_be_read_does_no_harm_beside_the_needed_ones(tmp_path):
    pairs = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))
    table = pa.table({"prompt": ["p"], "chosen": ["a"], "rejected": ["b"], "scores": pairs})
    pq.write_table(table, tmp_path / "p.parquet")
    assert read_comparisons(tmp_path / "p.parquet") == [Comparison("p", "a", "b")]


def test_a_message_prompt_takes_plain_responses(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", {"prompt": [USER], "chosen": "Blue.", "rejected": "Green."})
    assert read_comparisons(path) == [Comparison([USER], "Blue.", "Green.")]


def test_transcripts_split_at_the_last_assistant_turn_and_keep_the_response_as_it_stands(tmp_path):
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant:"
    path = write_lines(tmp_path / "p.jsonl", {"chosen": f"{prompt} Blue. \n", "rejected": f"{prompt}\n\nBlack."})
    have = read_comparisons(path)
    assert have == [Comparison(prompt, " Blue. \n", "\n\nBlack.")]


@pytest.mark.parametrize(
    ("chosen", "rejected", "want"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", " blue.", " green.")),
        ("The sky is blue.", "The sky is black.", ("The sky is", " blue.", " black.")),
        ("Q: sky?\n\nBlue.", "Q: sky?\n\nGreen.", ("Q: sky?", "\n\nBlue.", "\n\nGreen.")),
        ("Sky?\nBlue.", "Sky? Green.", ("Sky?", "\nBlue.", " Green.")),
        ("Sky? Blue", "Sky? Blue it is", ("Sky?", " Blue", " Blue it is")),
        ("Sky? Blue", "Sky? Bluebell", ("Sky?", " Blue", " Bluebell")),
    ],
)
def test_an_implicit_prompt_of_texts_ends_with_a_whole_word(tmp_path, chosen, rejected, want):
    have = read_comparisons(write_lines(tmp_path / "p.jsonl", {"chosen": chosen, "rejected": rejected}))
    assert have == [Comparison(*want)]


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12), st.text("ab \n", max_size=12))
def test_an_implicit_prompt_and_its_responses_join_to_the_texts(tmp_path_factory, shared, one, other):
    row = {"chosen": shared + one, "rejected": shared + other}
    path = write_lines(tmp_path_factory.mktemp("texts") / "p.jsonl", row)
    try:
        [have] = read_comparisons(path)
    except DataError:
        return
    assert {"chosen": have.prompt + have.chosen, "rejected": have.prompt + have.rejected} == row
    assert have.chosen[0].isspace() and have.rejected[0].isspace() and not have.prompt[-1].isspace()


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_bom_windows_line_ends_and_blank_lines_are_accepted_and_still_counted(tmp_path, name):
    bom = b"\xef\xbb\xbf" + json.dumps(TEXTS[0]).encode()
    good = write_lines(tmp_path / name, bom, "", TEXTS[1], "  ", TEXTS[2], "", end="\r\n")
    assert read_comparisons(good) == TEXTS_WANT
    bad = write_lines(tmp_path / f"bad-{name}", bom, "", TEXTS[1], "{", end="\r\n")
    with pytest.raises(DataError, match="line 4: not JSON"):
        read_comparisons(bad)


def test_a_last_line_without_an_end_is_read(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(TEXTS[0]))
    assert read_comparisons(path) == TEXTS_WANT[:1]


def test_csv_with_a_bom_and_booleans_in_any_case(tmp_path):
    rows = [TEXTS[0] | {"chosen_finished": flag} for flag in ("true", "False", "TRUE", "")]
    have = read_comparisons(write_csv(tmp_path / "p.csv", rows, encoding="utf-8-sig"))
    assert [comparison.chosen_finished for comparison in have] == [True, False, True, True]


def test_csv_keeps_every_row_beyond_the_first_chunk_of_pandas(tmp_path):
    # The ignored id turns from numbers to texts in the second chunk of 10,000 rows.
    rows = [{"id": n if n < 10_001 else "x", "prompt": f"p{n}", "chosen": "1", "rejected": "2"} for n in range(10_003)]
    have = read_comparisons(write_csv(tmp_path / "p.csv", rows))
    assert have == [Comparison(row["prompt"], "1", "2") for row in rows]


def test_csv_without_a_prompt_column_splits_the_texts(tmp_path):
    path = write_csv(tmp_path / "p.csv", [{"chosen": "Sky? Blue.", "rejected": "Sky? Green."}])
    assert read_comparisons(path) == [Comparison("Sky?", " Blue.", " Green.")]


def test_parquet_flags_that_are_null_count_as_absent(tmp_path):
    rows = [TEXTS[0] | {"chosen_finished": None}, TEXTS[1] | {"chosen_finished": False}]
    have = read_comparisons(write_parquet(tmp_path / "p.parquet", rows))
    assert [comparison.chosen_finished for comparison in have] == [True, False]


def test_datasets_stays_quiet_and_keeps_its_settings(tmp_path, capfd):
    from datasets.utils import are_progress_bars_disabled, enable_progress_bars, logging

    enable_progress_bars()
    before = logging.get_verbosity(), are_progress_bars_disabled()
    read_comparisons(write_csv(tmp_path / "p.csv", TEXTS))
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError) as caught:
        read_comparisons(tmp_path / "bad.parquet")
    # While the error is alive too: nothing is left to a garbage collection.
    assert caught.value and (logging.get_verbosity(), are_progress_bars_disabled()) == before
    assert capfd.readouterr() == ("", "")


# ---- bad rows ----

GOOD = TEXTS[0]
TURN = "\n\nHuman: Sky?\n\nAssistant:"
BAD_LINES = {
    "not UTF-8": (b'{"prompt": "caf\xe9"}', "row", "not UTF-8 (byte 16 is 0xe9)"),
    "not JSON": ('{"prompt": "p",', "row", "not JSON"),
    "deep JSON": ("[" * 100_000, "row", "JSON"),
    "endless number": ('{"id": ' + "1" * 5000 + "}", "row", "JSON"),
    "not an object": ([1, 2], "row", "[1, 2] is not an object"),
    "missing chosen": ({"prompt": "p", "rejected": "r"}, "chosen", "missing among 'prompt', 'rejected'"),
    "missing rejected": ({"prompt": "p", "chosen": "c"}, "rejected", "missing"),
    "no fields": ({}, "chosen", "missing among no fields"),
    "null prompt": (GOOD | {"prompt": None}, "prompt", "None is neither a text nor a list"),
    "number": (GOOD | {"chosen": 3}, "chosen", "3 is neither a text nor a list"),
    "empty response": (GOOD | {"chosen": ""}, "chosen", "'' is empty"),
    "blank response": (GOOD | {"rejected": " \n"}, "rejected", r"' \n' is empty"),
    "equal": (GOOD | {"rejected": GOOD["chosen"]}, "rejected", "' blue.' equals the chosen one"),
    "half a pair": (GOOD | {"chosen": "ab\ud83d"}, "chosen", "character 3 is half a surrogate pair"),
    "flag as text": (GOOD | {"chosen_finished": "yes"}, "chosen_finished", "'yes' is not a boolean"),
    "flag as number": (GOOD | {"rejected_finished": 1}, "rejected_finished", "1 is not a boolean"),
    "no message": ({"prompt": [], "chosen": "c", "rejected": "r"}, "prompt", "the list of messages is empty"),
    "message as text": ({"prompt": ["hi"], "chosen": "c", "rejected": "r"}, "prompt", "message 1 is 'hi'"),
    "no content": (
        {"prompt": [USER, {"role": "user"}], "chosen": "c", "rejected": "r"},
        "prompt",
        "message 2 has the content None",
    ),
    "no role": (
        {"prompt": [{"content": "c"}], "chosen": "c", "rejected": "r"},
        "prompt",
        "message 1 has the role None",
    ),
    "half a pair in a message": (
        {"prompt": [said("\udc00")], "chosen": "c", "rejected": "r"},
        "prompt",
        "half a surrogate",
    ),
    "another conversation than the prompt's": (
        {"prompt": "Else?", "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
        "chosen",
        "2 messages (roles: 'user', 'assistant') where one of the assistant is due; begin with the prompt's messages",
    ),
    "conversations that differ": (
        {"prompt": USER["content"], "chosen": [SYSTEM, USER, said("a")], "rejected": [USER, said("b")]},
        "rejected",
        "other messages before the last than chosen",
    ),
    "a call in the response": (
        {"prompt": "p", "chosen": [said("a") | {"tool_calls": [{"id": 1}]}], "rejected": [said("b")]},
        "chosen",
        "the response has tool_calls beside its content",
    ),
    "a picture": (
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a", "rejected": "b"},
        "prompt",
        "message 1 has the part {'type': 'image'}; only parts of text are read",
    ),
    "messages as Python writes them": (
        {"prompt": str([USER]), "chosen": "a", "rejected": "b"},
        "prompt",
        "looks like messages, and is no JSON",
    ),
    "a prompt by another name": (
        {"instruction": "Sky?", "chosen": "It is blue.", "rejected": "It is green."},
        "prompt",
        "the field is missing, and instruction seems to hold it",
    ),
    "response by the user": (
        {"prompt": [USER], "chosen": [said("a")], "rejected": [USER]},
        "rejected",
        "(roles: 'user')",
    ),
    "two turns": ({"chosen": [USER, said("a"), said("b")], "rejected": [USER, said("c")]}, "chosen", "2 messages"),
    "no turn": ({"chosen": [USER, said("a")], "rejected": [USER]}, "rejected", "0 messages (roles: none)"),
    "equal messages": ({"chosen": [USER, said("a")], "rejected": [USER, said("a")]}, "rejected", "equal the chosen"),
    "empty message": ({"chosen": [USER, said("")], "rejected": [USER, said("a")]}, "chosen", "'' is empty"),
    "no shared message": ({"chosen": [said("a")], "rejected": [said("b")]}, "prompt", "share no first message"),
    "mixed sides": ({"chosen": "Sky? Blue.", "rejected": [USER, said("a")]}, "rejected", "write both in the same way"),
    "no shared word": ({"chosen": "Blue.", "rejected": "Black."}, "prompt", "share no first word"),
    "equal texts": ({"chosen": "Sky? Blue.", "rejected": "Sky? Blue."}, "rejected", "equals the chosen"),
    "other transcript": (
        {"chosen": f"{TURN} a", "rejected": TURN.replace("S", "s") + " b"},
        "prompt",
        "transcripts differ",
    ),
    "one transcript": ({"chosen": f"{TURN} a", "rejected": "Sky? b"}, "prompt", "transcripts differ"),
    "equal transcripts": ({"chosen": f"{TURN} a", "rejected": f"{TURN} a"}, "rejected", "equals the chosen"),
    "empty transcript": ({"chosen": TURN, "rejected": f"{TURN} a"}, "chosen", "'' is empty"),
}


@pytest.mark.parametrize(("row", "field", "problem"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_refused_by_file_line_and_field(tmp_path, row, field, problem):
    path = write_lines(tmp_path / "pairs.jsonl", GOOD, GOOD, row, GOOD)
    with pytest.raises(DataError) as caught:
        read_comparisons(path)
    have = str(caught.value)
    at = "" if field == "row" else f", field {field}"
    assert have.startswith(f"{path}, line 3{at}: ") and problem in have
    assert "--skip-bad-rows" in have and "\n" not in have and len(have) < len(str(path)) + 300


@pytest.mark.parametrize(("row", "field", "problem"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_left_out_where_rejects_are_asked_for(tmp_path, row, field, problem):
    path = write_lines(tmp_path / "pairs.jsonl", GOOD, row, GOOD)
    rejects = []
    assert read_comparisons(path, rejects=rejects) == TEXTS_WANT[:1] * 2
    [have] = rejects
    raw = path.read_bytes().split(b"\n")[1].decode(errors="backslashreplace")
    assert (have.file, have.line, have.field, have.row) == (str(path), 2, field, raw)
    assert problem in have.problem and "--skip-bad-rows" not in have.problem


BAD_CELLS = {
    "empty response": (GOOD | {"chosen": ""}, "chosen", "'' is empty"),
    "equal": (GOOD | {"rejected": GOOD["chosen"]}, "rejected", "equals the chosen one"),
    "flag": (GOOD | {"chosen_finished": "maybe"}, "chosen_finished", "'maybe' is not a boolean"),
    "messages as Python writes them": (GOOD | {"prompt": str([USER])}, "prompt", "and is no JSON"),
}


@pytest.mark.parametrize(("row", "field", "problem"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_a_bad_csv_row_is_refused_by_file_row_and_field(tmp_path, row, field, problem):
    rows = [{"chosen_finished": "", **each} for each in (TEXTS[2], row, GOOD)]
    path = write_csv(tmp_path / "pairs.csv", rows)
    with pytest.raises(DataError) as caught:
        read_comparisons(path)
    assert str(caught.value).startswith(f"{path}, row 2, field {field}: ") and problem in str(caught.value)
    rejects = []
    assert read_comparisons(path, rejects=rejects) == [TEXTS_WANT[2], TEXTS_WANT[0]]
    [have] = rejects
    assert (have.line, have.field) == (2, field) and json.loads(have.row) == rows[1]


def test_a_csv_row_that_is_not_utf8_is_refused_alone(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_bytes(b"prompt,chosen,rejected,\xe9t\xe9\n" + "ğ,c,r,1\n".encode() + b"p,c,caf\xe9,2\n")
    with pytest.raises(DataError) as caught:
        read_comparisons(path)
    assert f"{path}, row 2, field rejected: not UTF-8 (byte 4 is 0xe9)" in str(caught.value)
    rejects = []
    assert read_comparisons(path, rejects=rejects) == [Comparison("ğ", "c", "r")]
    assert json.loads(rejects[0].row) == {"prompt": "p", "chosen": "c", "rejected": r"caf\xe9"}


def test_a_csv_row_that_ends_early_has_an_empty_response(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\np,c,r\np,c\n")
    with pytest.raises(DataError, match="row 2, field rejected: the response '' is empty"):
        read_comparisons(path)


def test_a_csv_without_a_response_column_is_refused_by_its_name(tmp_path):
    path = write_csv(tmp_path / "pairs.csv", [{"prompt": "p", "rejected": "r"}])
    with pytest.raises(DataError, match=r"row 1, field chosen: the field is missing among 'prompt', 'rejected'"):
        read_comparisons(path)


def test_a_bad_parquet_row_is_refused_by_file_row_and_field(tmp_path):
    path = write_parquet(tmp_path / "pairs.parquet", [GOOD, GOOD | {"chosen": None}])
    with pytest.raises(DataError) as caught:
        read_comparisons(path)
    assert str(caught.value).startswith(f"{path}, row 2, field chosen: None is neither a text nor a list")
    rejects = []
    assert read_comparisons(path, rejects=rejects) == TEXTS_WANT[:1]
    assert [(bad.line, bad.field, json.loads(bad.row)) for bad in rejects] == [(2, "chosen", GOOD | {"chosen": None})]


def test_what_limit_returns_is_a_problem_of_the_prompt(tmp_path):
    def limit(comparison: Comparison) -> str | None:
        too_long = len(comparison.prompt) > 20
        return f"prompt has {len(comparison.prompt)} tokens; raise --max-tokens" if too_long else None

    path = write_lines(tmp_path / "pairs.jsonl", GOOD, GOOD | {"prompt": "p" * 30}, TEXTS[1])
    with pytest.raises(DataError) as caught:
        read_comparisons(path, limit=limit)
    assert str(caught.value).startswith(f"{path}, line 2, field prompt: prompt has 30 tokens; raise --max-tokens")
    rejects = []
    assert read_comparisons(path, limit=limit, rejects=rejects) == TEXTS_WANT[:2]
    assert [(bad.line, bad.field, bad.problem) for bad in rejects] == [
        (2, "prompt", "prompt has 30 tokens; raise --max-tokens")
    ]


def test_bad_rows_are_written_as_json_lines_in_a_new_folder(tmp_path):
    want = [BadRow(3, "chosen", "the response '' is empty", '{"chosen": "\u2028ż"}'), BadRow(9, "row", "not JSON", "{")]
    path = tmp_path / "run" / "bad.jsonl"
    write_bad_rows(path, want)
    have = [BadRow(**json.loads(line)) for line in path.read_bytes().splitlines()]
    assert have == want
    assert [each.name for each in path.parent.iterdir()] == ["bad.jsonl"]
    with path.open("rb") as old:
        write_bad_rows(str(path), [])
        assert old.read().count(b"\n") == 2  # replaced as a whole, not written over
    assert path.read_bytes() == b""


# ---- bad files ----


def cut_gzip(data: bytes) -> bytes:
    return gzip.compress(data)[:-12]


def broken_gzip(data: bytes) -> bytes:
    packed = bytearray(gzip.compress(data, 0))
    packed[len(packed) // 2] ^= 0xFF
    return bytes(packed)


LINE = json.dumps(GOOD).encode() + b"\n"
BAD_FILES = {
    "empty": ("p.jsonl", b"", "is empty"),
    "empty csv": ("p.csv", b"", "is empty"),
    "blank lines only": ("p.jsonl", b"\n\r\n \n", "has no rows"),
    "empty gzip": ("p.jsonl.gz", gzip.compress(b""), "has no rows"),
    "not gzip": ("p.jsonl.gz", LINE, "cannot be read (Not a gzipped file"),
    "cut gzip": ("p.jsonl.gz", cut_gzip(LINE * 100), "cannot be read"),
    "broken gzip": ("p.json.gz", broken_gzip(LINE * 100), "cannot be read"),
    "unknown extension": ("p.txt", LINE, "use one of: .jsonl, .json, .jsonl.gz, .json.gz, .csv, .tsv, .parquet"),
    "gzipped csv": ("p.csv.gz", gzip.compress(b"chosen,rejected\n"), "unknown extension"),
    "header only": ("p.csv", b"prompt,chosen,rejected\n", "has no rows"),
    "blank csv": ("p.csv", b"\n\n", "cannot be read as CSV (No columns"),
    "other columns": (
        "p.csv",
        b"before,after\na,b\n",
        "its columns are 'before', 'after', none of prompt, chosen",
    ),
    "a comma without quotes": ("p.csv", b"prompt,chosen,rejected\np,c,r\np,c,r,s\n", "between double quotes"),
    "a comma in the first row": ("p.csv", b"prompt,chosen,rejected\np,c,r,s\np,c,r\n", "more cells than the header"),
    "an open quote": ("p.csv", b'prompt,chosen,rejected\np,"c,r\np,c,r\n', "EOF inside string"),
    "not parquet": ("p.parquet", b"nonsense", "cannot be read as Parquet"),
}


@pytest.mark.parametrize("rejects", [None, []], ids=["", "skipping"])
@pytest.mark.parametrize(("name", "data", "problem"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_always_refused(tmp_path, name, data, problem, rejects):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_comparisons(path, rejects=rejects)
    have = str(caught.value)
    assert have.startswith(f"{path} ") and problem in have and "\n" not in have


def test_a_corrupt_parquet_file_is_refused(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", TEXTS)
    data = bytearray(path.read_bytes())
    data[4:80] = bytes(76)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"p\.parquet cannot be read as Parquet"):
        read_comparisons(path, rejects=[])


def test_a_parquet_file_without_rows_or_with_other_columns_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"chosen": [], "rejected": []}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"none\.parquet has no rows"):
        read_comparisons(tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"other\.parquet .*its columns are 'before'"):
        read_comparisons(write_parquet(tmp_path / "other.parquet", [{"before": "a"}]))


def test_a_parquet_text_that_is_not_utf8_is_refused(tmp_path):
    broken = pyarrow.array([b"c\xff"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"chosen": broken, "rejected": ["r"]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet cannot be read as Parquet"):
        read_comparisons(tmp_path / "p.parquet")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read \(No such file or directory\); check the path"):
        read_comparisons(tmp_path / "none.jsonl", rejects=[])
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"the folder .*folder\.jsonl has no file of rows; name one"):
        read_comparisons(tmp_path / "folder.jsonl", rejects=[])


def test_a_file_of_bad_rows_only_is_refused_and_names_the_first(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", "{", GOOD | {"chosen": ""})
    rejects = []
    with pytest.raises(DataError) as caught:
        read_comparisons(path, rejects=rejects)
    assert f"{path} has no usable row, the first bad one being {path}, line 1: not JSON" in str(caught.value)
    assert [bad.line for bad in rejects] == [1, 2]


# ---- splits ----

prompts = st.one_of(
    st.text(min_size=1, max_size=3), st.lists(st.sampled_from([USER, SYSTEM, said("a")]), min_size=1, max_size=2)
)
pairs = st.tuples(prompts, st.text(max_size=3), st.text(max_size=3))
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)


def keys(comparisons: list[Comparison]) -> set[str]:
    return {prompt_key(comparison.prompt) for comparison in comparisons}


@given(st.lists(pairs, min_size=1, max_size=30), shares, st.integers(), st.randoms(use_true_random=False))
def test_a_split_never_shares_a_prompt_and_ignores_the_order_of_rows(rows, share, seed, shuffler):
    comparisons = [Comparison(*row) for row in rows]
    if len(keys(comparisons)) < 2:
        with pytest.raises(DataError, match="1 distinct prompts cannot be split"):
            split_by_prompt(comparisons, share, seed)
        return
    kept, held = split_by_prompt(comparisons, share, seed)
    assert kept and held and not keys(kept) & keys(held)
    assert sorted(map(repr, kept + held)) == sorted(map(repr, comparisons))
    assert kept == [each for each in comparisons if prompt_key(each.prompt) in keys(kept)]
    shuffler.shuffle(comparisons)
    assert keys(split_by_prompt(comparisons, share, seed)[1]) == keys(held)


def test_a_split_holds_out_the_share_asked_for_by_the_seed():
    comparisons = [Comparison(f"p{n % 100}", "c", "r") for n in range(300)]
    kept, held = split_by_prompt(comparisons, 0.2, seed=0)
    assert (len(kept), len(held)) == (240, 60)
    assert keys(held) != keys(split_by_prompt(comparisons, 0.2, seed=1)[1])


def test_a_split_is_the_same_in_every_process():
    comparisons = [Comparison(f"p{n}", "c", "r") for n in range(10)]
    have = [each.prompt for each in split_by_prompt(comparisons, 0.3, seed=0)[1]]
    assert have == ["p0", "p1", "p9"]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_split_refuses_a_share_that_is_none(share):
    comparisons = [Comparison(f"p{n}", "c", "r") for n in range(10)]
    with pytest.raises(DataError, match="between 0 and 1"):
        split_by_prompt(comparisons, share, seed=0)


def test_a_split_of_nothing_is_refused():
    with pytest.raises(DataError, match="0 distinct prompts cannot be split"):
        split_by_prompt([], 0.5, seed=0)


def test_a_prompt_key_ignores_the_order_within_a_message_and_the_kind_of_sequence():
    assert prompt_key("ż") == "ż"
    assert prompt_key([USER]) == prompt_key((dict(reversed(USER.items())),)) != prompt_key([SYSTEM])


# ---- fingerprints ----


def test_a_fingerprint_names_rows_and_their_order():
    rows = [*FLAGGED_WANT, *MESSAGES_WANT]
    have = fingerprint(rows)
    assert len(have) == 16 and int(have, 16) >= 0
    assert have == fingerprint(iter(rows))
    others = [rows[::-1], rows[1:], TEXTS_WANT + MESSAGES_WANT, [], [Comparison("", "\ud83d", "r")]]
    assert len({have, *map(fingerprint, others)}) == 6


def test_a_fingerprint_is_the_same_in_every_process_and_format(tmp_path):
    have = {fingerprint(read_comparisons(write_parquet(tmp_path / "p.parquet", TEXTS)))}
    have |= {fingerprint(read_comparisons(write_lines(tmp_path / "p.jsonl", *TEXTS)))}
    assert have == {fingerprint(TEXTS_WANT)} == {"6e11016ca43f1a0f"}


def test_comparisons_without_a_prompt_are_grouped_by_the_texts_they_share():
    """An edit's original occurs with several rewrites: they go to one side of a split together."""
    rows = [
        Comparison("", "rewrite one", "original"),
        Comparison("", "rewrite two", "original"),
        Comparison("", "another rewrite", "another original"),
        Comparison("", "rewrite two", "a third original"),
        Comparison("a prompt", "rewrite two", "original"),
    ]
    have = prompt_groups(rows)
    assert have == ["a third original", "a third original", "another original", "a third original", "a prompt"]
    assert prompt_groups(rows[::-1]) == have[::-1]
    kept, held = split_by_prompt(rows, 0.34, seed=0)
    assert {c.chosen for c in kept if not c.prompt}.isdisjoint(c.chosen for c in held if not c.prompt)


def test_what_both_responses_begin_with_is_not_given_twice(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"prompt": "Q: What? ", "chosen": "Q: What? A", "rejected": "Q: What? B"}) + "\n")
    with pytest.raises(DataError, match="both responses begin with the whole prompt; leave that out of them"):
        read_comparisons(path)


@pytest.mark.parametrize("question", [None, "why?"])
def test_a_system_message_is_no_prompt(tmp_path, question):
    told = {"role": "system", "content": "Be brief."}
    sides = {side: [told, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({**sides, "question": question}) + "\n")
    words = "question seems to hold it" if question else "share nothing but the system's message"
    with pytest.raises(DataError, match=words):
        read_comparisons(path)


def test_several_responses_may_be_messages(tmp_path):
    answer = [[{"role": "assistant", "content": text}] for text in "abc"]
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": answer[:1], "rejected": answer[1:]}) + "\n")
    assert read_comparisons(path) == [Comparison("p", "a", "b"), Comparison("p", "a", "c")]
