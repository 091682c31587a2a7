"""midcourse sample."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from midcourse.cli import groups
from midcourse.cli.console import bad_rows, parse_columns
from midcourse.cli.groups import ChatModel, TemplateName
from midcourse.terminal import tell


@dataclass(frozen=True, kw_only=True)
class Read:
    """What to write on from."""

    prompts: Path
    """Rows with a field "prompt" (text or messages): JSONL (also .gz), CSV or Parquet."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""
    columns: tuple[str, ...] = ()
    """Fields that the file has by other names, as prompt=instruction chosen=better."""
    template: TemplateName | None = None
    """How prompts are rendered. chat: as the user's message. raw: as they are, to be continued. mixed: texts raw, lists
    of messages by the chat template. By default that of --label-with; if it has none of its own, raw."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write, and where."""

    out: Path
    """JSONL to append finished rows to. What was asked is kept beside it, in OUT.asked.json."""
    resume: bool = False
    """Keep the rows of --out, which have to be asked for as they were, label those that lack a reward, and write the
    missing ones."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What gives each response its reward, if anything."""

    label_with: str | None = None
    """A shipped reward, a folder that midcourse train wrote, a function (vader, profanity, MODULE:FUNCTION), a sequence
    classifier, or a causal LM. A response that was cut at --max-new-tokens has the reward of a prefix."""
    label_with_function: str | None = None
    """A function from the response to a number: vader (sentiment), profanity (1 - its probability), or any
    MODULE:FUNCTION."""
    label: str | None = None
    """The label to reward, by its log-odds, of a sequence classifier that has several."""


@dataclass(frozen=True, kw_only=True)
class Sampling(groups.Sampling):
    """How the plain language model writes. The defaults are the policy that midcourse guide steers."""

    n: int = 8
    """Responses to each prompt."""
    seed: int = 0
    """Seed of the first sample; sample s of prompt r uses seed + n r + s."""


@dataclass(kw_only=True)
class Sample:
    """Write several responses to every prompt, and label them.

    The plain language model writes: its top 10 at temperature 1 by default, the policy that midcourse guide steers. An
    objective that learns a value has to see what that policy writes.
    """

    read: Read
    write: Write
    label: Label = field(default_factory=Label)
    sampling: Sampling = field(default_factory=Sampling)
    model: ChatModel = field(default_factory=ChatModel)

    def run(self) -> int:
        from midcourse.data.prompts import check_out, read_prompts, unrenderable
        from midcourse.data.sample import sample
        from midcourse.rewards.named import load_label

        columns = parse_columns(self.read.columns)
        template = self.read.template
        # What cannot be read at all is refused before models are loaded.
        read_prompts(self.read.prompts, rejects=[], renamed=columns)
        check_out(self.write.out, self.write.resume)
        label = load_label(
            self.label.label_with,
            self.label.label_with_function,
            template=template,
            label=self.label.label,
            **asdict(self.model.machine),
        )
        lm = self.model.load()
        rendered = template or (label.template if label else None)  # otherwise as the rows that are there were
        self.model.check_used(rendered or "raw")
        with bad_rows(self.read.skip_bad_rows) as rejects:
            prompts = read_prompts(
                self.read.prompts, limit=rendered and unrenderable(lm, rendered), rejects=rejects, renamed=columns
            )
        rollouts = sample(
            lm,
            prompts,
            self.write.out,
            label=label,
            template=template,
            resume=self.write.resume,
            **asdict(self.sampling) | {"top_k": self.sampling.top_k or None},
        )
        finished = sum(rollout.finished for rollout in rollouts)
        rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
        mean = f", mean reward {sum(rewards) / len(rewards):.3f}" if rewards else ""
        tell(f"{len(rollouts)} responses to {len(prompts)} prompts in {self.write.out}: {finished} finished{mean}")
        return 0
