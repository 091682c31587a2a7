"""The loop: comparisons, rollouts, ladders or edits in, a saved reward out.

transformers' Trainer is underneath, whatever the objective. The output folder is a reward with metrics.jsonl,
training.png and a model card; see `train.folder`.
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from midcourse.data.comparisons import Comparison, Example, fingerprint, prompt_groups, split_by_prompt
from midcourse.data.edits import Edit
from midcourse.data.encoded import (
    EditSet,
    EncodedSet,
    LadderSet,
    PairSet,
    RolloutSet,
    encode,
    encode_edits,
    encode_ladders,
    encode_rollouts,
    pairs_by_label,
    pairs_by_level,
    pairs_of_edits,
    what_was_cut,
)
from midcourse.data.ladders import Ladder
from midcourse.data.learned import no_rows, read_learned_rows
from midcourse.data.rollouts import Rollout, label_comparisons
from midcourse.evaluate.accuracy import label_fit, length_baseline, pair_accuracy
from midcourse.evaluate.calibration import calibrate
from midcourse.evaluate.edits import edit_figures, kept_rewards
from midcourse.lm.weights import files_fingerprint
from midcourse.progress import progress
from midcourse.rewards.backbone import Tuning
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.trained import TrainedReward
from midcourse.train import processes, replay
from midcourse.train.batches import WINDOW, Batch, in_turns, padding_share, plan_batches, with_replay
from midcourse.train.folder import finish_folder, only_training, prepare_folder
from midcourse.train.objectives import (
    Objective,
    ObjectiveError,
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

Examples: TypeAlias = Sequence[Comparison] | Sequence[Rollout] | Sequence[Ladder] | Sequence[Edit]


class Data(NamedTuple):
    """Encoded data: what is trained on, and what is measured on held-out prompts.

    Attributes:
        train: the pairs, labelled responses, ladders or edits that the objective learns from.
        train_pairs, held_pairs: pairs, for the accuracies; those of rollouts are ordered by their labels, those of
            ladders are any two of their levels, and of an edit the edited text is the better one.
        held_rollouts: None unless rollouts were given. Its rows are those of `held_pairs`.
        held_ladders, held_edits: likewise.
    """

    train: EncodedSet
    train_pairs: PairSet
    held_pairs: PairSet
    held_rollouts: RolloutSet | None = None
    held_ladders: LadderSet | None = None
    held_edits: EditSet | None = None


# What else is measured on held-out ladders, given the rewards at the response positions of their rows.
Measure: TypeAlias = Callable[[LadderSet, list[Tensor]], dict[str, Any]]


def train(
    reward: TrainedReward,
    examples: Examples,
    out: str | Path,
    settings: Settings,
    *,
    resume: bool = False,
    report_to: Sequence[str] = (),
    replayed: Sequence[Comparison] = (),
    measure: Measure | None = None,
) -> dict[str, Any]:
    """Train `reward` on examples and save it to `out`; returns its metrics on held-out prompts.

    In processes that torchrun or accelerate launch started, each takes its part of every batch, with the gradients of
    the whole batch in all of them; the first one writes. After FSDP2 the reward is still in parts: load it from `out`.

    Args:
        reward: what is trained, in place.
        examples: all comparisons, rollouts, ladders or edits; some prompts are held out.
        out: folder of the reward.
        settings: how.
        resume: go on from the last checkpoint in `out`.
        report_to: trackers that loss, learning rate and accuracies are sent to as well: tensorboard, trackio, wandb.
        replayed: comparisons whose responses' rewards are to stay what they are, while ladders are learned from.
        measure: what else is measured on held-out ladders.

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
        return _train(reward, examples, out, settings, resume, report_to, replayed, measure)


