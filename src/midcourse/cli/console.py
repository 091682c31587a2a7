"""What verbs share: refusing arguments, texts in files, and tables."""

import os
from collections.abc import Sequence
from pathlib import Path
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
        first = column == columns[0]
        table.add_column(column, justify="left" if first else justify, overflow="fold" if first else "ellipsis")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def read_text(text: str, flag: str) -> str:
    """A text, or what is in the file of that name."""
    if not os.path.isfile(text):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag} {text} cannot be read ({error}); write it as UTF-8") from error
