"""The whole run: it learns, is exact to repeat and resume, loses nothing, and says what is wrong."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from midcourse.compare.independence import of_policy, of_reward, why_dependent, write_paid_by
from midcourse.data.edits import Edit
from midcourse.data.formats import DataError
from midcourse.errors import MidcourseError
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.policy import load_policy
from midcourse.ppo.figa import train_on_edits
from midcourse.ppo.run import train_policy
from midcourse.ppo.settings import FigaSettings, PPOError, PPOSettings, check_settings
from midcourse.ppo.training import adapted, correlation
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.rewards.text import FunctionReward
from midcourse.testing import tiny_language_model
from midcourse.train.folder import checkpoints
from midcourse.train.settings import TrainingError
from studies.forked import in_fork

PROMPTS = ["The ferry", "A train was", "One"]
QUICK = {"rollouts": 48, "batch_size": 12, "minibatch": 5, "max_new_tokens": 4, "lr": 1e-2, "save_every": 2}


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    lm = tiny_language_model(dtype=torch.float32)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def low_bytes(rollouts, mask):
    """1 for a token below 64, -1 for others."""
    rewards = torch.zeros(mask.shape)
    for row, one in enumerate(rollouts):
        rewards[row, : len(one.response_ids)] = torch.tensor([1.0 if t < 64 else -1.0 for t in one.response_ids])
    return rewards


def trained(lm_folder: Path, out: Path, reward: object = low_bytes, resume: bool = False, **settings) -> list[dict]:
    lm = LanguageModel.load(str(lm_folder))
    more = {name: settings.pop(name) for name in ("gold", "paid_by") if name in settings}
    how = {**QUICK, **settings}
    return train_policy(lm, PROMPTS, reward, out, PPOSettings(**how), resume=resume, **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*model.safetensors")
    return load_file(path)


def metrics_of(folder: Path) -> list[dict]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"density": "end", "kl": "k1", "values": "own"},
        {"tune": "all", "lr": 3e-3, "kl": "k3"},
        {"advantages": "group", "group_size": 4, "rollouts": 240, "batch_size": 24},
    ],
    ids=["tokens", "end", "all", "group"],
)
def test_a_policy_learns_what_pays(lm_folder, tmp_path, how):
    how = {"rollouts": 240, "batch_size": 24, **how}
    metrics = trained(lm_folder, tmp_path / "policy", gold=FunctionReward(len), **how)
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-5) and metrics[-1]["kl"] > 0.1
    assert metrics[-1]["reward"] > metrics[0]["reward"] + 1
    assert {"gold", "entropy", "clipped", "explained_variance", "length", "length_correlation"} <= metrics[0].keys()
    assert [row["rollouts"] for row in metrics][-1] == 240
    lm = LanguageModel.load(str(lm_folder))
    policy = load_policy(str(tmp_path / "policy"), lm)
    ids = torch.tensor([[72, 101]])
    assert (policy.model(ids).logits - lm.model(ids).logits).abs().max() > 0.05


def test_a_finished_folder_holds_what_people_look_for(lm_folder, tmp_path):
    trained(lm_folder, tmp_path / "policy", gold=FunctionReward(len))
    found = {path.name for path in (tmp_path / "policy").iterdir()}
    assert found == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "curves.png", "metrics.jsonl",
        "midcourse_policy.json", "samples.html",
    }  # fmt: skip
    page = (tmp_path / "policy/samples.html").read_text()
    assert "Step 1<" in page and "Step 4<" in page and "paid" in page
    assert "| kl | " in (tmp_path / "policy/README.md").read_text()
    record = json.loads((tmp_path / "policy/midcourse_policy.json").read_text())
    assert record["method"] == "ppo" and record["reward"] == "low_bytes" and record["prompts"] == 3


def test_nor_is_what_the_policy_that_it_begins_at_was_trained_to_earn(lm_folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    trained(lm_folder, first, load_reward("vader"), paid_by=[of_reward("vader", "vader")], tune="all")
    trained(str(first), second, load_reward("profanity"), paid_by=[of_reward("profanity", "profanity")])
    for name in ("vader", "profanity"):
        assert why_dependent(of_reward(name, name), of_policy(str(second), "second"))


def test_more_layers_than_there_are_are_refused_before_anything_is_written(lm_folder, tmp_path):
    lm, out, deep = LanguageModel.load(str(lm_folder)), tmp_path / "out", "lora:2:99"
    with pytest.raises(RewardError, match="tune lora:2:99 trains more than the"):
        train_policy(lm, ["a"], load_reward("vader"), out, PPOSettings(tune=deep))
    with pytest.raises(RewardError, match="tune lora:2:99 trains more than the"):
        train_on_edits(lm, [Edit("", "a b", "a c", "")], out, FigaSettings(tune=deep))
    assert not out.exists()


def test_what_a_policy_was_trained_to_earn_is_no_judge_of_it(lm_folder, tmp_path):
    trained(lm_folder, tmp_path / "policy", load_reward("vader"), paid_by=[of_reward("vader", "vader")])
    policy = of_policy(str(tmp_path / "policy"), "policy")
    why = "is what the policy policy was trained to earn"
    assert why_dependent(of_reward("vader", "vader"), policy) == why
    assert why_dependent(of_reward("profanity", "profanity"), policy) is None
    assert policy.rows is not None and not len(policy.rows)
    shipped = of_reward("civil", "civil")
    write_paid_by(tmp_path / "policy", [shipped])
    assert why_dependent(shipped, of_policy(str(tmp_path / "policy"), "policy")) == why
    (tmp_path / "policy/paid_by.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"paid_by\.json is damaged"):
        of_policy(str(tmp_path / "policy"), "policy")


def test_the_same_seed_gives_the_same_policy(lm_folder, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        trained(lm_folder, tmp_path / name, seed=seed)
    assert equal(tmp_path / "one", tmp_path / "again")
    assert not equal(tmp_path / "one", tmp_path / "other")


# Interruption


TOKENS = """
import torch
def low_bytes(rollouts, mask):
    rewards = torch.zeros(mask.shape)
    for row, one in enumerate(rollouts):
        rewards[row, : len(one.response_ids)] = torch.tensor([1.0 if t < 64 else -1.0 for t in one.response_ids])
    return rewards
