"""midcourse detect train."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from midcourse.cli.console import bad_rows, table
from midcourse.cli.groups import Machine, TrainedFolder
from midcourse.files import as_json
from midcourse.terminal import say
from midcourse.train.settings import Settings

if TYPE_CHECKING:
    from midcourse.data.comparisons import Comparison
    from midcourse.train.objectives import Objective


@dataclass(frozen=True, kw_only=True)
class Read:
    """What to learn from."""

    pairs: Path
    """Texts in order, a source a row: machine (or llm), perhaps mixed, and human; or levels, a list with the most
    machine-like first; perhaps a group. JSONL (also .gz), CSV, Parquet, or ReMoDetect's own JSON."""
    replay: Path | None = None
    """Comparisons (prompt, chosen, rejected) on which the reward is to stay what it is, as many texts as sources."""
    as_written: bool = False
    """Read texts with their white space, characters nobody sees, and letters that only look Latin; otherwise these are
    taken off first."""
    skip_bad_rows: Path | None = None
    """Write bad rows of either file to this one and go on, instead of stopping at the first."""


@dataclass(frozen=True, kw_only=True)
class Write(TrainedFolder):
    """What to write, and where."""

    out: Path
    """Folder of the detector, a reward of whole texts."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What the parts of the loss weigh."""

    preset: Literal["paper", "code"] = "paper"
    """ReMoDetect as its paper has it, or as its code does: code divides the pairs' losses by their number, penalises
    large rewards, and sums over replayed texts instead of taking their mean. The flags below overrule it."""
    extreme_weight: float | None = None
    """Weight of the pair of the first and the last level; 1 in both presets."""
    other_weight: float | None = None
    """Weight of every other pair of levels; 0.3 in both presets (0.35 in the script of the authors)."""
    replay_weight: float | None = None
    """Weight of the squared distance of replayed rewards from what they were; 0.01 in both presets."""
    replay_reduction: Literal["mean", "sum"] | None = None
    """How it is taken over a step's replayed texts; mean in preset paper, sum in code."""
    logit_penalty: float | None = None
    """Weight of half the squared rewards of each pair; 0 in preset paper, 0.01 in code."""
    divide_by_terms: Literal["yes", "no"] | None = None
    """Whether the loss of a row is divided by its number of pairs; no in preset paper, yes in code."""

    def objective(self) -> "Objective":
        from midcourse.train.objectives import make_objective

        divide = None if self.divide_by_terms is None else self.divide_by_terms == "yes"
        return make_objective("ordered", **asdict(self) | {"divide_by_terms": divide})


@dataclass(frozen=True, kw_only=True)
class Start:
    """What training begins at."""

    reward: str = "smollm2"
    """A reward to go on with (a folder that midcourse wrote, or a shipped one), or a pretrained model that gets a new
    head: smollm2, minilm, a folder, or a Hub id."""
    head: str | None = None
    """A new head: scalar (the default), trunk[:RANK] on the states that a language model computes anyway, or
    vocabulary; an encoder has its own."""
    layers: int | None = None
    """With a new head, use only the first N layers of the model; a trunk head takes two thirds of them by default."""
    tune: str | None = None
    """What is trained: head, last:N layers, lora[:RANK[:LAYERS]], or all. By default last:2 with a new scalar head,
    head with others, and what was trained before if training goes on; then it may only be more."""
    template: Literal["raw", "mixed"] | None = None
    """With a new head, how the prompts of --replay are rendered. raw, the default: texts as they are. mixed: lists of
    messages by the chat template."""


@dataclass(frozen=True, kw_only=True)
class Training(Settings):
    """How the detector is trained."""

    batch_size: int = 32
    """Sources per step; as many texts are replayed."""


@dataclass(kw_only=True)
class DetectTrain:
    """Learn to tell machine texts from human ones.

    ReMoDetect: the reward of a whole text learns the order machine > mixed > human, or any number of levels between, by
    Bradley-Terry on every two of them, while its rewards of preference texts stay what they were. Sources that share a
    text or a group are held out together. What comes out is a reward like any other.
    """

    read: Read
    write: Write
    start: Start = field(default_factory=Start)
    weights: Weights = field(default_factory=Weights)
    training: Training = field(default_factory=Training)
    machine: Machine = field(default_factory=Machine)

    def run(self) -> int:
        from midcourse.lm.load import resolve_device
        from midcourse.train import processes

        # Before any model is loaded: of several processes, each has to know its own GPU.
        with processes.joined(resolve_device(self.machine.device)):
            return self._train()

    def _train(self) -> int:
        from midcourse.data.encoded import prompt_limit
        from midcourse.data.ladders import read_ladders
        from midcourse.detect.train import train_detector
        from midcourse.train import processes
        from midcourse.train.settings import check_settings
        from midcourse.train.start import begin

        settings, write, first = Settings(**asdict(self.training)), self.write, processes.first()
        start = asdict(self.start) | asdict(self.machine) | {"seed": settings.seed}
        name = start.pop("reward")
        processes.everywhere(lambda: check_settings(settings))
        # Whatever can be refused is refused before a model is loaded.
        objective = processes.everywhere(self.weights.objective)
        with bad_rows(self.read.skip_bad_rows, write=first) as rejects:
            ladders = processes.everywhere(lambda: read_ladders(self.read.pairs, rejects=rejects))
            processes.everywhere(lambda: self._replayed(None, []))
            reward = processes.everywhere(lambda: begin(name, objective, **start))
            limit = prompt_limit(reward, settings.max_tokens)
            replay = processes.everywhere(lambda: self._replayed(limit, rejects))
        metrics = train_detector(
            reward,
            ladders,
            write.out,
            settings,
            replay=replay,
            as_written=self.read.as_written,
            resume=write.resume,
            report_to=write.report_to,
        )
        if first:
            self._print(metrics)
        return 0

    def _replayed(self, limit: Any, rejects: "list[Any] | None") -> "list[Comparison]":
        """Read what is replayed."""
        from midcourse.data.comparisons import read_comparisons

        return [] if self.read.replay is None else read_comparisons(self.read.replay, limit=limit, rejects=rejects)

    def _print(self, metrics: dict[str, Any]) -> None:
        from midcourse.train.card import level_table, levels_title

        if self.write.json:
            print(as_json(metrics, indent=1))
            return
        title = f"Held-out ladders ({levels_title(metrics)})"
        table(title, ("what", "share", "interval"), level_table(metrics))
        if replay := metrics.get("replay"):
            say(f"rewards of {replay['texts']} replayed texts moved by {replay['drift']:.3g} (root mean square)")
        say(f"detector, card and curves: {self.write.out}")
