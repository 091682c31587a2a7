"""Does the main job on shipped data: train a prefix reward, steer SmolLM2 with it, judge on topics it never saw.

Left out on purpose: other methods and judges. `passed` is about this one comparison: guided against plain decoding of
the same model, candidates and seeds, by the gold reward of the response alone.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from midcourse.data.comparisons import Comparison, read_comparisons
from midcourse.data.labels import bayes_accuracy, draw_labels
from midcourse.decode.engine import stream
from midcourse.decode.steps import Generation
from midcourse.evaluate.intervals import mean_interval
from midcourse.evaluate.metrics import perplexity, repeated_bigrams, repeated_words
from midcourse.evaluate.provenance import write_results
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Prompt
from midcourse.progress import progress
from midcourse.rewards.gold import Gold, load_gold
from midcourse.rewards.trunk import TrunkReward
from midcourse.show.page import cells_of, write_page
from midcourse.show.plots import scatter
from midcourse.show.tokens import (
    Token,
    by_position,
    prompt_text,
    score_legend,
    score_line,
    tokens_of,
)
from midcourse.terminal import visible
from midcourse.train.card import accuracy_table
from midcourse.train.settings import Settings
from midcourse.train.training import train

# A head on the states that the steered model has after 8 of its 30 layers guides as well as one on deeper states, or
# as layers of its own, and costs no pass at decoding (studies/trunk, studies/objectives).
LAYERS, HEAD, EPOCHS = 8, "trunk:16", 2
NEW_TOKENS, BATCH_SIZE = 24, 40
WEIGHTS = (1.0, 2.0, 3.0, 4.0, 6.0)
# A weight is eligible up to this much guidance KL on validation prompts, so that the limit holds on others too.
VALIDATION_KL, KL_LIMIT = 7.0, 10.0
# ... and if its texts repeat at most this much more of their words than plain ones: praise heaped up is no good text.
MORE_REPEATED = 0.03
GOLD, LABEL_SCALE = "vader-once", 4.0
SHOWN = 6


@dataclass(frozen=True)
class DemoPair:
    """Holds a prompt with its responses by the language model alone (base) and under guidance; KL in nats, summed."""

    prompt: Prompt
    topic: str
    base_tokens: Sequence[Token]
    guided_tokens: Sequence[Token]
    base_gold: float
    guided_gold: float
    guidance_kl: float | None = None
    base_total_kl: float | None = None
    guided_total_kl: float | None = None

    @property
    def gold_difference(self) -> float:
        """How much the gold reward of the guided response exceeds that of the base."""
        return self.guided_gold - self.base_gold


def run_demo(out: Path, *, seed: int = 0, gold: str = GOLD) -> tuple[dict[str, Any], list[DemoPair]]:
    """Train, choose the weight, compare; write report.html, reward/ and summary.json to `out`.

    Returns:
        The summary and the responses side by side.
    """
    start = time.monotonic()
    console = Console()
    judge = load_gold(gold)
    comparisons, prompts = shipped(judge if gold != GOLD else None, seed)
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "reward", ignore_errors=True)

    console.rule("1. learn a reward for every prefix")
    reward = train_reward(comparisons, out / "reward", seed)
    show_accuracy(console, reward, bayes_accuracy(comparisons, judge, scale=LABEL_SCALE))
    lm = LanguageModel.load("smollm2")

    console.rule("2. choose the weight on validation prompts")
    trials = [try_weight(lm, reward, prompts["validation"], weight, judge, seed) for weight in (0.0, *WEIGHTS)]
    weight = best_weight(trials)
    show_trials(console, trials, weight)
    reward.info = replace(reward.info, reward_weight=weight)
    reward.write(out / "reward")  # beside its card and curves

    console.rule("3. steer on topics that were not trained on")
    base, base_seconds = write_texts(lm, prompts["test"], None, 0.0, seed, "plain")
    guided, guided_seconds = write_texts(lm, prompts["test"], reward, weight, seed, "guided")
    summary = summarise(base, guided, judge) | {
        "weight": weight,
        "gold": gold,
        "validation": trials,
        "tokens_per_second": {"base": tokens(base) / base_seconds, "guided": tokens(guided) / guided_seconds},
        "seconds": time.monotonic() - start,
    }
    pairs = as_pairs(lm, reward, prompts["test"], base, guided, judge)
    show_pairs(console, pairs)
    show_summary(console, summary)
    write_results(out / "summary.json", summary)
    write_demo_report(out / "report.html", summary, pairs)
    console.print(f"report: {out / 'report.html'}   reward: {out / 'reward'}   figures: {out / 'summary.json'}")
    return summary, pairs


def shipped(judge: Gold | None, seed: int) -> tuple[list[Comparison], dict[str, Any]]:
    """Return the shipped comparisons and the prompts of the other topics; a judge, if given, labels pairs anew."""
    folder = files("midcourse") / "shipped"
    comparisons = read_comparisons(Path(str(folder / "demo_comparisons.jsonl.gz")))
    if judge:
        comparisons = draw_labels(comparisons, judge, scale=LABEL_SCALE, seed=seed)
    return comparisons, json.loads((folder / "demo_prompts.json").read_text())


def train_reward(comparisons: list[Comparison], folder: Path, seed: int) -> TrunkReward:
    """Train a prefix reward that reads SmolLM2's own states."""
    reward = TrunkReward.create("smollm2", template="raw", layers=LAYERS, tune="head", head=HEAD, seed=seed)
    assert isinstance(reward, TrunkReward)
    train(reward, comparisons, folder, Settings(epochs=EPOCHS, seed=seed))
    return reward.eval()


