"""A reward of a whole text that is the mean of its tokens' rewards, from one pass of a frozen language model.

    r(text) = mean over its n tokens of r_t
    r_t     = w_n . (f_t - c)
    f_t     = min(- log p(x_t), 8) h_t

h_t are the states at token t behind some layers, and p is what the model expects there: a token counts by its surprise.
What a model writes and what people write differ where something else could have stood; there the states are heard, and
hardly at all where every writer would have gone on alike. The weights w_n depend on the number of tokens, see `Head`:
a mean of few tokens says less.

The model stays frozen. The first tokens of a text are read and do not count: with so little before them, they say more
of the subject than of the writer. There is no prompt: the text stands alone, as in ReMoDetect's detectors (Lee et al.,
2024, arXiv 2405.17382).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from midcourse.files import as_json, whole_file, whole_folder, write_text
from midcourse.lm.language_model import LanguageModel, states_behind
from midcourse.lm.prefix_cache import pad
from midcourse.progress import Advance, silent
from midcourse.rewards.backbone import check_sharing
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.contract import Alone, Score, Text
from midcourse.rewards.info import RewardError, RewardInfo, read_info
from midcourse.rewards.likelihood import TokenFigures, token_figures
from midcourse.rewards.text import TextReward
from midcourse.rewards.trained import check_tokenizer, check_weights
from midcourse.rewards.windows import Window, nested, read_whole, windows_of

BURN_IN = 48
MOST_SURPRISE = 8.0  # nats; a rare word is not heard more than this, however rare


class Reading(NamedTuple):
    """The states of a text's tokens and how likely these were, read in one pass; of those tokens that count.

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
        """Return f_t of each token: its states, layer by layer, by its surprise if that was asked for."""
        states = self.states.flatten(1).double().cpu().numpy()
        return states * surprise_of(self.figures)[:, None] if len(self.figures.logprob) else states

    def part(self, counted: slice) -> "Reading":
        """Return what was read of some of the tokens."""
        figures = TokenFigures(*(row[counted] for row in self.figures))
        return Reading(self.places[counted], self.states[counted], figures)


class Means(NamedTuple):
    """What was read of whole texts.

    Attributes:
        features: the mean of f_t over each text; zeros for one without tokens that count.
        tokens: how many tokens of each count.
        windows: in how many parts each was read.
    """

    features: Float[np.ndarray, "texts features"]
    tokens: Int[np.ndarray, " texts"]
    windows: Int[np.ndarray, " texts"]


def surprise_of(figures: TokenFigures) -> Float[np.ndarray, " tokens"]:
    """Return the surprise at each token, - log p(x_t) and no more than `MOST_SURPRISE`."""
    return np.minimum(-figures.logprob, MOST_SURPRISE)


