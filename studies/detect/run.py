"""Who wrote this? Detectors on one small frozen model, trained on some domains and models and tested on others.

    python -m studies.detect.run --data DIR [NAME ...]        (or MIDCOURSE_DATA=DIR)

    domains    what is told apart in a domain of ReMoDetect's that nothing was learned from, by every detector
    models     the same of a language model that nothing was learned from
    aligned    texts of base models, when aligned models' were learned from
    writers    how many texts of other people thresholds flag that were set on some people's
    rates      false-positive rates in draws of the calibration texts, each group of writers by itself
    changes    how many machine texts are still found after tools, people or a language model changed them

Texts are read once (studies.detect.features), and everything is found again in runs/. Writes results/NAME.json and
detect.png here. Texts of the data sets are not committed.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import binom

from midcourse.detect.conformal import Guarantee, threshold
from midcourse.detect.humans import Scored, bound_of, lengths_of
from midcourse.detect.measures import cut, realised, separation
from midcourse.detect.texts import LabelledText
from midcourse.errors import MidcourseError
from midcourse.evaluate.provenance import write_results
from midcourse.progress import progress
from studies.data import arguments, command
from studies.detect.features import path_of
from studies.detect.heads import DETECTORS, OURS, Detector
from studies.detect.paraphrased import paraphrased
from studies.detect.plot import plot
from studies.detect.texts import CELLS, base_models, changes, essays, fiction, pairs
from studies.detect.written import people, written

HERE = Path(__file__).parent
FOLDS = 5
RATE = 0.01
RATES = (0.01, 0.05)
DRAWS = 200
CALIBRATED = 0.75  # share of the sources that a draw calibrates on
JOINED = {**dict.fromkeys(("CS224N", "CollegeEssay", "HewlettStudentEssay"), "essays"), "pubmed": "abstract"}
WORDS_READ = 3  # a text of fewer may have no token that counts
FEW = 30  # texts of a group; fewer say nothing of a rate
CHOSEN = (OURS, "likelihoods", "fast-detectgpt")


# The texts


def each_once(texts: Iterable[LabelledText]) -> list[LabelledText]:
    """Return each text once, a human one that stands beside several machines' too; those without tokens left out."""
    found = {(text.text, text.label, text.model if text.label == "machine" else ""): text for text in texts}
    return [text for text in found.values() if len(text.text.split()) >= WORDS_READ]


def distinct(texts: Iterable[LabelledText]) -> list[LabelledText]:
    """Return each text once, as `each_once`; MidcourseError if what SmolLM2 computes of one is not there."""
    there = each_once(texts)
    unread = sum(not path_of(text.text).exists() for text in there)
    if unread:
        raise MidcourseError(
            f"{unread} of {len(there)} texts were not read; run python -m studies.detect.features first"
        )
    return there


def others(data: Path) -> list[LabelledText]:
    """Return texts of further domains to learn from."""
    return distinct([*essays(data), *fiction(data), *people(data)])


def folds_of(texts: Sequence[LabelledText]) -> np.ndarray:
    """Return which of `FOLDS` each text is in, by its group."""
    return np.array([int(hashlib.sha256(text.group.encode()).hexdigest()[:8], 16) % FOLDS for text in texts])


def crossed(texts: Sequence[LabelledText], detector: Detector) -> np.ndarray:
    """Return the score of each text by a detector that learned from the other folds."""
    folds, scores = folds_of(texts), np.zeros(len(texts))
    for fold in range(FOLDS):
        mine = np.flatnonzero(folds == fold)
        learn = [text for text, other in zip(texts, folds, strict=True) if other != fold]
        scores[mine] = detector(learn, [texts[n] for n in mine])
    return scores


def cells(texts: Sequence[LabelledText], scores: np.ndarray, detector: str, left: str) -> list[dict[str, Any]]:
    """Return how well each model's texts are told from the human ones of their domain."""
    humans = [n for n, text in enumerate(texts) if text.label == "human"]
    rows = []
    for model in sorted({text.model for text in texts if text.label == "machine"}):
        machines = [n for n, text in enumerate(texts) if text.label == "machine" and text.model == model]
        groups = [[texts[n].group for n in some] for some in (humans, machines)]
        about = {"detector": detector, "left_out": left, "domain": texts[0].domain, "model": model}
        rows.append({**about, **separation(scores[humans], scores[machines], *groups)})
    return rows


