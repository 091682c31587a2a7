"""ReMoDetect's training on answers of PubMedQA, asked about other answers and about news: what its parts are worth.

    python -m studies.detect.training --data DIR [NAME ...]        (or MIDCOURSE_DATA=DIR)

Each variant learns machine > mixed > human from `LADDERS` ladders on some questions, and is asked about texts on other
questions and of another domain. Human texts are mixed by SmolLM2. What was trained is found again in
runs/detect/training, and results/training.json holds the variants that are done.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from midcourse import LanguageModel, load_reward
from midcourse.data.comparisons import Comparison, comparison_of
from midcourse.data.ladders import Ladder
from midcourse.detect.disguise import plain
from midcourse.detect.mix import mix
from midcourse.detect.rephrase_lm import LMRephraser
from midcourse.detect.texts import LabelledText
from midcourse.detect.train import train_detector
from midcourse.evaluate.provenance import write_results
from midcourse.files import as_json, write_text
from midcourse.progress import progress
from midcourse.rewards.contract import Text
from midcourse.rewards.trained import TrainedReward
from midcourse.train.objectives import make_objective
from midcourse.train.settings import Settings
from midcourse.train.start import begin
from studies.data import arguments, command, of_split, read
from studies.detect.features import MODEL, RUNS, read_all
from studies.detect.heads import DETECTORS, OURS
from studies.detect.run import cells, distinct, each_once
from studies.detect.texts import BASE, CELLS, pairs

HERE = Path(__file__).parent
LEARNED, OTHER = "pubmed", "xsum"
ASKED = 3  # one question in so many is asked about, and nothing of it learned
LADDERS = 240
MIXED = 75  # questions whose human text is mixed
EACH = 20  # texts of each model that are asked about in a domain; of people's, at most four times as many
EPOCHS = 6
FROZEN = "linear head on frozen states (states by surprise)"
TOKENS = 320  # of a text, and of what is replayed with its prompt; the rest is cut off
PART = 64


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        start: what training begins at, for `begin`.
        weights: for the objective.
        mixed, replayed: whether mixed texts, and preference texts, are learned from.
    """

    start: Mapping[str, Any] = field(default_factory=lambda: {"name": MODEL, "layers": 20, "tune": "last:2"})
    weights: Mapping[str, Any] = field(default_factory=lambda: {"preset": "paper"})
    mixed: bool = True
    replayed: bool = True


VARIANTS = {
    "ReMoDetect, last 2 of 20 layers": Variant(),
    "without replay": Variant(replayed=False),
    "without mixed texts": Variant(mixed=False),
    "weights of the published code": Variant(weights={"preset": "code"}),
    "frozen, trunk head": Variant(start={"name": MODEL, "head": "trunk"}),
    "MiniLM, last 2 layers": Variant(start={"name": "minilm"}),
}


def ladders(data: Path, mixed: Mapping[str, str]) -> list[Ladder]:
    """Return machine > mixed > human of sources to learn from, the mixed text where there is one."""
    rows = [row for name in CELLS for row in read(data, name) if row["domain"] == LEARNED and row["model"] not in BASE]
    learned = [row for row in rows if not asked(row["group"])]
    found = []
    for row in Random(0).sample(learned, len(learned))[:LADDERS]:
        between = mixed.get(plain(row["human"]).text)
        levels = (row["llm"], *((between,) if between else ()), row["human"])
        found.append(Ladder(levels, row["group"]))
    return found


def asked(group: str) -> bool:
    """Whether a question is kept from learning, to be asked about."""
    return int(hashlib.sha256(f"asked {group}".encode()).hexdigest()[:8], 16) % ASKED == 0


def mixed_texts(data: Path) -> dict[str, str]:
    """Return human texts to learn from, each with what SmolLM2 made of half of its sentences."""
    humans = {text.group: text for text in pairs(data, CELLS) if text.domain == LEARNED and text.label == "human"}
    texts = [LabelledText(plain(text.text).text, "human", text.group) for text in list(humans.values())[:MIXED]]
    out = RUNS / f"mixed-{LEARNED}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    found = mix(texts, LMRephraser(LanguageModel.load(MODEL)), out, resume=out.exists())
    return {one.human: one.mixed for one in found if one.mixed}


