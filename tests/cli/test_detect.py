"""midcourse detect fit, calibrate, score and evaluate, as a user would call them, one after the other."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from midcourse.cli.verbs import parse
from tests.cli.printed import refused, rows

WORDS = ("ferry", "harbour", "captain", "bridge", "letter", "window")


def said(number: int, machine: bool, words: int = 30) -> str:
    """A text of so many words; machines shout."""
    text = " ".join(
        f"{WORDS[(number + i) % len(WORDS)]}{(number * 7 + i * (1 + number // 30)) % 10}" for i in range(words)
    )
    return text.upper() if machine else text


def write(path: Path, found: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    found = [
        {"text": said(i, machine), "label": label, "domain": domain, "model": "loud" if machine else ""}
        for domain in ("news", "letters")
        for label, machine in (("human", False), ("machine", True))
        for i in range(4)
    ]
    return write(tmp_path_factory.mktemp("texts") / "labelled.jsonl", found)


@pytest.fixture(scope="module")
def detector(tmp_path_factory, lm_folder, labelled) -> Path:
    """Fitted on both kinds, calibrated on human texts of its own, 20 of each length, and machine ones."""
    folder = tmp_path_factory.mktemp("detectors")
    out = folder / "detector"
    human = write(folder / "human.jsonl", [{"text": said(i, False), "domain": "news"} for i in range(100, 120)])
    machine = write(folder / "machine.jsonl", [{"llm": said(i, True)} for i in range(200, 220)])
    for verb, *flags in (
        ("detect fit", labelled, "--layers", 2, "--lm", lm_folder, "--out", out),
        ("detect calibrate", "--detector", out, "--human", human, "--machine", machine),
    ):
        assert parse(verb, list(map(str, flags))).run() == 0
    return out


def test_fitting_says_how_it_was_chosen(midcourse, labelled, lm_folder, tmp_path):
    asked = ("detect", "fit", labelled, "--layers", 2, "--lm", lm_folder, "--out", tmp_path / "detector")
    code, printed, err = midcourse(*asked)
    assert code == 0, err
    assert "Told apart without having learned from the domain" in " ".join(printed.split())
    assert "letters" in printed and "news" in printed
    assert "fitted on 8 human and 8 machine texts" in printed
    refused(midcourse(*asked), "detector exists already; name a new folder for --out")
    own = ("detect", "calibrate", "--detector", tmp_path / "detector", "--human", labelled, "--out", tmp_path / "mine")
    refused(midcourse(*own), "the detector learned from 8 of these 8 texts, whose scores say nothing of other people's")
    code, printed, err = midcourse(*asked[:-1], tmp_path / "other", "--ridge", 50, "--no-surprise", "--json")
    assert code == 0, err
    assert json.loads(printed)["ridge"] == 50
    info = json.loads((tmp_path / "other/midcourse.json").read_text())
    assert info["objective_settings"]["reading"] == {"layers": [2], "surprise": False, "burn_in": 48}


def test_a_long_text_and_what_it_hides_are_said(midcourse, detector, tmp_path):
    (tmp_path / "long.txt").write_text("the ferry\u200b was l\u0430te " * 40)
    code, printed, err = midcourse("detect", "score", tmp_path / "long.txt", "--detector", detector, "--fpr", 0.05)
    assert code == 0, err
    shown = " ".join(printed.replace("│", " ").split())
    assert "read in" in shown and "parts, since" in shown and "40 unseen" in shown
    code, printed, err = midcourse("detect", "score", tmp_path / "long.txt", "--detector", detector, "--json")
    [row] = rows(printed)
    assert row["windows"] > 1 and row["unseen"] == row["lookalikes"] == 40


def test_what_was_calibrated_answers(midcourse, detector, tmp_path):
    texts = write(tmp_path / "texts.jsonl", [{"text": said(300, True)}, {"text": said(105, False)}, {"text": "short"}])
    asked = ("detect", "score", texts, "--detector", detector, "--fpr", 0.05)
    code, printed, err = midcourse(*asked, "--json", "--html", tmp_path / "page.html")
    assert code == 0, err
    machine, human, short = rows(printed)
    assert (machine["verdict"], short["verdict"]) == ("machine", "cannot tell")
    assert human["verdict"] != "machine" and human["score"] < machine["score"]
    assert machine["texts"] == 20 and machine["score"] > machine["threshold"]
    assert short["reason"].startswith("not resolvable at this rate: 0 calibration texts of under 25 words")
    page = re.sub(r"<[^>]+>", "", (tmp_path / "page.html").read_text())
    assert "FERRY" in page and "texts.jsonl, row 1: machine" in page and "no ground to judge a person by" in page
    code, printed, err = midcourse(*asked)
    assert code == 0, err
    assert "parts" not in printed
    assert "machine" in printed and "A verdict is no ground to judge a person by." in printed


def test_many_texts_go_to_a_file_and_on_from_there(midcourse, detector, tmp_path):
    texts = write(tmp_path / "texts.jsonl", [{"text": said(i, i % 2 == 0)} for i in range(4)])
    out = tmp_path / "verdicts.jsonl"
    asked = ("detect", "score", texts, "--detector", detector, "--fpr", 0.05, "--out", out)
    assert midcourse(*asked)[0] == 0
    whole = out.read_bytes()
    refused(midcourse(*asked), "add --resume")
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    code, _, err = midcourse(*asked, "--resume")
    assert code == 0 and "2 verdicts written" in err and "2 were there" in err
    assert out.read_bytes() == whole
    refused(midcourse(*asked, "--resume", "--html", tmp_path / "page.html"), "leave one of them out")


@pytest.mark.slow
def test_ten_thousand_texts_take_no_more_memory_than_a_thousand(detector, tmp_path):
    """But for the texts themselves."""
    peaks = {}
    for count in (1_000, 10_000):
        texts = write(tmp_path / f"{count}.jsonl", [{"text": said(i, i % 2 == 0, words=2)} for i in range(count)])
        out = tmp_path / f"{count}.verdicts.jsonl"
        flags = list(map(str, (texts, "--detector", detector, "--fpr", 0.05, "--out", out)))
        program = (
            "import resource; from midcourse.cli.verbs import parse; "
            f"assert parse('detect score', {flags!r}).run() == 0; "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert len(out.read_text().splitlines()) == count
        peaks[count] = int(done.stdout.split()[-1])  # kilobytes on Linux
    assert peaks[10_000] - peaks[1_000] < 40_000


def test_a_plain_text_and_a_folder_are_read(midcourse, detector, tmp_path):
    (tmp_path / "a.txt").write_text(said(1, True))
    (tmp_path / "b.md").write_text(said(2, False))
    code, printed, err = midcourse("detect", "score", tmp_path, "--detector", detector, "--fpr", 0.05, "--json")
    assert code == 0, err
    assert [Path(row["name"]).name for row in rows(printed)] == ["a.txt", "b.md"]
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xfa")
    refused(midcourse("detect", "score", tmp_path / "c.txt", "--detector", detector), "is not UTF-8 (byte 1 is 0xff)")


def test_a_file_of_another_kind_is_never_gone_on_with(midcourse, detector, tmp_path):
    """Not even one without a line's end, which might be a row that was being written."""
    texts = write(tmp_path / "texts.jsonl", [{"text": said(1, False)}])
    asked = ("detect", "score", texts, "--detector", detector, "--fpr", 0.05, "--resume", "--out")
    for content, message in (("chapter one", "holds a line that is no row"), ('{"a": 1}', "has no .*asked.json")):
        other = tmp_path / "other.txt"
        other.write_text(content)
        code, _, err = midcourse(*asked, other)
        assert code == 2 and re.search(message, err), err
        assert other.read_text() == content
    page = tmp_path / "mine.html"
    page.write_text("<html>mine</html>")
    refused(midcourse("detect", "score", texts, "--detector", detector, "--html", page), "is there and no page of")
    assert page.read_text() == "<html>mine</html>"


