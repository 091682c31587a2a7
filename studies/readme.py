"""The tables of the README and of docs/, from committed results alone, and what the methods' pages say of settings.

python -m studies.readme [--check]        fills the pages; --check exits 1 if a table or a picture differs

Pictures of studies that stand in docs/ are copies, since the site is built from that folder.
"""

import inspect
import re
import sys
import textwrap
from functools import partial
from pathlib import Path

from midcourse.bench.scale import slopes
from midcourse.cli.verbs import groups_of
from midcourse.decode.methods import METHODS, settings_of
from midcourse.files import write_bytes
from studies.architectures.tables import TABLES as OF_ARCHITECTURES
from studies.detect.tables import TABLES as OF_DETECTION
from studies.objectives.tables import backbones, by_objective, prefixes
from studies.paper.tables import headline
from studies.tables import Table, main, markdown, number, read, results, with_interval

ROOT = Path(__file__).resolve().parent.parent


def demo(root: Path) -> str:
    """The demo's figures without and with guidance."""
    with results(root, "studies/demo/results.json", "python studies/demo/run.py") as found:
        difference = found["gold_difference"]
        rows = [
            ["gold reward of the response", number(found["gold_base"]), number(found["gold_guided"])],
            ["difference [95% interval]", "", with_interval(difference["mean"], difference["interval"])],
            ["guidance KL, nats", "0", number(found["guidance_kl"], 1)],
            ["total KL, nats", number(found["total_kl_base"], 1), number(found["total_kl"], 1)],
        ]
        for name, label, digits in [
            ("perplexity", "perplexity under the base model", 1),
            ("repeated_words", "share of repeated words", 3),
            ("repeated_bigrams", "share of repeated bigrams", 3),
            ("length", "length, tokens", 1),
            ("tokens_per_second", "tokens per second, batch 40", 0),
        ]:
            rows.append([label, *(number(found[name][side], digits) for side in ("base", "guided"))])
        return markdown([f"{found['prompts']} prompts, weight {found['weight']:g}", "base", "guided"], rows)


def example(root: Path) -> str:
    """The Python example and what it printed."""
    command = "python studies/demo/run.py"
    code = read(root, "studies/demo/example.py", command)
    printed = read(root, "studies/demo/example.txt", command)
    return f"```python\n{code.strip()}\n```\n\n```text\n{printed.strip()}\n```"


def decode(root: Path) -> str:
    """Decoding speed: time per token, the ratio to plain decoding by transformers, and to the floor."""
    with results(root, "benchmarks/results/decode.json", "make bench") as found:
        rows = [
            [
                row["method"] + (f" (compiled in {row['compile_seconds']:.0f} s)" if row["compile_seconds"] else ""),
                row["reward"],
                str(row["batch"]),
                number(1000 * row["seconds_per_token"] / row["batch"], 0),
                number(row["tokens_per_second"], 1),
                with_interval(row["ratio_to_plain"], row["ratio_interval"]),
                number(row["ratio_to_floor"], 1),
                number(row["peak_mb"], 0),
            ]
            for row in found["rows"]
            if row["study"] == "speed"
        ]
    header = ["method", "reward", "batch", "ms per token", "tokens per second"]
    return markdown([*header, "times generate [range]", "times floor", "peak MB beside the weights"], rows)


def train(root: Path) -> str:
    """Training on all prefixes, and with a row per prefix, against training on whole responses."""
    with results(root, "benchmarks/results/train.json", "make bench") as found:
        rows = [
            [
                row["way"],
                row["tune"],
                f"{row['data']} ({row['response_tokens']:.0f} tokens)" if row["data"] == "shipped" else row["data"],
                number(1000 * row["seconds_per_pair"], 1),
                with_interval(row["ratio_to_sequence"], row["ratio_interval"]),
                number(row["peak_mb"], 0),
                number(row["peak_ratio"]),
            ]
            for row in found["rows"]
        ]
        header = [
            "trained on",
            "tune",
            "responses",
            "ms per pair",
            "times sequence [range]",
            "peak MB",
            "times sequence",
        ]
        return markdown(header, rows)


def parts(root: Path) -> str:
    """Where the time of guided decoding goes."""
    with results(root, "benchmarks/results/decode.json", "make bench") as found:
        rows = [
            [str(row["batch"]), row["part"], str(row["calls"]), number(row["seconds"]), f"{100 * row['share']:.1f}%"]
            for row in found["profile"]
        ]
    return markdown(["batch", "part", "calls", "seconds", "share"], rows)


