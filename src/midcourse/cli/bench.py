"""midcourse bench."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass
class Bench:
    """Time guided decoding against plain generation of transformers, or training on prefixes against training on whole
    responses, interleaved."""

    what: Annotated[Literal["decode", "train"], tyro.conf.Positional]
    json: Path | None = None
    """Write the rows here."""
    quick: bool = False
    """decode: 32 new tokens, 3 rounds, no reference: under a minute. train: a tiny model, to see that it works."""
    rounds: int = 5
    new_tokens: int = 64
    """Of decode."""

    def run(self) -> int:
        if self.what == "train":
            from midcourse.bench.train import bench_train

            bench_train(self.json, quick=self.quick, rounds=self.rounds)
            return 0
        from midcourse.bench.decode import bench_decode

        bench_decode(self.json, quick=self.quick, rounds=self.rounds, new_tokens=self.new_tokens)
        return 0
