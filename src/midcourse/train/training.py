"""The loop: comparisons or rollouts in, a saved reward out. transformers' Trainer underneath, whatever the objective.

The output folder is a reward with metrics.jsonl, training.png and a model card; see `train.folder`.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from midcourse.errors import MidcourseError
from midcourse.files import publish_folder, write_text
from midcourse.progress import progress
from midcourse.reward_model import RewardModel, Tuning, whole_tensor
from midcourse.train import processes
from midcourse.train.accuracy import label_fit, length_baseline, pair_accuracy
from midcourse.train.calibration import calibrate
from midcourse.train.comparisons import Comparison, fingerprint, prompt_groups, split_by_prompt
from midcourse.train.encoder import make_scorer
from midcourse.train.folder import TrainingError, checkpoints, finish_folder, only_training, prepare_folder
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
    padding_share,
    pair_rewards,
    pairs_by_label,
    plan_batches,
    renumber,
    response_columns,
)
from midcourse.train.rollouts import Rollout, label_comparisons
from midcourse.train.scorer import Scorer
from midcourse.train.stopping import Best, best_so_far

# By what is trained: a head alone bears large steps, pretrained weights do not.
LEARNING_RATES = {
    "head": 3e-3,
    "trunk": 1e-3,
    "vocabulary": 1e-4,
    "encoder": 1e-3,
    "last": 3e-4,
    "lora": 3e-4,
    "all": 3e-5,
}
# A loss or a gradient norm beyond this has exploded: gradients are cut at a norm of 1, so nothing would come of it.
EXPLODED = 1e9
REPORTS = ("tensorboard", "trackio", "wandb")
PRECISIONS = ("auto", "full", "bfloat16")


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
        eval_steps: steps between evaluations on held-out prompts; by default an epoch's.
        patience: stop after so many evaluations without a better prefix accuracy (its mean over the shares of the
            response) and keep the best weights. Half of the held-out prompts then decide, the other half reports.
        gradient_checkpointing: keep less for the backward pass and compute it again: slower, in less memory.
        precision: "bfloat16" computes in it where that loses nothing, with weights in float32; "full" computes in the
            weights' own dtype; "auto" is bfloat16 on GPUs that have it.
    """

    epochs: int = 2
    lr: float | None = None
    batch_size: int = 32
    max_tokens: int = 512
    held_out: float = 0.1
    weight_decay: float = 0.05
    save_steps: int | None = None
    seed: int = 0
    eval_steps: int | None = None
    patience: int | None = None
    gradient_checkpointing: bool = False
    precision: str = "auto"


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
    report_to: Sequence[str] = (),
) -> dict[str, Any]:
    """Train `reward` on comparisons or rollouts and save it to `out`; returns its metrics on held-out prompts.

    In processes that torchrun or accelerate launch started, each takes its part of every batch, with the gradients of
    the whole batch in all of them; the first one writes. After FSDP2 the reward is still in parts: load it from `out`.

    Args:
        reward: what is trained, in place.
        comparisons: all of them; some prompts are held out.
        out: folder of the reward.
        settings: how.
        resume: go on from the last checkpoint in `out`.
        report_to: where else loss, learning rate and accuracies go: tensorboard, trackio, wandb.

    Raises:
        ObjectiveError: the reward's objective has no such settings, or does not go with its head or the examples.
        TrainingError: `out` is in use, another run's checkpoint was found, or the loss or its gradient is no number
            or has exploded: out/bad_batch.json then holds the batch.
        Interrupted: after Ctrl-C or SIGTERM; the same call with `resume` goes on.
    """
    out = Path(out)
    check_settings(settings)
    check_reports(report_to)
    processes.join(reward.device)
    with ExitStack() as held:
        processes.once(lambda: held.enter_context(only_training(out)))
        return _train(reward, examples, out, settings, resume, report_to)


