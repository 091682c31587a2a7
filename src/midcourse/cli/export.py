"""midcourse export."""

from dataclasses import dataclass
from pathlib import Path

from midcourse.cli.console import UsageError


@dataclass
class Export:
    """Write a reward as a standard sequence-classification checkpoint of transformers."""

    reward: Path
    """Folder of a reward."""
    out: Path
    device: str = "auto"
    dtype: str = "auto"

    def run(self) -> int:
        from midcourse.rewards.encoder import EncoderReward
        from midcourse.rewards.info import read_info
        from midcourse.rewards.scalar import RewardModel

        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UsageError(f"{self.out} exists already; name a new folder for --out")
        kind = EncoderReward if read_info(self.reward).head == "encoder" else RewardModel
        kind.load(self.reward, device=self.device, dtype=self.dtype).export(self.out)
        print(f"sequence-classification checkpoint: {self.out}")
        return 0
