"""How flags are read from dataclasses, and what every verb's help holds."""

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from midcourse.cli import verbs
from midcourse.cli.reference import reference
from midcourse.cli.verbs import ALL, about, groups_of, wrapped
from midcourse.train.settings import Settings
from tests.cli.printed import refused


@pytest.mark.parametrize("verb", ALL)
def test_every_flag_says_what_it_is_for(verb):
    flags = [flag for group in groups_of(verb) for flag in group.flags]
    assert flags
    for flag in flags:
        words = re.sub(r"\((default:.*|required|repeatable)\)$", "", flag.help).split()
        assert len(words) >= 3 and words[0] != "Of", flag
        assert "(default: None)" not in flag.help and "(default: False)" not in flag.help


@pytest.mark.parametrize("verb", ALL)
def test_every_group_of_flags_says_what_it_is_for(verb):
    """But for the arguments that have no group."""
    for group in groups_of(verb):
        assert group.about or group.title in ("positional arguments", "options"), group.title


def test_groups_keep_flags_flat_and_share_what_is_the_same():
    command = verbs.parse("train", ["pairs.csv", "--out", "r", "--layers", "3", "--device", "cpu", "--lr", "0.1"])
    assert (command.data, command.write.out, command.reward.layers) == (Path("pairs.csv"), Path("r"), 3)
    assert (command.machine.device, command.training.lr) == ("cpu", 0.1)
    assert verbs.parse("train", ["--out", "r"]).training == Settings()
    dpo = verbs.parse("dpo", ["pairs.csv", "--out", "r"]).training
    assert (dpo.lr, dpo.batch_size, dpo.weight_decay, dpo.epochs) == (1e-4, 8, 0.0, 2)


@dataclass(kw_only=True)
class Sing:
    """Sing a song.

    A line that goes on in the next
    one.

    - first: an item that is so long that it goes on in the next line too, where it is indented a little further
    - second: short
    """

    song: str | None = None
    """What to sing; a word that
    method's break would tear."""
    verses: int = 3
    """How many verses."""
    loud: bool = False
    """Sing it loud."""
    voices: tuple[str, ...] = field(default_factory=tuple)
    """Who sings."""

    def run(self) -> int:
        return 0


def test_help_is_plain(monkeypatch):
    monkeypatch.setitem(ALL, "sing", Sing)
    told = {flag.name: flag.help for group in groups_of("sing") for flag in group.flags}
    assert told == {
        "--song": "What to sing; a word that method's break would tear.",
        "--verses": "How many verses. (default: 3)",
        "--loud": "Sing it loud.",
        "--voices": "Who sings.",
    }
    assert wrapped(about("sing"), 60).splitlines() == [
        "Sing a song.",
        "",
        "A line that goes on in the next one.",
        "",
        "- first: an item that is so long that it goes on in the next",
        "  line too, where it is indented a little further",
        "- second: short",
    ]


@dataclass(kw_only=True)
class Hum:
    """Hum it."""

    loud: bool = False
    """Hum it loud enough to be heard."""

    def run(self) -> int:
        print("loud hum" if self.loud else "hum")
        return 0


@pytest.fixture
def music(monkeypatch):
    """A family of two verbs among the others."""
    family = verbs.Family("Make music.", {"sing": Sing, "hum": Hum})
    monkeypatch.setitem(verbs.VERBS, "play", {"music": family})
    monkeypatch.setitem(verbs.FAMILIES, "music", family)
    for name, verb in verbs.called({"music": family}).items():
        monkeypatch.setitem(ALL, name, verb)


@pytest.mark.usefixtures("music")
def test_a_verb_of_a_family_is_called_by_two_words(midcourse):
    assert midcourse("music", "hum") == (0, "hum\n", "")
    assert midcourse("music", "hum", "--loud") == (0, "loud hum\n", "")
    code, _, err = midcourse("music", "hum", "--lout")
    assert code == 2 and "--loud" in err and "midcourse music hum --help" in err


