"""A detector: a reward of whole texts, and what is known of the scores of texts by people and by machines.

Its folder is that of the reward, with two files beside:

    detector.json           which texts it was calibrated on, and how
    detector.safetensors    their scores, and what is needed to tell unfamiliar texts
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import expit

from midcourse.detect.conformal import GUARANTEES, LOWEST, Guarantee
from midcourse.detect.disguise import plain
from midcourse.detect.humans import Bound, Scored, bound_of, length_of
from midcourse.detect.texts import LabelledText
from midcourse.detect.unfamiliar import Familiar
from midcourse.errors import MidcourseError, short_value
from midcourse.files import as_json, whole_file, write_text
from midcourse.progress import Advance, silent
from midcourse.rewards.contract import Alone, Reward
from midcourse.rewards.fingerprint import reward_fingerprint
from midcourse.rewards.info import place_of
from midcourse.rewards.named import load_reward

VerdictName: TypeAlias = Literal["machine", "human", "cannot tell"]
FORMAT = 1
PART = 64  # texts that are read before the first of them is answered


class DetectorError(MidcourseError):
    """A detector that cannot be loaded or calibrated, or a rate that makes no sense."""


@dataclass(frozen=True)
class Verdict:
    """What a detector says of a text.

    Attributes:
        name: where the text stands.
        score: its reward; the higher, the more like a machine's.
        probability: that a machine wrote it, if half of such texts are machines'; None if it is unlike those of the
            calibration, or these have too few of its length.
        verdict: "machine" if it lies above what human texts reach at the false-positive rate, "human" if it lies below
            what machine texts reach at the same rate, else "cannot tell".
        reason: what the verdict rests on, or why there is none, in a sentence.
        fpr: the rate that was asked for.
        guarantee: whether it holds on average over calibrations, or with 95% confidence.
        texts: on how many human texts the threshold rests, the fewest if there are several of which it is the highest.
        rests_on: the groups and lengths of these.
        threshold: what the score has to exceed to be called a machine's; None if nothing resolves the rate.
        words: how many there are.
        windows: in how many parts the text was read, since it is longer than what is read at once; 1 if whole.
        unseen, lookalikes: see `disguise.Plain`.
    """

    name: str
    score: float
    probability: float | None
    verdict: VerdictName
    reason: str
    fpr: float
    guarantee: Guarantee
    texts: int
    rests_on: tuple[str, ...]
    threshold: float | None
    words: int
    windows: int = 1
    unseen: int = 0
    lookalikes: int = 0

    @property
    def remarks(self) -> list[str]:
        """Return what a reader should know of how the text was read."""
        counts = ((self.unseen, "unseen character", "taken out"), (self.lookalikes, "lookalike letter", "replaced"))
        found = [f"{count} {what}{'s' if count > 1 else ''} {done}" for count, what, done in counts if count]
        return [f"read in {self.windows} parts, since it is long", *found] if self.windows > 1 else found


@dataclass(frozen=True)
class Detector:
    """A reward of texts with calibrated verdicts.

    Attributes:
        reward: gives each text its score.
        humans, machines: scores of the calibration texts.
        familiar: what calibration texts look like in the reward's own features, those of each calibration; none if the
            reward has no features.
        odds: of each length, slope and intercept of the log-odds that a machine wrote a text, linear in its score; nan
            where too few machine or human texts tell.
        about: what it was calibrated on, for people.

    Examples:
        >>> detector = Detector.load("my-detector")
        >>> for verdict in detector.score(["The ferry was late, and nobody minded."]):
        ...     print(verdict.verdict, verdict.reason)
    """

    reward: Reward
    humans: Scored
    machines: Scored
    familiar: tuple[Familiar, ...]
    odds: Float[np.ndarray, "lengths 2"]
    about: dict[str, Any]

    def score(
        self,
        texts: Sequence[str | LabelledText],
        *,
        fpr: float = 0.01,
        guarantee: Guarantee = "average",
        group: str | None = None,
        advance: Advance = silent,
    ) -> Iterator[Verdict]:
        """Yield a verdict on each text, in order; so many at a time are read.

        Args:
            fpr: the share of human texts that may be called a machine's, between 0 and 0.5.
            guarantee: "average" or "confidence"; see `conformal.threshold`.
            group: of all texts, one of those the detector was calibrated on; by default no group is known, and the
                strictest threshold counts.
            advance: told of every text, in parts as they are read; see `midcourse.progress`.

        Raises:
            DetectorError: a rate outside of 0 to 0.5, an unknown group, or one text instead of several.
        """
        if isinstance(texts, str | LabelledText):
            raise DetectorError("texts is one text; give a list of them")
        if not isinstance(texts, Sequence):
            raise DetectorError(f"texts is an object of type {type(texts).__name__}; give a list of texts")
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str | LabelledText):
                raise DetectorError(f"text {number} is an object of type {type(text).__name__}; give a text")
        if not isinstance(fpr, int | float) or not LOWEST <= fpr < 0.5:
            raise DetectorError(f"fpr {fpr} is no rate between 0 and 0.5; use 0.01 for 1%, say")
        if guarantee not in GUARANTEES:
            raise DetectorError(f"guarantee {guarantee!r} is unknown; use {' or '.join(GUARANTEES)}")
        if group is not None and group not in self.humans.group_names:
            known = ", ".join(self.humans.group_names)
            remedy = f"use one of: {known}, or leave it out" if known else "leave it out, since the detector has none"
            raise DetectorError(f"group {group!r} was not calibrated; {remedy}")
        return self._verdicts(texts, fpr, guarantee, group, advance)

    def _verdicts(
        self,
        texts: Sequence[str | LabelledText],
        fpr: float,
        guarantee: Guarantee,
        group: str | None,
        advance: Advance,
    ) -> Iterator[Verdict]:
        bounds: dict[int, tuple[Bound, Bound]] = {}  # of a length: a few sorts, not some for every text
        for begin in range(0, len(texts), PART):
            part = [
                text if isinstance(text, LabelledText) else LabelledText(text) for text in texts[begin : begin + PART]
            ]
            read = [plain(text.text) for text in part]
            found, strange = self.read([one.text for one in read], advance)
            for text, one, score, far, windows in zip(part, read, found.rewards, strange, found.windows, strict=True):
                words = len(one.text.split())
                length = length_of(words)
                if length not in bounds:
                    above = bound_of(self.humans, words, fpr, guarantee, group)
                    bounds[length] = above, bound_of(self.machines.turned, words, fpr, guarantee)
                above, below = bounds[length]
                verdict, reason = _decided(words, score, far, above, below, fpr, guarantee)
                chance = None if far or not words else self.probability(score, length)
                yield Verdict(
                    text.name, score, chance, verdict, reason, fpr, guarantee, above.texts, above.rests_on,
                    above.score, words, windows, one.unseen, one.lookalikes,
                )  # fmt: skip

    def read(self, texts: Sequence[str], advance: Advance = silent) -> tuple[Alone, list[bool]]:
        """Return what the reward reads of each plain text, and whether it is unlike those of every calibration.

        Args:
            advance: told of every text, in parts as they are read.
        """
        found = self.reward.rate_alone(texts, advance)
        if found.features is None or not self.familiar:
            return found, [False] * len(texts)
        words = [len(text.split()) for text in texts]
        known = np.array([one.known(words) for one in self.familiar])
        strange = np.array([one.strange(found.features, words) for one in self.familiar])
        return found, (known.any(0) & (strange | ~known).all(0)).tolist()

    def probability(self, score: float, length: int) -> float | None:
        """Return the probability that a machine wrote it, if half of such texts are machines'; None if too few tell."""
        slope, intercept = self.odds[length]
        return None if np.isnan(slope) else float(expit(slope * score + intercept))

    # Files

    def save(self, folder: str | Path) -> None:
        """Write the calibration beside the reward, which is in `folder` already."""
        folder, arrays = Path(folder), self._arrays()
        with whole_file(folder / "detector.safetensors") as temporary:
            save_file(arrays, temporary)
        record = {
            "format": FORMAT,
            "reward": reward_fingerprint(self.reward),
            "fingerprint": _fingerprint(arrays, self._groups()),
            "groups": self._groups(),
            "about": self.about,
        }
        write_text(folder / "detector.json", as_json(record, indent=2) + "\n")

    @property
    def fingerprint(self) -> str:
        """Return what tells this calibration from others."""
        return _fingerprint(self._arrays(), self._groups())

    def _groups(self) -> list[str]:
        return sorted({*self.humans.groups.tolist(), *self.machines.groups.tolist()})

    def _arrays(self) -> dict[str, np.ndarray]:
        names = self._groups()
        arrays = {
            f"{kind}.{one.name}": getattr(scored, one.name)
            for kind, scored in (("humans", self.humans), ("machines", self.machines))
            for one in fields(Scored)
            if one.name != "groups"
        }
        for kind, scored in (("humans", self.humans), ("machines", self.machines)):
            arrays[f"{kind}.groups"] = np.searchsorted(names, scored.groups) if names else np.zeros(0, dtype=np.int64)
        for number, familiar in enumerate(self.familiar):
            arrays |= {f"familiar.{number}.{one.name}": getattr(familiar, one.name) for one in fields(Familiar)}
        return {name: np.ascontiguousarray(_small(array)) for name, array in {**arrays, "odds": self.odds}.items()}

    @classmethod
    def load(cls, name: str | Path, *, device: str = "auto", dtype: str = "auto") -> "Detector":
        """Load the detector "shipped", which comes with midcourse, or that in a folder that was calibrated.

        Raises:
            DetectorError: the reward was not calibrated, or its calibration is damaged.
            RewardError, ModelError: as `load_reward`.
        """
        if not isinstance(name, str | Path) or not str(name):
            raise DetectorError(f"{name!r} names no detector; name a folder, or shipped")
        folder = Path(place_of_detector(name))
        if not folder.is_dir():
            raise DetectorError(f"{name} is no folder of a detector; name one, or shipped")
        if not (folder / "detector.json").is_file():
            raise DetectorError(f"{name} has no calibration; make one with midcourse detect calibrate")
        again = "remove detector.json and detector.safetensors from it and calibrate it again"
        try:
            record = dict(json.loads((folder / "detector.json").read_text()))
            written = record["format"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DetectorError(f"the calibration in {folder} is damaged ({error}); {again}") from error
        if written != FORMAT:
            raise DetectorError(f"{folder} has format {short_value(written)}, this release reads {FORMAT}; {again}")
        try:
            arrays = load_file(folder / "detector.safetensors")
            if record["fingerprint"] != _fingerprint(arrays, record["groups"]):
                raise ValueError("its two files are of two calibrations")
            groups = np.array(record["groups"], dtype=str)
            humans, machines = (
                Scored(
                    arrays[f"{kind}.scores"].astype(float),
                    arrays[f"{kind}.words"].astype(np.int64),
                    groups[arrays[f"{kind}.groups"]] if len(groups) else np.zeros(0, dtype=str),
                    arrays[f"{kind}.whole"].astype(bool),
                )
                for kind in ("humans", "machines")
            )
            count = sum(key.startswith("familiar.") and key.endswith(".limits") for key in arrays)
            familiar = tuple(
                Familiar(*(arrays[f"familiar.{number}.{one.name}"].astype(float) for one in fields(Familiar)))
                for number in range(count)
            )
            odds, about, of_reward = arrays["odds"].astype(float), dict(record["about"]), record["reward"]
        except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as error:
            raise DetectorError(f"the calibration in {folder} is damaged ({error}); {again}") from error
        reward = load_reward(folder, device=device, dtype=dtype)
        if reward_fingerprint(reward) != of_reward:
            # A reward is its weights: in another number format they are others.
            raise DetectorError(
                f"{folder} holds another reward than the one that was calibrated, or the same in another number format "
                "than then (--dtype); use that, or calibrate it again to another folder"
            )
        return cls(reward, humans, machines, familiar, odds, about)


def place_of_detector(name: str | Path) -> str | Path:
    """Return where the detector of that name is: a folder here of that name comes before the shipped one."""
    if str(name) == "shipped" and not Path(name).exists():
        return Path(str(files("midcourse") / "shipped/detector"))
    return place_of(name)


def _fingerprint(arrays: dict[str, np.ndarray], groups: Sequence[str]) -> str:
    known = hashlib.sha256(json.dumps(list(groups)).encode())
    for name in sorted(arrays):
        known.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode() + arrays[name].tobytes())
    return known.hexdigest()[:16]


