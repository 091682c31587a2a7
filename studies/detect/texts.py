"""The texts of the study, from the data sets: who wrote each, and what it belongs to."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from midcourse.detect.attacks import Change
from midcourse.detect.texts import LabelledText
from studies.data import read
from studies.detect.written import people, written

# ReMoDetect's own texts come without a licence: they are measured on, and what ships is trained on their MIT copies.
CELLS = ("detection/remodetect", "detection/fastdetect_api_models")
FREE = ("detection/fastdetect_gpt35_gpt4", "detection/fastdetect_api_models")
EACH_BASE = 60  # texts of each of those models and domains
CHANGED = 3  # of the texts that tools changed one in so many is read
BASE = ("davinci",)  # models that were not made to follow instructions


def pairs(data: Path, names: Sequence[str]) -> list[LabelledText]:
    """Return the texts of people and of aligned models of these data sets; of a pair both have its group."""
    return [text for name in names for row in read(data, name) if row["model"] not in BASE for text in _pair(row)]


def _pair(row: dict[str, Any]) -> Iterator[LabelledText]:
    about = {"group": row["group"], "domain": row["domain"], "model": row["model"]}
    yield LabelledText(row["human"], "human", **about)
    yield LabelledText(row["llm"], "machine", **about)


def essays(data: Path) -> list[LabelledText]:
    """Return students' and applicants' essays, and machines', polished ones among them."""
    found = [text for row in read(data, "detection/toefl_essays_chatgpt") for text in _pair({**row, "domain": "toefl"})]
    for row in read(data, "detection/detector_bias"):
        domain = {"TOEFL": "toefl"}.get(row["domain"], row["domain"])
        label = "human" if row["label"] == "human" else "machine"
        found.append(LabelledText(row["text"], label, row["group"], domain, row["model"]))
    return found


def base_models(data: Path) -> list[LabelledText]:
    """Return texts of models that were not made to follow instructions, and people's on the same subjects."""
    rows = [row for row in read(data, "detection/fastdetect_open_models") if row["idx"] < EACH_BASE]
    return [text for row in rows for text in _pair(row)]


def fiction(data: Path) -> list[LabelledText]:
    """Return literary paragraphs that machines wrote."""
    rows = read(data, "edits/lamp")
    return [LabelledText(row["original"], "machine", row["group"], "fiction", row["model"]) for row in rows]


def changes(data: Path) -> dict[str, list[Change]]:
    """Return machine texts before and after commercial tools made them look human, and people edited them."""
    tools = read(data, "detection/humanized_by_tools")
    edited = read(data, "detection/edited_by_people")
    return {
        "humanized by tools": [Change(row["llm"], row["humanized"]) for row in tools[::CHANGED]],
        "edited by people": [Change(row["llm"], row["edited"]) for row in edited],
    }


def everything(data: Path) -> Iterator[str]:
    """Every text of the data sets that is read."""
    yield from (text.text for text in pairs(data, (*CELLS, *FREE)))
    for texts in (essays, fiction, people, written, base_models):
        yield from (text.text for text in texts(data))
    for change in changes(data).values():
        yield from (text for both in change for text in both)