def _train(
    reward: RewardModel,
    examples: Sequence[Comparison] | Sequence[Rollout],
    out: Path,
    settings: Settings,
    resume: bool,
    report_to: Sequence[str],
) -> dict[str, Any]:
    objective, mixed = processes.everywhere(
        lambda: (checked_objective(reward, settings), computes_in_bfloat16(reward, settings))
    )
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
    data, deciding = processes.everywhere(lambda: encode_parts(reward, objective, kept, held, settings))
    checkpoint = processes.once(lambda: prepare_folder(out, run, resume))
    scorer = make_scorer(reward, [data.train, data.held_pairs, *([deciding.held_pairs] if deciding else [])])
    if settings.gradient_checkpointing:
        scorer.checkpoint_gradients()
    lengths = scorer.lengths(0)
    longest = [max(lengths[row] for row in item) for item in data.train.items]
    order = data.train.prompts, longest, settings.batch_size, settings.epochs, settings.seed
    plan = in_turns(plan_batches(*order), len(objective.phases), objective.turns)
    trainer = _trainer(reward, scorer, data.train, objective, plan, settings, out, mixed, report_to)
    bar = progress("training", len(plan), quiet=not processes.first())
    with master_weights(reward, mixed), bar as advance, stop_on_signal() as interruption:

        def evaluate() -> dict[str, Any]:
            asked, rows = (deciding, 2) if deciding else (data, 1)
            return _curve(_held_out(asked, scorer, scorer.score(rows)))

        watch = _Watch(out, len(plan), settings, evaluate, interruption, advance)
        watch.start(int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0)
        if report_to:
            watch.report = trainer.log
        trainer.watch = watch
        trainer.add_callback(watch)
        if not watch.done:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    if not watch.done:
        assert interruption.signal is not None
        message = f"stopped after step {watch.step} of {len(plan)}; add --resume to go on"
        raise Interrupted(message, interruption.signal)
    wanted = watch.best.step if deciding and watch.best else watch.step
    if wanted != trainer.state.global_step:
        reward.load_trained(out / f"checkpoint-{wanted}" / "reward.safetensors")
    rewards = scorer.score(1)
    metrics = _held_out(data, scorer, rewards)
    calibration = None
    # The rewards of what adds up over tokens are shown token by token, where there is nothing to calibrate.
    if data.held_pairs.pairs and not scorer.additive:
        calibration, metrics["calibration"] = calibrate(data.held_pairs, rewards, by_length=scorer.every_prefix)
    if data.held_pairs.pairs and data.train_pairs.pairs:
        metrics["length_baseline"] = length_baseline(data.train_pairs, data.held_pairs)
    kind = "train_rollouts" if data.held_rollouts else "train_pairs"
    metrics[kind] = len(data.train.items if data.held_rollouts else data.train_pairs.items)
    metrics["padding"] = {
        "share": padding_share(data.train.items, lengths, plan_batches(*order)),
        "without_buckets": padding_share(data.train.items, lengths, plan_batches(*order, window=1)),
    }
    if deciding and watch.best:
        pairs = deciding.held_pairs
        decided = {"prompts": len(set(pairs.prompts)), "pairs": len(pairs.pairs)}
        metrics["early_stopping"] = {**decided, **watch.best._asdict(), "stopped": watch.step, "planned": len(plan)}
    stored = calibration.stored() if calibration else {}
    reward.info = replace(reward.info, training=run, metrics=metrics, calibration=stored)
    finish_folder(reward, out)
    return metrics


def checked_objective(reward: RewardModel, settings: Settings) -> Objective:
    """The reward's objective; an error where it or the settings do not go with what the reward trains."""
    if settings.gradient_checkpointing and Tuning.parse(reward.info.tune).kind == "head":
        raise TrainingError("gradient checkpointing saves memory of layers that are trained, and tune head trains none")
    objective = make_objective(reward.info.objective, **reward.info.objective_settings)
    check_head(objective, reward.info.head)
    return objective


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


