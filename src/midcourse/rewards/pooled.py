"""A reward of a whole text from what one pass of a language model computes anyway: its states and its likelihoods.

    r(text) = w . (f(text) - c) / s
    f(text) = the mean state of its tokens behind each of some layers, beside statistics of how likely the tokens are

The model stays frozen; c, s and w are kept in single numbers, a few thousand of them. There is no prompt in it: the
text stands alone, as in ReMoDetect's detectors (Lee et al., 2024, arXiv 2405.17382), which reward texts by themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from midcourse.files import as_json, whole_file, whole_folder, write_text
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prefix_cache import pad
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.contract import Text
from midcourse.rewards.info import RewardError, RewardInfo, read_info
from midcourse.rewards.likelihood import (
    TokenFigures,
    fast_detect_gpt,
    log_likelihood,
    lrr,
    negative_entropy,
    negative_log_rank,
    token_figures,
)
from midcourse.rewards.text import TextReward
from midcourse.rewards.trained import check_tokenizer, check_weights

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

        A text of more than `WINDOW` tokens, or than the context holds, is read in windows, each from its own beginning.
        """
        ids = [self.lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
        room = min(WINDOW, self.lm.context_length)
        windows = [(n, row[at : at + room]) for n, row in enumerate(ids) for at in range(0, max(len(row), 1), room)]
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
    def _pass(self, rows: Sequence[Sequence[int]]) -> list[Reading]:
        ids, mask = pad(rows, self.lm.device)
        decoder = self.lm.model.get_decoder()
        output = decoder(input_ids=ids, attention_mask=mask.long(), use_cache=False, output_hidden_states=True)
        states = [output.hidden_states[layer] for layer in self.layers]
        final, matrix = output.last_hidden_state, self.lm.model.get_output_embeddings()
        readings = []
        for i, row in enumerate(rows):
            n = len(row)
            sums = np.zeros((len(states), final.shape[-1]), dtype=np.float32)
            for place, layer in enumerate(states):
                sums[place] = layer[i, :n].sum(0, dtype=torch.float64).cpu().numpy()
            figures = None
            if self.likelihoods:
                found = token_figures(matrix, final[i, : n - 1], ids[i, 1:n]).double().cpu().numpy()
                figures = TokenFigures(*found.T)
            readings.append(Reading(sums, figures, n))
        return readings


def _joined(windows: Sequence[Reading]) -> Reading:
    if len(windows) == 1:
        return windows[0]
    figures = None
    if all(window.figures is not None for window in windows):
        figures = TokenFigures(*map(np.concatenate, zip(*(w.figures for w in windows if w.figures), strict=True)))
    return Reading(np.sum([w.states for w in windows], 0), figures, sum(w.tokens for w in windows))


def statistics_of(figures: TokenFigures) -> np.ndarray:
    """Return how likely a text's tokens are, in numbers that a linear head can weigh.

    Means of log-probability, log-rank, entropy, of their difference and of its spread; the shares of tokens that were
    the likeliest, among the ten likeliest, and less likely than exp(-8); Fast-DetectGPT's curvature and LRR (see
    `likelihood`). The texts of machines differ from those of people in most of them, and not alike.
    """
    if not len(figures.logprob):
        return np.zeros(len(STATISTIC_NAMES))
    logprob, rank, entropy, variance = figures
    return np.array(
        [
            log_likelihood(figures),
            negative_log_rank(figures),
            negative_entropy(figures),
            (logprob + entropy).mean(),
            logprob.std(),
            entropy.std(),
            np.sqrt(np.maximum(variance, 0).mean()),
            (rank == 1).mean(),
            (rank <= 10).mean(),
            (logprob < -8).mean(),
            fast_detect_gpt(figures) / np.sqrt(len(logprob)),
            lrr(figures),
        ]
    )


STATISTIC_NAMES = (
    "log-probability", "log-rank", "entropy", "log-probability less its expectation", "spread of log-probability",
    "spread of entropy", "expected spread", "likeliest", "among ten likeliest", "unlikely", "curvature", "LRR",
)  # fmt: skip


class LinearHead(nn.Module):
    """w . (f - c) / s, in float64.

    Args:
        centre, scale, weight: c, s and w, each of shape (features,): states layer by layer, then statistics.
    """

    centre: Tensor
    scale: Tensor
    weight: Tensor

    def __init__(self, centre: np.ndarray, scale: np.ndarray, weight: np.ndarray):
        super().__init__()
        for name, array in (("centre", centre), ("scale", scale), ("weight", weight)):
            self.register_buffer(name, torch.from_numpy(np.asarray(array, dtype=np.float64)))

    def forward(self, features: Float[Tensor, "texts features"]) -> Float[Tensor, " texts"]:
        return ((features - self.centre) / self.scale) @ self.weight


class PooledReward(TextReward):
    """A reward of a whole text, linear in its mean states and the statistics of its likelihood.

    Attributes:
        info: as midcourse.json records it.
        head: gives a number for the features.

    Examples:
        >>> reward = PooledReward.load("my-detector")
        >>> reward.rate([Text("", "The ferry was late.", True)])
    """

    KIND = "pooled"

    def __init__(self, reader: Reader, info: RewardInfo, head: LinearHead):
        super().__init__(self._read_all, name=f"the reward on {info.backbone}")
        self.reader, self.info, self.head = reader, info, head
        self.model = reader.lm.model
        self.calibration = Calibration.read(info.calibration)

    @property
    def models(self) -> Sequence[nn.Module]:
        """Return the language model: each text costs one pass."""
        return [self.model]

    def features(self, texts: Sequence[str]) -> Float[np.ndarray, "texts features"]:
        """Return f of each text."""
        return np.array([features_of(reading) for _, reading in sorted(self.reader.read(texts), key=itemgetter(0))])

    def of_features(self, features: Float[np.ndarray, "texts features"]) -> Float[np.ndarray, " texts"]:
        """Return the reward of each text from its features."""
        return self.head(torch.from_numpy(features)).numpy()

    def rate_alone(self, texts: Sequence[str]) -> tuple[list[float], np.ndarray | None]:
        """Return the reward of each text as `rate` does, and its features, which are read once for both."""
        if not texts:
            return [], None
        features = self.features(texts)
        rewards = zip(texts, self.of_features(features).tolist(), strict=True)
        return [self._checked(Text("", text, True), reward) for text, reward in rewards], features

    def _read_all(self, texts: Sequence[Text]) -> list[float]:
        return self.of_features(self.features([text.response for text in texts])).tolist()

    def save(self, folder: str | Path) -> None:
        """Write the reward to `folder`, whole or not at all; an earlier one there is replaced."""
        with whole_folder(Path(folder)) as work:
            self.write(work)

    def write(self, folder: Path) -> None:
        """Write the reward's files into an existing folder, each whole, midcourse.json last."""
        arrays = {name: tensor.numpy().astype(np.float32) for name, tensor in self.head.state_dict().items()}
        with whole_file(folder / "reward.safetensors") as temporary:
            save_file(arrays, temporary)
        write_text(folder / "midcourse.json", as_json(asdict(self.info), indent=2) + "\n")

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str = "auto", dtype: str = "auto", share_with: LanguageModel | None = None
    ) -> "PooledReward":
        """Load what `save` wrote.

        Args:
            share_with: a language model in memory to read texts with, if it has the weights of training.

        Raises:
            RewardError: the folder holds no such reward, or the language model has other weights or tokens now.
        """
        folder = Path(folder)
        info = read_info(folder)
        if info.head != cls.KIND or "reading" not in info.objective_settings:
            raise RewardError(f"{folder} holds no pooled reward; load it with midcourse.load_reward")
        check_weights(folder, info)
        lm = share_with or LanguageModel.load(info.backbone, device=device, dtype=dtype)
        check_tokenizer(folder, info, lm.tokenizer, info.backbone)
        try:
            arrays = load_file(folder / "reward.safetensors")
            head = LinearHead(*(arrays[name] for name in ("centre", "scale", "weight")))
        except (OSError, SafetensorError, KeyError) as error:
            raise RewardError(
                f"{folder}/reward.safetensors cannot be read ({error}); train the reward again"
            ) from error
        reading = info.objective_settings["reading"]
        return cls(Reader(lm, tuple(reading["layers"]), reading["likelihoods"]), info, head)


def features_of(reading: Reading) -> Float[np.ndarray, " features"]:
    """Return f of a text: its mean states, layer by layer, then its statistics if they were read."""
    states = (reading.states / max(reading.tokens, 1)).reshape(-1)
    return states if reading.figures is None else np.concatenate([states, statistics_of(reading.figures)])
