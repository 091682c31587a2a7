"""A detector: a reward of whole texts, and what is known of the scores of texts by people and by machines.

Its folder is that of the reward, with two files beside:

    detector.json           which texts it was calibrated on, and how
    detector.safetensors    their scores, and what is needed to tell unfamiliar texts
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.special import expit

from midcourse.detect.conformal import Guarantee
from midcourse.detect.disguise import plain
from midcourse.detect.humans import Bound, Scored, bound_of, length_of
from midcourse.detect.texts import LabelledText
from midcourse.detect.unfamiliar import Familiar
from midcourse.errors import MidcourseError
from midcourse.files import as_json, whole_file, write_text
from midcourse.rewards.contract import Reward
from midcourse.rewards.info import place_of
from midcourse.rewards.named import load_reward

VerdictName: TypeAlias = Literal["machine", "human", "cannot tell"]
FORMAT = 1
PART = 256  # texts that are read before the first of them is answered


class DetectorError(MidcourseError):
    """A detector that cannot be loaded or calibrated, or a rate that makes no sense."""


@dataclass(frozen=True)
class Verdict:
    """What a detector says of a text.

    Attributes:
        name: where the text stands.
        score: its reward; the higher, the more like a machine's.
        probability: that a machine wrote it, if half of such texts are machines'; None without machine texts to
            calibrate on.
        verdict: "machine" if it lies above what human texts reach at the false-positive rate, "human" if it lies below
            what machine texts reach at the same rate, else "cannot tell".
        reason: what the verdict rests on, or why there is none, in a sentence.
        fpr: the rate that was asked for.
        guarantee: whether it holds on average over calibrations, or with 95% confidence.
        texts: on how many human texts the threshold rests.
        threshold: what the score has to exceed to be called a machine's; None if nothing resolves the rate.
        words: how many there are.
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
    threshold: float | None
    words: int
    unseen: int = 0
    lookalikes: int = 0


