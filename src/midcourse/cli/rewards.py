"""midcourse score and midcourse export."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from midcourse.cli.console import UsageError


@dataclass
class ScoreText:
    """Show the reward of every prefix of a text."""

    reward: str
    """Folder of a reward."""
    prompt: str
    text: str
    """The response, without the prompt."""
    unfinished: bool = False
    """Do not end the text: the last reward is that of a prefix."""
    html: Path | None = None
    """Write a page with every token coloured."""
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False

    def run(self) -> int:
        from rich.console import Console

        from midcourse.evaluate.report import score_line, tokens_of_score, write_score_page
        from midcourse.implicit_reward import ImplicitReward
        from midcourse.loading import load_reward
        from midcourse.reward_model import RewardModel

        reward = load_reward(self.reward, device=self.device, dtype=self.dtype)
        if not isinstance(reward, RewardModel | ImplicitReward):
            raise UsageError(f"{self.reward} is no reward of prefixes; score takes folders that midcourse train wrote")
        (score,) = reward.score([self.prompt], [self.text], finished=not self.unfinished)
        tokens = tokens_of_score(score, reward.tokenizer)
        if self.html:
            write_score_page(self.html, self.prompt, tokens, title="midcourse score")
        if self.json:
            rows = [
                {"token_id": i, "text": text, "reward": r}
                for i, text, r in zip(score.token_ids, score.texts, score.rewards, strict=True)
            ]
            print(json.dumps({"prompt": self.prompt, "text": self.text, "reward": score.rewards[-1], "tokens": rows}))
        else:
            console = Console()
            console.print(score_line(tokens))
            end = "the prefix" if self.unfinished else "the finished text"
            console.print(f"reward of {end}: {score.rewards[-1]:.3f}", highlight=False)
        if self.html:
            print(f"page: {self.html}", file=sys.stderr)
        return 0


@dataclass
class Export:
    """Write a reward as a standard sequence-classification checkpoint of transformers."""

    reward: Path
    """Folder of a reward."""
    out: Path
    device: str = "auto"
    dtype: str = "auto"

    def run(self) -> int:
        from midcourse.reward_model import RewardModel

        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UsageError(f"{self.out} exists already; name a new folder for --out")
        RewardModel.load(self.reward, device=self.device, dtype=self.dtype).export(self.out)
        print(f"sequence-classification checkpoint: {self.out}")
        return 0
