"""midcourse train."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from midcourse.cli.console import UsageError, bad_rows, parse_arguments, parse_columns, table
from midcourse.cli.groups import Machine, Rows, TemplateArgument, TemplateName, TrainedFolder
from midcourse.files import as_json
from midcourse.terminal import say, tell
from midcourse.train.settings import Settings

if TYPE_CHECKING:
    from midcourse.data.comparisons import Comparison, Example
    from midcourse.data.edits import Edit
    from midcourse.data.rollouts import Rollout
    from midcourse.rewards.encoder import EncoderReward
    from midcourse.rewards.scalar import RewardModel


@dataclass(frozen=True, kw_only=True)
class Write(TrainedFolder):
    """What to write, and where."""

    out: Path
    """Folder of the new reward."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is learned, and settings of single objectives."""

    objective: Literal[
        "prefix",
        "sequence",
        "value",
        "cumulative",
        "farma",
        "autoregressive",
        "edited-tokens",
        "token-discriminator",
        "implicit",
    ] = "prefix"
    """What is learned: one of the objectives described above."""
    past_end: Literal["drop", "paper"] | None = None
    """What prefix does past the shorter response's end. drop, the default: it stops there. paper: it compares the
    finished shorter text with longer prefixes, as PARGS's authors do."""
    value: Literal["mean", "soft", "max"] | None = None
    """What value learns of the final reward R. mean, the default: its expectation. soft: (1/w) log E exp(w R), which
    guides exactly at weight w and at no other. max: nearly its maximum, by expectile regression."""
    value_weight: float | None = None
    """The weight w of value soft, which is stored with the reward."""
    expectile: float | None = None
    """The expectile of value max: from 0.5, which is the mean, to below 1; 0.9 by default."""
    beta: float | None = None
    """What autoregressive and implicit multiply log-probabilities by; 0.05 and 0.1 by default."""
    alternations: int | None = None
    """How often the two losses of farma take turns during the run; 7 by default."""
    farma_gradient: Literal["stop", "both"] | None = None
    """Which side of farma's second loss learns. stop, the default: the prefix alone, the best next token's value being
    its target. both: that value too, as in the authors' code."""
    align: Literal["tokens", "words"] | None = None
    """How edited-tokens and token-discriminator find what an edit changed. tokens, the default: among token ids. words:
    among words, whose tokens all count as changed; white space changes nothing."""
    omissions: Literal["mark", "ignore"] | None = None
    """Whether these count a token before which something is missing in the original as deleted; ignore by default."""
    normalise: Literal["sum", "mean", "sqrt"] | None = None
    """What edited-tokens makes of the rewards of n changed tokens: their sum, the default; their mean; or sum /
    sqrt(n)."""
    kept_weight: float | None = None
    """Weight of edited-tokens's mean square of the rewards of kept tokens; 0.1 by default."""
    labels: Literal["soft", "hard"] | None = None
    """What token-discriminator learns of kept tokens. soft, the default: that they may be either, p = 1/2. hard: they
    are left out."""
    double_softmax: bool = False
    """Let token-discriminator's rewards be those of TLCR's released code, 2 sigmoid(2 p - 1) - 1 instead of 2 p - 1."""
    reference: str | None = None
    """The model that --backbone was aligned from, for implicit."""

    def settings(self) -> dict[str, Any]:
        """Return the settings of objectives, None if a flag was not given."""
        given = {name: value for name, value in vars(self).items() if name not in ("objective", "reference")}
        omissions = None if self.omissions is None else self.omissions == "mark"
        return {**given, "omissions": omissions, "double_softmax": self.double_softmax or None}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the reward is made of."""

    backbone: str = "smollm2"
    """Pretrained causal LM: smollm2, a folder, or a Hub id. For implicit, the aligned model. For sequence also an
    encoder, a reward of whole texts: minilm, a folder or a Hub id of a BERT, RoBERTa, DeBERTa, ModernBERT, ..."""
    layers: int | None = None
    """Use only the first N layers (fewer are faster at every token); all by default."""
    head: str | None = None
    """What the reward reads out. scalar: a number for every prefix, by a pass of the reward's own over the candidates.
    vocabulary: one for every next token, by a pass of its own over one token. trunk[:RANK]: from the hidden states that
    the steered model computes anyway, without a pass; --layers says after how many layers (two thirds by default). By
    default the first of these that the objective trains."""
    tune: str | None = None
    """What is trained: head, last:N layers, lora[:RANK[:LAYERS]], or all. By default last:2 for a scalar head, and head
    for others. What lies below is computed once and cached (of an encoder only what lies below its head)."""
    template: TemplateName = "chat"
    """How prompts are rendered, which is stored with the reward. chat: by the chat template. raw: as they are, to be
    continued. mixed: texts raw, message lists by the chat template; such a reward guides both. An encoder reads texts
    as they are and the contents of messages, whatever this says."""
    template_argument: TemplateArgument = ()
    """A value for the model\'s chat template, as enable_thinking=false, which is stored with the reward."""


