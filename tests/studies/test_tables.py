"""The README's tables: blocks are found, filled and checked, and mistakes are named."""

import json
from pathlib import Path

import pytest

from studies import readme
from studies.objectives import tables
from studies.tables import TablesError, fill, fill_readme, main, markdown

KNOWN = {"one": lambda root: "| 1 |", "two": lambda root: "| 2 |"}

DEMO = {
    "prompts": 120,
    "gold_base": 0.231,
    "gold_guided": 0.689,
    "gold_difference": {"mean": 0.458, "interval": [0.4, 0.5161]},
    "weight": 2.0,
    "total_kl_base": 9.8,
    "guidance_kl": 3.6,
    "total_kl": 13.44,
    "perplexity": {"base": 8.25, "guided": 9.5},
    "repeated_words": {"base": 0.061, "guided": 0.0942},
    "repeated_bigrams": {"base": 0.02, "guided": 0.0251},
    "length": {"base": 24.0, "guided": 23.9},
    "tokens_per_second": {"base": 105.2, "guided": 71.0},
}
DECODE_ROW = {
    "method": "pargs",
    "reward": "12 layers",
    "batch": 1,
    "context": 76,
    "new_tokens": 64,
    "seconds_per_token": 0.1234,
    "seconds_per_token_after_first": 0.111,
    "ratio_to_plain": 1.7,
    "ratio_interval": [1.65, 1.756],
    "study": "speed",
    "tokens_per_second": 8.1,
    "ratio_to_floor": 2.5,
    "peak_mb": 30.4,
    "compile_seconds": None,
}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def block(name: str, content: str = "") -> str:
    return f"<!-- table: {name} -->\n{content}<!-- end -->"


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_fills_every_block_and_leaves_the_rest(tmp_path):
    page = "# A\n\n{}\nbetween\n{}\nend\n"
    filled, stale = fill(page.format(block("one"), block("two", "old\n")), tmp_path, KNOWN)
    assert filled == page.format(block("one", "| 1 |\n"), block("two", "| 2 |\n"))
    assert stale == ["one", "two"]
    assert fill(filled, tmp_path, KNOWN) == (filled, [])


def test_a_backslash_in_a_table_is_kept(tmp_path):
    filled, _ = fill(block("one"), tmp_path, {"one": lambda root: r"a \| b \1"})
    assert filled == block("one", "a \\| b \\1\n")


def test_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(TablesError, match=r"table 'three' is unknown; use one of: one, two"):
        fill(block("three"), tmp_path, KNOWN)


@pytest.mark.parametrize(
    "text",
    ["<!-- table: one -->\n", f"<!-- table: one -->\n{block('two')}\n", "<!-- table: one --> <!-- end -->"],
)
def test_a_block_that_cannot_be_read_is_an_error(tmp_path, text):
    with pytest.raises(TablesError, match="table blocks can be read"):
        fill(text, tmp_path, KNOWN)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("page", [None, "# No tables\n"])
def test_nothing_to_fill(tmp_path, check, page):
    if page is not None:
        (tmp_path / "README.md").write_text(page)
    assert fill_readme(tmp_path, check=check, tables=KNOWN) == (
        0,
        f"{tmp_path / 'README.md'} has no table blocks; nothing to fill",
    )


def test_check_names_stale_blocks_and_writes_nothing(tmp_path):
    page = tmp_path / "README.md"
    text = block("one", "| 1 |\n") + "\n" + block("two", "| 3 |\n")
    page.write_text(text)
    status, sentence = fill_readme(tmp_path, check=True, tables=KNOWN)
    assert status == 1
    assert "two" in sentence
    assert "one" not in sentence
    assert page.read_text() == text
    assert fill_readme(tmp_path, check=False, tables=KNOWN)[0] == 0
    assert fill_readme(tmp_path, check=True, tables=KNOWN) == (0, f"every table in {page} is up to date")


@pytest.mark.parametrize("name", list(readme.TABLES | readme.OF_DETECTION))
def test_missing_results_name_their_command(tmp_path, name):
    with pytest.raises(TablesError, match=r"\w is missing; make it with: \w"):
        (readme.TABLES | readme.OF_DETECTION)[name](tmp_path)


