"""What a person reads about a trained reward: its curves and its model card."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from midcourse.files import whole_file, write_text
from midcourse.rewards.info import RewardInfo

# What a temperature rests on besides the data; see `train.calibration.fit_temperature`.
LIMITS = {
    "chance": ": near one half, since the margins of held-out pairs say no more than chance",
    "separable": ", as sure as the number of held-out pairs allows, none of which is ordered wrongly",
}
CHANCE = {"prefix": 0.6931, "sequence": 0.6931}  # log 2, the Bradley-Terry loss of rewards that are all equal


def plot_training(metrics: Path, info: RewardInfo, path: Path) -> None:
    """Plot loss by step, and pair accuracy (or correlation with the label) on held-out prompts after each epoch."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    for phase, light, dark in zip(phases, ("#8aa", "#ca9"), ("#135", "#731"), strict=False):
        points = [(row["step"], row["loss"]) for row in rows if row["phase"] == phase]
        left.plot(*zip(*points, strict=True), color=light, linewidth=0.8, label=f"{phase}, step")
        left.plot(*_smooth(points), color=dark, label=f"{phase}, running mean")
        if chance := CHANCE.get(phase):
            left.axhline(chance, color="#999", linestyle=":", linewidth=1)
            left.annotate("chance", (rows[0]["step"], chance), color="#777", fontsize=8, va="bottom")
    left.set(xlabel="step", ylabel=f"loss ({info.objective})", title="training")
    left.legend(frameon=False)
    figures = {"accuracy": ("pair accuracy", 0.5), "correlation": ("correlation with the label", 0.0)}
    shown = next((name for name in figures if name in rows[-1]), "accuracy")
    evaluated = [row for row in rows if shown in row]
    colors = matplotlib.colormaps["viridis"]
    for i, row in enumerate(evaluated):
        shares = [100 * float(share) for share in row[shown]]
        values = [math.nan if value is None else value for value in row[shown].values()]
        label = f"epoch {row['epoch']:.3g}" if len(evaluated) <= 8 or i in (0, len(evaluated) - 1) else None
        color = colors(0.15 + 0.7 * i / max(len(evaluated) - 1, 1))
        right.plot(shares, values, marker="o", markersize=4, color=color, label=label)
    right.axhline(figures[shown][1], color="#999", linestyle=":", linewidth=1)
    right.set(xlabel="% of the response", ylabel=figures[shown][0], title="held-out prompts")
    if evaluated:
        right.legend(frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _smooth(points: list[tuple[int, float]], keep: float = 0.9) -> tuple[list[int], list[float]]:
    """Return a running mean that forgets a tenth with every step and starts unbiased."""
    mean, smoothed = 0.0, []
    for n, (_, loss) in enumerate(points, 1):
        mean = keep * mean + (1 - keep) * loss
        smoothed.append(mean / (1 - keep**n))
    return [step for step, _ in points], smoothed


def accuracy_table(metrics: dict) -> list[tuple[str, str, str]]:
    """Return rows of (what, accuracy, 95 % interval) for a reward's held-out pairs; none without pairs."""
    if not metrics["pairs"]:
        return []
    rows = [(_share(row), row["accuracy"], row["interval"], row["ties"]) for row in metrics["shares"]]
    if equal := metrics["equal_length"]:
        rows.append(
            (f"100%, equal length ({equal['pairs']} pairs)", equal["accuracy"], equal["interval"], equal["ties"])
        )
    table = [
        (f"{name}, {100 * ties:.0f}% ties" if ties else name, f"{accuracy:.3f}", as_range(interval))
        for name, accuracy, interval, ties in rows
    ]
    if length := metrics.get("length_baseline"):
        name = f"baseline: the {length['prefers']} response"
        table.append((name, f"{length['accuracy']:.3f}", as_range(length["interval"])))
    return table


def edit_table(metrics: dict) -> list[tuple[str, str, str]]:
    """Return rows of (what, figure, 95 % interval) for held-out edits; none for rewards that learn from others."""
    if not (figures := metrics.get("edits")):
        return []
    mean = figures["mean_reward"]
    rows = [
        ("AUROC, tokens added against tokens taken away", figures["auroc"], figures["auroc_interval"]),
        ("AUROC, tokens kept against tokens taken away", figures["kept_auroc"], figures["kept_auroc_interval"]),
        ("edited above original by the mean reward of tokens", mean["accuracy"], mean["interval"]),
    ]
    if equal := mean["equal_length"]:
        rows.append((f"the same, {equal['pairs']} of equal length", equal["accuracy"], equal["interval"]))
    return [(name, f"{figure:.3f}", as_range(interval)) for name, figure, interval in rows if figure is not None]


def edits_title(metrics: dict) -> str:
    """Return what the figures of edits are measured on."""
    figures = metrics["edits"]
    better, worse = figures["tokens"]
    return f"{figures['edits']} edits, {better} tokens added and {worse} taken away, 95% intervals"


def level_table(metrics: dict) -> list[tuple[str, str, str]]:
    """Return rows of (what, figure, 95 % interval) for a detector's held-out ladders; none for other rewards."""
    if not (apart := metrics.get("machine_or_human")):
        return []
    rows = [(f"{row['upper']} above {row['lower']}", row["accuracy"], row["interval"]) for row in metrics["levels"]]
    rows.append(("AUROC, machine against human", apart["auroc"], apart["auroc_interval"]))
    for rate in (1, 5):
        few = (
            "" if apart[f"resolves_{rate}"] else f" (no false positive: {apart['humans']} human texts resolve no more)"
        )
        rows.append(
            (
                f"machine texts found at {rate}% false positives{few}",
                apart[f"tpr_at_{rate}"],
                apart[f"tpr_at_{rate}_interval"],
            )
        )
    return [(name, f"{figure:.3f}", as_range(interval)) for name, figure, interval in rows]


def levels_title(metrics: dict) -> str:
    """Return what the figures of levels are measured on."""
    apart = metrics["machine_or_human"]
    return (
        f"{apart['machines']} machine and {apart['humans']} human texts of {metrics['prompts']} groups, 95% intervals"
    )


def label_table(metrics: dict) -> list[tuple[str, str, str, str]]:
    """Return rows of (what, correlation, squared error, 95 % interval) for held-out rollouts; none without them."""
    if not (fit := metrics.get("labels")):
        return []
    baseline = fit["baseline"]
    return [
        *(
            (
                _share(row),
                "none" if row["correlation"] is None else f"{row['correlation']:.3f}",
                f"{row['squared_error']:.4g}",
                as_range(row["interval"], ".4g"),
            )
            for row in fit["shares"]
        ),
        (
            f"baseline: {baseline['guess']:.3g} for all",
            "none",
            f"{baseline['squared_error']:.4g}",
            as_range(baseline["interval"], ".4g"),
        ),
    ]


def calibration_table(metrics: dict) -> list[tuple[str, str, str, str]]:
    """Return rows of (share, calibration error before, after, by chance alone) from a reward's held-out metrics."""
    if not (fit := metrics.get("calibration")):
        return []
    return [
        (
            _share(row),
            _error(row["before"]),
            _error(row["after"]),
            f"{row['after']['by_chance']:.3f}" if row["after"] else "n/a",
        )
        for row in fit["shares"]
    ]


def temperature_lines(metrics: dict) -> list[str]:
    """Return what the temperatures are and what limits them, a sentence for each."""
    if not (fit := metrics.get("calibration")):
        return []
    return [
        f"Of {texts}, a is preferred to b with probability sigmoid((r_a - r_b) / {temperature:.3g})"
        f"{LIMITS.get(fit[kind + 'limit'], '')}."
        for texts, kind in (("prefixes of equal length", ""), ("finished texts", "finished_"))
        if (temperature := fit[kind + "temperature"]) is not None
    ]


def _error(error: dict | None) -> str:
    if error is None:
        return "n/a"
    return f"{error['ece']:.3f} ({as_range(error['interval'])})"


def how_it_went(metrics: dict[str, Any]) -> str:
    """Return sentences on padding and early stopping."""
    padding = metrics["padding"]
    told = f"Of the tokens in its batches {padding['share']:.1%} were padding."
    if lost := cut_text(metrics):
        told += f" {lost}"
    if replay := metrics.get("replay"):
        told += (
            f" {replay['texts']} preference texts were replayed; their rewards moved by {replay['drift']:.3g} "
            "(root mean square)."
        )
    if stop := metrics.get("early_stopping"):
        told += (
            f" Training stopped after step {stop['stopped']} of {stop['planned']}, and the weights are those of step "
            f"{stop['step']}, the best by mean prefix accuracy ({stop['accuracy']:.3f}) on {stop['pairs']} pairs of "
            f"{stop['prompts']} held-out prompts. The table above is of other held-out prompts."
        )
    return told


def cut_text(metrics: dict[str, Any]) -> str:
    """Return what was lost of the texts at the length limit, as sentences; "" if nothing was."""
    cut = metrics.get("cut")
    if not cut or not cut["cut"]:
        return ""
    told = f"{cut['cut']} of {cut['texts']} texts were cut at {cut['max_tokens']} tokens, prompt included."
    if cut["equal_pairs"]:
        told += f" {cut['equal_pairs']} pairs whose responses are equal up to there were left out."
    return told


def pairs_title(metrics: dict) -> str:
    """Return what the accuracies are measured on."""
    made = ", rollouts of a prompt ordered by label" if "labels" in metrics else ""
    return f"{metrics['pairs']} pairs of {metrics['prompts']} prompts{made}, 95% intervals"


def labels_title(metrics: dict) -> str:
    """Return what the fit to labels is measured on."""
    fit = metrics["labels"]
    zero = f"; a reward of 0 is the mean label, {fit['zero']:.4g}" if fit["zero"] else ""
    return f"{fit['rollouts']} rollouts of {fit['prompts']} prompts, 95% intervals{zero}"


def write_card(info: RewardInfo, path: Path) -> None:
    """Write the model card, with the front matter that model hubs read."""
    run = info.training
    kind = next(kind for kind in ("edits", "ladders", "rollouts", "comparisons") if kind in run)
    trained = next(info.metrics[name] for name in TRAINED_ON if name in info.metrics)
    of = "whole texts" if info.head == "encoder" or info.objective == "ordered" else "every prefix"
    what = "A reward for every token" if info.additive else f"A reward {'of' if of == 'whole texts' else 'for'} {of}"
    begun = f"Training went on from the reward `{run['begun_at']['reward']}`.\n" if "begun_at" in run else ""
    settings = "\n".join(f"- {name}: {value}" for name, value in run["settings"].items())
    write_text(
        path,
        f"""---
library_name: midcourse
base_model: {info.backbone}
pipeline_tag: text-classification
tags: [reward-model, prefix-reward]
---

# {what}

Trained by midcourse with the {objective_text(info)} objective and a {info.head} head on the first {info.layers} layers
of `{info.backbone}` (fingerprint `{info.backbone_fingerprint}`), tuning `{info.tune}`, template `{info.template}`.
{begun}{measured(info.metrics)}
![training](training.png)
{calibrated(info.metrics)}
## Use

```sh
{usage(info)}
```

{meaning(info)}

## Training

{run[kind]} {kind} (fingerprint `{run["data_fingerprint"]}`), {trained} of them trained on.
{how_it_went(info.metrics)}

{settings}
""",
    )


TRAINED_ON = ("train_edits", "train_ladders", "train_rollouts", "train_pairs")
MEANING = {
    "prefix": """Rewards of prefixes of different lengths are not comparable: training leaves one free constant per
length, which guided decoding does not see.""",
    "sequence": "Rewards of finished texts were trained, those of prefixes were not: nothing holds them to any value.",
    "encoder": """Whole texts were trained, and each is read both ways, in a forward of its own: this reward suits
judging and choosing among responses better than guiding every token. Prompt and response are a text pair, of which a
long prompt loses its beginning. `midcourse export` writes a checkpoint that transformers reads.""",
    "value": """The reward of a prefix foretells the final reward of responses that go on from it under the policy
that wrote the rollouts.""",
    "cumulative": "The reward of a prefix foretells the label of the whole response, later prefixes better.",
    "farma": "The reward of a prefix is to be that of its best continuation, seen in training or not.",
    "ordered": """The reward of a finished text, without a prompt, is the higher the more it reads like a machine's.
Rewards of prefixes were not trained. It errs, on some writers more than on others, as the tables above cannot show: on
its word alone nothing must be decided about a person.""",
    "edited-tokens": """A token's reward says how much better or worse it makes the response, as people's or a model's
edits would have it; tokens that no edit touched are 0 on average. A text's reward is the sum.""",
    "token-discriminator": """A token's reward is 2 p - 1, less its mean over tokens that no edit touched, p being the
probability that an edit would add the token rather than take it away. A text's reward is the sum.""",
    "autoregressive": "A token's reward is its log-probability; a text's is the sum, which the accuracies compare.",
}


def usage(info: RewardInfo) -> str:
    """Return the calls of a reward that its card shows."""
    if info.objective == "ordered":
        return 'midcourse score --reward THIS_FOLDER --prompt "" --text "..."'
    weight = "" if info.reward_weight else "=2"
    return f'''midcourse guide --reward THIS_FOLDER{weight} --prompt "..."
midcourse score --reward THIS_FOLDER --prompt "..." --text "..."'''


def meaning(info: RewardInfo) -> str:
    """Return what a reward's numbers mean."""
    if info.objective != "ordered" and info.head == "encoder":
        return MEANING["encoder"]
    return MEANING.get(info.objective, MEANING["prefix"])


def objective_text(info: RewardInfo) -> str:
    """Return the objective and its settings."""
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in info.objective_settings.items())
    return f"`{info.objective}`" + (f" ({settings})" if settings else "")


