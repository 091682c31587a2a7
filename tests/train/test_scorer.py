"""Training encoders on whole texts: it learns, resumes to the same bits, and measures cut texts by reading them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from midcourse.data.comparisons import Comparison, read_comparisons
from midcourse.data.encoded import PairSet, encode
from midcourse.evaluate.accuracy import SHARES
from midcourse.files import publish_folder
from midcourse.lm.embedded import EmbeddedModelError, minilm_folder
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.classifier import ClassifierReward
from midcourse.rewards.contract import Text
from midcourse.rewards.encoder import EncoderReward
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.train import trainer
from midcourse.train.folder import checkpoints
from midcourse.train.scorer import Scorer, make_scorer
from midcourse.train.settings import Settings
from midcourse.train.training import train
from tests.encoders import encoder_folder
from tests.pace import slow_except

SETTINGS = {"epochs": 4, "batch_size": 8, "save_steps": 2, "held_out": 0.25, "max_tokens": 24}
RATES = {"head": 3e-2, "last:1": 1e-2, "lora:2": 1e-2, "all": 3e-3}
COMPARISONS = [
    Comparison(f"{i // 2 % 9} {i // 18}", "we loved it, fine" + " and it" * (i % 3), "no, poor" + " was" * (i % 4))
    for i in range(48)
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(encoder_folder(tmp_path_factory.mktemp("encoder")))


def trained(encoder: str, out: Path, tune: str = "all", resume: bool = False, **settings) -> dict:
    reward = EncoderReward.create(encoder, tune=tune, device="cpu")
    values = {**SETTINGS, "lr": RATES[tune], **settings}
    return train(reward, COMPARISONS, out, Settings(**values), resume=resume)


@pytest.mark.parametrize("tune", slow_except(["lora:2"], RATES))
def test_every_tuning_learns_and_its_folder_is_a_reward(encoder, tmp_path, tune):
    metrics = trained(encoder, tmp_path / "reward", tune)
    assert metrics["shares"][-1]["accuracy"] > 0.9
    have = {path.name for path in (tmp_path / "reward").iterdir()} - {"backbone"}
    assert have == {
        "README.md",
        "metrics.jsonl",
        "midcourse.json",
        "reward.safetensors",
        "rows.safetensors",
        "training.png",
    }
    reward = load_reward(tmp_path / "reward", device="cpu")
    assert isinstance(reward, ClassifierReward)
    good, bad = reward.ask([Text("1 0", "we loved it, fine", True), Text("1 0", "no, poor", True)])
    assert good > bad
    assert reward.room == 24  # what was cut in training is cut when it guides
    assert reward.calibration is not None
    assert reward.calibration.means == ()
    assert reward.calibration.probability(good - bad, finished=True) > 0.5


@pytest.mark.parametrize("tune", slow_except(["head"], ["head", "all"]))
def test_interrupted_training_resumes_to_the_same_bits(encoder, tmp_path, monkeypatch, tune):
    trained(encoder, tmp_path / "undisturbed", tune)

    def stopping(work: Path, folder: Path, *, replace: bool) -> None:
        publish_folder(work, folder, replace=replace)
        if folder.name == "checkpoint-6":
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "publish_folder", stopping)
    with pytest.raises(KeyboardInterrupt):
        trained(encoder, tmp_path / "reward", tune)
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path / "reward")][-1] == "checkpoint-6"
    with pytest.raises(RewardError, match=r"is not a reward: it has no midcourse\.json"):
        load_reward(tmp_path / "reward")
    trained(encoder, tmp_path / "reward", tune, resume=True)
    have, want = (load_file(tmp_path / name / "reward.safetensors") for name in ("reward", "undisturbed"))
    assert have.keys() == want.keys()
    assert all(torch.equal(have[name], want[name]) for name in want)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("reward", "undisturbed")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("tune", ["head", "all"])
def test_accuracy_below_the_end_is_that_of_texts_cut_there(encoder, tune):
    """Against cutting the words by hand and asking the classifier, which knows of no training."""
    reward = EncoderReward.create(encoder, tune=tune, seed=3, device="cpu", dtype="float64")
    torch.nn.init.normal_(reward.head[-1].weight)
    comparisons = [
        Comparison("the ferry", "we loved it and it was fine", "no it was poor"),
        Comparison("late", "no", "fine and late and poor"),
    ]
    pairs = encode(reward, comparisons, 99)
    found = make_scorer(reward, [PairSet([], [], []), pairs]).score(1)
    read = 0
    for (a, b), comparison in zip(pairs.pairs, comparisons, strict=True):
        sides = [text.split() for text in (comparison.chosen, comparison.rejected)]
        shorter = min(len(words) for words in sides)
        for share in SHARES:
            count = math.ceil(share * shorter)
            for number, words in zip((a, b), sides, strict=True):
                kept = words if share == 1 else words[:count]
                (want,) = reward.classifier().ask([Text(comparison.prompt, " ".join(kept), share == 1)])
                assert float(found[number][-1 if share == 1 else count - 1]) == pytest.approx(want, abs=1e-6)
                read += 1
    assert read == 20
    assert [int(row.isnan().sum()) for row in found] == [4, 1, 0, 4]  # nothing else is read, or made up


def test_prefixes_are_never_read_off_an_encoders_forward(encoder):
    reward = EncoderReward.create(encoder, tune="all", device="cpu")
    with pytest.raises(ValueError, match="use make_scorer"):
        Scorer(reward, [encode(reward, COMPARISONS, 24).rows])


def test_an_encoder_is_read_once_where_only_its_head_is_trained(encoder):
    reward = EncoderReward.create(encoder, tune="head", device="cpu")
    pairs = encode(reward, COMPARISONS, 24)
    scorer = make_scorer(reward, [pairs, pairs])
    layers = []
    with reward.backbone.bert.encoder.register_forward_hook(lambda *_: layers.append(None)):
        scorer.score(1)
        scorer(**scorer.inputs(0, [0, 1]))
    assert not layers
    assert type(make_scorer(EncoderReward.create(encoder, tune="all", device="cpu"), [pairs])) is not Scorer


def test_on_the_command_line(encoder, tmp_path, monkeypatch, capsys):
    rows = [{"prompt": c.prompt, "chosen": c.chosen, "rejected": c.rejected} for c in COMPARISONS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ["midcourse", "train", f"{tmp_path}/pairs.jsonl", "--backbone", encoder, "--device", "cpu"]
    flags = ["--out", f"{tmp_path}/reward", "--objective", "sequence", "--epochs", "1", "--held-out", "0.25", "--json"]

    def run(*more: str) -> int:
        monkeypatch.setattr("sys.argv", [*base, *more])
        from midcourse.cli import main

        with pytest.raises(SystemExit) as done:
            main()
        return done.value.code

    assert run(*flags) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 12
    info = json.loads((tmp_path / "reward/midcourse.json").read_text())
    assert (info["head"], info["tune"], info["training"]["settings"]["lr"]) == ("encoder", "last:2", 3e-4)
    assert "# A reward of whole texts" in (tmp_path / "reward/README.md").read_text()
    assert run("--out", f"{tmp_path}/other") == 2
    assert "would need a forward for every prefix with objective prefix; use --objective" in capsys.readouterr().err
    assert run("--out", f"{tmp_path}/other", "--objective", "sequence", "--head", "trunk") == 2
    assert "and has no trunk head; use --objective sequence without --head" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_minilm_learns_sentiment_and_judges(tmp_path):
    try:
        minilm_folder()
    except EmbeddedModelError as error:
        pytest.skip(str(error))
    things = ["The ferry", "Dinner", "The film", "Our room", "The concert", "My day", "The book", "That walk"] * 2
    good = ["was wonderful", "was a joy", "made us happy", "was superb"]
    bad = ["was terrible", "was a bore", "made us angry", "was awful"]
    comparisons = [
        Comparison(f"{thing} {i}", f" {good[(i + j) % 4]}.", f" {bad[i % 4]}.")
        for i, thing in enumerate(things)
        for j in range(3)
    ]
    reward = EncoderReward.create("minilm", tune="last:2", device="cpu")
    metrics = train(reward, comparisons, tmp_path / "judge", Settings(epochs=3, batch_size=8, held_out=0.25))
    assert metrics["shares"][-1]["accuracy"] > 0.9
    judge = load_reward(tmp_path / "judge", device="cpu")
    lm = LanguageModel.load("smollm2", device="cpu", dtype="float32")
    fine, poor = judge.bind(lm).score(["The hotel"] * 2, [" was lovely.", " was dreadful."])
    assert fine.rewards[-1] > poor.rewards[-1]


def test_comparisons_from_a_file_have_no_prompt_too_long(encoder, tmp_path):
    from midcourse.data.encoded import prompt_limit

    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "late " * 60, "chosen": "fine", "rejected": "poor"}) + "\n")
    reward = EncoderReward.create(encoder, device="cpu")
    (comparison,) = read_comparisons(path, limit=prompt_limit(reward, 24))
    (row, _) = encode(reward, [comparison], 24).rows
    assert len(row.prompt) + len(row.response) == 24
    assert (row.text_length, row.finished) == (1, True)
