"""The detectors of the study: each learns from some texts, perhaps nothing, and says of others how like a machine's."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import zscore
from torch.nn.functional import binary_cross_entropy_with_logits

from midcourse.detect.disguise import plain
from midcourse.detect.fit import RIDGE, Examples, head_of, moments_of
from midcourse.detect.learned import direction, n_grams
from midcourse.detect.texts import LabelledText
from midcourse.detect.trivial import TRIVIAL
from midcourse.rewards.likelihood import STATISTICS
from studies.detect.features import TOKENS_LAYER, Features, features_of, minilm_of

Texts: TypeAlias = Sequence[LabelledText]
Detector: TypeAlias = Callable[[Texts, Texts], Float[np.ndarray, " asked"]]
Of: TypeAlias = Callable[[Features], Float[np.ndarray, " features"]]

LAYER = 24
LAYERS = (8, 12, 16, 19, 20, 22, 26, 28, 30)
OURS = "states by surprise"


def of_layer(layer: int, f: Features) -> Float[np.ndarray, " hidden"]:
    """Return a text's features behind a layer."""
    return f.surprising[layer]


# What a head reads of a text.
HEADS: dict[str, Of] = {
    OURS: partial(of_layer, LAYER),
    "states alike": lambda f: f.mean[LAYER],
    "last state": lambda f: f.last[LAYER],
    "likelihoods": lambda f: f.likelihoods,
    "states alike and likelihoods": lambda f: np.concatenate([f.mean[LAYER], f.likelihoods]),
    "states by surprise and likelihoods": lambda f: np.concatenate([f.surprising[LAYER], f.likelihoods]),
    **{f"layer {n}": partial(of_layer, n) for n in LAYERS if n != LAYER},
}


def examples(texts: Texts, of: Of) -> Examples:
    """Return the texts as a head reads them."""
    return Examples(np.stack([of(features_of(text.text)) for text in texts]).astype(np.float64), *_about(texts))


def _about(texts: Texts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each text how many tokens count, whether a machine wrote it, and its domain."""
    return (
        np.array([len(features_of(text.text).tokens) for text in texts]),
        np.array([text.label == "machine" for text in texts]),
        np.array([text.domain for text in texts]),
    )


def by_head(of: Of) -> Detector:
    """Return a detector as `midcourse detect fit` makes it."""
    return lambda learn, asked: _fitted(examples(learn, of), examples(asked, of))


def _fitted(known: Examples, asked: Examples) -> Float[np.ndarray, " asked"]:
    head = head_of(moments_of(known), RIDGE)
    return head(torch.from_numpy(asked.features), torch.from_numpy(asked.tokens)).numpy()


def by_minilm(learn: Texts, asked: Texts) -> np.ndarray:
    """The same head on MiniLM's mean states."""
    known, others = (Examples(minilm_of([text.text for text in some]), *_about(some)) for some in (learn, asked))
    return _fitted(known, others)


def by_attention(learn: Texts, asked: Texts, *, steps: int = 600, seed: int = 0) -> np.ndarray:
    """A head that learns which tokens to heed: softmax(q . h_t) in place of the mean, by logistic loss."""
    torch.manual_seed(seed)
    _, machine, domains = _about(learn)
    cells = np.unique([f"{d} {m}" for d, m in zip(domains, machine, strict=True)], return_inverse=True)[1]
    tokens = [torch.from_numpy(features_of(text.text).tokens.astype(np.float32)) for text in learn]
    rows = torch.cat(tokens)
    centre, scale = rows.mean(0), rows.std(0) + 1e-6
    width = rows.shape[1]
    query, weight, bias = (torch.zeros(n, requires_grad=True) for n in (width, width, 1))
    optimizer = torch.optim.AdamW([query, weight, bias], lr=3e-3, weight_decay=0.3)
    random = np.random.default_rng(seed)
    by_cell = [np.flatnonzero(cells == n) for n in range(cells.max() + 1)]
    labels = torch.from_numpy(machine.astype(np.float32))

    def logit(states: torch.Tensor) -> torch.Tensor:
        standard = (states - centre) / scale
        return (standard @ query).softmax(0) @ standard @ weight + bias[0]

    for _ in range(steps):
        drawn = [int(random.choice(cell)) for cell in by_cell for _ in range(4)]
        loss = binary_cross_entropy_with_logits(torch.stack([logit(tokens[n]) for n in drawn]), labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        asked_tokens = (torch.from_numpy(features_of(text.text).tokens.astype(np.float32)) for text in asked)
        return np.array([float(logit(states)) for states in asked_tokens])


def by_n_grams(learn: Texts, asked: Texts) -> np.ndarray:
    """Character n-grams."""
    known, texts = ([plain(text.text).text for text in some] for some in (learn, asked))
    return n_grams(known, np.array([text.label == "machine" for text in learn]), texts)


def with_n_grams(learn: Texts, asked: Texts) -> np.ndarray:
    """Ours and character n-grams, each in units of how its scores of the texts asked about scatter."""
    return zscore(DETECTORS[OURS](learn, asked)) + zscore(by_n_grams(learn, asked))


def by_direction(learn: Texts, asked: Texts) -> np.ndarray:
    """RepreGuard's kind: the direction between pairs, of all layers."""
    known, states = (np.stack([features_of(t.text).mean[1:] for t in some]).astype(float) for some in (learn, asked))
    return direction(known, np.array([t.label == "machine" for t in learn]), [t.group for t in learn], states)


def by_statistic(name: str) -> Detector:
    """Return a zero-shot detector: it learns nothing."""
    return lambda learn, asked: np.array([STATISTICS[name](features_of(text.text).all_figures) for text in asked])


def by_trivial(name: str) -> Detector:
    """Return a feature that no detector should need."""
    return lambda learn, asked: np.array([TRIVIAL[name](text.text) for text in asked])


DETECTORS: dict[str, Detector] = {
    **{name: by_head(of) for name, of in HEADS.items()},
    f"attention, layer {TOKENS_LAYER}": by_attention,
    "MiniLM": by_minilm,
    "character n-grams": by_n_grams,
    "with character n-grams": with_n_grams,
    "direction": by_direction,
    **{name: by_statistic(name) for name in STATISTICS},
    **{f"trivial: {name}": by_trivial(name) for name in TRIVIAL},
}
