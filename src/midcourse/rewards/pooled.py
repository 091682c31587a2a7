"""A reward of a whole text that is the mean of its tokens' rewards, from one pass of a frozen language model.

    r(text) = mean over its tokens of r_t
    r_t     = w . (f_t - c) / s
    f_t     = the states at token t behind some layers, beside numbers that say how likely the token was

The model stays frozen; c, s and w are kept in single numbers, a few thousand of them. The first tokens of a text are
read and do not count: with so little before them, they say more of the subject than of the writer. There is no prompt:
the text stands alone, as in ReMoDetect's detectors (Lee et al., 2024, arXiv 2405.17382).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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
from midcourse.rewards.contract import Score, Text
from midcourse.rewards.info import RewardError, RewardInfo, read_info
from midcourse.rewards.likelihood import TokenFigures, token_figures
from midcourse.rewards.text import TextReward
from midcourse.rewards.trained import check_tokenizer, check_weights
from midcourse.rewards.windows import read_whole, windows_of

BURN_IN = 24


class Reading(NamedTuple):
    """The states and likelihoods of a text's tokens, read in one pass; of those tokens that count.

    Attributes:
        places: which tokens of the text they are, counted from 0.
        states: behind each layer asked for.
        figures: how likely each token was; empty if that is not asked for.
    """

    places: np.ndarray
    states: Float[Tensor, "tokens layers hidden"]
    figures: TokenFigures

    @property
    def features(self) -> Float[np.ndarray, "tokens features"]:
        """Return f_t of each token: its states, layer by layer, then what says how likely it was."""
        states = self.states.flatten(1).double().cpu().numpy()
        return np.concatenate([states, likelihoods_of(self.figures)], 1) if len(self.figures.logprob) else states


@dataclass(frozen=True)
class Reader:
    """Reads texts by one pass of a language model over each.

    Attributes:
        lm: the language model.
        layers: behind which of its layers states are taken; behind the last they are normalised.
        likelihoods: whether figures of likelihood are asked for, which takes the pass over the vocabulary.
        burn_in: tokens at the beginning of a window that do not count, if it has twice as many; otherwise, and with 1,
            the first does not, before which nothing stands.
    """

    lm: LanguageModel
    layers: tuple[int, ...]
    likelihoods: bool = True
    burn_in: int = BURN_IN

    @property
    def width(self) -> int:
        """Return how many features a token has."""
        states = len(self.layers) * self.lm.model.config.get_text_config().hidden_size
        return states + len(LIKELIHOODS) * self.likelihoods

    def read(self, texts: Sequence[str]) -> Iterator[tuple[int, Reading]]:
        """Yield (the text's number, what was read), texts of like length together.

        A text of more than `WINDOW` tokens, or than the context holds, is read in windows, each from its own beginning.
        """
        for number, parts in read_whole(windows_of(self.lm, texts), self._pass):
            yield number, _joined(parts)

    @torch.inference_mode()
    def _pass(self, rows: Sequence[Sequence[int]]) -> list[Reading]:
        if not any(rows):
            nothing = torch.zeros(0, len(self.layers), self.lm.model.config.get_text_config().hidden_size)
            return [Reading(np.arange(0), nothing, TokenFigures(*np.zeros((4, 0)))) for _ in rows]
        ids, mask = pad(rows, self.lm.device)
        decoder = self.lm.model.get_decoder()
        output = decoder(input_ids=ids, attention_mask=mask.long(), use_cache=False, output_hidden_states=True)
        states = torch.stack([output.hidden_states[layer] for layer in self.layers], 2) if self.layers else None
        final, matrix = output.last_hidden_state, self.lm.model.get_output_embeddings()
        readings = []
        for i, row in enumerate(rows):
            end = len(row)
            begin = self.burn_in if end >= 2 * self.burn_in else min(end, 1)
            places = np.arange(begin, end)
            mine = final.new_zeros(end - begin, 0, 0) if states is None else states[i, begin:end]
            figures = torch.zeros(0, 4)
            if self.likelihoods and end > begin:
                figures = token_figures(matrix, final[i, begin - 1 : end - 1], ids[i, begin:end]).double().cpu()
            readings.append(Reading(places, mine, TokenFigures(*figures.numpy().T)))
        return readings


def _joined(parts: Sequence[tuple[int, Reading]]) -> Reading:
    """Return the readings of a text's windows, each with the place of its first token, as one."""
    return Reading(
        np.concatenate([begin + reading.places for begin, reading in parts]),
        torch.cat([reading.states for _, reading in parts]),
        TokenFigures(*map(np.concatenate, zip(*(reading.figures for _, reading in parts), strict=True))),
    )


LIKELIHOODS = (
    "log-probability", "log-rank", "entropy", "surplus", "spread", "curvature",
    "log-probability squared", "log-rank squared", "entropy squared", "surplus squared", "variance",
    "likeliest", "among 2", "among 5", "among 10", "among 100", "among 1000",
    "log-probability below -4", "below -8", "below -12", "entropy below 0.5", "below 2", "above 5",
)  # fmt: skip


def likelihoods_of(figures: TokenFigures) -> Float[np.ndarray, "tokens likelihoods"]:
    """Return the numbers of each token that say how likely it was: see `LIKELIHOODS`.

    The surplus is its log-probability less what that is expected to be, - entropy; the spread is how far it scatters
    around that, and curvature the one in units of the other, as in Fast-DetectGPT. Means of squares let a text's own
    spread count, though each number is of one token.
    """
    logprob, rank, entropy, variance = figures
    log_rank, surplus = np.log(rank), logprob + entropy
    spread = np.sqrt(np.maximum(variance, LEAST_VARIANCE))
    columns = [
        logprob, log_rank, entropy, surplus, spread, surplus / spread,
        logprob**2, log_rank**2, entropy**2, surplus**2, variance,
        *(rank <= most for most in (1, 2, 5, 10, 100, 1000)),
        *(logprob < limit for limit in (-4, -8, -12)),
        entropy < 0.5, entropy < 2, entropy > 5,
    ]  # fmt: skip
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], 1)


