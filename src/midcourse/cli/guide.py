"""midcourse guide."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from midcourse.cli.console import UsageError
from midcourse.files import as_json

if TYPE_CHECKING:
    from midcourse.decode.steps import Generation
    from midcourse.lm.language_model import LanguageModel
    from midcourse.lm.prompt import Prompt
    from midcourse.rewards.contract import Reward


@dataclass
class Guide:
    """Write with a language model, steered by one or several rewards."""

    reward: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What guides: a folder that midcourse train wrote, a sequence classifier of one label, or a causal LM (a reward
    of the vocabulary); with =WEIGHT if you like (my-reward=2.5). Give the flag again for more: they add up."""
    reward_function: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A Python function from the response to a number, as MODULE:NAME, with =WEIGHT if you like."""
    method: str | None = None
    """How to guide; midcourse methods lists them. best-of-n:N and cd-blockwise:N set the number of samples. By default
    pargs, or for a lone soft value soft-value, which refuses any other weight than its own."""
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
    template: Literal["chat", "raw", "mixed"] | None = None
    """chat: a prompt is the user's message. raw: it is continued. mixed: texts are continued, message lists are chats.
    By default the reward's; without one that has its own, raw."""
    always_offer_eos: bool = False
    """Let the end of the text be a candidate even where the LM ranks it below the top k."""
    seed: int = 0
    """Row i uses seed + i."""
    batch_size: int = 16
    """Rows written side by side; a finished row's place goes to the next prompt."""
    share_weights: bool = False
    """Build the rewards on the LM's own weights: one copy in memory for the LM and all of them. It saves memory, not
    time: a scalar head still costs a pass over the candidates. Trunk rewards share anyway."""
    allow_other_weights: bool = False
    """Let a trunk reward guide an LM of the same shape and tokens whose weights are not those of its training."""
    compile: bool = False
    """Compile the steps of the LM and the rewards: about a minute at first, then faster. For many prompts."""
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False
    """Print rows as JSON."""
    stream: bool = False
    """Print text as it is written (one prompt)."""

    def run(self) -> int:
        from midcourse.data.prompts import append_rows, guided_row, read_prompts, rows_done
        from midcourse.decode.methods import BestOfN, Method, method
        from midcourse.lm.language_model import LanguageModel
        from midcourse.rewards.named import kind_of
        from midcourse.rewards.trunk import TrunkReward

        named = [parse_reward(text) for text in self.reward]
        functions = [parse_reward(text) for text in self.reward_function]
        name = self.method or default_method([name for name, _ in named], functions)
        chosen = method(name)
        if (self.prompt is None) == (self.prompts is None):
            raise UsageError("give either --prompt TEXT or --prompts FILE.jsonl")
        if self.stream and (self.prompt is None or self.json):
            raise UsageError(
                "--stream prints the text of one --prompt as it is written; leave --prompts and --json away"
            )
        if self.resume and not self.out:
            raise UsageError("--resume goes on with the rows of --out; name that file")
        if self.keep_all and not (isinstance(chosen, BestOfN) and (self.out or self.json)):
            raise UsageError("--keep-all writes the samples of --method best-of-n as JSON; add --out FILE or --json")
        prompts: Sequence[Prompt] = read_prompts(self.prompts) if self.prompts else [self.prompt or ""]
        done = rows_done(self.out, prompts, self.resume) if self.out else set()
        left = [row for row in range(len(prompts)) if row not in done]
        kinds = [kind_of(name) for name, _ in named]  # unknown names are refused before the LM is loaded
        if self.share_weights and not kinds:
            raise UsageError("--share-weights is for rewards that midcourse train wrote; name one with --reward")
        if self.allow_other_weights and TrunkReward not in kinds:
            raise UsageError("--allow-other-weights is for trunk rewards; name one with --reward, or leave it out")
        lm = LanguageModel.load(self.lm, device=self.device, dtype=self.dtype)
        guides, weight = load_guides(lm, named, functions, self, tokenwise=isinstance(chosen, Method))
        if self.compile:
            _compile(lm, guides)
        settings: dict[str, Any] = {
            "method": name,
            "reward_weight": weight,
            "max_new_tokens": self.max_new_tokens,
            "keep_all": self.keep_all,
            "seed": [self.seed + row for row in left],
        }
        passed_on = (
            "top_k top_p temperature template stop always_offer_eos batch_size kl_per_token kl_budget skip_tolerance "
            "samples block_tokens reward_threshold entropy_threshold"
        )
        settings |= {name: getattr(self, name) for name in passed_on.split()}
        if self.out:
            append_rows(self.out, lm, prompts, left, guides, settings, guided_row)
            print(
                f"{len(left)} rows written to {self.out}" + (f", {len(done)} were there already" if done else ""),
                file=sys.stderr,
            )
            return 0
        _print_rows(lm, prompts, guides, settings, self)
        return 0


