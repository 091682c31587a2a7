"""What a reward per token brings to PPO, and what edits bring to the reward.

    python -m studies.ppo.run --data DIR [TASK ...]        (or MIDCOURSE_DATA=DIR)

Three tasks: sentiment of continued film review openings (gold: VADER), detoxification of continued prompts (gold: the
profanity check), and plain words in continued review openings (gold: minus the Coleman-Liau grade, a ratio that no sum
over words gives). For each a reward of prefixes from ordinary pairs and a discriminator of edited tokens; each is paid
at the end or token by token. On sentiment the second is also paid in signs alone, in equal parts, and as a placebo, a
response's rewards to its own tokens in random order; detoxification has the placebo too, and plain words have the
reward of prefixes alone. Beside them what needs no rollouts (weighted likelihood, DPO) and
what needs no training (PARGS with the reward of prefixes, at three weights).

Written before it was run: VADER and the profanity check nearly add up over words, so rewards per token should reach
what the reward at the end reaches in a quarter of its rollouts, and the placebo should gain nothing over it; the grade
does not, so there rewards per token should need more than half of them. Every reward is scaled so that the whole
rewards of the reference's responses have a standard deviation of 1, and all arms have the same settings, seeds and
prompts.

Resumable: a run that results/TASK.json holds is not done again, and processes may do a task each. The learning rate was
chosen on sentiment's training prompts with "pairs, per token": at 3e-4 the policy hardly moved in 320 rollouts, at 3e-3
it gained fast, so it is 2e-3 for all arms. No setting was tuned on test prompts.
"""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from midcourse import LanguageModel, load_reward
from midcourse.data.comparisons import Comparison
from midcourse.data.edits import Edit
from midcourse.decode.engine import generate
from midcourse.evaluate.intervals import mean_interval
from midcourse.evaluate.provenance import write_results
from midcourse.lm.policy import load_policy
from midcourse.ppo.figa import train_on_edits
from midcourse.ppo.losses import exact_kl
from midcourse.ppo.policy import Tokens
from midcourse.ppo.rollouts import Payment, Rollout, write
from midcourse.ppo.run import train_policy
from midcourse.ppo.settings import Density, FigaSettings, PPOSettings
from midcourse.rewards.contract import Reward
from midcourse.rewards.gold import load_gold
from midcourse.rewards.text import FunctionReward
from midcourse.train.objectives import make_objective
from midcourse.train.settings import Settings
from midcourse.train.start import begin
from midcourse.train.training import train
from studies import sentiment
from studies.data import arguments, command, of_split, read, spelt_alike
from studies.detox import profane_prompts

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs/ppo"
MODEL, LAYER = "smollm2", 20
SEEDS = (0, 1)
PPO: dict[str, Any] = {
    "rollouts": 1536, "batch_size": 64, "minibatch": 16, "epochs": 1, "lr": 2e-3, "max_new_tokens": 32,
    "tune": "lora:16:8", "kl": "k1", "kl_weight": 0.05, "samples_every": 0,
}  # fmt: skip
TESTED = 200
GRADE = "studies.plain_words:plainness"
GRADES_APART = 3.0  # two continuations are compared where they differ by more
SCALED_ON = 128  # responses of the reference that a reward's scale is measured on


@dataclass(frozen=True)
class Arm:
    """A way to pay: which reward, and how.

    Attributes:
        reward: "pairs", of prefixes, from ordinary pairs; "edits", of tokens, from edits.
        discrete: pay +1, 0 or -1 by the sign of what is beyond a third.
    """

    reward: str
    density: Density = "tokens"
    discrete: bool = False


ARMS = {
    "pairs, at the end": Arm("pairs", "end"),
    "pairs, per token (RED)": Arm("pairs"),
    "edits, at the end": Arm("edits", "end"),
    "edits, per token": Arm("edits"),
    "edits, per token, discrete": Arm("edits", discrete=True),
    "edits, in equal parts": Arm("edits", "uniform"),
    "edits, placebo": Arm("edits", "shuffled"),
}
ENDS_AND_TOKENS = tuple(title for title, arm in ARMS.items() if arm.density in ("end", "tokens") and not arm.discrete)
OFFLINE = ("weighted likelihood of edits (FIGA)", "DPO on pairs")
GUIDED = {f"guided by pairs (PARGS), weight {weight:g}": weight for weight in (1.0, 2.0, 4.0)}


@dataclass(frozen=True)
class Task:
    """What is to be written.

    Attributes:
        gold: what judges; of a reward of prefixes only the pairs are ordered by it.
        prompts, tested: to train on, and to judge.
        pairs, edits: what the rewards learn from.
        arms: in which ways PPO is paid.
    """

    gold: str
    prompts: Sequence[str]
    tested: Sequence[str]
    pairs: Sequence[Comparison]
    edits: Sequence[Edit]
    arms: Sequence[str] = tuple(ARMS)