def encode_parts(
    reward: RewardModel,
    objective: Objective,
    kept: Sequence[Comparison | Rollout],
    held: Sequence[Comparison | Rollout],
    settings: Settings,
) -> tuple[Data, Data | None]:
    """What is trained on, with what reports, and where there is patience what decides: other held-out prompts.

    Raises:
        TrainingError: too few held-out prompts for both, or no pairs among those that decide.
    """
    if settings.patience is None:
        return encode_all(reward, objective, kept, held, settings.max_tokens), None
    if len(set(prompt_groups(held))) < 2:
        raise TrainingError("patience needs two held-out prompts, one to decide and one to report; raise --held-out")
    deciding, reporting = split_by_prompt(held, 0.5, seed=1)
    data = encode_all(reward, objective, kept, reporting, settings.max_tokens)
    decides = encode_all(reward, objective, deciding, deciding, settings.max_tokens)
    if not decides.held_pairs.pairs:
        raise TrainingError("patience decides by pairs of a prompt's responses, and none is held out; raise --held-out")
    return data, data._replace(held_pairs=decides.held_pairs, held_rollouts=decides.held_rollouts)


def computes_in_bfloat16(reward: RewardModel, settings: Settings) -> bool:
    """Whether mixed precision is asked for, or the hardware has it; TrainingError where it is asked for in vain."""
    able = reward.device.type == "cuda" and torch.cuda.is_bf16_supported()
    if settings.precision == "bfloat16" and not able:
        raise TrainingError(
            f"precision bfloat16 needs a GPU that computes in it, and this is {reward.device}; use auto"
        )
    weights = {p.dtype for p in reward.parameters()}
    return settings.precision == "bfloat16" or (
        settings.precision == "auto" and able and weights <= {torch.float32, torch.bfloat16}
    )


@contextmanager
def master_weights(reward: RewardModel, mixed: bool) -> Iterator[None]:
    """Train bfloat16 weights as float32 ones, whose small steps are not lost; afterwards they are what they were."""
    low = [p for p in reward.parameters() if p.requires_grad and p.dtype == torch.bfloat16] if mixed else []
    for p in low:
        p.data = p.data.float()
    try:
        yield
    finally:
        for p in low:
            p.data = p.data.to(torch.bfloat16)


def check_settings(settings: Settings) -> None:
    """Raise TrainingError on a setting that makes no sense."""
    for name in ("epochs", "batch_size", "max_tokens"):
        if (value := getattr(settings, name)) < 1:
            raise TrainingError(f"{name.replace('_', '-')} is {value}; use 1 or more")
    for name in ("save_steps", "eval_steps", "patience"):
        if (value := getattr(settings, name)) is not None and value < 1:
            raise TrainingError(f"{name.replace('_', '-')} is {value}; use 1 or more")
    if settings.precision not in PRECISIONS:
        raise TrainingError(f"precision {settings.precision!r} is unknown; use one of: {', '.join(PRECISIONS)}")
    if not 0 < settings.held_out < 1:
        raise TrainingError(f"held-out is {settings.held_out}; use a share between 0 and 1, such as 0.1")
    if settings.lr is not None and not 0 < settings.lr < math.inf:
        raise TrainingError(f"lr is {settings.lr}; use a positive number, such as 3e-4")


def check_reports(report_to: Sequence[str]) -> None:
    """Raise TrainingError on a tracker that is not known, or not installed."""
    for name in report_to:
        if name not in REPORTS:
            raise TrainingError(f"report-to {name!r} is unknown; use one of: {', '.join(REPORTS)}")
        if find_spec(name) is None:
            raise TrainingError(f"report-to {name} needs a package that is not installed; run: pip install {name}")


