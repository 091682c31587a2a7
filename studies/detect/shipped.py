"""The detector that ships with midcourse: fitted, calibrated, measured, and written into the package.

    python -m studies.detect.shipped --data DIR        (or MIDCOURSE_DATA=DIR)

It learns from texts whose licences allow it, and is calibrated on texts of other sources. Writes
src/midcourse/shipped/detector/ and results/shipped.json here.
"""

import hashlib
import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from midcourse import LanguageModel
from midcourse.data.learned import write_learned_rows
from midcourse.detect.calibrate import calibrate, thresholds
from midcourse.detect.detector import Detector
from midcourse.detect.fit import fit_examples
from midcourse.detect.humans import LENGTHS, Scored, length_name
from midcourse.detect.measures import separation
from midcourse.detect.texts import LabelledText
from midcourse.evaluate.provenance import write_results
from midcourse.files import publish_folder, write_text
from midcourse.rewards.pooled import Reader
from studies.data import arguments, command, read
from studies.detect.features import MODEL, RUNS
from studies.detect.heads import HEADS, LAYER, OURS, examples
from studies.detect.run import FEW, RATE, distinct
from studies.detect.tables import card_tables
from studies.detect.texts import FREE, essays, fiction, pairs
from studies.detect.written import people, sources

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHIPPED = ROOT / "src/midcourse/shipped/detector"
EACH = 320  # human texts of a group to calibrate on: "at most 1% with 95% confidence" takes 299
MANY = 10**6
LEAST = 25  # words; shorter texts are not calibrated
# What a group of texts is called where thresholds are shown.
GROUPS = {
    "xsum": "news", "squad": "encyclopedia", "article": "encyclopedia", "review": "reviews", "abstract": "abstracts",
    "pubmed": "abstracts", "toefl": "non-native essays", "CS224N": "essays", "HewlettStudentEssay": "essays",
    "CollegeEssay": "essays", "fiction": "fiction",
}  # fmt: skip


def held(text: LabelledText, one_in: int) -> bool:
    """Whether a text's source is kept from learning, to calibrate on: one in so many is."""
    return int(hashlib.sha256(f"held {text.group}".encode()).hexdigest()[:8], 16) % one_in == 0


def learned_from(data: Path) -> list[LabelledText]:
    """Return what the detector learns from."""
    own = [text for text in essays(data) if not held(text, 2)]
    rest = [*pairs(data, FREE), *fiction(data)]
    return distinct([*own, *(text for text in rest if not held(text, 4)), *people(data)])


def calibrated_on(data: Path, learned: Iterable[LabelledText]) -> list[LabelledText]:
    """Return texts of other sources, people's and machines', each in its group."""
    own = [text for text in essays(data) if held(text, 2)]
    rest = [text for text in (*pairs(data, FREE), *fiction(data)) if held(text, 4)]
    known = {text.group for text in learned} | {text.text for text in learned}
    found: dict[str, list[LabelledText]] = {}
    for text in (*own, *rest, *strangers(data)):
        name = GROUPS[text.domain] if text.label == "human" else ""
        if not known & {text.group, text.text} and len(text.text.split()) >= LEAST:
            found.setdefault(name, []).append(replace(text, domain=GROUPS[text.domain]))
    return [text for name, some in found.items() for text in _first(some, EACH if name else len(some))]


def _first(texts: Sequence[LabelledText], most: int) -> list[LabelledText]:
    """Return so many texts, one of each source; of people's only, of machines' all different ones."""
    if texts[0].label == "machine":
        return list({text.text: text for text in texts}.values())
    of_sources = {text.text: text for text in {text.group: text for text in texts}.values()}.values()
    order = sorted(of_sources, key=lambda text: hashlib.sha256(text.text.encode()).hexdigest())
    return order[:most]


def strangers(data: Path) -> list[LabelledText]:
    """Return human texts of sources that nothing is learned from: news, articles, reviews and abstracts."""
    rows = read(data, "detection/fastdetect_open_models")
    found = [LabelledText(row["human"], "human", row["group"], row["domain"]) for row in rows]
    for split in ("train", "validation", "test"):
        some = sources(data, split, each=MANY)
        found += [LabelledText(source.human, "human", source.group, source.domain) for source in some]
    return found


