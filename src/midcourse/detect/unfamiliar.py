"""Whether a text is like those that a detector was calibrated on, by where its features lie.

Features are brought to few directions, those in which calibration texts differ most, and the distance is Mahalanobis's.
What the directions leave out counts as one more. Features of short texts scatter more, so each length has its own
limit, set by the farthest texts of calibration that were not used to find the directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from midcourse.detect.conformal import threshold
from midcourse.detect.humans import LENGTHS, lengths_of

DIRECTIONS = 48
BEYOND = 0.01  # the share of texts like those of calibration that lie beyond the limit, on average


@dataclass(frozen=True)
class Familiar:
    """Where the features of familiar texts lie.

    Attributes:
        centre, scale: that bring each feature to mean 0 and spread 1.
        directions: orthonormal, (directions, features).
        spreads: of the texts along each, and of what they leave out.
        limits: of each length the distance beyond which a text is strange; infinite if too few texts tell.
    """

    centre: Float[np.ndarray, " features"]
    scale: Float[np.ndarray, " features"]
    directions: Float[np.ndarray, "directions features"]
    spreads: Float[np.ndarray, " directions_and_rest"]
    limits: Float[np.ndarray, " lengths"]

    @classmethod
    def of(
        cls,
        features: Float[np.ndarray, "texts features"],
        words: Sequence[int] | np.ndarray,
        groups: Sequence[str],
        *,
        seed: int = 0,
    ) -> "Familiar":
        """Find where texts lie: half of their groups gives the directions, the other half the limits.

        Args:
            words: how many words each text has.
            groups: texts that belong together, such as a text and its beginnings.
        """
        names = np.unique(list(groups))
        first = set(np.random.default_rng(seed).permutation(names)[::2].tolist())
        mine = np.array([group in first for group in groups])
        fitted, held = features[mine], features[~mine]
        centre, scale = fitted.mean(0), fitted.std(0) + 1e-6
        _, _, rows = np.linalg.svd((fitted - centre) / scale, full_matrices=False)
        directions = rows[: min(DIRECTIONS, len(fitted) // 4)]
        found = cls(centre, scale, directions, np.ones(len(directions) + 1), np.full(len(LENGTHS) + 1, np.inf))
        parts = found._parts(held)
        spreads = np.sqrt((parts**2).mean(0)) + 1e-9
        distances, lengths = np.sqrt(((parts / spreads) ** 2).sum(1)), lengths_of(np.asarray(words)[~mine])
        limits = [threshold(distances[lengths == length], BEYOND).score for length in range(len(LENGTHS) + 1)]
        return cls(centre, scale, directions, spreads, np.array([np.inf if one is None else one for one in limits]))

    def distances(self, features: Float[np.ndarray, "texts features"]) -> Float[np.ndarray, " texts"]:
        """Return how far each text lies from the middle, in spreads."""
        return np.sqrt(((self._parts(features) / self.spreads) ** 2).sum(1))

    def known(self, words: Sequence[int] | np.ndarray) -> Bool[np.ndarray, " texts"]:
        """Return of texts of so many words whether it can be told which are strange."""
        return np.isfinite(self.limits[lengths_of(words)])

    def strange(
        self, features: Float[np.ndarray, "texts features"], words: Sequence[int] | np.ndarray
    ) -> Bool[np.ndarray, " texts"]:
        """Return which texts lie beyond the limit of their length."""
        return self.distances(features) > self.limits[lengths_of(words)]

    def _parts(self, features: Float[np.ndarray, "texts features"]) -> Float[np.ndarray, "texts parts"]:
        centred = (features - self.centre) / self.scale
        along = centred @ self.directions.T
        rest = np.sqrt(np.maximum((centred**2).sum(1) - (along**2).sum(1), 0))
        return np.concatenate([along, rest[:, None]], 1)
