"""midcourse detect mix, as a user would call it."""

import json
import re

import pytest

from midcourse.detect.texts import read_texts
from midcourse.lm.language_model import LanguageModel
from tests.chat_server import KEY, completion
from tests.cli.printed import refused


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"human": f"Ship {i} came in. Nobody {i} saw it.", "llm": f"A machine's {i}."} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def louder(request):
    asked = re.findall(r"^(\d+)\. (.*)$", request["messages"][1]["content"], re.MULTILINE)
    return 200, completion("\n".join(f"{number}. As they say, {said}" for number, said in asked))


def test_a_server_mixes_a_file(midcourse, serve, texts, tmp_path):
    server, out = serve(louder), tmp_path / "mixed.jsonl"
    asked = ("detect", "mix", "--texts", texts, "--out", out, "--server", server.url, "--model", "m", "--ratio", 0.5)
    code, _, err = midcourse(*asked)
    assert code == 0, err
    assert f"3 texts, 3 of 6 sentences rephrased in {out}" in err and "3 texts that are not human" in err
    assert server.keys == [f"Bearer {KEY}"] * 3
    found = read_texts(out)
    assert [text.label for text in found] == ["human", "mixed", "machine"] * 3
    assert all("As they say, " in text.text for text in found if text.label == "mixed")
    refused(midcourse(*asked), "exists already; add --resume")
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:2]))
    assert midcourse(*asked, "--resume")[0] == 0
    assert len(server.requests) == 4
    refused(midcourse(*asked[:-1], 0.9, "--resume"), "holds rows with ratio 0.5, not 0.9")


def test_a_text_that_fails_is_counted(midcourse, serve, texts, tmp_path):
    server = serve(lambda request: (200, completion("")))
    code, _, err = midcourse(
        "detect", "mix", "--texts", texts, "--out", tmp_path / "mixed.jsonl", "--server", server.url, "--model", "m",
        "--retries", 0,
    )  # fmt: skip
    assert code == 1, err  # nothing was made
    assert "0 of 6 sentences rephrased; 3 could not be: 0 texts have fewer new ones, 3 have failed" in err


def test_a_local_model_mixes_a_file(midcourse, lm_folder, texts, tmp_path):
    folder, out = tmp_path / "lm", tmp_path / "mixed.jsonl"
    lm = LanguageModel.load(lm_folder)
    lm.model.config.max_position_embeddings = 4096
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    code, _, err = midcourse(
        "detect", "mix", "--texts", texts, "--out", out, "--lm", folder, "--top-k", 0, "--temperature", 0.5,
        "--retries", 1, "--batch-size", 4,
    )  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(row["rephrased"]) + len(row["failed"]) for row in rows] == [1, 1, 1]
    assert {row["rephrased_by"] for row in rows} == {str(folder)}


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--model", "m"), "--model is a server's model; give its address with --server"),
        (("--server", "http://x/v1"), "--server needs --model NAME"),
        (("--server", "http://x/v1", "--model", "m", "--top-k", 5), "--top-k is for a local language model"),
        (("--server", "http://x/v1", "--model", "m", "--batch-size", 5), "--batch-size is for a local"),
        (("--server", "http://x/v1", "--model", "m", "--lm", "gpt2"), "--lm is for a local language model"),
        (("--server", "localhost", "--model", "m"), "rephraser 'localhost' is no address"),
        (("--texts", "missing.jsonl"), "missing.jsonl cannot be read"),
        (("--ratio", 0), "ratio 0.0 is no share of the sentences"),
        (("--seed", -1), "seed -1 is negative"),
        (("--retries", -1), "retries -1 is negative"),
        (("--batch-size", 0), "batch-size 0 holds no row"),
        (("--top-p", 0), "top-p 0.0"),
    ],
)
def test_what_goes_wrong_is_said_in_one_sentence(midcourse, lm_folder, texts, tmp_path, flags, problem):
    model = () if "--server" in flags or "--model" in flags else ("--lm", lm_folder)
    refused(midcourse("detect", "mix", "--texts", texts, "--out", tmp_path / "mixed.jsonl", *model, *flags), problem)


def test_texts_that_are_none_are_refused(midcourse, lm_folder, tmp_path):
    asked = ("--out", tmp_path / "mixed.jsonl", "--lm", lm_folder)
    binary, machine = tmp_path / "text.txt", tmp_path / "machine.jsonl"
    binary.write_bytes(b"A text.\0")
    machine.write_text('{"text": "Beep.", "label": "machine"}\n')
    refused(midcourse("detect", "mix", "--texts", binary, *asked), "is no text: it holds the byte 0")
    refused(midcourse("detect", "mix", "--texts", machine, *asked), "none of the 1 texts is human")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": 3}\n{"text": "Beep.", "label": "machine"}\n')
    refused(midcourse("detect", "mix", "--texts", bad, *asked), "line 1, field text: 3 is not a text")
    code, _, err = midcourse("detect", "mix", "--texts", bad, "--skip-bad-rows", tmp_path / "rejects.jsonl", *asked)
    assert code == 2 and err.startswith("skipped 1 bad rows") and "none of the 1 texts is human" in err
