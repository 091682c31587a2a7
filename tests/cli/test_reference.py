"""The command line's reference."""

from pathlib import Path

import pytest

from midcourse.cli.reference import main, reference
from midcourse.cli.verbs import ALL, groups_of

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"


def test_it_holds_every_flag_with_its_group_default_and_help():
    page = reference()
    sections = dict(zip(ALL, page.split("\n## ")[1:], strict=True))
    for verb, section in sections.items():
        assert section.startswith(f"{verb}\n")
        for flag in (flag for group in groups_of(verb) for flag in group.flags):
            assert f"- `{flag.name}" in section and flag.help in section
    assert "**training**: How a reward is trained.\n\n- `--epochs INT`: Passes over the data" in sections["train"]
    assert "- `--batch-size INT`: Pairs or rollouts per step. (default: 32)\n" in sections["train"]
    assert "- `--out PATH`: Folder of the new reward. (required)\n" in sections["train"]
    assert "- `--json`: Print the metrics as JSON.\n" in sections["train"]
    assert "    midcourse prefer ROLLOUTS [OPTIONS]\n" in sections["prefer"]


def test_the_committed_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run: python -m midcourse.cli.reference"


def test_a_stale_page_is_noticed_and_written_anew(tmp_path, monkeypatch):
    page = tmp_path / "command-line.md"
    for asked in ([], ["--check"]):
        monkeypatch.setattr("sys.argv", ["reference", str(page), *asked])
        main()
    assert page.read_text(encoding="utf-8") == reference()
    page.write_text(page.read_text(encoding="utf-8").replace("(default: 32)", "(default: 64)"), encoding="utf-8")
    with pytest.raises(SystemExit, match="is stale; run: python -m"):
        main()
