"""Reading rollouts, and making comparisons or labels of what was given."""

import gzip
import json
from pathlib import Path

import pytest

from midcourse.data.comparisons import Comparison, prompt_groups, split_by_prompt
from midcourse.data.encoded import EncodedRow, RolloutSet, encode_rollouts, pairs_by_label
from midcourse.data.formats import BadRow, DataError
from midcourse.data.rollouts import Rollout, are_rollouts, label_comparisons, read_rollouts
from midcourse.evaluate.accuracy import label_fit
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import tiny_reward
from midcourse.train.batches import in_turns

ROW = {"row": 0, "sample": 1, "prompt": "p", "response": " r", "finished": False, "reward": 0.5, "seed": 3}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_of_midcourse_sample_are_read(tmp_path):
    path = written(
        tmp_path / "r.jsonl", ROW, {"prompt": [{"role": "user", "content": "?"}], "response": "", "reward": 1}
    )
    want = [Rollout("p", " r", False, 0.5), Rollout([{"role": "user", "content": "?"}], "", True, 1.0)]
    assert read_rollouts(path) == want
    zipped = tmp_path / "r.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert read_rollouts(zipped) == want
    assert are_rollouts(path)
    assert are_rollouts(zipped)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "p", "response": "r"}, "line 2, field reward: the field is missing"),
        ({**ROW, "reward": "1"}, "line 2, field reward: '1' is not a finite number"),
        ({**ROW, "reward": "high"}, "line 2, field reward: 'high' is not a finite number"),
        ('{"prompt": "p", "response": "r", "reward": NaN}', "line 2, field reward: nan is not a finite number"),
        ({**ROW, "response": ["r"]}, r"line 2, field response: \['r'\] is not a text"),
        ({**ROW, "response": ""}, "line 2, field response: the response is empty and was cut"),
        ({**ROW, "prompt": []}, "line 2, field prompt: the list of messages is empty"),
        ({**ROW, "finished": 1}, "line 2, field finished: 1 is not a boolean"),
        ('{"prompt": "p", "response": "\\ud83d", "reward": 1}', "line 2, field response: character 1 is half"),
        ("{", "line 2: not JSON"),
        ("[]", "line 2: .* is not an object"),
    ],
)
def test_bad_rows_are_named_by_file_line_and_field(tmp_path, row, problem):
    path = written(tmp_path / "bad.jsonl", ROW, row)
    with pytest.raises(DataError, match=f"bad.jsonl, {problem}"):
        read_rollouts(path)
    rejects: list[BadRow] = []
    assert len(read_rollouts(path, rejects=rejects)) == 1
    assert [bad.line for bad in rejects] == [2]


def test_files_that_hold_no_rollouts(tmp_path):
    (tmp_path / "r.txt").write_text("p\n")
    with pytest.raises(DataError, match=r"r\.txt has an unknown extension; use one of: \.jsonl, \.json"):
        read_rollouts(tmp_path / "r.txt")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="is empty; add rollouts to it"):
        read_rollouts(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_rollouts(tmp_path / "none.jsonl")
    assert not are_rollouts(tmp_path / "empty.jsonl")
    assert not are_rollouts(tmp_path / "none.jsonl")
    assert not are_rollouts(written(tmp_path / "c.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b"}))
    assert not are_rollouts(tmp_path / "c.csv")


def test_a_comparison_is_two_labels():
    rows = label_comparisons([Comparison("p", "good", "bad", rejected_finished=False)])
    assert rows == [Rollout("p", "good", True, 1.0), Rollout("p", "bad", False, 0.0)]


def test_rollouts_of_a_prompt_stay_together():
    rollouts = [Rollout(f"p{i % 5}", f"r{i}", True, 0.0) for i in range(20)]
    kept, held = split_by_prompt(rollouts, 0.4, seed=0)
    assert {r.prompt for r in kept}.isdisjoint({r.prompt for r in held})
    assert len({r.prompt for r in held}) == 2
    # Without prompts, equal texts stay together.
    assert prompt_groups([Rollout("", "a", True, 0.0), Rollout("", "b", True, 0.0), Rollout("", "a", True, 1.0)]) == [
        "a",
        "b",
        "a",
    ]