"""
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
PLAIN = "from midcourse.cli import main; main()"
AFTER = """
import os, resource
from midcourse.ppo import folder
publish = folder.publish_folder
def after(work, target, *, replace):
    {before}
    publish(work, target, replace=replace)
    {after}
folder.publish_folder = after
from midcourse.cli import main
main()
"""


@pytest.fixture(scope="module")
def there(lm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts, a reward and, in `whole`, the policy of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("there")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in PROMPTS))
    (folder / "paying.py").write_text(TOKENS)
    done = ppo(folder, lm_folder, "whole")
    assert done.returncode == 0, done.stderr
    assert "policy, curves.png" in done.stdout and "Writing model shards" not in done.stderr
    return folder


def ppo(
    folder: Path, lm: Path, out: str, *flags: str, code: str = PLAIN, processes: int = 1
) -> subprocess.CompletedProcess:
    """midcourse ppo in a process of its own, or in several, with code of a test's own around it."""
    (folder / f"{out}.py").write_text(code)
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    start = in_fork(code) if processes == 1 else [*several, f"{out}.py"]
    command = ["ppo", "--prompts", "prompts.jsonl", "--token-function", "paying:low_bytes", "--lm", str(lm)]
    return subprocess.run(
        [*start, *command, "--out", out, *FLAGS, *flags],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


STOPPED = "if target.name == 'checkpoint-2': os.kill(os.getpid(), 2)"
TORN = "if target.name == 'checkpoint-4': os.kill(os.getpid(), 9)"
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status", "step", "said"),
    [
        (AFTER.format(before="pass", after=STOPPED), 130, 3, ["stopped after step 3 of 4; add --resume"]),
        (AFTER.format(before=TORN, after="pass"), -signal.SIGKILL, 2, []),
        (AFTER.format(before="pass", after=FULL), 2, 2, ["checkpoint-4 cannot be written", "checkpoint-2 is whole"]),
    ],
    ids=["stopped", "torn", "full"],
)
def test_a_run_that_broke_off_goes_on_to_the_same_policy(there, lm_folder, code, status, step, said):
    """Ctrl-C; kill -9 in the middle of saving; no file may grow beyond a limit, as on a full disk."""
    out = f"parts{status}"
    broken = ppo(there, lm_folder, out, code=code)
    assert broken.returncode == status, broken.stderr
    assert "Traceback" not in broken.stderr
    assert all(words in broken.stderr for words in said)
    assert [path.name for path in checkpoints(there / out)] == [f"checkpoint-{step}"]
    resumed = ppo(there, lm_folder, out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert equal(there / out, there / "whole")
    assert (there / out / "metrics.jsonl").read_text() == (there / "whole/metrics.jsonl").read_text()
    page = (there / out / "samples.html").read_text()
    assert page.replace(out, "whole") == (there / "whole/samples.html").read_text()
    assert not list((there / out).glob(".saving-*"))


def test_an_unfinished_run_is_gone_on_with_as_it_was_begun_or_not_at_all(lm_folder, tmp_path):
    def once(rollouts, mask):
        if rollouts[0].number:
            raise PPOError("no more")
        return low_bytes(rollouts, mask)

    once.__qualname__ = "low_bytes"
    with pytest.raises(PPOError, match="no more"):
        trained(lm_folder, tmp_path / "policy", once, save_every=1)
    with pytest.raises(TrainingError, match="add --resume to go on with it"):
        trained(lm_folder, tmp_path / "policy", save_every=1)
    with pytest.raises(TrainingError, match=r"settings.lam 0.95, not 0.5"):
        trained(lm_folder, tmp_path / "policy", save_every=1, lam=0.5, resume=True)
    assert len(trained(lm_folder, tmp_path / "policy", save_every=1, resume=True)) == 4


@pytest.mark.slow
def test_two_processes_end_where_one_does(there, lm_folder):
    two = ppo(there, lm_folder, "two", processes=2)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("policy, curves.png") == 1
    a, b = weights(there / "whole"), weights(there / "two")
    assert all(torch.allclose(a[name], b[name], atol=1e-3) for name in a)
    for mine, other in zip(metrics_of(there / "whole"), metrics_of(there / "two"), strict=True):
        assert mine == pytest.approx(other, rel=1e-2, abs=2e-3)


# What cannot be learned from


def test_a_batch_whose_rewards_are_none_is_kept(lm_folder, tmp_path):
    def broken(rollouts, mask):
        return torch.where(mask & (rollouts[0].number >= 12), float("nan"), low_bytes(rollouts, mask))

    with pytest.raises(PPOError, match=r"token 1 of response 1 is nan.*bad_batch.json"):
        trained(lm_folder, tmp_path / "policy", broken, save_every=1)
    kept = json.loads((tmp_path / "policy/bad_batch.json").read_text())
    assert kept["step"] == 2 and len(kept["rollouts"]) == 12 and kept["rollouts"][0]["token_ids"]
    assert [path.name for path in checkpoints(tmp_path / "policy")] == ["checkpoint-1"]


def test_broken_weights_are_noticed(tmp_path):
    lm = tiny_language_model(dtype=torch.float32)
    with torch.no_grad():
        lm.model.lm_head.weight[5] = float("nan")
    lm.model.save_pretrained(tmp_path / "lm")
    lm.tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(MidcourseError, match="log-probabilities that are not numbers"):
        trained(tmp_path / "lm", tmp_path / "policy")
    assert not (tmp_path / "policy/midcourse_policy.json").exists()


def test_a_policy_for_which_no_prompt_is_there(lm_folder, tmp_path):
    lm = LanguageModel.load(str(lm_folder))
    with pytest.raises(PPOError, match="there are no prompts"):
        train_policy(lm, [], low_bytes, tmp_path / "policy")
    with pytest.raises(Exception, match="exceed the context of 256"):
        train_policy(lm, ["x" * 250], low_bytes, tmp_path / "policy")


def test_a_finished_policy_is_not_trained_over(lm_folder, tmp_path):
    trained(lm_folder, tmp_path / "policy")
    with pytest.raises(TrainingError, match="already holds a finished policy"):
        trained(lm_folder, tmp_path / "policy")


@pytest.mark.parametrize("damage", ['{"a":', '{"a": 1}\n', "", None])
def test_damaged_metrics_of_a_finished_policy(lm_folder, tmp_path, damage):
    out = tmp_path / "policy"
    metrics = trained(lm_folder, out)
    assert trained(lm_folder, out, resume=True) == metrics
    (out / "metrics.jsonl").unlink()
    if damage is not None:
        (out / "metrics.jsonl").write_text(damage)
    with pytest.raises(TrainingError, match=r"metrics\.jsonl is damaged"):
        trained(lm_folder, out, resume=True)


def test_reward_that_follows_length_is_told(lm_folder, tmp_path, capsys):
    lm = tiny_language_model(dtype=torch.float32, more_eos=range(40, 90))
    metrics = train_policy(
        lm, PROMPTS, lambda rollouts, mask: torch.ones(mask.shape), tmp_path / "policy", PPOSettings(**QUICK)
    )
    assert metrics[0]["length_correlation"] == pytest.approx(1)
    assert capsys.readouterr().err.count("the reward goes with the length") == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"rollouts": 0}, "rollouts is 0; use 1 or more"),
        ({"lr": float("nan")}, "lr is nan; use a positive number"),
        ({"gamma": 1.5}, "gamma is 1.5; use a number from 0 to 1"),
        ({"kl_weight": -1.0}, "kl-weight is -1.0; use 0 or more"),
        ({"kl_target": 2.0, "kl_weight": 0.0}, "from 0 it never rises"),
        ({"tune": "head"}, "tune is head; use lora"),
        ({"advantages": "group"}, "group-size is 1; use a group-size such as 4"),
        ({"group_size": 3}, "batch-size is 64; use a multiple of group-size, which is 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, why):
    with pytest.raises(PPOError, match=why):
        check_settings(PPOSettings(**given))


def test_a_choice_that_is_none_is_refused(types_unchecked):
    with pytest.raises(PPOError, match="density is words; use one of tokens, end, uniform, shuffled"):
        check_settings(PPOSettings(density="words"))


@pytest.mark.parametrize("tune", ["some", "head", "last:2", "lora:0"])
def test_a_tuning_that_is_none_of_a_policys_is_refused(tune):
    with pytest.raises(PPOError, match=f"tune is {tune}; use lora, lora:RANK, lora:RANK:LAYERS or all"):
        check_settings(PPOSettings(tune=tune))


# Small parts


def test_the_weight_of_the_divergence_follows_its_target():
    assert adapted(0.1, 5.0, 5.0) == pytest.approx(0.1)
    assert adapted(0.1, 5.5, 5.0) == pytest.approx(0.105)
    assert adapted(0.1, 50.0, 5.0) == pytest.approx(0.11)
    assert adapted(0.1, 0.0, 5.0) == pytest.approx(0.09)


def test_correlations():
    assert correlation(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2.0, 4.0, 8.0])) == pytest.approx(1)
    assert correlation(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])) is None
