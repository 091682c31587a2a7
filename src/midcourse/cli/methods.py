"""midcourse methods."""

from dataclasses import dataclass

from midcourse.cli.console import table
from midcourse.files import as_json


@dataclass(kw_only=True)
class Methods:
    """List the methods of guiding, with settings and sources."""

    json: bool = False
    """Print the methods as JSON."""

    def run(self) -> int:
        from midcourse.decode.methods import METHODS, settings_of

        if self.json:
            print(as_json({name: settings_of(method) for name, method in METHODS.items()}, indent=1))
            return 0
        rows = []
        for name, method in METHODS.items():
            settings = settings_of(method)
            source = settings.pop("source")
            told = {key: value for key, value in settings.items() if value not in (None, False) and key != "ranked_by"}
            rows.append((name, "  ".join(f"{key}={value}" for key, value in told.items()), source))
        table("methods of midcourse guide --method", ("method", "settings", "source"), rows, justify="left")
        return 0
