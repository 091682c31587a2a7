"""The objectives study's tables and plot, from results/SET.json alone.

python -m studies.objectives.tables [--check]        fills README.md; --check exits 1 where a table differs
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from midcourse.evaluate.accuracy import SHARES
from midcourse.files import whole_file
from studies.objectives.grid import BACKBONES, GUIDED, OBJECTIVES, SETS, TIMED, TRUNK, plan
from studies.steering import KLS
from studies.tables import (
    Table,
    TablesError,
    load,
    load_each,
    main,
    markdown,
    number,
    read_off,
    with_interval,
    with_paradetox,
)

HERE = Path(__file__).parent
COMMAND = "python -m studies.objectives.run --data DIR"
BASELINES = "results/baselines.json"
SHARE_NAMES = [f"{share:.0%}" for share in SHARES]
COMPARED = (TRUNK, "20 layers, head", "10 layers, last:2")
TITLES = {"sentiment": "sentiment (own samples)", "paradetox": "ParaDetox", "hh": "HH, all four sets"}


def told(table: str, found: dict[str, dict[str, Any]]) -> str:
    """Return a table of the sets found, with a line on how ParaDetox's rows were made if they are there."""
    return with_paradetox(table, found["paradetox"]) if "paradetox" in found else table


def results_of(root: Path) -> dict[str, dict[str, Any]]:
    """By set, what was found so far."""
    return load_each(root, SETS, COMMAND)


def baselines_of(root: Path) -> dict[str, Any]:
    """Return the baselines of every set, and the rewards on HH's parts."""
    return load(root, BASELINES, "python -m studies.objectives.baselines --data DIR")


def baselines(root: Path) -> str:
    """A bag of words and length alone, and what splitting HH brings."""
    found = baselines_of(root)
    lines = [line for row in found["baselines"] for line in baseline_lines(row)]
    for row in found["parts"]:
        words = [row["set"], str(row["train_pairs"]), row["model"], row["objective"]]
        lines.append([*words, *map(_cell, row["shares"])])
    return markdown(["set", "pairs", "model", "objective", *SHARE_NAMES], lines)


def baseline_lines(row: dict[str, Any]) -> list[list[str]]:
    """A set's two lines: what a bag of words makes of each share, and what length alone makes of the whole."""
    name = " ".join([row["set"], *([row["made"]] if "made" in row else [])])
    of, length = [name, str(row["train_pairs"] or "")], row["length"]
    return [
        [*of, "bag of words", "", *map(_cell, row["bag_of_words"])],
        [*of, f"length: {length['prefers']}", "", *[""] * (len(SHARES) - 1), _cell(length)],
    ]


def _cell(found: dict[str, Any]) -> str:
    return with_interval(found["accuracy"], found["interval"])


def prefixes(root: Path) -> str:
    """Trained on prefixes and on whole responses: accuracy by share of the response, beside the baselines."""
    found, base = results_of(root), baselines_of(root)
    lines = []
    for name, results in found.items():
        for (backbone, objective), group in grouped(results["rows"]):
            if backbone in COMPARED and objective in ("prefix", "sequence"):
                lines.append([name, str(group[0]["train_examples"]), backbone, objective, *_by_share(group)])
        made = name, results.get("paradetox")
        same = [row for row in base["baselines"] if (row["set"], row.get("made")) == made]
        lines += [line for row in same for line in baseline_lines(row)]
    return told(markdown(["set", "pairs", "model", "objective", *SHARE_NAMES], lines), found)


def _by_share(group: Sequence[dict[str, Any]]) -> list[str]:
    """The mean over seeds at each share; of a lone run with its interval."""
    if len(group) == 1:
        return [_cell(share) for share in group[0]["shares"]]
    return [number(fmean(row["shares"][i]["accuracy"] for row in group)) for i in range(len(SHARES))]


def by_objective(root: Path) -> str:
    """Guides trained on prefixes and on whole responses, where a backbone has both: gold at equal guidance KL."""
    found = results_of(root)
    if not found:
        raise TablesError(f"{root / 'results'} is missing; make it with: {COMMAND}")
    rows = [row for results in found.values() for row in results["guided"]]
    kinds = {(row["set"], row["backbone"], row["objective"]): row for row in rows}
    lines = [
        [*kind, str(row["prompts"]), number(row["weights"][0]["gold"]), *read_off(row["at_kl"])]
        for kind, row in sorted(kinds.items(), key=lambda item: (SETS.index(item[0][0]), item[0][1:]))
        if kind[2] in ("prefix", "sequence") and all((*kind[:2], both) in kinds for both in ("prefix", "sequence"))
    ]
    gold = [f"gold at {kl:g} nats [95%]" for kl in KLS]
    table = markdown(["set", "guide", "objective", "prompts", "gold, plain", *gold], lines)
    return told(table, found) if any(line[0] == "paradetox" for line in lines) else table


