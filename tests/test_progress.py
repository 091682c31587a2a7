"""Progress in a log: lines with the time left, and silence for what is quick."""

from midcourse import progress as module
from midcourse.progress import progress


def test_quick_work_prints_nothing(capsys):
    with progress("quick", 3) as advance:
        for _ in range(3):
            advance(1)
    assert capsys.readouterr() == ("", "")


def test_long_work_prints_what_is_done_and_left_on_standard_error(capsys, monkeypatch):
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    with progress("long", 4) as advance:
        advance(1)
        advance(3)
        advance(0)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(",")[0] for line in err.splitlines()][:2] == ["long: 1/4", "long: 4/4"]
    assert err.splitlines()[1].endswith("0 s left")
