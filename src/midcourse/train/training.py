"""The loop: comparisons or rollouts in, a saved reward out. transformers' Trainer underneath, whatever the objective.

The output folder is a reward with metrics.jsonl, training.png and a model card; see `train.folder`.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from midcourse.errors import MidcourseError
from midcourse.files import publish_folder, write_text
from midcourse.progress import progress
from midcourse.reward_model import RewardModel, Tuning
from midcourse.train.accuracy import label_fit, length_baseline, pair_accuracy
from midcourse.train.comparisons import Comparison, fingerprint, split_by_prompt
from midcourse.train.folder import TrainingError, checkpoints, finish_folder, prepare_folder
from midcourse.train.interruption import Interrupted, Interruption, stop_on_signal
from midcourse.train.objectives import (
    LabelledRewards,
    NextRewards,
    Objective,
    Phase,
    check_data,
    check_head,
    make_objective,
)
from midcourse.train.prefixes import (
    Batch,
    PairSet,
    RolloutSet,
    encode,
    encode_rollouts,
    in_turns,
    pair_rewards,
    pairs_by_label,
    plan_batches,
    renumber,
    response_columns,
)
from midcourse.train.rollouts import Rollout, label_comparisons
from midcourse.train.scorer import Scorer

# By what is trained: a head alone bears large steps, pretrained weights do not.
LEARNING_RATES = {"head": 3e-3, "trunk": 1e-3, "vocabulary": 1e-4, "last": 3e-4, "lora": 3e-4, "all": 3e-5}


@dataclass(frozen=True)
class Settings:
    """How a reward is trained.

    Attributes:
        epochs: passes over the data; of an objective in phases, passes of each phase.
        lr: peak learning rate (cosine to 0, 10 % warm-up); by default one that suits what is trained.
        batch_size: pairs or rollouts per step.
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


class Data(NamedTuple):
    """Encoded data: what is trained on, and what is measured on held-out prompts.

    Attributes:
        train: the pairs or labelled responses that the objective learns from.
        train_pairs, held_pairs: pairs, for the accuracies; those of rollouts are ordered by their labels.
        held_rollouts: None where comparisons were given. Its rows are those of `held_pairs`.
    """

    train: PairSet | RolloutSet
    train_pairs: PairSet
    held_pairs: PairSet
    held_rollouts: RolloutSet | None


def train(
    reward: RewardModel,
    examples: Sequence[Comparison] | Sequence[Rollout],
    out: str | Path,
    settings: Settings,
    *,
    resume: bool = False,
) -> dict[str, Any]:
    """Train `reward` on comparisons or rollouts and save it to `out`; returns its metrics on held-out prompts.

    Raises:
        ObjectiveError: the reward's objective has no such settings, or does not go with its head or the examples.
        TrainingError: `out` is in use, another run's checkpoint was found, or the loss is no longer a number.
        Interrupted: after Ctrl-C or SIGTERM; the same call with `resume` goes on.
    """
    out = Path(out)
    check_settings(settings)
    objective = make_objective(reward.info.objective, **reward.info.objective_settings)
    check_head(objective, reward.info.head)
    reward.info = replace(reward.info, objective_settings=objective.settings, reward_weight=objective.reward_weight)
    if settings.lr is None:
        settings = replace(settings, lr=learning_rate(reward))
    # The same prompts are held out whatever the seed: runs stay comparable, and share their frozen states.
    kept, held = split_by_prompt([*examples], settings.held_out, seed=0)
    run = {
        "settings": asdict(settings),
        "reward": asdict(reward.info),
        "rollouts" if isinstance(examples[0], Rollout) else "comparisons": len(examples),
        "data_fingerprint": fingerprint(examples),
    }
    data = encode_all(reward, objective, kept, held, settings.max_tokens)
    checkpoint = prepare_folder(out, run, resume)
    scorer = Scorer(reward, [data.train.rows, data.held_pairs.rows])
    plan = in_turns(
        plan_batches(data.train, settings.batch_size, settings.epochs, settings.seed),
        len(objective.phases),
        objective.turns,
    )
    trainer = _trainer(reward, scorer, data.train, objective, plan, settings, out)
    per_epoch = len(plan) // settings.epochs
    with progress("training", len(plan)) as advance, stop_on_signal() as interruption:
        trainer.watch = _Watch(out, per_epoch, lambda: _curve(_held_out(data, scorer)), interruption, advance)
        trainer.add_callback(trainer.watch)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if interruption.signal is not None and trainer.state.global_step < len(plan):
        message = f"stopped after step {trainer.state.global_step} of {len(plan)}; add --resume to go on"
        raise Interrupted(message, interruption.signal)
    metrics = _held_out(data, scorer)
    if data.held_pairs.pairs and data.train_pairs.pairs:
        metrics["length_baseline"] = length_baseline(data.train_pairs, data.held_pairs)
    kind = "train_rollouts" if data.held_rollouts else "train_pairs"
    metrics[kind] = len(data.train.items if data.held_rollouts else data.train_pairs.items)
    reward.info = replace(reward.info, training=run, metrics=metrics)
    finish_folder(reward, out)
    return metrics