def compiling(root: Path) -> str:
    """When compiled steps pay off."""
    with results(root, "benchmarks/results/decode.json", "make bench") as found:
        (fast,) = (row for row in found["rows"] if row["compile_seconds"])
        (slow,) = (
            row
            for row in found["rows"]
            if row["study"] == "speed"
            and all(row[key] == fast[key] for key in ("reward", "batch", "context"))
            and row["method"] == fast["method"].removesuffix(", compiled")
        )
        saved = slow["seconds_per_token"] - fast["seconds_per_token"]
        took = (
            f"Compiling both models took {fast['compile_seconds']:.0f} s here and saved {1000 * saved:.0f} ms a token"
        )
        if saved <= 0:
            return f"{took}: it did not pay off."
        tokens = fast["compile_seconds"] / saved
        minutes = tokens * fast["seconds_per_token"] / 60
        return textwrap.fill(
            f"{took}: it pays off after {tokens:,.0f} tokens, {minutes:.0f} minutes of writing by one process, and is "
            "therefore no default.",
            120,
        )


def scale(root: Path) -> str:
    """Memory and time of verbs by the number of rows."""
    with results(root, "benchmarks/results/scale.json", "midcourse bench scale --json FILE") as found:
        lines = []
        for verb, rows, slope in slopes(found["rows"]):
            memory = [number(row["peak_mb"], 0) for row in rows]
            before, last = rows[-2:]
            times = last["seconds"] / before["seconds"]
            lines.append([f"`{verb}`", *memory, f"{slope / 1000:.1f}", f"{times:.1f}"])
        sizes = [f"{row['rows']:,} rows" for row in rows]
        more = f"time, {sizes[-1]} over {sizes[-2]}"
        return markdown(["most memory held, MB", *sizes, "kB a further row", more], lines)


def rewards(root: Path) -> str:
    """Test-split pair accuracy by share of the response, trained on prefixes and on whole responses."""
    return prefixes(root / "studies/objectives")


def steering(root: Path) -> str:
    """What the two guide to."""
    return by_objective(root / "studies/objectives")


def shipped(root: Path) -> str:
    """The shipped rewards: how well they rank, and what guiding by them gives."""
    with results(root, "studies/shipped/results.json", "python -m studies.shipped.run --data DIR") as found:
        rows = [
            [
                row["name"],
                with_interval(row["accuracy"][0][-1]["accuracy"], row["accuracy"][0][-1]["interval"]),
                f"{row['weight']:g}",
                number(row["plain"]["gold"]),
                number(row["guided"]["gold"]),
                with_interval(row["difference"]["mean"], row["difference"]["interval"]),
                number(row["guided"]["guidance_kl"], 1),
                *(f"{number(row['plain'][name], d)}, {number(row['guided'][name], d)}" for name, d in SHIPPED_COSTS),
            ]
            for row in found["rows"]
        ]
    header = ["reward", "pair accuracy [95%]", "weight", "gold, plain", "guided", "difference [95%]", "guidance KL"]
    return markdown([*header, "perplexity", "repeated bigrams"], rows)


def trunk(root: Path) -> str:
    """The library's trunk reward as a guide: gold on unseen openings by weight, and read off at equal KL."""
    with results(root, "studies/trunk/results.json", "python -m studies.trunk.run --data DIR") as found:
        (row,) = (row for row in found["guided"] if row["guide"]["parts"] == "f+g")
        at = {f"{one['kl']:g}": with_interval(one["gold"], one["interval"]) for one in row["at_kl"] if one["interval"]}
        rows = [
            [
                f"{weight['weight']:.1f}",
                number(weight["gold"]),
                number(weight["guidance_kl"], 1),
                number(weight["perplexity"], 1),
                number(weight["repeated_bigrams"], 3),
            ]
            for weight in row["weights"]
        ]
    told = "; ".join(f"{gold} at {kl} nats" for kl, gold in at.items())
    header = ["weight", "gold", "guidance KL, nats", "perplexity", "repeated bigrams"]
    return f"{row['prompts']} openings; read off at equal guidance KL: {told}.\n\n{markdown(header, rows)}"


def objectives(root: Path) -> str:
    """Every backbone of the objectives study."""
    return backbones(root / "studies/objectives")


def paper(root: Path) -> str:
    """The paper study's claims."""
    return headline(root / "studies/paper")


def methods(root: Path) -> str:
    """Return every method with its main settings, and its page."""
    return markdown(["method", "rule", "weight", "candidates", "temperature"], [_method(name) for name in METHODS])


