"""The command line: each verb is a dataclass of its flags and calls one function."""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from midcourse.errors import MidcourseError

if TYPE_CHECKING:
    from midcourse.decode.steps import Generation
    from midcourse.language_model import LanguageModel
    from midcourse.prompt import Prompt
    from midcourse.reward import Reward
    from midcourse.train.comparisons import BadRow


class UsageError(MidcourseError):
    """Arguments that do not go together."""


@dataclass
class Train:
    """Learn a prefix reward from comparisons."""

    comparisons: Annotated[Path, tyro.conf.Positional]
    """JSONL (also .gz), CSV or Parquet with prompt, chosen and rejected."""
    out: Path
    """Folder of the new reward."""
    backbone: str = "smollm2"
    """Pretrained causal LM: smollm2, a folder, or a Hub id."""
    layers: int | None = None
    """Use only the first N layers (fewer are faster at every token); all by default."""
    head: str = "scalar"
    """scalar: a number for every prefix, by a pass of the reward's own. trunk[:RANK]: from the hidden states that the
    steered model computes anyway, without a pass; --layers says after how many layers (two thirds by default)."""
    tune: str | None = None
    """What is trained: head, last:N layers, lora[:RANK], or all; last:2 by default, of a trunk its head. What lies
    below is computed once and cached."""
    objective: Literal["prefix", "sequence"] = "prefix"
    """Bradley-Terry on equal-length prefixes, or on whole responses only."""
    past_end: Literal["drop", "paper"] = "drop"
    """Past the shorter response's end: stop, or compare its finished text with longer prefixes (PARGS's authors)."""
    template: Literal["chat", "raw"] = "chat"
    """How prompts are rendered; stored with the reward."""
    epochs: int = 2
    lr: float | None = None
    """Peak learning rate; by default one that suits --tune."""
    batch_size: int = 32
    """Pairs per step."""
    max_tokens: int = 512
    """Longest prompt and response together; longer responses are cut, longer prompts are bad rows."""
    held_out: float = 0.1
    """Share of the prompts kept for the accuracies."""
    save_steps: int | None = None
    """Steps between checkpoints; a tenth of the run by default."""
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    resume: bool = False
    """Go on from the last whole checkpoint in --out."""
    skip_bad_rows: Path | None = None
    """Write bad rows to this file and go on, instead of stopping at the first."""
    json: bool = False
    """Print the metrics as JSON."""


@dataclass
class Guide:
    """Write with a language model, steered by one or several rewards."""

    reward: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What guides: a folder that midcourse train wrote, a sequence classifier of one label, or a causal LM (a reward
    of the vocabulary); with =WEIGHT if you like (my-reward=2.5). Give the flag again for more: they add up."""
    reward_function: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A Python function from the response to a number, as MODULE:NAME, with =WEIGHT if you like."""
    method: str = "pargs"
    """How to guide; midcourse methods lists them. best-of-n:N and cd-blockwise:N set the number of samples."""
    lm: str = "smollm2"
    """Causal LM: smollm2, a folder, or a Hub id."""
    prompt: str | None = None
    prompts: Path | None = None
    """JSONL with a field "prompt" (text or messages) per row."""
    out: Path | None = None
    """JSONL to append finished rows to."""
    resume: bool = False
    """Skip the rows that --out already holds."""
    reward_weight: float | None = None
    """Multiplier of all rewards; by default 1 where one has a weight of its own, else the reward's or the method's."""
    top_k: int | None = None
    """Candidates per token; by default the method's."""
    top_p: float | None = None
    """Of the candidates only the likeliest that hold this probability; 1 by default."""
    temperature: float | None = None
    kl_per_token: float | None = None
    """Nats of guidance KL that a token may have: the largest weight within them is used."""
    kl_budget: float | None = None
    """Nats of guidance KL that a response may have."""
    skip_tolerance: float | None = None
    """Ask no reward where none in the range seen so far could change the choice by more than this (total variation)."""
    samples: int | None = None
    """Samples of best-of-n, or of a block in cd-blockwise."""
    block_tokens: int | None = None
    """Tokens of a block in cd-blockwise."""
    reward_threshold: float | None = None
    """The reward that a good response has, for cards."""
    entropy_threshold: float | None = None
    """Where a segment of cards ends, in nats."""
    keep_all: bool = False
    """Write all samples of best-of-n, not the best alone (rows of --out and --json)."""
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    """Strings that end a response."""
    template: Literal["chat", "raw"] | None = None
    """By default the reward's; without one that has its own, raw."""
    always_offer_eos: bool = False
    """Let the end of the text be a candidate even where the LM ranks it below the top k."""
    seed: int = 0
    """Row i uses seed + i."""
    batch_size: int = 16
    """Rows written side by side; a finished row's place goes to the next prompt."""
    compile: bool = False
    """Compile the steps of the LM and the rewards: about a minute at first, then faster. For many prompts."""
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False
    """Print rows as JSON."""
    stream: bool = False
    """Print text as it is written (one prompt)."""