def write_texts(
    lm: LanguageModel, prompts: list[dict[str, str]], reward: TrunkReward | None, weight: float, seed: int, name: str
) -> tuple[list[Generation], float]:
    """Return responses to the prompts, and the seconds they took."""
    finished: dict[int, Generation] = {}
    start = time.monotonic()
    with progress(name, len(prompts) * NEW_TOKENS) as advance:
        texts = [row["prompt"] for row in prompts]
        for row, event in stream(
            lm,
            texts,
            reward,
            method="pargs" if reward else "plain",
            reward_weight=weight,
            template="raw",
            max_new_tokens=NEW_TOKENS,
            seed=seed,
            batch_size=BATCH_SIZE,
        ):
            if isinstance(event, Generation):
                finished[row] = event
                advance(NEW_TOKENS - len(event.steps))
            else:
                advance(1)
    return [finished[row] for row in range(len(prompts))], time.monotonic() - start


def try_weight(
    lm: LanguageModel, reward: TrunkReward, prompts: list[dict[str, str]], weight: float, judge: Gold, seed: int
) -> dict[str, float]:
    """Measure one weight on validation prompts, with seeds that the test does not use."""
    texts, _ = write_texts(lm, prompts, reward if weight else None, weight, seed + 10_000, f"weight {weight:g}")
    return {
        "weight": weight,
        "gold": fmean(judge(text.text) for text in texts),
        "guidance_kl": fmean(text.guidance_kl or 0.0 for text in texts),
        "perplexity": perplexity(texts),
        "repeated_words": fmean(repeated_words(text.text) for text in texts),
    }


def best_weight(trials: Sequence[dict[str, float]]) -> float:
    """Return the weight of most gold among those within the limits on KL and repetition, or else the smallest weight.

    On validation prompts, a weight may cost VALIDATION_KL nats of guidance KL, and the share of repeated words in its
    texts may exceed that of the plain texts, which are the first trial, by MORE_REPEATED.
    """
    plain, *guided = trials
    most = plain["repeated_words"] + MORE_REPEATED
    eligible = [t for t in guided if t["guidance_kl"] <= VALIDATION_KL and t["repeated_words"] <= most]
    return max(eligible, key=lambda trial: trial["gold"])["weight"] if eligible else guided[0]["weight"]