def default_method(rewards: Sequence[str], functions: Sequence[Any]) -> str:
    """soft-value for a lone soft value, which guides exactly at its own weight; pargs for all else."""
    from midcourse.rewards.info import read_info
    from midcourse.rewards.named import kind_of, place_of
    from midcourse.rewards.scalar import RewardModel

    if len(rewards) == 1 and not functions and issubclass(kind_of(rewards[0]), RewardModel):
        return (
            "soft-value" if read_info(Path(place_of(rewards[0]))).objective_settings.get("value") == "soft" else "pargs"
        )
    return "pargs"


def load_guides(
    lm: "LanguageModel",
    named: Sequence[tuple[str, float | None]],
    functions: Sequence[tuple[str, float | None]],
    flags: Guide,
    tokenwise: bool,
) -> "tuple[list[tuple[Reward, float]], float | None]":
    """The rewards with their own weights, and what multiplies them all (None: a lone reward's weight or the method's).

    A lone reward's weight is the common one, so that its rewards are reported as they are.
    """
    from midcourse.rewards.text import FunctionReward

    rewards = [_load_reward(lm, name, flags) for name, _ in named]
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
        return [(rewards[0], 1.0)], common if own[0] is None or common is None else common * own[0]
    return _weighted(rewards, own), common


def _load_reward(lm: "LanguageModel", name: str, flags: Guide) -> "Reward":
    """The reward of that name; on the LM's weights where asked for, and a trunk reward wherever they are its own."""
    from midcourse.lm.weights import loaded_fingerprint
    from midcourse.rewards.info import read_info
    from midcourse.rewards.named import kind_of, load_reward, place_of
    from midcourse.rewards.trunk import TrunkReward

    share, other = flags.share_weights, False
    if kind_of(name) is TrunkReward:
        trained = read_info(Path(place_of(name)))
        same = loaded_fingerprint(lm.model) == trained.backbone_fingerprint
        other = flags.allow_other_weights and not same
        share = share or same or other
    reward = load_reward(
        name,
        template=flags.template,
        device=flags.device,
        dtype=flags.dtype,
        share_with=lm if share else None,
        allow_other_weights=other,
    )
    if other:
        print(
            f"warning: {name} was trained on the states of {trained.backbone}, and {lm.name} has other weights; "
            "its rewards may mean less here",
            file=sys.stderr,
        )
    return reward


def _compile(lm: "LanguageModel", guides: "list[tuple[Reward, float]]") -> None:
    from midcourse.lm.prefix_cache import compile_steps
    from midcourse.rewards.scalar import RewardModel
    from midcourse.rewards.vocabulary import VocabularyReward

    compile_steps(lm.model)
    for reward, _ in guides:
        if isinstance(reward, RewardModel):
            compile_steps(reward.decoder)
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
    from midcourse.data.prompts import guided_row
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
            print(as_json(guided_row(row, finished[row]), ensure_ascii=False))
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


def parse_reward(text: str) -> tuple[str, float | None]:
    """("my-reward", 2.5) from "my-reward=2.5"; None where no weight is given."""
    folder, mark, weight = text.rpartition("=")
    if not mark or Path(text).is_dir():
        return text, None
    try:
        return folder, float(weight)
    except ValueError as error:
        raise UsageError(f"weight {weight!r} in --reward {text} is not a number; write {folder}=2, say") from error
