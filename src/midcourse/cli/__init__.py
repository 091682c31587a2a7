"""The command line: each verb is a dataclass of its flags whose `run` calls one function.

Verbs import what they need when they run: torch and transformers take seconds, which --help should not.
"""

import os
import signal
import sys
import warnings
from typing import Annotated

import tyro

from midcourse.cli.bench import Bench
from midcourse.cli.compare import Compare
from midcourse.cli.demo import Demo
from midcourse.cli.dpo import Dpo
from midcourse.cli.export import Export
from midcourse.cli.guide import GuideCommand
from midcourse.cli.methods import Methods
from midcourse.cli.prefer import Prefer
from midcourse.cli.reward_bench import RewardBench
from midcourse.cli.rewards import Rewards
from midcourse.cli.sample import Sample
from midcourse.cli.score import ScoreText
from midcourse.cli.train import Train
from midcourse.errors import MidcourseError

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Dpo, tyro.conf.subcommand("dpo")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Prefer, tyro.conf.subcommand("prefer")]
    | Annotated[GuideCommand, tyro.conf.subcommand("guide")]
    | Annotated[Methods, tyro.conf.subcommand("methods")]
    | Annotated[Rewards, tyro.conf.subcommand("rewards")]
    | Annotated[ScoreText, tyro.conf.subcommand("score")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[RewardBench, tyro.conf.subcommand("reward-bench")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)
STYLE = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def main() -> None:
    """Entry point: 0 when done, 2 on misuse with one sentence, 130 or 143 when interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # peft and TRL ask transformers by the setting's old name, which is nothing to whoever reads this log.
    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
    command = tyro.cli(Command, prog="midcourse", description="A reward for every token.", config=STYLE)
    try:
        sys.exit(command.run())
    except MidcourseError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}; make room or name a place you can write to")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _fail(message: str) -> None:
    print(f"midcourse: {message}", file=sys.stderr)
    sys.exit(2)
