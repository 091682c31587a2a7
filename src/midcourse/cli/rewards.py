"""midcourse rewards."""

from dataclasses import dataclass

from midcourse.cli.console import table
from midcourse.files import as_json


@dataclass
class Rewards:
    """List the rewards that come with midcourse; --reward takes their names."""

    json: bool = False

    def run(self) -> int:
        from midcourse.rewards.info import read_info
        from midcourse.rewards.named import shipped

        rows = []
        for name, folder in shipped().items():
            info, card = read_info(folder), folder / "README.md"
            end = info.metrics["shares"][-1]
            rows.append(
                {
                    "name": name,
                    "about": card.read_text(encoding="utf-8").partition(f"# {name}\n\n")[2].partition(". ")[0] + ".",
                    "backbone": info.backbone,
                    "head": info.head,
                    "reward_weight": info.reward_weight,
                    "accuracy": end["accuracy"],
                    "interval": end["interval"],
                    "card": str(card),
                }
            )
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
        print("what each was trained on, and what not to use it for: the README.md beside it (--json has the paths)")
        return 0
