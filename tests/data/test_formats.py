"""Every kind of row is read from every format, by one code with one form of error."""

import csv
import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from midcourse.compare.study import Task, read_tasks
from midcourse.data.comparisons import Comparison, read_comparisons
from midcourse.data.formats import BadRow, CsvCell, DataError, Problem, number_of
from midcourse.data.prompts import read_prompts
from midcourse.data.rollouts import Rollout, are_rollouts, read_rollouts, read_samples
from midcourse.evaluate.reward_bench import read_benchmark

ENDINGS = [".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".tsv", ".parquet"]
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi\u2028"}]
ROLLOUTS = [
    {"row": 10, "sample": 0, "prompt": "p", "response": " żółć,\n", "finished": False, "reward": -0.5, "seed": 10},
    {"row": 2, "sample": 1, "prompt": "", "response": "NA", "finished": True, "reward": 1e-7, "seed": 3},
    {"row": 2, "sample": 0, "prompt": "true", "response": "1.0", "finished": True, "reward": 3.0, "seed": 2},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format that the name of the file says."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter={".csv": ",", ".tsv": "\t"}[path.suffix])
            table.writeheader()
            table.writerows(rows)
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_rollout(row: dict[str, Any]) -> Rollout:
    return Rollout(row["prompt"], row["response"], row["finished"], row.get("reward"))


# ---- every kind from every format ----


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_an_array_of_json_is_a_file_of_rows(tmp_path, ending):
    path, data = tmp_path / f"r{ending}", b"\xef\xbb\xbf\n" + json.dumps([*ROLLOUTS, 5], indent=1).encode()
    path.write_bytes(gzip.compress(data) if ending == ".json.gz" else data)
    rejects: list[BadRow] = []
    assert read_rollouts(path, rejects=rejects) == [as_rollout(row) for row in ROLLOUTS]
    assert [(bad.line, bad.problem) for bad in rejects] == [(4, "5 is not an object; write one object a line")]
    with pytest.raises(DataError, match=rf"r{ending}, row 4: 5 is not an object"):
        read_rollouts(path)
    path.write_bytes(gzip.compress(data[:-9]) if ending == ".json.gz" else data[:-9])
    with pytest.raises(DataError, match=r"is a damaged array of JSON .*; write it again"):
        read_rollouts(path)


def test_cells_may_stand_between_semicolons(tmp_path):
    """As spreadsheets write where the comma is the mark of decimals."""
    path = tmp_path / "r.csv"
    path.write_text('\ufeffprompt;response;reward\n"a;b, c";d,1\n', encoding="utf-8")
    assert read_prompts(path) == ["a;b, c"]
    path.write_text("prompt;response;reward\na, b;c, d;1\n")
    assert read_rollouts(path) == [Rollout("a, b", "c, d", True, 1.0)]


def test_quotes_between_tabs_are_letters(tmp_path):
    """Tables with tabs are mostly written without quotes; one that opens holds no further rows together."""
    path = tmp_path / "r.tsv"
    rows = ["prompt\tchosen\trejected", 'Hi\t"Good day\tBad', 'Hi2\t"fine" he said\tnot', 'Hi3\t"all ""of"" it"\tno']
    path.write_text("\n".join(rows) + "\n")
    assert read_comparisons(path) == [
        Comparison("Hi", '"Good day', "Bad"),
        Comparison("Hi2", '"fine" he said', "not"),
        Comparison("Hi3", 'all "of" it', "no"),
    ]


def test_a_table_with_spaces_behind_its_commas(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text('prompt, chosen, rejected\nHi, "Yes, so", "No"\n')
    assert read_comparisons(path) == [Comparison("Hi", "Yes, so", "No")]
    path.write_text("prompt,chosen,rejected\nHi, Yes, No\n")
    assert read_comparisons(path) == [Comparison("Hi", " Yes", " No")]  # a response may begin with a space


def test_a_cell_may_hold_several_texts(tmp_path):
    path = write(tmp_path / "r.csv", [{"prompt": "p", "chosen": '["a"]', "rejected": '["b", "c"]'}])
    assert read_comparisons(path) == [Comparison("p", "a", "b"), Comparison("p", "a", "c")]


def test_a_column_that_is_named_twice_is_named(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("row,prompt,response,prompt\n1,a,b,c\n")
    with pytest.raises(DataError, match=r"\(its header names 'prompt' twice\)"):
        read_prompts(path)


# ---- messages, however they are stored ----

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


@pytest.mark.parametrize(
    "stored",
    [
        [USER],
        USER,
        json.dumps([USER]),
        json.dumps(USER),
        json.dumps([{"content": "hi", "role": "user"}]),
        json.dumps([{"name": None, **USER}]),
        [{"from": "human", "value": "hi"}],
        json.dumps([{"from": "human", "value": "hi"}], indent=1),
        json.dumps({"messages": [USER]}),
    ],
)
def test_messages_are_read_as_messages_however_they_are_stored(tmp_path, stored):
    path = write(tmp_path / "p.jsonl", [{"prompt": stored}])
    assert read_prompts(path) == [[USER]]


@pytest.mark.parametrize(
    "printed", [str([{"id": 1, **USER}]), f"array([{USER}], dtype=object)", str({"name": 1, **USER})]
)
def test_messages_as_python_prints_them_are_refused(tmp_path, printed):
    with pytest.raises(DataError, match="looks like messages, and is no JSON; write them as a list or as JSON"):
        read_prompts(write(tmp_path / "p.jsonl", [{"prompt": printed}]))


@pytest.mark.parametrize(
    "text", ['["a", "b"]', '[{"role": "admin", "name": "Bo"}]', '{"a": 1}', "[{'a': 1}]", '{"role']
)
def test_a_text_that_is_no_message_stays_a_text(tmp_path, text):
    path = write(tmp_path / "p.jsonl", [{"prompt": text, "response": text, "reward": 1}])
    assert read_rollouts(path) == [Rollout(text, text, True, 1.0)]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_an_unpaired_completion_may_be_a_message_however_it_is_stored(tmp_path, ending):
    rows = [{"prompt": "p", "completion": json.dumps([ASSISTANT]), "label": True}]
    assert read_rollouts(write(tmp_path / f"r{ending}", rows)) == [Rollout("p", "yo", True, 1.0)]


def test_messages_in_columns_are_messages(tmp_path):
    """As older releases of datasets store sequences of them in Parquet."""
    path = write(tmp_path / "p.parquet", [{"prompt": {"role": ["user", "assistant"], "content": ["hi", "yo"]}}])
    assert read_prompts(path) == [[USER, ASSISTANT]]


def test_decimals_are_numbers(tmp_path):
    path = write(tmp_path / "r.parquet", [{"prompt": "p", "response": "r", "reward": Decimal("0.5")}])
    assert read_rollouts(path) == [Rollout("p", "r", True, 0.5)]


def test_a_folder_that_is_no_folder_of_rows_says_what_to_do(tmp_path):
    for name in ("dataset_info.json", "data-00000-of-00001.arrow"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match="is one of save_to_disk; write it anew with the data set's to_parquet"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("beside", ["tool_calls", "reasoning", "reasoning_content"])
def test_what_a_message_has_beside_its_text_is_not_dropped_in_silence(tmp_path, beside):
    message = {**ASSISTANT, beside: "so"}
    problem = f"the response has {beside} beside its content, which is no text of it; leave it out"
    path = write(tmp_path / "r.jsonl", [{"prompt": "p", "completion": [message], "label": True}])
    with pytest.raises(DataError, match=problem):
        read_rollouts(path)
    path = write(tmp_path / "c.jsonl", [{"prompt": "p", "chosen": [message], "rejected": [ASSISTANT]}])
    with pytest.raises(DataError, match=problem):
        read_comparisons(path)


@pytest.mark.parametrize(
    ("beside", "remedy"),
    [
        ({"system": "Be brief."}, "write it as the prompt's first message"),
        ({"tools": [{"name": "search"}]}, "remove it or the row"),
        ({"images": ["a.png"]}, "remove it or the row"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "remove it or the row"),
    ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_what_stands_beside_a_prompt_is_not_dropped_in_silence(tmp_path, ending, beside, remedy):
    (field,) = beside
    row = {"prompt": "p", "response": "r", "reward": 1.0, "chosen": "p a", "rejected": "p b", **beside}
    problem = rf", field {field}: .* stands beside the prompt, and is no part of it; {remedy}"
    for read in (read_prompts, read_tasks, read_rollouts, read_comparisons):
        with pytest.raises(DataError, match=problem):
            read(write(tmp_path / f"r{ending}", [row]))
    del row["prompt"]
    with pytest.raises(DataError, match=problem):
        read_comparisons(write(tmp_path / f"c{ending}", [row]))


def test_an_instruction_is_not_read_without_its_input(tmp_path):
    rows = [{"instruction": "Translate.", "input": "Guten Tag", "output": "x"}]
    for path in (write(tmp_path / "a.jsonl", rows), write(tmp_path / "a.parquet", rows)):
        with pytest.raises(DataError, match=r"row|line 1, field input: 'Guten Tag' belongs to the instruction"):
            read_prompts(path, renamed={"prompt": "instruction"})
    rows[0]["input"] = " "
    assert read_prompts(write(tmp_path / "b.jsonl", rows), renamed={"prompt": "instruction"}) == ["Translate."]


@pytest.mark.parametrize("nothing", ["", "[]", None])
def test_what_stands_beside_a_prompt_may_be_nothing(tmp_path, nothing):
    path = write(tmp_path / "p.csv", [{"prompt": "p", "system": nothing, "tools": nothing}])
    assert read_prompts(path) == ["p"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_rollouts_to_train_on(tmp_path, ending):
    path = write(tmp_path / f"r{ending}", ROLLOUTS)
    assert are_rollouts(path)
    have = read_rollouts(path)
    assert have == [as_rollout(row) for row in ROLLOUTS]
    assert all(type(rollout.response) is str and type(rollout.prompt) is str for rollout in have)


@pytest.mark.parametrize("ending", ENDINGS)
def test_rollouts_without_a_reward_come_by_prompt_and_sample(tmp_path, ending):
    rows = [{name: row[name] for name in row if name != "reward"} for row in ROLLOUTS]
    path = write(tmp_path / f"r{ending}", rows)
    assert read_samples(path) == [as_rollout(row) for row in (rows[2], rows[1], rows[0])]
    with pytest.raises(DataError, match=" 1, field reward: the field is missing; each row needs prompt, response and"):
        read_rollouts(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_prompts_and_tasks(tmp_path, ending):
    rows = [
        {"prompt": "a,\n b", "reference": "c"},
        {"prompt": "", "reference": None},
        {"prompt": "NA", "reference": "é"},
    ]
    path = write(tmp_path / f"p{ending}", rows)
    assert read_prompts(path) == ["a,\n b", "", "NA"]
    assert read_tasks(path) == [Task("a,\n b", "c"), Task(""), Task("NA", "é")]
    assert read_tasks(path, 2) == read_tasks(path)[:2]


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending not in (".csv", ".tsv")])
def test_messages_are_prompts_wherever_they_can_be_written(tmp_path, ending):
    path = write(tmp_path / f"p{ending}", [{"prompt": MESSAGES, "response": "r", "reward": 1.0, "reference": "b"}])
    assert read_prompts(path) == [MESSAGES]
    assert read_tasks(path) == [Task(MESSAGES, "b")]
    assert read_rollouts(path) == [Rollout(MESSAGES, "r", True, 1.0)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_which_kind_a_file_holds(tmp_path, ending):
    pairs = write(tmp_path / f"c{ending}", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert not are_rollouts(pairs)
    assert read_comparisons(pairs) == [Comparison("p", "a", "b")]
    assert not are_rollouts(write(tmp_path / f"p{ending}", [{"prompt": "p"}]))


# ---- cells of CSV ----


def test_cells_are_numbers_and_booleans_where_these_are_due(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("prompt,response,finished,reward\np,a,FALSE, 2 \np,b,,-1e3\np,c,true,\n")
    assert read_samples(path) == [
        Rollout("p", "a", False, 2.0),
        Rollout("p", "b", True, -1000.0),
        Rollout("p", "c", True),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("p,a,maybe,1", "field finished: 'maybe' is not a boolean"),
        ("p,a,2,1", "field finished: '2' is not a boolean"),
        ("p,a,true,high", "field reward: 'high' is not a finite number; write one"),
        ("p,a,true,nan", "field reward: 'nan' is not a finite number"),
        ("p,a,true,", "field reward: '' is not a finite number"),
        ("p,,false,1", "field response: the response is empty and was cut"),
        (
            "\"[{'role': 'user', 'content': 'x'}]\",a,true,1",
            "field prompt: \"[{'role': 'user', 'content': 'x'}]\" looks like messages, and is no JSON",
        ),
        (
            'p,"[{""role"": ""user"", ""content"": ""a""}]",true,1',
            "field response: 1 messages (roles: 'user') where one of the assistant is due",
        ),
    ],
)
def test_a_bad_cell_is_refused_by_file_row_and_field(tmp_path, line, problem):
    path = tmp_path / "r.csv"
    path.write_text(f"prompt,response,finished,reward\np,a,true,0\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_rollouts(path)
    assert str(caught.value).startswith(f"{path}, row 2, {problem}")
    rejects: list[BadRow] = []
    assert len(read_rollouts(path, rejects=rejects)) == 1
    assert [(bad.file, bad.line) for bad in rejects] == [(str(path), 2)]


@pytest.mark.parametrize("value", [10**400, "1", [1], float("inf"), CsvCell("1,5")])
def test_what_is_no_finite_number(value):
    with pytest.raises(Problem, match="is not a finite number; write one"):
        number_of({"reward": value}, "reward", "write one")


# ---- one form of error ----

Read = Callable[..., Any]
READERS: dict[str, tuple[Read, str, dict[str, Any]]] = {
    "comparisons": (read_comparisons, "comparisons", {"prompt": "p", "chosen": "a", "rejected": "b"}),
    "rollouts": (read_rollouts, "rollouts", {"prompt": "p", "response": "r", "reward": 1}),
    "samples": (read_samples, "rollouts", {"prompt": "p", "response": "r"}),
    "prompts": (read_prompts, "prompts", {"prompt": "p"}),
    "tasks": (read_tasks, "prompts", {"prompt": "p", "reference": "r"}),
    "benchmark": (
        lambda path, **more: read_benchmark([path], **more).comparisons,
        "comparisons",
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    ),
}


@pytest.mark.parametrize(("read", "what", "good"), READERS.values(), ids=READERS)
def test_a_bad_file_is_refused_alike_by_all(tmp_path, read, what, good):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "rows.txt").write_text(json.dumps(good))
    for name, problem in (
        ("empty.jsonl", f"is empty; add {what} to it"),
        ("blank.jsonl", f"has no rows; add {what} to it"),
        ("rows.txt", "has an unknown extension; use one of: .jsonl, .json, .jsonl.gz, .json.gz, .csv, .tsv, .parquet"),
        ("none.jsonl", "cannot be read (No such file or directory); check the path"),
    ):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name} {problem}"


BAD_ROWS = {
    "not JSON": ("{", "line 2: not JSON"),
    "no object": ("[1]", "line 2: [1] is not an object"),
    "not UTF-8": (b'{"prompt": "\xff"}', "line 2: not UTF-8"),
    "number": ({"prompt": 3}, "line 2, field prompt: 3 is neither a text nor a list of messages"),
    "no messages": ({"prompt": []}, "line 2, field prompt: the list of messages is empty"),
    "half a message": ({"prompt": [{"role": "user"}]}, "line 2, field prompt: message 1 has the content None"),
    "half a pair": ({"prompt": "\ud83d"}, "line 2, field prompt: character 1 is half a surrogate pair"),
}


@pytest.mark.parametrize(("row", "problem"), BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize(("read", "what", "good"), READERS.values(), ids=READERS)
def test_a_bad_row_is_refused_alike_by_all_or_set_aside(tmp_path, read, what, good, row, problem):
    line = row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps({**good, **row})).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(good).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, {problem}")
    assert str(caught.value).endswith(" (--skip-bad-rows leaves bad rows out)")
    rejects: list[BadRow] = []
    assert len(read(path, rejects=rejects)) == 1
    assert [bad.line for bad in rejects] == [2]


@pytest.mark.parametrize("reference", [3, ["x"], "\ud83d"])
def test_a_reference_is_a_text_or_left_out(tmp_path, reference):
    path = write(tmp_path / "p.jsonl", [{"prompt": "a", "reference": reference}])
    with pytest.raises(DataError, match="line 1, field reference: "):
        read_tasks(path)


def test_a_row_without_a_prompt_says_which_fields_it_has(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match="field prompt: the field is missing among 'text'; each row needs a prompt"):
        read_prompts(path)
