"""midcourse figa."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from midcourse.cli.console import bad_rows, parse_columns
from midcourse.cli.dpo import Write
from midcourse.cli.groups import ChatModel, Rows, TemplateName
from midcourse.files import as_json
from midcourse.ppo.settings import FigaSettings, check_figa
from midcourse.terminal import say


@dataclass(kw_only=True)
class Figa:
    """Train the model on edits, by weighted likelihood (FIGA).

    What an edit added becomes likelier, what it took away less likely: no reward, no responses of the model's own. The
    cheap baseline of midcourse ppo; its folder is a policy too.
    """

    data: Annotated[Path, tyro.conf.Positional]
    """Edits: JSONL (also .gz), CSV or Parquet, or what midcourse edits label wrote."""
    read: Rows = field(default_factory=Rows)
    write: Write
    training: FigaSettings = field(default_factory=FigaSettings)
    template: TemplateName = "raw"
    """How prompts are rendered. chat: by the chat template. raw: as they are, to be continued. mixed: texts raw, lists
    of messages by the chat template."""
    align: Literal["tokens", "words"] = "tokens"
    """How it is found what an edit changed. tokens: among token ids. words: among words, whose tokens all count as
    changed."""
    model: ChatModel = field(default_factory=ChatModel)
    """The language model to train, and what computes."""

    def run(self) -> int:
        from midcourse.data.edits import read_edits
        from midcourse.data.encoded import prompt_limit
        from midcourse.ppo.figa import train_on_edits
        from midcourse.rewards.vocabulary import VocabularyReward

        check_figa(self.training)
        columns = parse_columns(self.read.columns)
        # What cannot be read at all is refused before a model is loaded.
        read_edits(self.data, rejects=[], renamed=columns)
        self.model.check_used(self.template)
        lm = self.model.load()
        encoder = VocabularyReward(lm.model, lm.tokenizer, template=self.template)
        with bad_rows(self.read.skip_bad_rows) as rejects:
            edits = read_edits(
                self.data, limit=prompt_limit(encoder, self.training.max_tokens), rejects=rejects, renamed=columns
            )
        metrics = train_on_edits(
            lm,
            edits,
            self.write.out,
            self.training,
            template=self.template,
            align=self.align,
            resume=self.write.resume,
        )
        if self.write.json:
            print(as_json(metrics, indent=1))
            return 0
        first, last = metrics[0], metrics[-1]
        say(f"loss {first['loss']:.4f} at first, {last['loss']:.4f} at last; KL {last['kl']:.4f} nats per token")
        say(f"policy, curves.png and card: {self.write.out}")
        return 0
