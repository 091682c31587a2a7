"""midcourse rewards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midcourse.cli.console import table
from midcourse.files import as_json
from midcourse.terminal import say


@dataclass(kw_only=True)
class Rewards:
    """List the rewards that come with midcourse.

    --reward of midcourse guide takes their names, and so does every other flag that takes a reward.
    """

    json: bool = False
    """Print the list as JSON, with the paths of the cards."""

    def run(self) -> int:
        from midcourse.rewards.info import shipped

        rows = [_described(name, folder) for name, folder in shipped().items()]
        if self.json:
            print(as_json(rows, indent=1))
            return 0
        table(
            "rewards that come with midcourse",
            ("name", "what it does", "guides", "weight", "pair accuracy [95%]"),
            [
                (
                    row["name"],
                    row["about"],
                    row["backbone"],
                    f"{row['reward_weight']:g}",
                    f"{row['accuracy']:.2f} [{row['interval'][0]:.2f}, {row['interval'][1]:.2f}]",
                )
                for row in rows
            ],
            justify="left",
        )
        say("what each was trained on, and what not to use it for: the README.md beside it (--json has the paths)")
        return 0


def _described(name: str, folder: Path) -> dict[str, Any]:
    """Return what is known of a reward: its description, and the first sentence of its card."""
    from midcourse.rewards.info import read_info

    info, card = read_info(folder), folder / "README.md"
    end = info.metrics["shares"][-1]
    return {
        "name": name,
        "about": card.read_text(encoding="utf-8").partition(f"# {name}\n\n")[2].partition(". ")[0] + ".",
        "backbone": info.backbone,
        "head": info.head,
        "reward_weight": info.reward_weight,
        "accuracy": end["accuracy"],
        "interval": end["interval"],
        "card": str(card),
    }