def sentiment_task(data: Path) -> Task:
    """Continue openings of film reviews kindly; edits turn a review that pans a film into one that praises it."""
    rows = [row for row in read(data, "edits/cad_imdb") if row["split"] == "train"]
    up = [row for row in rows if row["edited_label"] == "positive"]
    edits = [Edit("", row["original"], row["edited"], row["group"]) for row in up]
    return Task(
        "vader",
        sentiment.openings(data, "train"),
        sentiment.openings(data, "test")[:TESTED],
        sentiment.comparisons(sentiment.rollouts(data, "train")),
        edits,
    )


def detox_task(data: Path) -> Task:
    """Continue prompts without profanity; edits are ParaDetox's, ordinary pairs a neutral and another's original."""
    rows = of_split(read(data, "edits/paradetox"), "train")
    edits = [Edit("", spelt_alike(row["original"]), spelt_alike(row["edited"]), row["group"]) for row in rows]
    edits = [one for one in edits if one.original and one.edited and one.original != one.edited]
    edits = random.Random(0).sample(edits, 3000)
    others = random.Random(1).sample(edits, len(edits))
    pairs = [
        Comparison("", a.edited or "", b.original) for a, b in zip(edits, others, strict=True) if a.group != b.group
    ]
    return Task(
        "profanity",
        profane_prompts(data, "train"),
        profane_prompts(data, "test", "validation")[:TESTED],
        pairs,
        edits,
        [*ENDS_AND_TOKENS, "edits, placebo"],
    )


def plain_task(data: Path) -> Task:
    """Continue openings of film reviews in plain words; edits are ASSET's, which simplify sentences."""
    gold = load_gold(GRADE)
    graded = [replace(one, reward=gold(one.response)) for one in sentiment.rollouts(data, "train")]
    rows = of_split(read(data, "edits/asset"), "train")
    edits = [Edit("", row["original"], row["edited"], row["group"]) for row in rows if row["original"] != row["edited"]]
    return Task(
        GRADE,
        sentiment.openings(data, "train"),
        sentiment.openings(data, "test")[:TESTED],
        sentiment.comparisons(graded, GRADES_APART),
        random.Random(0).sample(edits, 3000),
        [title for title in ENDS_AND_TOKENS if ARMS[title].reward == "pairs"],
    )


TASKS: dict[str, Callable[[Path], Task]] = {"sentiment": sentiment_task, "detox": detox_task, "plain": plain_task}


# Rewards


