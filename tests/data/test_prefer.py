"""Rollouts to comparisons: pairs, draws, what is left out, and the figures that go with them."""

import itertools
import math

import pytest

from midcourse.data.comparisons import Comparison, read_comparisons
from midcourse.data.judge import Judge
from midcourse.data.prefer import PreferError, prefer, prefer_by_judge, write_comparisons
from midcourse.data.rollouts import Rollout
from tests.chat_server import completion, longer, texts

MESSAGES = [{"role": "user", "content": "hi"}]
ROLLOUTS = [
    Rollout("p", "low", True, -1.0),
    Rollout("p", "high", False, 2.0),
    Rollout(MESSAGES, "x", True, 0.0),
    Rollout("p", "middle", True, 0.5),
    Rollout(MESSAGES, "y", False, 0.25),
    Rollout("lonely", "z", True, 5.0),
]


def test_the_best_is_preferred_to_the_worst():
    comparisons, summary = prefer(ROLLOUTS, pairs="best-worst")
    assert comparisons == [Comparison("p", "high", "low", False, True), Comparison(MESSAGES, "y", "x", False, True)]
    assert (summary.rollouts, summary.prompts, summary.pairs, summary.pairs_of_prompts) == (6, 3, 2, 2)
    assert summary.mean_gap == pytest.approx((3.0 + 0.25) / 2)
    assert summary.bayes_accuracy is None


def test_all_pairs_are_in_the_order_of_their_rewards():
    comparisons, summary = prefer(ROLLOUTS, pairs="all", min_gap=0.25)
    assert [(c.chosen, c.rejected) for c in comparisons] == [("high", "low"), ("middle", "low"), ("high", "middle")]
    assert (summary.ties, summary.pairs) == (1, 3)  # a gap has to be larger than the least


def test_draws_follow_the_rewards_and_their_ceiling_is_stated():
    pool = [Rollout(f"p{i}", text, True, reward) for i in range(3000) for text, reward in (("a", 0.0), ("b", 0.5))]
    comparisons, summary = prefer(pool, scale=2.0, seed=3)
    want = 1 / (1 + math.exp(-1))
    wins = sum(c.chosen == "b" for c in comparisons) / 3000
    assert wins == pytest.approx(want, abs=4 * math.sqrt(want * (1 - want) / 3000))
    assert summary.bayes_accuracy == pytest.approx(want)
    assert prefer(pool, scale=2.0, seed=3)[0] == comparisons != prefer(pool, scale=2.0, seed=4)[0]
    assert all(c.chosen == "b" for c in prefer(pool, scale=1e4)[0])


def test_draws_take_the_finished_flags_along():
    pool = [Rollout(f"p{i}", text, text == "a", 0.1 * (text == "a")) for i in range(50) for text in "ab"]
    comparisons, _ = prefer(pool)
    assert {c.chosen for c in comparisons} == {"a", "b"}
    assert all((c.chosen_finished, c.rejected_finished) == (c.chosen == "a", c.rejected == "a") for c in comparisons)


def test_other_rewards_than_the_stored_ones():
    rewards = [-rollout.reward for rollout in ROLLOUTS]
    assert prefer(ROLLOUTS, rewards, pairs="best-worst")[0][0] == Comparison("p", "low", "high", True, False)


def test_what_teaches_nothing_is_left_out_and_counted():
    pool = [
        Rollout("p", "", True, 9.0),
        Rollout("p", " \n", False, -9.0),
        Rollout("p", "a", True, 1.0),
        Rollout("p", "a", False, 7.0),
        Rollout("p", "b", True, 1.0),
        Rollout("p", "c", True, 2.0),
    ]
    comparisons, summary = prefer(pool, pairs="all")
    assert [(c.chosen, c.rejected) for c in comparisons] == [("c", "a"), ("c", "b")]
    assert (summary.empty, summary.repeated, summary.ties) == (2, 1, 1)


