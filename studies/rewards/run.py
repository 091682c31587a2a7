"""Prefix against sequence rewards on three real preference sets.

    python -m studies.rewards.run --data DIR        (or MIDCOURSE_DATA=DIR)

Trains both objectives with the same budget, and writes results.json and accuracy.png here: pair accuracy on the test
split by share of the response, with 95 % intervals over prompts, beside a length-only and a bag-of-words baseline.
Everything is resumable: sampled texts, cached states, trained rewards and rows are found again in runs/rewards/.
No hyperparameter was tuned on the test splits.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, mode, pstdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression

from midcourse import LanguageModel, RewardModel, generate
from midcourse.data.comparisons import Comparison
from midcourse.data.encoded import PairSet, encode
from midcourse.data.rollouts import Rollout
from midcourse.data.sample import sample
from midcourse.evaluate.accuracy import SHARES, length_baseline, outcome, pair_accuracy
from midcourse.evaluate.intervals import mean_interval
from midcourse.evaluate.provenance import write_results
from midcourse.files import whole_file
from midcourse.rewards.gold import load_gold
from midcourse.train.scorer import Scorer
from midcourse.train.settings import Settings
from midcourse.train.training import train
from studies.data import arguments, command, comparisons, fitting, in_random_order, kept, openings

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs/rewards"

OPENINGS, SAMPLES, NEW_TOKENS = 600, 4, 24
GAP = 0.1  # sentiment pairs are ordered by gold where it differs by more than this
GUIDED_OPENINGS, WEIGHTS = 100, (1.0, 2.0, 4.0)
MAX_TOKENS = {"sentiment": 96, "paradetox": 64, "hh": 160, "hh_helpful": 160, "hh_harmless": 160}
TEST_PAIRS = {"sentiment": 1000, "paradetox": 1000, "hh": 600, "hh_helpful": 600, "hh_harmless": 600}
HEAD_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Run:
    """One reward to train: which set, what is trained, on how many pairs at most."""

    set: str
    objective: str
    layers: int
    tune: str
    seed: int
    pairs: int
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.set}-{self.objective}-{self.layers}-{self.tune.replace(':', '')}-{self.pairs}-{self.seed}"


def plan() -> Iterator[Run]:
    """Every run, the cheap ones of each set first."""
    for objective in ("prefix", "sequence"):
        for seed in HEAD_SEEDS:
            yield Run("sentiment", objective, 20, "head", seed, 4000, 6)
        yield Run("sentiment", objective, 10, "last:2", 0, 4000, 2)
    for objective in ("prefix", "sequence"):
        for seed in HEAD_SEEDS:
            yield Run("paradetox", objective, 20, "head", seed, 6000, 6)
        yield Run("paradetox", objective, 10, "last:2", 0, 6000, 2)
    for objective in ("prefix", "sequence"):
        for seed in HEAD_SEEDS:
            yield Run("hh", objective, 20, "head", seed, 1500, 6)
        yield Run("hh", objective, 16, "last:2", 0, 1500, 2)
    for part in ("hh_helpful", "hh_harmless"):
        yield Run(part, "prefix", 16, "last:2", 0, 1500, 2)
    # How far fewer and more pairs get.
    yield Run("hh", "prefix", 16, "last:2", 0, 500, 2)
    yield Run("hh", "prefix", 20, "head", 0, 6000, 6)


# The sets: training and test comparisons


def of_set(name: str, data: Path) -> tuple[list[Comparison], list[Comparison]]:
    """(train, test) comparisons of a set, in a fixed random order."""
    if name != "sentiment":
        return comparisons(name, data)
    return in_random_order(sentiment(data, "train"), sentiment(data, "test"))


def sentiment(data: Path, split: str) -> list[Comparison]:
    """SmolLM2's own continuations of review openings, ordered by VADER where it differs by more than GAP."""
    gold = load_gold("vader")
    found = []
    for opening, group in itertools.groupby(sampled(data, split), key=lambda row: row.prompt):
        rows = [(gold(row.response), row) for row in group if row.response.strip()]
        for (a, first), (b, second) in itertools.permutations(rows, 2):
            if a - b > GAP:
                found.append(Comparison(opening, first.response, second.response, first.finished, second.finished))
    return found


