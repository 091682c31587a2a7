"""The command line: each verb is a dataclass of its flags whose `run` calls one function.

Verbs import what they need when they run: torch and transformers take seconds, which --help should not.
"""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any, NoReturn

from rich.console import Console

from midcourse.cli.console import UsageError
from midcourse.cli.verbs import ALL, FAMILIES, VERBS, about, complete, parse
from midcourse.errors import Interrupted, MidcourseError
from midcourse.terminal import say, tell, visible

HELP = ("-h", "--help")


def main() -> None:
    """Run a verb and exit: with 0 when done, 2 on misuse with one sentence, 130 or 143 when interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # peft and TRL ask transformers by the setting's old name, which is nothing to whoever reads this log.
    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
    warnings.showwarning = _tell_warning
    logging.setLogRecordFactory(_visible_record)
    try:
        status = _main(*(sys.argv[1:] or ["--help"]))
        sys.stdout.flush()  # a closed pipe is noticed here
        sys.exit(status)
    except MidcourseError as error:
        _fail(str(error))
    except Interrupted as stop:
        if os.environ.get("RANK", "0") == "0":  # of several processes one says it
            tell(f"midcourse: {stop}")
        sys.exit(128 + stop.signal)
    except BrokenPipeError:  # whoever read what is printed has enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}; make room or name a place you can write to")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _tell_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Say a warning of a library in a line."""
    tell(f"warning: {message}")


def _visible_record(*made: Any, **more: Any) -> logging.LogRecord:
    """Return a record of a library's log, whose words may be a model's or a file's."""
    record = logging.LogRecord(*made, **more)
    record.msg, record.args = visible(record.getMessage()), ()
    return record


def _main(verb: str, *arguments: str) -> int:
    if verb in FAMILIES:
        if not arguments or arguments[0] in HELP:
            _print_family(verb)
            return 0
        verb, arguments = f"{verb} {arguments[0]}", arguments[1:]
    if verb in HELP:
        _print_help()
    elif verb == "--version":
        say(f"midcourse {version('midcourse')}")
    elif verb.startswith("--tyro-"):
        complete([verb, *arguments])
    elif verb in ALL:
        return parse(verb, arguments).run()
    else:
        raise UsageError(_unknown(verb))
    return 0


def _print_help() -> None:
    """Print a line for each verb, grouped by what people do."""
    console = Console(highlight=False)
    console.print("usage: [bold]midcourse[/bold] VERB ... (or --help, --version)\n")
    console.print("A reward for every token: learn it, and guide a language model with it.\n")
    width = max(len(verb) for verbs in VERBS.values() for verb in verbs) + 2
    for group, verbs in VERBS.items():
        console.print(f"[bold]{group}[/bold]")
        _print_verbs(console, {verb: verb for verb in verbs}, width)
    console.print("\n[cyan]midcourse VERB --help[/cyan] explains a verb and its flags.")


def _print_family(name: str) -> None:
    """Print a line for each verb of a family."""
    console = Console(highlight=False)
    console.print(f"usage: [bold]midcourse {name}[/bold] VERB ... (or --help)\n")
    console.print(f"{about(name)}\n")
    verbs = {f"{name} {verb}": verb for verb in FAMILIES[name].verbs}
    _print_verbs(console, verbs, max(map(len, verbs.values())) + 2)
    console.print(f"\n[cyan]midcourse {name} VERB --help[/cyan] explains a verb and its flags.")


def _print_verbs(console: Console, verbs: Mapping[str, str], width: int) -> None:
    """Print the first line of what each verb does, behind the word that it has here."""
    for verb, word in verbs.items():
        console.print(f"  [cyan]{word:<{width}}[/cyan]{about(verb).splitlines()[0]}")


def _unknown(verb: str) -> str:
    first, _, second = verb.partition(" ")
    of_family = bool(second) and first in FAMILIES
    known = list(FAMILIES[first].verbs) if of_family else [name for verbs in VERBS.values() for name in verbs]
    close = get_close_matches(second if of_family else verb, known, n=1)
    before = f"{first} " if of_family else ""
    hint = f"did you mean {before}{close[0]}?" if close else f"use one of: {', '.join(known)}"
    return f"verb {verb!r} is unknown; {hint} (midcourse {before}--help explains them)"


def _fail(message: str) -> NoReturn:
    tell(f"midcourse: {message}")
    sys.exit(2)