@pytest.mark.parametrize("content", ["{}", "{"])
def test_unusable_results_name_their_command(tmp_path, content):
    path = tmp_path / "benchmarks/results/decode.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(TablesError, match=r"decode\.json .*; make it again with: make bench"):
        readme.decode(tmp_path)


def test_markdown_aligns_and_escapes():
    assert markdown(["name", "n"], [["a|b", "1"], ["c", "10"]]).splitlines() == [
        "| name |   n |",
        "| ---- | --: |",
        "| a\\|b |   1 |",
        "| c    |  10 |",
    ]


def test_demo(tmp_path):
    write_json(tmp_path / "studies/demo/results.json", DEMO)
    assert cells(readme.demo(tmp_path))[0] == ["120 prompts, weight 2", "base", "guided"]
    assert cells(readme.demo(tmp_path))[2:] == [
        ["gold reward of the response", "0.23", "0.69"],
        ["difference [95% interval]", "", "0.46 [0.40, 0.52]"],
        ["guidance KL, nats", "0", "3.6"],
        ["total KL, nats", "9.8", "13.4"],
        ["perplexity under the base model", "8.2", "9.5"],
        ["share of repeated words", "0.061", "0.094"],
        ["share of repeated bigrams", "0.020", "0.025"],
        ["length, tokens", "24.0", "23.9"],
        ["tokens per second, batch 40", "105", "71"],
    ]


def test_train(tmp_path):
    row = {"tune": "all", "data": "shipped", "way": "prefix", "pairs": 32, "response_tokens": 23.6}
    row |= {"seconds_per_pair": 0.01234, "ratio_to_sequence": 1.024, "ratio_interval": [1.01, 1.04]}
    row |= {"peak_mb": 812.4, "peak_ratio": 1.03, "peak_interval": [1.0, 1.1]}
    slow = row | {"way": "a row per prefix", "data": "128 tokens", "peak_mb": None, "peak_ratio": None}
    write_json(tmp_path / "benchmarks/results/train.json", {"rows": [row, slow]})
    assert cells(readme.train(tmp_path))[2:] == [
        ["prefix", "all", "shipped (24 tokens)", "12.3", "1.02 [1.01, 1.04]", "812", "1.03"],
        ["a row per prefix", "all", "128 tokens", "12.3", "1.02 [1.01, 1.04]", "", ""],
    ]


def test_trunk(tmp_path):
    weight = {"weight": 1.86, "gold": 0.517, "guidance_kl": 1.89, "perplexity": 7.66, "repeated_bigrams": 0.0204}
    at_kl = [{"kl": 2.0, "gold": 0.522, "interval": [0.48, 0.5649]}, {"kl": 5.0, "gold": None, "interval": None}]
    guides = [
        {"guide": {"parts": parts}, "prompts": 352, "weights": [weight], "at_kl": at_kl} for parts in ("f", "f+g")
    ]
    write_json(tmp_path / "studies/trunk/results.json", {"guided": guides})
    told, _, table = readme.trunk(tmp_path).partition("\n\n")
    assert told == "352 openings; read off at equal guidance KL: 0.52 [0.48, 0.56] at 2 nats."
    assert cells(table)[2:] == [["1.9", "0.52", "1.9", "7.7", "0.020"]]


def test_objectives(tmp_path):
    def row(objective: str, held_out: float, accuracy: float, seed: int = 0) -> dict:
        share = {"accuracy": accuracy, "interval": [accuracy - 0.1, accuracy + 0.1]}
        held = {"0.5": 0.5, "1.0": held_out}
        return {
            "backbone": "trunk, head",
            "objective": objective,
            "seed": seed,
            "held_out": held,
            "shares": [share] * 5,
        }

    def guide(objective: str, gold: float | None) -> dict:
        places = [{"kl": kl, "gold": gold, "interval": None} for kl in (2.0, 5.0, 10.0)]
        return {"backbone": "trunk, head", "objective": objective, "at_kl": places}

    ratio = {"1": {"mean": 1.02, "interval": [0.9, 1.1]}, "16": {"mean": 0.98, "interval": [0.9, 1.1]}}
    found = {
        "rows": [row("prefix", 0.8, 0.7), row("prefix", 0.8, 0.6, seed=1), row("sequence", 0.7, 0.9)],
        "guided": [guide("prefix", 0.55), guide("sequence", 0.65), guide("farma", None)],
        "timed": [{"backbone": "trunk, head", "ratio": ratio}],
    }
    write_json(tmp_path / "studies/objectives/results/sentiment.json", found)
    header, _, trunk, *others = cells(readme.objectives(tmp_path))
    assert header[1:3] == ["sentiment: accuracy", "sentiment: gold at 5 nats"]
    # The objective is the one that held-out pairs prefer, not the one that is best on the test split.
    assert trunk == ["trunk, head", "0.65 prefix", "0.65 sequence", "1.02", "0.98"]
    assert {tuple(line[1:]) for line in others} == {("",) * 4}


