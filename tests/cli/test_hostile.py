"""What models and files hold reaches a terminal as marks that are seen, never as commands that it obeys."""

import json
import unicodedata


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


SUBSETS = ["[/foo]", "[red]a[/red]", "\x1b[2J", "two\x07"]


def test_names_of_subsets(midcourse, tmp_path):
    rows = [{"prompt": "p", "chosen": "good", "rejected": "bad", "subset": name} for name in SUBSETS * 2]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = midcourse("reward-bench", "--reward-function", "vader", "--comparisons", path)
    assert code == 0, err
    assert not controls(out + err)
    for shown in ("[/foo]", "[red]a[/red]", "␛[2J", "two␇"):
        assert shown in out


def test_names_of_texts_and_messages_of_errors(midcourse, tmp_path):
    folder = tmp_path / "\x1b[31m[bold]"
    folder.mkdir()
    code, out, err = midcourse("detect", "score", folder)
    assert code == 2 and not controls(out + err)
    assert "␛[31m[bold]" in err


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
