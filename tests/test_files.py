"""Files are whole or absent, whatever happens while they are written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from midcourse import files
from midcourse.errors import MidcourseError
from midcourse.files import as_json, cache_folder, publish_folder, whole_file, whole_folder, write_bytes, write_text

# A process of its own that loads files.py alone: it starts in milliseconds.
ALONE = f"import runpy, sys; from pathlib import Path; files = runpy.run_path({files.__file__!r})\n"


def run_alone(code: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-I", "-c", ALONE + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_write_replaces(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "one")
    write_text(path, "zwölf\n")
    assert path.read_bytes() == "zwölf\n".encode()
    write_bytes(path, b"\xff\0")
    assert path.read_bytes() == b"\xff\0"
    assert names(tmp_path) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_reader_of_the_old_file_keeps_it(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old and longer")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old and longer"


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere/b.txt", tmp_path / "a.txt"
    link.symlink_to(target)
    write_text(link, "one")
    assert link.is_symlink() and target.read_text() == "one"
    folder = tmp_path / "folder"
    folder.symlink_to(tmp_path / "elsewhere")
    with whole_folder(folder) as work:
        (work / "c.txt").write_text("two")
    assert folder.is_symlink() and names(tmp_path / "elsewhere") == ["c.txt"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("I/O error: none (os error 28)")]
)
def test_an_error_of_the_system_names_the_file_and_not_the_temporary_one(error, tmp_path):
    for whole in (whole_file, whole_folder):
        with pytest.raises(OSError, match="No space left on device") as caught, whole(tmp_path / "a"):
            raise error
        assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(RuntimeError, match="else"), whole_file(tmp_path / "a"):
        raise RuntimeError("something else")


def test_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("ne")
            assert temporary.suffix == ".json"
            assert path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files["write_bytes"](Path(sys.argv[1]), b"new" * 1000)
except OSError as error:
    print(error.strerror)
"""
    done = run_alone(code, path)
    assert done.stdout == "File too large\n", done.stderr
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    code = """
import os, signal
with files["whole_file"](Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_alone(code, path).returncode == -9
    assert path.read_bytes() == b"old"


def test_folder_appears_whole(tmp_path):
    folder = tmp_path / "deep" / "folder"
    with whole_folder(folder) as work:
        (work / "inner").mkdir()
        (work / "inner" / "a").write_text("1")
        assert not folder.exists()
    assert names(tmp_path) == ["deep", "deep/folder", "deep/folder/inner", "deep/folder/inner/a"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_folder_is_replaced_with_all_it_held(tmp_path):
    folder = tmp_path / "folder"
    for name in ("a", "b"):
        with whole_folder(folder) as work:
            (work / name).write_text(name)
    assert names(tmp_path) == ["folder", "folder/b"]


def test_error_while_filling_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "folder"
    with whole_folder(folder) as work:
        (work / "a").write_text("1")

    def fail() -> None:
        with whole_folder(folder) as work:
            (work / "b").write_text("2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == ["folder", "folder/a"]


def test_full_disk_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("1")
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with files["whole_folder"](Path(sys.argv[1])) as work:
        (work / "b").write_bytes(b"new" * 1000)
except OSError as error:
    print(error.strerror)
"""
    assert run_alone(code, folder).stdout == "File too large\n"
    assert names(tmp_path) == ["folder", "folder/a"]


def test_published_folder_is_kept_where_it_was_first(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
        publish_folder(tmp_path / name, tmp_path / "folder", replace=False)
    assert (tmp_path / "folder" / "content").read_text() == "first"


def test_folder_that_cannot_be_replaced_stays_as_it_was(tmp_path):
    # A folder cannot be moved into itself: the rename fails after the old folder was moved aside.
    folder = tmp_path / "work" / "folder"
    folder.mkdir(parents=True)
    (folder / "a").write_text("1")
    with pytest.raises(OSError, match="Invalid argument"):
        publish_folder(tmp_path / "work", folder, replace=True)
    assert names(tmp_path) == ["work", "work/folder", "work/folder/a"]


def test_what_a_killed_process_left_is_not_in_the_way(tmp_path):
    left = tmp_path / f".folder-old-{os.getpid()}"
    for folder in (left, tmp_path / "folder"):
        folder.mkdir()
        (folder / "a").write_text("1")
    with whole_folder(tmp_path / "folder") as work:
        (work / "b").write_text("2")
    assert names(tmp_path) == ["folder", "folder/b"]


RACE = """
folder, name = Path(sys.argv[1]), sys.argv[2]
print("here", flush=True)
sys.stdin.read()  # until both are here
for turn in range(60):
    work = folder.parent / f"work-{name}-{turn}"
    work.mkdir()
    for part in range(3):
        (work / str(part)).write_text(name)
    files["publish_folder"](work, folder.with_name(f"folder-{turn}"), replace=False)
"""


def test_two_processes_at_once_end_with_one_whole_folder(tmp_path):
    command = [sys.executable, "-I", "-c", ALONE + RACE, str(tmp_path / "folder")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([*command, name], **pipes) for name in ("a", "b")]
    assert [racer.stdout.readline() for racer in racers] == ["here\n"] * 2
    for racer in racers:
        racer.stdin.close()
    for racer in racers:
        error = racer.stderr.read()
        assert racer.wait(timeout=60) == 0, error
        racer.stdout.close()
        racer.stderr.close()
    for turn in range(60):
        contents = [path.read_text() for path in sorted((tmp_path / f"folder-{turn}").iterdir())]
        assert contents in (["a"] * 3, ["b"] * 3)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "midcourse"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "midcourse"


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"text": "", "tokens": [{"logprob": -1.0}, {"logprob": float("nan")}]}, "tokens.1.logprob = nan"),
        ([1.0, (2.0, float("-inf"))], "1.1 = -inf"),
        (float("inf"), "inf"),
    ],
)
def test_json_holds_finite_numbers_only(value, place):
    with pytest.raises(MidcourseError, match=f"^{place} cannot be written as JSON, which has finite numbers only"):
        as_json(value)


def test_json_is_laid_out_as_asked():
    assert as_json({"a": [None, "ż", 1e308]}) == '{"a": [null, "\\u017c", 1e+308]}'
    assert as_json(["ż"], ensure_ascii=False, indent=1) == '[\n "ż"\n]'