def accuracy(root: Path) -> str:
    """Every set, backbone and objective: accuracy by share of the response, honesty and cost; means over the seeds."""
    lines, found = [], results_of(root)
    for name, results in found.items():
        for (backbone, objective), group in grouped(results["rows"]):
            means = [fmean(row["shares"][i]["accuracy"] for row in group) for i in range(len(SHARES))]
            errors = [row["ece"]["1.0"]["ece"] for row in group if row["ece"] and "1.0" in row["ece"]]
            minutes = [row["minutes"] for row in group if row["minutes"]]
            lines.append(
                [
                    name,
                    backbone,
                    objective,
                    str(len(group)),
                    str(group[0]["train_examples"]),
                    *map(number, means[:-1]),
                    with_interval(means[-1], group[0]["shares"][-1]["interval"]),
                    number(fmean(errors), 3) if errors else "",
                    number(max(minutes), 1) if minutes else "",
                    f"{group[0]['parameters']:,}",
                ]
            )
    header = [
        "set",
        "backbone",
        "objective",
        "seeds",
        "trained on",
        *SHARE_NAMES,
        "ECE",
        "minutes",
        "parameters trained",
    ]
    return told(markdown(header, lines), found)


def grids(root: Path) -> str:
    """How much of each set's grid was trained, and what that took."""
    lines = []
    for name, results in results_of(root).items():
        hours = sum(row["run_seconds"] for row in results["rows"]) / 3600
        lines.append([name, f"{len(results['rows'])} of {len(plan(name))}", number(hours, 1)])
    return markdown(["set", "rewards trained", "core-hours"], lines)


def best(root: Path) -> str:
    """Of every set and backbone the preferred objective on the test split."""
    lines, of_sets = [], results_of(root)
    for name, results in of_sets.items():
        chosen = preferred(results["rows"])
        trunk = at_end(chosen[TRUNK][1]) if TRUNK in chosen else None
        for backbone, (objective, group) in sorted(chosen.items(), key=lambda kind: -at_end(kind[1][1])):
            half, end = group[0]["shares"][2], group[0]["shares"][-1]
            found = [with_interval(share["accuracy"], share["interval"]) for share in (half, end)]
            lines.append([name, backbone, objective, *found, "" if trunk is None else f"{at_end(group) - trunk:+.2f}"])
    header = ["set", "backbone", "objective", "at 50%, first seed", "at 100%, first seed", "less trunk's, all seeds"]
    return told(markdown(header, lines), of_sets)


def backbones(root: Path) -> str:
    """A line for each backbone: accuracy at 100% of its preferred objective, what guiding by it gives, and its time."""
    found = results_of(root)
    if not found:
        raise TablesError(f"{root / 'results'} is missing; make it with: {COMMAND}")
    chosen = {name: preferred(results["rows"]) for name, results in found.items()}
    guides = {name: found[name]["guided"] for name in GUIDED if name in found}
    timed = [row for results in found.values() for row in results["timed"]]
    lines = []
    for backbone in (backbone.name for backbone in BACKBONES):
        line = [backbone]
        for kinds in chosen.values():
            line.append(f"{number(at_end(kinds[backbone][1]))} {kinds[backbone][0]}" if backbone in kinds else "")
        for rows in guides.values():
            golds = [(row["at_kl"][1]["gold"], row["objective"]) for row in rows if row["backbone"] == backbone]
            gold, objective = max((one for one in golds if one[0] is not None), default=(None, ""))
            line.append(f"{number(gold)} {objective}".strip())
        line += [number(time_of(timed, backbone, size)) for size in TIMED]
        lines.append(line)
    header = [
        "reward",
        *(f"{name}: accuracy" for name in chosen),
        *(f"{name}: gold at {KLS[1]:g} nats" for name in guides),
    ]
    return told(markdown([*header, *(f"times plain, batch {size}" for size in TIMED)], lines), found)


