"""midcourse dpo."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from midcourse.cli.console import table
from midcourse.files import as_json

if TYPE_CHECKING:
    from midcourse.data.formats import BadRow


@dataclass
class Dpo:
    """Train the language model itself on comparisons, by direct preference optimisation of a LoRA adapter (TRL).

    The baseline that guiding is compared with. OUT is a PEFT adapter that transformers and peft load.
    """

    data: Annotated[Path, tyro.conf.Positional]
    """Comparisons: JSONL (also .gz), CSV or Parquet."""
    out: Path
    """Folder of the policy."""
    lm: str = "smollm2"
    """Causal LM to train, and the reference: smollm2, a folder, or a Hub id."""
    beta: float = 0.1
    """How much a nat of log-ratio to the reference weighs; the smaller, the farther the policy may go."""
    rank: int = 16
    """Of the adapter."""
    template: Literal["chat", "raw", "mixed"] = "chat"
    """How prompts are rendered. chat: by the chat template. raw: as they are, to be continued. mixed: texts raw, lists
    of messages by the chat template."""
    epochs: int = 2
    lr: float = 1e-4
    """Peak learning rate."""
    batch_size: int = 8
    """Pairs per step."""
    max_tokens: int = 512
    """Longest prompt and response together; longer responses are cut, longer prompts are bad rows."""
    held_out: float = 0.1
    """Share of the prompts kept for the accuracies."""
    save_steps: int | None = None
    """Steps between checkpoints; a tenth of the run by default."""
    eval_steps: int | None = None
    """Steps between evaluations on held-out prompts; an epoch by default."""
    gradient_checkpointing: bool = False
    """Train in less memory and more time."""
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    resume: bool = False
    """Go on from the last whole checkpoint in --out."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""
    json: bool = False
    """Print the figures as JSON."""

    def run(self) -> int:
        from midcourse.data.comparisons import read_comparisons
        from midcourse.data.encoded import prompt_limit
        from midcourse.data.formats import write_bad_rows
        from midcourse.integrations.trl import train_policy
        from midcourse.lm.language_model import LanguageModel
        from midcourse.rewards.vocabulary import VocabularyReward
        from midcourse.train.card import accuracy_table, pairs_title
        from midcourse.train.settings import Settings, check_settings
        from midcourse.train.stopping import Interrupted

        settings = Settings(
            self.epochs,
            self.lr,
            self.batch_size,
            self.max_tokens,
            self.held_out,
            weight_decay=0.0,
            save_steps=self.save_steps,
            seed=self.seed,
            eval_steps=self.eval_steps,
            gradient_checkpointing=self.gradient_checkpointing,
        )
        check_settings(settings)
        read_comparisons(self.data, rejects=[])  # what cannot be read at all is refused before a model is loaded
        lm = LanguageModel.load(self.lm, device=self.device, dtype=self.dtype)
        limit = prompt_limit(VocabularyReward(lm.model, lm.tokenizer, template=self.template), self.max_tokens)
        rejects: list[BadRow] | None = [] if self.skip_bad_rows else None
        comparisons = read_comparisons(self.data, limit=limit, rejects=rejects)
        if rejects and self.skip_bad_rows:
            write_bad_rows(self.skip_bad_rows, rejects)
            print(f"skipped {len(rejects)} bad rows, written to {self.skip_bad_rows}", file=sys.stderr)
        try:
            metrics = train_policy(
                lm,
                comparisons,
                self.out,
                settings,
                beta=self.beta,
                rank=self.rank,
                template=self.template,
                resume=self.resume,
            )
        except Interrupted as stop:
            print(f"midcourse: {stop}", file=sys.stderr)
            return 128 + stop.signal
        if self.json:
            print(as_json(metrics, indent=1))
            return 0
        title = f"Held-out accuracy of beta log pi/pi_ref ({pairs_title(metrics)})"
        table(title, ("compared at", "accuracy", "interval"), accuracy_table(metrics))
        print(f"loss {metrics['loss']:.4f}, 0.6931 before; log-ratio margin {metrics['log_ratio_margin']:+.3f} nats")
        print(f"policy (PEFT adapter), card and metrics: {self.out}")
        return 0
