"""midcourse demo."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(kw_only=True)
class Demo:
    """Learn a small reward, guide SmolLM2 with it, judge the result.

    Trains on the preferences that come with midcourse; needs no network. See its report in --out.
    """

    out: Path = Path("runs/demo")
    """Folder for the report, the reward and the summary; what an earlier demo left there is replaced."""
    gold: str = "vader-once"
    """Function of a text that judges, and draws the labels: vader-once (sentiment, a repeated word counted once),
    vader, profanity (1 - its probability), or any MODULE:FUNCTION that returns a number."""
    seed: int = 0
    """Seed of the training and of the responses."""

    def run(self) -> int:
        from midcourse.demo import run_demo

        summary, _ = run_demo(self.out, seed=self.seed, gold=self.gold)
        return 0 if summary["passed"] else 1
