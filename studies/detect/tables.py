"""The tables of detection, from committed results, for this README and for docs/.

python -m studies.detect.tables [--check]
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.tables import Table, load, main, markdown, number, with_interval

ROOT = Path(__file__).resolve().parents[2]
HERE = "studies/detect"
COMMAND = "python -m studies.detect.run --data DIR"
OURS = "states by surprise"
# AUROC in percent as published (Lee et al., 2024, arXiv 2405.17382, table 1), by domain, of these models' texts. The
# detectors there are other models, trained on other data.
THEIR_MODELS = ("gpt-3.5-turbo", "gpt-4", "gpt4turbo", "llama", "claude")
PUBLISHED = {
    "ReMoDetect, 0.43B": {"pubmed": (96.4, 96.1, 97.0, 96.3, 96.4), "xsum": (99.9, 98.7, 100.0, 99.8, 99.9)},
    "Fast-DetectGPT, 6B and 2.7B": {"pubmed": (90.2, 85.0, 88.8, 90.8, 88.2), "xsum": (99.1, 90.7, 97.4, 99.7, 96.2)},
    "log-likelihood, 2.7B": {"pubmed": (87.8, 81.0, 86.5, 85.4, 85.5), "xsum": (95.8, 79.8, 90.9, 97.9, 95.9)},
}
FEW = 30  # texts; shares of fewer say little


def share(value: float) -> str:
    return f"{100 * value:.1f}%"


def card(root: Path) -> str:
    """The shipped detector's thresholds, and what it finds."""
    found = load(root, f"{HERE}/results/shipped.json", "python -m studies.detect.shipped --data DIR")
    return "\n\n".join(card_tables(found))


def card_tables(found: dict[str, Any]) -> tuple[str, str]:
    """Whom a detector flags, and what it finds of machine texts.

    Args:
        found: the results of `studies.detect.shipped`.
    """
    groups = sorted(_groups(found), key=lambda row: -row["texts"])
    humans = [[row["group"], str(row["texts"]), _rate(row)] for row in groups]
    machines = [
        [f"{row['domain']}, {row['model']}", str(row["texts"])]
        + [share(row[kind] / row["texts"]) for kind in ("machine", "human", "cannot tell")]
        for row in _found(found)
    ]
    first = markdown(["texts by people", "calibrated on", "flagged at the 1% setting, expected [95%]"], humans)
    second = markdown(
        ["texts by machines", "texts", "called a machine's", "called a person's", "cannot tell"], machines
    )
    return first, second


