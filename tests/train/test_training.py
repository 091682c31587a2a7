"""Training on a tiny model on disk: what it writes, and that interruption of any kind changes nothing."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from midcourse.decode.loop import generate
from midcourse.language_model import LanguageModel
from midcourse.loading import head_of, load_reward
from midcourse.reward import RewardError
from midcourse.reward_model import RewardModel
from midcourse.testing import tiny_language_model, tiny_reward
from midcourse.train import training
from midcourse.train.comparisons import Comparison, read_comparisons, split_by_prompt
from midcourse.train.folder import TrainingError, checkpoints
from midcourse.train.objectives import ObjectiveError
from midcourse.train.prefixes import encode
from midcourse.train.rollouts import Rollout
from midcourse.train.scorer import Scorer
from midcourse.train.training import Settings, train

GOOD, BAD = (" fine and good", " bad and poor")


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model saved like any other: training starts from a folder."""
    folder = tmp_path_factory.mktemp("lm")
    lm = tiny_language_model("llama", dtype=torch.float32)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of 24 prompts whose preferred response says so in its second byte."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {"prompt": f"prompt {i // 2}", "chosen": GOOD + " x" * (i % 3), "rejected": BAD + " y" * (i % 4)}
        for i in range(48)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SETTINGS = {"epochs": 3, "batch_size": 8, "save_steps": 2, "held_out": 0.2, "lr": 1e-2}


def trained(lm_folder: Path, data: Path, out: Path, tune: str = "last:1", resume: bool = False, **settings) -> dict:
    reward = RewardModel.create(str(lm_folder), template="raw", tune=tune)
    return train(reward, read_comparisons(data), out, Settings(**{**SETTINGS, **settings}), resume=resume)


def same_reward(a: Path, b: Path) -> bool:
    have, want = load_file(a / "reward.safetensors"), load_file(b / "reward.safetensors")
    return have.keys() == want.keys() and all(torch.equal(have[name], want[name]) for name in want)


@pytest.fixture(scope="module")
def undisturbed(lm_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "reward"
    trained(lm_folder, data, out)
    return out


def command(lm_folder: Path, data: Path, out: Path, *more: str) -> list[str]:
    """The same training from the command line."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    backbone = ["--backbone", str(lm_folder), "--template", "raw", "--tune", "last:1"]
    start = "from midcourse.cli import main; main()"
    return [sys.executable, "-c", start, "train", str(data), "--out", str(out), *backbone, *flags, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# What training does


@pytest.mark.parametrize("tune", ["head", "last:1", "lora:2", "all"])
def test_every_tuning_learns_the_preference_and_reloads_to_equal_rewards(lm_folder, data, tmp_path, tune):
    metrics = trained(lm_folder, data, tmp_path / "reward", tune=tune, epochs=12 if tune == "head" else 6)
    assert metrics["shares"][-1]["accuracy"] > 0.9
    reward = RewardModel.load(tmp_path / "reward")
    good, bad = reward.score(["prompt 0", "prompt 0"], [GOOD, BAD])
    assert good.rewards[-1] > bad.rewards[-1]
    reward.save(tmp_path / "again")
    again = RewardModel.load(tmp_path / "again").score(["prompt 0", "prompt 0"], [GOOD, BAD])
    assert [score.rewards for score in again] == [good.rewards, bad.rewards]


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("prefix", {"past_end": "drop"}),
        ("prefix", {"past_end": "paper"}),
        ("sequence", {}),
        ("value", {"value": "mean"}),
        ("value", {"value": "soft", "value_weight": 2.0}),
        ("value", {"value": "max", "expectile": 0.9}),
        ("cumulative", {}),
    ],
)
def test_every_objective_learns_and_is_recorded(lm_folder, data, tmp_path, objective, settings):
    reward = RewardModel.create(
        str(lm_folder), template="raw", tune="last:1", objective=objective, objective_settings=settings
    )
    metrics = train(reward, read_comparisons(data), tmp_path / "reward", Settings(**SETTINGS | {"epochs": 6}))
    assert metrics["shares"][-1]["accuracy"] > 0.9
    info = RewardModel.load(tmp_path / "reward").info
    assert (info.objective, info.objective_settings) == (objective, settings)
    assert info.reward_weight == settings.get("value_weight")


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> list[Rollout]:
    """Four rollouts of each of 16 prompts, good ones worth 1 and bad ones -1; every third was cut."""
    return [
        Rollout(
            f"prompt {i // 4}", (GOOD if i % 4 < 2 else BAD) + " x" * (i % 3), i % 3 > 0, 1.0 if i % 4 < 2 else -1.0
        )
        for i in range(64)
    ]


VALUES = [
    ("value", {"value": "mean"}, "last:1", "scalar"),
    ("value", {"value": "soft", "value_weight": 1.5}, "head", "trunk:4"),
    ("value", {"value": "max", "expectile": 0.8}, "last:1", "vocabulary"),
    ("cumulative", {}, "last:1", "scalar"),
]


@pytest.mark.parametrize(("objective", "settings", "tune", "head"), VALUES)
def test_objectives_of_labels_learn_from_rollouts(lm_folder, rollouts, tmp_path, objective, settings, tune, head):
    reward = created(lm_folder, objective, settings, tune, head)
    metrics = train(reward, rollouts, tmp_path / "reward", Settings(**SETTINGS | {"epochs": 8}))
    labels = metrics["labels"]
    assert labels["rollouts"] == 4 * labels["prompts"] == 12
    assert labels["shares"][-1]["correlation"] > 0.8
    assert labels["shares"][-1]["squared_error"] < 0.6 * labels["baseline"]["squared_error"]
    assert metrics["pairs"] == 4 * 3  # two good ones against two bad ones of each prompt
    assert metrics["shares"][-1]["accuracy"] > 0.9
    assert metrics["train_rollouts"] == 64 - 12
    info = load_reward(tmp_path / "reward").info
    assert info.training["rollouts"] == 64
    card = (tmp_path / "reward/README.md").read_text()
    assert "rollouts of a prompt ordered by label" in card
    assert "Held-out labels" in card
    rows = [json.loads(line) for line in (tmp_path / "reward/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["correlation"].keys() == rows[-1]["accuracy"].keys()


def test_rollouts_of_which_no_two_can_be_compared(lm_folder, tmp_path):
    """One rollout a prompt: no pairs, so no pair accuracy, in metrics, card and curves."""
    rollouts = [Rollout(f"p{i}", GOOD if i % 2 else BAD, True, float(i % 2)) for i in range(24)]
    reward = created(lm_folder, "value", {}, "head", "scalar")
    metrics = train(reward, rollouts, tmp_path / "reward", Settings(**SETTINGS))
    assert metrics["pairs"] == 0
    assert "shares" not in metrics
    card = (tmp_path / "reward/README.md").read_text()
    assert "pair accuracy" not in card
    assert "Held-out labels" in card


def created(lm_folder: Path, objective: str, settings: dict, tune: str, head: str) -> RewardModel:
    make, head = head_of(head)
    return make.create(
        str(lm_folder), template="raw", tune=tune, head=head, objective=objective, objective_settings=settings
    )


TOKENS = [
    ("prefix", {}, "last:1", "vocabulary"),
    ("sequence", {}, "head", "vocabulary"),
    ("farma", {"alternations": 3}, "last:1", "vocabulary"),
    ("farma", {"alternations": 3, "farma_gradient": "both"}, "head", "trunk:4"),
    ("autoregressive", {"beta": 0.5}, "head", "vocabulary"),
    ("autoregressive", {"beta": 0.5}, "lora:2", "vocabulary"),
]


@pytest.mark.parametrize(("objective", "settings", "tune", "head"), TOKENS)
def test_token_rewards_learn_the_preference(lm_folder, data, tmp_path, objective, settings, tune, head):
    reward = created(lm_folder, objective, settings, tune, head)
    metrics = train(reward, read_comparisons(data), tmp_path / "reward", Settings(**SETTINGS | {"epochs": 8}))
    assert metrics["shares"][-1]["accuracy"] > 0.9
    rows = [json.loads(line) for line in (tmp_path / "reward/metrics.jsonl").read_text().splitlines()]
    phases = [row["phase"] for row in rows]
    if objective == "farma":
        assert {"sequence", "consistency"} == set(phases)
        assert len([1 for one, other in pairwise(phases) if one != other]) == 5  # three turns of two phases
    again = load_reward(tmp_path / "reward")
    assert again.score(["prompt 0"], [GOOD]) == reward.eval().score(["prompt 0"], [GOOD])
    lm = LanguageModel.load(str(lm_folder))
    method = {"farma": "farma", "autoregressive": "genarm"}.get(objective, "pargs")
    assert generate(lm, ["prompt 0"], again, method=method, max_new_tokens=3)[0].steps


def test_accuracy_of_token_log_probabilities_is_that_of_their_sums(lm_folder, data, tmp_path):
    reward = created(lm_folder, "autoregressive", {}, "head", "vocabulary")
    comparisons = read_comparisons(data)
    metrics = train(reward, comparisons, tmp_path / "reward", Settings(**SETTINGS))
    _, held = split_by_prompt(comparisons, SETTINGS["held_out"], seed=0)
    wins = []
    for c in held:
        good, bad = reward.eval().score([c.prompt, c.prompt], [c.chosen, c.rejected])
        wins.append(sum(good.rewards) > sum(bad.rewards))
    assert metrics["shares"][-1]["accuracy"] == pytest.approx(sum(wins) / len(wins))


@pytest.mark.parametrize(
    ("objective", "settings", "tune", "head"),
    [*VALUES[:2], TOKENS[2], TOKENS[3], TOKENS[5]],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_interrupted_run_resumes_to_equal_bits(
    lm_folder, data, rollouts, tmp_path, monkeypatch, objective, settings, tune, head
):
    """Ctrl-C in the middle of any objective, farma's turns included; then --resume."""
    examples = rollouts if objective in ("value", "cumulative") else read_comparisons(data)
    how = Settings(**SETTINGS | {"epochs": 2, "save_steps": 3})

    def run(out: Path, resume: bool = False) -> None:
        train(created(lm_folder, objective, settings, tune, head), examples, out, how, resume=resume)

    run(tmp_path / "whole")
    publish = training.publish_folder

    def interrupted(work: Path, folder: Path, *, replace: bool) -> None:
        publish(work, folder, replace=replace)
        if folder.name == "checkpoint-6":
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(training, "publish_folder", interrupted)
        with pytest.raises(training.Interrupted, match="stopped after step"):
            run(tmp_path / "parts")
    assert not (tmp_path / "parts/midcourse.json").exists()
    run(tmp_path / "parts", resume=True)
    assert same_reward(tmp_path / "parts", tmp_path / "whole")
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("parts", "whole")]
    assert lines[0] == lines[1]


def test_a_soft_value_guides_at_its_own_weight_only(lm_folder, rollouts, tmp_path):
    reward = created(lm_folder, "value", {"value": "soft", "value_weight": 1.5}, "head", "scalar")
    train(reward, rollouts, tmp_path / "reward", Settings(**SETTINGS))
    loaded = load_reward(tmp_path / "reward")
    assert (loaded.soft_value_weight, loaded.info.reward_weight) == (1.5, 1.5)
    lm = LanguageModel.load(str(lm_folder))
    asked = {"method": "soft-value", "max_new_tokens": 3}
    assert generate(lm, ["prompt 0"], loaded, reward_weight=1.5, **asked)[0].steps
    with pytest.raises(RewardError, match=r"exact at weight 1\.5 only, not at 2"):
        generate(lm, ["prompt 0"], loaded, reward_weight=2.0, **asked)
    mean = created(lm_folder, "value", {"value": "mean"}, "head", "scalar")
    assert mean.soft_value_weight is None


def test_a_reward_folder_holds_the_card_the_curves_and_a_line_per_step(undisturbed):
    have = {path.name for path in undisturbed.iterdir()}
    assert have == {"README.md", "metrics.jsonl", "midcourse.json", "reward.safetensors", "training.png"}
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # the head starts at zero
    assert rows[-1]["loss"] < 0.3
    assert [row["epoch"] for row in rows if "accuracy" in row] == [1, 2, 3]
    info = json.loads((undisturbed / "midcourse.json").read_text())
    assert info["training"]["comparisons"] == 48
    assert info["metrics"]["length_baseline"]["prefers"] in ("longer", "shorter")


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt2", "mistral"])
@pytest.mark.parametrize("tune", ["head", "last:1", "lora:2", "all"])
def test_rewards_through_cached_states_are_those_of_whole_forwards(architecture, tune, tmp_path, monkeypatch):
    """What training reads (frozen layers' states, from disk) is what scoring and decoding compute."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reward = tiny_reward(architecture, tune=tune)
    rows = encode(reward, [Comparison("ab", "cde", "f" * 12), Comparison("abcd", "cde", "gh")], max_tokens=32).rows
    want = reward.score_ids([(row.prompt, row.response) for row in rows])
    for have, wanted in zip(Scorer(reward, [rows]).score(0), want, strict=True):
        assert torch.allclose(have, wanted, atol=1e-6)
    cached = list((tmp_path / "midcourse/states").glob("*.safetensors"))
    # GPT-2 adds positions to whatever enters it, so its layers are not split; adapters and full training change all.
    assert bool(cached) == (tune == "head" or (tune == "last:1" and architecture != "gpt2"))


def test_the_same_seed_gives_the_same_reward_and_another_seed_another(lm_folder, data, tmp_path, undisturbed):
    trained(lm_folder, data, tmp_path / "same")
    trained(lm_folder, data, tmp_path / "other", seed=1)
    assert same_reward(tmp_path / "same", undisturbed)
    assert not same_reward(tmp_path / "other", undisturbed)


# Interruption


@pytest.fixture(scope="module")
def undisturbed_run(lm_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command line without interruption: the same process settings (threads!) as the interrupted runs."""
    out = tmp_path_factory.mktemp("undisturbed") / "reward"
    subprocess.run(command(lm_folder, data, out), env=environment(), check=True, capture_output=True)
    return out


# The command line, but after its first checkpoint the process gets a signal, as from a user or a scheduler.
SIGNALLED = """
import os
from midcourse.train import training
publish = training.publish_folder
def signalled(work, folder, *, replace):
    publish(work, folder, replace=replace)
    if folder.name == "checkpoint-2":
        os.kill(os.getpid(), {number})
training.publish_folder = signalled
from midcourse.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_training_that_was_interrupted_resumes_to_the_same_reward(lm_folder, data, tmp_path, undisturbed_run, number):
    out = tmp_path / "reward"
    interrupted = command(lm_folder, data, out)
    interrupted[2] = SIGNALLED.format(number=int(number))
    stopped = subprocess.run(interrupted, env=environment(), capture_output=True, text=True)
    assert stopped.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert "Traceback" not in stopped.stderr
    if number != signal.SIGKILL:
        assert "add --resume to go on" in stopped.stderr
    assert not (out / "midcourse.json").exists()
    refused = subprocess.run(command(lm_folder, data, out), env=environment(), capture_output=True, text=True)
    assert refused.returncode == 2
    assert "add --resume" in refused.stderr
    again = command(lm_folder, data, out, "--resume")
    resumed = subprocess.run(again, env=environment(), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert same_reward(out, undisturbed_run)
    assert (out / "metrics.jsonl").read_text() == (undisturbed_run / "metrics.jsonl").read_text()


KILLED_WHILE_SAVING = """
import os, signal, sys
from midcourse.train import training
publish = training.publish_folder
def dying(work, folder, *, replace):
    if folder.name == "checkpoint-6":
        os.kill(os.getpid(), signal.SIGKILL)
    publish(work, folder, replace=replace)
training.publish_folder = dying
from midcourse.cli import main
main()
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_saving_leaves_the_previous_checkpoint(lm_folder, data, tmp_path, undisturbed_run):
    out = tmp_path / "reward"
    killed = command(lm_folder, data, out)
    killed[2] = KILLED_WHILE_SAVING
    assert subprocess.run(killed, env=environment(), capture_output=True).returncode == -9
    assert [path.name for path in checkpoints(out)] == ["checkpoint-4"]
    assert list(out.glob(".saving-*")), "the kill was meant to leave a torn checkpoint behind"
    subprocess.run(command(lm_folder, data, out, "--resume"), env=environment(), check=True, capture_output=True)
    assert same_reward(out, undisturbed_run)
    assert not list(out.glob(".saving-*"))


@pytest.mark.slow
def test_a_full_disk_while_saving_leaves_the_previous_checkpoint(lm_folder, data, tmp_path, undisturbed_run):
    """No file may grow beyond a limit, as on a full disk: the second checkpoint cannot be written."""
    out = tmp_path / "reward"
    trained_size = (undisturbed_run / "reward.safetensors").stat().st_size
    run = command(lm_folder, data, out, "--json")
    run[2] = f"""
import resource
from midcourse.train import training
publish = training.publish_folder
def limited(work, folder, *, replace):
    publish(work, folder, replace=replace)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({trained_size // 2}, {trained_size // 2}))
training.publish_folder = limited
from midcourse.cli import main
main()
"""
    done = subprocess.run(run, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in checkpoints(out)] == ["checkpoint-2"]
    subprocess.run(command(lm_folder, data, out, "--resume"), env=environment(), check=True, capture_output=True)
    assert same_reward(out, undisturbed_run)


# Refusals


def test_a_finished_reward_is_not_overwritten(lm_folder, data, undisturbed):
    before = (undisturbed / "midcourse.json").read_bytes()
    for resume in (False, True):
        with pytest.raises(TrainingError, match="already holds a finished reward"):
            trained(lm_folder, data, undisturbed, resume=resume)
    assert (undisturbed / "midcourse.json").read_bytes() == before


def test_a_folder_with_other_files_is_not_used(lm_folder, data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainingError, match="is not empty"):
        trained(lm_folder, data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_with_other_settings_names_the_difference(lm_folder, data, tmp_path):
    out = tmp_path / "reward"
    out.mkdir()
    trained(lm_folder, data, tmp_path / "first")
    run = json.loads((tmp_path / "first/midcourse.json").read_text())["training"]
    (out / "run.json").write_text(json.dumps(run))
    with pytest.raises(TrainingError, match=r"settings.epochs 3, not 4"):
        trained(lm_folder, data, out, resume=True, epochs=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": -1}, "batch-size is -1"),
        ({"held_out": 1.0}, "held-out is 1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"save_steps": 0}, "save-steps is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(lm_folder, data, tmp_path, settings, message):
    with pytest.raises(TrainingError, match=message):
        trained(lm_folder, data, tmp_path / "reward", **settings)
    assert not (tmp_path / "reward").exists()


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        ("sequence", {"past_end": "paper"}, "objective sequence has no past-end; leave it out"),
        ("prefix", {"past_end": "later"}, "past-end 'later' is unknown; use one of: drop, paper"),
        ("preference", {}, "objective 'preference' is unknown; use one of: prefix, sequence, value"),
        ("value", {"value": "soft"}, "value soft is exact at one weight; say which"),
        ("value", {"value": "mean", "value_weight": 2.0}, "value mean has no value-weight, which is for value soft"),
        ("value", {"value": "soft", "value_weight": -1.0}, "value-weight is -1.0; use a positive number"),
        ("value", {"value": "max", "expectile": 1.0}, "expectile 1.0 is not from 0.5"),
        ("farma", {}, "objective farma does not train a scalar head; use --head vocabulary or trunk"),
        ("autoregressive", {}, "objective autoregressive does not train a scalar head; use --head vocabulary"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(lm_folder, data, tmp_path, objective, settings, message):
    reward = RewardModel.create(
        str(lm_folder), template="raw", tune="head", objective=objective, objective_settings=settings
    )
    with pytest.raises(ObjectiveError, match=message):
        train(reward, read_comparisons(data), tmp_path / "reward", Settings(**SETTINGS))
    assert not (tmp_path / "reward").exists()


def test_a_loss_that_is_no_number_stops_with_a_sentence(lm_folder, data, tmp_path):
    reward = RewardModel.create(str(lm_folder), template="raw", tune="head")
    with torch.no_grad():
        reward.head.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan after step 0; lower --lr"):
        train(reward, read_comparisons(data), tmp_path / "reward", Settings(**SETTINGS))


def test_responses_longer_than_the_limit_are_cut_and_unfinished(lm_folder):
    reward = RewardModel.create(str(lm_folder), template="raw", tune="head")
    pairs = encode(reward, [Comparison("ab", "c" * 20, "d")], max_tokens=10)
    cut, whole = pairs.rows
    assert (len(cut.response), cut.finished) == (8, False)
    assert (len(whole.response), whole.finished) == (2, True)
