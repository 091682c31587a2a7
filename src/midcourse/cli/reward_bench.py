"""midcourse reward-bench."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from midcourse.cli.console import UsageError, table
from midcourse.files import as_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from midcourse.data.formats import BadRow


@dataclass
class RewardBench:
    """Measure how well a reward orders pairs of responses, from their first tokens to their ends.

    Pair accuracy at 10, 25, 50, 75 and 100% of the response (both cut to that share of the shorter one), by subset,
    with 95% intervals over prompts, beside the baseline that looks at lengths only, and the calibration of the
    probabilities. RewardBench's files (prompt, chosen, rejected, subset) also give its section scores.
    """

    comparisons: tuple[Path, ...]
    """Files of comparisons: JSONL (also .gz), CSV or Parquet. A row's field "subset" names its subset, otherwise the
    file's name does."""
    reward: str | None = None
    """Folder of a reward, a sequence classifier of one label, or a causal LM whose log-probabilities are rewards."""
    reward_function: str | None = None
    """Or a Python function from the response to a number, as MODULE:NAME; or vader (sentiment) or profanity
    (1 - its probability)."""
    max_tokens: int | None = None
    """Longest prompt and response together, in the reward's tokens; by default what it can read, at most 2048. Longer
    comparisons are left out and counted. A classifier reads the end of a long prompt."""
    limit: int | None = None
    """At most so many comparisons of each subset, at random."""
    subset_field: str = "subset"
    """The field that names a row's subset."""
    batch_tokens: int = 2048
    """Tokens of one forward; more are faster on a GPU."""
    json: bool = False
    """Print the figures as JSON."""
    out: Path | None = None
    """Write the figures here as JSON, with the versions they were made with."""
    plot: Path | None = None
    """Write the accuracy by share of the response here, as a PNG."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""
    lm: str = "smollm2"
    """For a classifier or a function: the causal LM whose tokens the prefixes end with."""
    template: Literal["chat", "raw", "mixed"] | None = None
    """For a causal LM: how prompts were rendered in its training; raw by default. Other rewards know theirs."""
    device: str = "auto"
    dtype: str = "auto"

    def run(self) -> int:
        self._check()
        from midcourse.cli.prefer import load_label
        from midcourse.data.formats import write_bad_rows
        from midcourse.evaluate.provenance import write_results
        from midcourse.evaluate.reward_bench import plot_shares, read_benchmark, reward_bench
        from midcourse.rewards.text import TextReward

        reward: Any = load_label(self.reward, self.reward_function, self.template, self.device, self.dtype)
        rejects: list[BadRow] | None = [] if self.skip_bad_rows else None
        benchmark = read_benchmark(
            self.comparisons, reward=reward, subset_field=self.subset_field, limit=self.limit, rejects=rejects
        )
        if rejects and self.skip_bad_rows:
            write_bad_rows(self.skip_bad_rows, rejects)
            print(f"skipped {len(rejects)} bad rows, written to {self.skip_bad_rows}", file=sys.stderr)
        figures = {
            "reward": self.reward or self.reward_function,
            "files": [str(path) for path in self.comparisons],
            **reward_bench(
                reward,
                benchmark,
                tokenizer=self._tokenizer() if isinstance(reward, TextReward) else None,
                max_tokens=self.max_tokens,
                batch_tokens=self.batch_tokens,
            ),
        }
        if self.out:
            write_results(self.out, figures)
        if self.plot:
            plot_shares(figures, self.plot)
        if self.json:
            print(as_json(figures, indent=1))
        else:
            _print(figures)
        return 0

    def _check(self) -> None:
        """Refuse what can be refused before anything is loaded."""
        if (self.reward is None) == (self.reward_function is None):
            raise UsageError("give --reward or --reward-function, one of them")
        if not self.comparisons:
            raise UsageError("--comparisons names no file; name one or more")
        for flag in ("max_tokens", "limit", "batch_tokens"):
            if (value := getattr(self, flag)) is not None and value < 1:
                raise UsageError(f"--{flag.replace('_', '-')} is {value}; use 1 or more")
        if self.plot and self.plot.suffix != ".png":
            raise UsageError(f"--plot {self.plot} is no PNG; name a file that ends in .png")
        if self.out and self.out.suffix != ".json":
            raise UsageError(f"--out {self.out} is no JSON; name a file that ends in .json")

    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        from midcourse.lm.load import load_tokenizer, resolve

        return load_tokenizer(resolve(self.lm))


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
                str(found["pairs"]),
                *_row(found["shares"], "accuracy"),
                _short(found["length_baseline"]["accuracy"]),
            )
            for name, found in figures["subsets"].items()
        ]
        table("By subset", ("subset", "pairs", *shares, prefers), rows)
    if figures["sections"]:
        title = "RewardBench's sections (ties count one half)"
        table(title, ("section", "subsets", *shares), _section_rows(figures["sections"]))
    found = figures["calibration"]
    stored = found["temperature"] is not None or found["finished_temperature"] is not None
    table(
        "Expected calibration error of the probabilities (95% intervals), at the temperature "
        f"{'stored with the reward' if stored else '1, as none is stored'} and at one fitted on other prompts",
        ("compared at", "given", "fitted", "by chance"),
        [
            (f"{100 * row['share']:.0f}%", _error(row["given"]), _error(row["fitted"]), _chance(row["fitted"]))
            for row in found["shares"]
        ],
    )
    reasons = {"identical": "identical", "empty": "empty", "too_long": "too long", "bad": "bad rows"}
    counts = [
        f"{figures['left_out'][name]} {words}" for name, words in reasons.items() if figures["left_out"].get(name)
    ]
    print(f"left out: {', '.join(counts) or 'nothing'}")
    if figures["cut_prompts"]:
        print(f"the reward read only the end of the prompt in {figures['cut_prompts']} comparisons")


def _section_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = [
        (row["section"], f"{len(row['subsets'])} of {len(row['subsets']) + len(row['missing'])}", row["shares"])
        for row in found["sections"]
    ]
    if found["total"]:
        rows.append(("total", "", found["total"]))
    return [(name, count, *_row(shares, "score")) for name, count, shares in rows]


def _row(shares: list[dict[str, Any]], name: str) -> list[str]:
    """A figure at every share, with its interval at the last."""
    low, high = shares[-1]["interval"]
    *others, last = (_short(row[name]) for row in shares)
    return [*others, f"{last} [{low:.2f}, {high:.2f}]"]


def _short(figure: float) -> str:
    return f"{figure:.2f}"


def _error(found: dict[str, Any] | None) -> str:
    if found is None:
        return "n/a"
    low, high = found["interval"]
    return f"{found['ece']:.3f} ({low:.3f} to {high:.3f})"


def _chance(found: dict[str, Any] | None) -> str:
    return "n/a" if found is None else f"{found['by_chance']:.3f}"
