"""What the studies share about data: the folder of the data sets, their rows as comparisons, and what is made once."""

import argparse
import gzip
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from midcourse import LanguageModel
from midcourse.data.comparisons import Comparison
from midcourse.errors import MidcourseError
from midcourse.files import write_text
from midcourse.rewards.scalar import RewardModel

HELPFUL = ("hh_helpful_base", "hh_helpful_online", "hh_helpful_rejection_sampled")
HARMLESS = ("hh_harmless_base",)
HH = {"hh": HELPFUL + HARMLESS, "hh_helpful": HELPFUL, "hh_harmless": HARMLESS}
OPENING_WORDS = 8
PARADETOX = "repaired"  # how ParaDetox is read; committed results say it, or "as published"


# The command line of a study


def arguments(about: str) -> argparse.ArgumentParser:
    """A parser that takes the folder of the data sets; `about` is the study's docstring."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    given = os.environ.get("MIDCOURSE_DATA")
    about_data = "folder of the data sets; MIDCOURSE_DATA by default"
    parser.add_argument("--data", type=_folder, default=given, required=not given, help=about_data)
    return parser


def _folder(given: str) -> Path:
    data = Path(given)
    if not (data / "texts/imdb_reviews.jsonl.gz").is_file():
        raise argparse.ArgumentTypeError(
            f"{given!r} is not the folder of the data sets; give it, or set MIDCOURSE_DATA"
        )
    return data


def command(main: Callable[[], None]) -> None:
    """Run a study; what it cannot do ends it with a sentence."""
    try:
        main()
    except MidcourseError as error:
        sys.exit(str(error))


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON value that the file holds, made and written where there is none."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(make()))
    return json.loads(path.read_text())


# The data sets


def read(data: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a data set."""
    with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def of_split(rows: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """Return the rows of a split."""
    return [row for row in rows if row["split"] == split]


def comparisons(name: str, data: Path, *, made: str = PARADETOX) -> tuple[list[Comparison], list[Comparison]]:
    """Return (train, test) comparisons of paradetox, hh, hh_helpful or hh_harmless, in a fixed random order.

    Args:
        made: how ParaDetox is read, "repaired" or "as published".
    """
    if name == "paradetox":
        rows = read(data, "edits/paradetox")
        make = {"repaired": rewritten, "as published": published}[made]
        return in_random_order(make(of_split(rows, "train")), make(of_split(rows, "test")))
    return split([row for part in HH[name] for row in read(data, f"preference/{part}")], human)


def split(
    rows: Sequence[dict[str, Any]], comparison: Callable[[dict[str, Any]], Comparison]
) -> tuple[list[Comparison], list[Comparison]]:
    """The rows of the train and of the test split, in a fixed random order."""
    train, test = ([comparison(row) for row in of_split(rows, name)] for name in ("train", "test"))
    return in_random_order(train, test)


def in_random_order(train: list[Comparison], test: list[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
    """Both in one fixed random order."""
    order = np.random.default_rng(0)
    return [train[i] for i in order.permutation(len(train))], [test[i] for i in order.permutation(len(test))]


def rewritten(rows: Sequence[dict[str, Any]]) -> list[Comparison]:
    """Return ParaDetox pairs, both sides spelt alike: the originals are tokenised, which alone would tell them.

    As published, a bag of words has a pair accuracy of 0.78 at a tenth of the response.
    """
    pairs = [(spelt_alike(row["edited"]), spelt_alike(row["original"])) for row in rows]
    return [Comparison("", a, b) for a, b in pairs if a != b and a and b]


def published(rows: Sequence[dict[str, Any]]) -> list[Comparison]:
    """Return ParaDetox pairs as they are published."""
    return [Comparison("", row["edited"], row["original"]) for row in rows if row["edited"] != row["original"]]


def spelt_alike(text: str) -> str:
    """Return a text in lower case, punctuation and contractions joined to their words, without a last full stop."""
    text = re.sub(r"\s+([.,!?;:%)\]}'\u2019]|n't)", r"\1", text.lower().strip())
    text = re.sub(r"([(\[{])\s+", r"\1", re.sub(r"(\w)\s?'\s?(\w)", r"\1'\2", text))
    return re.sub(r"\s+", " ", text).strip().rstrip(".!? ")


def kept_as(name: str) -> str:
    """Return a name for files that a study keeps: what was made of ParaDetox as published is not taken for it."""
    return name.replace("detox", f"detox-{PARADETOX}")


def human(row: dict[str, Any]) -> Comparison:
    """An HH pair; the sets cut the transcript's mark off the response's first space."""
    return Comparison(row["prompt"], " " + row["chosen"].strip(), " " + row["rejected"].strip())


def openings(data: Path, split: str) -> list[str]:
    """The first words of film reviews, each once, in a fixed random order."""
    texts = [
        " ".join(row["text"].split()[:OPENING_WORDS])
        for row in read(data, "texts/imdb_reviews")
        if row["split"] == split
    ]
    distinct = list(dict.fromkeys(texts))
    return [distinct[i] for i in np.random.default_rng(0).permutation(len(distinct))]


def fitting(model: RewardModel | LanguageModel, rows: Sequence[Comparison], max_tokens: int) -> list[Comparison]:
    """The comparisons whose prompt leaves at least a third of the tokens to the response."""
    texts = [row.prompt or "x" for row in rows]
    lengths = [len(ids) for ids in model.tokenizer(texts)["input_ids"]]
    return [row for row, length in zip(rows, lengths, strict=True) if length <= 2 * max_tokens // 3]
