"""Detectors that learn from labelled texts and know no rewards: what a detector has to be better than.

character n-grams    logistic regression on the frequencies of 2 to 4 characters
direction            the states' mean along the direction in which machine texts differ most from human ones
                     (after RepreGuard, TACL 2025)
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from midcourse.detect.disguise import plain
from midcourse.detect.texts import LabelledText
from midcourse.errors import MidcourseError
from midcourse.lm.language_model import LanguageModel
from midcourse.progress import progress
from midcourse.rewards.pooled import Reader

PART = 64


class LearnedError(MidcourseError):
    """Texts that nothing can be learned from, or a library that is missing."""


def learned(
    lm: LanguageModel, learn: Sequence[LabelledText], texts: Sequence[LabelledText]
) -> dict[str, Float[np.ndarray, " texts"]]:
    """Return what each learned detector says of the texts.

    Args:
        learn: labelled texts; those of one group are taken as written on the same subject.

    Raises:
        LearnedError: no text of one of the two kinds, or scikit-learn is missing.
    """
    learn = [text for text in learn if text.label in ("human", "machine")]
    if len({text.label for text in learn}) < 2:
        raise LearnedError("there are no texts of both people and machines to learn from; label some of each")
    labels = np.array([text.label == "machine" for text in learn])
    known, asked = ([plain(text.text).text for text in some] for some in (learn, texts))
    states = [mean_states(lm, some, what) for some, what in ((known, "states to learn from"), (asked, "states"))]
    return {
        "character n-grams": n_grams(known, labels, asked),
        "direction": direction(states[0], labels, [text.group for text in learn], states[1]),
    }


def n_grams(known: Sequence[str], labels: np.ndarray, asked: Sequence[str]) -> Float[np.ndarray, " asked"]:
    """Return the log-odds that a machine wrote each text, learned from n-grams of characters."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise LearnedError("character n-grams need scikit-learn: pip install 'midcourse[detect]'") from error
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, min_df=2)
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    model.fit(vectors.fit_transform(known), labels)
    return np.asarray(model.decision_function(vectors.transform(asked)), dtype=np.float64)


def direction(
    known: Float[np.ndarray, "known layers hidden"],
    labels: np.ndarray,
    groups: Sequence[str],
    asked: Float[np.ndarray, "asked layers hidden"],
) -> Float[np.ndarray, " asked"]:
    """Return how far each text lies along the direction in which machine texts differ from human ones, over layers.

    At every layer it is the first principal component of the differences, each between a machine's text and the mean
    of the human ones of its group, or of all if it has none.
    """
    own = np.array(groups)
    humans, names = known[~labels], own[~labels]
    against = np.stack(
        [humans[mine].mean(0) if (mine := names == name).any() and name else humans.mean(0) for name in own[labels]]
    )
    differences = known[labels] - against
    scores = np.zeros(len(asked))
    for layer in range(known.shape[1]):
        _, _, rows = np.linalg.svd(differences[:, layer], full_matrices=False)
        along = rows[0] * np.sign(differences[:, layer].mean(0) @ rows[0])
        spread = (known[:, layer] @ along).std() + 1e-9
        scores += (asked[:, layer] @ along) / spread
    return scores / known.shape[1]


def mean_states(lm: LanguageModel, texts: Sequence[str], what: str) -> Float[np.ndarray, "texts layers hidden"]:
    """Return the mean state of each text behind every layer of the language model."""
    layers = lm.model.config.get_text_config().num_hidden_layers
    reader = Reader(lm, tuple(range(1, layers + 1)), surprise=False)
    found = np.zeros((len(texts), layers, lm.model.config.get_text_config().hidden_size))
    with progress(what, len(texts)) as advance:
        for begin in range(0, len(texts), PART):
            for number, reading in reader.read(texts[begin : begin + PART]):
                if len(reading.places):
                    found[begin + number] = reading.states.double().mean(0).cpu().numpy()
                advance(1)
    return found
