"""Whether a text is like those that a detector was calibrated on, by where its features lie.

Features are brought to few directions, those in which calibration texts differ most, and the distance is Mahalanobis's.
What the directions leave out counts as one more. The farthest texts of calibration that were not used to find the
directions set the limit.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

DIRECTIONS = 48
FAMILIAR = 0.01  # the share of held-out calibration texts that may lie beyond the limit


@dataclass(frozen=True)
class Familiar:
    """Where the features of familiar texts lie.

    Attributes:
        centre, scale: that bring each feature to mean 0 and spread 1.
        directions: orthonormal, (directions, features).
        spreads: of the texts along each, and of what they leave out.
        limit: the distance beyond which a text is strange.
    """

    centre: Float[np.ndarray, " features"]
    scale: Float[np.ndarray, " features"]
    directions: Float[np.ndarray, "directions features"]
    spreads: Float[np.ndarray, " directions_and_rest"]
    limit: float

    @classmethod
    def of(cls, features: Float[np.ndarray, "texts features"], *, seed: int = 0) -> "Familiar":
        """Find where texts lie: half of them give the directions, the other half the limit."""
        order = np.random.default_rng(seed).permutation(len(features))
        fitted, held = features[order[::2]], features[order[1::2]]
        centre, scale = fitted.mean(0), fitted.std(0) + 1e-6
        _, _, rows = np.linalg.svd((fitted - centre) / scale, full_matrices=False)
        directions = rows[: min(DIRECTIONS, len(fitted) // 4)]
        found = cls(centre, scale, directions, np.ones(len(directions) + 1), np.inf)
        parts = found._parts(held)
        spreads = np.sqrt((parts**2).mean(0)) + 1e-9
        distances = np.sqrt(((parts / spreads) ** 2).sum(1))
        return cls(centre, scale, directions, spreads, float(np.quantile(distances, 1 - FAMILIAR, method="higher")))

    def distances(self, features: Float[np.ndarray, "texts features"]) -> Float[np.ndarray, " texts"]:
        """Return how far each text lies from the middle, in spreads."""
        return np.sqrt(((self._parts(features) / self.spreads) ** 2).sum(1))

    def strange(self, features: Float[np.ndarray, "texts features"]) -> Bool[np.ndarray, " texts"]:
        """Return which texts lie beyond the limit."""
        return self.distances(features) > self.limit

    def _parts(self, features: Float[np.ndarray, "texts features"]) -> Float[np.ndarray, "texts parts"]:
        centred = (features - self.centre) / self.scale
        along = centred @ self.directions.T
        rest = np.sqrt(np.maximum((centred**2).sum(1) - (along**2).sum(1), 0))
        return np.concatenate([along, rest[:, None]], 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a file holds of it."""
        return {
            "centre": self.centre,
            "scale": self.scale,
            "directions": self.directions.astype(np.float16),
            "spreads": self.spreads,
            "limit": np.array([self.limit]),
        }

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray]) -> "Familiar | None":
        """Return what `arrays` describes; None if it is empty."""
        if not arrays:
            return None
        wide = {name: array.astype(float) for name, array in arrays.items()}
        return cls(wide["centre"], wide["scale"], wide["directions"], wide["spreads"], float(wide["limit"][0]))
