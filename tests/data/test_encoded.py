import random
from itertools import chain, combinations, groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midcourse.data.encoded import EncodedRow
from midcourse.train.batches import padding_share, pair_rewards, plan_batches, renumber, response_columns
from midcourse.train.objectives import prefix, prefix_past_end, sequence

PROMPTS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20)
EXAMPLES = settings(deadline=None)  # a busy machine is no failure
SIZES, EPOCHS, SEEDS = st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**32)


# ---- the plan ----


@EXAMPLES
@given(prompts=PROMPTS, size=SIZES, epochs=EPOCHS, seed=SEEDS)
def test_an_epoch_takes_every_pair_once(prompts, size, epochs, seed):
    plan = plan_batches(prompts, [3] * len(prompts), size, epochs, seed)
    per_epoch = -(-len(prompts) // size)
    assert len(plan) == epochs * per_epoch
    for epoch in range(epochs):
        batches = plan[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(chain.from_iterable(batches)) == list(range(len(prompts)))
        assert {len(batch) for batch in batches[:-1]} <= {size}


@EXAMPLES
@given(prompts=PROMPTS, size=SIZES, seed=SEEDS)
def test_a_batch_has_the_pairs_of_a_prompt_side_by_side(prompts, size, seed):
    """So that what they share is read once; a prompt is spread over no more batches than its pairs need, and one."""
    plan = plan_batches(prompts, [3] * len(prompts), size, 1, seed)
    for batch in plan:
        runs = [list(run) for _, run in groupby(batch, key=lambda number: prompts[number])]
        assert len(runs) == len({prompts[number] for number in batch})
        assert all(run == sorted(run) for run in runs)
    for prompt in set(prompts):
        inside = sum(any(prompts[number] == prompt for number in batch) for batch in plan)
        assert inside <= -(-prompts.count(prompt) // size) + 1


def test_batches_of_similar_length_pad_less_and_stay_random():
    lengths = [2 + random.Random(i).randrange(100) for i in range(640)]
    prompts, items = [str(i) for i in range(640)], [(i, i) for i in range(640)]
    bucketed, shuffled = (plan_batches(prompts, lengths, 8, 2, 0, window=window) for window in (16, 1))
    assert padding_share(items, lengths, shuffled) > 0.4
    assert padding_share(items, lengths, bucketed) < 0.1
    first, second = bucketed[:80], bucketed[80:]
    # Other batches in each epoch, and neither short nor long ones first.
    assert not {tuple(sorted(batch)) for batch in first} & {tuple(sorted(batch)) for batch in second}
    longest = [max(lengths[i] for i in batch) for batch in first]
    assert abs(np.corrcoef(range(80), longest)[0, 1]) < 0.3


def test_the_padding_share_by_hand():
    """Rows of 3, 5 and 1 tokens; the first batch reads 3 and 5 (2 of 10 are padding), the second 1 once (none)."""
    assert padding_share([(0, 1), (2, 2)], [3, 5, 1], [[0], [1]]) == pytest.approx(2 / 11)


@EXAMPLES
@given(prompts=PROMPTS, size=SIZES, epochs=EPOCHS, seed=SEEDS)
def test_the_plan_depends_on_its_arguments_only(prompts, size, epochs, seed):
    """Neither on the process's random numbers nor on how many epochs follow."""
    random.seed(0)
    have = plan_batches(prompts, [3] * len(prompts), size, epochs, seed)
    random.seed(1)
    longer = plan_batches(prompts, [3] * len(prompts), size, epochs + 1, seed)
    assert longer[: len(have)] == have


def test_epochs_and_seeds_have_orders_of_their_own():
    pairs = [str(i) for i in range(50)], [3] * 50
    orders = [*plan_batches(*pairs, 50, 2, seed=0), *plan_batches(*pairs, 50, 1, seed=1), list(range(50))]
    assert all(first != second for first, second in combinations(orders, 2))


# ---- rows ----


def test_a_finished_response_has_one_token_more_than_its_text():
    assert EncodedRow((0,), (5, 6, 1), True).text_length == 2
    assert EncodedRow((0,), (5, 6, 1), False).text_length == 3


def test_renumber_by_hand():
    assert renumber([(7, 2), (2, 9), (7, 9)]) == ([2, 7, 9], [(1, 0), (0, 2), (1, 2)])


@EXAMPLES
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1))
def test_renumber_names_each_row_once(pairs):
    rows, local = renumber(pairs)
    assert len(rows) == len(set(rows))
    assert [(rows[a], rows[b]) for a, b in local] == pairs
    assert {place for pair in local for place in pair} == set(range(len(rows)))


def test_response_columns_by_hand():
    rows = [EncodedRow((0, 0, 0), (1, 2, 3), True), EncodedRow((0,), (1,), False), EncodedRow((), (1, 2), True)]
    have = response_columns(rows, [3, 1, 0])
    assert have.tolist() == [[3, 4, 5], [1, 1, 1], [0, 1, 1]]


def test_pair_rewards_by_hand():
    """Rows 0 and 2 are each in two pairs, on either side."""
    rewards = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    lengths, finished = torch.tensor([1, 2, 2]), torch.tensor([True, True, False])
    have = pair_rewards(rewards, torch.tensor([[0, 2], [2, 1], [1, 0]]), lengths, finished)
    assert have.chosen.tolist() == [[1, 2], [5, 6], [3, 4]]
    assert have.rejected.tolist() == [[5, 6], [3, 4], [1, 2]]
    assert (have.chosen_lengths.tolist(), have.rejected_lengths.tolist()) == ([1, 2, 2], [2, 2, 1])
    assert have.chosen_finished.tolist() == [True, False, True]
    assert have.rejected_finished.tolist() == [False, True, True]


@pytest.mark.parametrize("objective", [sequence, prefix, prefix_past_end])
def test_prompts_and_padding_are_never_read(objective):
    """Through columns and pairs, only rewards at response tokens reach the loss and its gradient."""
    rows = [EncodedRow((0, 0), (1, 2, 3), True), EncodedRow((0,), (1,), True), EncodedRow((0, 0, 0), (1, 2), False)]
    starts, lengths = [2, 1, 3], torch.tensor([3, 1, 2])
    read = torch.zeros(3, 6, dtype=torch.bool)
    for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        read[i, start : start + length] = True
    values = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(rewards: torch.Tensor) -> torch.Tensor:
        aligned = rewards.gather(1, response_columns(rows, starts))
        pairs = torch.tensor([[0, 1], [2, 0], [1, 2]])
        return objective(pair_rewards(aligned, pairs, lengths, torch.tensor([row.finished for row in rows]))).sum()

    have, want = (values.masked_fill(~read, fill).requires_grad_() for fill in (float("nan"), 0.0))
    losses = loss(have), loss(want)
    assert torch.equal(*losses)
    for value in losses:
        value.backward()
    assert torch.equal(have.grad, want.grad)
    assert not have.grad[~read].any()
