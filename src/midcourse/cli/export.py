"""midcourse export."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from midcourse.cli.console import UsageError
from midcourse.cli.groups import Machine
from midcourse.terminal import say


@dataclass(kw_only=True)
class Export:
    """Write a reward as a sequence classifier of transformers.

    The checkpoint needs no midcourse; its score of a finished text is the reward's.
    """

    reward: str
    """Folder of a reward with a scalar head, or of one trained on an encoder."""
    out: Path
    """New folder for the checkpoint."""
    machine: Machine = field(default_factory=Machine)

    def run(self) -> int:
        from midcourse.rewards.encoder import EncoderReward
        from midcourse.rewards.info import place_of
        from midcourse.rewards.named import kind_of
        from midcourse.rewards.scalar import RewardModel

        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UsageError(f"{self.out} exists already; name a new folder for --out")
        kind = kind_of(self.reward)
        if kind is not RewardModel and kind is not EncoderReward:
            raise UsageError(
                f"{self.reward} has no scalar head, which is what a sequence classifier has; "
                "name a reward that midcourse train wrote with --head scalar, or on an encoder"
            )
        kind.load(place_of(self.reward), **asdict(self.machine)).export(self.out)
        say(f"sequence-classification checkpoint: {self.out}")
        return 0