def learning_rate(reward: RewardModel) -> float:
    """The peak learning rate for what a reward trains."""
    tuned = Tuning.parse(reward.info.tune).kind
    head = reward.info.head.partition(":")[0]
    return LEARNING_RATES[head if tuned == "head" and head != "scalar" else tuned]


def encode_all(
    reward: RewardModel,
    objective: Objective,
    kept: Sequence[Comparison | Rollout],
    held: Sequence[Comparison | Rollout],
    max_tokens: int,
) -> Data:
    """Token ids of what is trained and measured on.

    Raises:
        ObjectiveError: rollouts for an objective that compares two responses.
    """
    rollouts, held_rollouts = ([one for one in part if isinstance(one, Rollout)] for part in (kept, held))
    if rollouts:
        check_data(objective, rollouts=True)
        trained, measured = (encode_rollouts(reward, part, max_tokens) for part in (rollouts, held_rollouts))
        return Data(trained, pairs_by_label(trained), pairs_by_label(measured), measured)
    comparisons, held_comparisons = ([one for one in part if isinstance(one, Comparison)] for part in (kept, held))
    train_pairs, held_pairs = (encode(reward, part, max_tokens) for part in (comparisons, held_comparisons))
    if objective.of == "pairs":
        return Data(train_pairs, train_pairs, held_pairs, None)
    return Data(encode_rollouts(reward, label_comparisons(comparisons), max_tokens), train_pairs, held_pairs, None)


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
        self.phase = ""

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
            "phase": self.phase,
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


class PlanTrainer(Trainer):
    """transformers' Trainer over a fixed plan of batches, whose checkpoints are whole or absent."""

    reward: RewardModel
    objective: Objective
    watch: _Watch
    _saving: str | None = None

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        phase, batch = self.objective.phases[inputs.pop("phase")], inputs.pop("batch")
        self.watch.phase = phase.name
        loss = phase_losses(phase, model, inputs, **batch).mean()
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


def phase_losses(
    phase: Phase,
    model: nn.Module,
    inputs: dict[str, Tensor],
    columns: Int[Tensor, "rows positions"],
    items: Int[Tensor, "items sides"],
    lengths: Int[Tensor, " rows"],
    finished: Bool[Tensor, " rows"],
    labels: Float[Tensor, " items"] | None,
    mean_length: float,
) -> Float[Tensor, " items"]:
    """The loss of each pair or rollout of a batch; `items` are row numbers, `mean_length` is that of all rollouts."""
    if phase.of == "chosen":
        rows = items[:, 0]
        rewards, best = (found.gather(1, columns)[rows] for found in model(**inputs, best=True))
        return phase.loss(NextRewards(rewards, best, lengths[rows]))
    rewards = model(**inputs).gather(1, columns)
    if phase.of == "pairs":
        return phase.loss(pair_rewards(rewards, items, lengths, finished))
    assert labels is not None
    rows = items[:, 0]
    return phase.loss(LabelledRewards(rewards[rows], lengths[rows], labels.to(rewards.dtype), mean_length))


def _trainer(
    reward: RewardModel,
    scorer: Scorer,
    data: PairSet | RolloutSet,
    objective: Objective,
    plan: list[Batch],
    settings: Settings,
    out: Path,
) -> PlanTrainer:
    """A Trainer whose dataset is the plan: item n is the batch of step n."""

    mean_length = data.mean_length if isinstance(data, RolloutSet) else 0.0

    def collate(batches: list[Batch]) -> dict[str, Any]:
        ((phase, picked),) = batches
        items = [data.items[number] for number in picked]
        if objective.phases[phase].of == "chosen":
            items = [item[:1] for item in items]
        numbers, local = renumber(items)
        rows = [data.rows[number] for number in numbers]
        labels = torch.tensor([data.labels[n] for n in picked]) if isinstance(data, RolloutSet) else None
        return {
            **scorer.inputs(0, numbers),
            "phase": phase,
            "batch": {
                "columns": response_columns(rows, scorer.starts(0, numbers)),
                "items": torch.tensor(local),
                "lengths": torch.tensor([len(row.response) for row in rows]),
                "finished": torch.tensor([row.finished for row in rows]),
                "labels": labels,
                "mean_length": mean_length,
            },
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
    trainer = PlanTrainer(model=scorer, args=arguments, train_dataset=plan, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.reward, trainer.objective = reward, objective
    return trainer


def _held_out(data: Data, scorer: Scorer) -> dict[str, Any]:
    """Pair accuracy on held-out prompts, and of rollouts the fit to their labels, by share of the response."""
    rewards = scorer.score(1)
    if scorer.additive:
        rewards = [row.cumsum(0) for row in rewards]
    found: dict[str, Any] = {"pairs": 0, "prompts": len(set(data.held_pairs.prompts))}
    if data.held_pairs.pairs:
        found = pair_accuracy(data.held_pairs, rewards)
    if data.held_rollouts:
        assert isinstance(data.train, RolloutSet)
        found["labels"] = label_fit(data.held_rollouts, rewards, fmean(data.train.labels))
    return found


def _curve(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the curves show of held-out metrics."""
    found = {}
    if "shares" in metrics:
        found["accuracy"] = {str(row["share"]): row["accuracy"] for row in metrics["shares"]}
    if "labels" in metrics:
        found["correlation"] = {str(row["share"]): row["correlation"] for row in metrics["labels"]["shares"]}
    return found
