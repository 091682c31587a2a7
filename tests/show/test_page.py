import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from rich.console import Console
from rich.style import Style
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from midcourse.decode.steps import Generation, ScoredCandidate, Step
from midcourse.demo import DemoPair, pick, write_demo_report
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.contract import Score
from midcourse.show.page import write_score_page
from midcourse.show.tokens import (
    DARK,
    END_MARK,
    LIGHT,
    SHADES,
    TERMINAL,
    Palette,
    Token,
    by_change,
    by_position,
    centre,
    centred,
    chance,
    changes,
    mark,
    number,
    score_legend,
    score_line,
    score_table,
    shade,
    tokens_of,
    tokens_of_score,
)
from tests.browser import CHROMIUM, probed

HOSTILE = (
    "<script>document.title = 'bad'</script>\n\n  \"two\" & 'one'\t</div>\u202eRLO\u202c \u05e9\u05dc\u05d5\u05dd"
    " zero\u200bwidth\r\n{{ 7 * 7 }} <img src=x onerror=alert(1)> \N{FAMILY}"
)
SUMMARY = {
    "prompts": 2,
    "weight": 2.0,
    "passed": True,
    "gold_base": 0.1,
    "gold_guided": 0.6,
    "gold_difference": {"mean": 0.5, "interval": [0.25, 0.75]},
    "guidance_kl": 3.0,
    "total_kl": 12.0,
    "perplexity": {"base": 8.0, "guided": 9.0},
    "repeated_bigrams": {"base": 0.01, "guided": 0.02},
    "length": {"base": 24.0, "guided": 23.0},
    "tokens_per_second": {"base": 100.0, "guided": 80.0},
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte, and EOS."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bare = Tokenizer(models.BPE(vocabulary, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|end|>")


def scored(tokenizer, text: str, finished: bool = True) -> Score:
    """A score whose reward at token i is i."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * finished
    return Score(tuple(ids), tuple(tokenizer.decode([i]) for i in ids), tuple(map(float, range(len(ids)))))


def generation(tokenizer, emitted: str, text: str | None = None, eos: bool = True, reward: bool = True) -> Generation:
    """A generation whose reward at token i is i and whose text may end before what was emitted."""
    ids = tokenizer(emitted, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * eos
    steps = tuple(
        Step(
            token_id=token_id,
            text="",
            logprob=-1.0,
            reference_logprob=-2.0,
            reward=float(i) if reward else None,
            weight=1.0,
            guidance_kl=0.5,
            total_kl=0.75,
            candidates=(
                ScoredCandidate(token_id, -2.0, float(i) if reward else None),
                ScoredCandidate(0, -3.0, -7.0 if reward else None),
            ),
        )
        for i, token_id in enumerate(ids)
    )
    stopped = eos or text is not None
    return Generation(
        "p", emitted if text is None else text, steps, "stop" if stopped else "length", 0.0, 0.0, 0.0, 1, 0
    )


def pair(**fields) -> DemoPair:
    tokens = [Token(" good", 1.0), Token(" day", 2.0)]
    return DemoPair(
        **{
            "prompt": "A",
            "topic": "home",
            "base_tokens": tokens,
            "guided_tokens": [replace(token, reward=token.reward + 1) for token in tokens],
            "base_gold": 0.0,
            "guided_gold": 0.5,
            **fields,
        }
    )


class Page(HTMLParser):
    """What a browser would see: elements, and the text and title of every token."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.tokens: list[dict] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        # As a browser reads a file: without universal newlines, which Path.read_text would translate.
        self.feed(path.read_bytes().decode().replace("\r\n", "\n").replace("\r", "\n"))
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        classes = (attributes.get("class") or "").split()
        self.elements.append((tag, attributes))
        if tag not in ("meta", "input", "path"):
            self.open.append("t" if "t" in classes else "prompt" if "prompt" in classes else tag)
        if "t" in classes:
            self.tokens.append({**attributes, "text": ""})
        if "prompt" in classes:
            self.texts.setdefault("prompt", []).append("")

    def handle_endtag(self, tag):
        if tag not in ("meta", "input", "path"):
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            return
        if self.open[-1] == "t":
            self.tokens[-1]["text"] += data
        elif self.open[-1] == "prompt":
            self.texts["prompt"][-1] += data
        else:
            self.texts.setdefault(self.open[-1], []).append(data)

    def text(self) -> str:
        return "".join(token["text"] for token in self.tokens)


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two "#rrggbb" colours."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    parts = [value / 255 for value in bytes.fromhex(colour[1:])]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


