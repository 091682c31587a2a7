"""midcourse dpo."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from midcourse.cli.console import bad_rows, parse_columns, table
from midcourse.cli.groups import ChatModel, Rows, TemplateName
from midcourse.files import as_json
from midcourse.terminal import say, tell
from midcourse.train.settings import CommonSettings


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write, and where."""

    out: Path
    """Folder of the policy: a PEFT adapter that transformers and peft load."""
    resume: bool = False
    """Go on from the last whole checkpoint in --out."""
    json: bool = False
    """Print the figures as JSON."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is trained."""

    beta: float = 0.1
    """How much a nat of log-ratio to the reference weighs; the smaller, the farther the policy may go."""
    rank: int = 16
    """Rank of the LoRA adapter."""
    template: TemplateName = "chat"
    """How prompts are rendered. chat: by the chat template. raw: as they are, to be continued. mixed: texts raw, lists
    of messages by the chat template."""


@dataclass(kw_only=True)
class Dpo:
    """Train the language model itself on comparisons (DPO, LoRA).

    Direct preference optimisation of a LoRA adapter by TRL: the baseline that guiding is compared with.
    """

    data: Annotated[Path, tyro.conf.Positional]
    """Comparisons: JSONL (also .gz), CSV or Parquet."""
    read: Rows = field(default_factory=Rows)
    write: Write
    policy: Policy = field(default_factory=Policy)
    training: CommonSettings = field(
        default_factory=lambda: CommonSettings(lr=1e-4, batch_size=8, weight_decay=0.0),
    )
    model: ChatModel = field(default_factory=ChatModel)
    """The language model to train, which as it is now is the reference too, and what computes."""

    def run(self) -> int:
        from midcourse.data.comparisons import read_comparisons
        from midcourse.data.encoded import prompt_limit
        from midcourse.integrations.trl import train_policy
        from midcourse.rewards.vocabulary import VocabularyReward
        from midcourse.train.card import accuracy_table, cut_text, pairs_title
        from midcourse.train.settings import Settings, check_settings

        settings, policy, out = Settings(**asdict(self.training)), self.policy, self.write.out
        check_settings(settings)
        columns = parse_columns(self.read.columns)
        # What cannot be read at all is refused before a model is loaded.
        read_comparisons(self.data, rejects=[], renamed=columns)
        self.model.check_used(policy.template)
        lm = self.model.load()
        limit = prompt_limit(VocabularyReward(lm.model, lm.tokenizer, template=policy.template), settings.max_tokens)
        with bad_rows(self.read.skip_bad_rows) as rejects:
            comparisons = read_comparisons(self.data, limit=limit, rejects=rejects, renamed=columns)
        metrics = train_policy(lm, comparisons, out, settings, **asdict(policy), resume=self.write.resume)
        if self.write.json:
            print(as_json(metrics, indent=1))
            return 0
        title = f"Held-out accuracy of beta log pi/pi_ref ({pairs_title(metrics)})"
        table(title, ("compared at", "accuracy", "interval"), accuracy_table(metrics))
        say(f"loss {metrics['loss']:.4f}, 0.6931 before; log-ratio margin {metrics['log_ratio_margin']:+.3f} nats")
        if lost := cut_text(metrics):
            tell(f"{lost} --max-tokens is that limit.")
        say(f"policy (PEFT adapter), card and metrics: {out}")
        return 0
