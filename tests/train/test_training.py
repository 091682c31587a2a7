"""Training on a tiny model on disk: what it writes, and that interruption of any kind changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from midcourse.data.comparisons import Comparison, read_comparisons, split_by_prompt
from midcourse.data.encoded import encode
from midcourse.data.formats import DataError
from midcourse.data.rollouts import Rollout
from midcourse.decode.engine import generate
from midcourse.errors import Interrupted
from midcourse.evaluate.accuracy import pair_accuracy
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.backbone import layers_of
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import head_of, load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import tiny_language_model, tiny_reward
from midcourse.train import trainer
from midcourse.train.folder import checkpoints
from midcourse.train.objectives import ObjectiveError, make_objective
from midcourse.train.precision import master_weights
from midcourse.train.scorer import Scorer
from midcourse.train.settings import Settings, TrainingError, check_reports
from midcourse.train.training import train
from studies.forked import in_fork
from tests.pace import slow_except

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


PLAIN = "from midcourse.cli import main; main()"


def command(lm_folder: Path, data: Path, out: Path, *more: str, code: str = PLAIN) -> list[str]:
    """The same training from the command line, with code of a test's own around it."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    backbone = ["--backbone", str(lm_folder), "--template", "raw", "--tune", "last:1"]
    return in_fork(code, "train", str(data), "--out", str(out), *backbone, *flags, *more)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# What training does


@pytest.mark.parametrize("tune", slow_except(["lora:2"], ["head", "last:1", "lora:2", "lora:2:1", "all"]))
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
    slow_except(
        [("prefix", {"past_end": "drop"}), ("cumulative", {})],
        [
            ("prefix", {"past_end": "drop"}),
            ("prefix", {"past_end": "paper"}),
            ("sequence", {}),
            ("value", {"value": "mean"}),
            ("value", {"value": "soft", "value_weight": 2.0}),
            ("value", {"value": "max", "expectile": 0.9}),
            ("cumulative", {}),
        ],
    ),
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


@pytest.mark.parametrize(("objective", "settings", "tune", "head"), slow_except([VALUES[1]], VALUES))
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


@pytest.mark.parametrize(("objective", "settings"), slow_except([], [one[:2] for one in VALUES[:3]]))
def test_where_labels_lie_makes_no_difference_to_a_value(lm_folder, rollouts, tmp_path, objective, settings):
    """Rewards count from the mean label: labels far from 0 take no more steps, and guide alike."""
    found = []
    for shift in (0.0, -64.0):  # a power of two, so that sums of labels round alike
        reward = created(lm_folder, objective, settings, "head", "scalar")
        moved = [replace(one, reward=one.reward + shift) for one in rollouts]
        metrics = train(reward, moved, tmp_path / str(shift), Settings(**SETTINGS))
        found.append((reward.head.weight.detach().clone(), metrics))
    (mine, near), (theirs, far) = found
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert far["labels"]["zero"] == pytest.approx(near["labels"]["zero"] - 64)
    for a, b in zip(near["labels"]["shares"], far["labels"]["shares"], strict=True):
        assert a["squared_error"] == pytest.approx(b["squared_error"], abs=1e-4)


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
    make, head = head_of(head, str(lm_folder))
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


@pytest.mark.parametrize(("objective", "settings", "tune", "head"), slow_except([TOKENS[4]], TOKENS))
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
    wins, ends = [], set()
    for c in held:
        good, bad = reward.eval().score([c.prompt, c.prompt], [c.chosen, c.rejected])
        wins.append(sum(good.rewards) > sum(bad.rewards))
        ends |= {(c.prompt, c.chosen, good.whole), (c.prompt, c.rejected, bad.whole)}
    assert metrics["shares"][-1]["accuracy"] == pytest.approx(sum(wins) / len(wins))
    # So is what is calibrated.
    mean = sum(end for *_, end in ends) / len(ends)
    assert load_reward(tmp_path / "reward").calibration.finished_mean == pytest.approx(mean, rel=1e-5)