@cache
def sampled(data: Path, split: str) -> list[Rollout]:
    """SAMPLES continuations of each opening by the plain LM, kept in runs/rewards/."""
    RUNS.mkdir(parents=True, exist_ok=True)
    return sample(
        LanguageModel.load("smollm2"),
        openings(data, split)[: OPENINGS if split == "train" else GUIDED_OPENINGS],
        RUNS / f"rollouts-{split}.jsonl",
        n=SAMPLES,
        top_k=50,
        max_new_tokens=NEW_TOKENS,
        template="raw",
        batch_size=48,
        resume=True,
    )


# Training and judging


def judged(run: Run, data: Path) -> dict[str, Any]:
    """Train one reward and measure it on the test split."""
    start = time.monotonic()
    learn, test = of_set(run.set, data)
    folder = RUNS / run.name
    max_tokens = MAX_TOKENS[run.set]
    if (folder / "midcourse.json").is_file():
        reward = RewardModel.load(folder)
        learn, test = (fitting(reward, rows, max_tokens) for rows in (learn, test))
    else:
        reward = RewardModel.create(
            "smollm2", template="raw", layers=run.layers, tune=run.tune, objective=run.objective, seed=run.seed
        )
        learn, test = (fitting(reward, rows, max_tokens) for rows in (learn, test))
        settings = Settings(epochs=run.epochs, max_tokens=max_tokens, seed=run.seed)
        train(reward, learn[: run.pairs], folder, settings, resume=True)
    pairs = encode(reward, test[: TEST_PAIRS[run.set]], max_tokens)
    accuracy = pair_accuracy(pairs, Scorer(reward, [pairs.rows]).score(0))
    return {
        "set": run.set,
        "model": f"{run.tune} of {run.layers}",
        "objective": run.objective,
        "layers": run.layers,
        "tune": run.tune,
        "seed": run.seed,
        "train_pairs": reward.info.metrics["train_pairs"],
        "test_pairs": accuracy["pairs"],
        "test_prompts": accuracy["prompts"],
        "shares": accuracy["shares"],
        "equal_length": accuracy["equal_length"],
        "seconds": time.monotonic() - start,
    }


def baselines(name: str, data: Path) -> dict[str, Any]:
    """Length-only and bag-of-words accuracies of a set, on the same test pairs."""
    reward = RewardModel.create("smollm2", template="raw", layers=1, tune="head")
    most = max(run.pairs for run in plan() if run.set == name)
    learn, test = (fitting(reward, rows, MAX_TOKENS[name]) for rows in of_set(name, data))
    learned, tested = (encode(reward, rows, MAX_TOKENS[name]) for rows in (learn[:most], test[: TEST_PAIRS[name]]))
    vocabulary = len(reward.tokenizer)
    model = LogisticRegression(C=0.1, fit_intercept=False, max_iter=1000)
    differences = bag_differences(learned, 1.0, vocabulary)
    model.fit(vstack([differences, -differences]), [1] * differences.shape[0] + [0] * differences.shape[0])
    shares = []
    for share in SHARES:
        margins = model.decision_function(bag_differences(tested, share, vocabulary))
        mean, interval = mean_interval([outcome(float(margin)) for margin in margins], tested.prompts)
        shares.append({"share": share, "accuracy": mean, "interval": interval})
    return {"set": name, "length": length_baseline(learned, tested), "bag_of_words": shares}


def bag_differences(pairs: PairSet, share: float, vocabulary: int) -> csr_matrix:
    """Counts of the chosen minus counts of the rejected response's tokens, both cut as pair accuracy cuts them."""
    rows, columns, counts = [], [], []
    for number, (a, b) in enumerate(pairs.pairs):
        chosen, rejected = pairs.rows[a], pairs.rows[b]
        cut = int(np.ceil(share * min(chosen.text_length, rejected.text_length))) if share < 1 else None
        for row, sign in ((chosen, 1), (rejected, -1)):
            tokens = row.response[:cut]
            rows += [number] * len(tokens)
            columns += tokens
            counts += [sign] * len(tokens)
    return csr_matrix((counts, (rows, columns)), shape=(len(pairs.pairs), vocabulary), dtype=float)