def found_at(detector: Detector, machines: Sequence[LabelledText]) -> list[dict[str, Any]]:
    """Return what share of machine texts that it did not learn from it calls a machine's, by group and model."""
    found: dict[tuple[str, str], list[str]] = {}
    for part in (0, 1):
        # What machines' texts reach is taken from the others' half: the texts asked about have no say in it.
        half = replace(detector, machines=of_texts(detector.machines, lambda number, part=part: number % 2 != part))
        mine = machines[part::2]
        for text, verdict in zip(mine, half.score(mine, fpr=RATE), strict=True):
            found.setdefault((text.domain, text.model), []).append(verdict.verdict)
    return [
        {"domain": domain, "model": model, "texts": len(some)}
        | {name: some.count(name) for name in ("machine", "human", "cannot tell")}
        for (domain, model), some in sorted(found.items())
    ]


def of_texts(scored: Scored, wanted: Callable[[int], bool]) -> Scored:
    """Return the scores of texts by their number, each with its beginnings, behind which it stands."""
    owners = np.cumsum(scored.whole) - scored.whole
    mine = np.array([wanted(int(number)) for number in owners], dtype=bool)
    return Scored(*(getattr(scored, one.name)[mine] for one in fields(Scored)))


def by_length(detector: Detector) -> list[dict[str, Any]]:
    """Return how well texts of each length are told apart, beginnings of longer ones among them."""
    pairs_of = [
        (length_name(n), detector.humans.of_length(n), detector.machines.of_length(n)) for n in range(len(LENGTHS) + 1)
    ]
    return [{"length": name, **separation(h, m)} for name, h, m in pairs_of if len(h) >= FEW and len(m) >= FEW]


def main() -> None:
    asked = arguments(__doc__ or "").parse_args()
    learn = learned_from(asked.data)
    lm = LanguageModel.load(MODEL)
    reward, metrics = fit_examples(Reader(lm, (LAYER,)), examples(learn, HEADS[OURS]))
    texts = calibrated_on(asked.data, learn)
    detector = calibrate(reward, texts)
    work = RUNS / "shipped"
    shutil.rmtree(work, ignore_errors=True)
    reward.save(work)
    write_learned_rows(work, learn)
    detector.save(work)
    found = {
        "fit": metrics,
        "calibration": detector.about,
        "thresholds": thresholds(detector, RATE),
        "lengths": by_length(detector),
        "bytes": sum(file.stat().st_size for file in work.iterdir()),
        "found": found_at(detector, [text for text in texts if text.label == "machine"]),
    }
    write_results(HERE / "results/shipped.json", found)
    write_text(work / "README.md", card(found))
    publish_folder(work, SHIPPED, replace=True)


def card(found: dict[str, Any]) -> str:
    """The model card: error rates first."""
    humans, machines = card_tables(found)
    fit = found["fit"]
    paragraphs = [
        "**It errs.** Of people's texts like those below it calls up to 1 in 100 a machine's at its usual setting, and "
        "more of texts unlike them: of other languages, code and lists it may say anything, and of old or often copied "
        "texts that a machine wrote them. Of machines' texts it misses the shares below, and more of what models write "
        "that came later, of short texts, and of texts that were reworked.",
        "**Do not use it** to decide about a person on its word alone: not about a pupil's essay, an application, a "
        "payment, or a post. Non-native writers are flagged far more often than others by thresholds that were set on "
        "others' texts; calibrate it on texts of the people that you ask about, and look at what else there is.",
        f"It learned from {fit['humans']} human and {fit['machines']} machine texts in English (news, medical answers, "
        "essays, fiction, reviews, abstracts, articles) of Fast-DetectGPT's and Glimpse's data (MIT), the TOEFL and "
        "detector-bias essays (MIT), LAMP (BSD-3-Clause), IMDB reviews, SciTLDR's abstracts and QA-Feedback's articles "
        "(Apache-2.0). It is a linear head on SmolLM2-135M-Instruct "
        f"(`smollm2`), Fisher's discriminant with a ridge of {fit['ridge']:g} tokens; it is calibrated on texts of "
        "sources that it did not learn from.",
    ]
    errs, misuse, about = (textwrap.fill(text, 120, break_on_hyphens=False) for text in paragraphs)
    return f"""---
library_name: midcourse
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
language: en
---

# The detector that comes with midcourse

{errs}

{humans}

{machines}

{misuse}

{about}

Made by `python -m studies.detect.shipped`; all figures stand in `studies/detect/results/shipped.json`.
"""


if __name__ == "__main__":
    command(main)