@dataclass(frozen=True)
class Detector:
    """A reward of texts with calibrated verdicts.

    Attributes:
        reward: gives each text its score.
        humans, machines: scores of the calibration texts.
        familiar: what calibration texts look like in the reward's own features, those of each calibration; none if the
            reward has no features.
        slope, intercept: of the log-odds that a machine wrote a text, linear in its score; nan without machine texts.
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
    slope: float
    intercept: float
    about: dict[str, Any]

    def score(
        self,
        texts: Sequence[str | LabelledText],
        *,
        fpr: float = 0.01,
        guarantee: Guarantee = "average",
        group: str | None = None,
    ) -> Iterator[Verdict]:
        """Yield a verdict on each text, in order; so many at a time are read.

        Args:
            fpr: the share of human texts that may be called a machine's, between 0 and 1.
            guarantee: "average" or "confidence"; see `conformal.threshold`.
            group: of all texts, one of those the detector was calibrated on; by default no group is known, and the
                strictest threshold counts.

        Raises:
            DetectorError: a rate outside of 0 to 1, or an unknown group.
        """
        if not 0 < fpr < 1:
            raise DetectorError(f"fpr {fpr} is no rate between 0 and 1; use 0.01, say")
        if group is not None and group not in self.humans.group_names:
            known = ", ".join(self.humans.group_names) or "none"
            raise DetectorError(f"group {group!r} was not calibrated; use one of: {known}, or leave it out")
        return self._verdicts(texts, fpr, guarantee, group)

    def _verdicts(
        self, texts: Sequence[str | LabelledText], fpr: float, guarantee: Guarantee, group: str | None
    ) -> Iterator[Verdict]:
        bounds: dict[int, tuple[Bound, Bound]] = {}  # of a length: a few sorts, not some for every text
        for begin in range(0, len(texts), PART):
            part = [
                text if isinstance(text, LabelledText) else LabelledText(text) for text in texts[begin : begin + PART]
            ]
            read = [plain(text.text) for text in part]
            scores, strange = self.read([one.text for one in read])
            for text, one, score, far in zip(part, read, scores, strange, strict=True):
                words = len(one.text.split())
                length = length_of(words)
                if length not in bounds:
                    above = bound_of(self.humans, words, fpr, guarantee, group)
                    bounds[length] = above, bound_of(self.machines.turned, words, fpr, guarantee)
                above, below = bounds[length]
                verdict, reason = _decided(score, far, above, below, fpr, guarantee)
                yield Verdict(
                    text.name, score, self.probability(score), verdict, reason, fpr, guarantee, above.texts,
                    above.score, words, one.unseen, one.lookalikes,
                )  # fmt: skip

    def read(self, texts: Sequence[str]) -> tuple[list[float], list[bool]]:
        """Return the score of each plain text, and whether it is unlike the texts of every calibration."""
        scores, features = self.reward.rate_alone(texts)
        if features is None or not self.familiar:
            return scores, [False] * len(texts)
        words = [len(text.split()) for text in texts]
        return scores, np.all([one.strange(features, words) for one in self.familiar], axis=0).tolist()

    def probability(self, score: float) -> float | None:
        """Return the probability that a machine wrote a text of that score, if half of such texts are machines'."""
        return None if math.isnan(self.slope) else float(expit(self.slope * score + self.intercept))

    # Files

    def save(self, folder: str | Path) -> None:
        """Write the calibration beside the reward, which is in `folder` already."""
        folder = Path(folder)
        arrays = {
            f"{kind}.{one.name}": getattr(scored, one.name)
            for kind, scored in (("humans", self.humans), ("machines", self.machines))
            for one in fields(Scored)
            if one.name != "groups"
        }
        names = sorted({*self.humans.groups.tolist(), *self.machines.groups.tolist()})
        for kind, scored in (("humans", self.humans), ("machines", self.machines)):
            arrays[f"{kind}.groups"] = np.array([names.index(name) for name in scored.groups], dtype=np.int16)
        for number, familiar in enumerate(self.familiar):
            arrays |= {f"familiar.{number}.{one.name}": getattr(familiar, one.name) for one in fields(Familiar)}
        with whole_file(folder / "detector.safetensors") as temporary:
            save_file({name: np.ascontiguousarray(_small(array)) for name, array in arrays.items()}, temporary)
        record = {"format": FORMAT, "groups": names, "slope": self.slope, "intercept": self.intercept}
        record = {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in record.items()}
        write_text(folder / "detector.json", as_json({**record, "about": self.about}, indent=2) + "\n")

    @classmethod
    def load(cls, name: str | Path, *, device: str = "auto", dtype: str = "auto") -> "Detector":
        """Load the detector in a folder that was calibrated.

        Raises:
            DetectorError: the reward was not calibrated, or its calibration is damaged.
            RewardError, ModelError: as `load_reward`.
        """
        folder = Path(place_of(name))
        if not (folder / "detector.json").is_file():
            raise DetectorError(f"{name} has no calibration; make one with calibrate(...) and save it there")
        try:
            record = json.loads((folder / "detector.json").read_text())
            if record["format"] != FORMAT:
                raise DetectorError(f"{folder} has format {record['format']}, this release reads {FORMAT}")
            arrays = load_file(folder / "detector.safetensors")
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
            odds = [math.nan if record[key] is None else float(record[key]) for key in ("slope", "intercept")]
        except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as error:
            raise DetectorError(f"{folder}/detector.json is damaged ({error}); calibrate the detector again") from error
        reward = load_reward(folder, device=device, dtype=dtype)
        return cls(reward, humans, machines, familiar, odds[0], odds[1], record["about"])


def _decided(
    score: float, strange: bool, above: Bound, below: Bound, fpr: float, guarantee: Guarantee
) -> tuple[VerdictName, str]:
    """Return the verdict on a text and what it rests on.

    Args:
        strange: it is unlike the texts of the calibration.
        above, below: what its score has to exceed to be a machine's, and its negative to be a person's.
    """
    if above.score is None:
        return "cannot tell", above.missing
    if strange:
        return "cannot tell", "unlike the texts that the detector was calibrated on"
    if score > above.score:
        return "machine", f"higher than human texts at {fpr:.2%} false positives {_held(guarantee)}"
    if below.score is not None and -score > below.score:
        return "human", f"lower than machine texts at {fpr:.2%} of these missed {_held(guarantee)}"
    return "cannot tell", "people and machines both write texts with such a score"


def _held(guarantee: Guarantee) -> str:
    return "on average" if guarantee == "average" else "with 95% confidence"


def _small(array: np.ndarray) -> np.ndarray:
    """Return an array in as few bytes as hold it: directions need no more than half precision."""
    if array.dtype == np.float64:
        return array.astype(np.float16 if array.ndim == 2 else np.float32)
    return array.astype(np.int32) if array.dtype == np.int64 else array