# Tokens


def test_parts_of_a_character_are_one_token_with_the_last_reward(tokenizer):
    tokens = tokens_of_score(scored(tokenizer, "a\N{SNOWMAN}é"), tokenizer)
    assert [(token.text, token.reward, token.tokens) for token in tokens] == [
        ("a", 0.0, 1),
        ("\N{SNOWMAN}", 3.0, 3),
        ("é", 5.0, 2),
        ("", 6.0, 1),
    ]
    assert [token.end for token in tokens] == [False, False, False, True]
    assert "token ids" in tokens[1].detail and "<|end|>" in tokens[3].detail


def test_generation_and_score_show_the_same_tokens(tokenizer):
    shown = tokens_of(generation(tokenizer, "né\N{SLIGHTLY SMILING FACE}!"), tokenizer)
    want = tokens_of_score(scored(tokenizer, "né\N{SLIGHTLY SMILING FACE}!"), tokenizer)
    assert [replace(token, detail="") for token in shown] == [replace(token, detail="") for token in want]


def test_detail_sums_over_the_parts_and_names_other_candidates(tokenizer):
    detail = tokens_of(generation(tokenizer, "é"), tokenizer)[0].detail
    assert "logprob -2.000, under the language model -4.000" in detail
    assert "guidance KL 1.000, total KL 1.500" in detail
    assert "other candidates: '!' -7.000" in detail


def test_a_stop_string_is_the_end_mark_with_the_last_reward(tokenizer):
    tokens = tokens_of(generation(tokenizer, "ab###", "ab", eos=False), tokenizer)
    assert [(token.text, token.reward, token.tokens, token.end) for token in tokens] == [
        ("a", 0.0, 1, False),
        ("b", 1.0, 1, False),
        ("", 4.0, 3, True),
    ]


def test_an_incomplete_character_is_a_mark_but_not_the_end(tokenizer):
    cut = generation(tokenizer, "aé", eos=False)
    cut = replace(cut, steps=cut.steps[:-1], text="a")
    tokens = tokens_of(cut, tokenizer)
    assert [(token.text, token.reward, token.end) for token in tokens] == [("a", 0.0, False), ("", 1.0, False)]
    assert mark(tokens[1]) not in ("", END_MARK)


def test_unguided_generation_has_tokens_without_reward(tokenizer):
    tokens = tokens_of(generation(tokenizer, "ab", reward=False), tokenizer)
    assert [token.reward for token in tokens] == [None, None, None]
    assert "candidates" not in tokens[0].detail


def test_empty_generation_is_its_end(tokenizer):
    assert [(token.text, token.end) for token in tokens_of(generation(tokenizer, ""), tokenizer)] == [("", True)]


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\N{REPLACEMENT CHARACTER}")))
def test_tokens_joined_are_the_text(tokenizer, text):
    for tokens in (
        tokens_of_score(scored(tokenizer, text), tokenizer),
        tokens_of(generation(tokenizer, text), tokenizer),
    ):
        assert "".join(token.text for token in tokens) == text
        assert all(len(token.text) == 1 for token in tokens[:-1])
        assert sum(token.tokens for token in tokens) == len(text.encode()) + 1


# Colourings


def test_centre_is_the_mean_over_rows_that_reach_a_position():
    rows = [[Token("a", 1.0), Token("b", 4.0)], [Token("c", 3.0)], [Token("d", None), Token("e", 6.0)]]
    offsets = centre(rows)
    assert offsets == [2.0, 5.0]
    assert [centred(row, offsets) for row in rows] == [[-1.0, -1.0], [1.0], [None, 1.0]]


def test_positions_count_the_models_tokens():
    rows = [[Token("é", 1.0, tokens=2), Token("b", 4.0)], [Token("x", 0.0), Token("y", 3.0), Token("z", 2.0)]]
    assert centre(rows) == [0.0, 2.0, 3.0]
    assert centred(rows[0], centre(rows)) == [-1.0, 1.0]