@dataclass(kw_only=True)
class Train:
    """Learn a reward of prefixes or tokens.

    Objectives, what each learns from (comparisons: prompt, chosen, rejected; rollouts: prompt, response, reward, as
    midcourse sample writes them), and its heads:

    - prefix: comparisons; Bradley-Terry on equal-length prefixes (PARGS). Any head.
    - sequence: comparisons; Bradley-Terry on whole responses (ARGS). Any head.
    - value: rollouts; the final reward that a prefix foretells, counted from the mean label (CD-FUDGE, Q#). Any head.
    - cumulative: rollouts; a label, later prefixes weighing more (RAD). Scalar.
    - farma: comparisons; whole responses, and prefixes as good as their best next token (FaRMA). Vocabulary, trunk.
    - autoregressive: comparisons; token log-probabilities that add up to a reward (GenARM). Vocabulary.
    - edited-tokens: edits (prompt, original, edited); Bradley-Terry on the rewards of changed tokens (fine-grained
      supervision). Any head.
    - token-discriminator: edits; whether a token was added or deleted, reward 2 p - 1 (TLCR). Any head.
    - implicit: the log-ratio of --backbone and --reference (DPO); nothing is trained, comparisons measure it.

    Of comparisons, value and cumulative learn the labels 1 (chosen) and 0 (rejected).
    """

    data: Annotated[Path | None, tyro.conf.Positional] = None
    """Comparisons, rollouts or edits, told apart by their fields: JSONL (also .gz), CSV or Parquet."""
    read: Rows = field(default_factory=Rows)
    write: Write
    objective: Objective = field(default_factory=Objective)
    reward: Parts = field(default_factory=Parts)
    training: Settings = field(default_factory=Settings)
    machine: Machine = field(default_factory=Machine)

    def run(self) -> int:
        from midcourse.lm.load import resolve_device
        from midcourse.train import processes

        # Before any model is loaded: of several processes, each has to know its own GPU.
        with processes.joined(resolve_device(self.machine.device)):
            return self._train()

    def _train(self) -> int:
        from midcourse.data.encoded import prompt_limit
        from midcourse.train import processes
        from midcourse.train.settings import check_settings
        from midcourse.train.training import train

        settings, write = self.training, self.write
        processes.everywhere(lambda: check_settings(settings))
        if self.objective.objective == "implicit":
            return processes.once(self._implicit)
        reward = processes.everywhere(self._reward)
        examples = processes.everywhere(lambda: self._read(prompt_limit(reward, settings.max_tokens)))
        metrics = train(reward, examples, write.out, settings, resume=write.resume, report_to=write.report_to)
        if not processes.first():
            return 0
        self._print(metrics, "Held-out pair accuracy")
        if not write.json:
            padding, stop_at = metrics["padding"], metrics.get("early_stopping")
            say(f"padding: {padding['share']:.1%} of tokens, {padding['without_buckets']:.1%} without length buckets")
            if stop_at:
                say(f"stopped after step {stop_at['stopped']} of {stop_at['planned']}, kept step {stop_at['step']}")
            say(f"reward, card and curves: {write.out}")
        return 0

    def _reward(self) -> "RewardModel | EncoderReward":
        """Make the untrained reward; whatever can be refused is refused before its model is loaded."""
        from midcourse.rewards.named import head_of
        from midcourse.train.objectives import check_data, check_head, make_objective
        from midcourse.train.training import kind_of

        asked, parts = self.objective, self.reward
        if self.data is None:
            raise UsageError(f"objective {asked.objective} learns from a file; name one with comparisons or rollouts")
        if asked.reference is not None:
            raise UsageError(f"objective {asked.objective} has no reference, which is for implicit; leave it out")
        objective = make_objective(asked.objective, **asked.settings())
        make, head = head_of(parts.head or objective.heads[0], parts.backbone)
        check_head(objective, head)
        check_data(objective, kind_of(self._read(None)))
        return make.create(
            parts.backbone,
            template=parts.template,
            template_arguments=parse_arguments(parts.template_argument),
            objective=objective.name,
            objective_settings=objective.settings,
            layers=parts.layers,
            tune=parts.tune or ("last:2" if head in ("scalar", "encoder") else "head"),
            head=head,
            seed=self.training.seed,
            **asdict(self.machine),
        )

    def _read(self, limit: "Callable[[Example], str | None] | None") -> "list[Comparison] | list[Rollout] | list[Edit]":
        """Read the file's rows. With a limit, bad ones are reported."""
        from midcourse.data.comparisons import read_comparisons
        from midcourse.data.edits import are_edits, read_edits
        from midcourse.data.rollouts import are_rollouts, read_rollouts
        from midcourse.train import processes

        assert self.data is not None
        columns = parse_columns(self.read.columns)
        edits, rollouts = are_edits(self.data, columns), are_rollouts(self.data, columns)
        read = read_edits if edits else read_rollouts if rollouts else read_comparisons
        with bad_rows(self.read.skip_bad_rows, write=limit is not None and processes.first()) as rejects:
            return read(self.data, limit=limit, rejects=rejects, renamed=columns)

    def _implicit(self) -> int:
        """Make a reward of two models' names; comparisons, if there are any, only measure it."""
        from midcourse.data.comparisons import Comparison
        from midcourse.data.encoded import prompt_limit
        from midcourse.rewards.implicit import ImplicitReward
        from midcourse.train.implicit import check_new, write_implicit

        asked, parts, out = self.objective, self.reward, self.write.out
        if asked.reference is None:
            raise UsageError("objective implicit needs two models; name the one to compare with by --reference")
        given = {flag: value for flag, value in asked.settings().items() if flag != "beta"}
        given |= {"head": parts.head, "tune": parts.tune, "layers": parts.layers, "lr": self.training.lr}
        for flag, value in given.items():
            if value is not None:
                raise UsageError(f"objective implicit trains nothing and has no {flag.replace('_', '-')}; leave it out")
        check_new(out)
        if self.data is not None and not all(isinstance(one, Comparison) for one in self._read(None)):
            raise UsageError(f"{self.data} holds no comparisons; objective implicit is measured on comparisons")
        reward = ImplicitReward.create(
            parts.backbone,
            asked.reference,
            beta=0.1 if asked.beta is None else asked.beta,
            template=parts.template,
            template_arguments=parse_arguments(parts.template_argument),
            **asdict(self.machine),
        )
        examples = self._read(prompt_limit(reward, self.training.max_tokens)) if self.data else []
        comparisons = [one for one in examples if isinstance(one, Comparison)]
        self._print(write_implicit(reward, comparisons, out, self.training.max_tokens), "Pair accuracy")
        if not self.write.json:
            say(f"reward: {out}")
        return 0

    def _print(self, metrics: dict[str, Any], title: str) -> None:
        from midcourse.train.card import (
            accuracy_table,
            calibration_table,
            cut_text,
            edit_table,
            edits_title,
            label_table,
            labels_title,
            pairs_title,
            temperature_lines,
        )

        if self.write.json:
            print(as_json(metrics, indent=1))
            return
        if rows := edit_table(metrics):
            table(f"Held-out edits ({edits_title(metrics)})", ("what", "share", "interval"), rows)
        if lost := cut_text(metrics):
            tell(f"{lost} --max-tokens is that limit.")
        if left_out := metrics.get("edits_left_out"):
            tell(f"{left_out} edits change no token within --max-tokens and were left out")
        if rows := accuracy_table(metrics):
            table(f"{title} ({pairs_title(metrics)})", ("compared at", "accuracy", "interval"), rows)
        if labels := label_table(metrics):
            columns = ("foretold at", "correlation", "squared error", "interval")
            table(f"Held-out labels ({labels_title(metrics)})", columns, labels)
        if calibrated := calibration_table(metrics):
            title = "Expected calibration error of the probabilities (95% intervals; after: judged on other prompts)"
            table(title, ("compared at", "before", "after", "by chance"), calibrated)
            say("\n".join(temperature_lines(metrics)))
