"""Direct preference optimisation: a LoRA adapter on a language model by TRL, the baseline that trains the model.

    loss = -log sigmoid(beta (log pi/pi_ref (chosen) - log pi/pi_ref (rejected)))

(Rafailov et al., 2023, arXiv 2305.18290, equation 7.) pi is the model with the adapter, pi_ref the same without it.
Prompts and responses are encoded as everywhere in midcourse: its templates, and no EOS behind an unfinished response;
TRL would end each one, and tokenise prompt and response together.

The policy is a standard PEFT adapter folder, with a record of how it came about in `RECORD`, written last:

    adapter_config.json, adapter_model.safetensors    as peft and transformers load them
    midcourse_policy.json                             the LM's name and fingerprint, data, settings, held-out figures
    metrics.jsonl                                     loss and held-out accuracy by step
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PrinterCallback
from transformers.pytorch_utils import Conv1D

from midcourse.compare.independence import write_earned
from midcourse.data.comparisons import Comparison, fingerprint, split_by_prompt
from midcourse.data.encoded import EncodedRow, PairSet, encode, what_was_cut
from midcourse.data.learned import write_learned_rows
from midcourse.errors import MidcourseError
from midcourse.evaluate.accuracy import length_baseline, pair_accuracy
from midcourse.evaluate.scoring import score_rows
from midcourse.files import as_json, write_text
from midcourse.lm.language_model import LanguageModel, chat_fingerprint
from midcourse.lm.load import RECORD
from midcourse.lm.policy import how_to_load, hub_name, save_adapter
from midcourse.lm.prompt import Template
from midcourse.lm.weights import weights_fingerprint
from midcourse.progress import progress
from midcourse.rewards.vocabulary import VocabularyReward
from midcourse.terminal import tell
from midcourse.train import processes
from midcourse.train.batches import plan_batches
from midcourse.train.card import as_range, cut_text
from midcourse.train.folder import drop_run, only_training, prepare_folder
from midcourse.train.settings import Settings, TrainingError, check_settings
from midcourse.train.stopping import stop_on_signal
from midcourse.train.trainer import EXPLODED, Watch, WholeCheckpoints, plan_arguments

try:
    from trl import DPOConfig, DPOTrainer
except ImportError as missing:
    raise MidcourseError("midcourse dpo needs trl; run: pip install 'midcourse[trl]'") from missing

LEARNING_RATE = 1e-4
# transformers 5.23 has renamed the setting, and warns of the old name.
RENAMED = "activation_checkpointing" in DPOConfig.__dataclass_fields__
CHECKPOINTING = "activation_checkpointing" if RENAMED else "gradient_checkpointing"
STEP_COST = 4  # forwards that a step takes as long as: the reference's, the policy's, and a backward pass


def train_policy(
    lm: LanguageModel,
    comparisons: Sequence[Comparison],
    out: str | Path,
    settings: Settings,
    *,
    beta: float = 0.1,
    rank: int = 16,
    template: Template = "chat",
    resume: bool = False,
) -> dict[str, Any]:
    """Train a LoRA adapter by DPO and write it to `out`; returns its figures on held-out prompts.

    Args:
        lm: the reference, and what the adapter is for. Its weights stay as they are, but its model has the adapter's
            layers inside afterwards: load it anew for anything else.
        comparisons: all of them; some prompts are held out, the same as in `midcourse train`.
        out: folder of the policy.
        settings: how; lr is 1e-4 by default. Early stopping and precision are not among what counts here.
        beta: how much a nat of log-ratio weighs; the smaller, the farther the policy may go from the LM.
        rank: of the adapter in every linear layer but the output's.
        resume: go on from the last checkpoint in `out`, to the same adapter as without the stop.

    Returns:
        What `pair_accuracy` gives for the rewards beta log pi/pi_ref of prefixes (at 100% it is DPO's accuracy); with
        it loss, log_ratio_margin (mean log pi/pi_ref of the chosen response less that of the rejected one, nats),
        length_baseline, train_pairs.

    Raises:
        TrainingError: settings that make no sense, `out` in use or of another run, or a loss that is no number.
        Interrupted: after Ctrl-C or SIGTERM; the same call with `resume` goes on.
    """
    out = Path(out)
    check_settings(settings)
    _check(beta, rank)
    with only_training(out):
        return _train(lm, comparisons, out, settings, beta, rank, template, resume)


def _check(beta: float, rank: int) -> None:
    if not 0 < beta < math.inf:
        raise TrainingError(f"beta is {beta}; use a positive number, such as 0.1")
    if rank < 1:
        raise TrainingError(f"rank is {rank}; use 1 or more, such as 16")
    processes.check_alone("midcourse dpo")


def _train(
    lm: LanguageModel,
    comparisons: Sequence[Comparison],
    out: Path,
    settings: Settings,
    beta: float,
    rank: int,
    template: Template,
    resume: bool,
) -> dict[str, Any]:
    if settings.lr is None:
        settings = replace(settings, lr=LEARNING_RATE)
    kept, held = split_by_prompt([*comparisons], settings.held_out, seed=0)
    run = {
        "format": 1,
        "method": "dpo",
        "lm": lm.name,
        "lm_fingerprint": weights_fingerprint(lm.name),
        "tokenizer": lm.tokens,
        "chat_template": None if template == "raw" else chat_fingerprint(lm.tokenizer),
        "template": template,
        "beta": beta,
        "rank": rank,
        "settings": asdict(settings),
        "comparisons": len(comparisons),
        "data_fingerprint": fingerprint(comparisons),
    }
    reference = VocabularyReward(lm.model, lm.tokenizer, template=template, name=lm.name)
    train, held_out = (encode(reference, part, settings.max_tokens) for part in (kept, held))
    checkpoint, finished = prepare_folder(out, run, resume, made="policy", record=RECORD)
    if finished is not None:
        return finished
    plan = plan_batches(train.prompts, _longest(train), settings.batch_size, settings.epochs, settings.seed)
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    tell(_estimate(reference, train, held_out, plan, done, settings))
    trainer = _make_trainer(lm, train, plan, settings, out, beta, rank)
    policy = PolicyAsReward(trainer.model, reference, held_out, beta)
    bar = progress("training", len(plan))
    with bar as advance, stop_on_signal() as interruption:
        watch = Watch(out, len(plan), settings, policy.curve, interruption, advance)
        watch.phase = "dpo"
        trainer.train_under(watch, checkpoint)
    watch.check_done()
    if trainer.state.global_step != watch.step:  # all steps were done when an earlier run stopped
        trainer._load_from_checkpoint(str(checkpoint))
    metrics = policy.figures()
    metrics["length_baseline"] = length_baseline(train, held_out)
    metrics["train_pairs"] = len(train.pairs)
    metrics["cut"] = what_was_cut(train.rows, train, settings.max_tokens)
    write_earned(out, lm.name)
    _finish(trainer.model, lm.tokenizer, {**run, "metrics": metrics}, kept, out)
    return metrics


def _longest(pairs: PairSet) -> list[int]:
    lengths = [_tokens(row) for row in pairs.rows]
    return [max(lengths[number] for number in item) for item in pairs.pairs]


def _tokens(row: EncodedRow) -> int:
    return len(row.prompt) + len(row.response)


def _estimate(
    reference: VocabularyReward,
    train: PairSet,
    held_out: PairSet,
    plan: list[list[int]],
    done: int,
    settings: Settings,
) -> str:
    """Say how long the steps that are not done will take, by the time of a forward of the first batch."""

    def tokens(batches: list[list[int]]) -> int:
        return sum(_tokens(train.rows[number]) for batch in batches for pair in batch for number in train.pairs[pair])

    rows = [train.rows[number] for pair in plan[0] for number in train.pairs[pair]]
    start = time.perf_counter()
    score_rows(reference, rows)
    per_token = (time.perf_counter() - start) / tokens(plan[:1])
    evaluations = (len(plan) - done) / (settings.eval_steps or len(plan) / settings.epochs)
    judged = sum(map(_tokens, held_out.rows)) * (evaluations + 2)
    seconds = per_token * (STEP_COST * tokens(plan[done:]) + judged)
    length = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
    return (
        f"about {length}: {len(plan) - done} steps of {settings.batch_size} pairs, {tokens(plan[done:])} tokens in all"
    )


class PolicyAsReward:
    """The model under training as a reward, on held-out pairs.

    Args:
        model: the LM with its adapter.
        reference: the LM's encoding.
    """

    def __init__(self, model: PeftModel, reference: VocabularyReward, pairs: PairSet, beta: float):
        self.model, self.pairs, self.beta = model, pairs, beta
        # PEFT's layers are inside the LM itself.
        inside, template = model.get_base_model(), reference.template
        self.policy = VocabularyReward(inside, reference.tokenizer, template=template, name=reference.name)
        with model.disable_adapter():
            self.reference_logprobs = score_rows(self.policy, pairs.rows)

    def log_ratios(self) -> list[Tensor]:
        """Return for every row log pi/pi_ref of its response up to each of its tokens."""
        logprobs = score_rows(self.policy, self.pairs.rows)
        return [(a - b).cumsum(0) for a, b in zip(logprobs, self.reference_logprobs, strict=True)]

    def figures(self) -> dict[str, Any]:
        """Return accuracy of the implicit reward by share of the response, the loss and the mean margin."""
        ratios = self.log_ratios()
        margins = torch.stack([ratios[a][-1] - ratios[b][-1] for a, b in self.pairs.pairs]).double()
        return {
            **pair_accuracy(self.pairs, [self.beta * row for row in ratios]),
            "loss": -F.logsigmoid(self.beta * margins).mean().item(),
            "log_ratio_margin": margins.mean().item(),
        }

    def curve(self) -> dict[str, Any]:
        """Return what a step's line of metrics shows of the figures."""
        figures = self.figures()
        accuracy = {str(row["share"]): row["accuracy"] for row in figures["shares"]}
        return {"accuracy": accuracy, "held_out_loss": figures["loss"], "log_ratio_margin": figures["log_ratio_margin"]}


class PolicyTrainer(WholeCheckpoints, DPOTrainer):
    """TRL's trainer over midcourse's own token ids and plan of batches. It asks nothing of the network."""

    plan: list[list[int]]

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # it is encoded already

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass  # `_finish` writes one

    def get_train_dataloader(self) -> DataLoader:
        """Return all steps in order."""
        rows, collate = self.train_dataset, self.data_collator
        plan: Any = self.plan
        return DataLoader(plan, batch_size=1, collate_fn=lambda batches: collate([rows[n] for n in batches[0]]))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.watch.loss = loss.item()
        self._refuse_explosion("loss", self.watch.loss)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        self.watch.grad_norm = float(norm)
        self._refuse_explosion("norm of the loss's gradient", self.watch.grad_norm)
        return norm

    def _refuse_explosion(self, name: str, value: float) -> None:
        if math.isnan(value) and self.state.global_step == 0:  # no weight has moved yet
            model = self.accelerator.unwrap_model(self.model).get_base_model().name_or_path
            raise TrainingError(
                f"the {name} is nan at the first step: {model} computes no number for its comparisons; restore the "
                "model's weights, use another, or look for broken data there"
            )
        if not abs(value) <= EXPLODED:
            raise TrainingError(
                f"the {name} is {value} after step {self.state.global_step}; lower --lr, which is "
                f"{self.args.learning_rate}"
            )


def _make_trainer(
    lm: LanguageModel,
    train: PairSet,
    plan: list[list[int]],
    settings: Settings,
    out: Path,
    beta: float,
    rank: int,
) -> PolicyTrainer:
    device = lm.model.device
    renamed: dict[str, Any] = {CHECKPOINTING: settings.gradient_checkpointing}
    arguments = DPOConfig(
        **plan_arguments(settings, len(plan), out, device),
        **renamed,
        beta=beta,
        max_length=None,  # rows are cut already
        learning_rate=settings.lr or LEARNING_RATE,
        report_to="none",
        bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in lm.model.modules()),  # GPT-2
    )
    trainer = PolicyTrainer(
        model=lm.model,
        args=arguments,
        train_dataset=_token_ids(train),
        processing_class=lm.tokenizer,
        peft_config=adapter,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.plan = plan
    return trainer


def _token_ids(pairs: PairSet) -> Dataset:
    """Return pairs in the columns that TRL takes."""
    return Dataset.from_list(
        [
            {
                "prompt_ids": pairs.rows[a].prompt,
                "chosen_ids": pairs.rows[a].response,
                "rejected_ids": pairs.rows[b].response,
            }
            for a, b in pairs.pairs
        ]
    )


def _finish(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    record: dict[str, Any],
    learned: Sequence[Comparison],
    out: Path,
) -> None:
    """Turn a run's folder into a policy: the adapter, what it learned from, then the record; drop the rest."""
    save_adapter(model, record["lm"], tokenizer, out)
    write_learned_rows(out, learned)
    write_text(out / "README.md", _card(record))
    write_text(out / RECORD, as_json(record, indent=2) + "\n")
    drop_run(out)


def _card(record: dict[str, Any]) -> str:
    metrics = record["metrics"]
    interval = metrics["shares"][-1]["interval"]
    settings = "\n".join(f"- {name}: {value}" for name, value in record["settings"].items())
    return f"""---
library_name: peft
base_model: {hub_name(record["lm"])}
tags: [dpo, lora]
---

# A policy trained by direct preference optimisation

A LoRA adapter of rank {record["rank"]} on `{record["lm"]}` (fingerprint `{record["lm_fingerprint"]}`), trained by TRL's
DPOTrainer under midcourse at beta {record["beta"]} on {metrics["train_pairs"]} of {record["comparisons"]} comparisons
(fingerprint `{record["data_fingerprint"]}`), prompts rendered with the template `{record["template"]}`.

On {metrics["pairs"]} pairs of {metrics["prompts"]} held-out prompts its implicit reward has an accuracy of
{metrics["shares"][-1]["accuracy"]:.3f} (95% interval {as_range(interval)}). The loss is {metrics["loss"]:.4f}
(0.6931 before training), the mean difference of log-ratios {metrics["log_ratio_margin"]:.3f} nats.
{cut_text(metrics)}

{how_to_load(record["lm"])}
## Training

{settings}
"""
