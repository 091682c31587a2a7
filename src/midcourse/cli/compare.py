"""midcourse compare."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from midcourse.cli import groups
from midcourse.cli.console import UsageError, bad_rows, parse_columns
from midcourse.cli.groups import JOINED, ChatModel, Server, TemplateName
from midcourse.terminal import say, tell

if TYPE_CHECKING:
    from midcourse.compare.judges import AnyJudge
    from midcourse.compare.study import GuidingReward, Policy, Study, Task
    from midcourse.lm.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Read:
    """What to write on from."""

    prompts: Path
    """Rows with a field "prompt" (text or messages) and, if you like, a "reference" response: JSONL (also .gz), CSV or
    Parquet."""
    skip_bad_rows: Path | None = None
    """Write bad rows of --prompts and --tune-on to this file and go on, instead of stopping at the first."""
    columns: tuple[str, ...] = ()
    """Fields that the file has by other names, as prompt=instruction chosen=better."""
    limit_prompts: int | None = None
    """Only the first so many prompts; all by default."""
    template: TemplateName | None = None
    """How prompts are rendered. chat: as the user's message. raw: as they are, to be continued. mixed: texts raw, lists
    of messages by the chat template. By default as the rewards want it; if none of them wants anything, raw."""


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write, and where."""

    out: Path
    """Folder of the comparison."""
    resume: bool = False
    """Go on with the rows of --out, perhaps with more methods, settings, rewards and judges."""
    save_candidates: bool = False
    """Keep the candidates of each token, with their rewards."""
    json: bool = False
    """Print the summary as JSON."""


@dataclass(frozen=True, kw_only=True)
class Arms:
    """What to compare: every method with every reward that it can use, at every setting."""

    methods: tuple[str, ...] = ("pargs",)
    """Methods, by commas or spaces; midcourse methods lists them. best-of-n:N fixes the number of samples,
    METHOD@REWARD takes one reward alone, policy=PATH is a fine-tuned model: a PEFT adapter's folder, a model's, or a
    Hub id. plain always runs."""
    rewards: tuple[str, ...] = ()
    """What guides: shipped rewards, folders that midcourse train wrote, functions of the response (vader, profanity,
    MODULE:FUNCTION), sequence classifiers, causal LMs."""
    label: str | None = None
    """The label to reward, by its log-odds, of sequence classifiers that have several, among rewards or judges."""
    sweep: tuple[str, ...] = ()
    """Settings to go through, as SETTING=VALUE,VALUE: reward_weight=0,1,2 top_k=5,10 samples=4,16
    reward_threshold=1,2. Without any: reward_weight=0.5,1,2,4 and, of best-of-n, samples=4,16."""


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Choosing the settings on other prompts than those that are compared on."""

    tune_on: Path | None = None
    """Other prompts, to choose the settings on: of each method and reward only the one that is best there by the first
    judge is run on --prompts. By default every setting is."""
    tune_kl: float | None = None
    """Nats of KL that the chosen setting may cost at most: of guidance KL; if a method has none, of total KL less
    plain's. No limit by default."""


@dataclass(frozen=True, kw_only=True)
class Judges:
    """What judges the responses. The flags of a server are for a judge that is one."""

    judges: tuple[str, ...] = ()
    """Rewards of whole texts, functions of the response (vader, profanity, MODULE:FUNCTION), and the address of an
    OpenAI-compatible server (http://.../v1), which compares with plain and the references."""
    force_judges: bool = False
    """Take judges that share weights or training rows with a guide."""
    server: Annotated[Server, JOINED] = field(default_factory=Server)


@dataclass(frozen=True, kw_only=True)
class Sampling(groups.Sampling):
    """The policy that all methods start from, whatever their papers sampled from."""

    seeds: int = 1
    """Responses of each arm to each prompt."""