@dataclass
class Methods:
    """List the methods that --method takes, with their settings and sources."""

    json: bool = False


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


@dataclass
class Export:
    """Write a reward as a standard sequence-classification checkpoint of transformers."""

    reward: Path
    """Folder of a reward."""
    out: Path
    device: str = "auto"
    dtype: str = "auto"


@dataclass
class Demo:
    """Train the shipped preference set, steer SmolLM2 with it, and judge the result."""

    out: Path = Path("runs/demo")
    """Folder for the report, the reward and the summary; what an earlier demo left there is replaced."""
    gold: str = "vader"
    """What judges, and draws the labels: vader (sentiment), or any MODULE:FUNCTION from a text to a number."""
    seed: int = 0


@dataclass
class Bench:
    """Time guided decoding against plain generation of transformers, interleaved."""

    what: Annotated[Literal["decode"], tyro.conf.Positional]
    json: Path | None = None
    """Write the rows here."""
    quick: bool = False
    """32 new tokens, 3 rounds, no reference: under a minute."""
    rounds: int = 5
    new_tokens: int = 64


def run(command: object) -> int:
    """Carry out one parsed command; its exit status."""
    verbs: dict[type, Callable[[Any], int]] = {
        Train: _train,
        Guide: _guide,
        Methods: _methods,
        ScoreText: _score,
        Export: _export,
        Demo: _demo,
        Bench: _bench,
    }
    return verbs[type(command)](command)


# Each verb imports what it needs when it runs: torch and transformers take seconds, which --help should not.


def _train(flags: Train) -> int:
    from midcourse.loading import head_of
    from midcourse.train.card import accuracy_table
    from midcourse.train.comparisons import read_comparisons, write_bad_rows
    from midcourse.train.prefixes import prompt_limit
    from midcourse.train.training import Interrupted, Settings, check_settings, train

    settings = Settings(
        flags.epochs,
        flags.lr,
        flags.batch_size,
        flags.max_tokens,
        flags.held_out,
        save_steps=flags.save_steps,
        seed=flags.seed,
    )
    check_settings(settings)
    rejects: list[BadRow] | None = [] if flags.skip_bad_rows else None
    # A look at the file before the model is loaded: a wrong path should not cost seconds.
    read_comparisons(flags.comparisons, rejects=rejects)
    make, head = head_of(flags.head)
    reward = make.create(
        flags.backbone,
        template=flags.template,
        objective=flags.objective,
        past_end=flags.past_end,
        layers=flags.layers,
        tune=flags.tune or ("last:2" if head == "scalar" else "head"),
        head=head,
        seed=flags.seed,
        device=flags.device,
        dtype=flags.dtype,
    )
    rejects = [] if flags.skip_bad_rows else None
    comparisons = read_comparisons(flags.comparisons, limit=prompt_limit(reward, flags.max_tokens), rejects=rejects)
    if rejects and flags.skip_bad_rows:
        write_bad_rows(flags.skip_bad_rows, rejects)
        print(f"skipped {len(rejects)} bad rows, written to {flags.skip_bad_rows}", file=sys.stderr)
    try:
        metrics = train(reward, comparisons, flags.out, settings, resume=flags.resume)
    except Interrupted as stop:
        print(f"midcourse: {stop}", file=sys.stderr)
        return 128 + stop.signal
    if flags.json:
        print(json.dumps(metrics, indent=1))
    else:
        title = f"Held-out pair accuracy ({metrics['pairs']} pairs of {metrics['prompts']} prompts, 95% intervals)"
        _table(title, ("compared at", "accuracy", "interval"), accuracy_table(metrics))
        print(f"reward, card and curves: {flags.out}")
    return 0


