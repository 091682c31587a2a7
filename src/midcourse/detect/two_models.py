"""Zero-shot detectors that ask two language models with the same tokens, such as a base model and its instruct model.

With b the base model and i the instruct model, each given the tokens before:

    binoculars   (mean_t log i(x_t)) / (mean_t - sum_v b(v) log i(v))       (Hans et al., 2024, arXiv 2401.12070)
    implicit     sum_t log i(x_t) - log b(x_t)                              (DPO's implicit reward; IRM, NeurIPS 2025)

Binoculars calls b the observer and i the performer; its score here is minus theirs. Higher means more like a machine.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from midcourse.errors import MidcourseError
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prefix_cache import pad
from midcourse.rewards.windows import Window, read_whole, windows_of

CHUNK = 64  # positions at which the distributions of both models are in memory together


class TwoModelsError(MidcourseError):
    """Two language models that cannot be compared."""


class PairFigures(NamedTuple):
    """Three numbers of each token of a text but its first, each an array of shape (tokens - 1,).

    Attributes:
        instruct, base: log-probabilities of the token.
        expected: sum_v b(v) log i(v), the mean log-probability under the instruct model of what the base model writes.
    """

    instruct: np.ndarray
    base: np.ndarray
    expected: np.ndarray


def binoculars(tokens: PairFigures) -> float:
    """Return Binoculars' score, negated: see the module."""
    return float(tokens.instruct.mean() / max(-tokens.expected.mean(), 1e-6))


def implicit(tokens: PairFigures) -> float:
    """Return the implicit reward: see the module."""
    return float((tokens.instruct - tokens.base).sum())


TWO_MODELS: Mapping[str, Callable[[PairFigures], float]] = {"binoculars": binoculars, "implicit": implicit}


def pair_figures(
    instruct: LanguageModel, base: LanguageModel, texts: Sequence[str]
) -> Iterator[tuple[int, PairFigures]]:
    """Yield (the text's number, its figures), each text by one pass of both models; long ones in windows.

    Raises:
        TwoModelsError: models with other tokens than each other's.
    """
    if instruct.tokens != base.tokens:
        both = f"{instruct.name} and {base.name}"
        raise TwoModelsError(f"{both} have other tokens; name two models with the same tokenizer")
    windows = windows_of(instruct, texts, most=base.context_length)
    read = partial(_parts, instruct, base)
    for number, parts in read_whole([[window] for window in windows], read):
        yield number, PairFigures(*np.concatenate([rows for _, rows in parts]).T)


def _parts(
    instruct: LanguageModel, base: LanguageModel, rows: Sequence[list[Window]]
) -> Iterable[tuple[Window, Float[np.ndarray, "tokens 3"]]]:
    windows = [window for [window] in rows]
    return zip(windows, _pass(instruct, base, [window.token_ids for window in windows]), strict=True)


@torch.inference_mode()
def _pass(
    instruct: LanguageModel, base: LanguageModel, rows: Sequence[Sequence[int]]
) -> list[Float[np.ndarray, "tokens 3"]]:
    if not any(rows):
        return [np.zeros((0, 3)) for _ in rows]
    ids, mask = pad(rows, instruct.device)
    finals = []
    for lm in (instruct, base):
        decoder = lm.model.get_decoder()
        finals.append(decoder(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state)
    matrices = [lm.model.get_output_embeddings() for lm in (instruct, base)]
    found = []
    for i, row in enumerate(rows):
        parts = [np.zeros((0, 3))]
        for begin in range(0, len(row) - 1, CHUNK):
            end = min(begin + CHUNK, len(row) - 1)
            logs = [
                matrix(final[i, begin:end]).float().log_softmax(-1)
                for matrix, final in zip(matrices, finals, strict=True)
            ]
            parts.append(_of_distributions(logs[0], logs[1], ids[i, begin + 1 : end + 1]).double().cpu().numpy())
        found.append(np.concatenate(parts))
    return found


def _of_distributions(
    instruct: Float[Tensor, "tokens vocab"], base: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, "tokens 3"]:
    wanted = [logs.gather(1, targets[:, None]).squeeze(1) for logs in (instruct, base)]
    return torch.stack([*wanted, torch.linalg.vecdot(base.exp(), instruct)], 1)