@dataclass(kw_only=True)
class Compare:
    """Compare methods on the same prompts, at equal KL and cost.

    Every method x setting x prompt x seed, judged. The folder of --out gets a row for every response as soon as it is
    there, and at the end the tables, curves and report of all of them. A call with --resume goes on to the row, and
    may add methods, settings, rewards and judges.
    """

    read: Read
    write: Write
    arms: Arms = field(default_factory=Arms)
    judges: Judges = field(default_factory=Judges)
    tuning: Tune = field(default_factory=Tune)
    sampling: Sampling = field(default_factory=Sampling)
    model: ChatModel = field(default_factory=ChatModel)

    def run(self) -> int:
        from midcourse.compare.arms import parse_sweep
        from midcourse.compare.judges import is_address
        from midcourse.compare.run import SettingSearch, compare
        from midcourse.compare.study import read_tasks
        from midcourse.data.prompts import unrenderable
        from midcourse.decode.request import agreed_template
        from midcourse.rewards.named import check_label

        columns = parse_columns(self.read.columns)
        tune = self.tuning
        if tune.tune_kl is not None and tune.tune_on is None:
            raise UsageError("--tune-kl limits what --tune-on chooses; name the prompts to tune on, or leave it out")
        sweep = parse_sweep(self.arms.sweep) if self.arms.sweep else None
        files = [self.read.prompts, *([tune.tune_on] if tune.tune_on else [])]
        # What cannot be read at all is refused before models are loaded.
        for path in files:
            read_tasks(path, self.read.limit_prompts, rejects=[], renamed=columns)
        judged = [source for source in self.judges.judges if not is_address(source)]
        check_label(self.arms.label, [*named(self.arms.rewards), *named(judged)])
        judges = self._judges()
        lm = self.model.load()
        guides = self._guides(lm)
        template = agreed_template([(guide.reward, 1.0) for guide in guides.values()], self.read.template)
        self.model.check_used(template)
        with bad_rows(self.read.skip_bad_rows) as rejects:
            read = partial(read_tasks, problem=unrenderable(lm, template), rejects=rejects, renamed=columns)
            tasks = read(self.read.prompts, self.read.limit_prompts)
            tuned = read(tune.tune_on) if tune.tune_on else None
        tuning = SettingSearch(tuned, tune.tune_kl) if tuned else None
        record = compare(
            self._study(lm, guides, tasks),
            self._methods(),
            self.write.out,
            sweep=sweep,
            judges=judges,
            force_judges=self.judges.force_judges,
            tuning=tuning,
            resume=self.write.resume,
            concurrency=self.judges.server.concurrency,
        )
        for one in record["left_out"]:
            tell(f"left out: {one['method']} with {one['reward']}: {one['reason']}")
        for judge in judges:
            for note in record["judges"][judge.name]["notes"]:
                tell(f"warning: {note}")
        for arm, rows in record["incomplete"].items():
            tell(f"warning: {arm} lacks {rows} rows; ask for it again with --resume to finish it")
        self._report()
        return 0

    def _methods(self) -> list[str]:
        return [name for names in self.arms.methods for name in names.split(",") if name]

    def _study(self, lm: "LanguageModel", guides: "dict[str, GuidingReward]", tasks: "Sequence[Task]") -> "Study":
        from midcourse.compare.arms import Base
        from midcourse.compare.study import Study
        from midcourse.lm.weights import weights_fingerprint

        sampling = self.sampling
        return Study(
            lm,
            weights_fingerprint(self.model.lm),
            guides,
            self._policies(lm),
            tasks,
            Base(sampling.temperature, sampling.top_k or None, sampling.top_p),
            sampling.seeds,
            sampling.max_new_tokens,
            self.read.template,
            sampling.batch_size,
            self.write.save_candidates,
        )

    def _guides(self, lm: "LanguageModel") -> "dict[str, GuidingReward]":
        """Load the rewards, by name, on the LM's own weights if they may be."""
        from midcourse.compare.independence import of_reward
        from midcourse.compare.study import GuidingReward
        from midcourse.rewards.named import load_reward, own_settings, shareable

        guides: dict[str, GuidingReward] = {}
        for source, name in named(self.arms.rewards).items():
            reward = load_reward(
                source,
                template=self.read.template,
                **own_settings(source, template_arguments=self.model.arguments, label=self.arms.label),
                share_with=lm if shareable(source, lm) else None,
                **asdict(self.model.machine),
            )
            guides[name] = GuidingReward(reward, of_reward(source, name))
        return guides

    def _policies(self, lm: "LanguageModel") -> "dict[str, Policy]":
        from midcourse.compare.arms import POLICY, policy_name
        from midcourse.compare.independence import of_policy
        from midcourse.compare.study import Policy
        from midcourse.lm.policy import load_policy

        policies = {}
        for text in self._methods():
            if text.startswith(f"{POLICY}="):
                name, source = policy_name(text), text.partition("=")[2]
                if name in policies:
                    raise UsageError(f"two policies are called {name}; rename one folder")
                policy = load_policy(source, lm, **asdict(self.model.machine))
                policies[name] = Policy(policy, of_policy(source, name))
        return policies

    def _judges(self) -> "list[AnyJudge]":
        from midcourse.compare.judges import VersusJudge, is_address, named_judge

        asked, server = self.judges.judges, self.judges.server
        servers = [source for source in asked if is_address(source)]
        if servers and not (server.judge_model and server.rubric):
            raise UsageError("a judge that is a server needs --judge-model NAME and --rubric TEXT")
        if not servers and (server.judge_model or server.rubric):
            raise UsageError("--judge-model and --rubric are for a server; give its address in --judges")
        if len(servers) > 1:
            raise UsageError("one server judges at a time; add the other with --resume and its own --judge-model")
        if server.concurrency < 1:
            raise UsageError(f"concurrency {server.concurrency} asks nothing; use 1 or more")
        judges: list[AnyJudge] = []
        for source, name in named(asked).items():
            if is_address(source):
                judge = server.at(source)
                judges.append(VersusJudge(judge.model, judge))
            else:
                judges.append(named_judge(source, name, label=self.arms.label, **asdict(self.model.machine)))
        return judges

    def _report(self) -> None:
        from midcourse.compare.report.page import write_report

        out = self.write.out
        write_report(out)
        if self.write.json:
            print((out / "summary.json").read_text())
            return
        say((out / "table.md").read_text())
        tell(f"report: {out / 'report.html'}")


def named(sources: Sequence[str]) -> dict[str, str]:
    """Return a short name for each: the folder's own, or all of it if two end alike; spaces would split it."""
    if twice := [source for source in sources if list(sources).count(source) > 1]:
        raise UsageError(f"{twice[0]} is named twice; leave one out")
    ends = [Path(source).name or source for source in sources]
    return {
        source: (end if ends.count(end) == 1 else source).replace(" ", "_")
        for source, end in zip(sources, ends, strict=True)
    }
