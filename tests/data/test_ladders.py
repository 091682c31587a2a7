"""Reading ladders, and splitting them so that no source is on both sides."""

import csv
import gzip
import json
import random
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from midcourse.data.comparisons import Comparison, Example, prompt_groups, split_by_prompt
from midcourse.data.formats import BadRow, DataError
from midcourse.data.ladders import Ladder, ladder_of, level_names, read_ladders

ROWS = [
    {"machine": "m", "human": "h", "id": 3},
    {"llm": "m2", "mixed": "x2", "human": "h2", "group": "g"},
]
WANT = [Ladder(("m", "h")), Ladder(("m2", "x2", "h2"), "g")]


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_every_format_gives_the_same_ladders(tmp_path):
    assert read_ladders(written(tmp_path / "a.jsonl", *ROWS)) == WANT
    assert read_ladders(written(tmp_path / "a.json", *ROWS)) == WANT
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert read_ladders(tmp_path / "a.jsonl.gz") == WANT
    columns = {name: [row.get(name) for row in ROWS] for name in ("machine", "llm", "mixed", "human", "group")}
    Dataset.from_dict(columns).to_parquet(tmp_path / "a.parquet")
    assert read_ladders(tmp_path / "a.parquet") == WANT
    with (tmp_path / "a.csv").open("w") as file:
        table = csv.DictWriter(file, ["machine", "mixed", "human", "group"])
        table.writeheader()
        table.writerow({"machine": "m", "human": "h"})
        table.writerow({"machine": "m2", "mixed": "x2", "human": "h2", "group": "g"})
    assert read_ladders(tmp_path / "a.csv") == WANT


def test_levels_are_read_in_their_order(tmp_path):
    rows = [{"levels": ["all", "most", "some", "none"], "group": "q"}, {"levels": ["m", "h"]}]
    want = [Ladder(("all", "most", "some", "none"), "q"), Ladder(("m", "h"))]
    assert read_ladders(written(tmp_path / "a.jsonl", *rows)) == want
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    assert read_ladders(tmp_path / "a.parquet") == want


@pytest.mark.parametrize("name", ["xsum_gpt-4.raw_data.json", "pairs.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_remodetects_own_files_are_read(tmp_path, name, indent):
    data = json.dumps({"original": ["a person", "another"], "sampled": ["a model", "a model again"]}, indent=indent)
    (tmp_path / name).write_bytes(gzip.compress(data.encode()) if name.endswith("gz") else data.encode())
    assert read_ladders(tmp_path / name) == [Ladder(("a model", "a person")), Ladder(("a model again", "another"))]


@pytest.mark.parametrize(
    ("whole", "problem"),
    [
        ({"original": ["a", "b"], "sampled": ["c"]}, "has 1 and 2 as sampled and original; write two lists"),
        ({"original": "a", "sampled": ["c"]}, "has 1 and 'a' as sampled and original"),
        ({"original": ["a", 7], "sampled": ["c", "d"]}, "pair 2, field original: 7 is not a text; write one"),
        ({"original": ["a", "b"], "sampled": ["c", " "]}, "pair 2, field sampled: the text is empty"),
        ({"original": [], "sampled": []}, "has no rows; add ladders to it"),
    ],
)
def test_what_is_wrong_with_such_a_file_is_said(tmp_path, whole, problem):
    (tmp_path / "r.json").write_text(json.dumps(whole))
    with pytest.raises(DataError, match=problem):
        read_ladders(tmp_path / "r.json")


def test_a_bad_pair_of_such_a_file_is_left_out_where_rejects_are_asked_for(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"original": ["a", 7], "sampled": ["c", "d"]}))
    rejects: list[BadRow] = []
    assert read_ladders(tmp_path / "r.json", rejects=rejects) == [Ladder(("c", "a"))]
    assert [(bad.line, bad.field) for bad in rejects] == [(2, "original")]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"human": "h"}, "line 2, field machine: the field is missing among 'human'; each row needs machine"),
        ({"machine": "m"}, "line 2, field human: the field is missing"),
        ({"machine": "m", "llm": "n", "human": "h"}, "line 2, field llm: the row has machine as well"),
        ({"machine": "m", "human": 3}, "line 2, field human: 3 is not a text"),
        ({"machine": "m", "mixed": ["x"], "human": "h"}, r"line 2, field mixed: \['x'\] is not a text"),
        ({"machine": "m", "human": " \n"}, "line 2, field human: the text is empty; write one or remove the row"),
        ({"machine": "m", "mixed": "", "human": "h"}, "line 2, field mixed: the text is empty"),
        ({"machine": "m", "human": "m"}, "line 2, field human: the text equals that of machine, so neither"),
        ({"machine": "m", "mixed": "h", "human": "h"}, "line 2, field human: the text equals that of mixed"),
        ({"levels": ["a"]}, r"line 2, field levels: \['a'\] is no list of two or more texts"),
        ({"levels": "ab"}, "line 2, field levels: 'ab' is no list"),
        ({"levels": ["a", None]}, r"line 2, field levels\[1\]: None is not a text"),
        ({"levels": ["a", "b", "a"]}, r"line 2, field levels\[2\]: the text equals that of levels\[0\]"),
        ({"levels": ["a", "b"], "human": "h"}, "line 2, field human: the row has levels as well"),
        ({"machine": "m", "human": "h", "group": 3}, "line 2, field group: 3 is not a text"),
        ('{"machine": "\\ud83d", "human": "h"}', "line 2, field machine: character 1 is half"),
        ("{", "line 2: not JSON"),
    ],
)
def test_bad_rows_are_named_by_file_line_and_field(tmp_path, row, problem):
    path = written(tmp_path / "bad.jsonl", ROWS[0], row)
    with pytest.raises(DataError, match=f"bad.jsonl, {problem}"):
        read_ladders(path)
    assert read_ladders(path, rejects=[]) == WANT[:1]