# Every objective with every head that it trains, and every way to tune either kind of backbone.
LOSSES = [
    ("prefix", {"past_end": "drop"}),
    ("prefix", {"past_end": "paper"}),
    ("sequence", {}),
    *((objective, settings) for objective, settings, *_ in VALUES),
    ("farma", {"alternations": 3, "farma_gradient": "stop"}),
    ("farma", {"alternations": 3, "farma_gradient": "both"}),
    ("autoregressive", {"beta": 0.5}),
]
COMMON = [VALUES[1], TOKENS[2]]
MATRIX = [
    *(
        (objective, settings, "head", "trunk:4" if head == "trunk" else head)
        for objective, settings in LOSSES
        for head in make_objective(objective, **settings).heads
    ),
    *(("prefix", {}, tune, head) for head in ("scalar", "vocabulary") for tune in ("last:1", "lora:2", "all")),
    ("autoregressive", {"beta": 0.5}, "all", "vocabulary"),
]


@pytest.mark.parametrize(
    ("objective", "settings", "tune", "head"),
    slow_except(COMMON[:1], [*COMMON, *(one for one in MATRIX if one not in COMMON)]),
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
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
    publish = trainer.publish_folder

    def interrupted(work: Path, folder: Path, *, replace: bool) -> None:
        publish(work, folder, replace=replace)
        if folder.name == "checkpoint-6":
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "publish_folder", interrupted)
        with pytest.raises(Interrupted, match="stopped after step"):
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
    assert have == {
        "README.md",
        "metrics.jsonl",
        "midcourse.json",
        "reward.safetensors",
        "rows.safetensors",
        "training.png",
    }
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # the head starts at zero
    assert rows[-1]["loss"] < 0.3
    assert [row["epoch"] for row in rows if "accuracy" in row] == [1, 2, 3]
    info = json.loads((undisturbed / "midcourse.json").read_text())
    assert info["training"]["comparisons"] == 48
    assert info["metrics"]["length_baseline"]["prefers"] in ("longer", "shorter")
    assert [row["share"] for row in info["metrics"]["calibration"]["shares"]] == [0.1, 0.25, 0.5, 0.75, 1.0]
    assert RewardModel.load(undisturbed).calibration.finished_temperature > 0
    assert "Of finished texts, a is preferred to b with probability" in (undisturbed / "README.md").read_text()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt2", "mistral"])
@pytest.mark.parametrize("tune", ["head", "last:1", "lora:2", "lora:2:1", "all"])
def test_rewards_through_cached_states_are_those_of_whole_forwards(architecture, tune, tmp_path, monkeypatch):
    """What training reads (frozen layers' states, from disk) is what scoring and decoding compute."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reward = tiny_reward(architecture, tune=tune)
    rows = encode(reward, [Comparison("ab", "cde", "f" * 12), Comparison("abcd", "cde", "gh")], max_tokens=32).rows
    want = reward.score_ids([(row.prompt, row.response) for row in rows])
    for have, wanted in zip(Scorer(reward, [rows]).score(0), want, strict=True):
        assert torch.allclose(have, wanted, atol=1e-6)
    cached = list((tmp_path / "midcourse/states").glob("*.safetensors"))
    # GPT-2 adds positions to whatever enters it, so its layers are not split; adapters in all layers change all.
    assert bool(cached) == (tune == "head" or (tune in ("last:1", "lora:2:1") and architecture != "gpt2"))


@pytest.mark.slow
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
from midcourse.train import trainer
publish = trainer.publish_folder
def signalled(work, folder, *, replace):
    publish(work, folder, replace=replace)
    if folder.name == "checkpoint-2":
        os.kill(os.getpid(), {number})
trainer.publish_folder = signalled
from midcourse.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_training_that_was_interrupted_resumes_to_the_same_reward(lm_folder, data, tmp_path, undisturbed_run, number):
    out = tmp_path / "reward"
    interrupted = command(lm_folder, data, out, code=SIGNALLED.format(number=int(number)))
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
from midcourse.train import trainer
publish = trainer.publish_folder
def dying(work, folder, *, replace):
    if folder.name == "checkpoint-6":
        os.kill(os.getpid(), signal.SIGKILL)
    publish(work, folder, replace=replace)
trainer.publish_folder = dying
from midcourse.cli import main
main()
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_saving_leaves_the_previous_checkpoint(lm_folder, data, tmp_path, undisturbed_run):
    out = tmp_path / "reward"
    killed = command(lm_folder, data, out, code=KILLED_WHILE_SAVING)
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
    code = f"""
