"""What to hold the rewards against: length alone and a bag of words, on the same pairs; and rewards on HH's parts.

    python -m studies.objectives.baselines --data DIR [SET ...]        (or MIDCOURSE_DATA=DIR)

Every set's baselines learn from the pairs that its rewards learn from at most, and are measured on the same test pairs.
HH is helpful and harmless dialogues in one; the two are also sets of their own here, each with a reward of the last two
of 16 layers. Writes results/baselines.json and README.md's tables. Texts of the data sets are not committed.
"""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression

from midcourse import RewardModel
from midcourse.data.comparisons import Comparison
from midcourse.data.encoded import PairSet, encode
from midcourse.evaluate.accuracy import SHARES, length_baseline, outcome, pair_accuracy
from midcourse.evaluate.intervals import mean_interval
from midcourse.evaluate.provenance import provenance, write_results
from midcourse.train.scorer import Scorer
from midcourse.train.settings import Settings
from midcourse.train.training import train
from studies.data import PARADETOX, arguments, command, comparisons, fitting, kept
from studies.objectives.grid import SETS
from studies.objectives.run import HERE, MAX_TOKENS, MOST_PAIRS, RESULTS, RUNS, TEST_PAIRS, examples
from studies.objectives.tables import BASELINES, TABLES, baselines_of
from studies.tables import fill_readme

PARTS = ("hh_helpful", "hh_harmless")
PART_PAIRS, PART_LAYERS, PART_EPOCHS = 1500, 16, 2


def pairs_of(name: str, reward: RewardModel, data: Path, made: str) -> tuple[list[Comparison], PairSet, int]:
    """Return (training comparisons, encoded test pairs, tokens of a row at most) of a set, by the reward's tokens."""
    whole = "hh" if name in PARTS else name
    learn, test = examples(name, data)[:2] if name == "sentiment" else comparisons(name, data, made=made)
    max_tokens, most = MAX_TOKENS[whole], PART_PAIRS if name in PARTS else MOST_PAIRS[name]
    learn, test = (fitting(reward, rows, max_tokens) for rows in (learn, test))
    return learn[:most], encode(reward, test[: TEST_PAIRS[whole]], max_tokens), max_tokens


def baselines(name: str, data: Path) -> list[dict[str, Any]]:
    """Return a set's baselines; ParaDetox's also as it is published, which shows what the repair takes away."""
    if name != "paradetox":
        return [baseline(name, data)]
    return [{"made": made, **baseline(name, data, made)} for made in ("as published", PARADETOX)]


def baseline(name: str, data: Path, made: str = PARADETOX) -> dict[str, Any]:
    """Return the accuracies of length alone and of a bag of words on a set's test pairs."""
    reward = RewardModel.create("smollm2", template="raw", layers=1, tune="head")
    learn, tested, max_tokens = pairs_of(name, reward, data, made)
    learned, vocabulary = encode(reward, learn, max_tokens), len(reward.tokenizer)
    model = LogisticRegression(C=0.1, fit_intercept=False, max_iter=1000)
    differences = bag_differences(learned, 1.0, vocabulary)
    model.fit(vstack([differences, -differences]), [1] * differences.shape[0] + [0] * differences.shape[0])
    shares = []
    for share in SHARES:
        margins = model.decision_function(bag_differences(tested, share, vocabulary))
        mean, interval = mean_interval([outcome(float(margin)) for margin in margins], tested.prompts)
        shares.append({"share": share, "accuracy": mean, "interval": interval})
    return {
        "set": name,
        "train_pairs": len(learned.pairs),
        "test_pairs": len(tested.pairs),
        "length": length_baseline(learned, tested),
        "bag_of_words": shares,
    }


def bag_differences(pairs: PairSet, share: float, vocabulary: int) -> csr_matrix:
    """Return counts of the chosen less those of the rejected response's tokens, both cut as pair accuracy cuts them."""
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


def part(name: str, data: Path) -> dict[str, Any]:
    """Train a reward on one of HH's parts and measure it on that part's test pairs."""
    folder = RUNS / f"{name}-{PART_LAYERS}-layers"
    reward = RewardModel.create("smollm2", template="raw", layers=PART_LAYERS, tune="last:2", objective="prefix")
    learn, tested, max_tokens = pairs_of(name, reward, data, PARADETOX)
    if (folder / "midcourse.json").is_file():
        reward = RewardModel.load(folder)
    else:
        train(reward, learn, folder, Settings(epochs=PART_EPOCHS, max_tokens=max_tokens), resume=True)
    accuracy = pair_accuracy(tested, Scorer(reward, [tested.rows]).score(0))
    return {
        "set": name,
        "model": f"last:2 of {PART_LAYERS}",
        "objective": "prefix",
        "train_pairs": reward.info.metrics["train_pairs"],
        "test_pairs": accuracy["pairs"],
        "shares": accuracy["shares"],
        **provenance(),
    }


def main() -> None:
    parser = arguments(__doc__)
    known = (*SETS, *PARTS)
    parser.add_argument(
        "sets", nargs="*", choices=[*known, []], metavar="SET", help=f"{', '.join(known)}; all by default"
    )
    flags = parser.parse_args()
    for name in flags.sets or known:
        found = baselines_of(HERE) if (HERE / BASELINES).is_file() else {"baselines": [], "parts": []}
        rows = [row for row in found["baselines"] if row["set"] != name] + baselines(name, flags.data)
        parts = {row["set"]: row for row in found["parts"]}
        if name in PARTS:
            parts[name] = kept(RUNS / f"{name}.json", lambda name=name: part(name, flags.data))
        results = {
            "baselines": sorted(rows, key=lambda row: known.index(row["set"])),
            "parts": [parts[one] for one in known if one in parts],
        }
        write_results(RESULTS / "baselines.json", results)
        fill_readme(HERE, check=False, tables=TABLES)


if __name__ == "__main__":
    command(main)
