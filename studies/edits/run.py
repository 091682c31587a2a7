"""Which rewards of tokens tell what people's edits made better, and what they know of texts that no edit touched.

    python -m studies.edits.run --data DIR [SET ...]        (or MIDCOURSE_DATA=DIR)

Four sets of edits by people: ParaDetox (politeness; both sides spelt alike), DeFacto (facts of a summary, its article
as prompt), LAMP (writers' edits of machine prose) and JFLEG (fluency; measured, never shipped). Both objectives on a
trunk head and on LoRA, three seeds each; beside them two rewards of tokens that edits did not train: what a reward of
prefixes gains with each token (RED), and what a reward of whole texts, read at every position, does.

Pilot and rule: a trunk head's layer and a LoRA's epochs are those with the highest token AUROC on ParaDetox's
validation edits, one seed; every set and seed then takes them. Test edits are looked at by the last measurement alone;
LAMP has no split of its own, so each seed leaves out another quarter of its rows. Resumable: what results.json holds is
not done again.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midcourse.data.comparisons import Comparison
from midcourse.data.edits import Edit
from midcourse.data.encoded import EditSet, encode, encode_edits
from midcourse.evaluate.accuracy import outcome
from midcourse.evaluate.edits import edit_figures
from midcourse.evaluate.intervals import mean_interval
from midcourse.evaluate.provenance import write_results
from midcourse.rewards.named import load_reward
from midcourse.train.objectives import make_objective
from midcourse.train.settings import Settings
from midcourse.train.start import begin
from midcourse.train.training import train
from studies.data import arguments, command, comparisons, of_split, read, spelt_alike

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs/edits"
MODEL = "smollm2"
SEEDS = (0, 1, 2)
LAYERS = (12, 16, 20, 24, 30)
EPOCHS = (2, 4)


@dataclass(frozen=True)
class Set:
    """A set of edits.

    Attributes:
        most, tested: how many edits are learned from and measured on, at most.
        max_tokens: of a prompt and a text; the rest is cut off.
        untouched: ordinary comparisons, no edits of each other, that its rewards are asked about too.
    """

    most: int
    tested: int
    max_tokens: int
    untouched: str


SETS = {
    "paradetox": Set(3000, 600, 64, "hh_harmless"),
    "defacto": Set(1200, 300, 512, "hh_helpful"),
    "lamp": Set(190, 60, 384, "hh_helpful"),
    "jfleg": Set(2400, 350, 96, "hh_helpful"),
}
UNTOUCHED = 300


@dataclass(frozen=True)
class Arm:
    """A reward of tokens.

    Attributes:
        objective: what is learned.
        tuned: what is trained: a trunk head on frozen states, or LoRA under a scalar head.
        read: "tokens", the reward's own; "gain", what the reward of the prefix gains with a token.
    """

    objective: str
    tuned: str
    read: str = "tokens"


ARMS = {
    "edited tokens, trunk": Arm("edited-tokens", "trunk"),
    "edited tokens, LoRA": Arm("edited-tokens", "lora"),
    "discriminator, trunk": Arm("token-discriminator", "trunk"),
    "discriminator, LoRA": Arm("token-discriminator", "lora"),
    "reward of prefixes, what it gains (RED)": Arm("prefix", "trunk", "gain"),
    "reward of whole texts, what it gains": Arm("sequence", "trunk", "gain"),
}


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
    most = SETS[name].most if part == "train" else SETS[name].tested
    return [made[n] for n in np.random.default_rng(0).permutation(len(made))[:most]]


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


def trained(name: str, arm: Arm, data: Path, seed: int, *, layer: int, epochs: int) -> Path:
    """Return the folder of an arm's reward, trained if it is not there."""
    folder = RUNS / f"{name}-{arm.objective}-{arm.tuned}-{layer}-{epochs}-{seed}"
    if (folder / "midcourse.json").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    how: dict[str, Any] = {"head": "trunk", "layers": layer} if arm.tuned == "trunk" else {"tune": "lora:16"}
    if arm.tuned == "lora":
        how["head"] = "scalar"
    reward = begin(MODEL, make_objective(arm.objective), template="raw", seed=seed, **how)
    learned = edits(name, data, "train", seed)
    examples: Sequence[Any] = learned
    if arm.read == "gain":
        examples = [Comparison(one.prompt, one.edited or "", one.original) for one in learned]
    train(
        reward,
        examples,
        folder,
        Settings(epochs=epochs, seed=seed, max_tokens=SETS[name].max_tokens, batch_size=16, held_out=0.05),
    )
    return folder


def token_rewards(arm: Arm, folder: Path, rows: Sequence[Any]) -> list[Tensor]:
    """Return the rewards of the response tokens of encoded rows."""
    found = load_reward(folder).score_ids([(row.prompt, row.response) for row in rows])  # type: ignore[attr-defined]
    return found if arm.read == "tokens" else [torch.cat([row[:1], row[1:] - row[:-1]]) for row in found]


def measured(name: str, arm: Arm, folder: Path, data: Path, part: str, seed: int) -> dict[str, Any]:
    """Return an arm's figures on the edits of a part, and on comparisons that no edit touched."""
    reward: Any = load_reward(folder)
    found = encode_edits(reward, edits(name, data, part, seed), SETS[name].max_tokens)
    rewards = token_rewards(arm, folder, found.rows)
    row: dict[str, Any] = {**edit_figures(found, rewards), "shorter": shorter_is_right(found)}
    if arm.objective == "token-discriminator":
        row["calibration_error"] = calibration_error(found, rewards, reward.info.centre)
    if part == "test":
        pairs = encode(reward, untouched(SETS[name].untouched, data), 512)
        means = [float(one.mean()) for one in token_rewards(arm, folder, pairs.rows)]
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


def pilot(data: Path, done: dict[str, Any]) -> dict[str, int]:
    """Return the layer and the epochs, by token AUROC on ParaDetox's validation edits."""
    pilots: dict[str, float] = done.setdefault("pilot", {})

    def tried(key: str, arm: Arm, layer: int, epochs: int) -> float:
        if key not in pilots:
            folder = trained("paradetox", arm, data, 0, layer=layer, epochs=epochs)
            pilots[key] = measured("paradetox", arm, folder, data, "validation", 0)["auroc"]
            write_results(HERE / "results.json", done)
        return pilots[key]

    trunk, lora = ARMS["discriminator, trunk"], ARMS["discriminator, LoRA"]
    layer = max(LAYERS, key=lambda one: tried(f"layer {one}", trunk, one, 2))
    epochs = max(EPOCHS, key=lambda one: tried(f"LoRA, {one} epochs", lora, layer, one))
    return {"layer": layer, "epochs": epochs}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("sets", nargs="*", choices=[[], *SETS], metavar="SET", help="all by default")
    given = parser.parse_args()
    path = HERE / "results.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    done = {key: done[key] for key in ("pilot", "rows") if key in done}
    how = pilot(given.data, done)
    rows = done.setdefault("rows", [])
    for seed in SEEDS:
        for name in given.sets or SETS:
            for title, arm in ARMS.items():
                about = {"set": name, "arm": title, "seed": seed}
                if not any(about.items() <= row.items() for row in rows):
                    epochs = how["epochs"] if arm.tuned == "lora" else 2
                    folder = trained(name, arm, given.data, seed, layer=how["layer"], epochs=epochs)
                    rows.append({**about, **measured(name, arm, folder, given.data, "test", seed)})
                    write_results(path, done)
                    print(f"{name}, {title}, seed {seed}: token AUROC {rows[-1]['auroc']:.3f}", flush=True)


if __name__ == "__main__":
    command(main)
