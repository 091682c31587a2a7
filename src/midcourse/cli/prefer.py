"""midcourse prefer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from midcourse.cli.console import UsageError, bad_rows, parse_arguments, table
from midcourse.cli.groups import JOINED, Machine, Rows, Server, TemplateArgument, TemplateName
from midcourse.files import as_json

if TYPE_CHECKING:
    from midcourse.data.comparisons import Comparison
    from midcourse.data.prefer import Summary
    from midcourse.data.rollouts import Rollout


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write, and where."""

    out: Path
    """JSONL of comparisons, written whole."""
    json: bool = False
    """Print the summary as JSON."""


@dataclass(frozen=True, kw_only=True)
class Decide:
    """What decides which response is preferred. By default the rewards that the rollouts have."""

    by_reward: str | None = None
    """A shipped reward, a folder that midcourse train wrote, a function (vader, profanity, MODULE:FUNCTION), a sequence
    classifier, or a causal LM."""
    by_function: str | None = None
    """A function from the response to a number: vader (sentiment), profanity (1 - its probability), or any
    MODULE:FUNCTION."""
    template: TemplateName | None = None
    """How prompts were rendered in the training of a causal LM in --by-reward (raw by default) or of a sequence
    classifier (its chat template by default, if it has one). Other rewards know theirs."""
    label: str | None = None
    """The label to reward, by its log-odds, of a sequence classifier that has several."""
    template_argument: TemplateArgument = ()
    """A value for the chat template of such a model, as enable_thinking=false."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A language model that decides, behind an OpenAI-compatible server."""

    judge: str | None = None
    """The server's address, such as http://localhost:8000/v1. Each pair is asked about in both orders; its verdicts
    are kept in OUT's name with .verdicts.jsonl."""
    resume: bool = False
    """Do not ask again for verdicts that are there already."""
    server: Annotated[Server, JOINED] = field(default_factory=Server)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Which pairs become comparisons."""

    pairs: Literal["bradley-terry", "best-worst", "all"] | None = None
    """bradley-terry (the default): every pair, preferences drawn by the rewards' difference. best-worst: one pair of
    each prompt. all: every pair, the higher reward preferred. A judge decides all."""
    scale: float = 1.0
    """Sharpness of the draws: P(a over b) = sigmoid(scale (reward of a - reward of b))."""
    min_gap: float = 0.0
    """Pairs whose rewards differ by no more than this are ties, and left out."""
    pairs_per_prompt: int | None = None
    """At most so many pairs of each prompt, at random; all by default."""
    seed: int = 0
    """Seed of all draws."""


@dataclass(kw_only=True)
class Prefer:
    """Turn responses to the same prompt into comparisons.

    midcourse sample writes the responses, midcourse train reads the comparisons. A reward, a function or a judge says
    which of two responses is preferred; without any, the rewards that the rollouts have do.
    """

    rollouts: Annotated[Path, tyro.conf.Positional]
    """What midcourse sample wrote, or rows of the same fields: JSONL (also .gz), CSV or Parquet."""
    write: Write
    read: Rows = field(default_factory=Rows)
    decide: Decide = field(default_factory=Decide)
    judge: Judge = field(default_factory=Judge)
    pairs: Pairs = field(default_factory=Pairs)
    machine: Machine = field(default_factory=Machine)

    def run(self) -> int:
        from midcourse.data.prefer import write_comparisons
        from midcourse.data.rollouts import read_samples

        out = self.write.out
        if out.suffix not in (".jsonl", ".json"):
            raise UsageError(f"--out {out} is no JSON Lines; name a file that ends in .jsonl, as train reads it")
        if out.exists() and not self.judge.resume:
            raise UsageError(f"{out} exists already; name another file for --out")
        self._check_judge()
        with bad_rows(self.read.skip_bad_rows) as rejects:
            rollouts = read_samples(self.rollouts, rejects=rejects)
        comparisons, summary = self._decided(rollouts)
        write_comparisons(out, comparisons)
        if self.write.json:
            print(as_json(asdict(summary), indent=1))
        else:
            table(f"comparisons: {out}", ("what", "count"), summary_rows(summary))
        return 0

    def _check_judge(self) -> None:
        decide, judge, server, pairs = self.decide, self.judge, self.judge.server, self.pairs
        given = [flag for flag in (decide.by_reward, decide.by_function, judge.judge) if flag is not None]
        if len(given) > 1:
            raise UsageError("--by-reward, --by-function and --judge exclude one another; give one of them")
        if judge.judge is None:
            for flag, value in (("--judge-model", server.judge_model), ("--rubric", server.rubric)):
                if value is not None:
                    raise UsageError(f"{flag} is for a judge; give its address with --judge")
            if judge.resume:
                raise UsageError("--resume goes on with a judge's verdicts; without --judge leave it out")
            return
        if not server.judge_model or not server.rubric:
            raise UsageError("--judge needs --judge-model NAME and --rubric TEXT")
        if pairs.pairs not in (None, "all") or pairs.scale != 1 or pairs.min_gap:
            raise UsageError("a judge gives no numbers; leave --pairs, --scale and --min-gap out")

    def _decided(self, rollouts: "list[Rollout]") -> "tuple[list[Comparison], Summary]":
        from midcourse.data.prefer import prefer, prefer_by_judge
        from midcourse.data.sample import rewards_of
        from midcourse.rewards.named import load_label

        decide, judge, server, pairs = self.decide, self.judge, self.judge.server, self.pairs
        if judge.judge is not None:
            return prefer_by_judge(
                rollouts,
                server.at(judge.judge),
                self.write.out.with_suffix(".verdicts.jsonl"),
                pairs_per_prompt=pairs.pairs_per_prompt,
                seed=pairs.seed,
                concurrency=server.concurrency,
                resume=judge.resume,
            )
        reward = load_label(
            decide.by_reward,
            decide.by_function,
            template=decide.template,
            template_arguments=parse_arguments(decide.template_argument),
            label=decide.label,
            **asdict(self.machine),
        )
        return prefer(
            rollouts,
            rewards_of(reward, rollouts) if reward is not None else None,
            **asdict(pairs) | {"pairs": pairs.pairs or "bradley-terry"},
        )


def summary_rows(summary: "Summary") -> Sequence[tuple[str, str]]:
    """Return the figures there are, in words, for a person."""
    kinds = {
        "pairs": "comparisons",
        "pairs_of_prompts": "prompts they are of",
        "rollouts": "rollouts",
        "prompts": "prompts",
        "empty": "empty responses, left out",
        "repeated": "repeated responses, left out",
        "judged": "pairs judged",
        "ties": "ties, left out",
        "contradictions": "of these, orders contradict",
        "unparseable": "unreadable verdicts, left out",
        "agreement": "agreement of both orders",
        "mean_gap": "mean gap",
        "bayes_accuracy": "accuracy no reward can exceed",
    }
    values = asdict(summary)
    return [
        (words, f"{values[name]:.3f}" if isinstance(values[name], float) else str(values[name]))
        for name, words in kinds.items()
        if values[name] is not None
    ]
