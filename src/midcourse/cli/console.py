"""What verbs share: refusing arguments, and tables."""

from collections.abc import Sequence
from typing import Literal

from midcourse.errors import MidcourseError


class UsageError(MidcourseError):
    """Arguments that do not go together."""


def table(
    title: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    justify: Literal["left", "right"] = "right",
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else justify)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
