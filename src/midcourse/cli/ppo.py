"""midcourse ppo."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midcourse.cli.console import UsageError, bad_rows, parse_columns, table
from midcourse.cli.groups import ChatModel, Rows, TemplateName
from midcourse.files import as_json
from midcourse.ppo.settings import PPOSettings, check_settings
from midcourse.terminal import say

if TYPE_CHECKING:
    from midcourse.rewards.contract import Reward


@dataclass(frozen=True, kw_only=True)
class Write:
    """What to write, and where."""

    out: Path
    """Folder of the policy: a PEFT adapter, or a whole model with --tune all."""
    resume: bool = False
    """Go on from the last whole checkpoint in --out."""
    json: bool = False
    """Print the metrics of all steps as JSON."""


@dataclass(frozen=True, kw_only=True)
class Paid:
    """What the policy is paid for."""

    reward: str | None = None
    """Reward of tokens, prefixes or texts: a folder, a shipped reward, vader, profanity, MODULE:FUNCTION of a text, or
    a classifier."""
    token_function: str | None = None
    """Instead of --reward, MODULE:FUNCTION from (rollouts, mask) to the rewards of their tokens, (batch, tokens)."""
    end_reward: str | None = None
    """A second reward, of whole responses, paid at the last token."""
    label: str | None = None
    """The label to reward, by its log-odds, of a sequence classifier that has several."""
    end_scale: float = 1.0
    """Multiplies the second reward."""
    gold: str | None = None
    """A reward to measure at every step that nothing is learned from."""


@dataclass(kw_only=True)
class Ppo:
    """Train the language model itself by a reward per token (PPO).

    Proximal policy optimisation: the model writes responses to the prompts, each token is paid what a reward gives it,
    and the model learns to write what pays, near to what it was. midcourse compare takes the policy as
    policy=FOLDER, beside guided decoding.
    """

    prompts: Path
    """Prompts: JSONL (also .gz), CSV or Parquet, in the field prompt."""
    read: Rows = field(default_factory=Rows)
    write: Write
    paid: Paid = field(default_factory=Paid)
    training: PPOSettings = field(default_factory=PPOSettings)
    template: TemplateName | None = None
    """How prompts are rendered; by default as the reward's were, else raw. chat: by the chat template. raw: as they
    are, to be continued."""
    model: ChatModel = field(default_factory=ChatModel)
    """The language model to train, which as it is now is the reference too, and what computes."""

    def run(self) -> int:
        from midcourse.lm.load import resolve_device
        from midcourse.train import processes

        check_settings(self.training)
        if (self.paid.reward is None) == (self.paid.token_function is None):
            raise UsageError("ppo needs one of --reward and --token-function; --reward civil is ready to run")
        if (function := self.paid.token_function) is not None and ":" not in function:
            raise UsageError(
                f"--token-function is {function!r}, which is no MODULE:FUNCTION; a reward that has a name goes to "
                "--reward"
            )
        with processes.joined(resolve_device(self.model.machine.device)):
            return self._run()

    def _run(self) -> int:
        from midcourse.compare.independence import of_reward
        from midcourse.data.prompts import read_prompts, unrenderable
        from midcourse.decode.request import agreed_template
        from midcourse.ppo.run import train_policy
        from midcourse.rewards.contract import Reward
        from midcourse.rewards.gold import load_function
        from midcourse.rewards.named import check_label
        from midcourse.train import processes

        paid, write = self.paid, self.write
        columns = parse_columns(self.read.columns)
        check_label(paid.label, filter(None, (paid.reward, paid.end_reward, paid.gold)))
        # What cannot be read at all is refused before models are loaded.
        processes.everywhere(lambda: read_prompts(self.prompts, rejects=[], renamed=columns))
        reward: Any = self._reward(paid.reward) if paid.reward else load_function(paid.token_function or "")
        end_reward, gold = (self._reward(name) if name else None for name in (paid.end_reward, paid.gold))
        lm = self.model.load()
        given = [(one, 1.0) for one in (reward, end_reward) if isinstance(one, Reward)]
        template = agreed_template(given, self.template)
        self.model.check_used(template)
        problem = unrenderable(lm, template)
        with bad_rows(self.read.skip_bad_rows, write=processes.first()) as rejects:
            prompts = processes.everywhere(
                lambda: read_prompts(self.prompts, limit=problem, rejects=rejects, renamed=columns)
            )
        metrics = train_policy(
            lm,
            prompts,
            reward,
            write.out,
            self.training,
            end_reward=end_reward,
            end_scale=paid.end_scale,
            gold=gold,
            paid_by=[of_reward(name, name) for name in (paid.reward, paid.end_reward) if name],
            template=self.template,
            resume=write.resume,
        )
        if processes.first():
            self._tell(metrics)
        return 0

    def _tell(self, metrics: list[dict[str, Any]]) -> None:
        """Print what the run's steps measured: all as JSON, or five of them as a table."""
        if self.write.json:
            print(as_json(metrics, indent=1))
            return
        places = sorted({round(share * (len(metrics) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
        shown = [name for name in ("reward", "gold", "kl", "entropy", "length") if name in metrics[0]]
        table(
            "Means over the responses of a step",
            ("rollouts", *shown),
            [(str(metrics[n]["rollouts"]), *(f"{metrics[n][name]:.3f}" for name in shown)) for n in places],
        )
        say(f"policy, curves.png, samples.html and card: {self.write.out}")

    def _reward(self, name: str) -> "Reward":
        from midcourse.rewards.named import load_reward, own_settings

        own = own_settings(name, template_arguments=self.model.arguments, label=self.paid.label)
        return load_reward(name, template=self.template, **own, **asdict(self.model.machine))
