"""The paper study's tables and picture: what they read off results, and what they call met."""

import json
from pathlib import Path

import numpy as np
import pytest

from midcourse.compare.writing import WrittenResponse
from midcourse.data.comparisons import Comparison
from studies.paper import tables
from studies.paper.plot import plot
from studies.paper.run import CUTS, ENTRIES, Stem, affordable, correlations, seconds_per_token
from studies.paper.tasks import words_judge
from tests.compare.comparison import row, write


def estimate(mean: float, half: float = 0.01) -> dict:
    return {"mean": mean, "interval": [mean - half, mean + half]}


def arm(setting: dict, score: float, kl: float, bound: bool = False) -> dict:
    names = ("guide_reward", "perplexity", "diversity", "loops", "lm_passes", "reward_passes", "candidates")
    figures = {name: estimate(1.0) for name in (*names, "gigaflops", "relative_time")}
    figures |= {"guidance_kl": estimate(kl), "total_kl": estimate(kl + 10)}
    judged = {"score": {**estimate(score), "difference": estimate(score - 0.2, 0.03)}}
    return {
        "setting": setting,
        "judges": {"gold": judged},
        "figures": figures,
        "kl_is_bound": bound,
        "responses": 4,
        "method": "pargs" if "reward_weight" in setting else "other",
        "reward": "prefix",
    }


