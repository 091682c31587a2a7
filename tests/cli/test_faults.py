"""Every verb that writes, under every fault: one row a verb, and later verbs join.

What is written is whole or absent; a message names the file; and what can be gone on with is gone on with as it was
begun. What kills a process for good is tried where a verb's own tests are; here stand what it may leave.
"""

import json
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from midcourse.data.record import only_writer
from midcourse.errors import MidcourseError
from tests.pace import slow_except


@dataclass(frozen=True)
class Verb:
    """A verb that writes.

    Attributes:
        asked: its words and flags, with {lm}, {reward}, {pairs}, {rollouts}, {prompts}, {edits}, {texts} filled in.
        out: the flag that names what it writes.
        kind: what that is.
        other: flags that change what is made, if it can be gone on with by --resume.
        ending: of the file's name.
    """

    asked: str
    kind: Literal["file", "folder"] = "folder"
    out: str = "--out"
    other: str | None = None
    ending: str = ""


SHORT = "--max-new-tokens 3 --batch-size 4"
LEARN = "--epochs 1 --batch-size 4 --held-out 0.25"
VERBS = {
    "train": Verb(f"train {{pairs}} --backbone {{lm}} --template raw --tune head {LEARN}", other="--lr 0.01"),
    "dpo": Verb(f"dpo {{pairs}} --lm {{lm}} --template raw {LEARN}", other="--beta 0.5"),
    "figa": Verb("figa {edits} --lm {lm} --template raw --epochs 1 --batch-size 4", other="--lr 0.01"),
    "ppo": Verb(
        f"ppo --prompts {{prompts}} --lm {{lm}} --reward vader --template raw --rollouts 8 --minibatch 4 {SHORT}",
        other="--seed 3",
    ),
    "compare": Verb(
        f"compare --prompts {{prompts}} --lm {{lm}} --rewards vader --judges profanity --sweep reward_weight=1 {SHORT}",
        other="--max-new-tokens 4",
    ),
    "guide": Verb(f"guide --prompts {{prompts}} --lm {{lm}} --reward {{reward}} {SHORT}", "file", other="--seed 3"),
    "sample": Verb(f"sample --prompts {{prompts}} --lm {{lm}} --n 1 {SHORT}", "file", other="--temperature 0.5"),
    "prefer": Verb("prefer {rollouts}", "file", ending=".jsonl"),
    "export": Verb("export --reward {reward}"),
    "edits label": Verb("edits label {edits} --tokenizer {lm}", "file", ending=".jsonl"),
    "reward-bench": Verb("reward-bench --reward-function vader --comparisons {pairs}", "file", ending=".json"),
    "detect fit": Verb("detect fit {texts} --layers 2 --lm {lm}"),
    "score --html": Verb("score --reward {reward} --prompt p --text abc", "file", "--html", ending=".html"),
}  # fmt: skip
RESUMED = [name for name, verb in VERBS.items() if verb.other]
QUICK = ["guide", "export", "score --html", "prefer"]
Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def files(lm_folder, reward_folder, pairs, rollouts, prompts, tmp_path) -> dict[str, Any]:
    edits, texts = tmp_path / "edits.jsonl", tmp_path / "texts.jsonl"
    changed = [{"original": f"a poor text {i}", "edited": f"a good text {i}"} for i in range(8)]
    edits.write_text("".join(json.dumps(row) + "\n" for row in changed))
    kinds = [{"text": f"{i} the ferry was late {'indeed ' * (i % 2) * 9}", "label": i % 2} for i in range(12)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in kinds))
    named = {
        "lm": lm_folder,
        "reward": reward_folder,
        "pairs": pairs,
        "rollouts": rollouts,
        "prompts": prompts,
    }
    return {**named, "edits": edits, "texts": texts}


@pytest.fixture
def ask(midcourse, files) -> Ask:
    """Calls a verb of the table with its output there, and further flags."""

    def call(name: str, out: Path, *more: str) -> tuple[int, str, str]:
        verb = VERBS[name]
        return midcourse(*verb.asked.format(**files).split(), verb.out, out, *more)

    return call


def place(name: str, folder: Path) -> Path:
    return folder / f"out{VERBS[name].ending}"


def places(name: str, *folders: Path) -> list[Path]:
    """Where an output goes in each of these folders, which are made."""
    for folder in folders:
        folder.mkdir()
    return [place(name, folder) for folder in folders]


