"""What a stored calibration says of rewards that are shown. It never reaches what guides: raw rewards stay as they are.

Training leaves a reward one free constant per length and its own scale; a calibration removes both for the reader. It
is fitted by `midcourse.evaluate.calibration`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from midcourse.errors import MidcourseError, first_line


class CalibrationError(MidcourseError):
    """A calibration that cannot be fitted or read."""


@dataclass(frozen=True)
class Calibration:
    """Temperatures that make differences of rewards log-odds, and the mean reward at every length.

    Attributes:
        temperature: T in P(a is preferred to b) = sigmoid((r_a - r_b) / T) for prefixes of equal length, in units of
            the reward; None if there were no pairs to fit it.
        finished_temperature: the same for finished texts; None if none was seen.
        means: the mean reward of prefixes of 1, 2, ... response tokens; the last one holds for all longer prefixes.
            Empty if they are not known, as of a reward of whole texts.
        finished_mean: the mean reward of finished texts, at their EOS; None if none was seen.

    Examples:
        >>> calibration = RewardModel.load("my-reward").calibration
        >>> calibration.probability(a.rewards[-1] - b.rewards[-1], finished=True)
    """

    temperature: float | None
    finished_temperature: float | None
    means: tuple[float, ...]
    finished_mean: float | None

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> "Calibration | None":
        """Read midcourse.json's `calibration`; None if it is empty, CalibrationError if it makes no sense."""
        if not stored:
            return None
        try:
            prefix, finished = (_optional(stored[name]) for name in ("temperature", "finished_temperature"))
            means, finished_mean = tuple(map(float, stored["means"])), _optional(stored["finished_mean"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            problem = first_line(error)
            raise CalibrationError(f"the stored calibration is damaged ({problem}); train the reward again") from error
        positive = all(t is None or 0 < t < math.inf for t in (prefix, finished))
        if not positive or not all(map(math.isfinite, (*means, finished_mean or 0.0))):
            raise CalibrationError(
                "the stored calibration is damaged (it needs finite means and temperatures above 0); "
                "train the reward again"
            )
        return cls(prefix, finished, means, finished_mean)

    def stored(self) -> dict[str, Any]:
        """Return the calibration as midcourse.json holds it."""
        return {**asdict(self), "means": list(self.means)}

    def centred(self, rewards: Sequence[float], *, finished: bool) -> list[float | None]:
        """Return each reward less the mean one at its length; None if no mean is known.

        Args:
            rewards: of a response's prefixes of 1, 2, ... tokens.
            finished: the last of them is that of the finished text.
        """
        centred: list[float | None] = [
            reward - self.means[min(length, len(self.means) - 1)] if self.means else None
            for length, reward in enumerate(rewards)
        ]
        if finished and centred:
            centred[-1] = None if self.finished_mean is None else rewards[-1] - self.finished_mean
        return centred

    def probability(self, margin: float, *, finished: bool) -> float | None:
        """Return P(a is preferred to b) = sigmoid(margin / T) of two texts `margin` apart in reward; None without a T.

        Args:
            finished: a and b are finished texts; otherwise prefixes of equal length.
        """
        temperature = self.finished_temperature if finished else self.temperature
        return None if temperature is None else 0.5 + 0.5 * math.tanh(margin / (2 * temperature))

    def against_mean(self, rewards: Sequence[float], *, finished: bool) -> list[float | None]:
        """Return the probability of each prefix to be preferred to one of its length with the mean reward."""
        centred = self.centred(rewards, finished=finished)
        return [
            None if value is None else self.probability(value, finished=finished and place == len(centred) - 1)
            for place, value in enumerate(centred)
        ]


def _optional(number: Any) -> float | None:
    return None if number is None else float(number)