def _guide(flags: Guide) -> int:
    from midcourse.decode.files import append_rows, read_prompts, rows_done
    from midcourse.decode.methods import BestOfN, Method, method
    from midcourse.language_model import LanguageModel

    chosen = method(flags.method)
    if (flags.prompt is None) == (flags.prompts is None):
        raise UsageError("give either --prompt TEXT or --prompts FILE.jsonl")
    if flags.stream and (flags.prompt is None or flags.json):
        raise UsageError("--stream prints the text of one --prompt as it is written; leave --prompts and --json away")
    if flags.resume and not flags.out:
        raise UsageError("--resume goes on with the rows of --out; name that file")
    if flags.keep_all and not (isinstance(chosen, BestOfN) and (flags.out or flags.json)):
        raise UsageError("--keep-all writes the samples of --method best-of-n as JSON; add --out FILE or --json")
    named = [parse_reward(text) for text in flags.reward]
    functions = [parse_reward(text) for text in flags.reward_function]
    prompts: Sequence[Prompt] = read_prompts(flags.prompts) if flags.prompts else [flags.prompt or ""]
    done = rows_done(flags.out, prompts, flags.resume) if flags.out else set()
    left = [row for row in range(len(prompts)) if row not in done]
    guides, weight = load_guides(named, functions, flags, tokenwise=isinstance(chosen, Method))
    lm = LanguageModel.load(flags.lm, device=flags.device, dtype=flags.dtype)
    if flags.compile:
        _compile(lm, guides)
    settings: dict[str, Any] = {
        "method": flags.method,
        "reward_weight": weight,
        "max_new_tokens": flags.max_new_tokens,
        "keep_all": flags.keep_all,
        "seed": [flags.seed + row for row in left],
    }
    passed_on = (
        "top_k top_p temperature template stop always_offer_eos batch_size kl_per_token kl_budget skip_tolerance "
        "samples block_tokens reward_threshold entropy_threshold"
    )
    settings |= {name: getattr(flags, name) for name in passed_on.split()}
    if flags.out:
        append_rows(flags.out, lm, prompts, left, guides, settings)
        print(
            f"{len(left)} rows written to {flags.out}" + (f", {len(done)} were there already" if done else ""),
            file=sys.stderr,
        )
        return 0
    _print_rows(lm, prompts, guides, settings, flags)
    return 0


def load_guides(
    named: Sequence[tuple[str, float | None]],
    functions: Sequence[tuple[str, float | None]],
    flags: Guide,
    tokenwise: bool,
) -> "tuple[list[tuple[Reward, float]], float | None]":
    """The rewards with their own weights, and what multiplies them all (None: the method's own weight).

    A lone reward's weight is the common one, so that its rewards are reported as they are.
    """
    from midcourse.loading import load_reward
    from midcourse.reward_model import RewardModel
    from midcourse.text_reward import FunctionReward

    rewards: list[Reward] = [
        load_reward(name, template=flags.template, device=flags.device, dtype=flags.dtype) for name, _ in named
    ]
    rewards += [FunctionReward.load(name) for name, _ in functions]
    own = [weight for _, weight in (*named, *functions)]
    common = flags.reward_weight
    if not tokenwise:
        return [
            (reward, 1.0 if weight is None else weight) for reward, weight in zip(rewards, own, strict=True)
        ], common
    if common is None and any(weight is not None for weight in own):
        common = 1.0
    if len(rewards) == 1:
        lone = rewards[0]
        if common is None and isinstance(lone, RewardModel):
            common = lone.info.reward_weight
        return [(lone, 1.0)], common if own[0] is None or common is None else common * own[0]
    return _weighted(rewards, own), common


def _compile(lm: "LanguageModel", guides: "list[tuple[Reward, float]]") -> None:
    from midcourse.prefix_cache import compile_steps
    from midcourse.reward_model import RewardModel
    from midcourse.vocabulary_reward import VocabularyReward

    compile_steps(lm.model)
    for reward, _ in guides:
        if isinstance(reward, RewardModel):
            compile_steps(reward.backbone)
        elif isinstance(reward, VocabularyReward):
            compile_steps(reward.model)


def _weighted(rewards: "list[Reward]", own: Sequence[float | None]) -> "list[tuple[Reward, float]]":
    return [(reward, 1.0 if weight is None else weight) for reward, weight in zip(rewards, own, strict=True)]


def _print_rows(
    lm: "LanguageModel",
    prompts: "Sequence[Prompt]",
    guides: "list[tuple[Reward, float]]",
    settings: dict[str, Any],
    flags: Guide,
) -> None:
    from midcourse.decode.files import as_row
    from midcourse.decode.loop import stream
    from midcourse.decode.steps import Step
    from midcourse.progress import progress

    finished = {}
    if flags.stream:
        for _, event in stream(lm, prompts, guides, **settings):
            print(event.text, end="", flush=True) if isinstance(event, Step) else print()
        return
    with progress("writing", len(prompts) * flags.max_new_tokens) as advance:
        for row, event in stream(lm, prompts, guides, **settings):
            if isinstance(event, Step):
                advance(1)
            else:
                finished[row] = event
                advance(flags.max_new_tokens - len(event.steps))
    for row in sorted(finished):
        if flags.json:
            print(json.dumps(as_row(row, finished[row]), ensure_ascii=False))
        else:
            _show(finished[row])


