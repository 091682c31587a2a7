"""Verdicts on many texts, written to a file as they are found."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from midcourse.data.comparisons import digest
from midcourse.data.formats import Problem
from midcourse.data.jsonl import RowFileError, append_row, appending, kept_rows, keys_alone
from midcourse.data.prompts import begin_record, recorded
from midcourse.data.record import only_writer
from midcourse.detect.detector import Detector
from midcourse.detect.texts import LabelledText
from midcourse.progress import progress
from midcourse.rewards.fingerprint import reward_fingerprint


def write_verdicts(
    out: Path, detector: Detector, texts: Sequence[LabelledText], asked: Mapping[str, Any], *, resume: bool = False
) -> tuple[int, int]:
    """Write a row for every text into a file; return how many were written, and how many were there before.

    Args:
        asked: the arguments of `Detector.score` besides the texts.
        resume: keep the rows of the file, and add the missing ones.

    Raises:
        RowFileError: another process writes to the file; it holds rows, and `resume` is not set or they were asked for
            otherwise.
        DetectorError: as `Detector.score`.
    """
    with only_writer(out, "file", "run", RowFileError):
        there = kept_rows(out, resume, lambda row: _number(row, texts), keys_alone)
        numbers = sorted({str(p.dtype).removeprefix("torch.") for m in detector.reward.models for p in m.parameters()})
        wanted = {
            "detector": reward_fingerprint(detector.reward),
            "calibration": detector.fingerprint,
            "dtype": numbers,
            **asked,
        }
        left = [number for number in range(len(texts)) if number not in there]
        with progress("reading", len(left)) as advance:
            verdicts = detector.score([texts[number] for number in left], **asked, advance=advance)
            begin_record(out, wanted, [text.text for text in texts], recorded(out), "texts")
            with appending(out) as file:
                for number, verdict in zip(left, verdicts, strict=True):
                    append_row(file, {"row": number, "text_hash": _hash(texts[number]), **asdict(verdict)})
    return len(left), len(there)


def _number(row: dict[str, Any], texts: Sequence[LabelledText]) -> int:
    """Return the number of the text that a row is about; Problem if that text is another."""
    number = row["row"]
    if not 0 <= number < len(texts):
        raise Problem("row", f"is row {number} of other texts, here are {len(texts)}")
    if row["text_hash"] != _hash(texts[number]):
        raise Problem("row", f"is about another text than text {number}")
    return number


def _hash(text: LabelledText) -> str:
    return digest(text.text)[:16]