# What is learned from some texts and asked of others


def domains(data: Path) -> dict[str, Any]:
    """Leave a domain of ReMoDetect's out: learn from the other one and from all further texts."""
    texts, more = distinct(pairs(data, CELLS)), others(data)
    rows = []
    with progress("domains left out", 2 * len(DETECTORS)) as advance:
        for domain in sorted({text.domain for text in texts}):
            asked = [text for text in texts if text.domain == domain]
            learn = [text for text in (*texts, *more) if text.domain != domain]
            for name, detector in DETECTORS.items():
                rows += cells(asked, detector(learn, asked), name, domain)
                advance(1)
            own = [*learn, *distinct(written(data))]
            rows += cells(asked, DETECTORS[OURS](own, asked), f"{OURS}, SmolLM2's own texts learned too", domain)
    return {"cells": rows}


def models(data: Path) -> dict[str, Any]:
    """Leave a model out, and of every other one a fold of the sources, from which the human texts come."""
    texts, more = distinct(pairs(data, CELLS)), others(data)
    rows, folds = [], folds_of(texts)
    names = sorted({text.model for text in texts if text.label == "machine"})
    with progress("models left out", len(names) * len(CHOSEN)) as advance:
        for model in names:
            wanted = [n for n, text in enumerate(texts) if text.label == "human" or text.model == model]
            for name in CHOSEN:
                scores = np.zeros(len(texts))
                for fold in range(FOLDS):
                    mine = [n for n in wanted if folds[n] == fold]
                    learn = [
                        text
                        for text, other in zip(texts, folds, strict=True)
                        if other != fold and (text.label == "human" or text.model != model)
                    ]
                    scores[mine] = DETECTORS[name]([*learn, *more], [texts[n] for n in mine])
                for domain in sorted({texts[n].domain for n in wanted}):
                    there = [n for n in wanted if texts[n].domain == domain]
                    rows += cells([texts[n] for n in there], scores[there], name, model)
                advance(1)
    return {"cells": rows}


def aligned(data: Path) -> dict[str, Any]:
    """Learn from aligned models' texts; ask of base models' news and encyclopedia articles."""
    asked = distinct(base_models(data))
    here = {text.domain for text in asked}
    learn = [text for text in (*distinct(pairs(data, CELLS)), *others(data)) if text.domain not in here]
    rows = []
    for name in CHOSEN:
        scores = DETECTORS[name](learn, asked)
        for domain in sorted(here):
            mine = [n for n, text in enumerate(asked) if text.domain == domain]
            rows += cells([asked[n] for n in mine], scores[mine], name, domain)
    return {"cells": rows}


# Whom thresholds flag


def writers(data: Path) -> dict[str, Any]:
    """Set thresholds on the people of ReMoDetect's domains, and see whom else they flag."""
    texts = distinct(pairs(data, CELLS))
    elsewhere = [text for text in others(data) if text.label == "human"]
    own = [text for text in texts if text.label == "human"]
    rows = []
    for name in CHOSEN:
        limit = cut(_of(crossed(texts, DETECTORS[name]), texts, own), RATE)
        scores = DETECTORS[name](texts, elsewhere)
        for domain in sorted({text.domain for text in elsewhere}):
            mine = [n for n, text in enumerate(elsewhere) if text.domain == domain]
            if len(mine) >= FEW:
                rows.append({"detector": name, "domain": domain, **realised(scores[mine], limit)})
    return {"rate": RATE, "flagged": rows}


def _of(scores: np.ndarray, texts: Sequence[LabelledText], wanted: Sequence[LabelledText]) -> np.ndarray:
    places = {id(text): n for n, text in enumerate(texts)}
    return scores[[places[id(text)] for text in wanted]]