@pytest.mark.usefixtures("music")
@pytest.mark.parametrize("asked", [(), ("-h",), ("--help",)])
def test_a_family_explains_its_verbs(midcourse, asked):
    code, out, _ = midcourse("music", *asked)
    assert code == 0
    assert out.splitlines() == [
        "usage: midcourse music VERB ... (or --help)", "", "Make music.", "",
        "  sing  Sing a song.",
        "  hum   Hum it.", "",
        "midcourse music VERB --help explains a verb and its flags.",
    ]  # fmt: skip
    code, out, _ = midcourse("music", "hum", "--help")
    assert code == 0 and out.startswith("Hum it.\n") and "usage: midcourse music hum" in out and "--loud" in out
    assert "  music         Make music." in midcourse("--help")[1].splitlines()


@pytest.mark.usefixtures("music")
def test_an_unknown_verb_of_a_family_is_refused_with_a_hint(midcourse):
    refused(midcourse("music", "hun"), "verb 'music hun' is unknown; did you mean music hum? (midcourse music --help")
    refused(
        midcourse("music", "--loud"), "verb 'music --loud' is unknown; use one of: sing, hum (midcourse music --help"
    )
    refused(midcourse("musik"), "verb 'musik' is unknown; did you mean music? (midcourse --help explains them)")
    refused(midcourse("guide me"), "verb 'guide me' is unknown; did you mean guide?")


@pytest.mark.usefixtures("music")
def test_completion_and_the_reference_know_the_verbs_of_a_family(midcourse, tmp_path):
    page = reference()
    assert not midcourse("--tyro-write-completion", "bash", tmp_path / "complete")[0]
    spec = next(line for line in (tmp_path / "complete").read_text().splitlines() if "COMPLETION_SPEC = " in line)
    known = ast.literal_eval(spec.partition(" = ")[2])["subcommands"]
    flags = known["music"]["subcommands"]["hum"]["options"]
    assert [flag["flags"] for flag in flags] == [["-h", "--help"], ["--loud"]]
    assert list(known["guide"]["subcommands"]) == []
    assert "| play | [music sing](#music-sing) | Sing a song. |\n|  | [music hum](#music-hum) | Hum it. |\n" in page
    assert "## music hum\n\nHum it.\n\n    midcourse music hum [OPTIONS]\n" in page


def test_bad_rows_are_set_aside_wherever_rows_are_read(midcourse, lm_folder, tmp_path):
    prompts, bad = tmp_path / "prompts.jsonl", tmp_path / "bad.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": 3}\n{"prompt": "b"}\n')
    rollouts = tmp_path / "rollouts.jsonl"
    calls = {
        "guide": ["--prompts", prompts, "--lm", lm_folder, "--method", "plain", "--max-new-tokens", 3, "--json"],
        "sample": ["--prompts", prompts, "--lm", lm_folder, "--max-new-tokens", 3, "--out", rollouts, "--n", 2,
                   "--label-with-function", "builtins:len"],
        "prefer": [rollouts, "--out", tmp_path / "pairs.jsonl", "--by-function", "builtins:hash"],
        "compare": ["--prompts", prompts, "--lm", lm_folder, "--methods", "plain", "--max-new-tokens", 3,
                    "--out", tmp_path / "compared"],
    }  # fmt: skip
    for verb, flags in calls.items():
        if verb == "prefer":
            assert rollouts.read_text().count("\n") == 4
            with rollouts.open("a") as file:
                file.write('{"prompt": "a", "response": 1}\n')
        line = 5 if verb == "prefer" else 2
        refused(midcourse(verb, *flags), f"jsonl, line {line}, field ", "(--skip-bad-rows leaves bad rows out)")
        code, _, err = midcourse(verb, *flags, "--skip-bad-rows", bad)
        assert code == 0, err
        assert f"skipped 1 bad rows, written to {bad}" in err
        assert json.loads(bad.read_text())["line"] == line
        bad.unlink()
    refused(midcourse("guide", "--prompt", "a", "--skip-bad-rows", bad), "--skip-bad-rows is for the rows of --prompts")
