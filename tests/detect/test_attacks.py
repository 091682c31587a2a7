import gzip
import json

import pytest

from midcourse.data.formats import DataError
from midcourse.detect.attacks import Change, read_changes


def test_texts_before_and_after_are_read_by_any_of_their_names(tmp_path):
    rows = [{"llm": "a b", "humanized": "a c"}, {"before": "d", "after": "e"}, {"machine": "f", "edited": "g"}]
    with gzip.open(tmp_path / "changes.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert read_changes(tmp_path / "changes.jsonl.gz") == [Change("a b", "a c"), Change("d", "e"), Change("f", "g")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"llm": "a"}, "field after: the field is missing; each row needs after or humanized"),
        ({"after": "a"}, "field before: the field is missing; each row needs before or machine or llm"),
        ({"before": "a", "after": " "}, "field after: the text is empty"),
    ],
)
def test_rows_that_lack_one_are_refused(tmp_path, row, message):
    (tmp_path / "changes.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        read_changes(tmp_path / "changes.jsonl")