def guided(data: Path) -> list[dict[str, Any]]:
    """Gold and KL of continuing unseen openings under the sentiment rewards, prefix and sequence alike."""
    settings = [("plain", 0.0), *itertools.product(("prefix", "sequence"), WEIGHTS)]
    return [
        once(f"guided-{objective}-{weight:g}", lambda o=objective, w=weight: steer(o, w, data))
        for objective, weight in settings
    ]


def steer(objective: str, weight: float, data: Path) -> dict[str, Any]:
    """Continue the unseen openings under one reward at one weight."""
    gold, lm = load_gold("vader"), LanguageModel.load("smollm2")
    run = next((r for r in plan() if (r.set, r.objective, r.tune) == ("sentiment", objective, "last:2")), None)
    texts = generate(
        lm,
        openings(data, "test")[:GUIDED_OPENINGS],
        RewardModel.load(RUNS / run.name) if run else None,
        method="pargs" if run else "plain",
        reward_weight=weight,
        template="raw",
        max_new_tokens=NEW_TOKENS,
        batch_size=25,
    )
    golds = [gold(text.text) for text in texts]
    return {
        "guide": objective,
        "weight": weight,
        "prompts": len(texts),
        "gold": fmean(golds),
        "gold_standard_error": pstdev(golds) / len(golds) ** 0.5,
        "guidance_kl": fmean(t.guidance_kl for t in texts),
        "total_kl": fmean(t.total_kl for t in texts),
    }


def plot(rows: list[dict], base: list[dict], path: Path) -> None:
    """Accuracy by share of the response: one panel a set, one line a model and objective."""
    names = {"sentiment": "sentiment (own samples)", "paradetox": "ParaDetox", "hh": "HH, all four sets"}
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for axis, (name, title) in zip(figure.subplots(1, 3, sharey=True), names.items(), strict=True):
        chance = next(b for b in base if b["set"] == name)
        axis.plot(
            [100 * s for s in SHARES],
            [s["accuracy"] for s in chance["bag_of_words"]],
            color="#999",
            marker=".",
            label="bag of words",
        )
        axis.axhline(chance["length"]["accuracy"], color="#bbb", linestyle="--", linewidth=1, label="length only, 100%")
        axis.axhline(0.5, color="#ccc", linestyle=":", linewidth=1)
        usual = mode(r["train_pairs"] for r in rows if r["set"] == name)
        for (model, objective), group in grouped([r for r in rows if r["set"] == name and r["train_pairs"] == usual]):
            color, style = ("#0b5fa5" if objective == "prefix" else "#c2570c"), ("-" if "last" in model else "--")
            mean = [fmean(r["shares"][i]["accuracy"] for r in group) for i in range(len(SHARES))]
            axis.plot(
                [100 * s for s in SHARES],
                mean,
                style,
                color=color,
                marker="o",
                markersize=4,
                label=f"{objective}, {model}",
            )
        axis.set(title=title, xlabel="% of the response", xticks=[100 * s for s in SHARES])
    figure.axes[0].set_ylabel("pair accuracy, test split")
    figure.axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def grouped(rows: list[dict]) -> Iterator[tuple[tuple[str, str], list[dict]]]:
    """Rows by model and objective."""
    key = lambda row: (row["model"], row["objective"])  # noqa: E731
    for name, group in itertools.groupby(sorted(rows, key=key), key=key):
        yield name, list(group)


def main() -> None:
    data = arguments(__doc__).parse_args().data
    rows, base, steered = [], [], []
    for name in MAX_TOKENS:
        base.append(once(f"{name}-baselines", lambda name=name: baselines(name, data)))
        for run in plan():
            if run.set == name:
                rows.append(once(run.name, lambda run=run: judged(run, data)))
                write_results(HERE / "results.json", {"rows": rows, "baselines": base, "guided": steered})
        if name == "sentiment":
            steered = guided(data)
        write_results(HERE / "results.json", {"rows": rows, "baselines": base, "guided": steered})
    plot(rows, base, HERE / "accuracy.png")


def once(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, from runs/rewards/ where it was made before."""
    return kept(RUNS / f"{name}.json", make)


if __name__ == "__main__":
    command(main)
