"""Prefix accuracy of every kind of reward against scores of the cut texts, and RewardBench's weights by hand."""

import gzip
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from midcourse.data.comparisons import Comparison
from midcourse.data.formats import BadRow, DataError
from midcourse.evaluate.accuracy import SHARES
from midcourse.evaluate.calibration import calibration_error
from midcourse.evaluate.intervals import mean_interval
from midcourse.evaluate.reward_bench import (
    SECTIONS,
    Benchmark,
    prefix_text,
    read_benchmark,
    reward_bench,
    section_scores,
)
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.text import ResponseText
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.classifier import ClassifierReward
from midcourse.rewards.implicit import ImplicitReward
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.rewards.text import FunctionReward, TextReward
from midcourse.testing import (
    byte_tokenizer,
    randomise,
    tiny_language_model,
    tiny_reward,
    tiny_trained_vocabulary_reward,
    tiny_trunk_reward,
    tiny_vocabulary_reward,
)
from tests.encoders import CONFIGS, word_tokenizer

SUBSETS = [name for weights in SECTIONS.values() for name in weights]


def benchmark(*comparisons: Comparison, subsets: Sequence[str] | None = None) -> Benchmark:
    return Benchmark(list(comparisons), list(subsets or ["all"] * len(comparisons)))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def column(figures: dict[str, Any], name: str = "accuracy") -> list[float]:
    assert [row["share"] for row in figures["shares"]] == list(SHARES)
    return [row[name] for row in figures["shares"]]


# A reward known by hand


def test_accuracies_by_hand():
    """Bytes are tokens and the reward counts "!". The shorter response has 4 and 10 tokens: cuts at 1, 1, 2, 3 (of 4)
    and at 1, 3, 5, 8 (of 10)."""
    first = Comparison("p", "a!b!!!", "!abc")  # cut: a|! , a!|!a , a!b|!ab ; whole: 4 > 1
    second = Comparison("q", "abcdefgh!!", "abcd!!!!!!")  # ab..: 0|0, 0|0, 0|1, 0|4 ; whole: 2 < 6
    figures = reward_bench(
        FunctionReward(lambda text: text.count("!")),
        benchmark(first, second, subsets=["one", "two"]),
        tokenizer=byte_tokenizer(),
    )
    assert column(figures) == [0.25, 0.25, 0.25, 0.25, 0.5]
    assert column(figures, "ties") == [0.5, 0.5, 0.5, 0.5, 0.0]
    assert column(figures["subsets"]["one"]) == [0.0, 0.0, 0.5, 0.5, 1.0]
    assert column(figures["subsets"]["two"]) == [0.5, 0.5, 0.0, 0.0, 0.0]
    assert (figures["pairs"], figures["prompts"]) == (2, 2)
    assert figures["equal_length"]["pairs"] == 1 and figures["equal_length"]["accuracy"] == 0.0
    assert figures["length_baseline"]["prefers"] == "longer" and figures["length_baseline"]["accuracy"] == 0.75
    assert figures["subsets"]["two"]["length_baseline"]["accuracy"] == 0.5
    assert figures["sections"] is None


def test_a_cut_response_has_no_end():
    """At 100% a finished response counts its EOS; the reward of texts sees whether it is finished."""
    seen = []

    def score(texts):
        seen.extend(texts)
        return [float(text.finished) for text in texts]

    cut = Comparison("p", "abcd", "efgh", chosen_finished=True, rejected_finished=False)
    figures = reward_bench(TextReward(score), benchmark(cut), tokenizer=byte_tokenizer())
    assert column(figures) == [0.5, 0.5, 0.5, 0.5, 1.0]
    assert {(text.response, text.finished) for text in seen} >= {("abcd", True), ("efgh", False), ("a", False)}


# Every kind of reward

COMPARISONS = [
    Comparison("the ferry was", " late and we loved it", " fine, no late ferry was poor"),
    Comparison("the ferry was", " poor", " late , and we loved it ."),
    Comparison("and", " we loved the late ferry .", " we loved the poor ferry ."),
    Comparison("no", " no", " and no and no ."),
    Comparison("it was late and", " it was fine .", " it was poor ."),
]


