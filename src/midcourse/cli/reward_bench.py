"""midcourse reward-bench."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midcourse.cli.console import UsageError, bad_rows, parse_arguments, parse_columns, table
from midcourse.cli.groups import Model, TemplateArgument, TemplateName
from midcourse.files import as_json
from midcourse.terminal import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Read:
    """What to read."""

    comparisons: tuple[Path, ...]
    """Files of comparisons: JSONL (also .gz), CSV or Parquet. A row's field "subset" names its subset, otherwise the
    file's name does."""
    subset_field: str = "subset"
    """The field that names a row's subset."""
    limit: int | None = None
    """At most so many comparisons of each subset, at random; all by default."""
    max_tokens: int | None = None
    """Longest prompt and response together, in the reward's tokens; by default what it can read, at most 2048. Longer
    comparisons are left out and counted. A classifier reads the end of a long prompt."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""
    columns: tuple[str, ...] = ()
    """Fields that the file has by other names, as prompt=instruction chosen=better."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What to measure: --reward or --reward-function."""

    reward: str | None = None
    """A shipped reward, a folder that midcourse train wrote, a function (vader, profanity, MODULE:FUNCTION), a sequence
    classifier, or a causal LM whose log-probabilities are rewards."""
    reward_function: str | None = None
    """A function from the response to a number: vader (sentiment), profanity (1 - its probability), or any
    MODULE:FUNCTION."""
    template: TemplateName | None = None
    """How prompts were rendered in the training of a causal LM (raw by default) or of a sequence classifier (its chat
    template by default, if it has one). Other rewards know theirs."""
    label: str | None = None
    """The label to reward, by its log-odds, of a sequence classifier that has several."""
    template_argument: TemplateArgument = ()
    """A value for the chat template of such a model, as enable_thinking=false."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write besides the tables."""

    out: Path | None = None
    """Write the figures to this file as JSON, with the versions they were made with."""
    plot: Path | None = None
    """Write the accuracy by share of the response to this file, as a PNG."""
    json: bool = False
    """Print the figures as JSON instead of tables."""


@dataclass(kw_only=True)
class RewardBench:
    """Measure how well a reward orders pairs of responses.

    Pair accuracy at 10, 25, 50, 75 and 100% of the response (both cut to that share of the shorter one), by subset,
    with 95% intervals over prompts, beside the baseline that looks at lengths only, and the calibration of the
    probabilities. RewardBench's files (prompt, chosen, rejected, subset) also give its section scores, rows of several
    responses RewardBench 2's.
    """

    read: Read
    reward: Measured = field(default_factory=Measured)
    write: Write = field(default_factory=Write)
    model: Model = field(default_factory=Model)
    """What computes; and for a reward that reads texts (a classifier, a function) the language model whose tokens the
    prefixes end with."""
    batch_tokens: int = 2048
    """Tokens of one forward pass; more are faster on a GPU."""

    def run(self) -> int:
        self._check()
        from midcourse.evaluate.provenance import write_results
        from midcourse.evaluate.reward_bench import plot_shares, read_benchmark, reward_bench
        from midcourse.rewards.named import load_label

        read, write, measured = self.read, self.write, self.reward
        reward: Any = load_label(
            measured.reward,
            measured.reward_function,
            template=measured.template,
            template_arguments=parse_arguments(measured.template_argument),
            label=measured.label,
            **asdict(self.model.machine),
        )
        columns = parse_columns(read.columns)
        with bad_rows(read.skip_bad_rows) as rejects:
            benchmark = read_benchmark(
                read.comparisons,
                reward=reward,
                subset_field=read.subset_field,
                limit=read.limit,
                rejects=rejects,
                renamed=columns,
            )
        figures = {
            "reward": measured.reward or measured.reward_function,
            "files": [str(path) for path in read.comparisons],
            **reward_bench(
                reward,
                benchmark,
                tokenizer=self._tokenizer() if not reward.every_prefix else None,
                max_tokens=read.max_tokens,
                batch_tokens=self.batch_tokens,
            ),
        }
        if write.out:
            write_results(write.out, figures)
        if write.plot:
            plot_shares(figures, write.plot)
        if write.json:
            print(as_json(figures, indent=1))
        else:
            _print(figures)
        return 0

    def _check(self) -> None:
        """Refuse what can be refused before anything is loaded."""
        read, write = self.read, self.write
        if (self.reward.reward is None) == (self.reward.reward_function is None):
            raise UsageError("give --reward or --reward-function, one of them")
        if not read.comparisons:
            raise UsageError("--comparisons names no file; name one or more")
        counts = {"max-tokens": read.max_tokens, "limit": read.limit, "batch-tokens": self.batch_tokens}
        for flag, value in counts.items():
            if value is not None and value < 1:
                raise UsageError(f"--{flag} is {value}; use 1 or more")
        if write.plot and write.plot.suffix != ".png":
            raise UsageError(f"--plot {write.plot} is no PNG; name a file that ends in .png")
        if write.out and write.out.suffix != ".json":
            raise UsageError(f"--out {write.out} is no JSON; name a file that ends in .json")

    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        from midcourse.lm.load import load_tokenizer

        return load_tokenizer(self.model.lm, trust_remote_code=self.model.trust_remote_code)


