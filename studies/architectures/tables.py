"""The tables of docs/architectures.md, from results.json alone; `studies/readme.py` fills them."""

from collections import Counter
from pathlib import Path
from typing import Any

from studies.tables import Table, load, markdown

COMMAND = "python -m studies.architectures.run"
CHECKS = ("text", "rows", "scalar reward", "trunk reward", "grammar")


def architectures(root: Path) -> str:
    """One line per type: how it is read, what works, and what does not, in its own words."""
    rows = load(root, "studies/architectures/results.json", COMMAND)["rows"]
    return markdown(["type", "read", *CHECKS, "what is said"], [line(row) for row in rows])


def line(row: dict[str, Any]) -> list[str]:
    """The cells of a type."""
    checks = row.get("checks", {})
    said = [row["why"]] if "why" in row else list(dict.fromkeys(text for text in checks.values() if text != "yes"))
    marks = [mark(checks.get(name)) for name in CHECKS]
    return [f"`{row['type']}`", row["outcome"], *marks, "; ".join(said).replace("|", "\\|").replace("`", "'")]


def mark(found: str | None) -> str:
    """A check's outcome in a word."""
    return "" if found is None else found.partition(":")[0]


def counts(root: Path) -> str:
    """How many types are read how, and of how many everything works."""
    found = load(root, "studies/architectures/results.json", COMMAND)
    rows, made = found["rows"], Counter(row["outcome"] for row in found["rows"])
    whole = Counter(row["outcome"] for row in rows if set(row.get("checks", {}).values()) == {"yes"})
    lines = [[name, str(made[name]), str(whole[name])] for name in sorted(made, key=lambda name: -made[name])]
    return markdown([f"read (transformers {found['versions']['transformers']})", "types", "everything works"], lines)


TABLES: dict[str, Table] = {"architectures": architectures, "architecture-counts": counts}