def test_the_example_shows_code_and_output(tmp_path):
    folder = tmp_path / "studies/demo"
    folder.mkdir(parents=True)
    (folder / "example.py").write_text("print(1)\n")
    (folder / "example.txt").write_text("1\n")
    assert readme.example(tmp_path) == "```python\nprint(1)\n```\n\n```text\n1\n```"


def test_decode(tmp_path):
    plain = DECODE_ROW | {"method": "plain", "reward": "none", "ratio_to_plain": 1.0, "ratio_interval": [1.0, 1.0]}
    batch = plain | {"batch": 2, "ratio_to_floor": None, "peak_mb": None}
    compiled = DECODE_ROW | {"method": "pargs, compiled", "compile_seconds": 61.2}
    growth = DECODE_ROW | {"study": "context"}
    found = {"rows": [plain, DECODE_ROW, batch, compiled, growth]}
    write_json(tmp_path / "benchmarks/results/decode.json", found)
    assert cells(readme.decode(tmp_path))[2:] == [
        ["plain", "none", "1", "123", "8.1", "1.00 [1.00, 1.00]", "2.5", "30"],
        ["pargs", "12 layers", "1", "123", "8.1", "1.70 [1.65, 1.76]", "2.5", "30"],
        ["plain", "none", "2", "62", "8.1", "1.00 [1.00, 1.00]", "", ""],
        ["pargs, compiled (compiled in 61 s)", "12 layers", "1", "123", "8.1", "1.70 [1.65, 1.76]", "2.5", "30"],
    ]


def test_parts(tmp_path):
    part = {"batch": 16, "part": "draw", "seconds": 0.016, "share": 0.0123, "calls": 64}
    write_json(tmp_path / "benchmarks/results/decode.json", {"rows": [], "profile": [part]})
    assert cells(readme.parts(tmp_path))[2:] == [["16", "draw", "64", "0.02", "1.2%"]]


def test_compiling_pays_off_behind_as_many_tokens_as_it_took_savings(tmp_path):
    slow = DECODE_ROW | {"method": "pargs", "seconds_per_token": 0.1}
    fast = slow | {"method": "pargs, compiled", "seconds_per_token": 0.08, "compile_seconds": 60.0}
    write_json(tmp_path / "benchmarks/results/decode.json", {"rows": [slow, slow | {"batch": 16}, fast]})
    said = readme.compiling(tmp_path).replace("\n", " ")
    assert "took 60 s here and saved 20 ms a token: it pays off after 3,000 tokens, 4 minutes of writing" in said
    write_json(tmp_path / "benchmarks/results/decode.json", {"rows": [slow, fast | {"seconds_per_token": 0.11}]})
    assert readme.compiling(tmp_path).endswith("it did not pay off.")


def accuracies(*values: float) -> list[dict]:
    return [{"accuracy": value, "interval": [value - 0.1, value + 0.1]} for value in values]


def baseline(name: str, accuracy: float, **fields) -> dict:
    length = {"prefers": "shorter", "accuracy": 0.75, "interval": [0.7, 0.8]}
    words = accuracies(0.5, 0.5, 0.5, 0.5, accuracy)
    return {"set": name, "train_pairs": 100, "bag_of_words": words, "length": length, **fields}


