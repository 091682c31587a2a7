"""What models and files hold reaches a terminal as marks that are seen, never as commands that it obeys."""

import json
import logging
import unicodedata
from pathlib import Path


def controls(text: str) -> set[str]:
    return {letter for letter in text if unicodedata.category(letter) == "Cc" and letter not in "\n\t"}


def test_what_a_model_writes(midcourse, lm_folder):
    """Random bytes of a tiny model: most texts have an escape or another control character."""
    asked = ["guide", "--lm", lm_folder, "--method", "plain", "--top-k", 256, "--temperature", 5, "--prompt", "a"]
    code, out, err = midcourse(*asked, "--json")
    assert code == 0, err
    text = json.loads(out)["text"]
    assert controls(text)  # JSON stays exact
    _, shown, err = midcourse(*asked)
    assert len(shown) == len(text) + 1
    _, streamed, more = midcourse(*asked, "--stream")
    assert streamed == shown
    assert not controls(shown + err + more)


SUBSETS = ["[/foo]", "[red]a[/red]", "\x1b[2J", "two\x07", ":bomb:"]


def test_names_of_subsets(midcourse, tmp_path):
    rows = [{"prompt": "p", "chosen": "good", "rejected": "bad", "subset": name} for name in SUBSETS * 2]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = midcourse("reward-bench", "--reward-function", "vader", "--comparisons", path)
    assert code == 0, err
    assert not controls(out + err)
    for shown in ("[/foo]", "[red]a[/red]", "␛[2J", "two␇", ":bomb:"):
        assert shown in out


def test_names_of_texts_and_messages_of_errors(midcourse, tmp_path):
    folder = tmp_path / "\x1b[31m[bold]"
    folder.mkdir()
    code, out, err = midcourse("detect", "score", folder)
    assert code == 2 and not controls(out + err)
    assert "␛[31m[bold]" in err


def test_what_a_library_logs_and_warns_of(midcourse, model_folder):
    """transformers speaks of a kind of rotation that it does not know."""
    folder = model_folder()
    config = json.loads(Path(folder, "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "\x1b[31mX\x9b\u202e", "rope_theta": 1.0}
    Path(folder, "config.json").write_text(json.dumps(config))
    code, out, err = midcourse("guide", "--lm", folder, "--prompt", "a", "--method", "plain")
    assert code == 2 and "31mX" in err
    assert not controls(out + err) and "\u202e" not in err
    record = logging.getLogRecordFactory()("transformers", 30, "path", 1, "\x1b[%s", ("\u202e",), None)
    assert record.getMessage() == "␛[⟨U+202E⟩"


def test_arguments_that_are_not_understood(midcourse):
    code, out, err = midcourse("guide", "--template", "\x1b[31m\u202e", "--prompt", "x")
    assert code == 2 and "␛[31m" in err
    assert not controls(out + err) and "\u202e" not in err


def test_a_scored_text(midcourse, reward_folder):
    asked = ["score", "--reward", reward_folder, "--prompt", "p", "--text", "a\x1b[2Jb\u202e", "--table"]
    code, out, err = midcourse(*asked)
    assert code == 0 and not controls(out + err), err
    assert "a␛[2Jb⟨U+202E⟩" in out


def test_edits(midcourse, tmp_path, lm_folder):
    path = tmp_path / "edits.jsonl"
    path.write_text(json.dumps({"original": "a \x1b[2Jtext", "edited": "a better \x1b[2Jtext"}) + "\n")
    code, out, err = midcourse("edits", "label", path, "--tokenizer", lm_folder)
    assert code == 0 and not controls(out + err), err
    assert "␛[2J" in out
