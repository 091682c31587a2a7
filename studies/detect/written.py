"""Texts that SmolLM2-Instruct writes beside people's: on the same papers, films and subjects."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from midcourse import LanguageModel
from midcourse.data.sample import sample
from midcourse.detect.texts import LabelledText
from studies.data import of_split, read

MODEL = "smollm2"
WORDS = 25  # fewer are no text
OPENING = 12
ARTICLE = 200  # words of an article that are read
EACH = 400  # of a domain
ANSWERED = 120  # those that a machine writes beside
TOKENS = 160
RUNS = Path(__file__).parents[2] / "runs/detect"


class Source(NamedTuple):
    """A text by a person, and what would make a machine write its like."""

    domain: str
    group: str
    human: str
    message: str


def sources(data: Path, split: str = "train", each: int = EACH) -> list[Source]:
    """Return so many texts of every domain, in a fixed random order."""
    made = []
    for domain in (abstract, review, article):
        found = list(domain(data, split))
        made += random.Random(0).sample(found, len(found))[:each]
    return made


def review(data: Path, split: str) -> Iterator[Source]:
    """Film reviews, by their first words."""
    for row in of_split(read(data, "texts/imdb_reviews"), split):
        text = row["text"]
        yield Source("review", row["group"], text, f"Write a film review that begins with: {beginning(text)}")


def abstract(data: Path, split: str) -> Iterator[Source]:
    """Abstracts of papers, by what they found."""
    for row in of_split(read(data, "summaries/scitldr_abstracts"), split):
        found = row["summary"].rstrip(".")
        yield Source("abstract", row["group"], row["document"], f"Write the abstract of a paper. It is about: {found}.")


def article(data: Path, split: str) -> Iterator[Source]:
    """Articles of Wikipedia, by their titles."""
    for row in of_split(read(data, "spans/qa_feedback"), split):
        title, _, text = row["context"].partition("\n\n")
        subject = title[: len(title) // 2].strip()  # it stands there twice
        if text.strip() and subject:
            shown = " ".join(text.split()[:ARTICLE])
            yield Source("article", row["group"], shown, f"Write an article of an encyclopedia about {subject}.")


def beginning(text: str) -> str:
    return " ".join(text.split()[:OPENING])


def people(data: Path, split: str = "train") -> list[LabelledText]:
    """Return what people wrote."""
    found = (LabelledText(source.human, "human", source.group, source.domain) for source in sources(data, split))
    return [text for text in found if len(text.text.split()) >= WORDS]


def written(data: Path, split: str = "train") -> list[LabelledText]:
    """Return what SmolLM2 wrote on the same subjects; it is sampled once, and resumed."""
    subjects, out = sources(data, split, ANSWERED), RUNS / f"written-{split}.jsonl"
    prompts = [[{"role": "user", "content": source.message}] for source in subjects]
    RUNS.mkdir(parents=True, exist_ok=True)
    rows = sample(
        LanguageModel.load(MODEL), prompts, out, n=1, max_new_tokens=TOKENS, top_k=None, top_p=0.95, temperature=0.8,
        template="chat", batch_size=60, resume=out.exists(),
    )  # fmt: skip
    found = (
        LabelledText(row.response, "machine", source.group, source.domain, MODEL)
        for source, row in zip(subjects, rows, strict=True)
    )
    return [text for text in found if len(text.text.split()) >= WORDS]