import resource
from midcourse.train import trainer
publish = trainer.publish_folder
def limited(work, folder, *, replace):
    publish(work, folder, replace=replace)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({trained_size // 2}, {trained_size // 2}))
trainer.publish_folder = limited
from midcourse.cli import main
main()
"""
    run = command(lm_folder, data, out, "--json", code=code)
    done = subprocess.run(run, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in checkpoints(out)] == ["checkpoint-2"]
    subprocess.run(command(lm_folder, data, out, "--resume"), env=environment(), check=True, capture_output=True)
    assert same_reward(out, undisturbed_run)


@pytest.fixture(scope="module")
def stopped(lm_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that Ctrl-C ended after its second checkpoint."""
    out = tmp_path_factory.mktemp("stopped") / "reward"
    publish = trainer.publish_folder

    def interrupted(work: Path, folder: Path, *, replace: bool) -> None:
        publish(work, folder, replace=replace)
        if folder.name == "checkpoint-4":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "publish_folder", interrupted)
        with pytest.raises(Interrupted, match="stopped after step 5"):
            trained(lm_folder, data, out)
    return out


CHECKPOINT = [
    "metrics.jsonl", "midcourse.json", "optimizer.pt", "reward.safetensors", "rng_state.pth", "scheduler.pt",
    "trainer_state.json", "checksums.json",
]  # fmt: skip


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"\xff\x00{" * 9}.get(how, b""))
    if how == "missing":
        path.unlink()


@pytest.mark.parametrize("how", ["cut", "empty", "garbage", "missing"])
@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_damaged_checkpoint_is_not_gone_on_from(lm_folder, data, tmp_path, stopped, name, how):
    """Optimiser, random numbers and metrics too: without them training would go on, to another reward."""
    out = tmp_path / "reward"
    shutil.copytree(stopped, out)
    assert sorted(path.name for path in (out / "checkpoint-5").iterdir()) == sorted(CHECKPOINT)
    damage(out / "checkpoint-5" / name, how)
    with pytest.raises(TrainingError, match=rf"checkpoint-5 is damaged \({name}\); delete it and add --resume"):
        trained(lm_folder, data, out, resume=True)
    assert (out / "checkpoint-5").exists() and (out / "run.json").exists()


@pytest.mark.slow
def test_another_runs_checkpoint_is_not_gone_on_from(lm_folder, data, tmp_path, stopped):
    out = tmp_path / "reward"
    shutil.copytree(stopped, out)
    trained(lm_folder, data, tmp_path / "other", seed=1)
    shutil.copyfile(tmp_path / "other/reward.safetensors", out / "checkpoint-5/reward.safetensors")
    with pytest.raises(TrainingError, match=r"checkpoint-5 is damaged \(reward\.safetensors\)"):
        trained(lm_folder, data, out, resume=True)


@pytest.mark.parametrize("how", ["cut", "empty", "garbage"])
def test_a_damaged_description_of_a_run_is_refused(lm_folder, data, tmp_path, stopped, how):
    out = tmp_path / "reward"
    shutil.copytree(stopped, out)
    damage(out / "run.json", how)
    with pytest.raises(TrainingError, match=r"run\.json is damaged \(.*\); delete .* and train again"):
        trained(lm_folder, data, out, resume=True)


@pytest.mark.parametrize("how", slow_except(["cut"], ["cut", "garbage", "missing"]))
def test_damaged_curves_are_those_of_the_checkpoint_again(lm_folder, data, tmp_path, stopped, undisturbed, how):
    out = tmp_path / "reward"
    shutil.copytree(stopped, out)
    damage(out / "metrics.jsonl", how)
    trained(lm_folder, data, out, resume=True)
    assert same_reward(out, undisturbed)
    assert (out / "metrics.jsonl").read_text() == (undisturbed / "metrics.jsonl").read_text()


# Refusals


