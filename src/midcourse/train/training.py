"""The loop: comparisons in, a saved reward out. transformers' Trainer underneath.

The output folder is a reward (midcourse.json is written last) with metrics.jsonl, training.png and a model card.
While training goes on it holds run.json and the last whole checkpoint, from which `resume` goes on to the same model
as an undisturbed run.
"""

import json
import math
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from midcourse.errors import MidcourseError
from midcourse.files import publish_folder, write_text
from midcourse.prefix_cache import pad
from midcourse.progress import progress
from midcourse.reward_model import RewardModel, Tuning
from midcourse.train.accuracy import length_baseline, pair_accuracy
from midcourse.train.card import plot_training, write_card
from midcourse.train.comparisons import Comparison, fingerprint, split_by_prompt
from midcourse.train.objectives import OBJECTIVES, Objective
from midcourse.train.prefixes import PairSet, Row, encode, pair_rewards, plan_batches, renumber, response_columns
from midcourse.train.states import FrozenStates, split

# By what is trained: a head alone bears large steps, pretrained weights do not.
LEARNING_RATES = {"head": 3e-3, "trunk": 1e-3, "last": 3e-4, "lora": 3e-4, "all": 3e-5}


class TrainingError(MidcourseError):
    """Training that cannot start, go on, or be saved."""