def _print(figures: dict[str, Any]) -> None:
    from midcourse.train.card import accuracy_table

    title = f"Pair accuracy ({figures['pairs']} pairs of {figures['prompts']} prompts, 95% intervals)"
    table(title, ("compared at", "accuracy", "interval"), accuracy_table(figures))
    shares = tuple(f"{100 * row['share']:.0f}%" for row in figures["shares"])
    if len(figures["subsets"]) > 1:
        prefers = figures["length_baseline"]["prefers"]
        rows = [
            (
                name,
                str(subset["pairs"]),
                *_row(subset["shares"], "accuracy"),
                _short(subset["length_baseline"]["accuracy"]),
            )
            for name, subset in figures["subsets"].items()
        ]
        table("By subset", ("subset", "pairs", *shares, prefers), rows)
    if figures["sections"]:
        title = "RewardBench's sections (ties count one half)"
        table(title, ("section", "subsets", *shares), _section_rows(figures["sections"]))
    if figures["best_of"]:
        table("The right response of several is put first", ("subset", "rows", "score", "chance"), _best(figures))
    calibration = figures["calibration"]
    stored = calibration["temperature"] is not None or calibration["finished_temperature"] is not None
    table(
        "Expected calibration error of the probabilities (95% intervals), at the temperature "
        f"{'stored with the reward' if stored else '1, as none is stored'} and at one fitted on other prompts",
        ("compared at", "given", "fitted", "by chance"),
        [
            (f"{100 * row['share']:.0f}%", _error(row["given"]), _error(row["fitted"]), _chance(row["fitted"]))
            for row in calibration["shares"]
        ],
    )
    reasons = {"identical": "identical", "empty": "empty", "too_long": "too long", "bad": "bad rows"}
    counts = [
        f"{figures['left_out'][name]} {words}" for name, words in reasons.items() if figures["left_out"].get(name)
    ]
    say(f"left out: {', '.join(counts) or 'nothing'}")
    if figures["cut_prompts"]:
        say(f"the reward read only the end of the prompt in {figures['cut_prompts']} comparisons")


def _best(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    found = figures["best_of"]
    rows: list[tuple[str, ...]] = [
        (
            name,
            str(one["rows"]),
            _score(one["score"], one["interval"]),
            "n/a" if one["chance"] is None else _short(one["chance"]),
        )
        for name, one in found["subsets"].items()
    ]
    if found["total"] is not None:
        rows.append(("RewardBench 2", "", _short(found["total"]), ""))
    if found["incomplete"]:
        rows.append(("incomplete, not counted", str(found["incomplete"]), "", ""))
    return rows


def _section_rows(scores: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [
        (row["section"], f"{len(row['subsets'])} of {len(row['subsets']) + len(row['missing'])}", row["shares"])
        for row in scores["sections"]
    ]
    if scores["total"]:
        rows.append(("total", "", scores["total"]))
    return [(name, count, *_row(shares, "score")) for name, count, shares in rows]


def _row(shares: list[dict[str, Any]], name: str) -> list[str]:
    """Return the cells of a figure at every share, with its interval at the last."""
    return [*(_short(row[name]) for row in shares[:-1]), _score(shares[-1][name], shares[-1]["interval"])]


def _score(figure: float, interval: Sequence[float] | None) -> str:
    return _short(figure) if interval is None else f"{_short(figure)} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _short(figure: float) -> str:
    return f"{figure:.2f}"


def _error(error: dict[str, Any] | None) -> str:
    if error is None:
        return "n/a"
    interval = error["interval"]
    return f"{error['ece']:.3f}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")


def _chance(error: dict[str, Any] | None) -> str:
    return "n/a" if error is None else f"{error['by_chance']:.3f}"
