"""A comparison's summary as tables: the same cells for table.md, the report and the terminal, and a wide table.csv."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from midcourse.compare.report.figures import COST_FIGURES, DIVERSITY_FIGURES, FIGURES, TEXT_FIGURES, WINS, Figure
from midcourse.show.tokens import number
from midcourse.terminal import CONTROLS

AXIS_NAMES = {"guidance_kl": "guidance KL", "total_kl": "total KL"}
# The bound is marked wherever a KL is shown.
BOUND = "\N{LESS-THAN OR EQUAL TO}"
NOTHING, NOT_REACHED = "", "not reached"

Found = Mapping[str, Any]


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: the figure.
        interval: its 95 % interval, if it has one.
        value: to sort by; None if there is none.
        note: what the report adds, such as the difference to the reference method.
    """

    text: str
    interval: str = ""
    value: float | None = None
    note: str = ""


class Table(NamedTuple):
    """A table; its first column, or first columns, hold words and the others figures."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: int = 1


# Cells


def estimate_cell(
    estimate: Found | None, digits: int = 2, *, sign: bool = False, mark: str = "", note: str = ""
) -> Cell:
    """Return a mean with its interval."""
    if not estimate or estimate["mean"] is None:
        return Cell(NOTHING)
    return Cell(
        f"{mark}{number(estimate['mean'], digits, sign)}", interval(estimate, digits, sign), estimate["mean"], note
    )


def interval(estimate: Found, digits: int = 2, sign: bool = False) -> str:
    """Return a 95 % interval in brackets; "" if there is none."""
    ends = estimate["interval"]
    return f"[{', '.join(number(end, digits, sign) for end in ends)}]" if ends else ""


def p_cell(estimate: Found | None) -> Cell:
    """Return a corrected p-value."""
    p = estimate.get("p_corrected") if estimate else None
    return Cell(NOTHING) if p is None else Cell("<0.001" if p < 0.001 else f"{p:.3f}", value=p)


def _difference_note(estimate: Found | None, digits: int) -> str:
    gap = estimate.get("difference") if estimate else None
    if not gap:
        return ""
    p = p_cell(gap).text
    shown = f"\N{GREEK CAPITAL LETTER DELTA} {number(gap['mean'], digits, sign=True)}"
    return f"{shown}, p {p}" if p else shown


# Tables


def matched_tables(summary: Found, judge: str) -> Iterator[Table]:
    """Yield a judge's scores of every method at equal KL, the headline of a comparison."""
    for entries in _by_axis(summary, judge):
        axis, names = AXIS_NAMES[entries[0]["axis"]], list(entries[0]["scores"])
        bounds = {curve["name"] for curve in summary["curves"] if curve["kl_is_bound"]}
        yield Table(
            _matched_title(entries[0]),
            f"Each method's mean score at a mean {axis}, on the straight line between its two nearest strengths. "
            f"'{NOT_REACHED}': outside of what the method's strengths reach; nothing is extrapolated."
            + (f" {BOUND}: the method's KL is a bound." if bounds & set(names) else ""),
            ["method", *(_place(entry) for entry in entries)],
            [
                [
                    Cell(f"{name} {BOUND}" if name in bounds else name),
                    *(_read_off(entry["scores"][name]) for entry in entries),
                ]
                for name in names
            ],
        )


def difference_tables(summary: Found, judge: str) -> Iterator[Table]:
    """Yield the differences of every two methods at equal KL."""
    for entries in _by_axis(summary, judge):
        rows = [
            [
                Cell(gap["one"]),
                Cell(gap["other"]),
                Cell(_place(entry), value=entry["kl"]),
                estimate_cell(gap, sign=True),
                p_cell(gap),
            ]
            for entry in entries
            for gap in entry["differences"]
        ]
        if rows:
            yield Table(
                f"{_matched_title(entries[0])}: paired differences",
                "Score of the method less that of the other one, where both reach the KL; p corrected by Holm's method "
                "for all pairs at that KL.",
                ["method", "less", "at", "difference", "p"],
                rows,
                words=2,
            )


def _by_axis(summary: Found, judge: str) -> Iterator[list[Found]]:
    for greedy in (False, True):
        for axis in AXIS_NAMES:
            entries = [e for e in summary["matched"] if (e["judge"], e["greedy"], e["axis"]) == (judge, greedy, axis)]
            if entries:
                yield entries


