"""Training detectors on tiny models: the order is restored, what is replayed stays, and nothing leaks."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from midcourse.data.comparisons import Comparison, split_by_prompt
from midcourse.data.encoded import EncodedRow, LadderSet
from midcourse.data.formats import DataError
from midcourse.data.ladders import Ladder, read_ladders
from midcourse.data.learned import read_learned_rows, row_hash
from midcourse.detect.train import level_figures, plain_ladders, train_detector
from midcourse.errors import Interrupted
from midcourse.rewards.contract import Reward
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trained import TrainedReward
from midcourse.testing import tiny_language_model
from midcourse.train import trainer
from midcourse.train.folder import REPLAYED
from midcourse.train.objectives import LadderRewards, ObjectiveError, make_objective
from midcourse.train.settings import Settings, TrainingError
from midcourse.train.start import begin
from midcourse.train.training import train
from tests.encoders import encoder_folder
from tests.pace import slow_except

SETTINGS = Settings(epochs=6, batch_size=8, save_steps=4, held_out=0.25, max_tokens=64, lr=1e-2)
FORMS = ["fine fine fine", "fine poor", "poor no no"]  # machine, mixed, human
LADDERS = [
    Ladder(tuple(f"{i % 9} {i // 9} the ferry {form}" + " it" * (i % 3) for form in FORMS), f"question {i // 2}")
    for i in range(40)
]
REPLAY = [
    Comparison(f"the {i % 9}", f" we loved it {i // 9}", f" no {i // 9} was late" + " no" * (i // 9)) for i in range(30)
]


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lm")
    lm = tiny_language_model("llama", dtype=torch.float32)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(encoder_folder(tmp_path_factory.mktemp("encoder")))


ORDERED = make_objective("ordered")
STARTS = {
    "scalar": {"head": "scalar", "tune": "last:1"},
    "lora": {"head": "scalar", "tune": "lora:2"},
    "trunk": {"head": "trunk:4", "tune": "head"},
    "vocabulary": {"head": "vocabulary", "tune": "last:1"},
    "all": {"head": "scalar", "tune": "all"},
    "encoder": {"tune": "all"},
    "encoder-head": {"tune": "head"},
}
RATES = {"encoder": 3e-3, "encoder-head": 3e-2, "trunk": 3e-2, "all": 3e-3}


def started(name: str, lm_folder: str, encoder: str, objective=ORDERED) -> tuple[TrainedReward, Settings]:
    model = encoder if name.startswith("encoder") else lm_folder
    epochs = 40 if name == "encoder-head" else SETTINGS.epochs  # little to learn from at random states
    length = 38 if model == encoder else 64
    settings = replace(SETTINGS, lr=RATES.get(name, SETTINGS.lr), max_tokens=length, epochs=epochs)
    return begin(model, objective, **STARTS[name], device="cpu"), settings


def score(reward: Reward, texts: list[str], lm_folder: str) -> list[float]:
    from midcourse.lm.language_model import LanguageModel

    bound = reward.bind(LanguageModel.load(lm_folder))
    return [one.rewards[-1] for one in bound.score([""] * len(texts), texts)]


QUICK = [("trunk", "paper"), ("scalar", "code")]


@pytest.mark.parametrize(
    ("name", "preset"), slow_except(QUICK, [(name, preset) for name in STARTS for preset in ("paper", "code")])
)
def test_the_order_machine_mixed_human_is_restored(lm_folder, encoder, tmp_path, name, preset):
    reward, settings = started(name, lm_folder, encoder, make_objective("ordered", preset=preset))
    metrics = train_detector(reward, LADDERS, tmp_path / "d", settings, replay=REPLAY)
    assert [(row["upper"], row["lower"]) for row in metrics["levels"]] == [
        ("machine", "mixed"), ("machine", "human"), ("mixed", "human"),
    ]  # fmt: skip
    assert all(row["accuracy"] > 0.9 and row["pairs"] == 10 for row in metrics["levels"])
    assert metrics["machine_or_human"]["auroc"] > 0.95
    assert metrics["train_ladders"] == 30 and metrics["replay"]["texts"] == 60
    loaded = load_reward(tmp_path / "d", device="cpu")
    unseen = split_by_prompt(LADDERS, 0.25, seed=0)[1][0]
    machine, mixed, human = score(loaded, [*unseen.levels], lm_folder)
    assert machine > mixed > human
    assert {path.name for path in (tmp_path / "d").iterdir()} - {"backbone"} == {
        "README.md", "metrics.jsonl", "midcourse.json", "reward.safetensors", "rows.safetensors", "training.png",
    }  # fmt: skip
    card = (tmp_path / "d" / "README.md").read_text()
    assert "# A reward of whole texts" in card and "| machine above mixed | 1.000 |" in card
    assert "nothing must be decided about a person" in card and "40 ladders" in card and "30 of them trained" in card


@pytest.mark.parametrize("name", slow_except(["trunk"], STARTS))
def test_interrupted_training_resumes_to_equal_bits(lm_folder, encoder, tmp_path, monkeypatch, name):
    def run(out: Path, *, resume: bool = False) -> None:
        reward, settings = started(name, lm_folder, encoder)
        train_detector(reward, LADDERS, out, replace(settings, epochs=2), replay=REPLAY, resume=resume)

    run(tmp_path / "whole")
    publish = trainer.publish_folder

    def interrupted(work: Path, folder: Path, *, replace: bool) -> None:
        publish(work, folder, replace=replace)
        if folder.name == "checkpoint-4":
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "publish_folder", interrupted)
        with pytest.raises(Interrupted, match="stopped after step"):
            run(tmp_path / "parts")
    kept = load_file(tmp_path / "parts" / REPLAYED)["rewards"]
    assert len(kept) == 60
    run(tmp_path / "parts", resume=True)
    have, want = (load_file(tmp_path / out / "reward.safetensors") for out in ("parts", "whole"))
    assert have.keys() == want.keys() and all(torch.equal(have[key], want[key]) for key in want)
    lines = [(tmp_path / out / "metrics.jsonl").read_text() for out in ("parts", "whole")]
    assert lines[0] == lines[1]
    assert not (tmp_path / "parts" / REPLAYED).exists()


@pytest.mark.slow
def test_a_run_is_not_gone_on_with_from_elsewhere(lm_folder, trained_folder, tmp_path, monkeypatch):
    """Not from another reward, nor with other texts to replay, since their first rewards would be others."""

    def run(start: str, replay: list[Comparison], resume: bool) -> None:
        reward = begin(start, ORDERED, tune="last:1", device="cpu")
        train_detector(reward, LADDERS, tmp_path / "d", replace(SETTINGS, epochs=1), replay=replay, resume=resume)

    def stopped(self, *args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.PlanTrainer, "train_under", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(trained_folder, REPLAY, False)
    with pytest.raises(TrainingError, match=r"holds a run with replayed\.fingerprint"):
        run(trained_folder, REPLAY[::-1], True)
    with pytest.raises(TrainingError, match=r"with replayed\.comparisons 30, not None"):
        run(trained_folder, [], True)
    with pytest.raises(TrainingError, match=r"with begun_at\.reward '.*', not None"):
        run(lm_folder, REPLAY, True)
    run(trained_folder, REPLAY, True)


# Replay


@pytest.fixture(scope="module")
def trained_folder(lm_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward of preferences, as midcourse train leaves it."""
    reward = RewardModel.create(lm_folder, template="raw", objective="sequence", tune="last:1", device="cpu")
    out = tmp_path_factory.mktemp("rewards") / "preference"
    train(reward, REPLAY, out, replace(SETTINGS, max_tokens=48))
    return str(out)