def measured(metrics: dict) -> str:
    """Return the card's tables of held-out figures."""
    text = ""
    if rows := edit_table(metrics):
        text += f"\n## Held-out edits\n\n{edits_title(metrics)}; no prompt or text of them was trained on.\n\n"
        text += _markdown(("what", "share", "interval"), rows)
    if rows := level_table(metrics):
        text += f"\n## Held-out ladders\n\n{levels_title(metrics)}; no text or group of them was trained on.\n\n"
        text += _markdown(("what", "share", "interval"), rows)
    if rows := accuracy_table(metrics):
        text += f"\n## Held-out pair accuracy\n\n{pairs_title(metrics)}; no prompt of them was trained on.\n\n"
        text += _markdown(("share", "accuracy", "interval"), rows)
    if labels := label_table(metrics):
        text += f"\n## Held-out labels\n\n{labels_title(metrics)} (of the error); no prompt of them was trained on.\n\n"
        text += _markdown(("share", "correlation", "squared error", "interval"), labels)
    return text


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, ["---"] * len(head), *rows))


def _share(row: dict) -> str:
    return f"{100 * row['share']:.0f}% of the response"


def as_range(interval: Sequence[float] | None, digits: str = ".3f") -> str:
    """Return an interval for people."""
    if interval is None:
        return "too few for one"
    low, high = interval
    return f"{low:{digits}} to {high:{digits}}"


def calibrated(metrics: dict) -> str:
    """Return the card's section on calibration; nothing if none was stored."""
    if not (rows := calibration_table(metrics)):
        return ""
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    lines = "\n".join(temperature_lines(metrics))
    return f"""
## Calibration

{lines}

`midcourse score` shows these probabilities; guiding does not use them. Their expected calibration error, with 95%
intervals over prompts: before (at temperature 1), after (at temperatures fitted on other prompts than those judged),
and what honest probabilities would show by chance on so few pairs.

| share | before | after | by chance |
|---|---|---|---|
{table}
"""