def rates(data: Path) -> dict[str, Any]:
    """Draw most of the sources to calibrate on, and see how many of the other texts are flagged, one a source.

    Thresholds are those of `midcourse detect score`, of each length and of each group, but no text's beginning counts
    among the short ones here. A text whose group is not known has to lie above all groups' thresholds, so small groups
    are joined to one that is like them.
    """
    texts = [*distinct(pairs(data, CELLS)), *others(data)]
    scores = crossed(texts, DETECTORS[OURS])
    humans = list({text.group: n for n, text in enumerate(texts) if text.label == "human"}.values())
    sources = np.array([texts[n].group for n in humans])
    own = Scored(
        scores[humans],
        np.array([len(texts[n].text.split()) for n in humans]),
        np.array([JOINED.get(texts[n].domain, texts[n].domain) for n in humans]),
        np.ones(len(humans), dtype=bool),
    )
    groups = [name for name in own.group_names if (own.groups == name).sum() >= FEW]
    rows = []
    for fpr in RATES:
        for guarantee in ("average", "confidence"):
            for known in (True, False):
                rows += _draws(own, sources, groups, fpr, guarantee, known)  # type: ignore[arg-type]
    return {"draws": DRAWS, "rows": rows}


def _draws(
    own: Scored, sources: np.ndarray, groups: Sequence[str], fpr: float, guarantee: Guarantee, known: bool
) -> list[dict[str, Any]]:
    random, names, lengths = np.random.default_rng(0), np.unique(sources), lengths_of(own.words)
    found: dict[str, list[tuple[int, int, int]]] = {name: [] for name in groups}
    for _ in range(DRAWS):
        first = np.isin(sources, random.permutation(names)[: round(CALIBRATED * len(names))])
        held = Scored(*(getattr(own, part)[first] for part in ("scores", "words", "groups", "whole")))
        bounds: dict[tuple[int, str], float | None] = {}
        for name in groups:
            asked = np.flatnonzero(~first & (own.groups == name))
            flagged = missing = 0
            for n in asked:
                key = (int(lengths[n]), name)
                if key not in bounds:
                    calibrated = name if known and name in held.group_names else None
                    bounds[key] = bound_of(held, int(own.words[n]), fpr, guarantee, calibrated).score
                limit = bounds[key]
                missing += limit is None
                flagged += limit is not None and bool(own.scores[n] > limit)
            if len(asked):
                found[name].append((flagged, missing, len(asked)))
    return [
        {
            "fpr": fpr,
            "guarantee": guarantee,
            "group_known": known,
            "group": name,
            "texts": int((own.groups == name).sum()),
            "mean_rate": fmean(flagged / asked for flagged, _, asked in some),
            "draws_above": fmean(flagged > binom.ppf(0.95, asked, fpr) for flagged, _, asked in some),
            "without_threshold": fmean(missing / asked for _, missing, asked in some),
        }
        for name, some in found.items()
    ]


def changed(data: Path) -> dict[str, Any]:
    """Set a threshold on all people, and see what is found of machine texts before and after they were changed."""
    texts = [*distinct(pairs(data, CELLS)), *others(data)]
    rows = []
    for name in CHOSEN:
        scores = crossed(texts, DETECTORS[name])
        limit = threshold(scores[[text.label == "human" for text in texts]], RATE).score
        assert limit is not None
        for kind, some in {**changes(data), "paraphrased by SmolLM2": paraphrased(data)}.items():
            some = [one for one in some if path_of(one.before).exists() and path_of(one.after).exists()]
            before, after = (
                DETECTORS[name](texts, [LabelledText(text) for text in side]) > limit
                for side in ([one.before for one in some], [one.after for one in some])
            )
            rows.append(
                {
                    "detector": name,
                    "change": kind,
                    "texts": len(some),
                    "before": float(before.mean()),
                    "after": float(after.mean()),
                    "kept": float(after[before].mean()) if before.any() else None,
                }
            )
    return {"rate": RATE, "changes": rows}


EXPERIMENTS = {
    "domains": domains,
    "models": models,
    "aligned": aligned,
    "writers": writers,
    "rates": rates,
    "changes": changed,
}


def mean_of(found: dict[str, Any], detector: str, domain: str | None = None) -> tuple[float, float]:
    """Return the mean AUROC, and the mean share found at 1% flagged, over a detector's cells."""
    mine = [row for row in found["cells"] if row["detector"] == detector and domain in (None, row["domain"])]
    return fmean(row["auroc"] for row in mine), fmean(row["tpr_at_1"] for row in mine)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("names", nargs="*", choices=[[], *EXPERIMENTS], metavar="NAME", help="all by default")
    asked = parser.parse_args()
    for name in asked.names or EXPERIMENTS:
        write_results(HERE / f"results/{name}.json", EXPERIMENTS[name](asked.data))
    plot(HERE, HERE / "detect.png")


if __name__ == "__main__":
    command(main)