@pytest.mark.slow
def test_replay_keeps_the_rewards_of_preferences_near_what_they_were(lm_folder, trained_folder, tmp_path):
    prompts, texts = [one.prompt for one in REPLAY], [one.chosen for one in REPLAY]
    before = torch.tensor([one.rewards[-1] for one in load_reward(trained_folder).score(prompts, texts)])
    drifts = []
    for name, replay, weight in (("with", REPLAY, 1.0), ("weightless", REPLAY, 0.0), ("without", [], 1.0)):
        reward = begin(trained_folder, make_objective("ordered", replay_weight=weight), device="cpu")
        metrics = train_detector(reward, LADDERS, tmp_path / name, SETTINGS, replay=replay)
        after = torch.tensor([one.rewards[-1] for one in load_reward(tmp_path / name).score(prompts, texts)])
        drifts.append((after - before).square().mean().sqrt().item())
        assert metrics["machine_or_human"]["auroc"] > 0.9
        assert ("replay" in metrics) == (name == "with")
        if name == "with":
            assert metrics["replay"]["drift"] == pytest.approx(drifts[0], rel=0.5)
    assert drifts[0] < 0.3 * drifts[2]
    assert drifts[1] == drifts[2]  # at weight 0 nothing is replayed


def test_a_step_is_one_forward_of_ladders_and_replayed_texts(trained_folder, tmp_path, monkeypatch):
    """As many replayed rows as ladders, each in the one padded batch of the step, with its reward before training."""
    reward = begin(trained_folder, ORDERED, tune="all", device="cpu")
    read: list[int] = []
    steps: list[tuple[list[int], LadderRewards]] = []
    ladder_rewards = trainer.ladder_rewards

    def noted(*given, **more):
        steps.append((read.copy(), ladder_rewards(*given, **more)))
        read.clear()
        return steps[-1][1]

    def started(plan: trainer.PlanTrainer, *given: object) -> None:
        reward.backbone.register_forward_hook(lambda *seen: read.append(len(seen[2].last_hidden_state)))
        begun(plan, *given)

    begun = trainer.PlanTrainer.train_under
    monkeypatch.setattr(trainer, "ladder_rewards", noted)
    monkeypatch.setattr(trainer.PlanTrainer, "train_under", started)
    still = replace(SETTINGS, epochs=2, lr=1e-9, eval_steps=99)
    train_detector(reward, LADDERS, tmp_path / "d", still, replay=REPLAY)
    assert [rows for rows, _ in steps] == 2 * [[8 * 4], [8 * 4], [8 * 4], [6 * 4]]
    assert [rewards.step for _, rewards in steps] == 2 * [8, 8, 8, 6]
    assert all(torch.allclose(rewards.replayed, rewards.initial, atol=1e-5) for _, rewards in steps)
    assert all(rewards.initial.std() > 0.1 for _, rewards in steps)
    assert not torch.equal(steps[0][1].initial, steps[1][1].initial)