def test_a_finished_reward_is_not_overwritten(lm_folder, data, undisturbed):
    before = (undisturbed / "midcourse.json").read_bytes()
    with pytest.raises(TrainingError, match="already holds a finished reward"):
        trained(lm_folder, data, undisturbed)
    assert trained(lm_folder, data, undisturbed, resume=True) == json.loads(before)["metrics"]
    with pytest.raises(TrainingError, match=r"a finished reward with settings\.seed \d, not 99"):
        trained(lm_folder, data, undisturbed, resume=True, seed=99)
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
        ({"eval_steps": 0}, "eval-steps is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"precision": "half"}, "precision 'half' is unknown; use one of: auto, full, bfloat16"),
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
    with pytest.raises(TrainingError, match="the loss is nan at the first step: ") as caught:
        train(reward, read_comparisons(data), tmp_path / "reward", Settings(**SETTINGS))
    said = (
        f"the reward on {lm_folder} computes no number for the batch in {tmp_path / 'reward/bad_batch.json'}; restore"
    )
    assert said in str(caught.value)
    assert "lr" not in str(caught.value).replace(str(tmp_path), "").replace(str(lm_folder), "")


def test_responses_longer_than_the_limit_are_cut_and_unfinished(lm_folder):
    reward = RewardModel.create(str(lm_folder), template="raw", tune="head")
    pairs = encode(reward, [Comparison("ab", "c" * 20, "d")], max_tokens=10)
    cut, whole = pairs.rows
    assert (len(cut.response), cut.finished) == (8, False)
    assert (len(whole.response), whole.finished) == (2, True)


def test_pairs_that_become_equal_when_cut_are_left_out_and_counted(lm_folder, tmp_path):
    """A pair without a difference teaches nothing, and its accuracy of one half would look like a measurement."""
    rows = [
        Comparison(f"p{n}", " same words here" + end, " same words here" + "y" * 9) for n, end in enumerate("abcdef")
    ]
    reward = RewardModel.create(str(lm_folder), template="raw", tune="last:1")
    with pytest.raises(DataError, match="the responses of all 6 comparisons are equal in their first 10 tokens"):
        encode(reward, rows, max_tokens=10)
    others = [Comparison(f"q{n}", GOOD, BAD) for n in range(12)]
    pairs = encode(reward, [*rows, *others], max_tokens=10)
    assert (len(pairs.pairs), len(pairs.prompts), pairs.left_out) == (12, 12, 6)
    metrics = train(reward, [*rows, *others], tmp_path / "out", Settings(epochs=1, max_tokens=10, held_out=0.2))
    cut = metrics["cut"]
    assert cut["max_tokens"] == 10 and cut["cut"] == cut["texts"] > 0 and cut["equal_pairs"] > 0
    card = (tmp_path / "out/README.md").read_text()
    assert f"{cut['cut']} of {cut['texts']} texts were cut at 10 tokens, prompt included." in card
    assert f"{cut['equal_pairs']} pairs whose responses are equal up to there were left out." in card


# What goes wrong


def stubborn(lm_folder: Path, value: float) -> RewardModel:
    """A reward whose head begins at a number that makes for a bad loss or gradient."""
    reward = RewardModel.create(str(lm_folder), template="raw", tune="last:1")
    with torch.no_grad():
        reward.head.weight.fill_(value)
    return reward


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "the loss is nan at the first step: "),
        (1e30, "the loss is .* after step 0; lower --lr, "),
        (2e8, "the norm of its gradient is .* after step 0; lower --lr, "),
    ],
)
def test_a_bad_batch_is_written_down_and_named(lm_folder, data, tmp_path, value, said):
    """A loss that is no number or has exploded, and a gradient that has: the batch is there, the weights unchanged."""
    out = tmp_path / "reward"
    reward = stubborn(lm_folder, value)
    before = {key: tensor.clone() for key, tensor in reward.trained_state().items()}
    with pytest.raises(TrainingError, match=rf"{said}.*bad_batch\.json"):
        train(reward, read_comparisons(data), out, Settings(**SETTINGS))
    found = json.loads((out / "bad_batch.json").read_text())
    assert found["step"] == 1
    assert len(found["batch"]) == SETTINGS["batch_size"]
    comparisons = {(c.prompt, c.chosen) for c in read_comparisons(data)}
    for pair in found["batch"]:
        assert (pair["prompt"], pair["chosen"].removesuffix(reward.tokenizer.eos_token)) in comparisons
        assert reward.tokenizer.decode(pair["rejected_ids"]) == pair["rejected"]
        assert isinstance(pair["loss"], float) or pair["loss"] == "nan"
    after = reward.trained_state()
    assert all(torch.equal(after[key].nan_to_num(), before[key].nan_to_num()) for key in before)


# Stopping early