def _train(
    reward: TrainedReward,
    examples: Examples,
    out: Path,
    settings: Settings,
    resume: bool,
    report_to: Sequence[str],
    replayed: Sequence[Comparison],
    measure: Measure | None,
) -> dict[str, Any]:
    objective, mixed = processes.everywhere(
        lambda: (checked_objective(reward, settings), computes_in_bfloat16(reward, settings))
    )
    reward.info = replace(reward.info, objective_settings=objective.settings, reward_weight=objective.reward_weight)
    if settings.lr is None:
        settings = replace(settings, lr=learning_rate(reward))
    # The same prompts are held out whatever the seed: runs stay comparable, and share their frozen states.
    kept, held = split_by_prompt([*examples], settings.held_out, seed=0)
    drawn = _drawn(objective, replayed, settings.epochs * len(kept), settings.seed)
    run = {
        "settings": asdict(settings),
        "reward": asdict(reward.info),
        kind_of(examples): len(examples),
        "data_fingerprint": fingerprint(examples),
        **_begun(reward, replayed),
    }
    before = read_learned_rows(reward.begun_at) if reward.begun_at else no_rows()
    data, deciding = processes.everywhere(lambda: encode_parts(reward, objective, kept, held, settings, drawn))
    checkpoint, finished = processes.once(lambda: prepare_folder(out, run, resume))
    if finished is not None:
        return finished
    scorer = make_scorer(reward, [data.train, data.held_pairs, *([deciding.held_pairs] if deciding else [])])
    if settings.gradient_checkpointing:
        scorer.checkpoint_gradients()
    data = _with_initial(data, scorer, out)
    lengths = scorer.lengths(0)
    plan = planned(objective, data.train, lengths, settings)
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
    if isinstance(data.train, EditSet):
        # What no edit touched is worth nothing on average: a text gains nothing by being long.
        reward.info = replace(reward.info, centre=kept_rewards(data.train, scorer.score(0))[0])
    metrics, calibration = _measured(scorer, data, zero)
    metrics["cut"] = what_was_cut(data.train.rows, data.train_pairs, settings.max_tokens)
    metrics["padding"] = {
        "share": _padding(data.train, lengths, plan),
        "without_buckets": _padding(data.train, lengths, planned(objective, data.train, lengths, settings, window=1)),
    }
    if data.held_ladders and measure:
        metrics |= measure(data.held_ladders, prefix_rewards(scorer, 1))
    if isinstance(data.train, LadderSet) and data.train.initial:
        metrics["replay"] = {"texts": len(data.train.initial), "drift": replay.drift(scorer, data.train)}
    if deciding and watch.best:
        pairs = deciding.held_pairs
        decided = {"prompts": len(set(pairs.prompts)), "pairs": len(pairs.pairs)}
        metrics["early_stopping"] = {**decided, **watch.best._asdict(), "stopped": watch.step, "planned": len(plan)}
    stored = calibration.stored() if calibration else {}
    reward.info = replace(reward.info, training=run, metrics=metrics, calibration=stored)
    # Held-out rows that decided when to stop have shaped it too.
    learned = [*kept, *(held if settings.patience else ()), *drawn]
    finish_folder(reward, out, learned, before)
    return metrics


def kind_of(examples: Sequence[Example]) -> str:
    """Return what examples are called: comparisons, rollouts, ladders or edits."""
    return {Rollout: "rollouts", Ladder: "ladders", Edit: "edits"}.get(type(examples[0]), "comparisons")


def _drawn(objective: Objective, replayed: Sequence[Comparison], times: int, seed: int) -> list[Rollout]:
    """Return the texts that are replayed, in their order: one for each time that a ladder is learned from."""
    if not replayed:
        return []
    if objective.of != "ladders":
        raise ObjectiveError(f"objective {objective.name} replays no texts; leave them out, or use ordered")
    return replay.draw(replay.texts_of(replayed), times, seed) if objective.settings["replay_weight"] else []


def _begun(reward: TrainedReward, replayed: Sequence[Comparison]) -> dict[str, Any]:
    """Return what a run's record says about where it begins, and what it replays, if it does."""
    record: dict[str, Any] = {}
    if reward.begun_at:
        weights = files_fingerprint([reward.begun_at / "reward.safetensors"])
        record["begun_at"] = {"reward": reward.name, "fingerprint": weights}
    if replayed:
        record["replayed"] = {"comparisons": len(replayed), "fingerprint": fingerprint(replayed)}
    return record


def _with_initial(data: Data, scorer: Scorer, out: Path) -> Data:
    """Return the data with the rewards that replayed texts have before training, if there are any."""
    train = data.train
    if not isinstance(train, LadderSet) or not train.replay:
        return data
    initial = processes.once(lambda: replay.initial_rewards(scorer, train, out))
    return data._replace(train=replace(train, initial=initial))


def planned(
    objective: Objective, data: EncodedSet, lengths: Sequence[int], settings: Settings, window: int = WINDOW
) -> list[Batch]:
    """Return all steps: which pairs, rollouts or ladders each learns from, and what it replays.

    Args:
        lengths: tokens of each row.
        window: batches that are sorted by length together.
    """
    longest = [max(lengths[row] for row in item) for item in data.items]
    batches = plan_batches(data.prompts, longest, settings.batch_size, settings.epochs, settings.seed, window)
    plan = in_turns(batches, len(objective.phases), objective.turns)
    if isinstance(data, LadderSet) and data.replay:
        return with_replay(plan, data.replay, lengths, longest, window)
    return plan


