"""What `midcourse detect evaluate` found, as tables and as a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from midcourse.show.page import write_page
from midcourse.show.plots import scatter


class Table(NamedTuple):
    """A table of words."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables_of(figures: Mapping[str, Any]) -> list[Table]:
    """Return every table there is something for.

    Args:
        figures: of `cells`, `realised`, `found`, `lengths`, `attacks`, `auroc` the rows, and the rate `fpr`; see
            `midcourse.detect.evaluate`. Of `texts` the detector learned from `learned`.
    """
    rate = f"{figures['fpr']:.2%}"
    auroc = figures["auroc"]
    scores = [name for name in (auroc[0] if auroc else {}) if name not in ("domain", "model")]
    made = [
        _separations("Machine texts told from human ones [95%]", ("domain", "model"), figures["cells"]),
        Table(
            "Learned from",
            ("texts", "that the detector learned from; figures flatter it"),
            [(str(figures["texts"]), str(figures["learned"]))] if figures["learned"] else [],
        ),
        _verdicts(f"Human texts at the detector's own thresholds for {rate}", ("domain",), figures["realised"]),
        _verdicts("Machine texts at the same thresholds", ("domain", "model"), figures["found"]),
        _separations("Cut to so many words [95%]", ("words",), figures["lengths"]),
        Table(
            f"Machine texts found at {rate}, before and after a change",
            ("change", "texts", "before", "after", "kept"),
            [
                (
                    row["attack"],
                    str(row["texts"]),
                    f"{row['before']:.1%}",
                    f"{row['after']:.1%}",
                    "n/a" if row["kept"] is None else f"{row['kept']:.0%}",
                )
                for row in figures["attacks"]
            ],
        ),
        Table(
            "AUROC on the same texts, of the detector and of other scores",
            ("score", *(f"{row['domain']} {row['model']}".strip() for row in auroc)),
            [(name, *(f"{row[name]:.3f}" for row in auroc)) for name in scores],
        ),
    ]
    return [table for table in made if table.rows and len(table.columns) > 1]


def write_report(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the tables and the reliability of the probabilities to a page."""
    bins = figures["reliability"]["bins"] or []
    write_page(
        path,
        "detect/report.html.jinja",
        title="midcourse detect evaluate",
        tables=tables_of(figures),
        reliability=scatter(
            [(row["probability"], row["share"]) for row in bins],
            "probability that a machine wrote a text",
            "share of such texts that are machines'",
            "How often texts of a probability are machines'",
        ),
        error=figures["reliability"]["error"],
    )


def _separations(title: str, of: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of how well texts are told apart, its first columns the fields that say which texts."""
    return Table(
        title,
        (*of, "texts", "AUROC", "found at 1% flagged", "found at 5% flagged"),
        [(*(str(row[name]) for name in of), f"{row['machines']} + {row['humans']}", *_separation(row)) for row in rows],
    )


def _verdicts(title: str, of: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of what texts are called, its first columns the fields that say which texts."""
    return Table(
        title,
        (*of, "texts", "called a machine's [95%]", "cannot tell", "called a person's"),
        [
            (
                *(row[name] for name in of),
                str(row["texts"]),
                _ranged(row["machine"], row["interval"]),
                f"{row['cannot tell']:.1%}",
                f"{row['human']:.1%}",
            )
            for row in rows
        ],
    )


def _separation(row: Mapping[str, Any]) -> Sequence[str]:
    found = [
        _ranged(row[name], row[f"{name}_interval"]) if row[f"resolves_{rate}"] else "too few human texts"
        for rate, name in ((1, "tpr_at_1"), (5, "tpr_at_5"))
    ]
    if row["auroc_interval"] is None:
        return f"{row['auroc']:.3f} (too few for an interval)", *found
    low, high = row["auroc_interval"]
    return f"{row['auroc']:.3f} [{low:.3f}, {high:.3f}]", *found


def _ranged(share: float, interval: Sequence[float] | None) -> str:
    if interval is None:
        return f"{share:.1%}"
    return f"{share:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"