def _matched_title(entry: Found) -> str:
    return f"{entry['judge']} at equal {AXIS_NAMES[entry['axis']]}{', greedy choices' if entry['greedy'] else ''}"


def _place(entry: Found) -> str:
    return f"{entry['kl']:.3g} nats" + (f" ({entry['why']})" if entry["why"] else "")


def _read_off(estimate: Found | None) -> Cell:
    return estimate_cell(estimate) if estimate else Cell(NOT_REACHED)


def judge_table(summary: Found, judge: str) -> Table:
    """Return what a judge says of every arm."""
    about = summary["judges"][judge]
    notes = [f"Differences are to {summary['reference']}, paired by prompt; p corrected by Holm's method."]
    if about["accuracy"] is not None:
        notes.insert(0, f"The judge's own pair accuracy is {about['accuracy']:.2f}.")
    if slope := about["per_token_of_length"]:
        each = f"{number(slope['mean'], 4, sign=True)} {interval(slope, 4, sign=True)}".strip()
        notes.append(f"Length-controlled: at the mean length, one more token being worth {each}.")
    columns = ["arm", "score", "length-controlled", "difference", "p", *(f"wins against {x}" for x in WINS.values())]
    columns += ["verdicts", "ties", "unread"]
    rows = []
    for arm, figures in summary["arms"].items():
        said = figures["judges"][judge]
        gap = (said["score"] or {}).get("difference")
        cells = [estimate_cell(said["score"]), estimate_cell(said["length_controlled"]), estimate_cell(gap, sign=True)]
        wins = [_win_cell(said[name]) for name in WINS]
        rows.append([Cell(arm), *cells, p_cell(gap), *wins, *_verdict_cells(said)])
    return _without_empty_columns(Table(f"{judge}: every arm", " ".join(notes), columns, rows))


def _win_cell(won: Found | None) -> Cell:
    p = p_cell(won).text
    return estimate_cell(won, note=f"p {p}" if p else "")


def _verdict_cells(said: Found) -> list[Cell]:
    """Return how many verdicts an LM judge gave on an arm, whatever it was compared with."""
    wins = [said[name] for name in WINS if said[name]]
    counts = [sum(won[name] for won in wins) for name in ("verdicts", "ties", "unparsed")]
    return [Cell(str(number), value=number) if counts[0] else Cell(NOTHING) for number in counts]


def text_table(summary: Found) -> Table:
    """Return how far every arm is from the language model, and what its texts are like."""
    note = (
        "KL in nats per response; perplexity under the language model; loops: the share of responses that end by "
        "repeating one block of words."
    )
    return _figures_table(summary, "Distance and text", note, TEXT_FIGURES)


def diversity_table(summary: Found) -> Table:
    """Return how much the texts of every arm repeat themselves and each other."""
    note = (
        "rep-n is the share of a response's runs of n words that it had before; diversity is ARGS's product of "
        "1 - rep-n over n = 2, 3, 4; distinct-2 is that of different word pairs per word, of all samples of a prompt."
    )
    return _figures_table(summary, "Diversity", note, DIVERSITY_FIGURES)


def cost_table(summary: Found) -> Table:
    """Return what every arm costs."""
    note = (
        "Passes are token positions computed per emitted token. FLOPs are estimated: two per parameter and position, "
        "attention's own left out. The responses of a batch share its passes and its time: intervals of those are over "
        "batches, and of a single batch there are none."
    )
    return _figures_table(summary, "Cost", note, COST_FIGURES)


def _figures_table(summary: Found, title: str, note: str, figures: Sequence[Figure]) -> Table:
    rows = []
    for arm, of_arm in summary["arms"].items():
        cells = []
        for figure in figures:
            estimate = of_arm["figures"][figure.name]
            bound = BOUND if of_arm["kl_is_bound"] and figure.name.endswith("_kl") else ""
            cells.append(
                estimate_cell(estimate, figure.digits, mark=bound, note=_difference_note(estimate, figure.digits))
            )
        rows.append([Cell(arm), *cells])
    return _without_empty_columns(Table(title, note, ["arm", *(figure.label for figure in figures)], rows))