def test_rewards_average_over_seeds_and_show_a_lone_run_with_its_interval(tmp_path):
    run = {"train_examples": 100, "backbone": "20 layers, head", "objective": "prefix"}
    rows = [
        run | {"seed": 0, "shares": accuracies(0.5, 0.5, 0.5, 0.5, 0.6)},
        run | {"seed": 1, "shares": accuracies(0.5, 0.5, 0.5, 0.5, 0.7)},
        run | {"seed": 0, "objective": "sequence", "shares": accuracies(0.5, 0.5, 0.5, 0.5, 0.6)},
        run | {"seed": 0, "objective": "farma", "shares": accuracies(0.5, 0.5, 0.5, 0.5, 0.9)},
    ]
    folder = tmp_path / "studies/objectives/results"
    write_json(folder / "sentiment.json", {"rows": rows})
    write_json(folder / "baselines.json", {"baselines": [baseline("sentiment", 0.8), baseline("hh", 0.9)], "parts": []})
    table = cells(readme.rewards(tmp_path))
    assert [line[:4] + line[-1:] for line in table[2:]] == [
        ["sentiment", "100", "20 layers, head", "prefix", "0.65"],
        ["sentiment", "100", "20 layers, head", "sequence", "0.60 [0.50, 0.70]"],
        ["sentiment", "100", "bag of words", "", "0.80 [0.70, 0.90]"],
        ["sentiment", "100", "length: shorter", "", "0.75 [0.70, 0.80]"],
    ]
    assert table[-1][4:8] == [""] * 4


@pytest.mark.parametrize("made", ["as published", "repaired"])
def test_rewards_stand_beside_the_baselines_of_the_same_data(tmp_path, made):
    run = {"train_examples": 100, "backbone": "trunk, head", "objective": "prefix"}
    rows = [run | {"seed": 0, "shares": accuracies(0.5, 0.5, 0.5, 0.5, 0.6)}]
    folder = tmp_path / "studies/objectives/results"
    write_json(folder / "paradetox.json", {"paradetox": made, "rows": rows})
    both = [baseline("paradetox", 0.9, made="as published"), baseline("paradetox", 0.7, made="repaired")]
    part = {"set": "hh_helpful", "model": "last:2 of 16", "objective": "prefix", "train_pairs": 50}
    part["shares"] = accuracies(0.5, 0.5, 0.5, 0.5, 0.6)
    write_json(folder / "baselines.json", {"baselines": both, "parts": [part]})
    table, _, told = readme.rewards(tmp_path).partition("\n\n")
    words = {"as published": "0.90 [0.80, 1.00]", "repaired": "0.70 [0.60, 0.80]"}[made]
    assert [line[-1] for line in cells(table)[3:]] == [words, "0.75 [0.70, 0.80]"]
    assert told.startswith(f"ParaDetox {made}: ")
    every = cells(tables.baselines(tmp_path / "studies/objectives"))[2:]
    assert [line[0] for line in every] == ["paradetox as published"] * 2 + ["paradetox repaired"] * 2 + ["hh_helpful"]
    assert every[-1][1:4] == ["50", "last:2 of 16", "prefix"]


def test_steering_shows_backbones_that_guide_by_both_objectives(tmp_path):
    at = [{"kl": kl, "gold": 0.5, "interval": [0.4, 0.6]} for kl in (2, 5)]
    at.append({"kl": 10, "gold": None, "interval": None})
    row = {"set": "sentiment", "backbone": "trunk, head", "prompts": 7, "weights": [{"gold": 0.1}], "at_kl": at}
    rows = [row | {"objective": name} for name in ("sequence", "prefix", "farma")]
    rows.append(row | {"objective": "prefix", "backbone": "20 layers, head"})
    write_json(tmp_path / "studies/objectives/results/sentiment.json", {"guided": rows})
    assert cells(readme.steering(tmp_path))[2:] == [
        ["sentiment", "trunk, head", name, "7", "0.10", "0.50 [0.40, 0.60]", "0.50 [0.40, 0.60]", "not reached"]
        for name in ("prefix", "sequence")
    ]


def test_unknown_arguments_exit_2(tmp_path, capsys):
    assert main(["--write"], tmp_path, KNOWN) == 2
    assert "--check" in capsys.readouterr().err
