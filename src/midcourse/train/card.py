"""What a person reads about a trained reward: its curves and its model card."""

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from midcourse.files import whole_file, write_text
from midcourse.reward_model import RewardInfo


def plot_training(metrics: Path, info: RewardInfo, path: Path) -> None:
    """Loss by step, and held-out pair accuracy by share of the response after each epoch."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="#8aa", linewidth=0.8, label="step")
    left.plot(*_smooth([(row["step"], row["loss"]) for row in rows]), color="#135", label="running mean")
    left.axhline(0.6931, color="#999", linestyle=":", linewidth=1)
    left.annotate("chance", (rows[0]["step"], 0.6931), color="#777", fontsize=8, va="bottom")
    left.set(xlabel="step", ylabel=f"loss ({info.objective})", title="training")
    left.legend(frameon=False)
    evaluated = [row for row in rows if "accuracy" in row]
    colors = matplotlib.colormaps["viridis"]
    for i, row in enumerate(evaluated):
        shares = [100 * float(share) for share in row["accuracy"]]
        label = f"epoch {row['epoch']:.3g}" if len(evaluated) <= 8 or i in (0, len(evaluated) - 1) else None
        color = colors(0.15 + 0.7 * i / max(len(evaluated) - 1, 1))
        right.plot(shares, list(row["accuracy"].values()), marker="o", markersize=4, color=color, label=label)
    right.axhline(0.5, color="#999", linestyle=":", linewidth=1)
    right.set(xlabel="% of the response", ylabel="pair accuracy", title="held-out prompts")
    right.legend(frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _smooth(points: list[tuple[int, float]], keep: float = 0.9) -> tuple[list[int], list[float]]:
    """A running mean that forgets a tenth with every step and starts unbiased."""
    mean, smoothed = 0.0, []
    for n, (_, loss) in enumerate(points, 1):
        mean = keep * mean + (1 - keep) * loss
        smoothed.append(mean / (1 - keep**n))
    return [step for step, _ in points], smoothed


def accuracy_table(metrics: dict) -> list[tuple[str, str, str]]:
    """(what, accuracy, 95 % interval) rows of a reward's held-out metrics, for terminal and card."""
    rows = [
        (f"{100 * row['share']:.0f}% of the response", row["accuracy"], row["interval"], row["ties"])
        for row in metrics["shares"]
    ]
    if equal := metrics["equal_length"]:
        rows.append(
            (f"100%, equal length ({equal['pairs']} pairs)", equal["accuracy"], equal["interval"], equal["ties"])
        )
    table = [
        (f"{name}, {100 * ties:.0f}% ties" if ties else name, f"{accuracy:.3f}", f"{low:.3f} to {high:.3f}")
        for name, accuracy, (low, high), ties in rows
    ]
    length = metrics["length_baseline"]
    low, high = length["interval"]
    return [
        *table,
        (f"baseline: the {length['prefers']} response", f"{length['accuracy']:.3f}", f"{low:.3f} to {high:.3f}"),
    ]


def how_it_went(metrics: dict[str, Any]) -> str:
    """Sentences on padding and early stopping."""
    padding = metrics["padding"]
    told = f"Of the tokens in its batches {padding['share']:.1%} were padding."
    if stop := metrics.get("early_stopping"):
        told += (
            f" Training stopped after step {stop['stopped']} of {stop['planned']}, and the weights are those of step "
            f"{stop['step']}, the best by mean prefix accuracy ({stop['accuracy']:.3f}) on {stop['pairs']} pairs of "
            f"{stop['prompts']} held-out prompts. The table above is of other held-out prompts."
        )
    return told


def write_card(info: RewardInfo, path: Path) -> None:
    """The model card, with the front matter that model hubs read."""
    metrics, run = info.metrics, info.training
    objective = f"`{info.objective}`" + (" (past end: paper)" if info.past_end == "paper" else "")
    table = "\n".join(f"| {name} | {accuracy} | {interval} |" for name, accuracy, interval in accuracy_table(metrics))
    settings = "\n".join(f"- {name}: {value}" for name, value in run["settings"].items())
    write_text(
        path,
        f"""---
library_name: midcourse
base_model: {info.backbone}
pipeline_tag: text-classification
tags: [reward-model, prefix-reward]
---

# A reward for every prefix

Trained by midcourse with the {objective} objective on the first {info.layers} layers of `{info.backbone}`
(fingerprint `{info.backbone_fingerprint}`), tuning `{info.tune}`, template `{info.template}`.

## Held-out pair accuracy

{metrics["pairs"]} pairs of {metrics["prompts"]} prompts that were not trained on; 95% intervals over prompts.

| share | accuracy | interval |
|---|---|---|
{table}

![training](training.png)

## Use

```sh
midcourse guide --reward THIS_FOLDER=2 --prompt "..."
midcourse score --reward THIS_FOLDER --prompt "..." --text "..."
```

Rewards of prefixes of different lengths are not comparable: training leaves one free constant per length, which guided
decoding does not see.

## Training

{run["comparisons"]} comparisons (fingerprint `{run["data_fingerprint"]}`), {metrics["train_pairs"]} of them trained on.
{how_it_went(metrics)}

{settings}
""",
    )