def summarise(base: list[Generation], guided: list[Generation], judge: Gold) -> dict[str, Any]:
    """Return the figures of the final table: gold rewards of responses alone, KL in nats per response."""
    gold_base, gold_guided = ([judge(text.text) for text in texts] for texts in (base, guided))
    mean, interval = mean_interval([b - a for a, b in zip(gold_base, gold_guided, strict=True)])
    guidance_kl = fmean(text.guidance_kl or 0.0 for text in guided)
    both = {"base": base, "guided": guided}

    def repetition(figure: Callable[[str], float]) -> dict[str, float]:
        return {name: fmean(figure(text.text) for text in texts) for name, texts in both.items()}

    return {
        "prompts": len(base),
        "gold_base": fmean(gold_base),
        "gold_guided": fmean(gold_guided),
        "gold_difference": {"mean": mean, "interval": interval},
        "guidance_kl": guidance_kl,
        "total_kl": fmean(text.total_kl or 0.0 for text in guided),
        "total_kl_base": fmean(text.total_kl or 0.0 for text in base),
        "perplexity": {name: perplexity(texts) for name, texts in both.items()},
        "repeated_words": repetition(repeated_words),
        "repeated_bigrams": repetition(repeated_bigrams),
        "length": {name: tokens(texts) / len(texts) for name, texts in both.items()},
        "passed": interval is not None and interval[0] > 0 and guidance_kl <= KL_LIMIT,
    }


def tokens(texts: list[Generation]) -> int:
    """Count the tokens in all responses."""
    return sum(len(text.steps) for text in texts)


def as_pairs(
    lm: LanguageModel,
    reward: TrunkReward,
    prompts: list[dict[str, str]],
    base: list[Generation],
    guided: list[Generation],
    judge: Gold,
) -> list[DemoPair]:
    """Put base and guided responses side by side; the base's tokens get their rewards here, in whole texts."""
    rows = [
        (lm.tokenizer(row["prompt"])["input_ids"], [s.token_id for s in text.steps])
        for row, text in zip(prompts, base, strict=True)
    ]
    scored = [
        replace(text, steps=tuple(replace(s, reward=r) for s, r in zip(text.steps, rewards.tolist(), strict=True)))
        for text, rewards in zip(base, reward.score_ids(rows), strict=True)
    ]
    return [
        DemoPair(
            prompt=row["prompt"],
            topic=row["topic"],
            base_tokens=tokens_of(a, lm.tokenizer),
            guided_tokens=tokens_of(b, lm.tokenizer),
            base_gold=judge(a.text),
            guided_gold=judge(b.text),
            guidance_kl=b.guidance_kl,
            base_total_kl=a.total_kl,
            guided_total_kl=b.total_kl,
        )
        for row, a, b in zip(prompts, scored, guided, strict=True)
    ]


def show_accuracy(console: Console, reward: TrunkReward, ceiling: float) -> None:
    metrics = reward.info.metrics
    table = Table(title=f"pair accuracy on {metrics['prompts']} held-out prompts", title_justify="left")
    for column in ("compared at", "accuracy", "95% interval"):
        table.add_column(column, justify="left" if column == "compared at" else "right")
    for row in accuracy_table(metrics):
        table.add_row(*row)
    table.add_row("ceiling: the gold reward itself", f"{ceiling:.3f}", "")
    console.print(table)


def show_trials(console: Console, trials: Sequence[dict[str, float]], weight: float) -> None:
    table = Table()
    for column in ("weight", "gold", "guidance KL", "perplexity", "repeated words"):
        table.add_column(column, justify="right")
    for trial in trials:
        mark = " (chosen)" if trial["weight"] == weight else ""
        table.add_row(
            f"{trial['weight']:g}{mark}",
            f"{trial['gold']:.2f}",
            f"{trial['guidance_kl']:.1f}",
            f"{trial['perplexity']:.1f}",
            f"{trial['repeated_words']:.1%}",
        )
    console.print(table)


