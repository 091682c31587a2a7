"""The loop: comparisons in, a saved reward out. transformers' Trainer underneath.

The output folder is a reward with metrics.jsonl, training.png and a model card; see `train.folder`.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from midcourse.errors import MidcourseError
from midcourse.files import publish_folder, write_text
from midcourse.progress import progress
from midcourse.reward_model import RewardModel, Tuning
from midcourse.train.accuracy import length_baseline, pair_accuracy
from midcourse.train.calibration import calibrate
from midcourse.train.comparisons import Comparison, fingerprint, split_by_prompt
from midcourse.train.folder import TrainingError, checkpoints, finish_folder, prepare_folder
from midcourse.train.interruption import Interrupted, Interruption, stop_on_signal
from midcourse.train.objectives import OBJECTIVES, Objective
from midcourse.train.prefixes import PairSet, encode, pair_rewards, plan_batches, renumber, response_columns
from midcourse.train.scorer import Scorer

# By what is trained: a head alone bears large steps, pretrained weights do not.
LEARNING_RATES = {"head": 3e-3, "trunk": 1e-3, "last": 3e-4, "lora": 3e-4, "all": 3e-5}


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
    rewards = scorer.score(1)
    calibration, figures = calibrate(held_pairs, rewards)
    metrics = {
        **pair_accuracy(held_pairs, rewards),
        "length_baseline": length_baseline(train_pairs, held_pairs),
        "train_pairs": len(train_pairs.pairs),
        "calibration": figures,
    }
    reward.info = replace(reward.info, training=run, metrics=metrics, calibration=calibration.stored())
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