@given(
    rewards=st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=5),
    constants=st.lists(st.floats(-50, 50), min_size=6, max_size=6),
)
def test_a_constant_per_length_does_not_change_the_colours_of_a_set(rewards, constants):
    rows = [[Token("x", reward) for reward in row] for row in rewards]
    moved = [[Token("x", r + c) for r, c in zip(row, constants, strict=False)] for row in rewards]
    one, other = centre(rows), centre(moved)
    for row, shifted in zip(rows, moved, strict=True):
        assert centred(shifted, other) == pytest.approx(centred(row, one), abs=1e-9)


def test_changes_skip_tokens_without_a_finite_reward():
    rewards = (1.0, None, float("nan"), 3.0, 2.5)
    assert changes([Token("x", reward) for reward in rewards]) == [1.0, None, None, 2.0, -0.5]


def test_scale_leaves_out_the_far_end_and_never_is_zero():
    row = [Token("x", 1.0 * (i % 2)) for i in range(99)]
    assert by_change([*row, Token("x", 1000.0)]).scale == 1.0
    assert by_change([Token("x", 0.0)]).scale == by_change([]).scale == by_position([]).scale == 1.0
    assert by_change([Token("x", 0.12345)]).scale == 0.13
    assert by_change([Token("x", 1234.5)]).scale == 1300.0
    assert by_change([Token("x", 0.5)], [Token("y", 3.0), Token("z", 2.0)]).scale == 3.0


def test_shades_are_symmetric_and_bounded():
    values = (-9.0, -2.0, 0.0, 1.0, 2.0, float("inf"))
    assert [shade(value, 2.0) for value in values] == [-SHADES, -SHADES, 0, 4, SHADES, SHADES]


@pytest.mark.parametrize("palette", [LIGHT, DARK, TERMINAL])
def test_ink_stands_out_on_every_reward(palette: Palette):
    values = [step / 50 for step in range(-100, 101)]
    assert min(contrast(palette.ink, palette.background(shade(value, 1.0))) for value in values) >= 4.5


@pytest.mark.parametrize("palette", [LIGHT, DARK, TERMINAL])
def test_higher_is_bluer_and_lower_is_more_orange(palette: Palette):
    blueness = [
        int(colour[5:], 16) - int(colour[1:3], 16) for colour in map(palette.background, range(-SHADES, SHADES + 1))
    ]
    assert blueness == sorted(blueness) and len(set(blueness)) == len(blueness)
    assert palette.background(0) == palette.zero


def test_contrast_is_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


# The terminal


def printed(text: object, **console) -> str:
    out = StringIO()
    # rich keeps joined styles with the codes of the console that used them first, perhaps one of fewer colours.
    Style._add.cache_clear()
    Console(file=out, width=200, **console).print(text)
    return out.getvalue()


def test_score_line_is_coloured_in_a_terminal_and_plain_in_a_file():
    tokens = [Token("up", 1.0), Token(" down", 0.0), Token("", -1.0, end=True)]
    line = score_line(tokens, by_change(tokens))
    assert printed(line) == f"up down{END_MARK}\n"
    red, green, blue = bytes.fromhex(TERMINAL.high[1:])
    assert f"48;2;{red};{green};{blue}m" in printed(line, force_terminal=True, color_system="truecolor")


def test_score_line_shows_control_characters_and_markup_as_text():
    tokens = [Token("\x1b[31mred\x07", 1.0), Token("[bold]\r\n", 2.0), Token("\ud800", 3.0)]
    line = score_line(tokens, by_change(tokens))
    assert line.plain == "␛[31mred␇[bold]␍\n\N{REPLACEMENT CHARACTER}"


def test_score_legend_gives_numbers_and_meaning():
    legend = score_legend(by_change([Token("x", 0.5)])).plain
    assert "-0.5" in legend and "+0.5" in legend and "change" in legend