def rollout_set(labels: list[float], prompts: str, items: list[int]) -> RolloutSet:
    rows = [EncodedRow((0,), tuple(range(10, 14 + i)), True) for i in range(max(items) + 1)]
    return RolloutSet(rows, [(i,) for i in items], labels, list(prompts))


def test_pairs_by_label_by_hand():
    """Only rollouts of one prompt are compared, and neither equal labels nor equal texts; a pair is there once."""
    found = pairs_by_label(rollout_set([1.0, 0.0, 0.5, 0.5, 1.0, 2.0], "aaaabb", [0, 1, 2, 3, 4, 4]))
    assert set(found.pairs) == {(0, 1), (0, 2), (0, 3), (2, 1), (3, 1)}
    assert found.prompts == ["a"] * 5
    assert pairs_by_label(rollout_set([1.0, 0.0], "ab", [0, 1])).pairs == []


def test_encoded_rollouts_share_rows():
    reward: RewardModel = tiny_reward()
    rollouts = [Rollout("ab", "cd", True, 1.0), Rollout("ab", "cd", True, 0.0), Rollout("ab", "c" * 9, True, 0.5)]
    found = encode_rollouts(reward, rollouts, max_tokens=8)
    assert found.items == [(0,), (0,), (1,)]
    assert found.labels == [1.0, 0.0, 0.5]
    assert [(len(row.response), row.finished) for row in found.rows] == [(3, True), (6, False)]


def test_label_fit_by_hand():
    import torch

    data = rollout_set([1.0, 0.0, 2.0], "abc", [0, 1, 2])
    rewards = [torch.full((len(row.response),), value) for row, value in zip(data.rows, (0.5, 0.0, 1.0), strict=True)]
    rewards[2][-1] = 3.0
    found = label_fit(data, rewards, guess=1.0)
    half, end = found["shares"][2], found["shares"][-1]
    assert half["correlation"] == pytest.approx(1.0)
    assert half["squared_error"] == pytest.approx((0.25 + 0 + 1) / 3)
    assert end["squared_error"] == pytest.approx((0.25 + 0 + 1) / 3)
    assert found["baseline"]["squared_error"] == pytest.approx(2 / 3)
    flat = label_fit(data, [torch.zeros(len(row.response)) for row in data.rows], guess=1.0)
    assert flat["shares"][0]["correlation"] is None


def test_phases_take_turns():
    plan = [[i] for i in range(7)]
    assert [(batch.phase, batch.numbers[0]) for batch in in_turns(plan, 2, 3)] == [
        *((0, i) for i in (0, 1)), *((1, i) for i in (0, 1)),
        *((0, i) for i in (2, 3, 4)), *((1, i) for i in (2, 3, 4)),
        *((0, i) for i in (5, 6)), *((1, i) for i in (5, 6)),
    ]  # fmt: skip
    assert [batch.numbers for batch in in_turns(plan, 1, 1)] == plan
    assert len(in_turns(plan, 2, 50)) == 14


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"prompt": "p", "completion": "c", "label": True}, Rollout("p", "c", True, 1.0)),
        (
            {"prompt": "p", "completion": [{"role": "assistant", "content": "c"}], "label": False},
            Rollout("p", "c", True, 0.0),
        ),
        ({"prompt": "p", "response": "c", "reward": True}, Rollout("p", "c", True, 1.0)),
    ],
)
def test_unpaired_preferences_are_rollouts_with_rewards_of_1_and_0(tmp_path, row, want):
    """As TRL has them for KTO."""
    path = written(tmp_path / "r.jsonl", row)
    assert read_rollouts(path) == [want] and are_rollouts(path)


def test_unpaired_preferences_in_csv(tmp_path):
    (tmp_path / "r.csv").write_text("prompt,completion,label\np,c,True\np,d,false\n")
    assert [one.reward for one in read_rollouts(tmp_path / "r.csv")] == [1.0, 0.0]
