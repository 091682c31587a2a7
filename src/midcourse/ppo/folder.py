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
from transformers import PreTrainedTokenizerBase

from midcourse.files import as_json, publish_folder, whole_file, write_bytes, write_text
from midcourse.lm.load import quiet_transformers
from midcourse.lm.policy import RECORD
from midcourse.ppo.settings import PPOError
from midcourse.ppo.training import Run, State
from midcourse.rewards.contract import Score
from midcourse.show.page import cells_of, write_page
from midcourse.show.tokens import Colouring, by_change, prompt_text, tokens_of_score
from midcourse.train.folder import checkpoints, drop_run, seal

METRICS = "metrics.jsonl"
WEIGHTS, OPTIMIZER, STATE = "policy.safetensors", "optimizer.safetensors", "state.json"


def save_checkpoint(run: Run, out: Path) -> None:
    """Write a checkpoint, whole or not at all, and drop older ones; PPOError if it cannot be written."""
    name = f"checkpoint-{run.state.step}"
    work = Path(tempfile.mkdtemp(prefix=".saving-", dir=out))
    try:
        weights = run.policy.trained()
        save_file({key: one.detach().contiguous().cpu() for key, one in weights.items()}, work / WEIGHTS)
        save_file(_moments(run), work / OPTIMIZER)
        write_text(work / STATE, as_json(vars(run.state)))
        seal(work)
        publish_folder(work, out / name, replace=True)
    except Exception as error:  # safetensors has an error of its own for a full disk
        whole = checkpoints(out)
        state = f"{whole[-1].name} is whole" if whole else "there is none before it"
        raise PPOError(f"{name} cannot be written to {out} ({error}); {state}: make room, then add --resume") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for older in checkpoints(out)[:-1]:
        shutil.rmtree(older)


def load_checkpoint(run: Run, checkpoint: Path) -> None:
    """Put a run where it was when the checkpoint was written, to the last bit."""
    weights, stored = run.policy.trained(), load_file(checkpoint / WEIGHTS)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(stored[name])
    moments = load_file(checkpoint / OPTIMIZER)
    names = {id(weight): name for name, weight in weights.items()}
    for group in run.optimizer.param_groups:
        for weight in group["params"]:
            own = names[id(weight)]
            kept = {key.rpartition(" ")[2]: one for key, one in moments.items() if key.rpartition(" ")[0] == own}
            run.optimizer.state[weight] = {
                key: one if key == "step" else one.to(weight.device, weight.dtype) for key, one in kept.items()
            }
    run.state = State(**json.loads((checkpoint / STATE).read_text()))


def _moments(run: Run) -> dict[str, Tensor]:
    names = {id(weight): name for name, weight in run.policy.trained().items()}
    return {
        f"{names[id(weight)]} {key}": one.detach().contiguous().cpu()
        for weight, kept in run.optimizer.state.items()
        for key, one in kept.items()
    }


def write_metrics(out: Path, state: State) -> None:
    """Write the metrics of all steps so far."""
    write_text(out / METRICS, "".join(as_json(row) + "\n" for row in state.metrics))


def add_metrics(out: Path, row: dict[str, Any]) -> None:
    """Append a step's metrics."""
    with (out / METRICS).open("a") as file:
        file.write(as_json(row) + "\n")


def finish(run: Run, out: Path, record: dict[str, Any]) -> None:
    """Turn a run's folder into a policy, its record last; then drop what only resuming needs."""
    work = Path(tempfile.mkdtemp(prefix=".saving-", dir=out))
    try:
        model = run.policy.model
        if isinstance(model, PeftModel):
            model.save_pretrained(str(work), save_embedding_layers=False)
            (work / "README.md").unlink(missing_ok=True)  # PEFT's own card
        else:
            with quiet_transformers():
                run.policy.lm.model.save_pretrained(work)
            run.policy.lm.tokenizer.save_pretrained(work)
        for path in sorted(work.iterdir()):
            write_bytes(out / path.name, path.read_bytes())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    plot_curves(run.state.metrics, out / "curves.png")
    write_text(out / "README.md", card(record, run.state.metrics))
    write_text(out / RECORD, as_json(record, indent=2) + "\n")
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
        axes.set_xlabel("rollouts", fontsize=8)
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
    names = [name for name in ("reward", "gold", "kl", "entropy", "length", "finished") if name in last]
    table = "".join(f"| {name.replace('_', ' ')} | {first[name]:.4g} | {last[name]:.4g} |\n" for name in names)
    settings = "\n".join(f"- {name}: {value}" for name, value in record["settings"].items())
    paid = " and ".join(filter(None, (record["reward"], record["end_reward"])))
    return f"""---
library_name: {"peft" if record["settings"]["tune"] != "all" else "transformers"}
base_model: {record["lm"]}
tags: [ppo, midcourse]
---

# A policy trained by proximal policy optimisation

`{record["lm"]}` (fingerprint `{record["lm_fingerprint"]}`), trained by midcourse on {record["settings"]["rollouts"]}
responses of its own to {record["prompts"]} prompts (fingerprint `{record["prompts_fingerprint"]}`), rendered with the
template `{record["template"]}`. Tokens were paid by `{paid}`.

## Measured

On the responses of the first step, which the reference wrote, and of the last. KL is exact, in nats per response;
rewards are those that were learned from, so gold and KL say more.

| | first step | last step |
|---|---:|---:|
{table}
![Measurements by rollouts](curves.png)

## Settings

{settings}
"""
