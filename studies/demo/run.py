"""The demo's figures, example and picture for the README: python studies/demo/run.py

Runs the demo into runs/demo/ (as `make demo` does), then writes here: results.json (its summary), example.txt (what
example.py prints with the reward it trained), and demo.svg (what the demo shows in a terminal).
"""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from midcourse.demo import run_demo, show_pairs, show_summary
from midcourse.files import write_text

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> None:
    out = ROOT / "runs/demo"
    summary, pairs = run_demo(out)
    shutil.copyfile(out / "summary.json", HERE / "results.json")
    command = [sys.executable, str(HERE / "example.py")]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    write_text(HERE / "example.txt", printed)
    write_text(HERE / "demo.svg", picture(summary, pairs))


def picture(summary: dict, pairs: list) -> str:
    """The terminal's pairs and table as an SVG without outside fonts."""
    console = Console(record=True, file=io.StringIO(), width=110, force_terminal=True, color_system="truecolor")
    show_pairs(console, pairs)
    show_summary(console, summary)
    return re.sub(r"@font-face \{.*?\}\n?", "", console.export_svg(title="midcourse demo"), flags=re.DOTALL)


if __name__ == "__main__":
    main()