def test_names_are_those_of_the_file(midcourse, detector, tmp_path):
    path = tmp_path / "texts.jsonl"
    first, last = (json.dumps({"text": said(number, True)}) for number in (1, 2))
    path.write_text(f'{first}\n{{"text": null}}\n{last}\n')
    asked = ("detect", "score", path, "--detector", detector, "--skip-bad-rows", tmp_path / "bad.jsonl", "--json")
    code, printed, err = midcourse(*asked)
    assert code == 0, err
    assert [row["name"].rpartition(", ")[2] for row in rows(printed)] == ["row 1", "row 3"]
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("some text")
    (folder / "b.docx").write_text("another")
    code, printed, err = midcourse("detect", "score", folder, "--detector", detector, "--json")
    assert code == 0 and "not read in" in err and "b.docx, sub" in err


def test_everything_is_measured(midcourse, detector, labelled, lm_folder, tmp_path):
    changed = write(tmp_path / "changed.jsonl", [{"llm": said(i, True), "humanized": said(i, False)} for i in range(3)])
    code, printed, err = midcourse(
        "detect", "evaluate", labelled, "--detector", detector, "--fpr", 0.05, "--attacks", "white-space",
        "--changed", changed, "--lengths", "--baselines", "--base", lm_folder, "--learn-from", labelled,
        "--lm", lm_folder, "--json", "--html", tmp_path / "page.html",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(printed)
    assert [(row["domain"], row["model"], row["auroc"]) for row in found["cells"]] == [
        ("letters", "loud", 1.0), ("news", "loud", 1.0),
    ]  # fmt: skip
    assert {row["domain"] for row in found["realised"]} == {"letters", "news"}
    assert [(row["domain"], row["model"], row["machine"]) for row in found["found"]] == [
        ("letters", "loud", 1.0), ("news", "loud", 1.0),
    ]  # fmt: skip
    assert [row["words"] for row in found["lengths"]] == [30]
    spaces, tool = found["attacks"]
    assert spaces["after"] == spaces["before"] == 1.0 and (tool["before"], tool["after"]) == (1.0, 0.0)
    assert {
        "detector",
        "fast-detectgpt",
        "binoculars",
        "implicit",
        "character n-grams",
        "direction",
        "commas per word",
    } <= (found["auroc"][0].keys())
    assert found["auroc"][0]["implicit"] == 0.5  # of a model beside itself
    page = (tmp_path / "page.html").read_text()
    assert "Machine texts told from human ones" in page and "Expected\ncalibration error" in page
    code, printed, err = midcourse("detect", "evaluate", labelled, "--detector", detector, "--fpr", 0.05)
    assert code == 0, err
    assert "the detector learned from 16 of these 16 texts; figures flatter it" in err
    assert "too few" in printed and "type-token ratio" in printed


def test_a_detector_of_ones_own_is_made_of_another(midcourse, detector, tmp_path):
    mine = [{"text": said(i, False), "domain": "mine"} for i in range(40, 60)]
    human = write(tmp_path / "human.jsonl", [*mine, *mine[:3]])
    (detector / "README.md").write_text("how it did")
    asked = ("detect", "calibrate", "--detector", detector, "--human", human, "--fpr", 0.05)
    code, printed, err = midcourse(*asked, "--out", tmp_path / "mine", "--json")
    assert code == 0, err
    assert "3 of 23 texts repeat others; each counts once" in err
    sizes = {(row["group"], row["length"]): row["texts"] for row in json.loads(printed)["thresholds"]}
    assert sizes["", ""] == sizes["mine", ""] == 20
    assert not (tmp_path / "mine/README.md").exists()  # the other one's figures
    assert json.loads((tmp_path / "mine/detector.json").read_text())["about"]["machines"] == 20  # those of before
    assert "news" in json.loads((detector / "detector.json").read_text())["about"]["groups"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("mine")
    refused(midcourse(*asked, "--out", tmp_path / "other"), "is there already; name a new folder")
    assert (tmp_path / "other/letter.txt").exists()
    (tmp_path / "other/midcourse.json").write_text("a reward of another kind")
    refused(midcourse(*asked, "--out", tmp_path / "other"), "is there already; name a new folder")
    vader = ("detect", "calibrate", "--detector", "vader", "--human", human, "--out", tmp_path / "new")
    refused(midcourse(*vader), "--detector vader is no folder of a detector or a reward")
    refused(
        midcourse(*asked, "--machine", write(tmp_path / "m.jsonl", [{"text": "a", "label": "human"}])), "no machine"
    )


def test_groups_with_too_few_texts_are_named(midcourse, detector, tmp_path):
    """A text that may be one of theirs gets no verdict; all of one group, it does."""
    rows_ = [{"text": said(i, False), "domain": "news" if i < 520 else "poems"} for i in range(500, 523)]
    human = write(tmp_path / "human.jsonl", rows_)
    asked = ("detect", "calibrate", "--detector", detector, "--human", human, "--fpr", 0.05)
    code, _, err = midcourse(*asked, "--out", tmp_path / "by-domain")
    assert code == 0 and "too few texts for this rate: poems (3); a text whose group is not known" in err
    code, _, err = midcourse(*asked, "--out", tmp_path / "together", "--by", "none")
    assert code == 0 and "too few" not in err
    (tmp_path / "text.txt").write_text(said(300, True))
    for folder, verdict in (("by-domain", "cannot tell"), ("together", "machine")):
        score = ("detect", "score", tmp_path / "text.txt", "--detector", tmp_path / folder, "--fpr", 0.05, "--json")
        code, printed, err = midcourse(*score)
        assert code == 0, err
        assert rows(printed)[0]["verdict"] == verdict


def test_what_makes_no_sense_is_refused(midcourse, detector, labelled, tmp_path):
    score, evaluate = ("detect", "score", labelled, "--detector"), ("detect", "evaluate", labelled, "--detector")
    refused(midcourse(*score, detector, "--fpr", 2), "--fpr 2 is no rate between 0 and 0.5; use 0.01 for 1%, say")
    refused(midcourse(*score, tmp_path / "none"), "none is no folder of a detector; name one, or shipped")
    refused(midcourse(*score, detector, "--group", "poems"), "group 'poems' was not calibrated; use one of: news")
    refused(midcourse(*evaluate, detector, "--base", "smollm2"), "--base is for --baselines; give both")
    refused(midcourse(*score, detector, "--html", labelled), "is no page; name a file that ends in .html")
    refused(midcourse(*score, detector, "--html", tmp_path / "no/page.html"), "lies in no folder that is there")
    refused(midcourse("detect", "score", "", "--detector", detector), "no file of texts is named")
    refused(midcourse(*evaluate, "none", "--changed", tmp_path / "none.jsonl"), "none.jsonl cannot be read")
    refused(midcourse(*score, detector, "--json", "--out", tmp_path / "out"), "--out holds rows of JSON already")
    refused(
        midcourse(*evaluate, detector, "--known-groups"), "domain 'letters' is no group of the detector, which has news"
    )
    twice = write(tmp_path / "twice.jsonl", [{"human": "the  ferry", "llm": "the ferry"}])
    refused(midcourse("detect", "evaluate", twice, "--detector", detector), "is labelled human and machine")
    refused(midcourse("detect", "fit", twice, "--out", tmp_path / "d"), "is labelled human and machine")
    beside = write(tmp_path / "beside.jsonl", [{"text": "the ferry", "human": "a", "llm": "b"}])
    refused(midcourse("detect", "score", beside, "--detector", detector), "stands beside human")
    humans = write(tmp_path / "human.jsonl", [{"text": "the ferry was late", "label": "human"}])
    refused(midcourse("detect", "evaluate", humans, "--detector", detector), "no text with label machine")
    refused(midcourse("detect", "fit", humans, "--out", tmp_path / "d"), "no machine text to learn from")
