"""midcourse compare."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from midcourse.cli.console import UsageError, bad_rows, read_text

if TYPE_CHECKING:
    from midcourse.compare.judges import AnyJudge
    from midcourse.compare.study import GuidingReward, Policy, Study, Task
    from midcourse.lm.language_model import LanguageModel


@dataclass
class Compare:
    """Compare methods on the same prompts: every method x setting x prompt x seed, judged, at equal KL and cost.

    The folder of --out gets a row for every response as soon as it is there, and at the end the tables, curves and
    report of all of them. A call with --resume goes on to the row, and may add methods, settings, rewards and judges.

    All methods start from one policy: the LM's top k at --temperature, whatever their papers sampled from.
    """

    prompts: Path
    """Rows with a field "prompt" (text or messages) and, if you like, a "reference" response: JSONL (also .gz), CSV or
    Parquet."""
    out: Path
    """Folder of the comparison."""
    methods: tuple[str, ...] = ("pargs",)
    """Methods, by commas or spaces; midcourse methods lists them. best-of-n:N fixes the number of samples,
    METHOD@REWARD takes one reward alone, policy=PATH is a fine-tuned model: a PEFT adapter's folder, a model's, or a
    Hub id. plain always runs."""
    rewards: tuple[str, ...] = ()
    """What guides: folders that midcourse train wrote, sequence classifiers of one label, causal LMs, or functions of
    the response as MODULE:NAME. Every method runs with every one that it can use."""
    judges: tuple[str, ...] = ()
    """What judges: folders of full-sequence rewards, functions of the response (vader, profanity, MODULE:NAME), and
    the address of an OpenAI-compatible server (http://.../v1), which compares with plain and the references."""
    sweep: tuple[str, ...] = ()
    """Settings to go through, as SETTING=VALUE,VALUE: reward_weight=0,1,2 top_k=5,10 samples=4,16
    reward_threshold=1,2. Without any: reward_weight=0.5,1,2,4 and, of best-of-n, samples=4,16."""
    lm: str = "smollm2"
    """Causal LM: smollm2, a folder, or a Hub id."""
    seeds: int = 1
    """Responses to each prompt."""
    limit_prompts: int | None = None
    """Only the first so many."""
    max_new_tokens: int = 64
    temperature: float = 1.0
    """Of the policy that all methods start from."""
    top_k: int = 10
    """Its candidates per token; 0 for the whole vocabulary."""
    top_p: float = 1.0
    template: Literal["chat", "raw", "mixed"] | None = None
    """How prompts are rendered. By default as the rewards want it, without any raw."""
    tune_on: Path | None = None
    """Other prompts, to choose the settings on: of each method and reward only the one that is best there by the first
    judge is run on --prompts."""
    tune_kl: float | None = None
    """Nats that it may cost at most: of guidance KL; where a method has none, of total KL less plain's."""
    skip_bad_rows: Path | None = None
    """Write bad rows of --prompts and --tune-on to this file and go on, instead of stopping at the first."""
    judge_model: str | None = None
    """Of a judge that is a server: its name of the model."""
    rubric: str | None = None
    """Of that judge: what makes a response the better one, a text or a file with it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable of the server's API key, where it wants one."""
    concurrency: int = 8
    """Pairs that the server is asked about at a time."""
    force_judges: bool = False
    """Take judges that share weights or training rows with a guide."""
    batch_size: int = 16
    """Responses written side by side."""
    save_candidates: bool = False
    """Keep the candidates of each token, with their rewards."""
    resume: bool = False
    """Go on with the rows of --out."""
    device: str = "auto"
    dtype: str = "auto"
    json: bool = False
    """Print the summary as JSON."""

    def run(self) -> int:
        from midcourse.compare.arms import parse_sweep
        from midcourse.compare.run import SettingSearch, compare
        from midcourse.compare.study import read_tasks

        if self.tune_kl is not None and self.tune_on is None:
            raise UsageError("--tune-kl limits what --tune-on chooses; name the prompts to tune on, or leave it out")
        sweep = parse_sweep(self.sweep) if self.sweep else None
        with bad_rows(self.skip_bad_rows) as rejects:
            tasks = read_tasks(self.prompts, self.limit_prompts, rejects=rejects)
            tuning = SettingSearch(read_tasks(self.tune_on, rejects=rejects), self.tune_kl) if self.tune_on else None
        judges = self._judges()
        record = compare(
            self._study(tasks),
            [name for names in self.methods for name in names.split(",") if name],
            self.out,
            sweep=sweep,
            judges=judges,
            force_judges=self.force_judges,
            tuning=tuning,
            resume=self.resume,
            concurrency=self.concurrency,
        )
        for one in record["left_out"]:
            print(f"left out: {one['method']} with {one['reward']}: {one['reason']}", file=sys.stderr)
        for judge in judges:
            for note in record["judges"][judge.name]["notes"]:
                print(f"warning: {note}", file=sys.stderr)
        for arm, rows in record["incomplete"].items():
            print(f"warning: {arm} lacks {rows} rows; ask for it again with --resume to finish it", file=sys.stderr)
        self._report()
        return 0

    def _study(self, tasks: "Sequence[Task]") -> "Study":
        from midcourse.compare.arms import Base
        from midcourse.compare.study import Study
        from midcourse.lm.language_model import LanguageModel
        from midcourse.lm.weights import weights_fingerprint

        lm = LanguageModel.load(self.lm, device=self.device, dtype=self.dtype)
        return Study(
            lm,
            weights_fingerprint(self.lm),
            self._guides(lm),
            self._policies(lm),
            tasks,
            Base(self.temperature, self.top_k or None, self.top_p),
            self.seeds,
            self.max_new_tokens,
            self.template,
            self.batch_size,
            self.save_candidates,
        )

    def _guides(self, lm: "LanguageModel") -> "dict[str, GuidingReward]":
        """The rewards by name, on the LM's own weights where they may be."""
        from midcourse.compare.independence import of_function, of_reward
        from midcourse.compare.judges import is_function
        from midcourse.compare.study import GuidingReward
        from midcourse.rewards.gold import load_gold
        from midcourse.rewards.named import load_reward, shareable
        from midcourse.rewards.text import FunctionReward

        found: dict[str, GuidingReward] = {}
        for source, name in named(self.rewards).items():
            if is_function(source):
                found[name] = GuidingReward(FunctionReward(load_gold(source)), of_function(source))
                continue
            reward = load_reward(
                source,
                template=self.template,
                device=self.device,
                dtype=self.dtype,
                share_with=lm if shareable(source, lm) else None,
            )
            found[name] = GuidingReward(reward, of_reward(source, name))
        return found

    def _policies(self, lm: "LanguageModel") -> "dict[str, Policy]":
        from midcourse.compare.arms import POLICY, policy_name
        from midcourse.compare.independence import of_policy
        from midcourse.compare.study import Policy
        from midcourse.lm.policy import load_policy

        found = {}
        for text in [name for names in self.methods for name in names.split(",")]:
            if text.startswith(f"{POLICY}="):
                name, source = policy_name(text), text.partition("=")[2]
                if name in found:
                    raise UsageError(f"two policies are called {name}; rename one folder")
                policy = load_policy(source, lm, device=self.device, dtype=self.dtype)
                found[name] = Policy(policy, of_policy(source, name))
        return found

    def _judges(self) -> "list[AnyJudge]":
        from midcourse.compare.judges import VersusJudge, gold_judge, is_address, is_function, reward_judge
        from midcourse.data.judge import Judge

        servers = [source for source in self.judges if is_address(source)]
        if servers and not (self.judge_model and self.rubric):
            raise UsageError("a judge that is a server needs --judge-model NAME and --rubric TEXT")
        if not servers and (self.judge_model or self.rubric):
            raise UsageError("--judge-model and --rubric are for a server; give its address in --judges")
        if len(servers) > 1:
            raise UsageError("one server judges at a time; add the other with --resume and its own --judge-model")
        if self.concurrency < 1:
            raise UsageError(f"concurrency {self.concurrency} asks nothing; use 1 or more")
        found: list[AnyJudge] = []
        for source, name in named(self.judges).items():
            if is_address(source):
                rubric = read_text(self.rubric or "", "--rubric")
                judge = Judge(source, self.judge_model or "", rubric, api_key_env=self.api_key_env)
                found.append(VersusJudge(judge.model, judge))
            elif is_function(source):
                found.append(gold_judge(source))
            else:
                found.append(reward_judge(source, name, device=self.device, dtype=self.dtype))
        return found

    def _report(self) -> None:
        from midcourse.compare.report.page import write_report

        write_report(self.out)
        if self.json:
            print((self.out / "summary.json").read_text())
            return
        print((self.out / "table.md").read_text())
        print(f"report: {self.out / 'report.html'}", file=sys.stderr)


def named(sources: Sequence[str]) -> dict[str, str]:
    """A short name for each: the folder's own, or all of it where two end alike; spaces would split it."""
    if twice := [source for source in sources if list(sources).count(source) > 1]:
        raise UsageError(f"{twice[0]} is named twice; leave one out")
    ends = [Path(source).name or source for source in sources]
    return {
        source: (end if ends.count(end) == 1 else source).replace(" ", "_")
        for source, end in zip(sources, ends, strict=True)
    }
