"""Edits with what became of each token, as rows that people can look at and correct."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from midcourse.data.alignment import Change, Labels, Unit
from midcourse.data.edits import Edit
from midcourse.data.encoded import labels_of_edit
from midcourse.data.jsonl import as_line
from midcourse.files import whole_file
from midcourse.lm.language_model import tokenizer_fingerprint
from midcourse.lm.prompt import response_ids
from midcourse.lm.text import token_texts
from midcourse.progress import progress


def label_edits(
    edits: Sequence[Edit], tokenizer: PreTrainedTokenizerBase, out: str | Path, unit: Unit = "tokens"
) -> dict[str, int]:
    """Write edits with the labels of their tokens to a JSONL file, whole or not at all; return how many of each label.

    `read_edits` reads the rows, and `midcourse train` takes the labels as they stand there, corrected or not.

    Args:
        unit: "tokens" aligns token ids, "words" words; marked spans are taken as they are.
    """
    with whole_file(Path(out)) as temporary, open(temporary, "wb") as file:
        return _counted(edits, tokenizer, unit, lambda row: file.write(as_line(row)))


def count_labels(edits: Sequence[Edit], tokenizer: PreTrainedTokenizerBase, unit: Unit = "tokens") -> dict[str, int]:
    """Return how many tokens of edits, of both sides, have each label."""
    return _counted(edits, tokenizer, unit, lambda row: None)


def _counted(
    edits: Sequence[Edit], tokenizer: PreTrainedTokenizerBase, unit: Unit, write: Callable[[dict[str, Any]], object]
) -> dict[str, int]:
    counts = {change.name.lower(): 0 for change in Change}
    with progress("labelling", len(edits)) as advance:
        for row, labels in labelled_rows(edits, tokenizer, unit):
            write(row)
            for change in (*labels.original, *labels.edited):
                counts[change.name.lower()] += 1
            advance(1)
    return counts


def labelled_rows(
    edits: Iterable[Edit], tokenizer: PreTrainedTokenizerBase, unit: Unit = "tokens"
) -> Iterator[tuple[dict[str, Any], Labels]]:
    """Yield each edit as a row with its tokens and their labels, EOS the last, and the labels."""
    fingerprint = tokenizer_fingerprint(tokenizer)
    for edit in edits:
        labels = labels_of_edit(tokenizer, edit, unit)
        row: dict[str, Any] = {"prompt": edit.prompt} if edit.prompt else {}
        row |= {"group": edit.group} if edit.group else {}
        for name, text, of in (("original", edit.original, labels.original), ("edited", edit.edited, labels.edited)):
            if text is not None:
                row |= {
                    name: text,
                    f"{name}_tokens": [*token_texts(tokenizer, response_ids(tokenizer, text, finished=True))],
                    f"{name}_labels": [change.name.lower() for change in of],
                }
        yield row | {"tokenizer": fingerprint}, labels