class _Watch(TrainerCallback):
    """After every step: a line of metrics, the bar, and a stop where one was asked for or is due.

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
        self.path = out / "metrics.jsonl"
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

    def start(self, step: int) -> None:
        """Begin after a step; what was written after it will be written again."""

        def kept() -> list[dict[str, Any]]:
            lines = self.path.read_text().splitlines() if self.path.is_file() else []
            rows = [json.loads(line) for line in lines if _whole_line(line)]
            rows = [row for row in rows if row["step"] <= step]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
            return rows

        self.rows = processes.once(kept)
        self.advance(step)

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
            found = self.evaluate()
            row |= processes.once(lambda: found)
        self.rows.append(row)
        if processes.first():
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.report:
            self.report(_flat(row))
        self.advance(1)
        if self.patience and "accuracy" in row and self.best and self.best.step == step:
            control.should_save = True  # what may be returned to
        self.interruption.signal = processes.highest(self.interruption.signal or 0) or None
        if self.interruption.signal is not None or self.done:
            control.should_save = control.should_training_stop = True


def _flat(row: dict[str, Any]) -> dict[str, float]:
    """A row as trackers take it: numbers, those of held-out prompts named eval_..."""
    shares = {f"eval_accuracy_at_{float(share):g}": value for share, value in row.get("accuracy", {}).items()}
    return {name: value for name, value in row.items() if isinstance(value, float) and name != "epoch"} | shares


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
    data: PairSet | RolloutSet
    watch: _Watch
    _losses: Tensor
    _saving: str | None = None

    def get_train_dataloader(self) -> DataLoader:
        """All steps in order, in every process: what each takes of a batch is decided there."""
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
        """Write the batch down and raise TrainingError, in all processes, where a number is none or has exploded."""
        if abs(value) <= EXPLODED:
            return
        losses, step = processes.gathered(self._losses.tolist()), self.state.global_step
        out = Path(self.args.output_dir)
        found = {"step": step + 1, name.replace(" ", "_"): str(value), "learning_rate": self._get_learning_rate()}

        def refuse() -> None:
            batch = _described(self.data, self.train_dataset[step].numbers, losses, self.reward.tokenizer.decode)
            write_text(out / "bad_batch.json", json.dumps({**found, "batch": batch}, indent=1, ensure_ascii=False))
            raise TrainingError(
                f"the {name} is {value} after step {step}; lower --lr, which is {self.args.learning_rate}, or look for "
                f"broken data in {out / 'bad_batch.json'}, the batch it was computed on"
            )

        processes.once(refuse)

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
            processes.once(lambda: publish_folder(work / name, out / name, replace=True))
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
    mixed: bool,
    report_to: Sequence[str],
) -> PlanTrainer:
    """A Trainer whose dataset is the plan: item n is the batch of step n."""

    mean_length = data.mean_length if isinstance(data, RolloutSet) else 0.0

    def collate(batches: list[Batch]) -> dict[str, Any]:
        ((phase, whole),) = batches
        mine = processes.part(whole)
        # A batch may have fewer items than there are processes: those left out compute along, for nothing.
        picked = mine or whole[:1]
        items = [data.items[number] for number in picked]
        if objective.phases[phase].of == "chosen":
            items = [item[:1] for item in items]
        numbers, local = renumber(items)
        rows = [data.rows[number] for number in numbers]
        labels = torch.tensor([data.labels[n] for n in picked]) if isinstance(data, RolloutSet) else None
        return {
            **scorer.inputs(0, numbers),
            "weight": processes.count() * len(mine) / len(whole),
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
        report_to=list(report_to) or "none",
        seed=settings.seed,
        use_cpu=reward.device.type == "cpu",
        bf16=mixed,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one GPU: several GPUs take as many processes
    set_seed(settings.seed)
    trainer = PlanTrainer(model=scorer, args=arguments, train_dataset=plan, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.reward, trainer.objective, trainer.data = reward, objective, data
    return trainer


def _described(
    data: PairSet | RolloutSet,
    batch: Sequence[int],
    losses: Sequence[float],
    decode: Callable[[Sequence[int]], str],
) -> list[dict[str, Any]]:
    """A batch as a person reads it: each item's number among those trained on, its texts, and its loss."""
    found = []
    for number, loss in zip(batch, losses, strict=True):
        rows = [data.rows[row] for row in data.items[number]]
        names = ("chosen", "rejected") if len(rows) == 2 else ("response",)
        texts = {"prompt": rows[0].prompt, **{name: row.response for name, row in zip(names, rows, strict=True)}}
        # As text where it is no number, which JSON does not know.
        item: dict[str, Any] = {"number": number, "loss": loss if math.isfinite(loss) else str(loss)}
        if isinstance(data, RolloutSet):
            item["label"] = data.labels[number]
        found.append(item | {name: decode(list(ids)) for name, ids in texts.items()})
        found[-1] |= {f"{name}_ids": list(ids) for name, ids in texts.items()}
    return found


def _held_out(data: Data, scorer: Scorer, rewards: list[Tensor]) -> dict[str, Any]:
    """Pair accuracy on held-out prompts, and of rollouts the fit to their labels, by share of the response."""
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