def test_score_table_has_a_row_per_token():
    table = printed(score_table([Token("a\n", 1.0), Token("b", None), Token("", 0.5, tokens=2, end=True)]))
    assert table.split("\n")[1].split() == ["1", r"'a\n'", "1.000", "+1.000"]
    assert table.split("\n")[2].split() == ["2", "'b'", "n/a", "n/a"]
    assert table.split("\n")[3].split() == ["4", END_MARK, "0.500", "-0.500"]
    assert score_line([], by_change([])).plain == ""


def test_score_table_shows_what_a_calibration_says():
    tokens = [Token("a", 1.0, centred=0.25, probability=0.625), Token("b", 2.0, centred=-3.0, probability=0.001)]
    table = printed(score_table([*tokens, Token("", 0.5, end=True)]))
    assert table.split("\n")[0].split() == ["position", "token", "reward", "change", "centred", "probability"]
    assert table.split("\n")[1].split()[4:] == ["+0.250", "0.62"]
    assert table.split("\n")[2].split()[4:] == ["-3.000", "<0.01"]
    assert table.split("\n")[3].split()[4:] == ["n/a", "n/a"]


def test_no_probability_is_shown_as_certain():
    assert [chance(p) for p in (0.0, 0.0099, 0.01, 0.5, 0.99, 0.991, 1.0, None)] == [
        *("<0.01", "<0.01", "0.01", "0.50", "0.99", ">0.99", ">0.99", "n/a")
    ]


def test_score_page_shows_what_a_calibration_says(tmp_path, tokenizer):
    score = scored(tokenizer, "ab")
    calibration = Calibration(2.0, None, (1.0, 0.0), None)
    write_score_page(tmp_path / "page.html", "p", tokens_of_score(score, tokenizer, calibration), "t")
    page = Page(tmp_path / "page.html")
    assert "\n-1.000 against the mean here, preferred with probability 0.38\n" in page.tokens[0]["title"]
    assert "against the mean" not in page.tokens[2]["title"]  # no finished text was seen
    assert "centred" in page.texts["th"] and "0.38" in page.texts["td"]
    write_score_page(tmp_path / "plain.html", "p", tokens_of_score(score, tokenizer), "t")
    assert "centred" not in Page(tmp_path / "plain.html").texts["th"]
    assert "No calibration is stored" in (tmp_path / "plain.html").read_text()


# Pages


def test_score_page_shows_tokens_curve_and_numbers(tmp_path, tokenizer):
    path = tmp_path / "new" / "page.html"
    write_score_page(path, "Say", tokens_of_score(scored(tokenizer, "abc"), tokenizer), "A title")
    page = Page(path)
    assert page.text() == "abc" and page.open == []
    assert page.texts["h1"] == page.texts["title"] == ["A title"] and page.texts["prompt"] == ["Say"]
    assert [token.get("data-mark") for token in page.tokens] == [None, None, None, END_MARK]
    assert page.tokens[1]["title"].startswith("'b', position 2\nreward 1.000, change +1.000\ntoken id ")
    assert sum(attributes.get("class") == "dot" for _, attributes in page.elements) == 4
    assert sum(tag == "tr" for tag, _ in page.elements) == 5
    assert "change of the reward" in path.read_text()
    assert "-1" in page.texts["span"] and "+1" in page.texts["span"]


def test_one_token_of_a_text_is_a_tab_stop(tmp_path):
    write_score_page(tmp_path / "page.html", "", [Token("a", 1.0), Token("b", 2.0)], "t")
    assert [token["tabindex"] for token in Page(tmp_path / "page.html").tokens] == ["0", "-1"]


def test_score_page_without_rewards_has_no_colour_and_no_curve(tmp_path):
    write_score_page(tmp_path / "page.html", "p", [Token("a", None), Token("b", None)], "t")
    page = Page(tmp_path / "page.html")
    assert [token["class"] for token in page.tokens] == ["t", "t"]
    assert not any(tag == "svg" for tag, _ in page.elements)


