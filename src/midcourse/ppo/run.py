"""A language model, prompts and a reward in, a policy out."""

import contextlib
import functools
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from midcourse.compare.independence import Origin, write_earned
from midcourse.data.comparisons import digest
from midcourse.data.learned import no_rows, write_row_hashes
from midcourse.decode.request import agreed_template, check_room
from midcourse.errors import Interrupted
from midcourse.files import as_json, write_text
from midcourse.lm.language_model import LanguageModel, rendering
from midcourse.lm.load import RECORD
from midcourse.lm.prompt import Prefix, Prompt, Template, prompt_ids
from midcourse.lm.weights import tensors_fingerprint
from midcourse.ppo.folder import (
    add_metrics,
    finish,
    load_checkpoint,
    read_metrics,
    save_checkpoint,
    write_metrics,
    write_samples,
)
from midcourse.ppo.policy import Policy
from midcourse.ppo.rollouts import Payment, TokenFunction, function_name
from midcourse.ppo.settings import PPOError, PPOSettings, check_settings
from midcourse.ppo.training import BadBatch, Run, State
from midcourse.progress import Advance, progress
from midcourse.rewards.backbone import Tuning
from midcourse.rewards.contract import Reward
from midcourse.rewards.fingerprint import reward_fingerprint
from midcourse.terminal import tell
from midcourse.train import processes
from midcourse.train.folder import only_training, prepare_folder
from midcourse.train.stopping import stop_on_signal

LENGTH_TRAP = 0.5  # correlation of reward with length from which on a policy may learn to be long, or short