def noisy(tmp_path: Path, prompts: int = 40) -> Path:
    """Pairs without a pattern: more training only fits noise."""
    path = tmp_path / "noise.jsonl"
    words = [f"{i * i % 97} {i * 7 % 31}" for i in range(2 * prompts)]
    rows = [{"prompt": f"p{i}", "chosen": words[2 * i], "rejected": words[2 * i + 1]} for i in range(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PATIENT = {"epochs": 8, "patience": 2, "eval_steps": 2, "save_steps": 3, "held_out": 0.4, "lr": 3e-2}


def test_patience_stops_and_keeps_the_best_weights(lm_folder, tmp_path):
    out, data = tmp_path / "reward", noisy(tmp_path)
    metrics = trained(lm_folder, data, out, **PATIENT)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evaluated = {row["step"]: sum(row["accuracy"].values()) / 5 for row in rows if "accuracy" in row}
    stop = metrics["early_stopping"]
    assert list(evaluated) == list(range(2, stop["stopped"] + 1, 2))
    best = min(step for step in evaluated if evaluated[step] == max(evaluated.values()))
    assert (stop["step"], stop["accuracy"]) == (best, pytest.approx(evaluated[best]))
    assert stop["stopped"] == best + 2 * 2 < stop["planned"]
    # The weights are those that were evaluated as the best, on prompts that the reported accuracies do not use.
    _, held = split_by_prompt(read_comparisons(data), PATIENT["held_out"], seed=0)
    deciding, reporting = split_by_prompt(held, 0.5, seed=1)
    assert (stop["pairs"], metrics["pairs"]) == (len(deciding), len(reporting))
    reward = RewardModel.load(out)
    for part, want in ((deciding, stop["accuracy"]), (reporting, None)):
        pairs = encode(reward, part, 512)
        found = pair_accuracy(pairs, reward.score_ids([(row.prompt, row.response) for row in pairs.rows]))
        accuracy = sum(share["accuracy"] for share in found["shares"]) / 5
        assert accuracy == pytest.approx(want or sum(share["accuracy"] for share in metrics["shares"]) / 5)
    card = (out / "README.md").read_text()
    assert f"stopped after step {stop['stopped']} of {stop['planned']}" in card
    assert f"step {best}" in card
    assert not list(out.glob("checkpoint-*"))


def test_without_patience_no_prompt_is_spent_on_stopping(undisturbed):
    metrics = json.loads((undisturbed / "midcourse.json").read_text())["metrics"]
    assert "early_stopping" not in metrics
    assert metrics["prompts"] == 5


def test_patience_needs_two_held_out_prompts(lm_folder, data, tmp_path):
    with pytest.raises(TrainingError, match="patience needs two held-out prompts"):
        trained(lm_folder, data, tmp_path / "reward", patience=1, held_out=0.01)
    assert not (tmp_path / "reward").exists()


# Memory and precision


@pytest.mark.parametrize("tune", slow_except(["lora:2"], ["last:1", "lora:2", "all"]))
def test_gradient_checkpointing_changes_nothing_but_memory(lm_folder, data, tmp_path, tune):
    for name, checkpointing in (("with", True), ("without", False)):
        trained(lm_folder, data, tmp_path / name, tune=tune, gradient_checkpointing=checkpointing, epochs=1)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("with", "without")
    ]
    assert [row["loss"] for row in rows[0]] == pytest.approx([row["loss"] for row in rows[1]], abs=1e-6)
    assert [row["grad_norm"] for row in rows[0]] == pytest.approx([row["grad_norm"] for row in rows[1]], rel=1e-4)


@pytest.mark.parametrize("tune", ["last:1", "lora:2", "all"])
def test_gradient_checkpointing_computes_trained_layers_again(lm_folder, tune):
    """Not only asked for: every trained layer's forward runs twice a step."""
    calls = []
    reward = RewardModel.create(str(lm_folder), template="raw", tune=tune)
    rows = encode(reward, [Comparison("ab", "cde", "fgh")], max_tokens=32).rows
    scorer = Scorer(reward, [rows])
    base = reward.backbone.get_base_model() if tune == "lora:2" else reward.backbone
    layers_of(base)[-1].self_attn.register_forward_hook(lambda *args: calls.append(1))
    scorer.checkpoint_gradients()
    scorer.train()
    scorer(**scorer.inputs(0, [0, 1])).sum().backward()
    assert len(calls) == 2


def test_gradient_checkpointing_without_trained_layers_is_refused(lm_folder, data, tmp_path):
    with pytest.raises(TrainingError, match="tune head trains none"):
        trained(lm_folder, data, tmp_path / "reward", tune="head", gradient_checkpointing=True)


def test_bfloat16_is_refused_where_the_hardware_lacks_it(lm_folder, data, tmp_path):
    with pytest.raises(TrainingError, match="needs a GPU that computes in it, and this is cpu"):
        trained(lm_folder, data, tmp_path / "reward", precision="bfloat16")


def test_master_weights_keep_steps_that_bfloat16_loses(lm_folder):
    """In bfloat16 1 + 1e-3 is 1: a hundred such steps go nowhere. As float32 they add up, and are rounded once."""
    reward = RewardModel.create(str(lm_folder), template="raw", tune="last:1", dtype="bfloat16")
    with torch.no_grad():
        reward.head.weight.fill_(1.0)
    frozen = reward.backbone.get_input_embeddings().weight
    for mixed, want in ((False, 1.0), (True, 1.1015625)):
        with master_weights(reward, mixed), torch.no_grad():
            for _ in range(100):
                reward.head.weight += 1e-3
            assert (reward.head.weight.dtype, frozen.dtype) == (
                torch.float32 if mixed else torch.bfloat16,
                torch.bfloat16,
            )
        assert reward.head.weight.dtype == torch.bfloat16
        assert reward.head.weight[0, 0].item() == want


# Trackers


@pytest.mark.slow
def test_trackers_get_every_figure(lm_folder, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reward = RewardModel.create(str(lm_folder), template="raw", tune="head")
    out = tmp_path / "reward"
    train(reward, read_comparisons(data), out, Settings(**SETTINGS), report_to=["tensorboard"])
    (folder,) = (out / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name, key in (
        ("train/loss", "loss"),
        ("train/learning_rate", "learning_rate"),
        ("train/grad_norm", "grad_norm"),
    ):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["step"], pytest.approx(row[key])) for row in rows]
    for share in ("0.1", "1.0"):
        found = [event.value for event in events.Scalars(f"eval/accuracy_at_{float(share):g}")]
        assert found == pytest.approx([row["accuracy"][share] for row in rows if "accuracy" in row])


def test_trackers_that_are_unknown_or_missing_are_refused(lm_folder, data, tmp_path):
    with pytest.raises(TrainingError, match="report-to 'fax' is unknown; use one of: tensorboard"):
        check_reports(["fax"])
    missing = [name for name in ("trackio", "wandb") if find_spec(name) is None]
    for name in missing:
        with pytest.raises(TrainingError, match=f"needs a package that is not installed; run: pip install {name}"):
            check_reports([name])


# Two at once


HOLDING = """
import sys, time
from pathlib import Path
from midcourse.train.folder import only_training
from tests.pace import slow_except
with only_training(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_two_trainings_in_one_folder_are_refused_and_a_dead_one_does_not_block(lm_folder, data, tmp_path):
    out = tmp_path / "reward"
    start = [sys.executable, "-c", HOLDING, str(out)]
    holder = subprocess.Popen(start, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match=rf"another training \(process {holder.pid}\) is writing to"):
            trained(lm_folder, data, out)
        holder.kill()
        holder.wait()
        assert (out / ".lock").exists()  # what a dead one leaves
    trained(lm_folder, data, out, epochs=1)
    assert not (out / ".lock").exists()


# Everything together, killed and resumed


@pytest.mark.slow
def test_a_patient_run_in_less_memory_resumes_to_the_same_reward(lm_folder, tmp_path):
    """Killed after a checkpoint between evaluations, then after the one at which it stopped, before it was done."""
    data = noisy(tmp_path)
    start = ["--backbone", str(lm_folder), "--template", "raw", "--tune", "last:1", "--batch-size", "8"]
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in PATIENT.items()] + ["--gradient-checkpointing"]

    def run(out: Path, code: str, *more: str) -> subprocess.CompletedProcess:
        what = in_fork(code, "train", str(data), "--out", str(out), *start, *flags, *more)
        return subprocess.run(what, env=environment(), capture_output=True, text=True)

    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(whole, PLAIN).returncode == 0
    stop = json.loads((whole / "midcourse.json").read_text())["metrics"]["early_stopping"]
    kill = SIGNALLED.replace('folder.name == "checkpoint-2"', 'folder.name == "checkpoint-{step}"')
    assert run(out, kill.format(step=3, number=int(signal.SIGKILL))).returncode == -signal.SIGKILL
    last = kill.format(step=stop["stopped"], number=int(signal.SIGKILL))
    assert run(out, last, "--resume").returncode == -signal.SIGKILL
    assert {f"checkpoint-{stop[name]}" for name in ("step", "stopped")} <= {path.name for path in checkpoints(out)}
    done = run(out, PLAIN, "--resume")
    assert done.returncode == 0, done.stderr
    assert same_reward(out, whole)
    for name in ("metrics.jsonl", "midcourse.json", "README.md"):
        assert (out / name).read_text() == (whole / name).read_text()
