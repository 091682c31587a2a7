"""What a person reads about a trained reward: its curves and its model card."""

import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from midcourse.files import whole_file, write_text
from midcourse.reward_model import RewardInfo

# What a temperature rests on besides the data; see `train.calibration.fit_temperature`.
LIMITS = {
    "chance": ": near one half, since the margins of held-out pairs say no more than chance",
    "separable": ", as sure as the number of held-out pairs allows, none of which is ordered wrongly",
}


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
        label = f"epoch {row['epoch']:.0f}" if len(evaluated) <= 8 or i in (0, len(evaluated) - 1) else None
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


def calibration_table(metrics: dict) -> list[tuple[str, str, str, str]]:
    """(share, calibration error before, after, by chance alone) rows of a reward's held-out metrics."""
    return [
        (
            f"{100 * row['share']:.0f}% of the response",
            _error(row["before"]),
            _error(row["after"]),
            f"{row['after']['by_chance']:.3f}" if row["after"] else "n/a",
        )
        for row in metrics["calibration"]["shares"]
    ]


def temperature_lines(metrics: dict) -> list[str]:
    """What the temperatures are and what limits them, a sentence for each."""
    found = metrics["calibration"]
    return [
        f"Of {texts}, a is preferred to b with probability sigmoid((r_a - r_b) / {temperature:.3g})"
        f"{LIMITS.get(found[kind + 'limit'], '')}."
        for texts, kind in (("prefixes of equal length", ""), ("finished texts", "finished_"))
        if (temperature := found[kind + "temperature"]) is not None
    ]


def _error(found: dict | None) -> str:
    if found is None:
        return "n/a"
    low, high = found["interval"]
    return f"{found['ece']:.3f} ({low:.3f} to {high:.3f})"


def write_card(info: RewardInfo, path: Path) -> None:
    """The model card, with the front matter that model hubs read."""
    metrics, run = info.metrics, info.training
    objective = f"`{info.objective}`" + (" (past end: paper)" if info.past_end == "paper" else "")
    table = "\n".join(f"| {name} | {accuracy} | {interval} |" for name, accuracy, interval in accuracy_table(metrics))
    calibrated = "\n".join(f"| {' | '.join(row)} |" for row in calibration_table(metrics))
    temperatures = "\n".join(temperature_lines(metrics))
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

## Calibration

{temperatures}

`midcourse score` shows these probabilities; guiding does not use them. Their expected calibration error, with 95%
intervals over prompts: before (at temperature 1), after (at temperatures fitted on other prompts than those judged),
and what honest probabilities would show by chance on so few pairs.

| share | before | after | by chance |
|---|---|---|---|
{calibrated}

## Use

```sh
midcourse guide --reward THIS_FOLDER=2 --prompt "..."
midcourse score --reward THIS_FOLDER --prompt "..." --text "..."
```

Rewards of prefixes of different lengths are not comparable: training leaves one free constant per length, which guided
decoding does not see.

## Training

{run["comparisons"]} comparisons (fingerprint `{run["data_fingerprint"]}`), {metrics["train_pairs"]} of them trained on.

{settings}
""",
    )