def _decided(
    words: int, score: float, strange: bool, above: Bound, below: Bound, fpr: float, guarantee: Guarantee
) -> tuple[VerdictName, str]:
    """Return the verdict on a text and what it rests on.

    Args:
        words: how many it has.
        strange: it is unlike the texts of the calibration.
        above, below: what its score has to exceed to be a machine's, and its negative to be a person's.
    """
    if not words:
        return "cannot tell", "there is nothing to read"
    if above.score is None:
        return "cannot tell", above.missing
    if strange:
        return "cannot tell", "unlike the kinds of text that the detector knows"
    if score > above.score:
        return "machine", f"higher than all but {fpr:.2%} of human texts, {_held(guarantee, above.texts)}"
    if below.score is None:
        few = f"{below.texts} machine texts of {below.rests_on[0]} are too few to call it a person's"
        return "cannot tell", f"no higher than all but {fpr:.2%} of human texts, and {few}"
    if -score > below.score:
        return "human", f"lower than all but {fpr:.2%} of machine texts, {_held(guarantee, below.texts)}"
    return "cannot tell", "people and machines both write texts with such a score"


def _held(guarantee: Guarantee, texts: int) -> str:
    return f"{'on average' if guarantee == 'average' else 'with 95% confidence'}, judging by {texts}"


def _small(array: np.ndarray) -> np.ndarray:
    """Return an array in as few bytes as hold it: directions need no more than half precision."""
    if array.dtype == np.float64:
        return array.astype(np.float16 if array.ndim == 2 else np.float32)
    return array.astype(np.int32) if array.dtype == np.int64 else array
