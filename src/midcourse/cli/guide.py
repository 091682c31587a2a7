"""midcourse guide."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from midcourse.cli import groups
from midcourse.cli.console import UsageError, bad_rows, parse_columns
from midcourse.cli.groups import ChatModel, TemplateName
from midcourse.files import as_json
from midcourse.terminal import say, tell

if TYPE_CHECKING:
    from midcourse.decode.methods import AnyMethod
    from midcourse.decode.steps import Generation
    from midcourse.lm.language_model import LanguageModel
    from midcourse.lm.prompt import Prompt, Template
    from midcourse.rewards.contract import Reward


@dataclass(frozen=True, kw_only=True)
class Read:
    """What to write on from: --prompt or --prompts."""

    prompt: str | None = None
    """The prompt, a text."""
    prompts: Path | None = None
    """Rows with a field "prompt" (text or messages): JSONL (also .gz), CSV or Parquet."""
    skip_bad_rows: Path | None = None
    """Write bad rows of --prompts to this file and go on, instead of stopping at the first."""
    columns: tuple[str, ...] = ()
    """Fields that the file has by other names, as prompt=instruction chosen=better."""
    template: TemplateName | None = None
    """chat: a prompt is the user's message. raw: it is continued. mixed: texts are continued, message lists are chats.
    By default the reward's; without one that has its own, raw."""


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """What guides. Several rewards add up."""

    reward: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A shipped reward, a folder that midcourse train wrote, a function of the response (vader, profanity,
    MODULE:FUNCTION), a sequence classifier, or a causal LM (a reward of the vocabulary); with =WEIGHT if
    you like (my-reward=2.5)."""
    reward_function: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A function from the response to a number: vader (sentiment), profanity (1 - its probability), or any
    MODULE:FUNCTION; with =WEIGHT if you like."""
    label: str | None = None
    """The label to reward, by its log-odds, of a sequence classifier that has several."""
    share_weights: bool = False
    """Build the rewards on the language model's own weights: one copy in memory for it and all of them. It saves
    memory, not time. Trunk rewards share anyway."""
    allow_other_weights: bool = False
    """Let a trunk reward guide a language model of the same shape and tokens whose weights are not those of its
    training."""


@dataclass(frozen=True, kw_only=True)
class HowToGuide:
    """How to guide, and settings that a method has; by default those of its paper."""

    method: str | None = None
    """The method; midcourse methods lists them. best-of-n:N and cd-blockwise:N set the number of samples. By default
    pargs, or for a lone soft value soft-value, which refuses any other weight than its own."""
    reward_weight: float | None = None
    """Multiplier of all rewards; by default 1 if one has a weight of its own, else the reward's or the method's."""
    samples: int | None = None
    """Samples of best-of-n, or of a block in cd-blockwise."""
    block_tokens: int | None = None
    """Tokens of a block in cd-blockwise."""
    reward_threshold: float | None = None
    """The reward that a good response has, on the reward's own scale, for cards."""
    entropy_threshold: float | None = None
    """Entropy in nats above which a segment of cards ends."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How far the rewards may pull, and when they need not be asked."""

    kl_per_token: float | None = None
    """Nats of guidance KL that a token may have: the largest weight within them is used. No limit by default."""
    kl_budget: float | None = None
    """Nats of guidance KL that a response may have. No limit by default."""
    skip_tolerance: float | None = None
    """Ask no reward at a step if none in the range seen so far could change the choice by more than this (total
    variation). By default every step asks."""


@dataclass(frozen=True, kw_only=True)
class Sampling(groups.Responses):
    """How tokens are drawn, and when a response ends."""

    top_k: int | None = None
    """Candidates per token; by default the method's."""
    top_p: float | None = None
    """Share of the probability to keep: of the candidates only the likeliest that hold this much. By default the
    method's, which is all of it."""
    temperature: float | None = None
    """Divides the guided log-probabilities: below 1 the likely becomes likelier still, 0 takes the likeliest token. By
    default the method's."""
    stop: tuple[str, ...] = ()
    """Strings that end a response."""
    always_offer_eos: bool = False
    """Let the end of the text be a candidate even if the language model ranks it below the top k."""
    seed: int = 0
    """Seed of the first row; row i uses seed + i."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write, and where; by default the text to the terminal."""

    out: Path | None = None
    """JSONL to append finished rows to. What was asked is kept beside it, in OUT.asked.json."""
    resume: bool = False
    """Keep the rows of --out, which have to be asked for as they were, and write the missing ones."""
    keep_all: bool = False
    """Write all samples of best-of-n, not the best alone (rows of --out and --json)."""
    json: bool = False
    """Print rows as JSON."""
    stream: bool = False
    """Print text as it is written (one prompt)."""


