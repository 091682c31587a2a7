"""What is the same for every row of a comparison: the models, the prompts, the base policy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midcourse.compare.arms import POLICY, Arm, Base, CompareError, LeftOut, Number, plan
from midcourse.compare.independence import Origin
from midcourse.data.formats import BadRow, Renamed, optional_text, prompt_of, read_rows
from midcourse.decode.request import agreed_template, encode
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Prompt, Template
from midcourse.rewards.contract import Reward


@dataclass(frozen=True)
class Task:
    """A prompt, and a response to it to compare with, if there is one."""

    prompt: Prompt
    reference: str | None = None


@dataclass(frozen=True)
class GuidingReward:
    """A reward to guide with, and its origin."""

    reward: Reward
    origin: Origin


@dataclass(frozen=True)
class Policy:
    """A fine-tuned model, and its origin."""

    lm: LanguageModel
    origin: Origin


@dataclass(frozen=True)
class Study:
    """What is the same for every row.

    Attributes:
        lm: the language model that all arms start from.
        lm_fingerprint: of its weights.
        guides, policies: by name.
        tasks: the prompts.
        base: the policy that all arms start from.
        seeds: responses of each arm to each prompt.
        template: how prompts become tokens; None for that of the rewards, else "raw".
        batch_size: rows of the language model that are written side by side. No row depends on it.
        save_candidates: rows hold the candidates of each token.
    """

    lm: LanguageModel
    lm_fingerprint: str
    guides: Mapping[str, GuidingReward]
    policies: Mapping[str, Policy]
    tasks: Sequence[Task]
    base: Base = field(default_factory=Base)
    seeds: int = 1
    max_new_tokens: int = 64
    template: Template | None = None
    batch_size: int = 16
    save_candidates: bool = False

    @property
    def rendering(self) -> Template:
        """Return the one template of all arms; RewardError if the rewards have different ones."""
        return agreed_template([(guide.reward, 1.0) for guide in self.guides.values()], self.template)

    @property
    def origins(self) -> dict[str, Origin]:
        """Return the origins of the rewards and policies, by name."""
        guides = {name: one.origin for name, one in self.guides.items()}
        return guides | {name: one.origin for name, one in self.policies.items()}

    def check(self) -> None:
        """Raise CompareError, PromptError, RewardError or MethodError on what no row could be written with."""
        for name in ("seeds", "max_new_tokens", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise CompareError(f"{name.replace('_', '-')} is {value}; use 1 or more")
        if common := sorted(self.guides.keys() & self.policies.keys()):
            raise CompareError(f"a reward and a policy are both called {common[0]}; rename one folder")
        rewards = [guide.reward for guide in self.guides.values()]
        encode(self.lm, rewards, [task.prompt for task in self.tasks], self.rendering, self.max_new_tokens)

    def plan(
        self, methods: Sequence[str], sweep: Mapping[str, Sequence[Number]] | None
    ) -> tuple[list[Arm], list[LeftOut]]:
        """Return the arms; see `arms.plan`."""
        rewards = {name: one.reward for name, one in self.guides.items()}
        arms, left_out = plan(self.lm, methods, rewards, sweep, self.base)
        for arm in arms:
            if arm.method == POLICY and arm.given not in self.policies:
                raise CompareError(f"policy {arm.given} is not among the policies: {', '.join(self.policies)}")
        return arms, left_out


def read_tasks(
    path: Path,
    limit: int | None = None,
    *,
    problem: Callable[[Prompt], str | None] = lambda prompt: None,
    rejects: list[BadRow] | None = None,
    renamed: Renamed | None = None,
) -> list[Task]:
    """Read the prompts of a file, with their reference responses if they have a field "reference".

    Args:
        limit: only the first so many.
        problem: says what is wrong with a prompt, such as `unrenderable`, or None.
        rejects: bad rows are appended to it and reading goes on.
        renamed: fields that the file has by other names.

    Raises:
        CompareError: a limit that leaves none.
        DataError: a file that cannot be read or has no usable row; without `rejects`, the first bad row.
    """
    if limit is not None and limit < 1:
        raise CompareError(f"limit-prompts {limit} leaves no prompt; use 1 or more")
    rows = read_rows(
        path,
        _task,
        "prompts",
        ("prompt", "reference"),
        limit=lambda task: problem(task.prompt),
        rejects=rejects,
        renamed=renamed,
    )
    return rows[:limit]


def _task(fields: dict[str, Any]) -> Task:
    return Task(prompt_of(fields), optional_text(fields, "reference"))
