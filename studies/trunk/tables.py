"""The trunk study's tables, from results.json alone.

python -m studies.trunk.tables [--check]        fills README.md; --check exits 1 where a table differs
"""

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from midcourse.evaluate.accuracy import SHARES
from studies.steering import KLS
from studies.tables import Table, load, main, markdown, number, read_off, with_interval, with_paradetox
from studies.trunk.forms import FORMS, NATS, SETS, Fit

HERE = Path(__file__).parent
COMMAND = "python -m studies.trunk.run --data DIR"

# What a row varies, in the order of the table.
VARIED = ("objective", "parts", "layers", "rank", "mlp", "attention", "lr", "epochs", "train_pairs")


def sweep(root: Path) -> str:
    """One line per form, one block per set: means over the seeds."""
    found = load(root, "results.json", COMMAND)
    rows = found["sweep"]
    order = {fit_key(asdict(fit)): place for place, fit in enumerate(FORMS)}
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["set"], fit_key(row)), []).append(row)
    lines = []
    for kind in sorted(kinds, key=lambda kind: (SETS.index(kind[0]), order[kind[1]])):
        runs = kinds[kind]
        first = runs[0]
        means = [number(fmean(run["shares"][i]["accuracy"] for run in runs)) for i in range(len(SHARES))]
        # Seeds share their texts, so the interval is that of one seed, the first.
        gain = ""
        if "worth" in first:
            mean = number(fmean(run["worth"] for run in runs))
            gain = f"{mean} ({with_interval(first['worth'], first['worth_interval'])})"
        varied = [words(first[name]) for name in VARIED]
        lines.append([kind[0], *varied, f"{first['parameters']:,}", str(len(runs)), *means, gain])
    shares = [f"{share:.0%}" for share in SHARES]
    header = ["set", "objective", "parts", "layers", "rank", "mlp", "attention", "lr", "epochs", "pairs"]
    last = f"worth at {NATS:g} nats: mean (first seed [95%])"
    return with_paradetox(markdown([*header, "parameters", "seeds", *shares, last], lines), found)


def fit_key(row: dict[str, Any]) -> str:
    """What tells forms apart, seeds aside."""
    return json.dumps({field.name: row[field.name] for field in fields(Fit) if field.name != "seed"})


def words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def guided(root: Path) -> str:
    """Every weight that was tried on the test openings."""
    lines = []
    for row in load(root, "results.json", COMMAND)["guided"]:
        for weight in row["weights"]:
            lines.append(
                [
                    row["guide"]["parts"] if weight["weight"] else "none",
                    str(row["prompts"]),
                    f"{weight['weight']:.1f}",
                    number(weight["gold"]),
                    *(number(weight[name], 1) for name in ("guidance_kl", "total_kl", "perplexity")),
                    number(weight["repeated_bigrams"], 3),
                ]
            )
    header = ["head", "prompts", "weight", "gold", "guidance KL", "total KL", "perplexity", "repeated bigrams"]
    return markdown(header, list(dict.fromkeys(map(tuple, lines))))


def at_kl(root: Path) -> str:
    """Gold read off at equal guidance KL."""
    rows = load(root, "results.json", COMMAND)["guided"]
    lines = [[row["guide"]["parts"], *read_off(row["at_kl"])] for row in rows]
    return markdown(["head", *(f"gold at {kl:g} nats [95%]" for kl in KLS)], lines)


TABLES: dict[str, Table] = {"sweep": sweep, "guided": guided, "at_kl": at_kl}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], HERE, TABLES))