def _show(generation: "Generation") -> None:
    """A response for a person: its text, and one line of figures."""
    print(generation.text)
    figures = [f"{len(generation.steps)} tokens, {generation.finish_reason}"]
    if generation.reward is not None:
        figures.append(f"reward {generation.reward:.2f}")
        if generation.guidance_kl is not None:
            figures.append(f"guidance KL {generation.guidance_kl:.1f} nats")
    if generation.total_kl is not None:
        figures.append(f"total KL {generation.total_kl:.1f} nats")
    print("  ".join(f"[{figure}]" for figure in figures), file=sys.stderr)


def _methods(flags: Methods) -> int:
    from midcourse.decode.methods import METHODS, settings_of

    if flags.json:
        print(json.dumps({name: settings_of(found) for name, found in METHODS.items()}, indent=1))
        return 0
    rows = []
    for name, found in METHODS.items():
        settings = settings_of(found)
        source = settings.pop("source")
        told = {key: value for key, value in settings.items() if value not in (None, False) and key != "ranked_by"}
        rows.append((name, "  ".join(f"{key}={value}" for key, value in told.items()), source))
    _table("methods of midcourse guide --method", ("method", "settings", "source"), rows, justify="left")
    return 0


def parse_reward(text: str) -> tuple[str, float | None]:
    """("my-reward", 2.5) from "my-reward=2.5"; None where no weight is given."""
    folder, mark, weight = text.rpartition("=")
    if not mark or Path(text).is_dir():
        return text, None
    try:
        return folder, float(weight)
    except ValueError as error:
        raise UsageError(f"weight {weight!r} in --reward {text} is not a number; write {folder}=2, say") from error


def _score(flags: ScoreText) -> int:
    from rich.console import Console

    from midcourse.evaluate.report import score_line, tokens_of_score, write_score_page
    from midcourse.loading import load_reward
    from midcourse.reward_model import RewardModel

    reward = load_reward(flags.reward, device=flags.device, dtype=flags.dtype)
    if not isinstance(reward, RewardModel):
        raise UsageError(f"{flags.reward} is no reward of prefixes; score takes folders that midcourse train wrote")
    (score,) = reward.score([flags.prompt], [flags.text], finished=not flags.unfinished)
    tokens = tokens_of_score(score, reward.tokenizer)
    if flags.html:
        write_score_page(flags.html, flags.prompt, tokens, title="midcourse score")
    if flags.json:
        rows = [
            {"token_id": i, "text": text, "reward": r}
            for i, text, r in zip(score.token_ids, score.texts, score.rewards, strict=True)
        ]
        print(json.dumps({"prompt": flags.prompt, "text": flags.text, "reward": score.rewards[-1], "tokens": rows}))
    else:
        console = Console()
        console.print(score_line(tokens))
        end = "the prefix" if flags.unfinished else "the finished text"
        console.print(f"reward of {end}: {score.rewards[-1]:.3f}", highlight=False)
    if flags.html:
        print(f"page: {flags.html}", file=sys.stderr)
    return 0


def _export(flags: Export) -> int:
    from midcourse.reward_model import RewardModel

    if flags.out.exists() and (not flags.out.is_dir() or any(flags.out.iterdir())):
        raise UsageError(f"{flags.out} exists already; name a new folder for --out")
    RewardModel.load(flags.reward, device=flags.device, dtype=flags.dtype).export(flags.out)
    print(f"sequence-classification checkpoint: {flags.out}")
    return 0


def _demo(flags: Demo) -> int:
    from midcourse.demo import run_demo

    summary, _ = run_demo(flags.out, seed=flags.seed, gold=flags.gold)
    return 0 if summary["passed"] else 1


def _bench(flags: Bench) -> int:
    from midcourse.bench import bench_decode

    bench_decode(flags.json, quick=flags.quick, rounds=flags.rounds, new_tokens=flags.new_tokens)
    return 0


def _table(
    title: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    justify: Literal["left", "right"] = "right",
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else justify)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


Command = Annotated[
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Guide, tyro.conf.subcommand("guide")]
    | Annotated[Methods, tyro.conf.subcommand("methods")]
    | Annotated[ScoreText, tyro.conf.subcommand("score")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Bench, tyro.conf.subcommand("bench")],
    tyro.conf.configure(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
]


def main() -> None:
    """Entry point: 0 when done, 2 on misuse with one sentence, 130 or 143 when interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    command = tyro.cli(Command, prog="midcourse", description="A reward for every token.")
    try:
        sys.exit(run(command))
    except MidcourseError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}; make room or name a place you can write to")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _fail(message: str) -> None:
    print(f"midcourse: {message}", file=sys.stderr)
    sys.exit(2)
