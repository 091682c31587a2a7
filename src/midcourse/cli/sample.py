"""midcourse sample."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from midcourse.cli.console import bad_rows
from midcourse.cli.prefer import load_label


@dataclass
class Sample:
    """Write several responses to every prompt with the plain language model, and give each its reward.

    The defaults are the policy that midcourse guide steers, the model's top 10 at temperature 1: an objective that
    learns a value has to see what that policy writes.
    """

    prompts: Path
    """Rows with a field "prompt" (text or messages): JSONL (also .gz), CSV or Parquet."""
    out: Path
    """JSONL to append finished rows to. What was asked is kept beside it, in OUT.asked.json."""
    lm: str = "smollm2"
    """Causal LM: smollm2, a folder, or a Hub id."""
    n: int = 8
    """Responses to each prompt."""
    label_with: str | None = None
    """The reward of each response: a folder that midcourse train wrote, a sequence classifier of one label, or a
    causal LM. A response that was cut at --max-new-tokens has that of a prefix."""
    label_with_function: str | None = None
    """Or a Python function from the response to a number, as MODULE:NAME; or vader (sentiment) or profanity
    (1 - its probability)."""
    resume: bool = False
    """Keep the rows of --out, which have to be asked for as they were, label those that lack a reward, and write the
    missing ones."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""
    max_new_tokens: int = 64
    top_k: int = 10
    """Candidates per token; 0 for the whole vocabulary."""
    top_p: float = 1.0
    """Of the candidates only the likeliest that hold this probability."""
    temperature: float = 1.0
    template: Literal["chat", "raw", "mixed"] | None = None
    """By default that of --label-with; without one that has its own, raw."""
    seed: int = 0
    """Sample s of prompt r uses seed + n r + s."""
    batch_size: int = 16
    """Rows written side by side; a finished row's place goes to the next."""
    device: str = "auto"
    dtype: str = "auto"

    def run(self) -> int:
        from midcourse.data.prompts import check_out, read_prompts
        from midcourse.data.sample import sample
        from midcourse.lm.language_model import LanguageModel

        with bad_rows(self.skip_bad_rows) as rejects:
            prompts = read_prompts(self.prompts, rejects=rejects)
        check_out(self.out, self.resume)
        label = load_label(self.label_with, self.label_with_function, self.template, self.device, self.dtype)
        rollouts = sample(
            LanguageModel.load(self.lm, device=self.device, dtype=self.dtype),
            prompts,
            self.out,
            n=self.n,
            label=label,
            max_new_tokens=self.max_new_tokens,
            top_k=self.top_k or None,
            top_p=self.top_p,
            temperature=self.temperature,
            template=self.template,
            seed=self.seed,
            batch_size=self.batch_size,
            resume=self.resume,
        )
        finished = sum(rollout.finished for rollout in rollouts)
        rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
        mean = f", mean reward {sum(rewards) / len(rewards):.3f}" if rewards else ""
        print(
            f"{len(rollouts)} responses to {len(prompts)} prompts in {self.out}: {finished} finished{mean}",
            file=sys.stderr,
        )
        return 0
