"""The command line's reference as Markdown, made from the parsers of its verbs.

python -m midcourse.cli.reference writes it; with --check it says instead whether the page is up to date.
"""

import argparse
import sys
from pathlib import Path

from midcourse.cli.verbs import ALL, VERBS, about, called, groups_of
from midcourse.files import write_text

HEAD = """# The command line

<!-- Written by python -m midcourse.cli.reference from the flags themselves: change those, not this page. -->

`midcourse VERB --help` prints what stands here about a verb, `midcourse --version` the version.
`midcourse --tyro-write-completion bash FILE` (or `zsh`, `tcsh`) writes tab completion to a file that your shell reads.
"""


def reference() -> str:
    """Return the page: a table of all verbs by group, then a section for each with its flags by group."""
    table = ["| | verb | what it does |", "| --- | --- | --- |"]
    for group, verbs in VERBS.items():
        for number, verb in enumerate(called(verbs)):
            first = "" if number else group
            table.append(f"| {first} | [{verb}](#{verb.replace(' ', '-')}) | {about(verb).splitlines()[0]} |")
    return "\n".join([HEAD, *table, "", *map(_section, ALL)])


def _section(verb: str) -> str:
    groups = groups_of(verb)
    positional = [flag.name for group in groups for flag in group.flags if flag.positional]
    usage = " ".join(["midcourse", verb, *positional, "[OPTIONS]"])
    lines = [f"## {verb}", "", about(verb), "", f"    {usage}", ""]
    for title, words, flags in groups:
        lines += [f"**{title}**" + (f": {words}" if words else ""), ""]
        lines += [f"- `{' '.join(filter(None, (flag.name, flag.value)))}`: {flag.help}" for flag in flags] + [""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, nargs="?", default=Path("docs/command-line.md"))
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is stale")
    asked = parser.parse_args()
    text = reference()
    if not asked.check:
        write_text(asked.page, text)
    elif not asked.page.is_file() or asked.page.read_text(encoding="utf-8") != text:
        sys.exit(f"{asked.page} is stale; run: python -m midcourse.cli.reference {asked.page}")


if __name__ == "__main__":
    main()
