"""The verbs by what people do with them, and how a verb's flags are read from its dataclass."""

import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import fields, is_dataclass, make_dataclass, replace
from inspect import cleandoc
from shutil import get_terminal_size
from textwrap import fill
from typing import Annotated, Any, NamedTuple, Protocol, Union, get_args, runtime_checkable

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from midcourse.cli.bench import Bench
from midcourse.cli.compare import Compare
from midcourse.cli.console import UsageError
from midcourse.cli.demo import Demo
from midcourse.cli.detect_calibrate import DetectCalibrate
from midcourse.cli.detect_evaluate import DetectEvaluate
from midcourse.cli.detect_fit import DetectFit
from midcourse.cli.detect_mix import DetectMix
from midcourse.cli.detect_score import DetectScore
from midcourse.cli.detect_train import DetectTrain
from midcourse.cli.dpo import Dpo
from midcourse.cli.edits_label import EditsLabel
from midcourse.cli.edits_make import EditsMake
from midcourse.cli.export import Export
from midcourse.cli.figa import Figa
from midcourse.cli.guide import GuideCommand
from midcourse.cli.methods import Methods
from midcourse.cli.ppo import Ppo
from midcourse.cli.prefer import Prefer
from midcourse.cli.reward_bench import RewardBench
from midcourse.cli.rewards import Rewards
from midcourse.cli.sample import Sample
from midcourse.cli.score import ScoreText
from midcourse.cli.serve import Serve, from_environment
from midcourse.cli.train import Train
from midcourse.terminal import say, tell, visible


@runtime_checkable
class Verb(Protocol):
    """A dataclass of flags that does what they ask for."""

    def run(self) -> int:
        """Do it, and return the exit status."""


class Family(NamedTuple):
    """Verbs that share their first word: what they are for, and each by its second word.

    `midcourse music hum` is the verb "hum" of `"music": Family("Make music.", {"sing": Sing, "hum": Hum})`.
    """

    about: str
    verbs: dict[str, type[Verb]]


# Help, documentation and tab completion all come from here.
VERBS: dict[str, dict[str, type[Verb] | Family]] = {
    "start": {"demo": Demo},
    "learn": {
        "sample": Sample,
        "prefer": Prefer,
        "edits": Family("Edit responses as little as possible.", {"make": EditsMake, "label": EditsLabel}),
        "train": Train,
        "dpo": Dpo,
        "ppo": Ppo,
        "figa": Figa,
        "export": Export,
    },
    "guide": {"guide": GuideCommand, "methods": Methods, "rewards": Rewards},
    "judge": {
        "score": ScoreText,
        "reward-bench": RewardBench,
        "compare": Compare,
        "detect": Family(
            "Tell texts that machines wrote from those that people wrote.",
            {
                "score": DetectScore,
                "calibrate": DetectCalibrate,
                "evaluate": DetectEvaluate,
                "fit": DetectFit,
                "train": DetectTrain,
                "mix": DetectMix,
            },
        ),
    },
    "serve": {"serve": Serve},
    "measure": {"bench": Bench},
}
FAMILIES: dict[str, Family] = {
    name: kind for group in VERBS.values() for name, kind in group.items() if isinstance(kind, Family)
}


def called(verbs: Mapping[str, type[Verb] | Family]) -> dict[str, type[Verb]]:
    """Return verbs, and those of families, by what they are called with: one word, or two."""
    flat: dict[str, type[Verb]] = {}
    for name, kind in verbs.items():
        if isinstance(kind, Family):
            flat |= {f"{name} {word}": verb for word, verb in kind.verbs.items()}
        else:
            flat[name] = kind
    return flat


ALL: dict[str, type[Verb]] = {name: kind for group in VERBS.values() for name, kind in called(group).items()}

STYLE = (
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.OmitArgPrefixes,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.DisallowNone,  # "None" is a text like any other
    tyro.conf.PositionalMetavarFromFieldName,
)
UNSET = tyro.conf.arg(help_behavior_hint="")


