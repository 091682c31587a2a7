"""Token rewards from edits, trained on a tiny model: what they learn, and that they are rewards like any other."""

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from midcourse.data.edits import Edit, read_edits
from midcourse.data.encoded import encode_edits, labels_of_edit
from midcourse.data.formats import DataError
from midcourse.decode.engine import generate
from midcourse.lm.language_model import tokenizer_fingerprint
from midcourse.rewards.named import head_of, load_reward
from midcourse.testing import (
    assert_laws,
    tiny_language_model,
    tiny_reward,
    tiny_trained_vocabulary_reward,
    tiny_trunk_reward,
)
from midcourse.train.objectives import ObjectiveError, make_objective
from midcourse.train.settings import Settings
from midcourse.train.training import train


def edit(number: int, random: Random) -> Edit:
    """A text in which every x is wrong and should be a y."""
    letters = "".join(random.choice("abcx") for _ in range(12)) + "x"
    return Edit(f"prompt {number}: ", letters, letters.replace("x", "y"))


@pytest.fixture(scope="module")
def edits() -> list[Edit]:
    random = Random(0)
    return [edit(number, random) for number in range(40)]


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    lm = tiny_language_model("llama", dtype=torch.float32)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("edited-tokens", "scalar"),
        ("edited-tokens", "trunk:4"),
        ("token-discriminator", "scalar"),
        ("token-discriminator", "vocabulary"),
    ],
)
def test_changed_tokens_are_told_apart(name, head, edits, lm_folder, tmp_path):
    objective = make_objective(name)
    kind, head = head_of(head, str(lm_folder))
    reward = kind.create(
        str(lm_folder),
        template="raw",
        objective=name,
        objective_settings=objective.settings,
        head=head,
        tune="last:1" if head == "scalar" else "head",
        layers=2,
    )
    metrics = train(reward, edits, tmp_path / "r", Settings(epochs=16, batch_size=8, held_out=0.2, lr=2e-2))
    figures = metrics["edits"]
    assert figures["edits"] == 8 and figures["tokens"][0] == figures["tokens"][1] > 8
    assert figures["auroc"] > 0.99
    assert figures["mean_reward"]["accuracy"] == 1.0 == figures["mean_reward"]["equal_length"]["accuracy"]
    loaded = load_reward(tmp_path / "r")
    assert loaded.additive and loaded.info.training["edits"] == 40
    card = (tmp_path / "r/README.md").read_text()
    assert "A reward for every token" in card and "AUROC, tokens added against tokens taken away |" in card
    (bad, good) = loaded.score([edits[0].prompt] * 2, [edits[0].original, edits[0].edited])
    labels = labels_of_edit(loaded.tokenizer, edits[0])
    assert max(r for r, label in zip(bad.rewards, labels.original, strict=True) if not label.kept) < 0
    assert min(r for r, label in zip(good.rewards, labels.edited, strict=True) if not label.kept) > 0
    assert good.whole == pytest.approx(math.fsum(good.rewards)) and good.whole > bad.whole


def test_tokens_that_no_edit_touched_are_worth_nothing_on_average(edits, lm_folder, tmp_path):
    """Of the rows that were trained on, each counted once."""
    reward = tiny_reward(tune="head", template="raw")
    reward.info = replace(reward.info, objective="token-discriminator", objective_settings={})
    train(reward, edits, tmp_path / "r", Settings(epochs=1, batch_size=8, held_out=0.5, lr=1e-2))
    from midcourse.data.comparisons import split_by_prompt

    kept, _ = split_by_prompt(edits, 0.5, seed=0)
    values = {}
    for one in kept:
        scores = reward.score([one.prompt] * 2, [one.original, one.edited])
        for score, labels, text in zip(
            scores, labels_of_edit(reward.tokenizer, one), (one.original, one.edited), strict=True
        ):
            values[one.prompt, text] = [r for r, of in zip(score.rewards, labels, strict=True) if of.kept]
    rewards = [r for some in values.values() for r in some]
    assert math.fsum(rewards) / len(rewards) == pytest.approx(0, abs=1e-6)
    assert reward.info.centre != 0


def token_reward(kind: str, lm, **settings):
    make = {
        "scalar": lambda: tiny_reward(),
        "vocabulary": lambda: tiny_trained_vocabulary_reward(),
        "trunk": lambda: tiny_trunk_reward(lm),
    }[kind]
    reward = make()
    reward.info = replace(reward.info, objective="token-discriminator", objective_settings=settings, centre=0.125)
    return reward


@pytest.mark.parametrize("kind", ["scalar", "vocabulary", "trunk"])
def test_the_laws_hold(kind):
    lm = tiny_language_model("llama")
    reward = token_reward(kind, lm)
    assert_laws(reward, lm, ["The ferry was late, and", "A"], [" we loved it.", " no"])
    (one,) = generate(lm, ["The ferry"], reward, reward_weight=2.0, template="raw", max_new_tokens=4)
    assert len(one.steps) == 4