def preferred(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """By backbone, the objective that held-out pairs prefer at 100%, with its rows."""
    kinds = [(*kind, group) for kind, group in grouped(rows)]
    return {backbone: max(some, key=held_out)[1:] for backbone, some in groupby(kinds, key=lambda kind: kind[0])}


def time_of(rows: Sequence[dict[str, Any]], backbone: str, size: int) -> float | None:
    """A guided token's time, times plain: the mean of the sets where it was timed; None where in none."""
    found = [row["ratio"][str(size)]["mean"] for row in rows if row["backbone"] == backbone]
    return fmean(found) if found else None


def at_end(group: Sequence[dict[str, Any]]) -> float:
    """Test accuracy at 100%, the mean over seeds."""
    return fmean(row["shares"][-1]["accuracy"] for row in group)


def held_out(kind: tuple[str, str, list[dict[str, Any]]]) -> tuple[float, float]:
    """Held-out accuracy at 100%, and at 50% where that is a tie; means over seeds."""
    return fmean(row["held_out"]["1.0"] for row in kind[2]), fmean(row["held_out"]["0.5"] for row in kind[2])


def guided(root: Path) -> str:
    """Gold at equal guidance KL, and the time of a guided token."""
    lines, found = [], results_of(root)
    for name, results in found.items():
        times = {row["backbone"]: row["ratio"] for row in results["timed"]}
        for row in results["guided"]:
            ratio = times.get(row["backbone"], {})
            taken = [ratio[str(size)] for size in TIMED] if ratio else []
            cost = [with_interval(one["mean"], one["interval"]) for one in taken] or [""] * len(TIMED)
            lines.append(
                [
                    name,
                    row["backbone"],
                    row["objective"],
                    number(row["weights"][0]["gold"]),
                    *read_off(row["at_kl"]),
                    *cost,
                ]
            )
    gold = [f"gold at {kl:g} nats [95%]" for kl in KLS]
    times_of = [f"times plain, batch {size} [95%]" for size in TIMED]
    return told(markdown(["set", "backbone", "objective", "gold, plain", *gold, *times_of], lines), found)


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy at half and at all of the response, gold by guidance KL of the guides, and what a guided token takes."""
    figure = Figure(figsize=(15, 12), layout="constrained")
    *heat, below = figure.subplots(3, len(SETS), gridspec_kw={"height_ratios": [1, 1, 1.1]})
    for axes, share in zip(heat, (2, len(SHARES) - 1), strict=True):
        for axis, name in zip(axes, SETS, strict=True):
            draw_accuracy(axis, found.get(name, {}).get("rows", []), share)
            axis.set_title(f"{TITLES[name]}: accuracy at {SHARES[share]:.0%}")
            if axis is not axes[0]:
                axis.set_yticklabels([])
    for axis, name in zip(below, GUIDED, strict=False):
        for row in found.get(name, {}).get("guided", []):
            kls, gold = zip(*((w["guidance_kl"], w["gold"]) for w in row["weights"]), strict=True)
            line = {"linewidth": 2.5, "color": "black"} if row["backbone"] == TRUNK else {}
            line["linestyle"] = "-" if row["objective"] == "prefix" else "--"
            axis.plot(kls, gold, marker="o", markersize=3, label=f"{row['backbone']}: {row['objective']}", **line)
        axis.set(title=f"{TITLES[name]}: guided", xlabel="guidance KL, nats", ylabel="gold, test openings")
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    draw_times(below[-1], [row for results in found.values() for row in results["timed"]])
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_accuracy(axis: Axes, rows: Sequence[dict[str, Any]], share: int) -> None:
    """A cell for every backbone and objective: test accuracy at one share of the response, the mean over seeds."""
    names = [backbone.name for backbone in BACKBONES]
    cells = np.full((len(names), len(OBJECTIVES)), np.nan)
    for (backbone, objective), group in grouped(rows):
        mean = fmean(row["shares"][share]["accuracy"] for row in group)
        place = names.index(backbone), list(OBJECTIVES).index(objective)
        cells[place] = mean
        axis.text(place[1], place[0], number(mean), ha="center", va="center", fontsize=8)
    axis.imshow(cells, cmap="RdYlGn", vmin=0.2, vmax=1.0, aspect="auto", alpha=0.75)
    axis.set_xticks(range(len(OBJECTIVES)), list(OBJECTIVES), rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)


def draw_times(axis: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Time of a guided token by backbone, times plain."""
    names = sorted({row["backbone"] for row in rows}, key=lambda name: -(time_of(rows, name, TIMED[0]) or 0))
    for offset, size in zip((0.2, -0.2), TIMED, strict=True):
        times = [time_of(rows, name, size) for name in names]
        axis.barh([place + offset for place in range(len(names))], times, height=0.38, label=f"batch {size}")
    axis.axvline(1.0, color="#555", linewidth=1)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(title="a guided token", xlabel="time, times plain")
    axis.legend(frameon=False, fontsize=8)


def grouped(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], list[dict[str, Any]]]]:
    """Rows by backbone and objective: the seeds of one kind of reward."""
    key = lambda row: (row["backbone"], row["objective"])  # noqa: E731
    for kind, group in groupby(sorted(rows, key=key), key=key):
        yield kind, list(group)


TABLES: dict[str, Table] = {
    "grids": grids,
    "backbones": backbones,
    "best": best,
    "accuracy": accuracy,
    "baselines": baselines,
    "guided": guided,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], HERE, TABLES))