def content(out: Path) -> Any:
    """What an output holds; of a folder every file, of a file its rows in any order."""
    if out.is_dir():
        return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    return sorted(out.read_bytes().splitlines())


def litter(folder: Path) -> list[str]:
    """Hidden files that were left."""
    return [str(path) for path in folder.rglob(".*")]


@pytest.mark.parametrize("name", slow_except(QUICK, VERBS))
def test_a_full_disk(name, ask, tmp_path):
    """No file may grow beyond a few bytes."""
    (out,) = places(name, tmp_path / "full")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        code, _, err = ask(name, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2, err
    *_, last = err.splitlines()
    assert last.startswith("midcourse: ") and str(out) in last and "Traceback" not in err
    assert not any(part.startswith(".") for part in last.split("/"))  # no temporary file is named
    assert litter(out.parent) == []
    code, _, err = ask(name, out, *(["--resume"] if VERBS[name].other and out.exists() else []))
    assert code == 0, err  # with room again


@pytest.mark.parametrize("name", slow_except(QUICK, VERBS))
def test_a_place_that_cannot_be_written(name, ask):
    out = place(name, Path("/proc/1"))
    code, _, err = ask(name, out)
    assert code == 2, err
    assert "Traceback" not in err and str(out.parent) in err.splitlines()[-1]


@pytest.mark.parametrize("name", slow_except(["guide"], RESUMED))
def test_two_at_once(name, ask, tmp_path):
    out = place(name, tmp_path)
    with only_writer(out, VERBS[name].kind, "run", MidcourseError):
        code, _, err = ask(name, out)
    assert code == 2
    assert "another " in err and "is writing to" in err and str(out) in err
    assert ask(name, out)[0] == 0  # it is let go


@pytest.mark.parametrize("name", slow_except(QUICK, VERBS))
def test_a_link_is_written_through(name, ask, tmp_path):
    target, out = places(name, tmp_path / "elsewhere", tmp_path / "here")
    if VERBS[name].kind == "folder":
        target.mkdir()
    out.symlink_to(target)
    code, _, err = ask(name, out)
    assert code == 0, err
    assert out.is_symlink() and target.exists() and content(target)
    assert litter(tmp_path / "elsewhere") == litter(tmp_path / "here") == []


@pytest.mark.parametrize("name", slow_except(["guide"], RESUMED))
def test_other_settings(name, ask, tmp_path):
    out = place(name, tmp_path)
    assert ask(name, out)[0] == 0
    before = content(out)
    flag, value = str(VERBS[name].other).split()
    code, _, err = ask(name, out, flag, value, "--resume")
    assert code == 2
    assert (
        flag.removeprefix("--").replace("-", "_").replace("rollouts", "rows") in err and "resume with the same" in err
    )
    assert content(out) == before


@pytest.mark.parametrize("name", slow_except(["guide"], RESUMED))
def test_what_is_finished_is_gone_on_with_by_doing_nothing(name, ask, tmp_path):
    out = place(name, tmp_path)
    assert ask(name, out)[0] == 0
    before = content(out)
    code, _, err = ask(name, out, "--resume")
    assert code == 0, err
    kept = content(out)
    if name == "compare":  # its report is made anew
        before, kept = ({file: one[file] for file in ("results.jsonl", "judgements.jsonl")} for one in (before, kept))
    assert kept == before


@pytest.mark.parametrize("name", slow_except(["guide"], RESUMED))
def test_what_a_kill_left_of_the_first_file(name, ask, tmp_path):
    """Half a record under its temporary name."""
    out, whole = places(name, tmp_path / "killed", tmp_path / "whole")
    if VERBS[name].kind == "folder":
        out.mkdir()
        record = "compare.json" if name == "compare" else "run.json"
        (out / f".{record}-x1y2z3").write_text('{"format": 1, "la')
    else:
        (out.parent / f".{out.name}.asked.json-x1y2z3").write_text('{"la')
    code, _, err = ask(name, out, "--resume")
    assert code == 0, err
    assert ask(name, whole)[0] == 0
    assert litter(out.parent) == []
    if VERBS[name].kind == "folder":
        assert content(out).keys() == content(whole).keys()
    else:
        assert content(out) == content(whole)
