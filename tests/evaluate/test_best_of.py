"""RewardBench 2's score by hand: the right response of several first, and Ties, where several are right."""

import json
import math

import pytest

from midcourse.evaluate.reward_bench import read_benchmark, reward_bench
from midcourse.rewards.text import FunctionReward
from midcourse.testing import byte_tokenizer

MARKS = FunctionReward(lambda text: text.count("!") - text.count("?"))


def figures(tmp_path, rows, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return reward_bench(MARKS, read_benchmark([path], **settings), tokenizer=byte_tokenizer())


def row(prompt, chosen, rejected, subset="Math", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "subset": subset, **more}


def test_the_right_one_has_to_be_first(tmp_path):
    rows = [
        row("a", ["yes!"], ["no", "nay", "never"]),  # first: 1
        row("b", ["yes!"], ["no", "nay!!", "never"]),  # second: 0, though 2 of its 3 comparisons are right
        row("c", ["yes!"], ["no!", "nay!", "never"]),  # shares the first place with two: 1/3
        row("d", ["yes!"], ["no", "nay"], "Focus"),
    ]
    found = figures(tmp_path, rows)["best_of"]
    math_rows, focus = found["subsets"]["Math"], found["subsets"]["Focus"]
    assert (math_rows["rows"], math_rows["chance"]) == (3, 0.25)
    assert math_rows["score"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert math_rows["interval"][0] < math_rows["score"] < math_rows["interval"][1]
    assert (focus["score"], focus["chance"], focus["interval"]) == (1.0, pytest.approx(1 / 3), None)
    assert found["total"] is None and found["incomplete"] == 0


def test_rows_of_one_response_each_have_no_such_score(tmp_path):
    assert figures(tmp_path, [row("a", "yes!", "no"), row("b", ["yes!"], ["no"])])["best_of"] is None


def test_a_row_of_which_a_response_is_left_out_does_not_count(tmp_path):
    found = figures(tmp_path, [row("a", ["yes!"], ["no", "", "nay"]), row("b", ["yes!"], ["no!!", "nay"])])["best_of"]
    assert (found["subsets"]["Math"]["rows"], found["subsets"]["Math"]["score"], found["incomplete"]) == (1, 0.0, 1)


def test_a_limit_takes_whole_rows(tmp_path):
    rows = [row(str(n), ["yes!"], ["no", "nay", "never"]) for n in range(9)]
    found = figures(tmp_path, rows, limit=7)
    assert (found["pairs"], found["best_of"]["subsets"]["Math"]["rows"], found["best_of"]["incomplete"]) == (6, 2, 0)


TIES = [
    # Right responses 3, 2 and wrong ones 1, 0: each right one is above; apart by 1, and 2 - 1 = 1 is not more.
    row("tied a", ["r!!!", "s!!"], ["w!", "v"], "Ties", id="tied:1"),
    row("ref a", ["r!!!"], ["w!", "v"], "Ties", id="ref:1"),  # by 2
    # Right responses 5, 5 and a wrong one 1: apart by 0, above by 4.
    row("tied b", ["r!!!!!", "s!!!!!"], ["w!"], "Ties", id="tied:2"),
    row("ref b", ["r"], ["w!", "v"], "Ties", id="ref:2"),  # not above: by -1
    # Right responses 2, 1 and a wrong one -1: apart by 1, above by 2; the reference by 3.
    row("tied c", ["r!!", "s!"], ["w?"], "Ties", id="tied:3"),
    row("ref c", ["r!!"], ["w?", "v?"], "Ties", id="ref:3"),
]


def test_ties_by_hand(tmp_path):
    found = figures(tmp_path, TIES)["best_of"]["subsets"]["Ties"]
    above = 0.3 * (3 / 3 + 2 / 3)
    nearer = 0.2 * 2 / 3 + 0.2 * 1 / 3  # tied: b and c; by the nearer of both: c alone
    how_much = 0.01 * (math.tanh(1 / 1 - 1) - 1 + math.tanh(2 / 1 - 1)) / 3
    assert found["score"] == pytest.approx(above + nearer + how_much)
    assert found["rows"] == 6


def test_ties_without_names_have_no_score(tmp_path):
    rows = [{key: value for key, value in one.items() if key != "id"} for one in TIES]
    assert figures(tmp_path, rows)["best_of"]["subsets"] == {}


def test_all_six_subsets_make_the_total(tmp_path):
    rows = [row(name, ["yes!"], ["no", "nay!!" if name == "Math" else "nay"], name) for name in (
        "Factuality", "Precise IF", "Math", "Safety", "Focus",
    )]  # fmt: skip
    found = figures(tmp_path, rows + TIES)["best_of"]
    assert found["total"] == pytest.approx((4 + found["subsets"]["Ties"]["score"]) / 6)


def test_the_table_shows_it(midcourse, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [row("a", ["good"], ["bad", "awful", "poor"]), *TIES]))
    code, out, err = midcourse("reward-bench", "--reward", "vader", "--comparisons", path)
    assert code == 0, err
    assert "The right response of several is put first" in " ".join(out.split()) and "0.25" in out