# What is held out, and what it is learned from


def test_no_group_is_on_both_sides_and_what_was_learned_from_is_recorded(lm_folder, tmp_path):
    reward = begin(lm_folder, ORDERED, tune="head", device="cpu")
    metrics = train_detector(reward, LADDERS, tmp_path / "d", replace(SETTINGS, epochs=1), replay=REPLAY)
    kept, held = split_by_prompt(plain_ladders(LADDERS), 0.25, seed=0)
    assert {ladder.group for ladder in kept}.isdisjoint({ladder.group for ladder in held})
    assert metrics["prompts"] == len({ladder.group for ladder in held}) == 5
    rows = set(read_learned_rows(tmp_path / "d").tolist())
    levels = {row_hash("", text) for ladder in kept for text in ladder.levels}
    assert levels < rows and rows - levels < {row_hash(one.prompt, text) for one in REPLAY for text in one.responses}
    assert len(rows - levels) == metrics["replay"]["texts"] == 30  # one with each ladder, none of them twice
    with pytest.raises(DataError, match="all of the 2 ladders belong together"):
        train_detector(reward, [Ladder(("a", "b"), "g"), Ladder(("c", "d"), "g")], tmp_path / "e", SETTINGS)


@pytest.mark.slow
def test_texts_are_read_without_white_space_and_disguise(lm_folder, tmp_path):
    written = [Ladder(("a  fine\n\ntext", "a\u200b poor text")), Ladder(("s\u043eft", "hard"), "g")]
    assert plain_ladders(written) == [Ladder(("a fine text", "a poor text")), Ladder(("soft", "hard"), "g")]
    with pytest.raises(DataError, match=r"two texts of ladder 2 \('a b' ...\) differ in white space or disguise alone"):
        plain_ladders([LADDERS[0], Ladder(("a b", "a\nb"))])
    with pytest.raises(DataError, match="ladder 1 has a text of which nothing is seen"):
        plain_ladders([Ladder(("a", "\u200b"))])
    spaced = [replace(one, levels=tuple(level.replace(" ", "\n") for level in one.levels)) for one in LADDERS]
    runs = {
        name: train_detector(
            begin(lm_folder, ORDERED, tune="head", device="cpu"), ladders, tmp_path / name,
            replace(SETTINGS, epochs=1), as_written=as_written,
        )
        for name, ladders, as_written in (("a", LADDERS, False), ("b", spaced, False), ("c", spaced, True))
    }  # fmt: skip
    weights = {name: load_file(tmp_path / name / "reward.safetensors")["head.weight"] for name in runs}
    assert torch.equal(weights["a"], weights["b"])
    assert not torch.equal(weights["a"], weights["c"])