def test_at_most_so_many_pairs_of_a_prompt():
    pool = [Rollout(f"p{i}", f"{j}", True, float(j)) for i in range(20) for j in range(5)]
    comparisons, summary = prefer(pool, pairs="all", pairs_per_prompt=3, seed=1)
    for _, group in itertools.groupby(comparisons, key=lambda c: c.prompt):
        assert len({(c.chosen, c.rejected) for c in group}) == 3
    assert summary.pairs == 60
    drawn = {tuple((c.chosen, c.rejected) for c in comparisons if c.prompt == f"p{i}") for i in range(20)}
    assert len(drawn) > 1  # at random


@pytest.mark.parametrize(
    ("rollouts", "settings", "problem"),
    [
        (ROLLOUTS, {"pairs": "some"}, "pairs 'some' is unknown; use one of: bradley-terry, best-worst, all"),
        (ROLLOUTS, {"scale": 0.0}, r"scale 0\.0 makes no sense"),
        (ROLLOUTS, {"scale": float("nan")}, "scale nan makes no sense"),
        (ROLLOUTS, {"min_gap": -1.0}, r"min-gap -1\.0 makes no sense"),
        (ROLLOUTS, {"pairs_per_prompt": 0}, "pairs-per-prompt 0 asks for none"),
        (ROLLOUTS, {"rewards": [1.0]}, "1 rewards for 6 rollouts"),
        (ROLLOUTS, {"rewards": [1.0, float("nan")] * 3}, r"rollout 2 \('high'\) has the reward nan, no finite number"),
        ([Rollout("p", "a", True)], {}, r"rollout 1 \('a'\) has no reward; label it with midcourse sample"),
        (ROLLOUTS[-1:], {}, "no response is preferred to another: 0 pairs of 1 prompts are ties"),
        (ROLLOUTS, {"min_gap": 9.0}, "4 pairs of 3 prompts are ties; sample more, or lower --min-gap"),
        ([], {}, "no response is preferred to another"),
    ],
)
def test_what_gives_no_comparisons_says_so(rollouts, settings, problem):
    with pytest.raises(PreferError, match=problem):
        prefer(rollouts, **settings)


def test_train_reads_what_is_written(tmp_path):
    pool = [
        Rollout(p, t, t == "a", float(len(t)))
        for p in ("żółć \u2028 🙂\r\n", MESSAGES, "")
        for t in ("a", "\u2029bb\x00")
    ]
    comparisons, _ = prefer(pool, pairs="all")
    write_comparisons(tmp_path / "out.jsonl", comparisons)
    assert read_comparisons(tmp_path / "out.jsonl") == comparisons
    assert len(comparisons) == 3


# By a judge


def test_a_judge_orders_the_pairs_and_its_doubts_are_counted(serve, tmp_path):
    def reply(request):
        if "silent" in texts(request):
            return 200, completion("I cannot say.")
        if "biased" in texts(request):
            return 200, completion("VERDICT: A")
        return longer(request)

    pool = [Rollout("p", text, len(text) > 1, None) for text in ("a", "ccc", "dd", "ee")]
    pool += [Rollout("q", text, True, None) for text in ("silent", "x", "biased")]
    judge = Judge(serve(reply).url, "m", "The longer response is better.")
    comparisons, summary = prefer_by_judge(pool, judge, tmp_path / "verdicts.jsonl")
    assert [(c.chosen, c.rejected) for c in comparisons] == [
        ("ccc", "a"), ("dd", "a"), ("ee", "a"), ("ccc", "dd"), ("ccc", "ee"),
    ]  # fmt: skip
    assert comparisons[0] == Comparison("p", "ccc", "a", True, False)
    assert (summary.judged, summary.pairs, summary.ties, summary.contradictions, summary.unparseable) == (9, 5, 2, 1, 2)
    assert summary.agreement == pytest.approx(6 / 7)
    assert (summary.mean_gap, summary.bayes_accuracy) == (None, None)


@pytest.mark.parametrize(
    ("answer", "problem"), [("?", "0 are ties and 1 verdicts unreadable"), ("VERDICT: A", "1 are")]
)
def test_a_judge_that_decides_nothing_gives_no_comparisons(serve, tmp_path, answer, problem):
    judge = Judge(serve(lambda request: (200, completion(answer))).url, "m", "r")
    with pytest.raises(PreferError, match=problem):
        prefer_by_judge(ROLLOUTS[2:5:2], judge, tmp_path / "verdicts.jsonl")