def asked_about(data: Path) -> list[LabelledText]:
    """Return texts on questions that nothing is learned from, and of the other domain: people's and every model's."""
    texts = [text for text in each_once(pairs(data, CELLS)) if text.domain == OTHER or asked(text.group)]
    by_writer: dict[tuple[str, str], list[LabelledText]] = {}
    for text in Random(0).sample(texts, len(texts)):
        by_writer.setdefault((text.domain, text.model if text.label == "machine" else ""), []).append(text)
    return [text for (_, writer), some in by_writer.items() for text in some[: EACH if writer else 4 * EACH]]


def replay(data: Path, reward: TrainedReward) -> list[Comparison]:
    """Return comparisons on which a reward is to stay what it is, their prompts short enough to leave it room."""
    rows = of_split(read(data, "preference/hh_helpful_base"), "train")
    fitting = (one for one in map(comparison_of, rows) if reward.prompt_problem(one.prompt, TOKENS // 2) is None)
    return list(islice(fitting, 2 * LADDERS))


def scores_of(folder: Path, texts: Sequence[LabelledText]) -> np.ndarray:
    """Return what a trained detector says of texts."""
    reward, found = load_reward(folder), []
    with progress("reading", len(texts)) as advance:
        for begin_at in range(0, len(texts), PART):
            part = texts[begin_at : begin_at + PART]
            found += reward.rate([Text("", plain(text.text).text, True) for text in part])
            advance(len(part))
    return np.array(found)


def path_of_variant(name: str) -> Path:
    return RUNS / "training" / "-".join(name.replace(",", "").split())


def trained(name: str, variant: Variant, data: Path) -> list[dict[str, Any]]:
    """Return how well a variant tells texts of the other domain apart."""
    folder = path_of_variant(name)
    done = folder.with_suffix(".json")
    if done.exists():
        return list(json.loads(done.read_text()))
    if not (folder / "midcourse.json").exists():
        reward = begin(objective=make_objective("ordered", **variant.weights), **variant.start)
        train_detector(
            reward,
            ladders(data, mixed_texts(data) if variant.mixed else {}),
            folder,
            Settings(epochs=EPOCHS, batch_size=8, max_tokens=TOKENS),
            replay=replay(data, reward) if variant.replayed else (),
            resume=(folder / "run.json").exists(),
        )
    texts = asked_about(data)
    rows = of_domains(texts, scores_of(folder, texts), name)
    write_text(done, as_json(rows))
    return rows


def of_domains(texts: Sequence[LabelledText], scores: np.ndarray, name: str) -> list[dict[str, Any]]:
    """Return how well a detector tells the texts of each domain apart."""
    return [
        row
        for domain in (LEARNED, OTHER)
        if (mine := np.array([text.domain == domain for text in texts])).any()
        for row in cells([text for text, own in zip(texts, mine, strict=True) if own], scores[mine], name, domain)
    ]


def frozen(data: Path) -> list[dict[str, Any]]:
    """Return what a head on frozen states, fitted at once to the same texts, says of the same."""
    known = {text.text: text for text in pairs(data, CELLS)}
    learn = [known[level] for ladder in ladders(data, {}) for level in ladder.levels]
    texts = asked_about(data)
    read_all(text.text for text in (*learn, *texts))
    return of_domains(texts, DETECTORS[OURS](distinct(learn), texts), FROZEN)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("names", nargs="*", choices=[[], *VARIANTS], metavar="NAME", help="all by default")
    given = parser.parse_args()
    beside = frozen(given.data)
    for name in given.names or VARIANTS:
        trained(name, VARIANTS[name], given.data)
        done = [path_of_variant(name).with_suffix(".json") for name in VARIANTS]
        rows = [row for path in done if path.exists() for row in json.loads(path.read_text())] + beside
        write_results(HERE / "results/training.json", {"cells": rows})


if __name__ == "__main__":
    command(main)
