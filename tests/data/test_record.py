"""One writer at a time, and an output that is only gone on with as it was begun."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from midcourse.data.record import check_same, only_writer, read_record, write_record
from midcourse.errors import MidcourseError

HOLD = """
import sys
from pathlib import Path
from midcourse.data.record import only_writer
from midcourse.errors import MidcourseError
with only_writer(Path(sys.argv[1]), sys.argv[2], "run", MidcourseError):
    print("held", flush=True)
    sys.stdin.read()
"""


class OutputError(MidcourseError):
    """What these outputs raise."""


def holder(out: Path, kind: str) -> subprocess.Popen:
    """A process that holds an output until it is killed or its input ends."""
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(out), kind]
    process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def hold(out: Path, kind: str = "file") -> None:
    with only_writer(out, kind, "run", OutputError):
        pass


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_has_one_writer_until_it_ends_or_is_killed(tmp_path, kind):
    out = tmp_path / "rows"
    for end in (signal.SIGKILL, None):
        process = holder(out, kind)
        try:
            with pytest.raises(
                OutputError, match=rf"^another run \(process {process.pid}\) is writing to .*rows; wait"
            ):
                hold(out, kind)
        finally:
            if end:
                process.send_signal(end)
            process.communicate()
        hold(out, kind)
    assert list(tmp_path.iterdir()) == []


def test_all_names_of_a_file_have_one_lock(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    with only_writer(tmp_path / "rows.jsonl", "file", "run", OutputError):
        for name in ("link.jsonl", "../" + tmp_path.name + "/rows.jsonl"):
            with pytest.raises(OutputError, match=f"process {os.getpid()}"):
                hold(tmp_path / name)
        hold(tmp_path / "other.jsonl")  # another file beside it is free


def test_outputs_of_the_wrong_kind_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for out, kind, said in (
        (tmp_path, "file", "is a folder; name a file for --out"),
        (tmp_path / "file", "folder", "is a file; name a folder for --out"),
        (tmp_path / "none/rows.jsonl", "file", "none is no folder; make it"),
        (tmp_path / "file/rows.jsonl", "file", "file is no folder; make it"),
        (Path("/dev/null"), "file", "is no file that rows can be kept in"),
    ):
        with pytest.raises(OutputError, match=said):
            hold(out, kind)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_record_comes_back_as_it_was_written(tmp_path):
    record = {"stop": ["\udcff", "é\u2028"], "top_k": None, "method": {"top_p": 0.9, "list": [1, 2]}}
    write_record(tmp_path / "r.json", record)
    assert read_record(tmp_path / "r.json", OutputError, "do that") == record
    assert "é" in (tmp_path / "r.json").read_text()


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"null"])
def test_a_damaged_record_is_refused(tmp_path, data):
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(OutputError, match=r"r\.json is damaged \(.*\); do that"):
        read_record(tmp_path / "r.json", OutputError, "do that")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"seed": 1, "method": {"top_k": 10, "top_p": 0.5}, "stop": ["a"]}, "seed 0, not 1"),
        ({"seed": 0, "method": {"top_k": 5, "top_p": 0.5}, "stop": ["a"]}, "method.top_k 10, not 5"),
        ({"seed": 0, "method": {"top_k": 10}, "stop": ["a"]}, "method.top_p 0.5, not None"),
        ({"seed": 0, "method": {"top_k": 10, "top_p": 0.5, "samples": 4}, "stop": ["a"]}, "method.samples None, not 4"),
        ({"seed": 0, "method": {"top_k": 10, "top_p": 0.5}, "stop": []}, r"stop \['a'\], not \[\]"),
    ],
)
def test_the_first_setting_that_differs_is_named_with_both_values(tmp_path, asked, said):
    earlier = {"seed": 0, "method": {"top_k": 10, "top_p": 0.5}, "stop": ["a"]}
    check_same(json.loads(json.dumps(earlier)), {**earlier, "stop": ("a",)}, tmp_path, "rows", OutputError)
    with pytest.raises(OutputError, match=rf"rows\.jsonl holds rows with {said}; resume with the same arguments, or"):
        check_same(earlier, asked, tmp_path / "rows.jsonl", "rows", OutputError)