def test_figures_of_levels_by_hand():
    """Two ladders of three levels and one of two; the second human text stands in two of them and counts once."""
    row = EncodedRow((0,), (1, 2), True)
    data = LadderSet([row] * 7, [(0, 1, 2), (3, 4, 5), (6, 5)], ["p", "q", "q"])
    ends = [3.0, 2.0, 1.0, 0.5, 0.5, 2.5, 4.0]
    have = level_figures(data, [torch.tensor([9.0, end]) for end in ends])
    levels = {(row["upper"], row["lower"]): (row["pairs"], row["accuracy"], row["ties"]) for row in have["levels"]}
    assert levels == {
        ("machine", "mixed"): (2, 0.75, 0.5),
        ("machine", "human"): (3, 2 / 3, 0.0),
        ("mixed", "human"): (2, 0.5, 0.0),
    }
    apart = have["machine_or_human"]
    assert (apart["machines"], apart["humans"]) == (3, 2)
    assert apart["auroc"] == pytest.approx(4 / 6)  # of 3, 0.5, 4 above 1, 2.5


# Where training begins


def test_training_goes_on_from_a_trained_reward(lm_folder, trained_folder, tmp_path):
    """Its weights are where it begins, it is recorded, and what it had learned from is remembered."""
    reward = begin(trained_folder, ORDERED, device="cpu")
    assert reward.info.tune == "last:1" and reward.info.objective == "ordered" and not reward.info.calibration
    want = load_reward(trained_folder).score(["the 1"], [" we loved it 1"])[0].rewards
    assert reward.score(["the 1"], [" we loved it 1"])[0].rewards == want
    train_detector(reward, LADDERS, tmp_path / "d", replace(SETTINGS, epochs=1))
    info = load_reward(tmp_path / "d").info
    assert (
        info.training["begun_at"]["reward"] == trained_folder and "training" not in info.training["reward"]["training"]
    )
    rows = set(read_learned_rows(tmp_path / "d").tolist())
    assert rows > set(read_learned_rows(trained_folder).tolist())
    assert f"Training went on from the reward `{trained_folder}`." in (tmp_path / "d" / "README.md").read_text()


@pytest.mark.slow
def test_a_reward_that_does_not_say_what_it_learned_from_makes_none_that_does(trained_folder, tmp_path):
    silent = tmp_path / "silent"
    RewardModel.load(trained_folder).save(silent)
    assert read_learned_rows(silent) is None
    train_detector(begin(str(silent), ORDERED, device="cpu"), LADDERS, tmp_path / "d", replace(SETTINGS, epochs=1))
    assert read_learned_rows(tmp_path / "d") is None


