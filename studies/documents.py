"""The code in the README and in docs/: found, run as a reader would run it, and its output written below it.

    python -m studies.documents [PAGE ...]      run these pages' code (all by default) and write its output anew

Blocks of a page run in order, in one folder and, if they are Python, in one namespace:

    ```python      is run; one that begins with `# NAME.py` is written to that file instead
    ```sh          is run by bash, with midcourse in PATH
    ```json        is not code, but JSON on every line
    ```text        is not code

A comment before a block says what is special about it:

    <!-- not run: REASON -->     it is not run
    <!-- output -->              what the block before it prints; figures may differ from machine to machine
    <!-- output: varies -->      the same, if texts of a language model stand in it: they may differ too

`<!-- given: NAME ... -->` anywhere names files and rewards that a page takes for granted; `Given` makes them.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from midcourse.files import write_text
from studies.forked import forked, in_fork

ROOT = Path(__file__).resolve().parent.parent
CODE, TEXT = ("python", "sh"), ("text", "json")
# Pages that midcourse writes of itself: flags, not code.
GENERATED = ("docs/command-line.md",)

# Runs blocks of Python in one namespace: reads [page, line, code] and answers [printed, error], a line of JSON each.
_INTERPRETER = """
import contextlib, io, json, sys, traceback
names, answers = {"__name__": "__main__"}, sys.stdout
for asked in sys.stdin:
    page, line, code = json.loads(asked)
    printed, error = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile("\\n" * (line - 1) + code, page, "exec"), names)
        except BaseException:
            error = traceback.format_exc()
    print(json.dumps([printed.getvalue(), error]), file=answers, flush=True)