def folder_of(lm: LanguageModel, folder: Path) -> str:
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


def classifier_folder(folder: Path) -> Path:
    tokenizer = word_tokenizer("bert")
    config = CONFIGS["bert"](vocab_size=len(tokenizer), num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    randomise(model, 9)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def implicit(folder: Path) -> ImplicitReward:
    aligned, base = (folder_of(tiny_language_model(seed=seed), folder / str(seed)) for seed in (0, 7))
    return ImplicitReward.create(aligned, base, beta=0.5, dtype="float64")


def exported(folder: Path) -> TextReward:
    tiny_reward().export(folder / "exported")
    return load_reward(folder / "exported", dtype="float64")


KINDS: dict[str, Callable[[Path], Any]] = {
    "scalar": lambda folder: tiny_reward(),
    "vocabulary": lambda folder: tiny_trained_vocabulary_reward(),
    "autoregressive": lambda folder: tiny_trained_vocabulary_reward(objective="autoregressive"),
    "trunk": lambda folder: tiny_trunk_reward(tiny_language_model()),
    "implicit": implicit,
    "causal LM": lambda folder: tiny_vocabulary_reward(),
    "exported": exported,
    "classifier": lambda folder: load_reward(classifier_folder(folder / "classifier")),
    "function": lambda folder: FunctionReward(lambda text: text.count("e") - text.count("o")),
}
ADDITIVE = ("autoregressive", "implicit", "causal LM")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_as_it_scores_texts(kind, tmp_path):
    """The reward of a prefix is that of the cut text alone, the sum over its tokens where the reward adds up."""
    reward = KINDS[kind](tmp_path)
    lm = tiny_language_model()

    def of(comparison: Comparison, response: str, finished: bool) -> float:
        if isinstance(reward, TextReward):
            score = reward.bind(lm).score([comparison.prompt], [response])[0].rewards
            return score[-1] if finished else score[len(response) - 1]
        rewards = reward.score([comparison.prompt], [response], finished=finished)[0].rewards
        return sum(rewards) if kind in ADDITIVE else rewards[-1]

    def outcome(a: float, b: float) -> float:
        return 0.5 if abs(a - b) < 1e-9 else float(a > b)

    wanted = []
    for share in SHARES:
        outcomes = []
        for c in COMPARISONS:
            cut = math.ceil(share * min(map(len, c.responses)))
            texts = c.responses if share == 1 else [response[:cut] for response in c.responses]
            outcomes.append(outcome(*(of(c, text, share == 1) for text in texts)))
        wanted.append(np.mean(outcomes))
    for batch_tokens in (1, 2048):
        figures = reward_bench(reward, benchmark(*COMPARISONS), tokenizer=lm.tokenizer, batch_tokens=batch_tokens)
        assert column(figures) == pytest.approx(wanted)
    assert any(accuracy not in (0.0, 0.5, 1.0) for accuracy in wanted)


@settings(deadline=None, max_examples=40)
@given(text=st.text(max_size=12), cut=st.integers(0, 30))
def test_a_prefix_is_the_text_that_guiding_shows_rewards(text, cut):
    tokenizer = byte_tokenizer()
    ids = [i for i in tokenizer(text.replace("�", ""))["input_ids"] if i != tokenizer.eos_token_id][:cut]
    assert prefix_text(tokenizer, ids) == ResponseText(tokenizer, {tokenizer.eos_token_id}, ids).now.text


# What is left out


def test_too_long_comparisons_are_left_out_whole():
    """Lengths of prompt, longer response and EOS: 2 + 5 + 1, 2 + 3 + 1."""
    long, short = Comparison("ab", "12345", "1"), Comparison("cd", "123", "12")
    reward = tiny_reward()
    for limit, want in ((8, 2), (7, 1), (6, 1)):
        figures = reward_bench(reward, benchmark(long, short), max_tokens=limit)
        assert (figures["pairs"], figures["left_out"]) == (want, {"too_long": 2 - want})
    with pytest.raises(RewardError, match="all 2 comparisons are longer than the 5 tokens"):
        reward_bench(reward, benchmark(long, short), max_tokens=5)
    with pytest.raises(RewardError, match="max-tokens 1 leaves no room"):
        reward_bench(reward, benchmark(long, short), max_tokens=1)


def test_the_context_is_a_limit_too():
    """A tiny model reads 256 tokens."""
    fits, over = Comparison("a", "b" * 254, "c"), Comparison("a", "b" * 255, "c")
    figures = reward_bench(tiny_reward(), benchmark(fits, over))
    assert (figures["pairs"], figures["left_out"]["too_long"]) == (1, 1)


def test_functions_count_the_response():
    comparisons = [Comparison("p" * 99, "1234", "123"), Comparison("p", "12345", "1")]
    count = FunctionReward(len)
    figures = reward_bench(count, benchmark(*comparisons), tokenizer=byte_tokenizer(), max_tokens=4)
    assert (figures["pairs"], figures["left_out"]["too_long"]) == (1, 1)
    with pytest.raises(RewardError, match="all 2 comparisons are longer than max-tokens 2"):
        reward_bench(count, benchmark(*comparisons), tokenizer=byte_tokenizer(), max_tokens=2)
    with pytest.raises(RewardError, match="pass the tokenizer that cuts them"):
        reward_bench(count, benchmark(*comparisons))


def test_a_classifier_reads_the_end_of_a_long_prompt(tmp_path):
    """It reads 38 tokens, of which 3 are special; so a response of 36 does not fit, and a prompt of 30 is cut by 5."""
    reward = load_reward(classifier_folder(tmp_path / "classifier"))
    assert isinstance(reward, ClassifierReward)
    rows = [
        Comparison("the " * 30, "no " * 10, "we"),
        Comparison("the", "no " * 36, "we"),
        Comparison("the", "fine", "poor"),
    ]
    figures = reward_bench(reward, benchmark(*rows), tokenizer=byte_tokenizer())
    assert (figures["pairs"], figures["left_out"]["too_long"], figures["cut_prompts"]) == (2, 1, 1)
    figures = reward_bench(reward, benchmark(*rows), tokenizer=byte_tokenizer(), max_tokens=6)
    assert (figures["pairs"], figures["left_out"]["too_long"], figures["cut_prompts"]) == (1, 2, 0)
    assert reward.room == 38


def test_rewards_that_are_no_numbers_are_refused():
    reward = tiny_reward()
    with torch.no_grad():
        reward.head.weight[0, 0] = math.nan
    with pytest.raises(
        RewardError, match=r"2 comparisons have rewards that are no finite numbers, the first .* 'ab'"
    ) as caught:
        reward_bench(reward, benchmark(Comparison("ab", "1", "2"), Comparison("b", "3", "4")))
    assert f"restore the weights of {reward.name}, train it again" in str(caught.value)


# Calibration


def test_the_stored_temperatures_are_those_that_are_judged():
    reward = tiny_reward()
    raw = reward_bench(reward, benchmark(*COMPARISONS))["calibration"]
    assert (raw["temperature"], raw["finished_temperature"]) == (None, None)
    assert [row["temperature"] for row in raw["shares"]] == [1.0] * 5
    stored = Calibration(temperature=2.0, finished_temperature=0.5, means=(0.0,), finished_mean=0.0)
    reward.info = type(reward.info)(**{**vars(reward.info), "calibration": stored.stored()})
    found = reward_bench(reward, benchmark(*COMPARISONS))["calibration"]
    assert (found["temperature"], found["finished_temperature"]) == (2.0, 0.5)
    assert [row["temperature"] for row in found["shares"]] == [2.0] * 4 + [0.5]
    margins = [
        a[-1] - b[-1] for a, b in ([s.rewards for s in reward.score([c.prompt] * 2, c.responses)] for c in COMPARISONS)
    ]
    prompts = [c.prompt for c in COMPARISONS]
    want = calibration_error(np.array(margins), np.full(5, 0.5), prompts)
    assert found["shares"][-1]["given"]["ece"] == pytest.approx(want["ece"])
    assert found["shares"][-1]["fitted"] == raw["shares"][-1]["fitted"]
    cut = [Comparison(c.prompt, c.chosen, c.rejected, False, False) for c in COMPARISONS]
    assert [row["temperature"] for row in reward_bench(reward, benchmark(*cut))["calibration"]["shares"]] == [2.0] * 5


def test_one_prompt_has_no_other_half():
    figures = reward_bench(tiny_reward(), benchmark(Comparison("a", "1", "2"), Comparison("a", "3", "4")))
    assert [row["fitted"] for row in figures["calibration"]["shares"]] == [None] * 5


# RewardBench


def outcomes_of(accuracy: dict[str, float], per_subset: int = 4) -> tuple[np.ndarray, list[str], list[str]]:
    """(outcomes, subsets, prompts) with these accuracies at every share, 0 in the other subsets."""
    rows = [
        (float(n < accuracy.get(name, 0.0) * per_subset), name, f"{name} {n}")
        for name in SUBSETS
        for n in range(per_subset)
    ]
    values, subsets, prompts = zip(*rows, strict=True)
    return np.tile(values, (len(SHARES), 1)), list(subsets), list(prompts)


@pytest.mark.parametrize(
    ("accuracy", "want"),
    [
        ({}, (0.0, 0.0, 0.0, 0.0)),
        (dict.fromkeys(SUBSETS, 1.0), (1.0, 1.0, 1.0, 1.0)),
        ({"math-prm": 1.0}, (0.0, 0.0, 0.0, 0.5)),
        ({"hep-rust": 1.0}, (0.0, 0.0, 0.0, 1 / 12)),
        ({"alpacaeval-easy": 0.5, "mt-bench-med": 1.0}, ((50 + 40) / 358, 0.0, 0.0, 0.0)),
        ({"llmbar-adver-manual": 0.75, "mt-bench-hard": 1.0}, (0.0, (0.75 * 46 + 37) / 456, 0.0, 0.0)),
        ({"xstest-should-respond": 1.0, "xstest-should-refuse": 0.5}, (0.0, 0.0, (250 + 77) / 740, 0.0)),
    ],
)
def test_sections_weigh_subsets_by_their_size(accuracy, want):
    found = section_scores(*outcomes_of(accuracy))
    assert [row["section"] for row in found["sections"]] == ["Chat", "Chat Hard", "Safety", "Reasoning"]
    for share in range(len(SHARES)):
        scores = [row["shares"][share]["score"] for row in found["sections"]]
        assert scores == pytest.approx(list(want))
        assert found["total"][share]["score"] == pytest.approx(np.mean(want))


def test_a_model_of_rewardbench_readme():
    """How many pairs of its 2,985 a model orders rightly, by the accuracies that RewardBench's README gives for one."""
    right = {
        "Chat": (50, 56, 67, 16, 29),
        "Chat Hard": (20, 52, 58, 36, 22, 17),
        "Safety": (97, 100, 154, 71, 112),
        "Reasoning": (132, 103, 104, 116, 109, 90, 106),
    }
    counts = {**{k: v for weights in SECTIONS.values() for k, v in weights.items()}, "math-prm": 447}
    assert sum(counts.values()) == 2985
    outcomes, subsets = [], []
    for (name, count), good in zip(counts.items(), [n for numbers in right.values() for n in numbers], strict=True):
        outcomes += [1.0] * good + [0.0] * (count - good)
        subsets += [name] * count
    found = section_scores(np.tile(outcomes, (5, 1)), subsets, list(map(str, range(2985))))
    want = [218 / 358, 205 / 456, 534 / 740, (132 / 447 + 628 / 984) / 2]
    assert [row["shares"][-1]["score"] for row in found["sections"]] == pytest.approx(want)
    assert found["total"][-1]["score"] == pytest.approx(sum(want) / 4)


def test_a_file_with_part_of_the_subsets_has_sections_but_no_total():
    outcomes = np.tile([1.0, 0.0, 1.0], (len(SHARES), 1))
    found = section_scores(outcomes, ["hep-go", "hep-go", "donotanswer"], ["a", "b", "c"])
    assert [(row["section"], row["subsets"]) for row in found["sections"]] == [
        ("Safety", ["donotanswer"]),
        ("Reasoning", ["hep-go"]),
    ]
    assert found["sections"][0]["missing"] == [name for name in SECTIONS["Safety"] if name != "donotanswer"]
    assert found["total"] is None
    assert section_scores(outcomes, ["x", "y", "z"], ["a", "b", "c"]) is None


def test_the_interval_of_a_lone_subset_is_that_of_its_mean():
    """And of two subsets of equal weight it is narrower by about the root of two: they are drawn apart."""
    values = np.random.default_rng(0).integers(0, 2, 200).astype(float)
    prompts = [str(n // 2) for n in range(200)]
    found = section_scores(np.tile(values, (5, 1)), ["hep-go"] * 200, prompts)
    mean, interval = mean_interval(values, prompts)
    assert found["sections"][0]["shares"][0] == {"share": 0.1, "score": mean, "interval": pytest.approx(interval)}
    two = section_scores(np.tile(values, (5, 2)), ["hep-go"] * 200 + ["hep-js"] * 200, prompts * 2)
    low, high = two["sections"][0]["shares"][0]["interval"]
    assert (high - low) == pytest.approx((interval[1] - interval[0]) / math.sqrt(2), rel=0.08)


def test_a_rewardbench_file_from_end_to_end(tmp_path):
    """Two rows a subset; the reward is right about Chat, wrong about Safety, tied elsewhere."""
    rows = [
        {"prompt": f"{name} {n}", "chosen": text, "rejected": other, "subset": name, "id": n, "chosen_model": "m"}
        for section, weights in SECTIONS.items()
        for name in weights
        for n in range(2)
        for text, other in [{"Chat": ("aa", "bb"), "Safety": ("bb", "aa")}.get(section, ("cc", "dd"))]
    ]
    found = read_benchmark([write(tmp_path / "filtered.jsonl", *rows)])
    figures = reward_bench(FunctionReward(lambda text: text.count("a")), found, tokenizer=byte_tokenizer())
    scores = [row["shares"][0]["score"] for row in figures["sections"]["sections"]]
    assert scores == [1.0, 0.5, 0.0, 0.5]
    assert figures["sections"]["total"][-1]["score"] == 0.5
    assert list(figures["subsets"]) == SUBSETS


# Files


GOOD = {"prompt": "p", "chosen": "yes", "rejected": "no"}


def test_subsets_are_a_field_or_the_name_of_the_file(tmp_path):
    first = write(tmp_path / "first.v1.jsonl", {**GOOD, "subset": "easy"}, GOOD, {**GOOD, "subset": None})
    packed = tmp_path / "second.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps({**GOOD, "source": "web"}).encode()))
    found = read_benchmark([first, packed])
    assert found.subsets == ["easy", "first", "first", "second"]
    assert read_benchmark([packed], subset_field="source").subsets == ["web"]
    with pytest.raises(DataError, match=r"first\.v1\.jsonl, line 1, field source: the field is to name the subset"):
        read_benchmark([first], subset_field="source")
    (tmp_path / "a").mkdir()
    other = write(tmp_path / "a" / "first.jsonl", GOOD)
    assert read_benchmark([first, other]).subsets[-2:] == [str(first), str(other)]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_have_subsets_too(tmp_path, ending):
    frame = pandas.DataFrame([{**GOOD, "subset": "easy", "source": "web"}, {**GOOD, "subset": "", "source": "book"}])
    path = tmp_path / f"rows.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    assert read_benchmark([path]).subsets == ["easy", "rows"]
    assert read_benchmark([path], subset_field="source").subsets == ["web", "book"]


def test_identical_and_empty_responses_are_counted(tmp_path):
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path = write(
        tmp_path / "rows.jsonl",
        GOOD,
        {**GOOD, "rejected": "yes"},
        {"chosen": conversation, "rejected": conversation},
        {**GOOD, "chosen": [{"role": "assistant", "content": "no"}]},
        {**GOOD, "rejected": " \n"},
        {**GOOD, "chosen": ""},
    )
    found = read_benchmark([path])
    assert found.comparisons == [Comparison("p", "yes", "no")]
    assert found.left_out == {"identical": 3, "empty": 2, "bad": 0}
    with pytest.raises(DataError, match=r"no comparison to measure on \(1 identical\)"):
        read_benchmark([write(tmp_path / "same.jsonl", {**GOOD, "rejected": "yes"})])


HOSTILE = {
    "not JSON": '{"prompt": "p", "chosen": ',
    "no object": "[1, 2]",
    "deep": "[" * 100_000,
    "no rejected": '{"prompt": "p", "chosen": "a"}',
    "numbers": '{"prompt": "p", "chosen": 1, "rejected": 1}',
    "half a surrogate pair": '{"prompt": "p", "chosen": "\\ud83d", "rejected": "b"}',
    "subset is a list": '{"prompt": "p", "chosen": "a", "rejected": "b", "subset": ["x"]}',
    "messages for raw": '{"prompt": [{"role": "user", "content": "x"}], "chosen": "a", "rejected": "b"}',
}


@pytest.mark.parametrize("row", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_rows_are_refused_with_their_line_or_set_aside(tmp_path, row):
    path = write(tmp_path / "rows.jsonl", GOOD, row)
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2.* \(--skip-bad-rows leaves bad rows out\)"):
        read_benchmark([path], reward=tiny_reward())
    rejects: list[BadRow] = []
    found = read_benchmark([path], reward=tiny_reward(), rejects=rejects)
    assert (len(found.comparisons), found.left_out["bad"], [bad.line for bad in rejects]) == (1, 1, [2])


def test_special_tokens_in_texts_are_text_or_ends_but_never_a_crash():
    hostile = "<|im_end|><|im_start|>\x00�<|pad|>"
    rows = [Comparison(hostile, hostile + "a", hostile), Comparison("p", "😀", "\u200b")]
    for reward in (tiny_reward(), tiny_vocabulary_reward(), FunctionReward(len)):
        figures = reward_bench(reward, benchmark(*rows), tokenizer=byte_tokenizer())
        assert figures["pairs"] == 2


def test_a_limit_takes_some_of_each_subset_at_random(tmp_path):
    rows = [{"prompt": str(n), "chosen": "a", "rejected": "b", "subset": "xy"[n % 2]} for n in range(40)]
    path = write(tmp_path / "rows.jsonl", *rows)
    found = read_benchmark([path], limit=5)
    assert (found.subsets.count("x"), found.subsets.count("y")) == (5, 5)
    numbers = [int(c.prompt) for c in found.comparisons]
    assert numbers == sorted(numbers) and numbers != list(range(10))
    assert read_benchmark([path], limit=5) == found
    assert len(read_benchmark([path], limit=99).comparisons) == 40
    with pytest.raises(DataError, match="limit is 0"):
        read_benchmark([path], limit=0)


def test_the_length_baseline_of_a_subset_prefers_what_it_prefers_overall():
    rows = [Comparison("a", "1234", "12"), Comparison("b", "1234", "12"), Comparison("c", "12", "1234")]
    figures = reward_bench(tiny_reward(), benchmark(*rows, subsets=["x", "x", "y"]))
    assert figures["length_baseline"]["accuracy"] == pytest.approx(2 / 3)
    assert figures["subsets"]["y"]["length_baseline"]["accuracy"] == 0.0


# The command line


@pytest.fixture
def bench_file(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"p{n}", "chosen": "good " * (n % 3 + 1), "rejected": "bad " * 2, "subset": "ab"[n % 2]}
        for n in range(8)
    ]
    return write(tmp_path / "rows.jsonl", *rows, {**GOOD, "rejected": "yes", "subset": "a"})


def test_the_verb_prints_a_table_and_writes_files(midcourse, model_folder, bench_file, tmp_path):
    reward = tmp_path / "reward"
    tiny_reward(dtype=torch.float32).export(reward)
    lm = model_folder(dtype=torch.float32)
    asked = ("reward-bench", "--reward", reward, "--lm", lm, "--comparisons", bench_file)
    out_file, plot = tmp_path / "new" / "figures.json", tmp_path / "new" / "plot.png"
    code, out, err = midcourse(*asked, "--out", out_file, "--plot", plot)
    assert code == 0, err
    for words in ("Pair accuracy (8 pairs of 8 prompts", "By subset", "10% of the response", "left out: 1 identical"):
        assert words in " ".join(out.split())
    assert plot.read_bytes().startswith(b"\x89PNG")
    code, out, err = midcourse(*asked, "--json")
    assert code == 0, err
    figures = json.loads(out)
    stored = json.loads(out_file.read_text())
    assert {name: stored[name] for name in figures} == figures and "versions" in stored
    assert (figures["reward"], list(figures["subsets"])) == (str(reward), ["a", "b"])


def test_the_verb_reads_a_causal_lm_and_a_function(midcourse, model_folder, bench_file, tmp_path, monkeypatch):
    lm = model_folder(dtype=torch.float32)
    code, out, err = midcourse(
        "reward-bench", "--reward", lm, "--comparisons", bench_file, bench_file, "--json", "--limit", 2
    )
    assert code == 0, err
    assert json.loads(out)["pairs"] == 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench_taste.py").write_text("def good(text):\n    return text.count('g')\n")
    asked = ("reward-bench", "--reward-function", "bench_taste:good", "--lm", lm, "--comparisons", bench_file)
    code, out, err = midcourse(*asked, "--json")
    assert code == 0, err
    assert column(json.loads(out))[0] == 1.0


def test_the_verb_sets_bad_rows_aside(midcourse, model_folder, bench_file, tmp_path):
    with bench_file.open("a") as file:
        file.write("no json\n")
    asked = ("reward-bench", "--reward", model_folder(dtype=torch.float32), "--comparisons", bench_file)
    assert "line 10" in midcourse(*asked)[2]
    code, out, err = midcourse(*asked, "--skip-bad-rows", tmp_path / "bad.jsonl")
    assert code == 0, err
    assert "left out: 1 identical, 1 bad rows" in out
    assert json.loads((tmp_path / "bad.jsonl").read_text())["line"] == 10


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ([], "give --reward or --reward-function"),
        (["--reward", "x", "--reward-function", "y"], "give --reward or --reward-function"),
        (["--reward", "no-such-reward"], "no-such-reward is no reward"),
        (["--reward-function", "no_such_module:f"], "no_such_module:f"),
        (["--reward", "x", "--max-tokens", 0], "--max-tokens is 0; use 1 or more"),
        (["--reward", "x", "--limit", 0], "--limit is 0; use 1 or more"),
        (["--reward", "x", "--batch-tokens", -1], "--batch-tokens is -1; use 1 or more"),
        (["--reward", "x", "--plot", "p.svg"], "name a file that ends in .png"),
        (["--reward", "x", "--out", "p.txt"], "name a file that ends in .json"),
    ],
)
def test_misuse_is_refused_in_a_sentence(midcourse, bench_file, flags, part):
    code, out, err = midcourse("reward-bench", "--comparisons", bench_file, *flags)
    assert (code, out) == (2, "")
    assert err.startswith("midcourse: ") and part in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("files", [[], ["no-such-file.jsonl"], ["tests"]])
def test_files_that_are_none(midcourse, model_folder, files):
    code, _, err = midcourse("reward-bench", "--reward", model_folder(dtype=torch.float32), "--comparisons", *files)
    assert code == 2 and "Traceback" not in err


def test_each_of_several_rejected_responses_is_a_comparison(tmp_path):
    """As RewardBench 2 has them."""
    path = tmp_path / "two.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "a"], "subset": "Math"}) + "\n")
    found = read_benchmark([path])
    assert [one.rejected for one in found.comparisons] == ["b", "c"] and found.left_out["identical"] == 1
    assert found.subsets == ["Math", "Math"]
