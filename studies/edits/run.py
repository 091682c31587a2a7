"""Which rewards of tokens tell what people's edits made better, and what they know of texts that no edit touched.

    python -m studies.edits.run --data DIR [SET ...]        (or MIDCOURSE_DATA=DIR)

Four sets of edits by people: ParaDetox (politeness; both sides spelt alike), DeFacto (facts of a summary, its article
as prompt, where both have at most 512 tokens), LAMP (writers' edits of machine prose) and JFLEG (fluency; measured,
never shipped). Both objectives on a trunk head, on a scalar head on frozen states, and with LoRA in the last 8 layers
below a scalar head, three seeds each (LoRA on DeFacto with its articles one). Beside them two rewards of tokens that
edits did not train: what a reward of prefixes gains with each token (RED), and what a reward of whole texts, read at
every position, does.

Pilot and rule: the layer is that at which a discriminator has the highest token AUROC on ParaDetox's validation edits,
one seed, found for trunk heads and for scalar heads; every arm, set and seed then takes it. Test edits are looked at by
the last measurement alone; LAMP has no split of its own, so each seed leaves out another quarter of its rows.
Resumable: what results/ holds is not done again, and two processes may do two sets.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from midcourse.data.comparisons import Comparison
from midcourse.data.edits import Edit
from midcourse.data.encoded import EditSet, PairSet, encode, encode_edits
from midcourse.evaluate.accuracy import outcome
from midcourse.evaluate.edits import edit_figures
from midcourse.evaluate.intervals import mean_interval
from midcourse.evaluate.provenance import write_results
from midcourse.lm.load import load_tokenizer
from midcourse.rewards.named import load_reward
from midcourse.rewards.trained import TrainedReward
from midcourse.train.objectives import make_objective
from midcourse.train.scorer import make_scorer
from midcourse.train.settings import Settings
from midcourse.train.start import begin
from midcourse.train.training import train
from studies.data import arguments, command, comparisons, of_split, read, spelt_alike

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs/edits"
MODEL = "smollm2"
SEEDS = (0, 1, 2)
LAYERS = (12, 16, 20, 24, 30)


@dataclass(frozen=True)
class Set:
    """A set of edits.

    Attributes:
        most, tested: how many edits are learned from and measured on, at most.
        max_tokens: of a prompt and a text; the rest is cut off.
        untouched: ordinary comparisons, no edits of each other, that its rewards are asked about too.
        whole: leave out what is longer, instead of cutting it.
    """

    most: int
    tested: int
    max_tokens: int
    untouched: str
    whole: bool = False


SETS = {
    "paradetox": Set(3000, 600, 64, "hh_harmless"),
    "defacto": Set(400, 300, 512, "hh_helpful", whole=True),
    "lamp": Set(190, 60, 384, "hh_helpful"),
    "jfleg": Set(2400, 350, 96, "hh_helpful"),
}
UNTOUCHED = 300


@dataclass(frozen=True)
class Arm:
    """A reward of tokens.

    Attributes:
        objective: what is learned.
        start: head and tuning, for `begin`.
        epochs: how often each edit is learned from.
        read: "tokens", the reward's own; "gain", what the reward of the prefix gains with a token.
    """

    objective: str
    start: Mapping[str, str]
    epochs: int = 2
    read: str = "tokens"


TRUNK = {"head": "trunk"}
FROZEN = {"head": "scalar", "tune": "head"}
LORA = {"head": "scalar", "tune": "lora:16:8"}
ARMS = {
    "edited tokens, trunk": Arm("edited-tokens", TRUNK),
    "discriminator, trunk": Arm("token-discriminator", TRUNK),
    "edited tokens, frozen states": Arm("edited-tokens", FROZEN, epochs=4),
    "discriminator, frozen states": Arm("token-discriminator", FROZEN, epochs=4),
    "reward of prefixes, what it gains (RED)": Arm("prefix", TRUNK, read="gain"),
    "reward of whole texts, what it gains": Arm("sequence", TRUNK, read="gain"),
    "edited tokens, LoRA": Arm("edited-tokens", LORA),
    "discriminator, LoRA": Arm("token-discriminator", LORA),
}


def arms_of(name: str, seed: int) -> dict[str, Arm]:
    """Return the arms that a set and a seed have: LoRA reads all of an article, which takes long."""
    return {title: arm for title, arm in ARMS.items() if not (name == "defacto" and arm.start is LORA and seed)}


# The data


def edits(name: str, data: Path, part: str, seed: int = 0) -> list[Edit]:
    """Return the edits of a part, "train", "validation" or "test", in a fixed random order."""
    rows = read(data, f"edits/{name}")
    if name == "lamp":
        tested = {row["group"] for row in rows if quarter(row["group"]) == seed % 4}
        rows = [row for row in rows if (row["group"] in tested) == (part == "test")]
    else:
        rows = of_split(rows, part)
    made = [one for row in rows if (one := edit_of(name, row)).original != one.edited and one.original and one.edited]
    if SETS[name].whole:
        made = [one for one in made if max(lengths(one)) < SETS[name].max_tokens]
    most = SETS[name].most if part == "train" else SETS[name].tested
    return [made[n] for n in np.random.default_rng(0).permutation(len(made))[:most]]


def lengths(edit: Edit) -> list[int]:
    """Return how many tokens the prompt has with each of the texts, without an end."""
    return [len(tokenizer()(edit.prompt + text)["input_ids"]) for text in edit.responses]


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(MODEL)


def quarter(group: str) -> int:
    """Return which quarter of LAMP's rows a group is in."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) % 4