def place(axis: str, kl: float, why: str, scores: dict, differences: dict) -> dict:
    gaps = [{"one": one, "other": other, **estimate(mean, 0.05)} for (one, other), mean in differences.items()]
    found = {name: score and estimate(score) for name, score in scores.items()}
    return {"judge": "gold", "axis": axis, "greedy": False, "kl": kl, "why": why, "scores": found, "differences": gaps}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of one task, by one judge: PARGS wins at 2 nats, draws at 5 and is not reached at 10."""
    curves = {
        tables.PARGS: ["plain", "p1", "p2"],
        tables.TRUNK: ["plain", "t1"],
        tables.ARGS: ["plain", "a1"],
        tables.BEST_OF: ["plain", "b16"],
        tables.DPO: ["policy dpo"],
    }
    band = {"kl": [0.0, 5.0], "mean": [0.2, 0.6], "low": [0.1, 0.5], "high": [0.3, 0.7]}
    one, two, three, best, dpo = tables.PARGS, tables.ARGS, tables.TRUNK, tables.BEST_OF, tables.DPO
    summary = {
        "plain": "plain",
        "prompts": 100,
        "seeds": 2,
        "judges": {"gold": {"scores": True}},
        "arms": {
            "plain": arm({}, 0.2, 0.0),
            "p1": arm({"reward_weight": 1.0}, 0.4, 2.0),
            "p2": arm({"reward_weight": 2.0}, 0.5, 6.0),
            "t1": arm({"reward_weight": 3.0}, 0.6, 12.0),
            "a1": arm({"reward_weight": 1.5}, 0.3, 12.0),
            "b16": arm({}, 0.45, 1.8, bound=True),
            tables.SIXTEEN: arm({}, 0.45, 1.8, bound=True),
            "policy dpo": arm({}, 0.5, 3.0),
        },
        "curves": [
            {
                "name": name,
                "arms": arms,
                "greedy": False,
                "kl_is_bound": name == best,
                "bands": {axis: {"gold": band} for axis in ("guidance_kl", "total_kl")},
            }
            for name, arms in curves.items()
        ],
        "matched": [
            # Differences are stored one way round: ARGS less PARGS here.
            place(
                "guidance_kl",
                1.8,
                f"the bound of {tables.SIXTEEN}",
                {one: 0.4, three: 0.5, best: 0.45},
                {(three, best): 0.2},
            ),
            place("guidance_kl", 2.0, "", {one: 0.4, two: 0.3, three: 0.5, best: None}, {(two, one): -0.1}),
            place("guidance_kl", 5.0, "", {one: 0.5, two: 0.5, three: 0.5, best: None}, {(two, one): -0.01}),
            place("guidance_kl", 10.0, "", {one: None, two: 0.6, three: 0.6, best: None}, {}),
            *(
                place("total_kl", 10 + kl, f"plain's 10.00 + {kl}", {one: 0.4, three: 0.5, dpo: None}, {})
                for kl in (2, 5, 10)
            ),
            place(
                "total_kl",
                13.0,
                f"that of {dpo}",
                {one: 0.4, three: 0.5, dpo: 0.5},
                {(one, dpo): -0.1, (three, dpo): 0.01},
            ),
        ],
        "over_optimisation": [
            {"method": one, "judge": "gold", "begins": None, "falls_at": None, "fall": None},
            {
                "method": three,
                "judge": "gold",
                "begins": {"arm": "t weight=1", "guidance_kl": 5.0, "total_kl": 15.0},
                "falls_at": {"arm": "t weight=3", "guidance_kl": None, "total_kl": 22.0},
                "fall": estimate(-0.1),
            },
        ],
    }
    shares = [{"accuracy": 0.5 + i / 10, "interval": [0.4, 0.9]} for i in range(5)]
    found = {
        "rule": {"profane": {"prompts": 69, "continuations": 8, **estimate(0.1)}},
        "pilot": {"prompts_for_half_width": 90},
        "left_out": [],
        "judge_accuracy": {},
        "top_k": {},
        "times": {"t1": estimate(1.04), "b16": estimate(9.0)},
        "tuned": [
            {"method": three, "arm": "t1", "less": {"gold": [estimate(0.3), estimate(0.15, 0.2)]}},
            {"method": two, "arm": "a1", "less": {"gold": [None, estimate(-0.15)]}},
        ],
        "prefixes": {
            "accuracy": {"prefix": shares},
            "correlation": {"prefix": 3 * [{"r": 0.5, "interval": [0.4, 0.6]}]},
        },
        "summary": summary,
    }
    (tmp_path / "results").mkdir()
    (tmp_path / "results/sentiment.json").write_text(json.dumps(found))
    return tmp_path


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_what_was_done(study):
    path = study / "results/sentiment.json"
    found = json.loads(path.read_text())
    found["summary"]["arms"]["reference"] = {"method": "reference", "responses": 100}  # nobody wrote these here
    path.write_text(json.dumps(found))
    assert cells(tables.done(study)) == [["sentiment", "100 x 2", "90", "0.03", "32", "gold", "none"]]


def test_the_evidence_of_the_rule(study):
    assert cells(tables.profane(study)) == [["profane", "69 x 8", "0.10 [0.09, 0.11]"]]


def test_a_difference_is_read_either_way_round_and_bold_where_it_is_sure(study):
    (first, *others) = cells(tables.against_args(study))
    assert first[2] == f"{tables.PARGS} - {tables.ARGS}"
    assert first[3:] == ["**0.10 [0.05, 0.15]**", "0.01 [-0.04, 0.06]", "not reached"]
    assert all(row[3:] == ["not reached"] * 3 for row in others)


def test_scores_at_equal_kl_leave_out_the_bound_of_best_of_n(study):
    rows = {row[2]: row[3:] for row in cells(tables.at_kl(study))}
    assert rows[tables.PARGS] == ["0.40 [0.39, 0.41]", "0.50 [0.49, 0.51]", "not reached"]
    assert rows["plain, at 0 nats"][0] == "0.20 [0.19, 0.21]"
    assert tables.BEST_OF not in rows
    totals = {row[2]: row[3:] for row in cells(tables.total_kl(study))}
    assert totals == {tables.PARGS: ["0.40 [0.39, 0.41]"] * 3, tables.TRUNK: ["0.50 [0.49, 0.51]"] * 3}


def test_trained_models_and_best_of_16_are_met_at_their_own_kl(study):
    best, dpo = cells(tables.against_training(study))
    assert best[2:] == [
        f"{tables.SIXTEEN} at 1.8 nats guidance KL", "0.45 [0.44, 0.46]",
        "0.40 [0.39, 0.41]", "not reached", "0.50 [0.49, 0.51]", "**0.20 [0.15, 0.25]**",
    ]  # fmt: skip
    assert dpo[2] == f"{tables.DPO} at 13.0 nats total KL"
    assert dpo[5:] == ["**-0.10 [-0.15, -0.05]**", "0.50 [0.49, 0.51]", "0.01 [-0.04, 0.06]"]


def test_best_settings_are_compared_with_args_and_best_of_16(study):
    trunk, args = (row[2:] for row in cells(tables.tuned(study)))
    assert trunk == ["t1", "0.60 [0.59, 0.61]", "22.0", "**0.30 [0.29, 0.31]**", "0.15 [-0.05, 0.35]"]
    assert args == ["a1", "0.30 [0.29, 0.31]", "22.0", "", "**-0.15 [-0.16, -0.14]**"]


def test_times_are_those_beside_plain_and_passes_those_of_the_comparison(study):
    assert [row[1:4] for row in cells(tables.cost(study))] == [
        ["p1", "not timed", "1.00"],
        ["t1", "1.04 [1.03, 1.05]", "1.00"],
        ["a1", "not timed", "1.00"],
        ["b16", "9.00 [8.99, 9.01]", "1.00"],
        ["policy dpo", "not timed", "1.00"],
    ]


def test_over_optimisation_says_where(study):
    assert cells(tables.over_optimised(study)) == [
        ["sentiment", "gold", tables.TRUNK, "weight=1 (5.0 nats)", "weight=3 (22.0 nats)", "-0.10 [-0.11, -0.09]"]
    ]


def test_a_target_is_met_only_by_its_interval(study):
    rows = {row[0].removeprefix("sentiment, gold: "): row[1:] for row in cells(tables.targets(study))}
    assert rows == {
        "PARGS above ARGS at 2 nats": ["0.10 [0.05, 0.15]", "yes"],
        "PARGS above ARGS at 5 nats": ["0.01 [-0.04, 0.06]", "no"],
        "PARGS above ARGS at 10 nats": ["not reached", "no"],
        "trunk PARGS above best-of-16 at its 1.8 nats": ["0.20 [0.15, 0.25]", "yes"],
        "trunk PARGS above best-of-16 at no more than its cost (t1)": ["0.15 [-0.05, 0.35]", "no"],
        "sentiment: a token of trunk PARGS takes at most 1.05x plain": ["1.04 [1.03, 1.05]", "yes"],
    }


@pytest.mark.parametrize("name", list(tables.TABLES))
def test_every_table_has_a_row_of_its_header(study, name):
    lines = tables.TABLES[name](study).splitlines()
    assert len({line.count("|") for line in lines}) == 1 or name == "over_optimised"


def test_the_picture_shows_every_judge_by_both_kls(study):
    plot(study, study / "paper.png")
    assert (study / "paper.png").read_bytes().startswith(b"\x89PNG")


def test_the_readme_shows_the_claims(study):
    ((*names, plain, two, five, ten, best_of_16),) = cells(tables.headline(study))
    assert (names, plain) == (["sentiment", "gold"], "0.20 [0.19, 0.21]")
    assert [two, five, ten] == ["**0.10 [0.05, 0.15]**", "0.01 [-0.04, 0.06]", "not reached"]
    assert best_of_16 == "**0.20 [0.15, 0.25]**"


def test_the_test_is_the_largest_that_fits_and_the_last_methods_go_first():
    seconds = {entry.name: 1.0 for entry in ENTRIES}
    count = len(ENTRIES)
    assert affordable(seconds, 480.0 * count) == (list(ENTRIES), 240, 2)
    assert affordable(seconds, 480.0 * count - 1) == (list(ENTRIES), 200, 2)
    assert affordable(seconds, 100.0 * count) == (list(ENTRIES), 100, 1)
    assert affordable(seconds, 100.0 * count - 1) == (list(ENTRIES[:-1]), 100, 1)
    assert affordable(seconds, 99.0) == ([], 100, 1)


def test_a_time_is_of_a_batch_and_its_tokens_and_reference_responses_have_none(tmp_path):
    def cost(seconds, batch):
        return {"lm_passes": 1, "reward_passes": 0, "candidates": 0, "seconds": seconds, "batch": batch}

    batches = [(i, i - i % 3) for i in range(6)]
    rows = [row("plain", i, text="a b", cost=cost(3.0 if batch else 1.0, batch)) for i, batch in batches]
    rows += [row("policy dpo", i, text="a b c d", cost=cost(2.0, batch)) for i, batch in batches]
    rows += [row("reference", 0, tokens=[], cost=None)]
    found = seconds_per_token(write(tmp_path, rows))
    assert {arm: list(seconds) for arm, seconds in found.items()} == {"plain": [0.5, 1.5], "policy dpo": [0.5, 0.5]}


def test_correlations_are_those_of_each_share_by_itself():
    stems = [Stem("p", "", share) for share in CUTS for _ in range(20)]
    rewards = np.tile(np.linspace(0, 1, 20), len(CUTS))
    worth = np.concatenate([rewards[:20] * 3, -rewards[:20], np.random.default_rng(0).normal(size=20)])
    same, opposite, nothing = correlations(rewards, worth, stems)
    assert (same["r"], opposite["r"]) == (pytest.approx(1), pytest.approx(-1))
    assert same["interval"] == pytest.approx([1, 1])
    assert nothing["interval"][0] < 0 < nothing["interval"][1]
    assert [one["stems"] for one in (same, opposite, nothing)] == [20, 20, 20]


def test_a_judge_of_words_knows_what_was_preferred():
    thanks = [
        Comparison("Well?", f" Thank you, {name}.", f" Shut up, {name}.") for name in ("Ann", "Bob", "Cem", "Dee")
    ]
    wrong_way_round = Comparison("Well?", " Shut up, Eve.", " Thank you, Eve.")
    judge, accuracy = words_judge("polite", thanks, [*thanks[:3], wrong_way_round])
    said = [WrittenResponse("", "", "Well?", text, True) for text in (" Thank you all.", " Hm.", " Shut up.")]
    polite, neither, rude = judge.rate(said)
    assert polite > neither == 0 > rude
    assert (accuracy["accuracy"], accuracy["rows"], judge.name) == (0.75, 4, "polite")