@pytest.mark.parametrize("tune", slow_except([], ["last:2", "all"]))
def test_a_trained_reward_may_train_more_than_it_did(trained_folder, tmp_path, tune):
    reward = begin(trained_folder, ORDERED, tune=tune, device="cpu")
    want = load_reward(trained_folder).score(["the 1"], [" we loved it 1"])[0].rewards
    assert reward.score(["the 1"], [" we loved it 1"])[0].rewards == want
    metrics = train_detector(reward, LADDERS, tmp_path / "d", replace(SETTINGS, lr=3e-3))
    assert metrics["machine_or_human"]["auroc"] > 0.9
    texts = [f"7 8 the ferry {form}" for form in FORMS]
    loaded = load_reward(tmp_path / "d")
    assert loaded.info.tune == tune
    assert [one.rewards for one in loaded.score([""] * 3, texts)] == [
        one.rewards for one in reward.eval().score([""] * 3, texts)
    ]


@pytest.mark.parametrize("tune", slow_except([], ["last:1", "lora:2", "all"]))
def test_a_head_may_get_what_is_below_it_trained(lm_folder, encoder, tmp_path, tune):
    for model, more in ((lm_folder, {"template": "raw"}), (encoder, {})):
        out = tmp_path / f"{Path(model).name}-{tune}"
        first, settings = started("encoder-head" if model == encoder else "scalar", lm_folder, encoder)
        first = begin(model, ORDERED, tune="head", device="cpu", **more)
        train_detector(first, LADDERS, out, replace(settings, epochs=1))
        reward = begin(str(out), ORDERED, tune=tune, device="cpu")
        texts = [f"7 8 the ferry {form}" for form in FORMS]
        assert score(reward, texts, lm_folder) == pytest.approx(
            score(load_reward(out, device="cpu"), texts, lm_folder), abs=1e-6
        )
        trainable = {name for name, p in reward.named_parameters() if p.requires_grad}
        assert {name for name, p in first.named_parameters() if p.requires_grad} < trainable or tune == "lora:2"
        train_detector(reward, LADDERS, tmp_path / f"{out.name}-2", replace(settings, epochs=1, lr=1e-3))
        assert score(load_reward(tmp_path / f"{out.name}-2", device="cpu"), texts, lm_folder) == pytest.approx(
            score(reward.eval(), texts, lm_folder), abs=1e-6
        )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tune": "head"}, r"was trained with --tune last:1, and tune head would not store all of what that changed"),
        ({"tune": "lora:2"}, "was trained with --tune last:1, and tune lora:2 would not store all"),
        ({"tune": "last:9"}, "tune last:9 trains more than the 3 layers there are"),
        ({"head": "trunk"}, "has its head from its training; leave --head trunk out"),
        ({"layers": 1}, "has its layers from its training; leave --layers 1 out"),
        ({"template": "mixed"}, "has its template from its training"),
    ],
)
def test_a_start_that_loses_what_was_trained_is_refused(trained_folder, asked, message):
    with pytest.raises(RewardError, match=message):
        begin(trained_folder, ORDERED, device="cpu", **asked)


def test_what_has_nothing_to_train_is_refused(lm_folder, trained_folder, tmp_path):
    with pytest.raises(RewardError, match="vader is a function, which is not trained"):
        begin("vader", ORDERED)
    RewardModel.load(trained_folder).export(tmp_path / "exported")
    with pytest.raises(RewardError, match="is a causal model with a classification head, which would be lost"):
        begin(str(tmp_path / "exported"), ORDERED)
    genarm = begin(lm_folder, make_objective("autoregressive"), device="cpu")
    genarm.save(tmp_path / "genarm")
    with pytest.raises(RewardError, match="are of tokens"):
        begin(str(tmp_path / "genarm"), ORDERED)
    info = json.loads((tmp_path / "genarm" / "midcourse.json").read_text())
    (tmp_path / "genarm" / "midcourse.json").write_text(json.dumps(info | {"head": "pooled", "objective": "pooled"}))
    with pytest.raises(RewardError, match=r"the pooled head of .* is not trained in steps; name another reward"):
        begin(str(tmp_path / "genarm"), ORDERED)
    with pytest.raises(ObjectiveError, match="objective cumulative does not train a trunk head"):
        begin(lm_folder, make_objective("cumulative"), head="trunk")