def show_pairs(console: Console, pairs: Sequence[DemoPair]) -> None:
    """Print a few prompts' responses, coloured by each token's distance from the mean reward at its position."""
    colouring = by_position([row for pair in pairs for row in (pair.base_tokens, pair.guided_tokens)])
    for pair in pairs[:: max(len(pairs) // SHOWN, 1)][:SHOWN]:
        console.print(f"\n[bold]{escape(visible(prompt_text(pair.prompt)))}[/bold]")
        for name, row, gold in (
            ("base", pair.base_tokens, pair.base_gold),
            ("guided", pair.guided_tokens, pair.guided_gold),
        ):
            figures = f"  {name:6} reward {row[-1].reward:+.2f}  gold {gold:+.2f} "
            one_line = [replace(token, text=token.text.replace("\n", "\N{RETURN SYMBOL}")) for token in row]
            console.print(figures, score_line(one_line, colouring), sep="", highlight=False)
    if console.color_system:
        console.print(score_legend(colouring))


def show_summary(console: Console, summary: dict[str, Any]) -> None:
    table = Table(title=f"\n{summary['prompts']} prompts of topics that were not trained on", title_justify="left")
    for column in ("per response", "base", "guided"):
        table.add_column(column, justify="left" if column == "per response" else "right")
    for name, base, guided in summary_rows(summary):
        table.add_row(name, base, guided)
    console.print(table)
    mean, (low, high) = summary["gold_difference"]["mean"], summary["gold_difference"]["interval"]
    verdict = "passed" if summary["passed"] else "not passed"
    console.print(
        f"[bold]{verdict}[/bold]: gold reward {mean:+.2f} (95% interval {low:+.2f} to {high:+.2f}) "
        f"for {summary['guidance_kl']:.1f} nats of guidance, at weight {summary['weight']:g}, "
        f"in {summary['seconds']:.0f} s",
        highlight=False,
    )


def summary_rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the rows of the final table: (figure, base, guided)."""

    def both(name: str, form: Callable[[float], str]) -> tuple[str, str]:
        return form(summary[name]["base"]), form(summary[name]["guided"])

    return [
        ("gold reward", f"{summary['gold_base']:.2f}", f"{summary['gold_guided']:.2f}"),
        ("guidance KL, nats", "0", f"{summary['guidance_kl']:.1f}"),
        ("total KL, nats", f"{summary['total_kl_base']:.1f}", f"{summary['total_kl']:.1f}"),
        ("perplexity under the base model", *both("perplexity", "{:.1f}".format)),
        ("repeated words", *both("repeated_words", "{:.1%}".format)),
        ("repeated bigrams", *both("repeated_bigrams", "{:.1%}".format)),
        ("length, tokens", *both("length", "{:.1f}".format)),
        ("tokens per second", *both("tokens_per_second", "{:.0f}".format)),
    ]


def write_demo_report(
    path: Path, summary: Mapping[str, Any], pairs: Sequence[DemoPair], picks: Mapping[str, int] | None = None
) -> None:
    """Write a page on base and guided texts: the figures of `summary`, then every pair side by side.

    Args:
        summary: prompts, weight, passed, guidance_kl and total_kl (nats per response); gold_base, gold_guided,
            gold_difference {mean, interval}; and {base, guided} of perplexity, repeated_bigrams (a share), length
            (tokens) and tokens_per_second.
        picks: why -> index into `pairs`, shown first and labelled; by default `pick(pairs)`.
    """
    picks = pick(pairs) if picks is None else picks
    colouring = by_position([row for pair in pairs for row in (pair.base_tokens, pair.guided_tokens)])
    order = [*dict.fromkeys([*picks.values(), *range(len(pairs))])]
    write_page(
        path,
        "show/demo.html.jinja",
        title="midcourse demo",
        summary=summary,
        colouring=colouring,
        scatter=scatter(
            [(pair.base_gold, pair.guided_gold) for pair in pairs],
            "gold reward, base",
            "gold reward, guided",
            "Guided gold by base gold, a point for each prompt; the pairs below have the numbers",
        ),
        cards=[
            {
                "pair": pairs[i],
                "why": [why for why, index in picks.items() if index == i],
                "prompt": prompt_text(pairs[i].prompt),
                "base": cells_of(pairs[i].base_tokens, colouring),
                "guided": cells_of(pairs[i].guided_tokens, colouring),
            }
            for i in order
        ],
    )


def pick(pairs: Sequence[DemoPair]) -> dict[str, int]:
    """Choose the pairs that say most: the largest gain in gold, the median one, the largest loss or smallest gain."""
    order = sorted(range(len(pairs)), key=lambda i: pairs[i].gold_difference)
    if not order:
        return {}
    lowest = "largest loss" if pairs[order[0]].gold_difference < 0 else "smallest gain"
    return {"largest gain": order[-1], "median": order[len(order) // 2], lowest: order[0]}