@pytest.mark.parametrize("reward", [0.0, -3.25, 1e-12, 1e9])
def test_pages_of_equal_rewards(tmp_path, reward):
    tokens = [Token("a", reward), Token("b", reward)]
    write_score_page(tmp_path / "score.html", "p", tokens, "t")
    same = pair(base_tokens=tokens, guided_tokens=tokens, base_gold=reward, guided_gold=reward)
    write_demo_report(tmp_path / "demo.html", SUMMARY, [same, same])
    for name in ("score.html", "demo.html"):
        assert any(tag == "path" and "d" in attributes for tag, attributes in Page(tmp_path / name).elements)
    assert all(token["class"] == f"t c{SHADES}" for token in Page(tmp_path / "demo.html").tokens)


def test_pages_of_nothing(tmp_path):
    write_score_page(tmp_path / "score.html", "", [], "t")
    write_demo_report(tmp_path / "demo.html", SUMMARY, [])
    assert Page(tmp_path / "score.html").tokens == Page(tmp_path / "demo.html").tokens == []


def test_chat_prompts_show_their_roles(tmp_path):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    write_score_page(tmp_path / "page.html", messages, [Token("a", 1.0)], "t")
    assert Page(tmp_path / "page.html").texts["prompt"] == ["system: Be kind.\n\nuser: Hello"]


def test_demo_report_shows_figures_and_pairs(tmp_path):
    path = tmp_path / "demo.html"
    pairs = [pair(prompt="first"), pair(prompt="second", guided_gold=-0.25, topic="music", guided_total_kl=9.5)]
    write_demo_report(path, SUMMARY, pairs)
    page, text = Page(path), " ".join(path.read_text().split())
    assert "from 0.10 to 0.60, a difference of +0.50 (95% interval +0.25 to +0.75)" in text
    assert "check passed" in text and "total KL 9.5" in text
    assert "less the mean reward of all texts shown at the same position" in text
    assert page.texts["prompt"] == ["first", "second"] and page.text() == " good day" * 4 and page.open == []
    assert page.tokens[0]["class"] == "t c0" and page.tokens[2]["class"] == f"t c{2 * SHADES}"
    articles = [attributes for tag, attributes in page.elements if tag == "article"]
    assert [float(article["data-gain"]) for article in articles] == [0.5, -0.25]
    assert [article["data-topic"] for article in articles] == ["home", "music"]


def test_a_failed_check_is_said(tmp_path):
    write_demo_report(tmp_path / "demo.html", {**SUMMARY, "passed": False}, [pair()])
    assert "check not passed" in (tmp_path / "demo.html").read_text()


def test_picks_come_first_with_their_reason(tmp_path):
    write_demo_report(tmp_path / "demo.html", SUMMARY, [pair(prompt=name) for name in "abcd"], {"odd": 2, "even": 1})
    page = Page(tmp_path / "demo.html")
    assert page.texts["prompt"] == ["c", "b", "a", "d"]
    assert [text for text in page.texts["span"] if text in ("odd", "even")] == ["odd", "even"]


def test_pick_takes_the_extremes_and_the_median():
    golds = [0.3, -0.2, 0.9, 0.1, 0.5]
    assert pick([pair(guided_gold=gold) for gold in golds]) == {"largest gain": 2, "median": 0, "largest loss": 1}
    assert pick([pair(guided_gold=0.1), pair(guided_gold=0.2)])["smallest gain"] == 0
    assert pick([]) == {}


def test_a_missing_figure_is_an_error(tmp_path):
    with pytest.raises(UndefinedError, match="weight"):
        write_demo_report(tmp_path / "demo.html", {k: v for k, v in SUMMARY.items() if k != "weight"}, [pair()])
    assert list(tmp_path.iterdir()) == []


def test_numbers():
    assert [number(1 / 3), number(-0.001), number(None), number(float("nan"))] == ["0.33", "0.00", "n/a", "n/a"]
    assert number(2, 1, sign=True) == "+2.0" and number(-0.04, 1, sign=True) == "+0.0"


# Hostile text


def hostile_pages(folder: Path, tokenizer) -> list[Path]:
    """A score page and a report whose every text is hostile."""
    tokens = tokens_of_score(scored(tokenizer, HOSTILE), tokenizer)
    tokens[0] = replace(tokens[0], detail=HOSTILE)
    write_score_page(folder / "score.html", HOSTILE, tokens, HOSTILE)
    hostile = pair(prompt=HOSTILE, topic=HOSTILE, base_tokens=tokens, guided_tokens=tokens)
    write_demo_report(folder / "demo.html", SUMMARY, [hostile, pair(prompt="tame")], {HOSTILE: 0})
    return [folder / "score.html", folder / "demo.html"]