def uncounted(tokens: int, burn_in: int = BURN_IN) -> int:
    """Return how many tokens at the beginning of a window of so many do not count; the first never does."""
    return min(max(min(burn_in, tokens // 2), 1), tokens)


@dataclass(frozen=True)
class Reader:
    """Reads texts by one pass of a language model over each.

    Attributes:
        lm: the language model.
        layers: behind which of its layers states are taken; behind the last they are normalised.
        surprise: whether tokens count by their surprise, which takes the pass over the vocabulary; else all alike.
        burn_in: tokens at the beginning of a window that do not count; of a short one half of them, and the first never
            does, before which nothing stands.
    """

    lm: LanguageModel
    layers: tuple[int, ...]
    surprise: bool = True
    burn_in: int = BURN_IN

    @property
    def width(self) -> int:
        """Return how many features a token has."""
        return len(self.layers) * int(self.lm.model.config.get_text_config().hidden_size)

    def read(self, texts: Sequence[str]) -> Iterator[tuple[int, Reading]]:
        """Yield (the text's number, what was read), texts of like length together.

        A text of more than `WINDOW` tokens, or than the context holds, is read in windows, each from its own beginning.
        A text that another begins with is not read a second time.
        """
        for number, parts in read_whole(nested(windows_of(self.lm, texts)), self._parts):
            yield number, _joined(parts)

    def means(self, texts: Sequence[str], advance: Advance = silent) -> Means:
        """Return the mean features of each text, and of how many tokens; of a window no more is kept than their sum.

        Args:
            advance: told of every text, in parts as they are read.
        """
        found = Means(np.zeros((len(texts), self.width)), *np.zeros((2, len(texts)), dtype=int))
        for number, parts in read_whole(nested(windows_of(self.lm, texts)), self._sums, advance):
            count = sum(tokens for _, (_, tokens) in parts)
            found.features[number] = sum(total for _, (total, _) in parts) / max(count, 1)
            found.tokens[number], found.windows[number] = count, len(parts)
        return found

    def _sums(self, rows: Sequence[Sequence[Window]]) -> Iterator[tuple[Window, tuple[np.ndarray, int]]]:
        for window, reading in self._parts(rows):
            yield window, (reading.features.sum(0), len(reading.places))

    def _parts(self, rows: Sequence[Sequence[Window]]) -> Iterator[tuple[Window, Reading]]:
        """Yield each window with what is read of its tokens that count, by one pass over the first of each row."""
        begins = [max(min(self._uncounted(window) for window in row), 1) for row in rows]
        readings = self._pass([row[0].token_ids for row in rows], begins)
        for row, begin, whole in zip(rows, begins, readings, strict=True):
            for window in row:
                first, end = self._uncounted(window), len(window.token_ids)
                yield window, whole.part(slice(max(first - begin, 0), max(end - begin, 0)))

    def _uncounted(self, window: Window) -> int:
        return uncounted(len(window.token_ids), self.burn_in)

    @torch.inference_mode()
    def _pass(self, rows: Sequence[Sequence[int]], begins: Sequence[int]) -> list[Reading]:
        """Return what is read of each row's tokens from a place on, which is not the first."""
        if not any(rows):
            nothing = torch.zeros(0, len(self.layers), self.lm.model.config.get_text_config().hidden_size)
            return [Reading(np.arange(0), nothing, TokenFigures(*np.zeros((4, 0)))) for _ in rows]
        ids, mask = pad(rows, self.lm.device)
        decoder = self.lm.model.get_decoder()
        output = decoder(input_ids=ids, attention_mask=mask.long(), use_cache=False, output_hidden_states=True)
        states = torch.stack([states_behind(output, layer) for layer in self.layers], 2) if self.layers else None
        final, matrix = output.last_hidden_state, self.lm.model.get_output_embeddings()
        readings = []
        for i, (row, begin) in enumerate(zip(rows, begins, strict=True)):
            end = len(row)
            mine = final.new_zeros(end - begin, 0, 0) if states is None else states[i, begin:end]
            figures = torch.zeros(0, 4)
            if self.surprise and end > begin:
                figures = token_figures(matrix, final[i, begin - 1 : end - 1], ids[i, begin:end]).double().cpu()
            readings.append(Reading(np.arange(begin, end), mine, TokenFigures(*figures.numpy().T)))
        return readings


def _joined(parts: Sequence[tuple[int, Reading]]) -> Reading:
    """Return the readings of a text's windows, each with the place of its first token, as one."""
    return Reading(
        np.concatenate([begin + reading.places for begin, reading in parts]),
        torch.cat([reading.states for _, reading in parts]),
        TokenFigures(*map(np.concatenate, zip(*(reading.figures for _, reading in parts), strict=True))),
    )


class Head(nn.Module):
    """w_n . (f - c), in float64: Fisher's linear discriminant, which heeds more directions the more tokens there are.

        w_n = (C + (k / n) I)^-1 d, over sqrt(w_n . C w_n)

    C is how texts of one kind scatter, and d how two kinds differ. k / n stands for the noise of a mean of n tokens. C
    is kept by its eigenvectors, u_j with eigenvalue l_j, along which the equation falls apart:

        w_n = sum over j of u_j (u_j . d) / (l_j + k / n)

    Args:
        centre: c, of shape (features,).
        directions: u_j in the units of f, (directions, features).
        scatter: l_j, (directions,).
        difference: u_j . d, (directions,).
        ridge: k, of shape ().
    """

    centre: Tensor
    directions: Tensor
    scatter: Tensor
    difference: Tensor
    ridge: Tensor

    PARTS = ("centre", "directions", "scatter", "difference", "ridge")

    def __init__(
        self,
        centre: np.ndarray,
        directions: np.ndarray,
        scatter: np.ndarray,
        difference: np.ndarray,
        ridge: np.ndarray | float,
    ):
        super().__init__()
        for name, array in zip(self.PARTS, (centre, directions, scatter, difference, ridge), strict=True):
            self.register_buffer(name, torch.from_numpy(np.array(array, dtype=np.float64)))

    def forward(self, features: Float[Tensor, "rows features"], tokens: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Return the reward of each row of features, of a text with so many tokens that count; 0 if none does."""
        along = (features - self.centre) @ self.directions.T
        heeded = self.difference / (self.scatter + self.ridge / tokens.clamp(min=1)[:, None])
        rewards = (along * heeded).sum(1) / (heeded**2 @ self.scatter).sqrt()
        return torch.where(tokens > 0, rewards, 0.0)


class PooledReward(TextReward):
    """A reward of a whole text: the mean of what its tokens are worth.

    Attributes:
        info: as midcourse.json records it.
        head: gives a number for features, those of a token or their mean over a text.

    Examples:
        >>> reward = PooledReward.load("my-detector")
        >>> reward.rate([Text("", "The ferry was late.", True)])
    """

    KIND = "pooled"

    def __init__(self, reader: Reader, info: RewardInfo, head: Head):
        super().__init__(self._read_all, name=f"the reward on {info.backbone}")
        self.reader, self.info, self.head = reader, info, head
        self.model, self.lm = reader.lm.model, reader.lm
        self.calibration = Calibration.read(info.calibration)

    @property
    def models(self) -> Sequence[nn.Module]:
        """Return the language model: each text costs one pass."""
        return [self.model]

    def of_features(
        self, features: Float[np.ndarray, "rows features"], tokens: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, " rows"]:
        """Return r of each row of features, of a token or the mean of a text, in texts of so many tokens that count."""
        return self.head(torch.from_numpy(features), torch.from_numpy(tokens)).numpy()

    def of_tokens(self, text: str) -> Score:
        """Return what each token adds: r_t by the number of tokens that count, 0 for those that do not."""
        ids = self.reader.lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        [(_, reading)] = self.reader.read([text])
        rewards = np.zeros(len(ids))
        if count := len(reading.places):
            rewards[reading.places] = self.of_features(reading.features, np.full(count, count)) / count
        pieces = tuple(self.reader.lm.tokenizer.decode([token]) for token in ids)
        return Score(tuple(ids), pieces, tuple(rewards.tolist()), additive=True)

    def rate_alone(self, texts: Sequence[str], advance: Advance = silent) -> Alone:
        """Return the reward of each text as `rate` does, with the features and windows that were read for it."""
        if not texts:
            return Alone([], None, [])
        means = self.reader.means(texts, advance)
        rewards = zip(texts, self.of_features(means.features, means.tokens).tolist(), strict=True)
        checked = [self._checked(Text("", text, True), reward) for text, reward in rewards]
        return Alone(checked, means.features, means.windows.tolist())

    def _read_all(self, texts: Sequence[Text]) -> list[float]:
        means = self.reader.means([text.response for text in texts])
        return self.of_features(means.features, means.tokens).tolist()

    def save(self, folder: str | Path) -> None:
        """Write the reward to `folder`, whole or not at all; an earlier one there is replaced."""
        with whole_folder(Path(folder)) as work:
            self.write(work)

    def write(self, folder: Path) -> None:
        """Write the reward's files into an existing folder, each whole, midcourse.json last."""
        # save_file writes an array's memory as it lies, so that one in column order would be read back as another.
        arrays = {name: tensor.numpy().astype(np.float32, order="C") for name, tensor in self.head.state_dict().items()}
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
        if share_with:
            check_sharing(folder, info, share_with, device, dtype, allow_other_weights=False)
        lm = share_with or LanguageModel.load(info.backbone, device=device, dtype=dtype)
        check_tokenizer(folder, info, lm.tokenizer, info.backbone)
        try:
            arrays = load_file(folder / "reward.safetensors")
            head = Head(*(arrays[name] for name in Head.PARTS))
            if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
                raise KeyError(f"no finite number in {broken[0]}")
        except (OSError, SafetensorError, KeyError) as error:
            raise RewardError(
                f"{folder}/reward.safetensors cannot be read ({error}); train the reward again"
            ) from error
        return cls(Reader(lm, *_reading(folder, info, lm)), info, head)


def _reading(folder: Path, info: RewardInfo, lm: LanguageModel) -> tuple[tuple[int, ...], bool, int]:
    """Return how a saved reward reads texts: layers, surprise, burn-in; RewardError if it does not say so."""
    depth = lm.model.config.get_text_config().num_hidden_layers
    match info.objective_settings["reading"]:
        case {"layers": [*layers], "surprise": bool(surprise), "burn_in": int(burn_in)} if burn_in >= 0 and all(
            type(layer) is int and 0 <= layer <= depth for layer in layers
        ):
            return tuple(layers), surprise, burn_in
    raise RewardError(f"{folder}/midcourse.json does not say how texts are read; train the reward again")
