"""midcourse bench."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from midcourse.cli.console import UsageError

NEW_TOKENS = 64
ROUNDS = 5


@dataclass(kw_only=True)
class Bench:
    """Measure speed, or memory by rows.

    decode: guided decoding against plain generation of transformers. train: training on all prefixes against training
    on whole responses. detect: detection against the bare passes of the language model. All cases take turns, so that a
    machine whose speed drifts slows them alike. scale: the memory of six verbs at 1,000 to 100,000 rows, with tiny
    models.
    """

    what: Annotated[Literal["decode", "train", "detect", "scale"], tyro.conf.Positional]
    """decode, train and detect measure time, scale measures memory."""
    json: Path | None = None
    """Write the measured rows to this file as JSON."""
    quick: bool = False
    """Only see that it works: decode with 16 new tokens, 2 rounds and no reference, train with a tiny model,
    detect with few texts, scale with few rows."""
    rounds: int = ROUNDS
    """How often each case is timed; the median counts."""
    new_tokens: int = NEW_TOKENS
    """Tokens that each case writes when decoding is timed."""

    def run(self) -> int:
        if self.what != "decode" and self.new_tokens != NEW_TOKENS:
            raise UsageError(f"--new-tokens {self.new_tokens} is for bench decode; leave it out")
        if self.what == "scale":
            from midcourse.bench.scale import bench_scale

            if self.rounds != ROUNDS:
                raise UsageError(f"--rounds {self.rounds} is for times; bench scale runs once, leave it out")
            bench_scale(self.json, quick=self.quick)
            return 0
        if self.rounds < 1:
            raise UsageError(f"--rounds {self.rounds} times nothing; use 1 or more")
        if self.what == "detect":
            from midcourse.bench.detect import bench_detect

            bench_detect(self.json, quick=self.quick, rounds=self.rounds)
            return 0
        if self.what == "train":
            from midcourse.bench.train import bench_train

            bench_train(self.json, quick=self.quick, rounds=self.rounds)
            return 0
        from midcourse.bench.decode import bench_decode

        bench_decode(self.json, quick=self.quick, rounds=self.rounds, new_tokens=self.new_tokens)
        return 0