def over_optimisation_table(summary: Found) -> Table:
    """Return where judges fall while the guide's own reward rises."""
    rows = [[Cell(entry["method"]), Cell(entry["judge"]), *_begins(entry)] for entry in summary["over_optimisation"]]
    note = (
        "Begins at the arm of the judge's highest mean, if a stronger arm's is lower (the paired difference's interval "
        "below 0) while the guide's own mean reward is higher."
    )
    return Table(
        "Over-optimisation", note, ["method", "judge", "begins at", "KL there, nats", "fall by"], rows, words=3
    )


def _begins(entry: Found) -> list[Cell]:
    if not entry["begins"]:
        return [Cell("not within the range"), Cell(NOTHING), Cell(NOTHING)]
    begins, kls = entry["begins"], [(entry["begins"][axis], name) for axis, name in AXIS_NAMES.items()]
    kl, name = next((known for known in kls if known[0] is not None), (None, ""))
    shown = Cell(NOTHING) if kl is None else Cell(f"{kl:.2f} ({name})", value=kl)
    fall = estimate_cell(entry["fall"], sign=True)
    return [Cell(begins["arm"]), shown, fall._replace(note=f"at {entry['falls_at']['arm']}")]


def _without_empty_columns(table: Table) -> Table:
    full = [i for i in range(len(table.columns)) if not i or any(row[i] != Cell(NOTHING) for row in table.rows)]
    return table._replace(columns=[table.columns[i] for i in full], rows=[[row[i] for i in full] for row in table.rows])


# Files


def markdown(summary: Found) -> str:
    """Return table.md: the matched tables first, since an arm's lone figure says little."""
    tables = [
        *(table for judge in summary["judges"] for table in matched_tables(summary, judge)),
        *(judge_table(summary, judge) for judge in summary["judges"]),
        text_table(summary),
        diversity_table(summary),
        cost_table(summary),
        *([over_optimisation_table(summary)] if summary["over_optimisation"] else []),
    ]
    notes = "".join(f"- {escaped(note)}\n" for note in summary["notes"])
    return "\n".join(
        [
            f"{count(summary['prompts'], 'prompt')}, {seeds_each(summary['seeds'])}; 95% intervals by the "
            "bootstrap over prompts in brackets. Paired differences of every two methods at equal KL are in "
            "report.html and summary.json.\n",
            *([notes] if notes else []),
            *map(_markdown_table, tables),
        ]
    )


def count(number: int, what: str) -> str:
    """Return "1 prompt", "2 prompts"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def seeds_each(seeds: int) -> str:
    """Return "one seed each" or "up to 2 seeds each": reference responses have one."""
    return "one seed each" if seeds == 1 else f"up to {seeds} seeds each"


def _markdown_table(table: Table) -> str:
    lines = [
        [escaped(column) for column in table.columns],
        ["---" if i < table.words else "--:" for i in range(len(table.columns))],
        *([escaped(f"{cell.text} {cell.interval}".strip()) for cell in row] for row in table.rows),
    ]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"## {escaped(table.title)}\n\n{escaped(table.note)}\n\n{body}\n"


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    one_line = " ".join(text.translate(CONTROLS).split())
    return re.sub(r"([\\`*<>|&~]|\[(?=[^\]]*\]\()|!(?=\[))", r"\\\1", one_line)


def comma_separated(summary: Found) -> str:
    """Return table.csv: a row for each arm, each figure with its interval's ends and difference to the reference."""
    rows = [_wide(arm, figures) for arm, figures in summary["arms"].items()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _wide(arm: str, of_arm: Found) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm}
    row |= {name: of_arm[name] for name in ("method", "reward", "greedy", "kl_is_bound", "prompts", "responses")}
    row["setting"] = json.dumps(of_arm["setting"])
    for figure in FIGURES:
        row |= _columns(figure.name, of_arm["figures"][figure.name])
    for judge, said in of_arm["judges"].items():
        for name in ("score", "length_controlled", *WINS):
            row |= _columns(f"{judge}_{name}", said[name])
    return row


def _columns(name: str, estimate: Found | None) -> dict[str, Any]:
    low, high = (estimate["interval"] or (None, None)) if estimate else (None, None)
    columns = {name: estimate and estimate["mean"], f"{name}_low": low, f"{name}_high": high}
    if estimate and estimate.get("difference"):
        columns |= _columns(f"{name}_difference", estimate["difference"])
    for more in ("p", "p_corrected", "verdicts", "ties", "unparsed"):
        if estimate and more in estimate:
            columns[f"{name}_{more}"] = estimate[more]
    return columns