def edit_of(name: str, row: dict[str, Any]) -> Edit:
    """Return a row of a set as an edit."""
    if name == "paradetox":
        return Edit("", spelt_alike(row["original"]), spelt_alike(row["edited"]), row["group"])
    prompts = {"defacto": lambda: f"{row['context']}\n\nSummary:", "lamp": lambda: row["prompt"]}
    prompt = prompts.get(name, lambda: "")()
    space = " " if prompt else ""
    return Edit(prompt, space + row["original"].strip(), space + row["edited"].strip(), row["group"])


@cache
def untouched(name: str, data: Path) -> tuple[Comparison, ...]:
    """Return ordinary test comparisons of short prompts."""
    _, test = comparisons(name, data)
    return tuple(row for row in test if len(row.prompt) < 600 and len(row.chosen) + len(row.rejected) < 900)[:UNTOUCHED]


# Training and measuring


def trained(name: str, arm: Arm, data: Path, seed: int, layer: int) -> Path:
    """Return the folder of an arm's reward, trained if it is not there."""
    how = "-".join(arm.start.values()).replace(":", "")
    folder = RUNS / f"{name}-{arm.objective}-{how}-{layer}-{seed}"
    if (folder / "midcourse.json").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    reward = begin(MODEL, make_objective(arm.objective), template="raw", seed=seed, layers=layer, **arm.start)
    learned = edits(name, data, "train", seed)
    examples: Sequence[Any] = learned
    if arm.read == "gain":
        examples = [Comparison(one.prompt, one.edited or "", one.original) for one in learned]
    most = SETS[name].max_tokens
    train(
        reward, examples, folder, Settings(epochs=arm.epochs, seed=seed, max_tokens=most, batch_size=16, held_out=0.05)
    )
    return folder


def token_rewards(arm: Arm, reward: TrainedReward, data: EditSet | PairSet) -> list[Tensor]:
    """Return the rewards of the response tokens of encoded rows; frozen states are read once for all arms."""
    found = make_scorer(reward, [data]).score(0)
    return found if arm.read == "tokens" else [torch.cat([row[:1], row[1:] - row[:-1]]) for row in found]


