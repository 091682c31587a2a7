"""The loop: comparisons or rollouts in, a saved reward out. transformers' Trainer underneath, whatever the objective.

The output folder is a reward with metrics.jsonl, training.png and a model card; see `train.folder`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from midcourse.data.comparisons import Comparison, fingerprint, prompt_groups, split_by_prompt
from midcourse.data.encoded import PairSet, RolloutSet, encode, encode_rollouts, pairs_by_label
from midcourse.data.rollouts import Rollout, label_comparisons
from midcourse.evaluate.accuracy import label_fit, length_baseline, pair_accuracy
from midcourse.evaluate.calibration import calibrate
from midcourse.progress import progress
from midcourse.rewards.backbone import Tuning
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.trained import TrainedReward
from midcourse.train import processes
from midcourse.train.batches import in_turns, padding_share, plan_batches
from midcourse.train.folder import finish_folder, only_training, prepare_folder
from midcourse.train.objectives import (
    Objective,
    check_data,
    check_head,
    make_objective,
)
from midcourse.train.precision import computes_in_bfloat16, learning_rate, master_weights
from midcourse.train.scorer import Scorer, make_scorer
from midcourse.train.settings import (
    Settings,
    TrainingError,
    check_reports,
    check_settings,
)
from midcourse.train.stopping import stop_on_signal
from midcourse.train.trainer import Watch, label_zero, make_trainer


class Data(NamedTuple):
    """Encoded data: what is trained on, and what is measured on held-out prompts.

    Attributes:
        train: the pairs or labelled responses that the objective learns from.
        train_pairs, held_pairs: pairs, for the accuracies; those of rollouts are ordered by their labels.
        held_rollouts: None if comparisons were given. Its rows are those of `held_pairs`.
    """

    train: PairSet | RolloutSet
    train_pairs: PairSet
    held_pairs: PairSet
    held_rollouts: RolloutSet | None


def train(
    reward: TrainedReward,
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
        examples: all comparisons or rollouts; some prompts are held out.
        out: folder of the reward.
        settings: how.
        resume: go on from the last checkpoint in `out`.
        report_to: trackers that loss, learning rate and accuracies are sent to as well: tensorboard, trackio, wandb.

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
    reward: TrainedReward,
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
    trainer = make_trainer(reward, scorer, data.train, objective, plan, settings, out, mixed, report_to)
    zero = label_zero(objective, data.train)
    bar = progress("training", len(plan), quiet=not processes.first())
    with master_weights(reward, mixed), bar as advance, stop_on_signal() as interruption:

        def evaluate() -> dict[str, Any]:
            asked, rows = (deciding, 2) if deciding else (data, 1)
            return _curve(_held_out(asked, prefix_rewards(scorer, rows), zero))

        watch = Watch(out, len(plan), settings, evaluate, interruption, advance)
        if report_to:
            watch.report = trainer.log
        trainer.train_under(watch, checkpoint)
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    watch.check_done()
    wanted = watch.best.step if deciding and watch.best else watch.step
    if wanted != trainer.state.global_step:
        reward.load_trained(out / f"checkpoint-{wanted}" / "reward.safetensors")
    metrics, calibration = _measured(scorer, data, zero)
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
    # Held-out rows that decided when to stop have shaped it too.
    finish_folder(reward, out, [*kept, *held] if settings.patience else kept)
    return metrics


def _measured(scorer: Scorer, data: Data, zero: float) -> tuple[dict[str, Any], Calibration | None]:
    """Return the figures on held-out prompts, and the calibration if there are pairs to fit it.

    Args:
        zero: the label at which a reward is 0.
    """
    rewards = prefix_rewards(scorer, 1)
    figures, calibration = _held_out(data, rewards, zero), None
    if data.held_pairs.pairs:
        calibration, figures["calibration"] = calibrate(data.held_pairs, rewards, by_length=scorer.every_prefix)
        if data.train_pairs.pairs:
            figures["length_baseline"] = length_baseline(data.train_pairs, data.held_pairs)
    kind = "train_rollouts" if data.held_rollouts else "train_pairs"
    figures[kind] = len(data.train.items if data.held_rollouts else data.train_pairs.items)
    return figures, calibration


def checked_objective(reward: TrainedReward, settings: Settings) -> Objective:
    """Return the reward's objective; raise if it or the settings do not go with what the reward trains."""
    if settings.gradient_checkpointing and Tuning.parse(reward.info.tune).kind == "head":
        raise TrainingError("gradient checkpointing saves memory of layers that are trained, and tune head trains none")
    objective = make_objective(reward.info.objective, **reward.info.objective_settings)
    check_head(objective, reward.info.head)
    return objective


def encode_all(
    reward: TrainedReward,
    objective: Objective,
    kept: Sequence[Comparison | Rollout],
    held: Sequence[Comparison | Rollout],
    max_tokens: int,
) -> Data:
    """Return the token ids of what is trained and measured on.

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
    reward: TrainedReward,
    objective: Objective,
    kept: Sequence[Comparison | Rollout],
    held: Sequence[Comparison | Rollout],
    settings: Settings,
) -> tuple[Data, Data | None]:
    """Return what is trained on with what reports, and if there is patience what decides: other held-out prompts.

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


def prefix_rewards(scorer: Scorer, row_set: int) -> list[Tensor]:
    """Return the reward of every prefix of a set's rows: of token rewards what has added up until there."""
    rewards = scorer.score(row_set)
    return [row.cumsum(0) for row in rewards] if scorer.additive else rewards


def _held_out(data: Data, rewards: list[Tensor], zero: float) -> dict[str, Any]:
    """Return pair accuracy on held-out prompts, and of rollouts the fit to their labels, by share of the response.

    Args:
        zero: the label at which a reward is 0.
    """
    figures: dict[str, Any] = {"pairs": 0, "prompts": len(set(data.held_pairs.prompts))}
    if data.held_pairs.pairs:
        figures = pair_accuracy(data.held_pairs, rewards)
    if data.held_rollouts:
        assert isinstance(data.train, RolloutSet)
        foretold = [row + zero for row in rewards]
        figures["labels"] = {**label_fit(data.held_rollouts, foretold, data.train.mean_label), "zero": zero}
    return figures


def _curve(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what the curves show of held-out metrics."""
    figures = {}
    if "shares" in metrics:
        figures["accuracy"] = {str(row["share"]): row["accuracy"] for row in metrics["shares"]}
    if "labels" in metrics:
        figures["correlation"] = {str(row["share"]): row["correlation"] for row in metrics["labels"]["shares"]}
    return figures