"""

_FENCE = re.compile(r"^```(.*)$")
_MARK = re.compile(r"^<!-- (not run|output)(?:: (.+))? -->$")
_GIVEN = re.compile(r"^<!-- given: (.+) -->$", re.MULTILINE)
_FILE = re.compile(r"^# (\w+\.py)\n")
_FIGURE = re.compile(r"[+-]?\d+(?:\.\d+)?%?")


class DocumentError(ValueError):
    """A block that cannot be run, or says nothing about why it is not."""


@dataclass
class Block:
    """A fenced block of a page.

    Attributes:
        page, line: where its first line of code stands, counted from 1.
        mark: what the comment before it is about, if there is one, and `words` what it says.
    """

    page: str
    line: int
    language: str
    code: str
    mark: str | None = None
    words: str | None = None

    @property
    def place(self) -> str:
        """The page and line, as editors open them."""
        return f"{self.page}:{self.line}"


class Run:
    """A page's code on its way, in its folder; `printed` is what the last block printed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.printed = ""
        self._interpreter: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self._interpreter:
            self._interpreter.communicate()

    def step(self, block: Block) -> None:
        """Run a block; DocumentError if it fails."""
        if block.language == "sh":
            self.printed = self._shell(block)
        elif named := _FILE.match(block.code):
            (self.folder / named[1]).write_text(block.code)
            self.printed = ""
        else:
            self.printed = self._python(block)

    def _shell(self, block: Block) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code],
            cwd=self.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise DocumentError(f"{block.place}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def _python(self, block: Block) -> str:
        # In a process of its own, as a reader's code: nothing that tests do to this one reaches it.
        if self._interpreter is None:
            self._interpreter = subprocess.Popen(
                in_fork(_INTERPRETER),
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._interpreter.stdin
        assert self._interpreter.stdout
        print(json.dumps([block.page, block.line, block.code]), file=self._interpreter.stdin, flush=True)
        answer = self._interpreter.stdout.readline()
        printed, error = json.loads(answer) if answer else ("", "the interpreter is gone")
        if error:
            raise DocumentError(f"{block.place}: {error}")
        return printed


def pages(root: Path = ROOT) -> list[str]:
    """Return the README and every page of docs/, but for those that are generated whole."""
    found = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [name for path in found if (name := str(path.relative_to(root))) not in GENERATED]


def blocks(page: str, text: str) -> list[Block]:
    """Return the fenced blocks of a page.

    Raises:
        DocumentError: a block in no language that is known, one that is not closed, or a mark that stands before none.
    """
    found: list[Block] = []
    open_at, mark = None, None
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if open_at is not None:
            if line == "```":
                lines = text.splitlines()[open_at : number - 1]
                found[-1].code, open_at = "".join(f"{line}\n" for line in lines), None
        elif fence:
            if fence[1] not in (*CODE, *TEXT):
                raise DocumentError(f"{page}:{number}: a block of {fence[1]!r}; use one of {', '.join(CODE + TEXT)}")
            found.append(Block(page, number + 1, fence[1], "", *(mark.groups() if mark else ())))
            open_at, mark = number, None
        elif line.strip():
            if mark:
                raise DocumentError(f"{page}:{number}: the comment above, {mark[0]!r}, has to stand before a block")
            mark = _MARK.match(line)
    if open_at is not None:
        raise DocumentError(f"{page}:{open_at}: this block is not closed")
    for i, block in enumerate(found):
        _check(block, found[i - 1] if i else None)
    return found


def _check(block: Block, before: Block | None) -> None:
    """Raise DocumentError if a block's mark makes no sense there."""
    if block.mark == "not run" and not (block.words and block.language in CODE):
        raise DocumentError(f"{block.place}: 'not run' takes a reason, and code below it")
    if block.language == "json":
        for line in block.code.splitlines():
            try:
                json.loads(line)
            except ValueError as error:
                raise DocumentError(f"{block.place}: {line!r} is not JSON ({error})") from error
    if block.mark == "output" and (
        block.language in CODE or block.words not in (None, "varies") or before is None or not runs(before)
    ):
        raise DocumentError(f"{block.place}: 'output' stands before a text block, and after code that is run")


def runs(block: Block) -> bool:
    """Return whether a block is code that is run."""
    return block.language in CODE and block.mark != "not run"


def run_page(page: str, text: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Run a page's code in a folder; yield each block of output and what has been printed in its place."""
    with Run(folder) as run:
        for block in blocks(page, text):
            if runs(block):
                run.step(block)
            elif block.mark == "output":
                yield block, tidy(run.printed)


def tidy(printed: str) -> str:
    """Return what was printed without empty lines around it and spaces at ends of lines."""
    return "\n".join(line.rstrip() for line in printed.strip("\n").splitlines()) + "\n"


def agree(block: Block, printed: str) -> bool:
    """Return whether a block of output says what was printed, whatever the figures are.

    Of a model's texts, which differ between machines and may hold any line breaks, there only has to be something.
    """
    if block.words == "varies":
        return bool(block.code.strip()) and bool(printed.strip())
    return shape(block.code) == shape(printed)


def shape(text: str) -> str:
    """Return a text with every figure as `0` and every run of spaces or rules as one."""
    return re.sub(r"[ ━─]+", " ", _FIGURE.sub("0", text))


def with_output(text: str, printed: Sequence[tuple[Block, str]]) -> str:
    """Return a page with those outputs in place of its own."""
    lines = text.splitlines()
    for block, new in reversed(printed):
        lines[block.line - 1 : block.line - 1 + len(block.code.splitlines())] = new.splitlines()
    return "\n".join(lines) + "\n"


def given_of(text: str) -> list[str]:
    """Return the names of what a page takes for granted."""
    return [name for names in _GIVEN.findall(text) for name in names.split()]


def environment() -> dict[str, str]:
    """Return the environment of a reader's shell: this midcourse in PATH, no network, tables of one width."""
    path = os.pathsep.join([str(forked().folder), str(Path(sys.executable).parent)])
    own = {"PATH": path, "PYTHONPATH": str(ROOT / "src")}
    search = {name: os.pathsep.join(filter(None, [first, os.environ.get(name)])) for name, first in own.items()}
    return {**os.environ, **search, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "NO_COLOR": "1"}


class Given:
    """Files and rewards as a reader has them, each made when it is first asked for: small, of few rows and layers.

    Processes may share the folder: one makes a thing, the others wait for it.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def copy(self, names: Sequence[str], to: Path) -> None:
        """Put what has these names into a folder."""
        for name in names:
            self._make(name)
            source, target = self.folder / name, to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)

    def _make(self, name: str) -> None:
        if name not in COMMANDS:
            raise DocumentError(f"nobody knows how to make {name!r}; use one of: {', '.join(COMMANDS)}")
        needs, command = COMMANDS[name]
        # A folder is there before it is whole: who comes second waits.
        with FileLock(self.folder / f"{name.replace('/', '-')}.lock"):
            if not (self.folder / name).exists():
                for other in needs:
                    self._make(other)
                Run(self.folder).step(Block(f"given {name}", 1, "sh", command))


_COMPARISONS = Path(str(files("midcourse"))) / "shipped/demo_comparisons.jsonl.gz"
_PROMPTS = [
    "The night train to the coast was full, and",
    "My neighbour knocked on the door and",
    "After the concert the violinist",
    "The baker was late again, so",
]


# What people and machines might have written, for pages on detection.
_SAID = (
    "We took the late ferry, since the early one never came, and ate our sandwiches on deck.",
    "My aunt says the bridge was blue once; nobody else in the village remembers that.",
    "Rain got into the box of letters, so half of what he wrote is a stain now.",
    "I'd have stayed, only the kitchen was cold and the dog wanted out again.",
    "They fixed the clock twice that winter, and twice it stopped at ten past four.",
)
_GENERATED = (
    "In conclusion, the ferry represents a vital connection between vibrant coastal communities.",
    "Moreover, it is important to note that bridges play a crucial role in fostering unity.",
    "This highlights the enduring significance of letters as a testament to human connection.",
    "Additionally, the kitchen serves as a space where cherished memories are created and shared.",
    "Ultimately, the clock stands as a powerful symbol of resilience and the passage of time.",
)


def _text(sentences: Sequence[str], number: int) -> str:
    """Return a text of three of the sentences, another one for every number up to 60."""
    order = list(itertools.permutations(sentences, 3))[number % 60]
    return " ".join(order)


def _texts(name: str, rows: Sequence[dict[str, str]]) -> tuple[tuple[str, ...], str]:
    return (), _rows(name, [json.dumps(row) for row in rows])


def _rows(name: str, rows: Sequence[str]) -> str:
    return f"cat > {name} <<'END'\n" + "\n".join(rows) + "\nEND\n"


# By name: what has to be there before, and the command that makes it.
COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "comparisons.jsonl": ((), f"gzip -dc {_COMPARISONS} | awk 'NR % 640 == 1' > comparisons.jsonl"),
    "more.jsonl": ((), f"gzip -dc {_COMPARISONS} | awk 'NR % 800 == 7' > more.jsonl"),
    "prompts.jsonl": ((), _rows("prompts.jsonl", [f'{{"prompt": "{prompt}"}}' for prompt in _PROMPTS[:2]])),
    "other-prompts.jsonl": ((), _rows("other-prompts.jsonl", [f'{{"prompt": "{prompt}"}}' for prompt in _PROMPTS[2:]])),
    "taste.py": (
        (),
        _rows(
            "taste.py",
            [
                "def plain_words(text: str) -> float:",
                "    words = text.split()",
                "    return -sum(map(len, words)) / max(len(words), 1)",
            ],
        ),
    ),
    "essay.txt": ((), _rows("essay.txt", [_text(_SAID, 7), _text(_SAID, 31)])),
    "texts.jsonl": _texts("texts.jsonl", [{"text": _text(_SAID, 3)}, {"text": _text(_GENERATED, 5)}]),
    "ours.jsonl": _texts("ours.jsonl", [{"text": _text(_SAID, n), "domain": "letters"} for n in range(24)]),
    "human.jsonl": _texts("human.jsonl", [{"human": _text(_SAID, n), "llm": _text(_GENERATED, n)} for n in (0, 20)]),
    "labelled.jsonl": _texts(
        "labelled.jsonl",
        [
            {"text": _text(sentences, n), "label": label, "domain": "letters" if n % 2 else "diaries"}
            for label, sentences in (("human", _SAID), ("machine", _GENERATED))
            for n in range(40, 48)
        ],
    ),
    "edits.jsonl": _texts(
        "edits.jsonl",
        [
            {
                "prompt": f"When does the {what} go?",
                "original": f" The {what} {wrong}.",
                "edited": f" The {what} {right}.",
            }
            for what in ("ferry", "tram", "night train")
            for wrong, right in (
                ("go at nine oclock", "goes at nine o'clock"),
                ("left if it is full", "leaves when it is full"),
                ("dont go on sunday", "doesn't go on Sunday"),
                ("departs at at noon", "departs at noon"),
            )
        ],
    ),
    "my-reward": (
        ("comparisons.jsonl",),
        "midcourse train comparisons.jsonl --out my-reward --layers 2 --epochs 1 --template raw",
    ),
    "my-trunk": (
        ("comparisons.jsonl",),
        "midcourse train comparisons.jsonl --out my-trunk --head trunk --epochs 1 --template raw",
    ),
    "runs/demo/reward": (("my-reward",), "mkdir -p runs/demo && cp -r my-reward runs/demo/reward"),
    "rollouts.jsonl": (
        ("prompts.jsonl", "taste.py"),
        "midcourse sample --prompts prompts.jsonl --n 8 --max-new-tokens 16"
        " --label-with-function taste:plain_words --out rollouts.jsonl",
    ),
    "my-value": (
        ("rollouts.jsonl",),
        "midcourse train rollouts.jsonl --out my-value --objective value --value soft --value-weight 2"
        " --head trunk --template raw",
    ),
}


def main(arguments: Sequence[str]) -> None:
    """Run pages and write their output anew."""
    with TemporaryDirectory() as made:
        given = Given(Path(made))
        for page in arguments or pages():
            text = (ROOT / page).read_text()
            with TemporaryDirectory() as folder:
                given.copy(given_of(text), Path(folder))
                printed = list(run_page(page, text, Path(folder)))
            if printed:
                write_text(ROOT / page, with_output(text, printed))
            print(f"{page}: {len(printed)} outputs written")


if __name__ == "__main__":
    main(sys.argv[1:])
