"""midcourse prefer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from midcourse.cli.console import UsageError, read_text, table
from midcourse.files import as_json

if TYPE_CHECKING:
    from midcourse.data.comparisons import Comparison
    from midcourse.data.prefer import Summary
    from midcourse.data.sample import Sampled
    from midcourse.lm.prompt import Template
    from midcourse.rewards.contract import Reward


@dataclass
class Prefer:
    """Turn samples of the same prompt into comparisons that midcourse train reads.

    Without --by-reward, --by-function or --judge, the rewards that the rollouts have decide.
    """

    rollouts: Annotated[Path, tyro.conf.Positional]
    """What midcourse sample wrote."""
    out: Path
    """JSONL of comparisons, written whole."""
    by_reward: str | None = None
    """What decides: a folder that midcourse train wrote, a sequence classifier of one label, or a causal LM."""
    by_function: str | None = None
    """Or a Python function from the response to a number, as MODULE:NAME; or vader (sentiment) or profanity
    (1 - its probability)."""
    judge: str | None = None
    """Or a model behind an OpenAI-compatible server: its address, such as http://localhost:8000/v1. Each pair is asked
    about in both orders; its verdicts are kept in OUT's name with .verdicts.jsonl."""
    judge_model: str | None = None
    """The server's name of the model."""
    rubric: str | None = None
    """What makes a response the better one: a text, or a file with it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable of the server's API key, where it wants one."""
    concurrency: int = 8
    """Pairs that the judge is asked about at a time."""
    resume: bool = False
    """Do not ask the judge again for verdicts that are there already."""
    pairs: Literal["bradley-terry", "best-worst", "all"] | None = None
    """bradley-terry (the default): every pair, preferences drawn by the rewards' difference; best-worst: of each
    prompt; all: every pair, the higher reward preferred. A judge decides all."""
    scale: float = 1.0
    """Of the draws: P(a over b) = sigmoid(scale (reward of a - reward of b))."""
    min_gap: float = 0.0
    """Pairs whose rewards differ by no more than this are ties, and left out."""
    pairs_per_prompt: int | None = None
    """At most so many pairs of each prompt, at random."""
    seed: int = 0
    template: Literal["chat", "raw", "mixed"] | None = None
    """Of a causal LM in --by-reward; the others know theirs."""
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False
    """Print the summary as JSON."""

    def run(self) -> int:
        from midcourse.data.prefer import write_comparisons
        from midcourse.data.sample import read_samples

        if self.out.suffix not in (".jsonl", ".json"):
            raise UsageError(f"--out {self.out} is no JSON Lines; name a file that ends in .jsonl, as train reads it")
        if self.out.exists() and not self.resume:
            raise UsageError(f"{self.out} exists already; name another file for --out")
        self._check_judge()
        comparisons, summary = self._decided(read_samples(self.rollouts))
        write_comparisons(self.out, comparisons)
        if self.json:
            print(as_json(asdict(summary), indent=1))
        else:
            table(f"comparisons: {self.out}", ("what", "count"), summary_rows(summary))
        return 0

    def _check_judge(self) -> None:
        given = [flag for flag in (self.by_reward, self.by_function, self.judge) if flag is not None]
        if len(given) > 1:
            raise UsageError("--by-reward, --by-function and --judge exclude one another; give one of them")
        if self.judge is None:
            for flag, value in (("--judge-model", self.judge_model), ("--rubric", self.rubric)):
                if value is not None:
                    raise UsageError(f"{flag} is for a judge; give its address with --judge")
            if self.resume:
                raise UsageError("--resume goes on with a judge's verdicts; without --judge leave it out")
            return
        if not self.judge_model or not self.rubric:
            raise UsageError("--judge needs --judge-model NAME and --rubric TEXT")
        if self.pairs not in (None, "all") or self.scale != 1 or self.min_gap:
            raise UsageError("a judge gives no numbers; leave --pairs, --scale and --min-gap out")

    def _decided(self, rollouts: "list[Sampled]") -> "tuple[list[Comparison], Summary]":
        from midcourse.data.judge import Judge
        from midcourse.data.prefer import prefer, prefer_by_judge
        from midcourse.data.sample import rewards_of

        if self.judge is not None:
            judge = Judge(
                self.judge,
                self.judge_model or "",
                read_text(self.rubric or "", "--rubric"),
                api_key_env=self.api_key_env,
            )
            return prefer_by_judge(
                rollouts,
                judge,
                self.out.with_suffix(".verdicts.jsonl"),
                pairs_per_prompt=self.pairs_per_prompt,
                seed=self.seed,
                concurrency=self.concurrency,
                resume=self.resume,
            )
        reward = load_label(self.by_reward, self.by_function, self.template, self.device, self.dtype)
        return prefer(
            rollouts,
            rewards_of(reward, rollouts) if reward is not None else None,
            pairs=self.pairs or "bradley-terry",
            scale=self.scale,
            min_gap=self.min_gap,
            pairs_per_prompt=self.pairs_per_prompt,
            seed=self.seed,
        )


def load_label(
    reward: str | None, function: str | None, template: "Template | None", device: str, dtype: str
) -> "Reward | None":
    """What gives the numbers, by the name of a reward or of a function; None without either."""
    from midcourse.rewards.gold import GOLDS, load_gold
    from midcourse.rewards.named import load_reward
    from midcourse.rewards.text import FunctionReward

    if reward is not None and function is not None:
        raise UsageError("a reward and a function cannot both give the numbers; leave one out")
    if reward is not None:
        return load_reward(reward, template=template, device=device, dtype=dtype)
    if function in GOLDS:
        return FunctionReward(load_gold(function))
    return FunctionReward.load(function) if function is not None else None


def summary_rows(summary: "Summary") -> Sequence[tuple[str, str]]:
    """The figures there are, for a person."""
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
