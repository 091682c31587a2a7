"""What guides in the paper study: rewards of every objective, trained on the same rows, and a policy by DPO."""

from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from midcourse import LanguageModel
from midcourse.compare.independence import of_policy, of_reward
from midcourse.compare.study import GuidingReward, Policy
from midcourse.data.comparisons import Comparison
from midcourse.integrations.trl import train_policy
from midcourse.lm.policy import load_policy
from midcourse.rewards.named import head_of, load_reward, shareable
from midcourse.show.tokens import prompt_text
from midcourse.train.objectives import make_objective
from midcourse.train.settings import Settings
from midcourse.train.training import train
from studies.data import fitting
from studies.paper.tasks import Setup

PAIRS, EPOCHS, LAYERS, TUNE = 3000, 2, 10, "last:2"
# A step of DPO takes about ten times as long as one of a guide: one epoch, of no more tokens than this.
DPO_TOKENS, DPO_BETA = 120_000, 0.1
SOFT_WEIGHT = 4.0


class Kind(NamedTuple):
    """An objective with its settings, and the head that it trains."""

    objective: str
    settings: dict[str, Any]
    head: str


GUIDES = {
    "sequence": Kind("sequence", {}, "scalar"),
    "prefix": Kind("prefix", {}, "scalar"),
    "prefix-paper": Kind("prefix", {"past_end": "paper"}, "scalar"),
    "value": Kind("value", {"value": "mean"}, "scalar"),
    "soft": Kind("value", {"value": "soft", "value_weight": SOFT_WEIGHT}, "scalar"),
    "farma": Kind("farma", {"alternations": 2}, "vocabulary"),
    "autoregressive": Kind("autoregressive", {}, "vocabulary"),
    "trunk": Kind("prefix", {}, "trunk"),
}


def guide(task: Setup, name: str) -> Path:
    """The folder of a guide, trained where it is not there yet."""
    folder, kind = task.runs / name, GUIDES[name]
    if (folder / "midcourse.json").is_file():
        return folder
    trunk = kind.head == "trunk"
    make, head = head_of(kind.head, "smollm2")
    reward = make.create(
        "smollm2",
        template=task.template,
        objective=kind.objective,
        objective_settings=make_objective(kind.objective, **kind.settings).settings,
        layers=None if trunk else LAYERS,
        tune="head" if trunk else TUNE,
        head=head,
    )
    pairs = fitting(reward, task.learn, task.max_tokens)[:PAIRS]
    examples = task.rollouts if kind.objective == "value" and task.rollouts else pairs
    train(reward, examples, folder, Settings(epochs=EPOCHS, max_tokens=task.max_tokens), resume=True)
    return folder


def guides(task: Setup, lm: LanguageModel) -> dict[str, GuidingReward]:
    """All guides of a task, on the language model's own weights where they may be."""
    found = {}
    for name in GUIDES:
        folder = guide(task, name)
        reward = load_reward(folder, share_with=lm if shareable(folder, lm) else None)
        found[name] = GuidingReward(reward, of_reward(str(folder), name))
    return found


def texts(pair: Comparison) -> list[str]:
    """What a pair's two rows consist of."""
    prompt = prompt_text(pair.prompt)
    return [prompt + pair.chosen, prompt + pair.rejected]


def policies(task: Setup, lm: LanguageModel) -> dict[str, Policy]:
    """The policy that DPO trains on the same pairs."""
    folder = task.runs / "dpo"
    if not (folder / "midcourse_policy.json").is_file():
        settings = Settings(1, batch_size=8, max_tokens=task.max_tokens, weight_decay=0.0)
        fresh = LanguageModel.load("smollm2")  # training leaves the adapter's layers inside
        learn = fitting(fresh, task.learn, task.max_tokens)
        lengths = [sum(len(fresh.tokenizer(text)["input_ids"]) for text in texts(pair)) for pair in learn]
        pairs = learn[: sum(total <= DPO_TOKENS for total in accumulate(lengths))]
        train_policy(fresh, pairs, folder, settings, beta=DPO_BETA, template=task.template, resume=True)
    return {"dpo": Policy(load_policy(str(folder), lm), of_policy(str(folder), "dpo"))}
