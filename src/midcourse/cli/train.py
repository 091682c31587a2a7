"""midcourse train."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from midcourse.cli.console import table

if TYPE_CHECKING:
    from midcourse.reward_model import RewardModel
    from midcourse.train.comparisons import Comparison
    from midcourse.train.rows import BadRow


@dataclass
class Train:
    """Learn a prefix reward from comparisons."""

    comparisons: Annotated[Path, tyro.conf.Positional]
    """JSONL (also .gz), CSV or Parquet with prompt, chosen and rejected."""
    out: Path
    """Folder of the new reward."""
    backbone: str = "smollm2"
    """Pretrained causal LM: smollm2, a folder, or a Hub id."""
    layers: int | None = None
    """Use only the first N layers (fewer are faster at every token); all by default."""
    head: str = "scalar"
    """scalar: a number for every prefix, by a pass of the reward's own. trunk[:RANK]: from the hidden states that the
    steered model computes anyway, without a pass; --layers says after how many layers (two thirds by default)."""
    tune: str | None = None
    """What is trained: head, last:N layers, lora[:RANK], or all; last:2 by default, of a trunk its head. What lies
    below is computed once and cached."""
    objective: Literal["prefix", "sequence"] = "prefix"
    """Bradley-Terry on equal-length prefixes, or on whole responses only."""
    past_end: Literal["drop", "paper"] = "drop"
    """Past the shorter response's end: stop, or compare its finished text with longer prefixes (PARGS's authors)."""
    template: Literal["chat", "raw", "mixed"] = "chat"
    """How prompts are rendered, stored with the reward. chat: by the chat template. raw: as they are, to be continued.
    mixed: texts raw, message lists by the chat template; such a reward guides both."""
    epochs: int = 2
    lr: float | None = None
    """Peak learning rate; by default one that suits --tune."""
    batch_size: int = 32
    """Pairs per step."""
    max_tokens: int = 512
    """Longest prompt and response together; longer responses are cut, longer prompts are bad rows."""
    held_out: float = 0.1
    """Share of the prompts kept for the accuracies."""
    save_steps: int | None = None
    """Steps between checkpoints; a tenth of the run by default."""
    eval_steps: int | None = None
    """Steps between evaluations on held-out prompts; an epoch by default."""
    patience: int | None = None
    """Stop after so many evaluations without a better held-out prefix accuracy, and keep the best weights. One half of
    the held-out prompts decides, the other reports."""
    gradient_checkpointing: bool = False
    """Train in less memory and more time: what the backward pass needs is computed again."""
    precision: Literal["auto", "full", "bfloat16"] = "auto"
    """bfloat16: compute in it where that loses nothing, with float32 weights; full: all in --dtype. auto is bfloat16
    on GPUs that have it."""
    report_to: Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], tyro.conf.UseAppendAction] = ()
    """Send loss, learning rate and accuracies there too, as the library of that name is set up."""
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    resume: bool = False
    """Go on from the last whole checkpoint in --out."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""
    json: bool = False
    """Print the metrics as JSON."""

    def run(self) -> int:
        from midcourse.language_model import resolve_device
        from midcourse.train import processes

        # Before any model is loaded: of several processes, each has to know its own GPU.
        with processes.joined(resolve_device(self.device)):
            return self._train()

    def _train(self) -> int:
        from midcourse.train import processes
        from midcourse.train.card import accuracy_table, calibration_table, temperature_lines
        from midcourse.train.training import Interrupted, Settings, check_settings, train

        settings = Settings(
            self.epochs,
            self.lr,
            self.batch_size,
            self.max_tokens,
            self.held_out,
            save_steps=self.save_steps,
            seed=self.seed,
            eval_steps=self.eval_steps,
            patience=self.patience,
            gradient_checkpointing=self.gradient_checkpointing,
            precision=self.precision,
        )
        processes.everywhere(lambda: check_settings(settings))
        reward, comparisons = processes.everywhere(self._load)
        try:
            metrics = train(reward, comparisons, self.out, settings, resume=self.resume, report_to=self.report_to)
        except Interrupted as stop:
            if processes.first():
                print(f"midcourse: {stop}", file=sys.stderr)
            return 128 + stop.signal
        if not processes.first():
            return 0
        if self.json:
            print(json.dumps(metrics, indent=1))
            return 0
        title = f"Held-out pair accuracy ({metrics['pairs']} pairs of {metrics['prompts']} prompts, 95% intervals)"
        table(title, ("compared at", "accuracy", "interval"), accuracy_table(metrics))
        if calibrated := calibration_table(metrics):
            title = "Expected calibration error of the probabilities (95% intervals; after: judged on other prompts)"
            table(title, ("compared at", "before", "after", "by chance"), calibrated)
            print(*temperature_lines(metrics), sep="\n")
        padding = metrics["padding"]
        print(f"padding: {padding['share']:.1%} of the tokens, {padding['without_buckets']:.1%} without length buckets")
        if stopping := metrics.get("early_stopping"):
            print(f"stopped after step {stopping['stopped']} of {stopping['planned']}, kept step {stopping['step']}")
        print(f"reward, card and curves: {self.out}")
        return 0

    def _load(self) -> "tuple[RewardModel, list[Comparison]]":
        from midcourse.loading import head_of
        from midcourse.train import processes
        from midcourse.train.comparisons import read_comparisons
        from midcourse.train.prefixes import prompt_limit
        from midcourse.train.rows import write_bad_rows

        rejects: list[BadRow] | None = [] if self.skip_bad_rows else None
        # A look at the file before the model is loaded: a wrong path should not cost seconds.
        read_comparisons(self.comparisons, rejects=rejects)
        make, head = head_of(self.head)
        reward = make.create(
            self.backbone,
            template=self.template,
            objective=self.objective,
            objective_settings={"past_end": self.past_end},
            layers=self.layers,
            tune=self.tune or ("last:2" if head == "scalar" else "head"),
            head=head,
            seed=self.seed,
            device=self.device,
            dtype=self.dtype,
        )
        rejects = [] if self.skip_bad_rows else None
        comparisons = read_comparisons(self.comparisons, limit=prompt_limit(reward, self.max_tokens), rejects=rejects)
        if rejects and self.skip_bad_rows and processes.first():
            write_bad_rows(self.skip_bad_rows, rejects)
            print(f"skipped {len(rejects)} bad rows, written to {self.skip_bad_rows}", file=sys.stderr)
        return reward, comparisons