def _method(name: str) -> list[str]:
    settings = settings_of(METHODS[name])
    rules = {None: "the LM alone", "add_reward": "log π + w r", "add_clamped": "log π + w min(max(r, 0), 1)"}
    rules["add_log_sigmoid"] = "log π + w log sigmoid(r)"
    blocks = {"best-of-n": "the best of n responses", "cd-blockwise": "the best of K blocks, again and again"}
    blocks["cards"] = "segments accepted by their reward"
    rule = rules[settings["guide"]] if "guide" in settings else blocks[name]
    k = settings["top_k"] or "all"
    temperature = "greedy" if settings.get("greedy") else f"{settings['temperature']:g}"
    weight = f"{settings['reward_weight']:g}" if settings.get("reward_weight") else ""
    return [f"[{name}]({name}.md)", rule, weight, str(k), temperature]


def settings(root: Path, *, name: str) -> str:
    """Return the settings of a method: what each is, its default, and whether `midcourse guide` has a flag of it."""
    method = METHODS[name]
    flags = {flag.name for group in groups_of("guide") for flag in group.flags}
    words = attributes_of(type(method))
    lines = ["| setting | default | what it is |", "| --- | --- | --- |"]
    for setting, value in settings_of(method).items():
        if setting != "source":
            only = "" if "--" + setting.replace("_", "-") in flags else " (Python only)"
            lines.append(f"| `{setting}`{only} | {shown(setting, value)} | {words[setting]} |")
    told = "In Python by these names; on the command line as flags, such as `--top-k`."
    return "\n".join([*lines, "", told, "", f"Source: {method.source}."])


def shown(setting: str, value: object) -> str:
    """Return a setting's value as a reader would say it."""
    if setting == "top_k" and value is None:
        return "all"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def attributes_of(kind: type) -> dict[str, str]:
    """Return what a class's docstring says of each of its attributes."""
    listed = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2].split("\n\n")[0]
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.+(?:\n {8}.+)*)", listed, re.MULTILINE)
    return {name: " ".join(words.split()) for names, words in entries for name in names.split(", ")}


def copy_pictures(root: Path, check: bool) -> list[str]:
    """Copy the studies' pictures to docs/, or only look; return those that were not the same."""
    stale = [to for to, source in PICTURES.items() if _bytes(root / to) != _bytes(root / source)]
    if not check:
        for to in stale:
            write_bytes(root / to, (root / PICTURES[to]).read_bytes())
    return stale


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


SHIPPED_COSTS = (("perplexity", 1), ("repeated_bigrams", 3))


TABLES: dict[str, Table] = {
    "demo": demo,
    "example": example,
    "decode": decode,
    "train": train,
    "parts": parts,
    "compiling": compiling,
    "scale": scale,
    "rewards": rewards,
    "steering": steering,
    "shipped": shipped,
    "trunk": trunk,
    "objectives": objectives,
    "paper": paper,
}

# What the methods' code says of itself, by the name of its block.
OF_METHODS: dict[str, Table] = {"methods": methods} | {
    f"settings-{name}": partial(settings, name=name) for name in METHODS
}
PICTURES = {
    "docs/figures/demo.svg": "studies/demo/demo.svg",
    "docs/figures/objectives.png": "studies/objectives/objectives.png",
    "docs/figures/paper.png": "studies/paper/paper.png",
    "docs/figures/detect.png": "studies/detect/detect.png",
    "docs/figures/decode_growth.png": "benchmarks/results/decode_growth.png",
}


def pages(root: Path) -> list[Path]:
    """Return the README and the pages of docs/ that have tables."""
    return [
        root / "README.md",
        *sorted(page for page in (root / "docs").rglob("*.md") if "<!-- table:" in page.read_text()),
    ]


def fill_all(arguments: list[str]) -> int:
    """Fill or check every page and picture; return the exit status."""
    status = main(arguments, ROOT, TABLES | OF_METHODS | OF_DETECTION | OF_ARCHITECTURES, pages(ROOT))
    if status == 2:
        return status
    check = arguments == ["--check"]
    stale = copy_pictures(ROOT, check)
    if stale:
        said = "differ from the studies'; run: make tables" if check else "copied"
        print(f"{', '.join(stale)}: {said}", file=sys.stderr if check else sys.stdout)
    return max(status, int(check and bool(stale)))


if __name__ == "__main__":
    sys.exit(fill_all(sys.argv[1:]))