def test_csv_cannot_hold_levels(tmp_path):
    (tmp_path / "a.csv").write_text("levels\n\"['a', 'b']\"\n")
    with pytest.raises(
        DataError, match="row 1, field levels: CSV cannot hold lists of texts; write them as JSON Lines"
    ):
        read_ladders(tmp_path / "a.csv")


def test_a_ladder_is_an_example_and_names_its_levels():
    assert isinstance(Ladder(("m", "h")), Example)
    assert ladder_of({"machine": "m", "human": "h"}).responses == ("m", "h")
    assert level_names(2) == ["machine", "human"]
    assert level_names(3) == ["machine", "mixed", "human"]
    assert level_names(5) == ["machine", "mixed 1 of 3", "mixed 2 of 3", "mixed 3 of 3", "human"]


def test_ladders_that_share_a_text_or_a_group_belong_together():
    rows = [
        Ladder(("m1", "h1"), "q"),
        Ladder(("m2", "h2"), "q"),
        Ladder(("m3", "h2")),  # by its human text
        Ladder(("m3", "h4")),  # by its machine text
        Ladder(("m5", "q")),  # a text that a group is named like
        Ladder(("m6", "h6")),
        Comparison("", "m6", "r"),
    ]
    groups = prompt_groups(rows)
    assert [groups.index(group) for group in groups] == [0, 0, 0, 0, 4, 5, 5]
    assert sorted(prompt_groups(rows[::-1])) == sorted(groups)


fields = st.tuples(
    st.lists(st.sampled_from("abcdefghijkl"), min_size=2, max_size=4, unique=True),
    st.sampled_from(["", "", "1", "2", "3"]),
)


@settings(max_examples=200)
@given(found=st.lists(fields, min_size=2, max_size=12), share=st.floats(0.05, 0.9), seed=st.integers(0, 99))
def test_a_split_never_shares_a_text_or_a_group(found, share, seed):
    rows = [Ladder(tuple(levels), group) for levels, group in found]
    if len(set(prompt_groups(rows))) < 2:
        with pytest.raises(DataError, match="cannot be split"):
            split_by_prompt(rows, share, seed)
        return
    kept, held = split_by_prompt(rows, share, seed)
    assert kept and held and len(kept) + len(held) == len(rows)
    assert not {text for row in kept for text in row.levels} & {text for row in held for text in row.levels}
    assert not {row.group for row in kept if row.group} & {row.group for row in held if row.group}
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert sorted(map(repr, split_by_prompt(shuffled, share, seed)[1])) == sorted(map(repr, held))