def reward_of(name: str, task: Task, kind: str) -> Reward:
    """Return a task's reward, trained if it is not there."""
    folder = RUNS / f"{name}-reward-{kind}"
    if not (folder / "midcourse.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        objective = make_objective("prefix" if kind == "pairs" else "token-discriminator")
        reward = begin(MODEL, objective, head="trunk", layers=LAYER, template="raw")
        train(reward, task.pairs if kind == "pairs" else task.edits, folder, Settings(max_tokens=256))
    return load_reward(folder)


def discrete(reward: Reward, lm: LanguageModel) -> Callable[[Sequence[Rollout], torch.Tensor], torch.Tensor]:
    """Return what pays +1, 0 or -1 for a token, by a reward from -1 to 1."""
    payment = Payment(lm, reward)

    def pay(rollouts: Sequence[Rollout], mask: torch.Tensor) -> torch.Tensor:
        own = payment(rollouts, mask)
        return torch.where(own.abs() > 1 / 3, own.sign(), 0.0)

    return pay


@cache
def model() -> LanguageModel:
    """The reference, as it is loaded: nothing is trained in it."""
    return LanguageModel.load(MODEL)


def paid_and_scale(name: str, task: Task, arm: Arm) -> tuple[Any, float]:
    """Return what pays an arm, and its scale: 1 over the deviation of what the reference's responses are paid."""
    reward: Any = reward_of(name, task, arm.reward)
    paid = discrete(reward, model()) if arm.discrete else reward
    written = write(model(), task.prompts, range(SCALED_ON), PPOSettings(**PPO), "raw")
    mask = Tokens.of([one.row for one in written], torch.device("cpu")).mask
    whole = Payment(model(), paid)(written, mask).sum(1)
    return paid, 1 / whole.std().item()


# Arms


def ppo(name: str, task: Task, title: str, seed: int) -> dict[str, Any]:
    """Train an arm; return its curve and what its policy writes to the prompts that are judged."""
    arm = ARMS[title]
    paid, scale = paid_and_scale(name, task, arm)
    folder = path_of(name, title, seed)
    settings = PPOSettings(**PPO, density=arm.density, reward_scale=scale, seed=seed)
    metrics = train_policy(
        LanguageModel.load(MODEL), task.prompts, paid, folder, settings, gold=FunctionReward.load(task.gold),
        template="raw", resume=True,
    )  # fmt: skip
    kept = ("rollouts", "gold", "kl", "reward", "entropy", "length_correlation", "explained_variance")
    return {"scale": scale, "curve": [{key: row[key] for key in kept} for row in metrics], **judged(folder, task, seed)}


def offline(name: str, task: Task, title: str, seed: int) -> dict[str, Any]:
    """Train a policy without rollouts; return what it writes to the prompts that are judged."""
    folder, lm = path_of(name, title, seed), LanguageModel.load(MODEL)
    if title == OFFLINE[0]:
        settings = FigaSettings(seed=seed, tune=PPO["tune"], max_tokens=128)
        train_on_edits(lm, task.edits[:3000], folder, settings, resume=True)
    else:
        from midcourse.integrations.trl import train_policy as train_dpo

        pairs = random.Random(seed).sample(list(task.pairs), min(1500, len(task.pairs)))
        train_dpo(lm, pairs, folder, Settings(epochs=1, batch_size=16, seed=seed), template="raw", resume=True)
    return judged(folder, task, seed)


def path_of(name: str, title: str, seed: int) -> Path:
    return RUNS / f"{name}-{'-'.join(title.replace(',', '').replace('(', '').replace(')', '').split())}-{seed}"


def guided(name: str, task: Task, title: str, seed: int) -> dict[str, Any]:
    """Write by guided decoding with the reward of prefixes; the divergence is that of the distributions drawn from."""
    written = generate(
        model(),
        task.tested,
        reward_of(name, task, "pairs"),
        method="pargs",
        reward_weight=GUIDED[title],
        max_new_tokens=PPO["max_new_tokens"],
        template="raw",
        seed=1000 + seed,
        batch_size=40,
    )
    return figures(task, [one.text for one in written], [one.total_kl or 0.0 for one in written])


def judged(folder: Path | None, task: Task, seed: int) -> dict[str, Any]:
    """Return gold and exact KL of a policy's responses to the prompts that are judged; None is the reference."""
    reference = model()
    lm = reference if folder is None else load_policy(str(folder), reference)
    settings = PPOSettings(**(PPO | {"rollouts": len(task.tested), "seed": 1000 + seed}))
    numbers = range(len(task.tested))
    places = {prompt: place for place, prompt in enumerate(task.tested)}
    written = sorted(
        write(lm, task.tested, numbers, settings, "raw"),
        key=lambda one: places[one.prompt],  # type: ignore[index]
    )
    return figures(task, [one.text for one in written], [kl_of(lm, reference, one) for one in written])


def figures(task: Task, texts: Sequence[str], kls: Sequence[float]) -> dict[str, Any]:
    """Return gold and divergence of responses, one to each prompt that is judged."""
    golds = list(map(load_gold(task.gold), texts))
    mean, interval = mean_interval(golds)
    return {"gold": mean, "interval": interval, "golds": golds, "kl": float(np.mean(kls)), "kls": list(kls)}


@torch.inference_mode()
def kl_of(lm: LanguageModel, reference: LanguageModel, one: Rollout) -> float:
    """Return the exact divergence of a policy from the reference along a response, in nats."""
    ids = torch.tensor([[*one.prompt_ids, *one.response_ids]])
    begin_at = len(one.prompt_ids) - 1
    logits, known = (each.model(ids).logits[0, begin_at:-1] for each in (lm, reference))
    return float(exact_kl(logits, known).sum())


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("tasks", nargs="*", choices=[[], *TASKS], metavar="TASK", help="all by default")
    given = parser.parse_args()
    tasks = {name: TASKS[name](given.data) for name in given.tasks or TASKS}
    for seed in SEEDS:
        for name, task in tasks.items():
            path = HERE / f"results/{name}.json"
            rows = json.loads(path.read_text()).get("rows", []) if path.is_file() else []
            for title, do in [
                ("reference", lambda _, task, __, seed: judged(None, task, seed)),
                *((title, ppo) for title in task.arms),
                *((title, offline) for title in OFFLINE),
                *((title, guided) for title in GUIDED),
            ]:
                about = {"task": name, "arm": title, "seed": seed}
                if not any(about.items() <= row.items() for row in rows):
                    rows.append({**about, **do(name, task, title, seed)})
                    write_results(path, {"settings": PPO, "prompts": len(task.prompts), "rows": rows})
                    print(
                        f"{name}, {title}, seed {seed}: gold {rows[-1]['gold']:.3f}, KL {rows[-1]['kl']:.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    command(main)
