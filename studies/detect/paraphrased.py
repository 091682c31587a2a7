"""Machine texts of which SmolLM2-Instruct said every sentence in other words."""

from pathlib import Path

from midcourse import LanguageModel
from midcourse.detect.attacks import Change
from midcourse.detect.mix import mix
from midcourse.detect.rephrase_lm import LMRephraser
from midcourse.detect.texts import LabelledText
from studies.detect.features import MODEL, RUNS, read_all
from studies.detect.texts import changes

ONE_IN = 2  # of the texts that tools changed


def paraphrased(data: Path) -> list[Change]:
    """Return machine texts before and after; they are rephrased once, and resumed, and read."""
    texts = [LabelledText(change.before) for change in changes(data)["humanized by tools"][::ONE_IN]]
    out = RUNS / "paraphrased.jsonl"
    RUNS.mkdir(parents=True, exist_ok=True)
    rows = mix(texts, LMRephraser(LanguageModel.load(MODEL)), out, ratio=1, resume=out.exists())
    found = [Change(row.human, row.mixed) for row in rows if row.mixed is not None]
    read_all(change.after for change in found)
    return found
