"""Which rows a model learned from: hashes beside it, by which an evaluation tells whether a judge is independent.

rows.safetensors holds one sorted int64 tensor, `rows`: the first 8 bytes of the SHA-256 of each (prompt, response),
whatever its white space and the form of its prompt (transcript or messages). A comparison is two such rows. The texts
cannot be read back, and two different rows of a million each collide with probability 5e-8.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from midcourse.data.comparisons import Example
from midcourse.data.formats import DataError
from midcourse.files import whole_file
from midcourse.lm.prompt import Prompt, as_messages

NAME = "rows.safetensors"


def no_rows() -> np.ndarray:
    """Return the hashes of what a model learned from that has learned from nothing."""
    return np.empty(0, dtype=np.int64)


def write_learned_rows(folder: str | Path, examples: Iterable[Example], before: np.ndarray | None = None) -> None:
    """Write the hashes of what a model in `folder` learned from: comparisons, rollouts or ladders.

    Args:
        before: those of what it had learned from when this training began.
    """
    rows = {row_hash(example.prompt, response) for example in examples for response in example.responses}
    known = no_rows() if before is None else before
    write_row_hashes(folder, np.union1d(known, np.array(sorted(rows), dtype=np.int64)))


def write_row_hashes(folder: str | Path, hashes: np.ndarray) -> None:
    """Write sorted hashes of rows beside a model in `folder`."""
    with whole_file(Path(folder) / NAME) as temporary:
        save_file({"rows": hashes}, temporary)


def read_learned_rows(folder: str | Path) -> np.ndarray | None:
    """Return the sorted hashes of the rows that a model in `folder` learned from; None if it does not say.

    Raises:
        DataError: the file is damaged.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        return None
    try:
        rows = load_file(path)["rows"]
        if rows.ndim != 1 or rows.dtype != np.int64:
            raise KeyError(f"rows of shape {rows.shape} and type {rows.dtype}")
        return rows
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); train the model again") from error


def row_hash(prompt: Prompt, response: str) -> int:
    """Return the hash of a row, as a signed 64-bit number."""
    messages = [[message["role"], _squeezed(message["content"])] for message in as_messages(prompt)]
    text = json.dumps([messages, _squeezed(response)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _squeezed(text: str) -> str:
    return " ".join(text.split())
