"""midcourse demo."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Demo:
    """Train the shipped preference set, steer SmolLM2 with it, and judge the result."""

    out: Path = Path("runs/demo")
    """Folder for the report, the reward and the summary; what an earlier demo left there is replaced."""
    gold: str = "vader-once"
    """What judges, and draws the labels: vader-once (sentiment, in which a repeated word counts once), vader, profanity
    (1 - its probability), or any MODULE:FUNCTION from a text to a number."""
    seed: int = 0

    def run(self) -> int:
        from midcourse.demo import run_demo

        summary, _ = run_demo(self.out, seed=self.seed, gold=self.gold)
        return 0 if summary["passed"] else 1