def _groups(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The thresholds of groups, whatever the length."""
    return [row for row in found["thresholds"] if row["group"] and not row["length"]]


def _found(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was found of machines' texts, where there are enough to say a share."""
    return [row for row in found["found"] if row["texts"] >= FEW]


def _rate(row: dict[str, Any]) -> str:
    if row["rate"] is None:
        return "too few to tell: no verdict on what may be one"
    low, high = row["interval"]
    return f"{row['rate']:.2%} [{low:.2%}, {high:.2%}]"


def short(root: Path) -> str:
    """The shipped detector's errors in a sentence."""
    found = load(root, f"{HERE}/results/shipped.json", "python -m studies.detect.shipped --data DIR")
    rates = [row["rate"] for row in _groups(found) if row["rate"]]
    finds = [row["machine"] / row["texts"] for row in _found(found)]
    sentence = (
        f"The detector that comes with midcourse errs: at its usual setting it flags {min(rates):.1%} to "
        f"{max(rates):.1%} of people's texts like those of its calibration (expected), many more of others', and "
        f"finds {min(finds):.0%} to {max(finds):.0%} of machines' texts, by their kind."
    )
    return textwrap.fill(sentence, 120)


def lengths(root: Path) -> str:
    """The shipped detector by length."""
    rows = load(root, f"{HERE}/results/shipped.json", "python -m studies.detect.shipped --data DIR")["lengths"]
    lines = [
        [row["length"], str(row["humans"]), str(row["machines"])]
        + [with_interval(row[key], row[f"{key}_interval"], 3) for key in ("auroc", "tpr_at_1", "tpr_at_5")]
        for row in rows
    ]
    return markdown(["texts of", "human", "machine", "AUROC [95%]", "TPR at 1% [95%]", "TPR at 5% [95%]"], lines)


def domains(root: Path) -> str:
    """Every detector on the domains that it learned nothing from."""
    return _separated(load(root, f"{HERE}/results/domains.json", COMMAND)["cells"])


def models(root: Path) -> str:
    """Detectors on models that they learned nothing from."""
    return _separated(load(root, f"{HERE}/results/models.json", COMMAND)["cells"])


def aligned(root: Path) -> str:
    """Detectors of aligned models' texts on base models' texts."""
    return _separated(load(root, f"{HERE}/results/aligned.json", COMMAND)["cells"])


def training(root: Path) -> str:
    """ReMoDetect's training in parts, on texts of a domain that it learned nothing from."""
    return _separated(
        load(root, f"{HERE}/results/training.json", "python -m studies.detect.training --data DIR")["cells"]
    )


def _separated(cells: Sequence[dict[str, Any]]) -> str:
    """A row for each detector: AUROC and the share found at 1%, by domain, on average over models."""
    names, found = list(dict.fromkeys(row["detector"] for row in cells)), sorted({row["domain"] for row in cells})
    lines = []
    for name in names:
        line = [name]
        for domain in (*found, *([None] if len(found) > 1 else [])):
            mine = [row for row in cells if row["detector"] == name and domain in (None, row["domain"])]
            line += [number(fmean(row[key] for row in mine), 3) for key in ("auroc", "tpr_at_1")]
        lines.append(line)
    header = [
        f"{name}: {what}" for name in (*found, *(["mean"] if len(found) > 1 else [])) for what in ("AUROC", "TPR at 1%")
    ]
    return markdown(["detector", *header], lines)


def cells(root: Path) -> str:
    """Ours, every cell with its intervals."""
    rows = load(root, f"{HERE}/results/domains.json", COMMAND)["cells"]
    lines = [
        [f"{row['domain']}, {row['model']}", str(row["humans"]), str(row["machines"])]
        + [with_interval(row[key], row[f"{key}_interval"], 3) for key in ("auroc", "tpr_at_1", "tpr_at_5")]
        for row in rows
        if row["detector"] == OURS
    ]
    return markdown(["cell", "human", "machine", "AUROC [95%]", "TPR at 1% [95%]", "TPR at 5% [95%]"], lines)


def writers(root: Path) -> str:
    """Whom a threshold flags that was set on other people."""
    found = load(root, f"{HERE}/results/writers.json", COMMAND)
    rows, names = found["flagged"], list(dict.fromkeys(row["detector"] for row in found["flagged"]))
    lines = []
    for domain in dict.fromkeys(row["domain"] for row in rows):
        mine = {row["detector"]: row for row in rows if row["domain"] == domain}
        texts = next(iter(mine.values()))["texts"]
        lines.append([domain, str(texts), *(_flagged(mine[name]) for name in names)])
    return markdown(["texts by people", "texts", *names], lines)


def _flagged(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['rate']:.1%} [{low:.1%}, {high:.1%}]"


def rates(root: Path) -> str:
    """False-positive rates in draws of calibration texts."""
    lines = []
    for row in load(root, f"{HERE}/results/rates.json", COMMAND)["rows"]:
        group = f"{row['group']}, {'known' if row['group_known'] else 'not known'}"
        shares = (row["mean_rate"], row["draws_above"], row["without_threshold"])
        lines.append([group, f"{row['fpr']:.0%}", row["guarantee"], str(row["texts"]), *map(share, shares)])
    header = ["group", "rate", "guarantee", "texts", "flagged, mean", "draws above it", "no threshold"]
    return markdown(header, lines)


def changes(root: Path) -> str:
    """What is found of machine texts after they were changed."""
    lines = []
    for row in load(root, f"{HERE}/results/changes.json", COMMAND)["changes"]:
        kept = "" if row["kept"] is None else share(row["kept"])
        name = f"{row['change']}: {row['detector']}"
        lines.append([name, str(row["texts"]), share(row["before"]), share(row["after"]), kept])
    return markdown(["change", "texts", "found before", "found after", "still found, of those found before"], lines)


def published(root: Path) -> str:
    """Beside published figures."""
    rows = load(root, f"{HERE}/results/domains.json", COMMAND)["cells"]
    lines = [[name, *(number(fmean(of[domain]) / 100, 3) for domain in sorted(of))] for name, of in PUBLISHED.items()]
    for name in (OURS, "fast-detectgpt", "log-likelihood"):
        mine = [row for row in rows if row["detector"] == name and row["model"] in THEIR_MODELS]
        lines.append(
            [f"{name}, 0.135B (here)"]
            + [number(fmean(r["auroc"] for r in mine if r["domain"] == d), 3) for d in ("pubmed", "xsum")]
        )
    return markdown(["detector", "pubmed: mean AUROC", "xsum: mean AUROC"], lines)


def speed(root: Path) -> str:
    """What detection costs."""
    lines = []
    for row in load(root, "benchmarks/results/detect.json", "make bench")["rows"]:
        ratio = with_interval(row["ratio_to_bare"], row["ratio_interval"])
        lines.append([row["way"], number(row["texts_per_second"], 2), number(row["tokens_per_second"], 0), ratio])
    return markdown(["way", "texts per second", "tokens per second", "times bare passes [range]"], lines)


TABLES: dict[str, Table] = {
    "detect-short": short,
    "detect-card": card,
    "detect-lengths": lengths,
    "detect-domains": domains,
    "detect-models": models,
    "detect-aligned": aligned,
    "detect-training": training,
    "detect-cells": cells,
    "detect-writers": writers,
    "detect-rates": rates,
    "detect-changes": changes,
    "detect-published": published,
    "detect-speed": speed,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], ROOT, TABLES, [ROOT / HERE / "README.md"]))
