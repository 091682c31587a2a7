"""Training in two processes on CPUs: the same reward as in one, written and told once.

Once they are started by torchrun; else as it starts them, by its environment variables, and forked off a process that
has imported what they need.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from midcourse.testing import tiny_language_model
from midcourse.train import processes
from studies.forked import in_fork

PLAIN = "from midcourse.cli import main; main()"

# After its second checkpoint the first process alone gets a signal.
SIGNALLED = """
import os, signal
from midcourse.train import trainer
publish = trainer.publish_folder
def signalled(work, folder, *, replace):
    publish(work, folder, replace=replace)
    if folder.name == "checkpoint-4":
        os.kill(os.getpid(), signal.SIGTERM)
trainer.publish_folder = signalled
from midcourse.cli import main
main()
"""

# accelerate shards over GPUs only. What it decides from its configuration is said here instead; the sharding, the
# gathering and everything of midcourse's own is the real thing, over gloo.
SHARDED = """
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule
from midcourse.train.trainer import PlanTrainer
prepare, step = PlanTrainer.create_accelerator_and_postprocess, PlanTrainer.training_step
def sharded(self):
    prepare(self)
    self.accelerator.state.distributed_type = DistributedType.FSDP
    self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    self.is_fsdp_enabled = True
def checked(self, model, *args, **kwargs):
    assert sum(isinstance(module, FSDPModule) for module in model.modules()) > 2, "layers are sharded on their own"
    return step(self, model, *args, **kwargs)
PlanTrainer.create_accelerator_and_postprocess, PlanTrainer.training_step = sharded, checked
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and 48 pairs, of which 38 are trained on."""
    folder = tmp_path_factory.mktemp("files")
    lm = tiny_language_model("llama", dtype=torch.float32)
    lm.model.save_pretrained(folder / "lm")
    lm.tokenizer.save_pretrained(folder / "lm")
    rows = [
        {"prompt": f"prompt {i // 2}", "chosen": " fine" + " x" * (i % 3), "rejected": " poor" + " y" * (i % 4)}
        for i in range(48)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(
    files: Path,
    out: Path,
    count: int,
    *flags: str,
    code: str = PLAIN,
    asked: tuple[str, ...] | None = None,
    torchrun: bool = False,
) -> subprocess.CompletedProcess:
    """midcourse train, or what is asked for instead, in `count` processes with a cache of frozen states of its own."""
    train = ("train", str(files / "pairs.jsonl"), "--backbone", str(files / "lm"), "--template", "raw")
    given = ["--device=cpu", "--epochs=3", "--save-steps=2", "--held-out=0.2", "--lr=1e-2", *flags]
    words = [*(asked or train), "--out", str(out), *given]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": f"{out}-cache"}
    if torchrun:
        script = out.with_suffix(".py")
        script.write_text(code)
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(script)]
        return subprocess.run([sys.executable, *launch, *words], env=environment, capture_output=True, text=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = []
    for rank in range(count):
        if count > 1:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment |= {name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
            environment |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(in_fork(code, *words), env=dict(environment), text=True, **pipes))
    said = [process.communicate() for process in started]
    ended = max((process.returncode for process in started), key=abs)
    return subprocess.CompletedProcess(words, ended, *map("".join, zip(*said, strict=True)))


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_equal_to_rounding(have: Path, want: Path) -> None:
    a, b = load_file(have / "reward.safetensors"), load_file(want / "reward.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], atol=2e-4) for name in a)
    for mine, other in zip(metrics(have), metrics(want), strict=True):
        assert mine.keys() == other.keys()
        for name in ("loss", "grad_norm", "learning_rate"):
            assert mine[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tune", "batch_size"),
    [
        ("all", 7),  # split into 4 and 3
        ("last:1", 37),  # the epoch's last batch has one pair for two processes
    ],
)
def test_two_processes_train_what_one_does(files, tmp_path, tune, batch_size):
    flags = ["--tune", tune, f"--batch-size={batch_size}", "--json"]
    one, two = run(files, tmp_path / "one", 1, *flags), run(files, tmp_path / "two", 2, *flags)
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    # Once told, once written, and every shard of frozen states computed once.
    assert json.loads(two.stdout)["shares"] == json.loads(one.stdout)["shares"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )
    states = [sorted(path.name for path in Path(f"{tmp_path}/{name}-cache").rglob("*.saf*")) for name in ("one", "two")]
    assert states[0] == states[1]
    assert_equal_to_rounding(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [17])  # the epoch's last batch has one ladder for two processes
def test_two_processes_train_the_detector_that_one_does(files, tmp_path, batch_size):
    """Its replayed texts are shared out with the ladders, and their sum is over both processes."""
    levels = ("fine fine", "fine poor", "poor poor")
    rows = [{"levels": [f"{i} {form}" for form in levels[: 2 + i % 2]]} for i in range(23)]
    (tmp_path / "ladders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("detect", "train", "--pairs", str(tmp_path / "ladders.jsonl"), "--reward", str(files / "lm"))
    flags = ["--replay", str(files / "pairs.jsonl"), "--preset", "code", "--replay-weight", "0.5", "--tune", "last:1"]
    flags += [f"--batch-size={batch_size}", "--json"]
    one, two = (run(files, tmp_path / str(count), count, *flags, asked=asked) for count in (1, 2))
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert json.loads(two.stdout)["replay"]["texts"] == json.loads(one.stdout)["replay"]["texts"] > 20
    assert_equal_to_rounding(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_they_resume_to_the_same_reward(files, tmp_path):
    flags = ["--tune", "last:1", "--batch-size=7", "--patience=4", "--eval-steps=3"]
    whole = run(files, tmp_path / "whole", 2, *flags)
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "out"
    stopped = run(files, out, 2, *flags, code=SIGNALLED, torchrun=True)
    assert stopped.returncode != 0
    assert stopped.stderr.count("stopped after step 5 of 18; add --resume to go on") == 1
    assert not (out / "midcourse.json").exists()
    assert (out / "checkpoint-5").is_dir()
    assert run(files, out, 2, *flags, "--resume").returncode == 0
    have, want = (load_file(path / "reward.safetensors") for path in (out, tmp_path / "whole"))
    assert all(torch.equal(have[name], want[name]) for name in want)
    assert metrics(out) == metrics(tmp_path / "whole")
    again = run(files, out, 2, *flags)
    assert again.returncode != 0
    assert again.stderr.count("already holds a finished reward") == 1


@pytest.mark.slow
def test_fsdp2_trains_what_one_process_does_and_resumes(files, tmp_path):
    flags = ["--tune", "all", "--batch-size=7"]
    assert run(files, tmp_path / "one", 1, *flags).returncode == 0
    out = tmp_path / "out"
    stopped = run(files, out, 2, *flags, code=SHARDED + SIGNALLED)
    assert "stopped after step 5 of 18" in stopped.stderr
    done = run(files, out, 2, *flags, "--resume", code=SHARDED + PLAIN)
    assert done.returncode == 0, done.stderr
    assert "returned a view tensor" not in done.stderr
    assert_equal_to_rounding(out, tmp_path / "one")


def test_alone_there_is_nothing_to_agree_on():
    assert (processes.count(), processes.rank(), processes.first()) == (1, 0, True)
    assert processes.part([1, 2, 3]) == [1, 2, 3]
    assert processes.highest(3) == 3
    assert processes.gathered([1]) == [1]
    assert processes.once(lambda: 5) == processes.everywhere(lambda: 5) == 5
