"""The tables of the study of edits, from results/ alone.

python -m studies.edits.tables [--check]        fills README.md; --check exits 1 where a table differs
"""

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.tables import Table, load, load_each, main, markdown, number, with_interval

HERE = Path(__file__).parent
COMMAND = "python -m studies.edits.run --data DIR"
SETS = ("paradetox", "defacto", "lamp", "jfleg")


def by_arm(root: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the rows of every set and arm, a seed each."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, results in load_each(root, SETS, COMMAND).items():
        for row in results["rows"]:
            found.setdefault((name, row["arm"]), []).append(row)
    return found


def measured(root: Path) -> str:
    """A line for every set and arm: the mean over seeds, and the first seed's interval over what edits belong to."""
    lines = []
    for (name, arm), rows in by_arm(root).items():
        first, means = rows[0], [row["mean_reward"] for row in rows]
        equal = [one["equal_length"] for one in means if one["equal_length"]]
        untouched = [row["untouched"]["accuracy"] for row in rows]
        errors = [row["calibration_error"] for row in rows if "calibration_error" in row]
        lines.append(
            [
                name,
                arm,
                str(len(rows)),
                f"{number(fmean(row['auroc'] for row in rows), 3)} "
                f"({with_interval(first['auroc'], first['auroc_interval'], 3)})",
                number(fmean(one["accuracy"] for one in means), 3),
                f"{number(fmean(one['accuracy'] for one in equal), 3)} of {equal[0]['pairs']}" if equal else "",
                number(fmean(row["shorter"] for row in rows)),
                f"{number(fmean(untouched))} ({first['untouched']['set']})",
                number(fmean(errors), 3) if errors else "",
            ]
        )
    header = [
        "set", "reward of tokens", "seeds", "token AUROC: mean (first seed [95%])", "edited above original",
        "of equal length", "the shorter is right", "pairs no edit touched", "calibration error",
    ]  # fmt: skip
    return markdown(header, lines)


def pilot(root: Path) -> str:
    """Return what the pilot found on ParaDetox's validation edits."""
    tried = load(root, "results/pilot.json", COMMAND)["auroc"]
    lines = [[layer, *(number(mine[layer], 3) for mine in tried.values())] for layer in next(iter(tried.values()))]
    return markdown(["layer", *(f"{head} head" for head in tried)], lines)


TABLES: dict[str, Table] = {"edits": measured, "edits-pilot": pilot}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], HERE, TABLES))
