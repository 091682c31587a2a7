"""transformers' Trainer over a fixed plan of batches: losses, checkpoints that are whole, and what is watched."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from midcourse.data.alignment import Labels
from midcourse.data.encoded import EditSet, EncodedSet, LadderSet, RolloutSet
from midcourse.data.ladders import level_names
from midcourse.errors import Interrupted, MidcourseError
from midcourse.files import as_json, publish_folder, write_text
from midcourse.rewards.trained import TrainedReward, whole_tensor
from midcourse.train import processes
from midcourse.train.batches import Batch, pair_rewards, renumber, response_columns
from midcourse.train.folder import checkpoints, seal
from midcourse.train.objectives import (
    PADDING,
    EditRewards,
    LabelledRewards,
    LadderRewards,
    NextRewards,
    Objective,
    Phase,
    at_end,
)
from midcourse.train.scorer import Scorer
from midcourse.train.settings import Settings, TrainingError
from midcourse.train.stopping import Best, Interruption, best_so_far

# A loss or a gradient norm beyond this has exploded: gradients are cut at a norm of 1, so nothing would come of it.
EXPLODED = 1e9
METRICS = "metrics.jsonl"


class Watch(TrainerCallback):
    """After every step: a line of metrics, the bar, and a stop if one was asked for or is due.

    Attributes:
        rows: the metrics of all steps so far.
        step: the last one.
        best: the best evaluation so far.
        done: whether training is over.
        grad_norm: of the step under way, before it is cut.
        loss: likewise, over all processes.
    """

    def __init__(
        self,
        out: Path,
        total: int,
        settings: Settings,
        evaluate: Callable[[], dict],
        interruption: Interruption,
        advance: Callable,
    ):
        self.path = out / METRICS
        self.total = total
        self.steps_per_epoch = total // settings.epochs
        self.eval_steps = settings.eval_steps or self.steps_per_epoch
        self.patience = settings.patience
        self.evaluate = evaluate
        self.interruption = interruption
        self.advance = advance
        self.report: Callable[[dict], None] | None = None
        self.loss = self.grad_norm = math.nan
        self.rows: list[dict[str, Any]] = []
        self.phase = ""

    @property
    def step(self) -> int:
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def best(self) -> Best | None:
        return best_so_far(self.rows)

    @property
    def done(self) -> bool:
        best = self.best
        return self.step == self.total or bool(self.patience and best and best.waited >= self.patience)

    def start(self, checkpoint: Path | None) -> None:
        """Begin, or go on from a checkpoint: with its metrics, whatever was written after it."""

        def kept() -> list[dict[str, Any]]:
            text = (checkpoint / METRICS).read_text() if checkpoint else ""
            write_text(self.path, text)
            return [json.loads(line) for line in text.splitlines()]

        self.rows = processes.once(kept)
        self.advance(self.step)

    def on_step_end(self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any) -> None:
        step = state.global_step
        row = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "phase": self.phase,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "learning_rate": lr_scheduler.get_last_lr()[0],
        }
        if step % self.eval_steps == 0 or step == self.total:
            figures = self.evaluate()
            row |= processes.once(lambda: figures)
        self.rows.append(row)
        if processes.first():
            with self.path.open("a") as file:
                file.write(_line(row))
        if self.report:
            self.report(_flat(row))
        self.advance(1)
        if self.patience and "accuracy" in row and self.best and self.best.step == step:
            control.should_save = True  # what may be returned to
        self.interruption.signal = processes.highest(self.interruption.signal or 0) or None
        if self.interruption.signal is not None or self.done:
            control.should_save = control.should_training_stop = True

    def check_done(self) -> None:
        """Raise Interrupted if a signal has ended training before its end."""
        if not self.done:
            assert self.interruption.signal is not None
            message = f"stopped after step {self.step} of {self.total}; add --resume to go on"
            raise Interrupted(message, self.interruption.signal)


def _line(row: dict[str, Any]) -> str:
    return as_json(row) + "\n"


def _flat(row: dict[str, Any]) -> dict[str, float]:
    """Return a row as trackers take it: numbers, those of held-out prompts named eval_..."""
    shares = {
        f"eval_{name}_at_{float(share):g}": value
        for name in ("accuracy", "correlation")
        for share, value in row.get(name, {}).items()
        if value is not None
    }
    return {name: value for name, value in row.items() if isinstance(value, float) and name != "epoch"} | shares


class WholeCheckpoints(Trainer):
    """transformers' Trainer with checkpoints that are whole or absent; the last one is kept, and the watch's best."""

    watch: Watch
    _saving: str | None = None

    def train_under(self, watch: Watch, checkpoint: Path | None) -> None:
        """Train from the beginning or a checkpoint until the watch says stop."""
        watch.start(checkpoint)
        self.watch = watch
        self.add_callback(watch)
        if not watch.done:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def _get_output_dir(self, trial: Any) -> str:
        return self._saving or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        out = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        save = super()._save_checkpoint
        try:
            self._saving = processes.once(lambda: tempfile.mkdtemp(prefix=".saving-", dir=out))
            work = Path(self._saving)
            processes.everywhere(lambda: save(model, trial))
            processes.once(lambda: self._publish(work / name, out / name))
        except (OSError, RuntimeError, MidcourseError) as error:  # RuntimeError: torch.save could not write
            whole = checkpoints(out)
            state = f"{whole[-1].name} is whole" if whole else "there is none before it"
            raise TrainingError(
                f"{name} cannot be written to {out} ({error}); {state}: make room, then add --resume"
            ) from error
        finally:
            if processes.first() and self._saving:
                shutil.rmtree(self._saving, ignore_errors=True)
            self._saving = None
        if processes.first():
            best = self.watch.best if self.watch.patience else None
            for older in checkpoints(out)[:-1]:
                if best is None or older.name != f"checkpoint-{best.step}":
                    shutil.rmtree(older)

    def _publish(self, work: Path, checkpoint: Path) -> None:
        write_text(work / METRICS, "".join(map(_line, self.watch.rows)))
        seal(work)
        publish_folder(work, checkpoint, replace=True)


class PlanTrainer(WholeCheckpoints):
    """A Trainer over a fixed plan of batches."""

    reward: TrainedReward
    objective: Objective
    data: EncodedSet
    _losses: Tensor

    def get_train_dataloader(self) -> DataLoader:
        """Return all steps in order, in every process: what each takes of a batch is decided there."""
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=self.data_collator)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        phase, batch = self.objective.phases[inputs.pop("phase")], inputs.pop("batch")
        weight = inputs.pop("weight")
        losses = phase_losses(phase, model, inputs, **batch)
        # Processes' gradients are averaged: weighted so, they are those of the mean over the whole batch.
        loss = losses.mean() * weight
        self._losses = losses.detach() if weight else losses.detach()[:0]
        self.watch.phase, self.watch.loss = phase.name, processes.mean(loss)
        self._refuse_explosion("loss", self.watch.loss)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        self.watch.grad_norm = float(whole_tensor(norm)) if isinstance(norm, Tensor) else norm
        self._refuse_explosion("norm of its gradient", self.watch.grad_norm)
        return norm

    def _refuse_explosion(self, name: str, value: float) -> None:
        """Write the batch down and raise TrainingError, in all processes, if a number is none or has exploded."""
        if abs(value) <= EXPLODED:
            return
        losses, step = processes.gathered(self._losses.tolist()), self.state.global_step
        out = Path(self.args.output_dir)
        record = {"step": step + 1, name.replace(" ", "_"): str(value), "learning_rate": self._get_learning_rate()}

        def refuse() -> None:
            batch = described(self.data, self.train_dataset[step], losses, self.reward.tokenizer.decode)
            write_text(out / "bad_batch.json", as_json({**record, "batch": batch}, indent=1, ensure_ascii=False))
            if math.isnan(value) and step == 0:  # no weight has moved yet
                raise TrainingError(
                    f"the {name} is nan at the first step: {self.reward.name} computes no number for the batch in "
                    f"{out / 'bad_batch.json'}; restore the model's weights, use another, or look for broken data there"
                )
            raise TrainingError(
                f"the {name} is {value} after step {step}; lower --lr, which is {self.args.learning_rate}, or look for "
                f"broken data in {out / 'bad_batch.json'}, the batch it was computed on"
            )

        processes.once(refuse)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if not processes.first():
            self.reward.trained_state()  # all processes bring their parts together, one writes
            return
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
    ladders: dict[str, Any] | None = None,
    changes: Int[Tensor, "items 2 tokens"] | None = None,
) -> Float[Tensor, " items"]:
    """Return the loss of each pair, rollout, ladder or edit of a batch.

    Args:
        items: row numbers; of ladders those of their levels, the last one repeated in shorter ladders.
        mean_length: of all rollouts.
        changes: what became of the tokens of edits, of the edited text first; see `EditRewards`.
        ladders: levels of each (counts), rows that are replayed (replay), their first rewards (initial), and ladders of
            the whole step (step).
    """
    if phase.of == "chosen":
        rows = items[:, 0]
        rewards, best = (part.gather(1, columns)[rows] for part in model(**inputs, best=True))
        return phase.loss(NextRewards(rewards, best, lengths[rows]))
    rewards = model(**inputs).gather(1, columns)
    if phase.of == "ladders":
        assert ladders is not None
        return phase.loss(ladder_rewards(at_end(rewards, lengths), items, **ladders))
    if phase.of == "edits":
        assert changes is not None
        sides = rewards[items]
        return phase.loss(EditRewards(sides[:, 0], sides[:, 1], changes[:, 0], changes[:, 1]))
    if phase.of == "pairs":
        return phase.loss(pair_rewards(rewards, items, lengths, finished))
    assert labels is not None
    rows = items[:, 0]
    return phase.loss(LabelledRewards(rewards[rows], lengths[rows], labels.to(rewards.dtype), mean_length))


def changes_of(labels: Sequence[Labels], tokens: int) -> Int[Tensor, "edits 2 tokens"]:
    """Return labels of edits as one tensor, those of the edited text first, padded to so many tokens."""
    sides = [[[*side] + [PADDING] * (tokens - len(side)) for side in (one.edited, one.original)] for one in labels]
    return torch.tensor(sides)


def ladder_rewards(
    ends: Float[Tensor, " rows"],
    items: Int[Tensor, "ladders levels"],
    counts: Int[Tensor, " ladders"],
    replay: Int[Tensor, " ladders"] | None,
    initial: Float[Tensor, " ladders"] | None,
    step: int,
) -> LadderRewards:
    """Turn the rewards of finished texts into those of ladders; `items` and `replay` are row numbers."""
    if replay is None or initial is None:
        return LadderRewards(ends[items], counts, step=step)
    return LadderRewards(ends[items], counts, ends[replay], initial.to(ends.dtype), step)


def label_zero(objective: Objective, data: EncodedSet) -> float:
    """Return the label at which a reward is 0: with some objectives the mean of those that are trained on."""
    return data.mean_label if objective.from_mean and isinstance(data, RolloutSet) else 0.0


def make_trainer(
    reward: TrainedReward,
    scorer: Scorer,
    data: EncodedSet,
    objective: Objective,
    plan: list[Batch],
    settings: Settings,
    out: Path,
    mixed: bool,
    report_to: Sequence[str],
) -> PlanTrainer:
    """Make a Trainer whose dataset is the plan: item n is the batch of step n."""

    mean_length = data.mean_length if isinstance(data, RolloutSet) else 0.0
    zero = label_zero(objective, data)

    def collate(batches: list[Batch]) -> dict[str, Any]:
        ((phase, whole, replay),) = batches
        mine = processes.part(whole)
        # A batch may have fewer items than there are processes: those left out compute along, for nothing.
        picked = mine or whole[:1]
        items = [data.items[number] for number in picked]
        if objective.phases[phase].of == "chosen":
            items = [item[:1] for item in items]
        replayed = (processes.part(replay) or replay[:1]) if replay else ()
        numbers, local = renumber([*items, *((row,) for row in replayed)])
        rows = [data.rows[number] for number in numbers]
        labels = torch.tensor([data.labels[n] - zero for n in picked]) if isinstance(data, RolloutSet) else None
        widest = max(map(len, items))
        batch: dict[str, Any] = {
            "columns": response_columns(rows, scorer.starts(0, numbers)),
            "items": torch.tensor([[*item, *item[-1:] * (widest - len(item))] for item in local[: len(items)]]),
            "lengths": torch.tensor([len(row.response) for row in rows]),
            "finished": torch.tensor([row.finished for row in rows]),
            "labels": labels,
            "mean_length": mean_length,
        }
        if isinstance(data, LadderSet):
            batch["ladders"] = {
                "counts": torch.tensor([len(item) for item in items]),
                "replay": torch.tensor([row for (row,) in local[len(items) :]]) if replayed else None,
                "initial": torch.tensor([data.initial[row] for row in replayed]) if replayed else None,
                "step": len(whole),
            }
        if isinstance(data, EditSet):
            batch["changes"] = changes_of([data.labels[n] for n in picked], batch["columns"].shape[1])
        weight = processes.count() * len(mine) / len(whole)
        return {**scorer.inputs(0, numbers), "weight": weight, "phase": phase, "batch": batch}

    arguments = TrainingArguments(
        **plan_arguments(settings, len(plan), out, reward.device),
        learning_rate=settings.lr,
        report_to=list(report_to) or "none",
        bf16=mixed,
        ddp_find_unused_parameters=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one GPU: several GPUs take as many processes
    set_seed(settings.seed)
    trainer = PlanTrainer(model=scorer, args=arguments, train_dataset=plan, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.reward, trainer.objective, trainer.data = reward, objective, data
    return trainer


def plan_arguments(settings: Settings, steps: int, out: Path, device: torch.device) -> dict[str, Any]:
    """Return the TrainingArguments that are the same for whatever trains over a fixed plan of batches."""
    return {
        "output_dir": str(out),
        "per_device_train_batch_size": 1,
        "max_steps": steps,
        "lr_scheduler_type": "cosine",
        "warmup_steps": math.ceil(0.1 * steps),
        "weight_decay": settings.weight_decay,
        "save_strategy": "steps",
        "save_steps": settings.save_steps or math.ceil(steps / 10),
        "logging_strategy": "no",
        "seed": settings.seed,
        "use_cpu": device.type == "cpu",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def described(
    data: EncodedSet,
    batch: Batch,
    losses: Sequence[float],
    decode: Callable[[Sequence[int]], str],
) -> list[dict[str, Any]]:
    """Return a batch as a person reads it: each item's number among those trained on, its texts, and its loss."""
    items = []
    for i, (number, loss) in enumerate(zip(batch.numbers, losses, strict=True)):
        rows = [data.rows[row] for row in data.items[number]]
        names = ["edited", "original"] if isinstance(data, EditSet) else ["chosen", "rejected"]
        names = level_names(len(rows)) if isinstance(data, LadderSet) else names
        texts = {"prompt": rows[0].prompt}
        texts |= {name: row.response for name, row in zip(names if len(rows) > 1 else ["response"], rows, strict=True)}
        if batch.replay:
            replayed = data.rows[batch.replay[i]]
            texts |= {"replayed_prompt": replayed.prompt, "replayed": replayed.response}
        # As text if it is no number, which JSON does not know.
        item: dict[str, Any] = {"number": number, "loss": loss if math.isfinite(loss) else str(loss)}
        if isinstance(data, RolloutSet):
            item["label"] = data.labels[number]
        items.append(item | {name: decode(list(ids)) for name, ids in texts.items()})
        items[-1] |= {f"{name}_ids": list(ids) for name, ids in texts.items()}
    return items
