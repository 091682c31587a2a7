"""The folder a policy is trained in: one run's, from its first step to the finished policy.

While training goes on it holds run.json, metrics.jsonl and the last whole checkpoint. When it is done it is a policy
that `lm.policy.load_policy` loads: a PEFT adapter or a whole model, with curves.png, samples.html and a card, and
midcourse_policy.json, which is written last.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from midcourse.errors import first_line
from midcourse.files import as_json, publish_folder, whole_file, write_text
from midcourse.lm.load import RECORD
from midcourse.lm.policy import how_to_load, hub_name, save_adapter, save_whole
from midcourse.ppo.policy import Policy
from midcourse.ppo.settings import PPOError
from midcourse.ppo.training import State
from midcourse.rewards.contract import Score
from midcourse.show.page import cells_of, write_page
from midcourse.show.tokens import Colouring, by_change, prompt_text, tokens_of_score
from midcourse.train.folder import checkpoints, drop_run, seal
from midcourse.train.settings import TrainingError

METRICS = "metrics.jsonl"
WEIGHTS, OPTIMIZER, STATE = "policy.safetensors", "optimizer.safetensors", "state.json"


def save_checkpoint(policy: Policy, optimizer: Optimizer, state: State, out: Path) -> None:
    """Write a checkpoint, whole or not at all, and drop older ones; PPOError if it cannot be written."""
    name = f"checkpoint-{state.step}"
    work = Path(tempfile.mkdtemp(prefix=".saving-", dir=out))
    try:
        weights = policy.trained()
        save_file({key: one.detach().contiguous().cpu() for key, one in weights.items()}, work / WEIGHTS)
        save_file(_moments(policy, optimizer), work / OPTIMIZER)
        write_text(work / STATE, as_json(vars(state)))
        seal(work)
        publish_folder(work, out / name, replace=True)
    except Exception as error:  # safetensors has an error of its own for a full disk
        whole = checkpoints(out)
        last = f"{whole[-1].name} is whole" if whole else "there is none before it"
        raise PPOError(f"{name} cannot be written to {out} ({error}); {last}: make room, then add --resume") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for older in checkpoints(out)[:-1]:
        shutil.rmtree(older)


def load_checkpoint(policy: Policy, optimizer: Optimizer, checkpoint: Path) -> State:
    """Put a policy and its optimiser where a checkpoint was written, to the last bit; return the state."""
    weights, stored = policy.trained(), load_file(checkpoint / WEIGHTS)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(stored[name])
    for key, kept in load_file(checkpoint / OPTIMIZER).items():
        name, _, what = key.rpartition(" ")
        weight = weights[name]
        optimizer.state[weight][what] = kept if what == "step" else kept.to(weight.device, weight.dtype)
    return State(**json.loads((checkpoint / STATE).read_text()))


def _moments(policy: Policy, optimizer: Optimizer) -> dict[str, Tensor]:
    names = {id(weight): name for name, weight in policy.trained().items()}
    return {
        f"{names[id(weight)]} {what}": kept.detach().contiguous().cpu()
        for weight, moments in optimizer.state.items()
        for what, kept in moments.items()
    }


def write_metrics(out: Path, state: State) -> None:
    """Write the metrics of all steps so far."""
    write_text(out / METRICS, "".join(as_json(row) + "\n" for row in state.metrics))


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Return the metrics of all steps of a finished run; TrainingError if they are damaged."""
    try:
        rows = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
        if rows and all("rollouts" in row and "kl" in row for row in rows):
            return rows
        problem = "it lacks steps"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        problem = first_line(error)
    raise TrainingError(f"{out / METRICS} is damaged ({problem}); the policy beside it is whole, its curves are lost")


def add_metrics(out: Path, row: dict[str, Any]) -> None:
    """Append a step's metrics."""
    with (out / METRICS).open("a") as file:
        file.write(as_json(row) + "\n")


def finish(policy: Policy, state: State, out: Path, record: dict[str, Any]) -> None:
    """Turn a run's folder into a policy, its record last; then drop what only resuming needs."""
    if isinstance(policy.model, PeftModel):
        save_adapter(policy.model, record["lm"], policy.lm.tokenizer, out)
    else:
        save_whole(policy.lm, out)
    plot_curves(state.metrics, out / "curves.png")
    write_text(out / "README.md", card(record, state.metrics))
    write_text(out / RECORD, as_json({**record, "metrics": state.metrics[-1]}, indent=2) + "\n")
    drop_run(out)


