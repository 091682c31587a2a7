"""Nothing that models, files or folders wrote is obeyed by a terminal."""

import ast
import unicodedata
from pathlib import Path

import pytest

import midcourse
from midcourse.terminal import say, tell, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("a\rb\x08", "a␍b␈"),
        ("\x7f\x9b2J", "␡\N{REPLACEMENT CHARACTER}2J"),
        ("\u202etxt.exe\u2066", "⟨U+202E⟩txt.exe⟨U+2066⟩"),
        ("two lines\n\tand a tab, ünïcode 👩\u200d👧", "two lines\n\tand a tab, ünïcode 👩\u200d👧"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text, shown, capsys):
    assert visible(text) == shown
    say(text)
    tell(text)
    assert capsys.readouterr() == (f"{shown}\n", f"{shown}\n")


def test_no_control_character_is_left():
    every = "".join(map(chr, range(0x3000)))
    left = {letter for letter in visible(every) if unicodedata.category(letter) == "Cc"}
    assert left == {"\t", "\n"}
    assert not {letter for letter in visible(every) if unicodedata.bidirectional(letter) in BIDI_CONTROLS}


BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def test_words_for_people_are_printed_by_one_module():
    """Whatever else prints, prints JSON, which programs read."""
    root = Path(midcourse.__file__).parent
    strange = []
    for path in root.rglob("*.py"):
        if path.name == "terminal.py" and path.parent == root:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                what = ast.unparse(node.args[0]) if node.args else ""
                if not (what.startswith("as_json(") or what == "(out / 'summary.json').read_text()"):
                    strange.append(f"{path.relative_to(root)}, line {node.lineno}: {ast.unparse(node)}")
    assert not strange