def train_policy(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    reward: Reward | TokenFunction,
    out: str | Path,
    settings: PPOSettings | None = None,
    *,
    end_reward: Reward | None = None,
    end_scale: float = 1.0,
    gold: Reward | None = None,
    paid_by: Sequence[Origin] = (),
    template: Template | None = None,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Train a policy by PPO and write it to `out`; returns the metrics of all steps.

    Args:
        lm: what to begin at, and the reference. Adapters are put into it: load it anew for anything else.
        prompts: they take turns, in an order drawn anew for each pass.
        reward: any reward, or a function from (rollouts, mask) to rewards of tokens, (batch, tokens).
        end_reward: a reward of whole responses, paid at the last token beside it, times `end_scale`.
        gold: a reward that is measured at every step, and not learned from.
        paid_by: what the rewards are made of (`compare.independence.of_reward`), for the policy to say: what it was
            trained to earn is no judge of it, nor is what the policy was that it begins at.
        template: how prompts become tokens; by default the rewards' own, else "raw".
        resume: go on from the last checkpoint in `out`, to the same policy as without the stop.

    Raises:
        PPOError, RewardError, PromptError: settings, rewards or prompts that cannot be used; rewards of the wrong shape
            or that are no finite numbers, whose responses are kept in bad_batch.json.
        TrainingError: `out` in use or of another run.
        Interrupted: after Ctrl-C or SIGTERM; the same call with `resume` goes on.

    Examples:
        >>> train_policy(lm, prompts, load_reward("civil"), "civil-policy", PPOSettings(rollouts=512))[-1]["kl"]
    """
    settings, out = settings or PPOSettings(), Path(out)
    check_settings(settings)
    _check_end(end_reward, end_scale)
    given = [(one, 1.0) for one in (reward, end_reward) if isinstance(one, Reward)]
    template = agreed_template(given, template)
    _check_prompts(lm, [one for one, _ in given], prompts, template, settings)
    _check_tuning(lm, [one for one, _ in given], settings)
    processes.join(lm.device)
    record = {
        "format": 1,
        "method": "ppo",
        "lm": lm.name,
        "lm_fingerprint": tensors_fingerprint(lm.model),
        **rendering(lm, template),
        "template": template,
        "reward": _name(reward),
        "reward_fingerprint": _fingerprint(reward),
        "end_reward": None if end_reward is None else _name(end_reward),
        "end_reward_fingerprint": None if end_reward is None else _fingerprint(end_reward),
        "end_scale": end_scale,
        "gold": None if gold is None else _name(gold),
        "settings": asdict(settings),
        "prompts": len(prompts),
        "prompts_fingerprint": digest([one if isinstance(one, str) else list(one) for one in prompts])[:16],
    }
    payment = Payment(
        lm,
        reward,
        settings.density,
        settings.reward_scale,
        end_reward,
        end_scale,
        settings.missing_eos,
        settings.seed,
    )
    with only_training(out) if processes.first() else contextlib.nullcontext():
        ready = processes.once(lambda: prepare_folder(out, record, resume, made="policy", record=RECORD))
        if ready.metrics is not None:
            return read_metrics(out)
        run = Run(Policy(lm, settings), prompts, payment, settings, template, gold)
        if ready.checkpoint:
            run.state = load_checkpoint(run.policy, run.optimizer, ready.checkpoint)
        run_through(run, out, "ppo")
        if processes.first():
            write_samples(out, run.state, lm.tokenizer)
            _write_rows(out, write_earned(out, lm.name, paid_by))
            finish(run.policy, run.state, out, record)
    return run.state.metrics


@runtime_checkable
class Learner(Protocol):
    """What trains a policy step by step.

    Attributes:
        steps: of the whole run.
        total: responses of the whole run; a row of metrics says in "rollouts" how many are done.
        save_every: steps between checkpoints.
    """

    policy: Policy
    optimizer: Any
    state: State
    steps: int
    total: int
    save_every: int

    def step(self, advance: Advance) -> dict[str, Any]:
        """Do a step and return its row of metrics; BadBatch if nothing can be learned from what it is given.

        Args:
            advance: told on the way how many responses' worth of work is done, at most all of it.
        """


def run_through(run: Learner, out: Path, title: str) -> None:
    """Do the steps that are left, with a checkpoint every few of them and at a signal.

    Raises:
        PPOError: nothing can be learned from a step's responses, which are kept in bad_batch.json, or a checkpoint
            cannot be written.
        Interrupted: after Ctrl-C or SIGTERM.
    """
    state, warned = run.state, False
    processes.once(lambda: write_metrics(out, state))
    with progress(title, run.total, quiet=not processes.first()) as advance, stop_on_signal() as interruption:
        advance(_done(state))
        while state.step < run.steps:
            told = StepProgress(_done(state), advance)
            row = _step(run, out, told.more)
            if processes.first():
                add_metrics(out, row)
            warned = warned or _warn_of_length(row)
            signal = processes.highest(interruption.signal or 0)
            done = state.step == run.steps
            if signal or done or state.step % run.save_every == 0:
                processes.once(lambda: save_checkpoint(run.policy, run.optimizer, state, out))
            if processes.first() and state.samples and state.samples[-1]["step"] == state.step:
                write_samples(out, state, run.policy.lm.tokenizer)
            told.until(row["rollouts"])
            if signal and not done:
                raise Interrupted(f"stopped after step {state.step} of {run.steps}; add --resume to go on", signal)


class StepProgress:
    """Tells a progress bar how far a step is: its parts as they are done, and at its end what they left out."""

    def __init__(self, done: int, advance: Advance):
        self.done, self.advance = float(done), advance

    def more(self, amount: int | float) -> None:
        """Say that so many more responses are done with."""
        self.done += amount
        self.advance(amount)

    def until(self, done: int) -> None:
        """Say that so many responses of the run are done with."""
        self.more(done - self.done)


def _done(state: State) -> int:
    return state.metrics[-1]["rollouts"] if state.metrics else 0


def _step(run: Learner, out: Path, advance: Advance) -> dict[str, Any]:
    """Do a step; if nothing can be learned from its responses, keep them on disk and say so."""
    try:
        return run.step(advance)
    except BadBatch as bad:
        path = out / "bad_batch.json"
        if processes.first():
            write_text(path, as_json({"why": str(bad), "step": run.state.step + 1, **bad.record}, indent=1))
        raise PPOError(f"{bad} (the responses are in {path})") from bad


def _warn_of_length(row: dict[str, Any]) -> bool:
    """Say that reward follows length, if it does; return whether it did."""
    found = row.get("length_correlation")
    if found is None or abs(found) <= LENGTH_TRAP or not processes.first():
        return False
    tell(
        f"midcourse: in step {row['step']} the reward goes with the length of responses (correlation {found:+.2f}), so "
        "the policy may learn length alone; --centre takes each token's mean reward off"
    )
    return True


def _check_prompts(
    lm: LanguageModel, rewards: Sequence[Reward], prompts: Sequence[Prompt], template: Template, settings: PPOSettings
) -> None:
    if isinstance(prompts, str) or not prompts:
        raise PPOError("there are no prompts to write responses to; give a list with at least one")
    for number, prompt in enumerate(prompts, 1):
        prefix = Prefix(prompt, prompt_ids(lm.tokenizer, prompt, template), template=template)
        check_room(lm, rewards, prefix, settings.max_new_tokens, number)


def _check_end(end_reward: Reward | None, end_scale: float) -> None:
    if not math.isfinite(end_scale):
        raise PPOError(f"end-scale is {end_scale}; use a finite number")
    if end_reward is None and end_scale != 1.0:
        raise PPOError(f"end-scale is {end_scale:g}, and there is no end-reward for it to scale; name one, or leave it")


def _check_tuning(lm: LanguageModel, rewards: Sequence[Reward], settings: PPOSettings) -> None:
    """Raise PPOError if training would change the weights that a reward reads; RewardError if layers lack for it."""
    tuning = Tuning.parse(settings.tune)
    tuning.check_depth(lm.model.config.get_text_config().num_hidden_layers)
    if tuning.kind != "all":
        return
    trained = {weight.data_ptr() for weight in lm.model.parameters()}
    for reward in rewards:
        if any(weight.data_ptr() in trained for model in reward.models for weight in model.parameters()):
            raise PPOError(
                f"the reward {reward.name} stands on the very weights of {lm.name} that tune all trains; load it "
                "without share_with"
            )


def _write_rows(out: Path, paid_by: Sequence[Origin]) -> None:
    """Write the rows that rewards learned from, if all of them say so."""
    rows = [one.rows for one in paid_by if one.rows is not None]
    if paid_by and len(rows) == len(paid_by):
        write_row_hashes(out, functools.reduce(np.union1d, rows, no_rows()))


def _name(reward: Reward | TokenFunction) -> str:
    """Return what a card calls a reward; of a folder its own name, wherever it lies."""
    if not isinstance(reward, Reward):
        return function_name(reward)
    return Path(reward.name).name if Path(reward.name).is_dir() else reward.name


def _fingerprint(reward: Reward | TokenFunction) -> Any:
    """Return what says that a reward is the same when a run goes on; of a function its name, which is all there is."""
    return reward_fingerprint(reward) if isinstance(reward, Reward) else _name(reward)
