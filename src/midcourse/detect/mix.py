"""Texts between people's and machines': human ones some of whose sentences a language model has said in other words.

The sentences are chosen by the seed and the text alone, and the new ones put in their places by number, so that
nothing else of a text moves (ReMoDetect's class between human and machine texts: Lee, Tack and Shin, 2024, arXiv
2405.17382, section 3.2).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from midcourse.data.formats import Problem
from midcourse.data.jsonl import RowFileError, append_rows, appending, kept_rows
from midcourse.data.prompts import begin_record, recorded
from midcourse.data.record import only_writer
from midcourse.detect.rephrase import Rephrased, Rephraser, Task, unaskable
from midcourse.detect.sentences import spans_of, splice
from midcourse.detect.texts import LabelledText
from midcourse.errors import MidcourseError
from midcourse.progress import progress


class MixError(MidcourseError):
    """Texts that cannot be mixed."""


@dataclass(frozen=True)
class Mixed:
    """A human text, and the same with some of its sentences rephrased.

    Attributes:
        mixed: None if no sentence could be rephrased.
        machine: the machine's text of the same row, if it had one.
        sentences: how many the human text has.
        rephrased: the numbers of the new ones, from 1.
        failed: the numbers of those that were to be rephrased and could not be, and why.
        group, domain, model: what the human text's row said; the model is that of the machine's text.
        rephrased_by: the language model that wrote the new sentences.
    """

    human: str
    mixed: str | None
    machine: str | None
    sentences: int
    rephrased: tuple[int, ...]
    failed: dict[int, str]
    group: str = ""
    domain: str = ""
    model: str = ""
    rephrased_by: str = ""


def mix(
    texts: Sequence[LabelledText],
    rephrase: Rephraser,
    out: str | Path,
    *,
    ratio: float = 0.5,
    seed: int = 0,
    resume: bool = False,
) -> list[Mixed]:
    """Rephrase a share of the sentences of every human text into `out`, and return all that it holds, by text.

    A row, on disk as soon as it is finished, has the fields of `Mixed` and its number among the human texts;
    `read_texts` and, if there is a machine's text, `read_ladders` read it. Texts without a label count as human, others
    are left out. A row depends on its text and the seed, on no other row.

    Args:
        ratio: of n sentences round(ratio n) are rephrased, at least one.
        resume: keep the rows of `out`, those that failed too, and add the missing ones.

    Raises:
        MixError: a ratio or seed that makes no sense, or no human text.
        RephraseError: the model cannot be asked; the rows before are kept.
        RowFileError: another process writes to `out`; it holds rows, and `resume` is not set or they were asked for
            otherwise.

    Examples:
        >>> mixed = mix(read_texts("human.jsonl"), LMRephraser(LanguageModel.load()), "mixed.jsonl")
    """
    out = Path(out)
    _check(ratio, seed)
    humans, machines = human_texts(texts), _machine_texts(texts)
    with only_writer(out, "file", "run", RowFileError):
        mixed = kept_rows(out, resume, lambda row: _number(row, humans), _mixed_of)
        asked = {**rephrase.asked(), "ratio": ratio, "seed": seed}
        begin_record(out, asked, [text.text for text in humans], recorded(out), "texts")
        left = _left(humans, mixed)
        with appending(out) as file, progress("rephrasing", len(left)) as advance:
            for text, result in _rephrased(list(left), rephrase, ratio, seed):
                new = {
                    number: _mixed(humans[number], machines.get(humans[number].name), result, rephrase.name)
                    for number in left[text]
                }
                append_rows(file, ({"row": number, **asdict(one)} for number, one in new.items()))
                mixed |= new
                advance(1)
    return [mixed[number] for number in range(len(humans))]


def paraphrase(texts: Sequence[str], rephrase: Rephraser, *, seed: int = 0) -> list[str]:
    """Return the texts with every sentence said in other words, as an attack on detectors.

    A sentence that could not be rephrased stays as it is.
    """
    new = {text: splice(text, spans_of(text), said) for text, (said, _) in _rephrased(texts, rephrase, 1.0, seed)}
    return [new[text] for text in texts]


def human_texts(texts: Sequence[LabelledText]) -> list[LabelledText]:
    """Return the texts that are labelled as human or not at all; MixError if there are none."""
    humans = [text for text in texts if text.label in (None, "human")]
    if not humans:
        raise MixError(f"none of the {len(texts)} texts is human; give human texts, labelled as such or not at all")
    return humans


def chosen_sentences(text: str, count: int, ratio: float, seed: int) -> list[int]:
    """Return the numbers, from 1, of the sentences to be rephrased among `count`: drawn by the seed and the text."""
    return sorted(Random(f"{seed} {text}").sample(range(1, count + 1), max(1, round(ratio * count))))


def _check(ratio: float, seed: int) -> None:
    if not 0 < ratio <= 1:
        raise MixError(f"ratio {ratio} is no share of the sentences; use a number above 0, up to 1")
    if seed < 0:
        raise MixError(f"seed {seed} is negative; use 0 or more")


def _machine_texts(texts: Sequence[LabelledText]) -> dict[str, str]:
    """Return the machine's text of each row that has one, by the row's name."""
    return {text.name: text.text for text in texts if text.label == "machine" and text.name}


def _left(humans: Sequence[LabelledText], done: Mapping[int, Mixed]) -> dict[str, list[int]]:
    """Return the texts that are still to be mixed, each once, with their numbers."""
    left: dict[str, list[int]] = {}
    for number, text in enumerate(humans):
        if number not in done:
            left.setdefault(text.text, []).append(number)
    return left


def _rephrased(texts: Sequence[str], rephrase: Rephraser, ratio: float, seed: int) -> Iterator[tuple[str, Rephrased]]:
    """Yield each text and what became of the sentences that were chosen of it, in any order."""
    hopeless: dict[int, dict[int, str]] = {}  # sentences that nobody is asked about, of the texts under way

    def tasks() -> Iterator[Task]:
        for place, text in enumerate(texts):
            said = _chosen(text, ratio, seed)
            hopeless[place] = {number: why for number, sentence in said.items() if (why := unaskable(sentence))}
            left = {number: sentence for number, sentence in said.items() if number not in hopeless[place]}
            yield Task(left, _seed_of(seed, text))

    for place, (sentences, failed) in rephrase.rephrase(tasks()):
        yield texts[place], Rephrased(sentences, failed | hopeless.pop(place))


def _chosen(text: str, ratio: float, seed: int) -> dict[int, str]:
    """Return the sentences to be rephrased, by their numbers."""
    spans = spans_of(text)
    numbers = chosen_sentences(text, len(spans), ratio, seed) if spans else []
    return {number: text[slice(*spans[number - 1])] for number in numbers}


def _mixed(text: LabelledText, machine: str | None, result: Rephrased, model: str) -> Mixed:
    spans = spans_of(text.text)
    return Mixed(
        text.text,
        splice(text.text, spans, result.sentences) if result.sentences else None,
        machine,
        len(spans),
        tuple(sorted(result.sentences)),
        dict(sorted(result.failed.items())),
        text.group,
        text.domain,
        text.model,
        model,
    )


def _seed_of(seed: int, text: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:8])


def _number(row: dict[str, Any], humans: Sequence[LabelledText]) -> int:
    """Return the number of a written row; Problem if it is of another text."""
    number = row["row"]
    if not 0 <= number < len(humans):
        raise Problem("row", f"is row {number} of other texts, here are {len(humans)}")
    if _mixed_of(row).human != humans[number].text:
        raise Problem("row", f"is of another text than row {number}")
    return number


def _mixed_of(row: dict[str, Any]) -> Mixed:
    fields = {name: value for name, value in row.items() if name != "row"}
    failed = {int(number): str(why) for number, why in row["failed"].items()}
    return Mixed(**fields | {"rephrased": tuple(row["rephrased"]), "failed": failed})
