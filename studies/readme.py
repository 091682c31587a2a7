"""The README's tables, from committed results alone.

python -m studies.readme [--check]        fills README.md; --check exits 1 where a table differs
"""

import sys
from pathlib import Path

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
            [row["part"], str(row["calls"]), number(row["seconds"]), f"{100 * row['share']:.1f}%"]
            for row in found["profile"]
        ]
    return markdown(["part", "calls", "seconds", "share"], rows)


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


SHIPPED_COSTS = (("perplexity", 1), ("repeated_bigrams", 3))


TABLES: dict[str, Table] = {
    "demo": demo,
    "example": example,
    "decode": decode,
    "train": train,
    "parts": parts,
    "rewards": rewards,
    "steering": steering,
    "shipped": shipped,
    "trunk": trunk,
    "objectives": objectives,
    "paper": paper,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], ROOT, TABLES))