LEAST_VARIANCE = 0.05  # of a log-probability: where the next token is all but certain, curvature would say nothing


class LinearHead(nn.Module):
    """w . (f - c) / s, in float64.

    Args:
        centre, scale, weight: c, s and w, each of shape (features,): states layer by layer, then likelihoods.
    """

    centre: Tensor
    scale: Tensor
    weight: Tensor

    def __init__(self, centre: np.ndarray, scale: np.ndarray, weight: np.ndarray):
        super().__init__()
        for name, array in (("centre", centre), ("scale", scale), ("weight", weight)):
            self.register_buffer(name, torch.from_numpy(np.asarray(array, dtype=np.float64)))

    def forward(self, features: Float[Tensor, "rows features"]) -> Float[Tensor, " rows"]:
        return ((features - self.centre) / self.scale) @ self.weight


class PooledReward(TextReward):
    """A reward of a whole text: the mean of what its tokens are worth.

    Attributes:
        info: as midcourse.json records it.
        head: gives a number for a token's features.

    Examples:
        >>> reward = PooledReward.load("my-detector")
        >>> reward.rate([Text("", "The ferry was late.", True)])
    """

    KIND = "pooled"

    def __init__(self, reader: Reader, info: RewardInfo, head: LinearHead):
        super().__init__(self._read_all, name=f"the reward on {info.backbone}")
        self.reader, self.info, self.head = reader, info, head
        self.model, self.lm = reader.lm.model, reader.lm
        self.calibration = Calibration.read(info.calibration)

    @property
    def models(self) -> Sequence[nn.Module]:
        """Return the language model: each text costs one pass."""
        return [self.model]

    def features(self, texts: Sequence[str]) -> Float[np.ndarray, "texts features"]:
        """Return the mean of f_t over each text; zeros for one without tokens that count."""
        found = np.zeros((len(texts), self.reader.width))
        for number, reading in self.reader.read(texts):
            if len(reading.places):
                found[number] = reading.features.mean(0)
        return found

    def of_features(self, features: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, " rows"]:
        """Return r of each row of features: of a token, or the mean of a text."""
        return self.head(torch.from_numpy(features)).numpy()

    def of_tokens(self, text: str) -> Score:
        """Return what each token adds: r_t by the number of tokens that count, 0 for those that do not."""
        ids = self.reader.lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        [(_, reading)] = self.reader.read([text])
        rewards = np.zeros(len(ids))
        if len(reading.places):
            rewards[reading.places] = self.of_features(reading.features) / len(reading.places)
        pieces = tuple(self.reader.lm.tokenizer.decode([token]) for token in ids)
        return Score(tuple(ids), pieces, tuple(rewards.tolist()), additive=True)

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
        return cls(Reader(lm, tuple(reading["layers"]), reading["likelihoods"], reading["burn_in"]), info, head)
