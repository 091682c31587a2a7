"""The tables and the plot of the study of PPO, from results/TASK.json alone.

python -m studies.ppo.tables [--check]        fills README.md and draws ppo.png; --check exits 1 where a table differs
"""

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from midcourse.evaluate.intervals import mean_interval
from midcourse.files import whole_file
from studies.tables import Table, load_each, main, markdown, number, with_interval

HERE = Path(__file__).parent
COMMAND = "python -m studies.ppo.run --data DIR"
TASKS = ("sentiment", "detox", "plain")
SPARSE = "pairs, at the end"
SMOOTHED = 3  # steps that a curve's point is the mean of
COLLAPSED = 0.5  # a run has collapsed that ends this share below what it had gained at best


def results_of(root: Path) -> dict[str, dict[str, Any]]:
    """By task, what was found so far."""
    return load_each(root, TASKS, COMMAND)


def smoothed(curve: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return (rollouts, the mean gold of the steps until there) of a run."""
    golds = [row["gold"] for row in curve]
    return [
        (row["rollouts"], fmean(golds[max(0, n + 1 - SMOOTHED) : n + 1]))
        for n, row in enumerate(curve)
        if n + 1 >= SMOOTHED
    ]


def rollouts_to(curve: list[dict[str, Any]], gold: float) -> int | None:
    """Return after how many rollouts a run's gold was first reached; None if it never was."""
    return next((rollouts for rollouts, found in smoothed(curve) if found >= gold), None)


def arms(root: Path) -> str:
    """A line for every task and arm: means over seeds, and the difference from the reward at the end over prompts."""
    lines = []
    for name, found in results_of(root).items():
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in found["rows"]:
            rows.setdefault(row["arm"], []).append(row)
        sparse = rows.get(SPARSE, [])
        wanted = [max(gold for _, gold in smoothed(row["curve"])) for row in sparse]
        for title, runs in rows.items():
            against = ""
            if sparse and title != SPARSE:
                pairs = [(a, b) for a in runs for b in sparse if a["seed"] == b["seed"]]
                differences = np.mean([np.array(a["golds"]) - np.array(b["golds"]) for a, b in pairs], axis=0)
                against = with_interval(*mean_interval(differences), 3)
            curves = [row["curve"] for row in runs if "curve" in row]
            reached = [rollouts_to(c, w) for c, w in zip(curves, wanted, strict=False)]
            lines.append(
                [
                    name,
                    title,
                    str(len(runs)),
                    number(fmean(row["gold"] for row in runs), 3),
                    number(max(r["gold"] for r in runs) - min(r["gold"] for r in runs), 3) if len(runs) > 1 else "",
                    number(fmean(row["kl"] for row in runs), 1),
                    against,
                    ", ".join("never" if one is None else str(one) for one in reached),
                    f"{sum(map(collapsed, curves))} of {len(curves)}" if curves else "",
                ]
            )
    header = [
        "task", "arm", "seeds", "gold", "between seeds", "KL (nats)", "gold less that of pairs, at the end [95%]",
        "rollouts to its best", "collapsed",
    ]  # fmt: skip
    return markdown(header, lines)


def collapsed(curve: list[dict[str, Any]]) -> bool:
    """Return whether a run lost more than `COLLAPSED` of the gold that it had gained over its first steps."""
    golds = [gold for _, gold in smoothed(curve)]
    return max(golds) - golds[-1] > COLLAPSED * (max(golds) - golds[0])


def plot(root: Path) -> None:
    """Draw gold by rollouts, and by exact KL, of every arm and task."""
    found = results_of(root)
    if not found:
        return
    figure = Figure(figsize=(11, 3.8 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False)
    for (name, task), (left, right) in zip(found.items(), panels, strict=True):
        runs = [row for row in task["rows"] if "curve" in row]
        titles = list(dict.fromkeys(row["arm"] for row in runs))
        for number_of, title in enumerate(titles):
            curves = [smoothed(row["curve"]) for row in runs if row["arm"] == title]
            kls = [[one["kl"] for one in row["curve"]][SMOOTHED - 1 :] for row in runs if row["arm"] == title]
            golds = np.mean([[gold for _, gold in curve] for curve in curves], axis=0)
            colour = f"C{number_of}"
            left.plot([rollouts for rollouts, _ in curves[0]], golds, color=colour, label=title, linewidth=1.4)
            right.plot(np.mean(kls, axis=0), golds, color=colour, linewidth=1.4)
        left.set(title=name, xlabel="rollouts", ylabel="gold")
        right.set(xlabel="KL to the reference (nats per response)")
        left.legend(frameon=False, fontsize=7)
        for axes in (left, right):
            axes.grid(color="#dfe2e7", linewidth=0.6)
            axes.set_frame_on(False)
    with whole_file(root / "ppo.png") as temporary:
        figure.savefig(temporary, dpi=130, format="png")


TABLES: dict[str, Table] = {"ppo": arms}

if __name__ == "__main__":
    if sys.argv[1:] == []:
        plot(HERE)
    sys.exit(main(sys.argv[1:], HERE, TABLES))
