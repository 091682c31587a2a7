"""midcourse train."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from midcourse.cli.console import table

if TYPE_CHECKING:
    from midcourse.train.comparisons import BadRow


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
    template: Literal["chat", "raw"] = "chat"
    """How prompts are rendered; stored with the reward."""
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
        from midcourse.loading import head_of
        from midcourse.train.card import accuracy_table, calibration_table, temperature_lines
        from midcourse.train.comparisons import read_comparisons, write_bad_rows
        from midcourse.train.prefixes import prompt_limit
        from midcourse.train.training import Interrupted, Settings, check_settings, train

        settings = Settings(
            self.epochs,
            self.lr,
            self.batch_size,
            self.max_tokens,
            self.held_out,
            save_steps=self.save_steps,
            seed=self.seed,
        )
        check_settings(settings)
        rejects: list[BadRow] | None = [] if self.skip_bad_rows else None
        # A look at the file before the model is loaded: a wrong path should not cost seconds.
        read_comparisons(self.comparisons, rejects=rejects)
        make, head = head_of(self.head)
        reward = make.create(
            self.backbone,
            template=self.template,
            objective=self.objective,
            past_end=self.past_end,
            layers=self.layers,
            tune=self.tune or ("last:2" if head == "scalar" else "head"),
            head=head,
            seed=self.seed,
            device=self.device,
            dtype=self.dtype,
        )
        rejects = [] if self.skip_bad_rows else None
        comparisons = read_comparisons(self.comparisons, limit=prompt_limit(reward, self.max_tokens), rejects=rejects)
        if rejects and self.skip_bad_rows:
            write_bad_rows(self.skip_bad_rows, rejects)
            print(f"skipped {len(rejects)} bad rows, written to {self.skip_bad_rows}", file=sys.stderr)
        try:
            metrics = train(reward, comparisons, self.out, settings, resume=self.resume)
        except Interrupted as stop:
            print(f"midcourse: {stop}", file=sys.stderr)
            return 128 + stop.signal
        if self.json:
            print(json.dumps(metrics, indent=1))
        else:
            title = f"Held-out pair accuracy ({metrics['pairs']} pairs of {metrics['prompts']} prompts, 95% intervals)"
            table(title, ("compared at", "accuracy", "interval"), accuracy_table(metrics))
            title = "Expected calibration error of the probabilities (95% intervals; after: judged on other prompts)"
            table(title, ("compared at", "before", "after", "by chance"), calibration_table(metrics))
            print(*temperature_lines(metrics), sep="\n")
            print(f"reward, card and curves: {self.out}")
        return 0
