"""Replayed texts: which ones a step takes, and that their first rewards are kept."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midcourse.data.comparisons import Comparison
from midcourse.data.encoded import LadderSet, encode_ladders, pairs_by_level
from midcourse.data.ladders import Ladder
from midcourse.data.rollouts import Rollout
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import tiny_reward
from midcourse.train.batches import Batch, with_replay
from midcourse.train.folder import REPLAYED
from midcourse.train.replay import draw, drift, initial_rewards, texts_of
from midcourse.train.scorer import Scorer

COMPARISONS = [
    Comparison("p", " good", " bad"),
    Comparison("p", " good", " worse", True, False),
    Comparison([{"role": "user", "content": "p"}], " good", " bad"),
]


def test_each_response_of_comparisons_is_a_text_once():
    have = [(one.prompt, one.response, one.finished) for one in texts_of(COMPARISONS)]
    chat = [{"role": "user", "content": "p"}]
    assert have == [
        ("p", " good", True), ("p", " bad", True), ("p", " worse", False), (chat, " good", True), (chat, " bad", True),
    ]  # fmt: skip


@given(texts=st.integers(1, 9), times=st.integers(0, 30), seed=st.integers(0, 5))
def test_all_texts_are_drawn_before_one_is_drawn_again(texts, times, seed):
    pool = [Rollout("", str(n), True) for n in range(texts)]
    drawn = draw(pool, times, seed)
    assert len(drawn) == times and drawn == draw(pool, times, seed)
    counts = Counter(one.response for one in drawn)
    assert max(counts.values(), default=0) - min((counts[str(n)] for n in range(texts)), default=0) <= 1


def test_the_seed_says_which_texts_are_drawn():
    pool = [Rollout("", str(n), True) for n in range(50)]
    assert draw(pool, 10, 0) != draw(pool, 10, 1)
    assert draw([], 10, 0) == []


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=9),
    seed=st.integers(0, 9),
    window=st.integers(1, 5),
)
def test_every_batch_replays_as_many_rows_as_it_has_ladders(sizes, seed, window):
    random = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    lengths = torch.randint(1, 50, (2 * total,), generator=random).tolist()
    longest = torch.randint(1, 50, (total,), generator=random).tolist()
    replay = torch.randint(0, 2 * total, (total,), generator=random).tolist()
    numbers = iter(range(total))
    plan = [Batch(0, [next(numbers) for _ in range(size)]) for size in sizes]
    made = with_replay(plan, replay, lengths, longest, window)
    assert [batch.numbers for batch in made] == [batch.numbers for batch in plan]
    assert [len(batch.replay) for batch in made] == sizes
    for begin in range(0, len(plan), window):  # each window hands out its own rows
        first, last = sum(sizes[:begin]), sum(sizes[: begin + window])
        have = [row for batch in made[begin : begin + window] for row in batch.replay]
        assert sorted(have) == sorted(replay[first:last])


def test_longer_rows_are_replayed_with_longer_ladders():
    plan = [Batch(0, [0]), Batch(0, [1]), Batch(0, [2])]
    made = with_replay(plan, [0, 1, 2], lengths=[30, 10, 20], longest=[5, 9, 7], window=3)
    assert [batch.replay for batch in made] == [(1,), (0,), (2,)]
    assert [batch.replay for batch in with_replay(plan, [0, 1, 2], [30, 10, 20], [5, 9, 7], window=1)] == [
        (0,), (1,), (2,),
    ]  # fmt: skip


LADDERS = [Ladder(("aaa", "aba", "bbb")), Ladder(("aaa", "ccc"))]


@pytest.fixture
def reward() -> RewardModel:
    return tiny_reward("llama", dtype=torch.float32, tune="head")


def test_rows_stand_once_and_levels_in_their_order(reward):
    replay = [Rollout("", "ccc", True), Rollout("p", " good", True), Rollout("p", " good", False)]
    data = encode_ladders(reward, LADDERS, 64, [*replay, replay[1]])
    assert data.items == [(0, 1, 2), (0, 3)]
    assert data.replay == [3, 4, 5, 4]  # a text of a ladder may be replayed, too
    assert len(data.rows) == 6 and data.rows[4].finished and not data.rows[5].finished
    assert data.prompts[0] == data.prompts[1]  # they share a text
    assert pairs_by_level(data).pairs == [(0, 1), (0, 2), (1, 2), (0, 3)]
    assert pairs_by_level(data).prompts == [data.prompts[0]] * 4


def test_first_rewards_are_computed_once_and_kept(reward, tmp_path, monkeypatch, capsys):
    torch.nn.init.normal_(reward.head.weight)
    data = encode_ladders(reward, LADDERS, 64, [Rollout("p", " good", True), Rollout("p", " b", True)])
    scorer = Scorer(reward, [data.rows])
    first = initial_rewards(scorer, data, tmp_path)
    want = [score.rewards[-1] for score in reward.score(["p", "p"], [" good", " b"])]
    assert list(first) == sorted(set(data.replay))
    assert [first[row] for row in data.replay] == pytest.approx(want, abs=1e-5)
    kept = LadderSet(data.rows, data.items, data.prompts, data.replay, first)
    assert drift(scorer, kept) == 0
    with torch.no_grad():
        reward.head.weight.add_(0.5)
    (tmp_path / "elsewhere").mkdir()
    moved = initial_rewards(scorer, data, tmp_path / "elsewhere")
    square = sum((moved[row] - first[row]) ** 2 for row in first) / len(first)
    assert drift(scorer, kept) == pytest.approx(square**0.5, rel=1e-5) and square > 0
    monkeypatch.setattr(Scorer, "score", None)  # what is kept is not computed again
    assert initial_rewards(scorer, data, tmp_path) == first
    monkeypatch.undo()
    assert capsys.readouterr().err == ""
    (tmp_path / REPLAYED).write_bytes(b"torn")
    assert initial_rewards(scorer, data, tmp_path) == moved
    assert "is damaged" in capsys.readouterr().err
    other = encode_ladders(reward, LADDERS, 64, [Rollout("p", " c", True), Rollout("p", " d", True)])
    initial_rewards(Scorer(reward, [other.rows]), other, tmp_path)
    assert "is of other texts; the rewards before training are computed again" in capsys.readouterr().err