@pytest.mark.parametrize("kind", ["scalar", "vocabulary", "trunk"])
def test_rewards_are_bounded_and_the_released_codes_are_flatter(kind):
    """2 p - 1 lies in (-1, 1); with a second softmax tanh(p - 1/2) does not leave (-0.4621, 0.4621)."""
    lm = tiny_language_model("llama")
    raw = torch.tensor([-100.0, -1.0, 0.0, 1.0, 100.0], dtype=torch.float64)
    plain, double = token_reward(kind, lm), token_reward(kind, lm, double_softmax=True)
    p = torch.sigmoid(raw)
    assert torch.allclose(plain.rewards_of(raw), 2 * p - 1 - 0.125)
    assert torch.allclose(double.rewards_of(raw), torch.tanh(p - 0.5) - 0.125)
    assert float(double.rewards_of(raw).max()) == pytest.approx(0.4621 - 0.125, abs=1e-4)


def test_edits_are_read_and_refused(tmp_path):
    def rows(*some: dict) -> Path:
        path = tmp_path / "edits.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in some))
        return path

    good = {"prompt": "Say it.", "original": "teh", "edited": "the", "group": "g", "more": 1}
    assert read_edits(rows(good)) == [Edit("Say it.", "teh", "the", "g")]
    assert read_edits(rows({"original": "", "edited": "a"})) == [Edit("", "", "a")]
    for bad, message in (
        ({"original": "a", "edited": "a"}, "field edited: the text equals the original, so nothing was edited"),
        (
            {"original": "a"},
            "field edited: the field is missing among 'original'; each row needs original and edited, or text",
        ),
        ({"original": 1, "edited": "a"}, "field original: 1 is not a text"),
        ({"text": "abc", "spans": [{"start": 2, "end": 4}]}, "span 1, .*, is no part of the 3 characters"),
        ({"text": "abc", "spans": "0-2"}, "field spans: '0-2' is no list"),
        ({"original": "a", "original_labels": ["kept"]}, "field tokenizer: labels of tokens need the fingerprint"),
        ({"original": "a", "original_labels": ["bad"], "tokenizer": "t"}, "field original_labels: .* is no list of"),
    ):
        with pytest.raises(DataError, match=message):
            read_edits(rows(bad))


def test_marks_alone_teach_too(tmp_path):
    """Of a text with marks the marked tokens are worse; what would be right nobody says."""
    path = tmp_path / "spans.jsonl"
    random = Random(0)
    texts = ["".join(random.choice("abcx") for _ in range(12)) + "x" for _ in range(40)]
    rows = [
        {"text": text, "spans": [{"start": i, "end": i + 1} for i, letter in enumerate(text) if letter == "x"]}
        for text in texts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    edits = read_edits(path)
    reward = tiny_reward(tune="head", template="raw", dtype=torch.float32)
    reward.info = replace(reward.info, objective="token-discriminator", objective_settings={})
    metrics = train(reward, edits, tmp_path / "r", Settings(epochs=20, batch_size=8, held_out=0.2, lr=2e-2))
    assert metrics["edits"]["tokens"][0] == 0 and metrics["edits"]["auroc"] is None
    assert metrics["edits"]["kept_auroc"] > 0.9


def test_labels_of_tokens_are_those_of_their_tokenizer(edits):
    reward = tiny_reward(template="raw")
    found = labels_of_edit(reward.tokenizer, edits[0])
    labelled = replace(edits[0], labels=found, tokenizer=tokenizer_fingerprint(reward.tokenizer))
    assert labels_of_edit(reward.tokenizer, labelled) == found
    with pytest.raises(DataError, match="are of another tokenizer's tokens; label the edits again"):
        labels_of_edit(reward.tokenizer, replace(labelled, tokenizer="other"))
    with pytest.raises(DataError, match="has 13 labels as original_labels, and 14 tokens with its end"):
        labels_of_edit(reward.tokenizer, replace(labelled, labels=found._replace(original=found.original[1:])))


def test_what_is_cut_off_teaches_nothing(edits):
    reward = tiny_reward(template="raw")
    late = Edit("p", "a" * 30 + "x", "a" * 30 + "y")
    data = encode_edits(reward, [late, edits[0]], max_tokens=20)
    assert data.left_out == 1 and len(data.items) == 1
    with pytest.raises(DataError, match="none of the 1 edits changes a token within 20; raise --max-tokens"):
        encode_edits(reward, [late], max_tokens=20)
    with pytest.raises(DataError, match="or align tokens"):
        encode_edits(reward, [Edit("", "a b", "a  b")], 99, "words")


def test_other_examples_are_refused(edits, tmp_path):
    with pytest.raises(ObjectiveError, match="objective prefix does not learn from edits"):
        train(tiny_reward(), edits, tmp_path / "r", Settings())