@dataclass(frozen=True, kw_only=True)
class Compiled(ChatModel):
    """The language model, and what computes."""

    compile: bool = False
    """Compile the steps of the language model and the rewards: about a minute at first, then faster. For many
    prompts."""


@dataclass(kw_only=True)
class GuideCommand:
    """Write with a language model that rewards steer."""

    read: Read = field(default_factory=Read)
    rewards: Rewards = field(default_factory=Rewards)
    method: HowToGuide = field(default_factory=HowToGuide)
    budget: Budget = field(default_factory=Budget)
    sampling: Sampling = field(default_factory=Sampling)
    write: Write = field(default_factory=Write)
    model: Compiled = field(default_factory=Compiled)

    def run(self) -> int:
        from midcourse.data.prompts import check_out, read_prompts, write_guided
        from midcourse.decode.methods import Method
        from midcourse.decode.methods import method as named_method
        from midcourse.decode.request import agreed_template

        rewards, out = self.rewards, self.write.out
        given = [parse_reward(text) for text in rewards.reward]
        functions = [parse_reward(text) for text in rewards.reward_function]
        name = self.method.method or default_method([name for name, _ in given], functions)
        method = named_method(name)
        self._check(method)
        if self.read.prompts:
            # What cannot be read at all is refused before models are loaded.
            read_prompts(self.read.prompts, rejects=[], renamed=parse_columns(self.read.columns))
        if out:
            check_out(out, self.write.resume)
        self._check_kinds([name for name, _ in given], [name for name, _ in functions])
        lm = self.model.load()
        guides, weight = self._guides(lm, given, functions, tokenwise=isinstance(method, Method))
        if self.model.compile:
            _compile(lm, guides)
        template = agreed_template(guides, self.read.template)
        self.model.check_used(template)
        prompts = self._prompts(lm, template)
        settings: dict[str, Any] = asdict(self.method) | asdict(self.budget) | asdict(self.sampling)
        settings |= {
            "method": name,
            "reward_weight": weight,
            "template": self.read.template,
            "keep_all": self.write.keep_all,
        }
        if out:
            written, there = write_guided(out, lm, prompts, guides, settings, resume=self.write.resume)
            before = f", {there} were there already" if there else ""
            tell(f"{written} rows written to {out}{before}")
            return 0
        _print_rows(lm, prompts, guides, settings, self.write)
        return 0

    def _prompts(self, lm: "LanguageModel", template: "Template") -> "Sequence[Prompt]":
        from midcourse.data.prompts import read_prompts, unrenderable

        if not self.read.prompts:
            return [self.read.prompt or ""]
        columns = parse_columns(self.read.columns)
        with bad_rows(self.read.skip_bad_rows) as rejects:
            return read_prompts(self.read.prompts, limit=unrenderable(lm, template), rejects=rejects, renamed=columns)

    def _check(self, method: "AnyMethod") -> None:
        """Refuse flags that do not go together."""
        from midcourse.decode.methods import BestOfN

        read, write = self.read, self.write
        if (read.prompt is None) == (read.prompts is None):
            raise UsageError("give either --prompt TEXT or --prompts FILE.jsonl")
        if read.skip_bad_rows and not read.prompts:
            raise UsageError("--skip-bad-rows is for the rows of --prompts; name that file")
        if read.columns and not read.prompts:
            raise UsageError("--columns is for the fields of --prompts; name that file")
        if write.stream and (read.prompt is None or write.json):
            raise UsageError(
                "--stream prints the text of one --prompt as it is written; leave --prompts and --json away"
            )
        if write.resume and not write.out:
            raise UsageError("--resume goes on with the rows of --out; name that file")
        if write.keep_all and not (isinstance(method, BestOfN) and (write.out or write.json)):
            raise UsageError("--keep-all writes the samples of --method best-of-n as JSON; add --out FILE or --json")

    def _check_kinds(self, names: Sequence[str], functions: Sequence[str]) -> None:
        """Refuse unknown rewards and functions, and flags that do not suit them, before the LM is loaded."""
        from midcourse.rewards.named import kind_of
        from midcourse.rewards.text import FunctionReward
        from midcourse.rewards.trunk import TrunkReward

        for name in functions:
            FunctionReward.load(name)
        kinds = [kind_of(name) for name in names]
        if self.rewards.share_weights and all(kind is FunctionReward for kind in kinds):
            raise UsageError("--share-weights is for rewards that midcourse train wrote; name one with --reward")
        if self.rewards.allow_other_weights and TrunkReward not in kinds:
            raise UsageError("--allow-other-weights is for trunk rewards; name one with --reward, or leave it out")

    def _guides(
        self,
        lm: "LanguageModel",
        given: Sequence[tuple[str, float | None]],
        functions: Sequence[tuple[str, float | None]],
        *,
        tokenwise: bool,
    ) -> "tuple[list[tuple[Reward, float]], float | None]":
        """Load the rewards, with their weights and the common one; warn of those from other weights than the LM's."""
        from midcourse.rewards.named import kind_of, named_rewards, other_backbone, weighted
        from midcourse.rewards.trunk import TrunkReward

        names = [name for name, _ in given]
        rewards = named_rewards(
            lm,
            names,
            [name for name, _ in functions],
            template=self.read.template,
            template_arguments=self.model.arguments,
            label=self.rewards.label,
            share_weights=self.rewards.share_weights,
            allow_other_weights=self.rewards.allow_other_weights,
            **asdict(self.model.machine),
        )
        for name in names if self.rewards.allow_other_weights else ():
            if kind_of(name) is TrunkReward and (backbone := other_backbone(name, lm)):
                tell(
                    f"warning: {name} was trained on the states of {backbone}, and {lm.name} has other weights; "
                    "its rewards may mean less here"
                )
        own = [weight for _, weight in (*given, *functions)]
        return weighted(rewards, own, self.method.reward_weight, tokenwise=tokenwise)


