"""A reward of a whole text from what one pass of a language model computes anyway: its states and its likelihoods.

    r(text) = w . (f(text) - c) / s
    f(text) = the mean state of its tokens behind each of some layers, beside statistics of how likely the tokens are

The model stays frozen; c, s and w are kept in single numbers, a few thousand of them. There is no prompt in it: the
text stands alone, as in ReMoDetect's detectors (Lee et al., 2024, arXiv 2405.17382), which reward texts by themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prefix_cache import pad
from midcourse.rewards.likelihood import TokenFigures, token_figures

WINDOW = 512  # tokens that are read together; a longer text is read in parts of this length
BATCH_TOKENS = 4096  # of one forward, padding included


class Reading(NamedTuple):
    """What one pass says about a text.

    Attributes:
        states: the sum of its tokens' states behind each layer asked for, (layers, hidden).
        figures: of its tokens but the first of each window; None if not asked for.
        tokens: how many there are.
    """

    states: Float[np.ndarray, "layers hidden"]
    figures: TokenFigures | None
    tokens: int


@dataclass(frozen=True)
class Reader:
    """Reads texts by one pass of a language model over each.

    Attributes:
        lm: the language model.
        layers: behind which of its layers states are taken; behind the last they are normalised.
        likelihoods: whether the figures of tokens are asked for, which takes the pass over the vocabulary.
    """

    lm: LanguageModel
    layers: tuple[int, ...]
    likelihoods: bool = True

    def read(self, texts: Sequence[str]) -> Iterator[tuple[int, Reading]]:
        """Yield (the text's number, what was read), texts of like length together.

        A text of more than `WINDOW` tokens is read in windows, each from its own beginning.
        """
        ids = [self.lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
        windows = [(n, row[at : at + WINDOW]) for n, row in enumerate(ids) for at in range(0, max(len(row), 1), WINDOW)]
        windows.sort(key=lambda window: len(window[1]))
        left = np.bincount([n for n, _ in windows], minlength=len(texts))
        parts: dict[int, list[Reading]] = {}
        while windows:
            fit = max(BATCH_TOKENS // max(len(windows[-1][1]), 1), 1)
            batch, windows = windows[-fit:], windows[:-fit]
            for (n, _), reading in zip(batch, self._pass([row for _, row in batch]), strict=True):
                parts.setdefault(n, []).append(reading)
                left[n] -= 1
                if not left[n]:
                    yield n, _joined(parts.pop(n))

    @torch.inference_mode()
    def _pass(self, rows: Sequence[Sequence[int]]) -> Iterator[Reading]:
        ids, mask = pad(rows, self.lm.device)
        decoder = self.lm.model.get_decoder()
        output = decoder(input_ids=ids, attention_mask=mask.long(), use_cache=False, output_hidden_states=True)
        states = [output.hidden_states[layer] for layer in self.layers]
        final, matrix = output.last_hidden_state, self.lm.model.get_output_embeddings()
        for i, row in enumerate(rows):
            n = len(row)
            sums = torch.stack([layer[i, :n].sum(0, dtype=torch.float64) for layer in states]).float().cpu().numpy()
            figures = None
            if self.likelihoods:
                found = token_figures(matrix, final[i, : n - 1], ids[i, 1:n]).double().cpu().numpy()
                figures = TokenFigures(*found.T)
            yield Reading(sums, figures, n)


def _joined(windows: Sequence[Reading]) -> Reading:
    if len(windows) == 1:
        return windows[0]
    figures = None
    if all(window.figures is not None for window in windows):
        figures = TokenFigures(*map(np.concatenate, zip(*(w.figures for w in windows if w.figures), strict=True)))
    return Reading(np.sum([w.states for w in windows], 0), figures, sum(w.tokens for w in windows))