def _registry() -> ConstructorRegistry:
    """Make tyro's help of flags plain: see `_plain`."""
    registry, asking = ConstructorRegistry(), set[type]()

    @registry.struct_rule
    def plain(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type in asking:  # this rule's own question: tyro's rules answer it
            return None
        asking.add(info.type)
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            asking.remove(info.type)
        if not isinstance(spec, StructConstructorSpec):
            return None
        return replace(spec, fields=tuple(map(_plain, spec.fields)))

    return registry


def _plain(one: StructFieldSpec) -> StructFieldSpec:
    """Let a flag's words flow over the lines of its docstring, and leave out "(default: None)", "False" and the like.

    The words say what happens without the flag.
    """

    def words() -> str | None:
        text = one.helptext() if callable(one.helptext) else one.helptext
        return text and " ".join(text.split())

    nothing = one.default is None or one.default is False or one.default == ()
    repeatable = tyro.conf.UseAppendAction in get_args(one.type)
    kind: Any = Annotated[one.type, UNSET] if nothing and not repeatable else one.type
    return replace(one, type=kind, helptext=words)


REGISTRY = _registry()


def parse(verb: str, arguments: Sequence[str]) -> Verb:
    """Read a verb's flags; print help and exit with 0 if asked for, or say what is wrong and exit with 2."""
    if {"-h", "--help"} & set(arguments):
        say(wrapped(about(verb), get_terminal_size().columns), end="\n\n")  # tyro would not break its lines
    if prefix := getattr(ALL[verb], "ENVIRONMENT", None):
        flags_there = {flag.name: bool(flag.value) for group in groups_of(verb) for flag in group.flags}
        arguments = [*arguments, *from_environment(flags_there, arguments, prefix, os.environ)]
    strange = any(visible(argument) != argument for argument in arguments)
    try:
        with redirect_stderr(io.StringIO()) if strange else nullcontext() as said:  # tyro prints them as they are
            flags = tyro.cli(
                ALL[verb], prog=f"midcourse {verb}", description="", args=arguments, config=STYLE, registry=REGISTRY
            )
    except SystemExit:
        if said:
            tell(said.getvalue())
        raise
    for text in _texts(flags):
        # Names of files may hold any bytes, which Python reads as halves of surrogates; nothing else can be encoded.
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text) and not os.path.exists(text):
            raise UsageError(f"argument {text!r} holds bytes that are not UTF-8; write it as UTF-8")
    return flags


def _texts(value: Any) -> Iterator[str]:
    """Yield every text among a verb's flags, those in sequences and groups of flags too."""
    if isinstance(value, str):
        yield value
    elif is_dataclass(value):
        for one in fields(value):
            yield from _texts(getattr(value, one.name))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def complete(arguments: Sequence[str]) -> None:
    """Write the tab completion of all verbs, as tyro's own flags ask for it."""
    kinds = {name: kind for group in VERBS.values() for name, kind in group.items()}
    tyro.cli(_union(kinds), prog="midcourse", args=arguments, config=STYLE, registry=REGISTRY)


def _union(kinds: Mapping[str, type[Verb] | Family]) -> Any:
    """Return what tyro reads as subcommands; it folds a family's only verb into the family."""

    def flags(kind: type[Verb] | Family) -> Any:
        return make_dataclass("Words", [("verb", _union(kind.verbs))]) if isinstance(kind, Family) else kind

    return Union[tuple(Annotated[flags(kind), tyro.conf.subcommand(name)] for name, kind in kinds.items())]  # noqa: UP007


class Flag(NamedTuple):
    """A flag, or a positional argument: its name, what its value is, and what it is for."""

    name: str
    value: str
    help: str
    positional: bool


class Group(NamedTuple):
    """Flags that belong together."""

    title: str
    about: str
    flags: list[Flag]


def groups_of(verb: str) -> list[Group]:
    """Return a verb's flags but --help, for documentation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tyro offers no other way to read them
        parser = tyro.extras.get_parser(ALL[verb], prog=f"midcourse {verb}", config=STYLE, registry=REGISTRY)
    groups = [
        Group(
            (group.title or "").removesuffix(" options"),
            " ".join((group.description or "").split()),
            [_flag(one) for one in group._group_actions if one.dest != "help"],
        )
        for group in parser._action_groups
    ]
    return [group for group in groups if group.flags]


def _flag(action: Any) -> Flag:
    name = action.option_strings[-1] if action.option_strings else str(action.metavar)
    value = "" if action.nargs == 0 or not action.option_strings else str(action.metavar)
    return Flag(name, value, " ".join((action.help or "").replace("%%", "%").split()), not action.option_strings)


def about(verb: str) -> str:
    """Return what a verb or a family of them does: a line, and perhaps paragraphs and a list."""
    return FAMILIES[verb].about if verb in FAMILIES else cleandoc(ALL[verb].__doc__ or "")


def wrapped(text: str, width: int) -> str:
    """Break a text's paragraphs, and the items of its lists, into lines of at most that width."""
    return "\n\n".join(
        "\n".join(fill(item, width, subsequent_indent="  " * item.startswith("- ")) for item in _items(paragraph))
        for paragraph in text.split("\n\n")
    )


def _items(paragraph: str) -> list[str]:
    return [" ".join(item.split()) for item in re.split(r"\n(?=- )", paragraph)]