def default_method(rewards: Sequence[str], functions: Sequence[Any]) -> str:
    """Return soft-value for a lone soft value, which guides exactly at its own weight, and pargs for all else."""
    from midcourse.rewards.info import place_of, read_info
    from midcourse.rewards.named import kind_of
    from midcourse.rewards.scalar import RewardModel

    if len(rewards) == 1 and not functions and issubclass(kind_of(rewards[0]), RewardModel):
        return (
            "soft-value" if read_info(Path(place_of(rewards[0]))).objective_settings.get("value") == "soft" else "pargs"
        )
    return "pargs"


def _compile(lm: "LanguageModel", guides: "list[tuple[Reward, float]]") -> None:
    from midcourse.lm.caches import compile_steps

    compile_steps(lm.model)
    for reward, _ in guides:
        for model in reward.models:
            compile_steps(model)


def _print_rows(
    lm: "LanguageModel",
    prompts: "Sequence[Prompt]",
    guides: "list[tuple[Reward, float]]",
    settings: dict[str, Any],
    write: Write,
) -> None:
    from midcourse.data.prompts import guided_row
    from midcourse.decode.engine import stream
    from midcourse.decode.steps import Step
    from midcourse.progress import progress

    if write.stream:
        for _, event in stream(lm, prompts, guides, **settings):
            say(event.text, end="") if isinstance(event, Step) else say("")
        return
    early: dict[int, Generation] = {}  # those that have to wait for an earlier row
    shown = 0
    with progress("writing", len(prompts) * settings["max_new_tokens"]) as advance:
        for row, event in stream(lm, prompts, guides, **settings):
            if isinstance(event, Step):
                advance(1)
                continue
            early[row] = event
            advance(settings["max_new_tokens"] - len(event.steps))
            while shown in early:
                done = early.pop(shown)
                if write.json:
                    print(as_json(guided_row(shown, done), ensure_ascii=False), flush=True)
                else:
                    _show(done)
                shown += 1


def _show(generation: "Generation") -> None:
    """Print a response for a person: its text, and one line of figures."""
    say(generation.text)
    figures = [f"{len(generation.steps)} tokens, {generation.finish_reason}"]
    if generation.reward is not None:
        figures.append(f"reward {generation.reward:.2f}")
        if generation.guidance_kl is not None:
            figures.append(f"guidance KL {generation.guidance_kl:.1f} nats")
    if generation.total_kl is not None:
        figures.append(f"total KL {generation.total_kl:.1f} nats")
    tell("  ".join(f"[{figure}]" for figure in figures))


def parse_reward(text: str) -> tuple[str, float | None]:
    """Return ("my-reward", 2.5) for "my-reward=2.5"; the weight is None if none is given."""
    folder, mark, weight = text.rpartition("=")
    if not mark or Path(text).is_dir():
        return text, None
    try:
        return folder, float(weight)
    except ValueError as error:
        raise UsageError(f"weight {weight!r} in --reward {text} is not a number; write {folder}=2, say") from error