# ---- to look at ----


def write_samples(out: Path, state: State, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write samples.html: texts of several steps, each token coloured by what it was paid."""
    rows = []
    for one in state.samples:
        score = Score(
            tuple(one["token_ids"]),
            tuple(tokenizer.decode([token]) for token in one["token_ids"]),
            tuple(one["rewards"]),
            additive=True,
        )
        rows.append((one, tokens_of_score(score, tokenizer)))
    colouring: Colouring = by_change(*(tokens for _, tokens in rows))
    steps = [
        {
            "step": step,
            "texts": [
                {
                    "prompt": prompt_text(one["prompt"]),
                    "cells": cells_of(tokens, colouring),
                    "paid": sum(one["rewards"]),
                }
                for one, tokens in rows
                if one["step"] == step
            ],
        }
        for step in dict.fromkeys(one["step"] for one in state.samples)
    ]
    write_page(out / "samples.html", "ppo/samples.html.jinja", title=out.name, steps=steps, colouring=colouring)


CURVES = (
    ("reward", "reward of a response"),
    ("gold", "gold reward"),
    ("kl", "KL to the reference (nats per response)"),
    ("entropy", "entropy (nats per token)"),
    ("length", "tokens of a response"),
    ("length_correlation", "correlation of reward with length"),
    ("loss", "loss"),
    ("explained_variance", "variance explained by values"),
    ("clipped", "share of ratios clipped"),
)


def plot_curves(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot what a run's steps measured by rollouts."""
    from matplotlib.figure import Figure

    shown = [(name, label) for name, label in CURVES if any(row.get(name) is not None for row in metrics)]
    columns = 3
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for (name, label), axes in zip(shown, panels, strict=False):
        points = [(row["rollouts"], row[name]) for row in metrics if row.get(name) is not None]
        axes.plot(*zip(*points, strict=True), color="#1f5fa8", marker="o", markersize=2.5, linewidth=1.2)
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("edits learned from" if any("loss" in row for row in metrics) else "rollouts", fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#dfe2e7", linewidth=0.6)
        axes.tick_params(labelsize=8)
        axes.set_frame_on(False)
    for axes in panels[len(shown) :]:
        axes.axis("off")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def card(record: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> str:
    """Return a model card: what was trained on what, how, and what came of it."""
    first, last = metrics[0], metrics[-1]
    names = [name for name in ("reward", "gold", "loss", "kl", "entropy", "length", "finished") if name in last]
    table = "".join(f"| {name.replace('_', ' ')} | {first[name]:.4g} | {last[name]:.4g} |\n" for name in names)
    settings = "\n".join(f"- {name}: {value}" for name, value in record["settings"].items())
    how, measured = _ABOUT[record["method"]]
    return f"""---
library_name: {"peft" if record["settings"]["tune"] != "all" else "transformers"}
base_model: {hub_name(record["lm"])}
tags: [{record["method"]}, midcourse]
---

# A policy trained by {how}

`{record["lm"]}` (fingerprint `{record["lm_fingerprint"]}`), trained by midcourse on {_learned_from(record)}, prompts
rendered with the template `{record["template"]}`.

## Measured

{measured}

| | first step | last step |
|---|---:|---:|
{table}
![Measurements by responses learned from](curves.png)

{how_to_load(record["lm"], whole=record["settings"]["tune"] == "all")}
## Settings

{settings}
"""


_ABOUT = {
    "ppo": (
        "proximal policy optimisation",
        "On the responses of the first step, which the reference wrote, and of the last. KL is exact, in nats per\n"
        "response; rewards are those that were learned from, so gold and KL say more.",
    ),
    "figa": (
        "weighted likelihood of edits",
        "On the edits of the first step and of the last, as they were learned from. KL is exact, in nats per token of\n"
        "the edited texts.",
    ),
}


def _learned_from(record: dict[str, Any]) -> str:
    if record["method"] == "figa":
        return f"{record['edits']} edits (fingerprint `{record['data_fingerprint']}`)"
    paid = " and ".join(f"`{name}`" for name in (record["reward"], record["end_reward"]) if name)
    return (
        f"{record['settings']['rollouts']} responses of its own to {record['prompts']} prompts (fingerprint "
        f"`{record['prompts_fingerprint']}`), their tokens paid by {paid}"
    )
