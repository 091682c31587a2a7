"""What SmolLM2 computes of every text of the study, read once and kept in runs/detect/features, a file a text.

    python -m studies.detect.features --data DIR [--part I/N]        (or MIDCOURSE_DATA=DIR)

reads those of the data sets; several processes may read parts of them side by side.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from midcourse import LanguageModel
from midcourse.detect.disguise import plain
from midcourse.detect.humans import cut_to
from midcourse.files import whole_file
from midcourse.lm.embedded import minilm_folder
from midcourse.progress import progress
from midcourse.rewards.likelihood import TokenFigures
from midcourse.rewards.pooled import Reader, Reading, surprise_of, uncounted
from studies.data import arguments, command

RUNS = Path(__file__).parents[2] / "runs/detect"
MODEL = "smollm2"
TOKENS_LAYER = 19  # whose states are kept token by token
PART = 64
MOST_WORDS = 250
LEAST_VARIANCE = 0.05  # of a log-probability: where the next token is all but certain, curvature would say nothing
TYPES = {"figures": np.float32, "mean": np.float32, "surprising": np.float32}


class Features(NamedTuple):
    """Of one text.

    Attributes:
        mean: states behind every layer, over the tokens that count, (layers, hidden).
        surprising: the same, each token's times its surprise: see `midcourse.rewards.pooled`.
        last: those of the last token.
        tokens: states behind `TOKENS_LAYER` of the tokens that count, (tokens, hidden).
        figures: of all tokens but the first, (tokens, 4); see `TokenFigures`.
    """

    mean: np.ndarray
    surprising: np.ndarray
    last: np.ndarray
    tokens: np.ndarray
    figures: np.ndarray

    @property
    def all_figures(self) -> TokenFigures:
        """How likely every token but the first was."""
        return TokenFigures(*self.figures.T.astype(np.float64))

    @property
    def likelihoods(self) -> np.ndarray:
        """Numbers that say how likely the tokens that count were: means of ten, squares among them."""
        counted = slice(uncounted(len(self.figures) + 1) - 1, None)
        logprob, rank, entropy, variance = (row[counted] for row in self.all_figures)
        log_rank, surplus, spread = np.log(rank), logprob + entropy, np.sqrt(np.maximum(variance, LEAST_VARIANCE))
        each = [logprob, log_rank, entropy, surplus, surplus / spread, logprob**2, log_rank**2, entropy**2, surplus**2]
        return np.array([column.mean() for column in (*each, rank <= 1)])


def path_of(text: str) -> Path:
    return RUNS / "features" / f"{hashlib.sha256(plain(text).text.encode()).hexdigest()[:24]}.npz"


@cache
def features_of(text: str) -> Features:
    """What was kept of a text."""
    with np.load(path_of(text)) as file:
        return Features(*(file[name] for name in Features._fields))


def minilm_of(texts: Sequence[str]) -> np.ndarray:
    """MiniLM's mean state of each text, as it is read for the others."""
    folder = RUNS / "minilm"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{path_of(text).stem}.npy" for text in texts]
    left = [(path, cut_to(plain(text).text, MOST_WORDS)) for path, text in zip(paths, texts, strict=True)]
    left = [(path, text) for path, text in left if not path.exists()]
    if left:
        tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
        model = AutoModel.from_pretrained(minilm_folder()).eval()
        with progress("MiniLM", len(left)) as advance, torch.inference_mode():
            for path, text in left:
                state = model(**tokenizer(text, truncation=True, max_length=512, return_tensors="pt")).last_hidden_state
                with whole_file(path) as temporary, temporary.open("wb") as file:
                    np.save(file, state[0].mean(0).numpy())
                advance(1)
    return np.stack([np.load(path) for path in paths]).astype(np.float64)


def read_all(texts: Iterable[str], part: int = 0, parts: int = 1) -> None:
    """Read the first `MOST_WORDS` words of every text that was not read before."""
    distinct = {path_of(text): cut_to(plain(text).text, MOST_WORDS) for text in texts}
    left = [(path, text) for path, text in distinct.items() if int(path.stem[:8], 16) % parts == part]
    left = [(path, text) for path, text in left if not path.exists()]
    if not left:
        return
    (RUNS / "features").mkdir(parents=True, exist_ok=True)
    lm = LanguageModel.load(MODEL)
    reader = Reader(lm, tuple(range(lm.model.config.num_hidden_layers + 1)), burn_in=1)
    with progress("reading", len(left)) as advance:
        for begin in range(0, len(left), PART):
            some = left[begin : begin + PART]
            for number, reading in reader.read([text for _, text in some]):
                if len(reading.places):
                    write(some[number][0], reading)
                advance(1)


def write(path: Path, reading: Reading) -> None:
    states = reading.states.float().numpy()
    counted = slice(uncounted(len(states) + 1) - 1, None)
    surprise = surprise_of(reading.figures)[counted]
    kept = Features(
        states[counted].mean(0, dtype=np.float64),
        np.einsum("tld,t->ld", states[counted], surprise, optimize=True) / len(surprise),
        states[-1],
        states[counted, TOKENS_LAYER],
        np.stack(reading.figures, 1),
    )
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: array.astype(TYPES.get(name, np.float16)) for name, array in kept._asdict().items()})


def main() -> None:
    from studies.detect.texts import everything

    parser = arguments(__doc__ or "")
    parser.add_argument("--part", default="0/1", help="I/N: read the texts of part I of N")
    asked = parser.parse_args()
    part, parts = map(int, asked.part.split("/"))
    read_all(everything(asked.data), part, parts)


if __name__ == "__main__":
    command(main)