def test_other_objectives_replay_nothing_and_ladders_are_for_ordered(lm_folder, tmp_path):
    reward = begin(lm_folder, make_objective("sequence"), tune="head", device="cpu")
    with pytest.raises(ObjectiveError, match="objective sequence does not learn from ladders"):
        train_detector(reward, LADDERS, tmp_path / "d", SETTINGS)
    with pytest.raises(ObjectiveError, match="objective sequence replays no texts"):
        train(reward, REPLAY, tmp_path / "d", SETTINGS, replayed=REPLAY)
    reward = begin(lm_folder, ORDERED, tune="head", device="cpu")
    with pytest.raises(ObjectiveError, match="objective ordered learns from ladders of texts"):
        train(reward, REPLAY, tmp_path / "d", SETTINGS)


CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.slow
def test_a_chat_reward_goes_on_with_texts_alone_and_replays_what_it_was_trained_on(tmp_path, monkeypatch):
    lm = tiny_language_model("llama", dtype=torch.float32)
    lm.tokenizer.chat_template = CHATML
    lm.model.save_pretrained(tmp_path / "chat")
    lm.tokenizer.save_pretrained(tmp_path / "chat")
    first = RewardModel.create(str(tmp_path / "chat"), template="chat", objective="sequence", tune="head", device="cpu")
    train(first, REPLAY, tmp_path / "r", replace(SETTINGS, epochs=1))
    texts = [(one.prompt, response) for one in REPLAY for response in one.responses]
    want = sorted(one.rewards[-1] for one in first.score(*zip(*texts, strict=True)))
    seen: list[float] = []
    ladder_rewards = trainer.ladder_rewards

    def noted(*given, **more):
        seen.extend(more["initial"].tolist())
        return ladder_rewards(*given, **more)

    monkeypatch.setattr(trainer, "ladder_rewards", noted)
    reward = begin(str(tmp_path / "r"), ORDERED, device="cpu")
    train_detector(reward, LADDERS, tmp_path / "d", replace(SETTINGS, epochs=2), replay=REPLAY)
    assert sorted(seen) == pytest.approx(want, abs=1e-5)
    loaded = load_reward(tmp_path / "d")
    assert loaded.info.template == "mixed"
    assert loaded.score([""], ["a text"])[0].rewards


def test_a_bad_step_is_written_down_with_its_levels_and_what_was_replayed(lm_folder, tmp_path):
    reward = begin(lm_folder, ORDERED, tune="last:1", device="cpu")
    torch.nn.init.constant_(reward.head.weight, 1e30)
    with pytest.raises(TrainingError, match="at the first step"):
        train_detector(reward, LADDERS, tmp_path / "d", replace(SETTINGS, lr=1.0), replay=REPLAY)
    bad = json.loads((tmp_path / "d" / "bad_batch.json").read_text())["batch"][0]
    assert {"machine", "mixed", "human", "replayed_prompt", "replayed"} <= bad.keys()
    assert "the ferry fine fine fine" in bad["machine"] and bad["replayed"].startswith((" we", " no"))


@pytest.mark.slow
def test_remodetects_own_file_trains_a_detector(lm_folder, tmp_path):
    path = tmp_path / "xsum_gpt-4.raw_data.json"
    path.write_text(
        json.dumps({"original": [x.levels[-1] for x in LADDERS], "sampled": [x.levels[0] for x in LADDERS]})
    )
    reward = begin(lm_folder, ORDERED, tune="last:1", device="cpu")
    metrics = train_detector(reward, read_ladders(path), tmp_path / "d", SETTINGS)
    assert [(row["upper"], row["lower"]) for row in metrics["levels"]] == [("machine", "human")]
    assert metrics["machine_or_human"]["auroc"] > 0.95