def test_hostile_text_is_shown_and_never_runs(tmp_path, tokenizer):
    for path in hostile_pages(tmp_path, tokenizer):
        page = Page(path)
        assert page.texts["prompt"][0] == HOSTILE
        assert page.text().startswith(HOSTILE) and HOSTILE in page.tokens[0]["title"]
        assert page.open == []
        assert not {tag for tag, _ in page.elements} & {"img", "iframe", "link", "object", "base", "form"}
        assert sum(tag == "script" for tag, _ in page.elements) == (2 if path.stem == "demo" else 1)
        assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_nothing_is_loaded_from_elsewhere(tmp_path, tokenizer):
    for path in hostile_pages(tmp_path, tokenizer):
        page = Page(path)
        assert not any({"src", "href", "action"} & attributes.keys() for _, attributes in page.elements)
        code = "".join(page.texts["style"] + page.texts["script"])
        assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(", code)
        assert any("default-src 'none'" in attributes.get("content", "") for _, attributes in page.elements)


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_comes_back_from_the_page(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_score_page(path, text, [Token(text, 1.0)], "t")
    shown = "".join(Page(path).texts.get("prompt", []))
    kept = [(a, b) for a, b in zip(text, shown, strict=True) if a.isprintable() or a in "\n\r\t"]
    assert all(a == b for a, b in kept)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", shown)


def test_half_a_surrogate_can_be_written(tmp_path):
    write_score_page(tmp_path / "page.html", "a\ud800b", [Token("\udfff", 1.0)], "t")
    assert Page(tmp_path / "page.html").texts["prompt"] == ["a\N{REPLACEMENT CHARACTER}b"]


def test_page_colours_stand_out_in_both_themes(tmp_path):
    write_score_page(tmp_path / "page.html", "p", [Token("a", 1.0)], "t")
    style = Page(tmp_path / "page.html").texts["style"][0]
    themes = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)
    for column in (1, 2):
        colours = {theme[0]: theme[column] for theme in themes}
        for ground in ("page", "surface"):
            assert min(contrast(colours[ground], colours[name]) for name in ("ink", "quiet", "accent")) >= 4.5
    light_only = dict(re.findall(r"--(\w+): (#\w{6});", style))
    assert light_only.items() >= {name: light for name, light, _ in themes}.items()


# A browser, where there is one

PROBE = """
Object.assign(seen, {title: document.title, prompt: document.querySelector(".prompt").textContent});
const first = document.querySelector(".t");
first.focus();
seen.tip = document.getElementById("tip").textContent;
first.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
seen.second = document.getElementById("tip").textContent.split("\\n")[0];
seen.lit = [...document.querySelectorAll(".dot.on")].map(dot => dot.dataset.cell);
const filter = document.getElementById("filter"), sort = document.getElementById("sort");
if (filter) {
  sort.value = "topic";
  sort.dispatchEvent(new Event("change"));
  seen.sorted = [...document.querySelectorAll(".pair")].map(element => element.dataset.topic);
  filter.value = "TAME";
  filter.dispatchEvent(new Event("input"));
  seen.left = document.getElementById("count").textContent;
}
"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
@pytest.mark.parametrize("name", ["score.html", "demo.html"])
def test_pages_work_in_a_browser(tmp_path, tokenizer, name):
    hostile_pages(tmp_path, tokenizer)
    seen = probed(tmp_path / name, tmp_path, PROBE)
    assert seen["prompt"] == HOSTILE
    assert seen["tip"].startswith("'<', position 1\nreward 0.000") and seen["tip"].endswith(HOSTILE)
    assert seen["second"] == "'s', position 2"
    assert seen["lit"] == (["1"] if name == "score.html" else [])  # the token's point in the plot
    if name == "demo.html":
        assert seen["title"] == "midcourse demo"
        assert seen["sorted"] == [HOSTILE, "home"] and seen["left"] == "1 of 2 prompts"
