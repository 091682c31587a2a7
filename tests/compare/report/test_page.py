"""What a comparison leaves to read: files that agree, and a page that stands alone and runs no text that it shows."""

import csv
import json
import re
from io import StringIO
from pathlib import Path

import pytest

from midcourse.compare.report.charts import charts
from midcourse.compare.report.page import tokens_of_row, write_report
from midcourse.compare.report.tables import escaped, markdown, matched_tables
from midcourse.compare.rows import ComparisonError, read_folder
from midcourse.show.tokens import Token, number
from tests.browser import CHROMIUM, probed
from tests.compare.comparison import made_up, row, score, write
from tests.show.test_page import HOSTILE, Page

NASTY = f"{HOSTILE}</script><script>document.title = 'worse'</script>\x00\x1b[31m\u2028|`$x^2$`"
FILES = {"table.md", "table.csv", "summary.json", "curves.png", "report.html"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A reported comparison with methods of every kind: its folder and its summary."""
    folder = write(tmp_path_factory.mktemp("study"), *made_up(prompts=12, tokens=12))
    return folder, write_report(folder)


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """A reported comparison whose every word is hostile: arms, judges, rewards, prompts, texts."""
    rows, judged = [], []
    for arm, prompt in ((arm, prompt) for arm in ("plain", f"pargs {NASTY} w=1") for prompt in range(3)):
        one = row(arm, prompt, prompt=NASTY, text=NASTY, reward=NASTY, setting={"reward_weight": 1.0, NASTY: NASTY})
        one["tokens"][0].update(text=NASTY, reward=1.0)
        one["guidance_kl"] = 0.0 if arm == "plain" else 3.0
        rows.append(one)
        judged.append(score(one, NASTY, prompt + 0.1 * len(rows)))
    folder = write(tmp_path_factory.mktemp("nasty"), rows, judged, {"judges": {NASTY: {"accuracy": 0.5}}})
    write_report(folder)
    return folder


def tables(page: Page) -> int:
    return sum(tag == "table" for tag, _ in page.elements)


def texts(page: Page) -> dict:
    return json.loads(next(text for text in page.texts["script"] if text.startswith("{")))


def test_all_files_are_written_and_say_the_same(study):
    folder, summary = study
    assert {path.name for path in folder.iterdir()} >= FILES
    stored = json.loads((folder / "summary.json").read_text())
    assert stored["arms"].keys() == summary["arms"].keys() and "versions" in stored
    listed = {r["arm"]: r for r in csv.DictReader(StringIO((folder / "table.csv").read_text()))}
    page = Page(folder / "report.html")
    cells, md = set(page.texts["td"]), (folder / "table.md").read_text()
    assert listed.keys() == summary["arms"].keys() <= set(page.texts["th"])
    for arm, found in summary["arms"].items():
        for judge in ("vader", "independent"):
            said = found["judges"][judge]["score"]
            if said:
                mean, (low, high) = said["mean"], said["interval"]
                columns = [float(listed[arm][f"{judge}_score{end}"]) for end in ("", "_low", "_high")]
                assert columns == [mean, low, high]
                assert f"{number(mean)} [{number(low)}, {number(high)}]" in md
                assert number(mean) in cells
    assert len(re.findall("^## ", md, re.M)) == tables(page) - sum(tag == "details" for tag, _ in page.elements)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_matched_scores_come_first(study):
    folder, summary = study
    md = (folder / "table.md").read_text()
    assert md.index("## vader at equal guidance KL") < md.index("## vader: every arm")
    assert "not reached" in md and "\N{LESS-THAN OR EQUAL TO}" in md
    first = next(matched_tables(summary, "vader"))
    assert first.columns[:3] == ["method", "0.636 nats (the bound of best-of-n:4 civil)", first.columns[2]]
    assert [r[0].text for r in first.rows] == ["pargs civil", "args-stochastic civil", "best-of-n civil \u2264"]


@pytest.mark.slow
def test_every_row_of_a_markdown_table_has_its_columns(nasty, study):
    for folder in (nasty, study[0]):
        blocks = re.findall(r"(?:^\|.*\n)+", (folder / "table.md").read_text(), re.M)
        for block in blocks:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
        assert blocks


def test_markdown_shows_words_as_they_are():
    assert escaped("a|b\n<script> *x* `y`") == r"a\|b \<script\> \*x\* \`y\`"
    assert escaped("[click](javascript:x)") == r"\[click](javascript:x)" and escaped("[0.1, 0.2]") == "[0.1, 0.2]"
    assert escaped("my_reward w=0.5") == "my_reward w=0.5" and "\x00" not in escaped("\x00")


def test_the_report_is_written_again_as_rows_come(tmp_path):
    folder = write(tmp_path, [row("plain", 0)])
    assert write_report(folder)["prompts"] == 1
    assert not (folder / "curves.png").exists()  # nothing to draw, and no old picture is left
    write(folder, [row("plain", 0), row("plain", 1)])
    assert write_report(folder)["prompts"] == 2
    with pytest.raises(ComparisonError, match=r"has no results.jsonl"):
        write_report(tmp_path / "elsewhere")


@pytest.mark.parametrize("arms", [("plain",), ("pargs r w=1",), ("reference",), ("plain", "reference")])
def test_little_to_go_on_makes_a_page_all_the_same(tmp_path, arms):
    rows = [row(arm, 0, **({"tokens": [], "cost": None} if arm == "reference" else {})) for arm in arms]
    for judged in ([], [score(r, "gold", 1.0) for r in rows]):
        write_report(write(tmp_path, rows, judged))
        page = Page(tmp_path / "report.html")
        assert page.open == [] and tables(page) >= 3 and set(arms) <= set(page.texts["th"])
        assert "One prompt gives no interval" in (tmp_path / "table.md").read_text()


def test_a_chart_on_the_page_has_its_line_band_points_and_whiskers(study):
    folder, summary = study
    page = Page(folder / "report.html")
    parts = [(tag, a) for tag, a in page.elements if a.get("data-series") == "best-of-n civil"]
    marked = [a for tag, a in parts if tag == "circle"]
    assert all(a["class"] == "series t point" and "\n" in a["data-detail"] for a in marked)
    hollow = [a["data-detail"].split("\n")[0] for a in marked if "fill: var(--surface)" in a["style"]]
    assert set(hollow) == {"best-of-n:4 civil", "best-of-n:16 civil"}  # their KL is a bound; plain's is not
    bands = [a for tag, a in parts if tag == "path" and "fill-opacity" in a["style"]]
    lines = [a for tag, a in parts if tag == "path" and "fill: none" in a["style"] and a["d"].count("L") > 1]
    drawn = [chart for judge in summary["judges"] for chart in charts(summary, judge)]
    best = [s for chart in drawn for s in chart.series if s.name == "best-of-n civil"]
    assert len(marked) == sum(len(s.points) for s in best) and len(bands) == sum(bool(s.line) for s in best) > 0
    assert len(parts) == 2 * len(marked) + len(bands) + len(best) and len(lines) <= len(best)


# Texts


def test_tokens_that_write_nothing_join_what_follows(tmp_path):
    one = row("plain", text="a b", finish_reason="stop")
    parts = [("a", 1.0), ("", 2.0), ("\N{SNOWMAN}", 3.0), ("", 4.0)]
    one["tokens"] = [{**one["tokens"][0], "text": text, "reward": reward} for text, reward in parts]
    assert shown_tokens(write(tmp_path, [one])) == [
        Token("a", 1.0),
        Token("\N{SNOWMAN}", 3.0, tokens=2),
        Token("", 4.0, end=True),
    ]
    assert shown_tokens(write(tmp_path, [{**one, "tokens": []}])) == [Token("a b", None)]


def shown_tokens(folder: Path) -> list[Token]:
    """The tokens of a folder's one response."""
    comparison = read_folder(folder)
    (found,) = comparison.responses
    return tokens_of_row(found, comparison.tokens_of([found.key])[found.key])


def test_the_page_holds_every_text_and_begins_with_the_best_beside_the_reference(study):
    folder, summary = study
    found = texts(Page(folder / "report.html"))
    assert found["arms"] == list(summary["arms"]) and found["left_out"] == 0
    best = max(
        (arm for arm in summary["arms"]), key=lambda arm: summary["arms"][arm]["judges"]["vader"]["score"]["mean"]
    )
    assert (found["arms"][found["left"]], found["arms"][found["right"]]) == ("plain", best)
    written = {r.key: r.text for r in read_folder(folder).responses}
    shown = {
        f"{found['arms'][r['arm']]}/{p['id']}/{r['seed']}": "".join(token[0] for token in r["tokens"])
        for p in found["prompts"]
        for r in p["responses"]
    }
    assert shown == written


def test_colours_are_of_each_guide_by_itself(tmp_path):
    rows = []
    for reward, rewards in (("small", (0.1, 0.2)), ("large", (100.0, 200.0))):
        for prompt, value in enumerate(rewards):
            one = row(f"pargs {reward}", prompt, text="x", reward=reward)
            one["tokens"][0]["reward"] = value
            rows.append(one)
    write_report(write(tmp_path, rows))
    prompts = texts(Page(tmp_path / "report.html"))["prompts"]
    assert [[r["tokens"][0][4] for r in prompt["responses"]] for prompt in prompts] == [[-8, -8], [8, 8]]


def test_only_so_many_texts_are_shown_and_the_rest_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("midcourse.compare.report.page.SHOWN_TOKENS", 8)
    write_report(write(tmp_path, [row("plain", prompt) for prompt in range(5)]))
    page = Page(tmp_path / "report.html")
    assert [prompt["id"] for prompt in texts(page)["prompts"]] == [0, 1] and texts(page)["left_out"] == 3
    assert "The first 2 prompts are here; results.jsonl has the other 3." in " ".join(
        (tmp_path / "report.html").read_text().split()
    )


# Hostile text


def test_hostile_text_is_shown_and_never_runs(nasty):
    page = Page(nasty / "report.html")
    assert page.open == []
    assert not {tag for tag, _ in page.elements} & {"img", "iframe", "link", "object", "base", "form"}
    assert sum(tag == "script" for tag, _ in page.elements) == 3
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    found = texts(page)
    shown = NASTY.replace("\x00", "\N{SYMBOL FOR NULL}").replace("\x1b", "\N{SYMBOL FOR ESCAPE}")
    shown = shown.replace("\r", "\N{SYMBOL FOR CARRIAGE RETURN}")
    assert found["prompts"][0]["text"] == shown
    assert found["prompts"][0]["responses"][0]["tokens"][0][0] == shown
    assert "\x00" not in (nasty / "report.html").read_text()


def test_nothing_is_loaded_from_elsewhere(nasty, study):
    for folder in (nasty, study[0]):
        page = Page(folder / "report.html")
        assert not any({"src", "href", "action"} & attributes.keys() for _, attributes in page.elements)
        code = "".join(page.texts["style"] + [text for text in page.texts["script"] if not text.startswith("{")])
        assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|innerHTML", code)
        assert any("default-src 'none'" in attributes.get("content", "") for _, attributes in page.elements)


def test_hostile_names_stay_in_their_cells(nasty):
    rows = list(csv.reader(StringIO((nasty / "table.csv").read_bytes().decode(), newline="")))
    assert len(rows) == 3 and len(set(map(len, rows))) == 1 and rows[2][0] == f"pargs {NASTY} w=1"
    assert "<script" not in (nasty / "table.md").read_text().replace("\\<script", "")


# A browser, where there is one

PROBE = """
const body = document.querySelector(".wide tbody"), all = table => [...table.rows].map(row => row.cells[0].textContent);
seen.title = document.title;
seen.tables = document.querySelectorAll("table").length;
seen.plots = document.querySelectorAll("svg[role=img]").length;
seen.unsorted = all(body);
const point = document.querySelector(".point"), name = document.querySelector("[data-name]");
point.dispatchEvent(new Event("pointerover", {bubbles: true}));
seen.point = document.getElementById("tip").textContent;
name.dispatchEvent(new Event("pointerenter"));
seen.lit = [...new Set([...document.querySelectorAll(".lit")].map(part => part.dataset.series))];
name.dispatchEvent(new Event("pointerleave"));
seen.faded = document.querySelectorAll(".faded, .lit").length;
const head = document.querySelectorAll(".wide thead th")[2];
head.querySelector("button").click();
seen.sorted = all(body);
head.querySelector("button").click();
seen.ascending = [all(body), head.getAttribute("aria-sort")];
seen.finite = [...document.querySelectorAll("path")].every(path => !/NaN|undefined|None/.test(path.getAttribute("d")));
seen.sides = [...document.querySelector(".pair").querySelectorAll(".side h4 b")].map(name => name.textContent);
seen.prompt = document.querySelector(".pair .prompt").textContent;
seen.text = document.querySelector(".pair .text").textContent;
const token = document.querySelector(".pair .t");
token.focus();
seen.tip = document.getElementById("tip").textContent;
seen.count = document.getElementById("count").textContent;
const filter = document.getElementById("filter");
filter.value = "PROMPT 11:";
filter.dispatchEvent(new Event("input"));
seen.left = [...document.querySelectorAll(".pair .prompt")].map(prompt => prompt.textContent);
filter.value = "";
filter.dispatchEvent(new Event("input"));
const sort = document.getElementById("sort");
sort.selectedIndex = 1;
sort.dispatchEvent(new Event("change"));
const gains = [...document.querySelectorAll(".pair header span:last-child")];
seen.gains = gains.map(gain => +gain.textContent.match(/[+-][\\d.]+$/));
const right = document.getElementById("right");
right.selectedIndex = 1;
right.dispatchEvent(new Event("change"));
seen.chosen = document.querySelector(".sides > :last-child h4 b").textContent;
"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_the_report_works_in_a_browser(tmp_path, study):
    folder, summary = study
    seen = probed(folder / "report.html", tmp_path, PROBE)
    assert seen["title"] == "midcourse compare" and seen["plots"] == 8 and seen["tables"] > 10 and seen["finite"]
    assert seen["point"].startswith("plain\nvader -0.03 [") and seen["point"].endswith("nats per response 0.00")
    assert seen["lit"] == ["pargs civil"] and seen["faded"] == 0
    (first, *_) = matched_tables(summary, "vader")
    assert seen["unsorted"] == [r[0].text for r in first.rows]
    by_score = sorted(first.rows, key=lambda r: -r[2].value)
    assert seen["sorted"] == [r[0].text for r in by_score]
    assert seen["ascending"] == [seen["sorted"][::-1], "ascending"]
    assert seen["sides"] == ["plain", "plain", "pargs civil w=4", "pargs civil w=4"]
    assert seen["prompt"] == "Prompt 0:" and seen["text"] == read_folder(folder).responses[0].text
    assert "position 1\nreward" in seen["tip"] and seen["count"] == "12 of 12 prompts"
    assert seen["left"] == ["Prompt 11:"] and seen["chosen"] == "pargs civil w=1"
    assert seen["gains"] == sorted(seen["gains"], reverse=True) and len(seen["gains"]) == 12


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_hostile_text_in_a_browser(tmp_path, nasty):
    seen = probed(
        nasty / "report.html",
        tmp_path,
        """
        seen.title = document.title;
        seen.prompt = document.querySelector(".pair .prompt").textContent;
        seen.text = document.querySelector(".pair .text .t").textContent;
        seen.arm = document.getElementById("right").selectedOptions[0].textContent;
        seen.images = document.images.length;
        """,
    )
    assert seen["title"] == "midcourse compare" and seen["images"] == 0
    assert seen["prompt"] == seen["text"] and "<script>document.title = 'bad'</script>" in seen["text"]
    assert "\u202eRLO\u202c" in seen["text"] and "\N{SYMBOL FOR NULL}" in seen["text"]
    assert "</script><script>document.title = 'worse'</script>" in seen["arm"]


def test_markdown_of_a_summary_without_judges(tmp_path):
    summary = write_report(write(tmp_path, [row("plain", 0), row("pargs w=1", 0)]))
    assert "- No judge has scored these responses" in markdown(summary)
    assert "## Distance and text" in markdown(summary)