def measured(name: str, arm: Arm, folder: Path, data: Path, part: str, seed: int) -> dict[str, Any]:
    """Return an arm's figures on the edits of a part, and on comparisons that no edit touched."""
    reward: Any = load_reward(folder)
    found = encode_edits(reward, edits(name, data, part, seed), SETS[name].max_tokens)
    rewards = token_rewards(arm, reward, found)
    row: dict[str, Any] = {**edit_figures(found, rewards), "shorter": shorter_is_right(found)}
    if arm.objective == "token-discriminator":
        row["calibration_error"] = calibration_error(found, rewards, reward.info.centre)
    if part == "test":
        pairs = encode(reward, untouched(SETS[name].untouched, data), 512)
        means = [float(one.mean()) for one in token_rewards(arm, reward, pairs)]
        outcomes = [outcome(means[a] - means[b]) for a, b in pairs.pairs]
        mean, interval = mean_interval(outcomes, pairs.prompts)
        row["untouched"] = {"set": SETS[name].untouched, "pairs": len(outcomes), "accuracy": mean, "interval": interval}
    return row


def shorter_is_right(found: EditSet) -> float:
    """Return how often the edited text is the shorter one, a tie counting one half."""
    lengths = [row.text_length for row in found.rows]
    return float(np.mean([outcome(float(lengths[original] - lengths[edited])) for edited, original in found.items]))


def calibration_error(found: EditSet, rewards: Sequence[Tensor], centre: float, bins: int = 10) -> float:
    """Return the expected calibration error of p, the chance that a changed token was added rather than taken away."""
    chances, added = [], []
    for (edited, original), labels in zip(found.items, found.labels, strict=True):
        for row, side, truth in ((edited, labels.edited, 1.0), (original, labels.original, 0.0)):
            for reward, label in zip(rewards[row].tolist(), side, strict=False):
                if not label.kept:
                    chances.append((reward + centre + 1) / 2)
                    added.append(truth)
    p, truths = np.clip(chances, 0, 1), np.array(added)
    places = np.minimum((p * bins).astype(int), bins - 1)
    gaps = [abs(p[places == n].mean() - truths[places == n].mean()) * (places == n).mean() for n in set(places)]
    return float(sum(gaps))


# The study


def pilot(data: Path) -> dict[str, int]:
    """Return the layer for each kind of head, by token AUROC on ParaDetox's validation edits."""
    path = HERE / "results/pilot.json"
    tried: dict[str, dict[str, float]] = json.loads(path.read_text())["auroc"] if path.is_file() else {}
    for arm in (ARMS["discriminator, trunk"], ARMS["discriminator, frozen states"]):
        mine = tried.setdefault(arm.start["head"], {})
        for layer in LAYERS:
            if str(layer) not in mine:
                folder = trained("paradetox", arm, data, 0, layer)
                mine[str(layer)] = measured("paradetox", arm, folder, data, "validation", 0)["auroc"]
                write_results(path, {"auroc": tried})
    return {head: max(LAYERS, key=lambda layer: mine[str(layer)]) for head, mine in tried.items()}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("sets", nargs="*", choices=[[], *SETS], metavar="SET", help="all by default")
    given = parser.parse_args()
    layers = pilot(given.data)
    for seed in SEEDS:
        for name in given.sets or SETS:
            path = HERE / f"results/{name}.json"
            rows = json.loads(path.read_text())["rows"] if path.is_file() else []
            for title, arm in arms_of(name, seed).items():
                about = {"set": name, "arm": title, "seed": seed}
                if not any(about.items() <= row.items() for row in rows):
                    folder = trained(name, arm, given.data, seed, layers[arm.start["head"]])
                    rows.append({**about, **measured(name, arm, folder, given.data, "test", seed)})
                    write_results(path, {"rows": rows})
                    print(f"{name}, {title}, seed {seed}: token AUROC {rows[-1]['auroc']:.3f}", flush=True)


if __name__ == "__main__":
    command(main)