def _padding(data: EncodedSet, lengths: Sequence[int], plan: Sequence[Batch]) -> float:
    """Return the share of the tokens in a plan's batches that is padding, replayed rows included."""
    items: list[tuple[int, ...]] = []
    for batch in plan:
        items += [data.items[number] for number in batch.numbers] + [(row,) for row in batch.replay]
    ends = list(itertools.accumulate(len(batch.numbers) + len(batch.replay) for batch in plan))
    return padding_share(items, lengths, [range(a, b) for a, b in itertools.pairwise([0, *ends])])


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
    if data.held_edits:
        assert isinstance(data.train, EditSet)
        figures |= {"train_edits": len(data.train.items), "edits_left_out": data.train.left_out}
        figures["edits"] = edit_figures(data.held_edits, scorer.score(1))
    elif data.held_ladders:
        figures["train_ladders"] = len(data.train.items)
    elif data.held_rollouts:
        figures["train_rollouts"] = len(data.train.items)
    else:
        figures["train_pairs"] = len(data.train_pairs.items)
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
    kept: Sequence[Example],
    held: Sequence[Example],
    max_tokens: int,
    drawn: Sequence[Rollout] = (),
) -> Data:
    """Return the token ids of what is trained and measured on.

    Args:
        drawn: texts to replay, in their order.

    Raises:
        ObjectiveError: rollouts for an objective that compares two responses; ladders for another than `ordered`, or
            anything else for this one; likewise edits.
    """
    check_data(objective, kind_of([*kept, *held]))
    ladders, held_ladders = ([one for one in part if isinstance(one, Ladder)] for part in (kept, held))
    if ladders:
        train_set = encode_ladders(reward, ladders, max_tokens, drawn)
        held_set = encode_ladders(reward, held_ladders, max_tokens)
        return Data(train_set, pairs_by_level(train_set), pairs_by_level(held_set), held_ladders=held_set)
    edits, held_edits = ([one for one in part if isinstance(one, Edit)] for part in (kept, held))
    if edits:
        unit = objective.settings["align"]
        train_edits, held_of = (encode_edits(reward, part, max_tokens, unit) for part in (edits, held_edits))
        return Data(train_edits, pairs_of_edits(train_edits), pairs_of_edits(held_of), held_edits=held_of)
    rollouts, held_rollouts = ([one for one in part if isinstance(one, Rollout)] for part in (kept, held))
    if rollouts:
        trained, measured = (encode_rollouts(reward, part, max_tokens) for part in (rollouts, held_rollouts))
        return Data(trained, pairs_by_label(trained), pairs_by_label(measured), measured)
    comparisons, held_comparisons = ([one for one in part if isinstance(one, Comparison)] for part in (kept, held))
    train_pairs, held_pairs = (encode(reward, part, max_tokens) for part in (comparisons, held_comparisons))
    if objective.of == "pairs":
        return Data(train_pairs, train_pairs, held_pairs)
    return Data(encode_rollouts(reward, label_comparisons(comparisons), max_tokens), train_pairs, held_pairs)


def encode_parts(
    reward: TrainedReward,
    objective: Objective,
    kept: Sequence[Example],
    held: Sequence[Example],
    settings: Settings,
    drawn: Sequence[Rollout] = (),
) -> tuple[Data, Data | None]:
    """Return what is trained on with what reports, and if there is patience what decides: other held-out prompts.

    Raises:
        TrainingError: too few held-out prompts for both, or no pairs among those that decide.
    """
    if settings.patience is None:
        return encode_all(reward, objective, kept, held, settings.max_tokens, drawn), None
    if len(set(prompt_groups(held))) < 2:
        raise TrainingError("patience needs two held-out prompts, one to decide and one to report; raise --held-out")
    deciding, reporting = split_by_prompt(held, 0.5, seed=1)
    data = encode_all(reward, objective, kept, reporting, settings.max_tokens, drawn)
    decides = encode_all(reward, objective, deciding, deciding, settings.max_tokens)
    if not decides.held_pairs.pairs:
        raise TrainingError("patience decides by pairs of a prompt's responses, and none is held out; raise --held-out")
    return data, data._replace(
        held_pairs=decides.held_pairs,
        held_rollouts=decides.held_rollouts,
        held_ladders=decides.held_ladders,
        held_edits=decides.held_edits,
    )


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