class Interrupted(Exception):
    """Stopped by Ctrl-C or SIGTERM after a whole checkpoint was written; `signal` is the signal's number."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


@dataclass(frozen=True)
class Settings:
    """How a reward is trained.

    Attributes:
        epochs: passes over the comparisons.
        lr: peak learning rate (cosine to 0, 10 % warm-up); by default one that suits what is trained.
        batch_size: pairs per step.
        max_tokens: longest prompt and response together; longer responses are cut and count as unfinished.
        held_out: share of the prompts kept for the accuracies.
        weight_decay: of AdamW.
        save_steps: steps between checkpoints; by default a tenth of the run.
        seed: of the batches and the weights; the split does not depend on it.
    """

    epochs: int = 2
    lr: float | None = None
    batch_size: int = 32
    max_tokens: int = 512
    held_out: float = 0.1
    weight_decay: float = 0.05
    save_steps: int | None = None
    seed: int = 0


def train(
    reward: RewardModel, comparisons: Sequence[Comparison], out: str | Path, settings: Settings, *, resume: bool = False
) -> dict[str, Any]:
    """Train `reward` on comparisons and save it to `out`; returns its metrics on held-out prompts.

    Raises:
        TrainingError: `out` is in use, another run's checkpoint was found, or the loss is no longer a number.
        Interrupted: after Ctrl-C or SIGTERM; the same call with `resume` goes on.
    """
    out = Path(out)
    check_settings(settings)
    kind = reward.info.objective, reward.info.past_end
    if kind not in OBJECTIVES:
        raise TrainingError(f"objective {kind[0]!r} has no past-end {kind[1]!r}; use one of: {known_objectives()}")
    if settings.lr is None:
        kind_of_head = reward.info.head.partition(":")[0]
        tuned = Tuning.parse(reward.info.tune).kind if kind_of_head == "scalar" else kind_of_head
        settings = replace(settings, lr=LEARNING_RATES[tuned])
    # The same prompts are held out whatever the seed: runs stay comparable, and share their frozen states.
    kept, held = split_by_prompt(comparisons, settings.held_out, seed=0)
    run = {
        "settings": asdict(settings),
        "reward": asdict(reward.info),
        "comparisons": len(comparisons),
        "data_fingerprint": fingerprint(comparisons),
    }
    checkpoint = prepare_folder(out, run, resume)
    train_pairs, held_pairs = (encode(reward, part, settings.max_tokens) for part in (kept, held))
    scorer = Scorer(reward, [train_pairs.rows, held_pairs.rows])
    objective = OBJECTIVES[kind]
    plan = plan_batches(train_pairs, settings.batch_size, settings.epochs, settings.seed)
    trainer = _trainer(reward, scorer, train_pairs, objective, plan, settings, out)
    per_epoch = len(plan) // settings.epochs
    with progress("training", len(plan)) as advance, stop_on_signal() as interruption:
        trainer.watch = _Watch(out, per_epoch, lambda: _held_out(held_pairs, scorer), interruption, advance)
        trainer.add_callback(trainer.watch)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if interruption.signal is not None and trainer.state.global_step < len(plan):
        message = f"stopped after step {trainer.state.global_step} of {len(plan)}; add --resume to go on"
        raise Interrupted(message, interruption.signal)
    metrics = {
        **pair_accuracy(held_pairs, scorer.score(1)),
        "length_baseline": length_baseline(train_pairs, held_pairs),
        "train_pairs": len(train_pairs.pairs),
    }
    reward.info = replace(reward.info, training=run, metrics=metrics)
    finish_folder(reward, out)
    return metrics


def known_objectives() -> str:
    """The objectives and their past-end variants, for a message."""
    return ", ".join(f"{objective} with {past_end}" for objective, past_end in OBJECTIVES)


def check_settings(settings: Settings) -> None:
    """Raise TrainingError on a setting that makes no sense."""
    for name in ("epochs", "batch_size", "max_tokens"):
        if (value := getattr(settings, name)) < 1:
            raise TrainingError(f"{name.replace('_', '-')} is {value}; use 1 or more")
    if settings.save_steps is not None and settings.save_steps < 1:
        raise TrainingError(f"save-steps is {settings.save_steps}; use 1 or more")
    if not 0 < settings.held_out < 1:
        raise TrainingError(f"held-out is {settings.held_out}; use a share between 0 and 1, such as 0.1")
    if settings.lr is not None and not 0 < settings.lr < math.inf:
        raise TrainingError(f"lr is {settings.lr}; use a positive number, such as 3e-4")


class Scorer(nn.Module):
    """Rewards at the response positions of rows, through cached frozen states where there are any.

    Its forward is what the Trainer wraps: all trained parameters are reached through it.
    """

    def __init__(self, reward: RewardModel, row_sets: Sequence[list[Row]]):
        super().__init__()
        self.row_sets = row_sets
        made = split(reward)
        self.trained = made.top if made else reward
        self.takes_tokens = bool(made and made.before)
        self.states = [FrozenStates(reward, made, rows) for rows in row_sets] if made else None

    def inputs(self, row_set: int, numbers: Sequence[int]) -> dict[str, Tensor]:
        """What `forward` takes for some rows of a row set."""
        if self.states:
            found = {"states": self.states[row_set].batch(numbers)}
            if self.takes_tokens:
                responses = [self.row_sets[row_set][number].response for number in numbers]
                found["token_ids"] = pad(responses, torch.device("cpu"))[0]
            return found
        rows = [self.row_sets[row_set][number] for number in numbers]
        ids, mask = pad([row.prompt + row.response for row in rows], torch.device("cpu"))
        return {"input_ids": ids, "attention_mask": mask}

    def starts(self, row_set: int, numbers: Sequence[int]) -> list[int]:
        """The columns of `forward`'s result at which each row's response begins."""
        if self.states:
            return [self.states[row_set].starts[number] for number in numbers]
        return [len(self.row_sets[row_set][number].prompt) for number in numbers]

    def forward(self, **inputs: Tensor) -> Tensor:
        """Rewards of shape (rows, tokens)."""
        return self.trained(**inputs)

    @torch.no_grad()
    def score(self, row_set: int, batch_rows: int = 32) -> list[Tensor]:
        """The rewards at the response positions of every row of a set."""
        rows = self.row_sets[row_set]
        device = next(self.parameters()).device
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].response))
        for begin in range(0, len(order), batch_rows):
            part = order[begin : begin + batch_rows]
            rewards = self(**{name: value.to(device) for name, value in self.inputs(row_set, part).items()}).cpu()
            aligned = rewards.gather(1, response_columns([rows[i] for i in part], self.starts(row_set, part)))
            for i, row in zip(part, aligned, strict=True):
                found[i] = row[: len(rows[i].response)].clone()
        return found


@dataclass
class Interruption:
    """Which signal has asked training to stop, if any."""

    signal: int | None = None


@contextmanager
def stop_on_signal() -> Iterator[Interruption]:
    """Let Ctrl-C and SIGTERM end training after the current step; a second one ends it at once."""
    interruption = Interruption()
    earlier: dict[int, Any] = {}

    def ask(number: int, frame: Any) -> None:
        interruption.signal = number
        signal.signal(number, earlier[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        earlier[number] = signal.signal(number, ask)
    try:
        yield interruption
    finally:
        for changed, handler in earlier.items():
            signal.signal(changed, handler)


class _Watch(TrainerCallback):
    """After every step: a line of metrics, the bar, and a stop where one was asked for."""

    def __init__(
        self,
        out: Path,
        steps_per_epoch: int,
        evaluate: Callable[[], dict],
        interruption: Interruption,
        advance: Callable,
    ):
        self.path = out / "metrics.jsonl"
        self.steps_per_epoch = steps_per_epoch
        self.evaluate = evaluate
        self.interruption = interruption
        self.advance = advance
        self.loss = math.nan

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        # What was written after the checkpoint will be written again.
        kept = [line for line in lines if _whole_line(line) and json.loads(line)["step"] <= state.global_step]
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any) -> None:
        step = state.global_step
        row = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "loss": self.loss,
            "learning_rate": lr_scheduler.get_last_lr()[0],
        }
        if step % self.steps_per_epoch == 0:
            row |= self.evaluate()
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.advance(1)
        if self.interruption.signal is not None:
            control.should_save = control.should_training_stop = True


def _whole_line(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


class PairTrainer(Trainer):
    """transformers' Trainer over a fixed plan of batches of pairs, whose checkpoints are whole or absent."""

    reward: RewardModel
    objective: Objective
    watch: _Watch
    _saving: str | None = None

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        columns, pairs, lengths, finished = (inputs.pop(name) for name in ("columns", "pairs", "lengths", "finished"))
        rewards = model(**inputs).gather(1, columns)
        loss = self.objective(pair_rewards(rewards, pairs, lengths, finished)).mean()
        self.watch.loss = loss.item()
        if not math.isfinite(self.watch.loss):
            raise TrainingError(
                f"the loss is {self.watch.loss} after step {self.state.global_step}; "
                f"lower --lr, which is {self.args.learning_rate}"
            )
        return loss

    def _get_output_dir(self, trial: Any) -> str:
        return self._saving or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        out = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=out) as work:
            self._saving = work
            try:
                super()._save_checkpoint(model, trial)
                publish_folder(Path(work) / name, out / name, replace=True)
            except (OSError, RuntimeError, MidcourseError) as error:  # RuntimeError: torch.save could not write
                kept = checkpoints(out)
                state = f"{kept[-1].name} is whole" if kept else "there is none before it"
                raise TrainingError(
                    f"{name} cannot be written to {out} ({error}); {state}: make room, then add --resume"
                ) from error
            finally:
                self._saving = None
        for older in checkpoints(out)[:-1]:
            shutil.rmtree(older)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.reward.write(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.reward.load_trained(Path(resume_from_checkpoint) / "reward.safetensors")


def _trainer(
    reward: RewardModel,
    scorer: Scorer,
    pairs: PairSet,
    objective: Objective,
    plan: list[list[int]],
    settings: Settings,
    out: Path,
) -> PairTrainer:
    """A Trainer whose dataset is the plan: item n is the batch of step n."""

    def collate(items: list[list[int]]) -> dict[str, Any]:
        (batch,) = items
        numbers, local = renumber([pairs.pairs[number] for number in batch])
        rows = [pairs.rows[number] for number in numbers]
        return {
            **scorer.inputs(0, numbers),
            "columns": response_columns(rows, scorer.starts(0, numbers)),
            "pairs": torch.tensor(local),
            "lengths": torch.tensor([len(row.response) for row in rows]),
            "finished": torch.tensor([row.finished for row in rows]),
        }

    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=1,
        max_steps=len(plan),
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(0.1 * len(plan)),
        weight_decay=settings.weight_decay,
        save_strategy="steps",
        save_steps=settings.save_steps or math.ceil(len(plan) / 10),
        logging_strategy="no",
        report_to="none",
        seed=settings.seed,
        use_cpu=reward.device.type == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    set_seed(settings.seed)
    trainer = PairTrainer(model=scorer, args=arguments, train_dataset=plan, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.reward, trainer.objective = reward, objective
    return trainer


def _held_out(pairs: PairSet, scorer: Scorer) -> dict[str, Any]:
    """What the curve shows: accuracy on held-out pairs by share of the response."""
    shares = pair_accuracy(pairs, scorer.score(1))["shares"]
    return {"accuracy": {str(row["share"]): row["accuracy"] for row in shares}}


def prepare_folder(out: Path, run: dict[str, Any], resume: bool) -> Path | None:
    """Make `out` ready for this run; the checkpoint to go on from, or None for a start from the beginning."""
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out} is a file; name a folder for --out")
    run_file = out / "run.json"
    if (out / "midcourse.json").is_file():
        raise TrainingError(f"{out} already holds a finished reward; name another folder for --out, or delete it")
    if run_file.is_file():
        if not resume:
            raise TrainingError(f"{out} holds an unfinished run; add --resume to go on with it, or delete it")
        check_same_run(json.loads(run_file.read_text()), json.loads(json.dumps(run)), out)
    elif out.is_dir() and any(out.iterdir()):
        raise TrainingError(f"{out} is not empty and holds no run of midcourse; name a new folder for --out")
    out.mkdir(parents=True, exist_ok=True)
    for torn in out.glob(".*-*"):  # what a kill left of a file or checkpoint being written
        shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
    write_text(run_file, json.dumps(run, indent=2) + "\n")
    return checkpoints(out)[-1] if checkpoints(out) else None


def check_same_run(have: dict[str, Any], want: dict[str, Any], out: Path) -> None:
    """Raise TrainingError where a folder's unfinished run had other data or settings."""
    if have == want:
        return
    flat = [
        {
            f"{a}.{b}": v
            for a, part in run.items()
            for b, v in (part.items() if isinstance(part, dict) else [("", part)])
        }
        for run in (have, want)
    ]
    name = next(key for key in flat[1] if flat[0].get(key) != flat[1][key])
    raise TrainingError(
        f"{out} holds a run with {name.strip('.')} {flat[0].get(name)!r}, not {flat[1][name]!r}; "
        "resume with the same arguments, or name another folder for --out"
    )


def finish_folder(reward: RewardModel, out: Path) -> None:
    """Turn a run's folder into a reward: curves, card, weights, then midcourse.json; then drop what resuming needed."""
    plot_training(out / "metrics.jsonl", reward.info, out / "training.png")
    write_card(reward.info, out / "README.md")
    reward.write(out)
    for checkpoint in checkpoints(out):
        shutil.rmtree(checkpoint)
    (out / "run.json").unlink()


def checkpoints(out: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    found = [path for path in out.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
