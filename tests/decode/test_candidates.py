"""The short list: the likeliest tokens, EOS where it is asked for, and nothing twice."""

import math

import pytest
import torch

from midcourse.decode.candidates import Candidates, nucleus, short_list

LOGPROBS = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.7, 0.05, 0.15, 0.1]]).log()
NOTHING = float("-inf")


def test_likeliest_first():
    ids, logprobs = short_list(LOGPROBS, 2)
    assert ids.tolist() == [[1, 3], [0, 2]]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([[0.4, 0.3], [0.7, 0.15]]))


def test_no_more_than_the_vocabulary():
    ids, logprobs = short_list(LOGPROBS, 100)
    assert ids.tolist() == [[1, 3, 2, 0], [0, 2, 3, 1]]
    torch.testing.assert_close(logprobs.exp().sum(1), torch.ones(2))


def test_asked_for_tokens_are_offered_once():
    ids, logprobs = short_list(LOGPROBS, 2, always=torch.tensor([0, 3]))
    assert ids.tolist() == [[1, 3, 0, 3], [0, 2, 0, 3]]
    possible = [
        [token for token, logprob in zip(*row, strict=True) if logprob > NOTHING]
        for row in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]
    assert possible == [[1, 3, 0], [0, 2, 3]]
    assert math.isclose(logprobs[0, 2].exp(), 0.1, rel_tol=1e-6)
    assert math.isclose(logprobs[1, 3].exp(), 0.1, rel_tol=1e-6)


def test_asked_for_tokens_are_told_apart():
    _, logprobs = short_list(LOGPROBS, 2, always=torch.tensor([3, 0]))
    torch.testing.assert_close(logprobs.exp(), torch.tensor([[0.4, 0.3, 0.0, 0.1], [0.7, 0.15, 0.1, 0.0]]))


def test_what_was_masked_stays_masked_where_it_is_asked_for():
    masked = LOGPROBS.index_fill(1, torch.tensor([3]), NOTHING)
    _, logprobs = short_list(masked, 2, always=torch.tensor([3]))
    assert logprobs[:, 2].tolist() == [NOTHING, NOTHING]


def test_the_whole_vocabulary_is_listed_by_id():
    ids, logprobs = short_list(LOGPROBS, None, always=torch.tensor([3]))
    assert ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert torch.equal(logprobs, LOGPROBS)


def test_another_order_ranks_and_the_logprobs_stay_the_models():
    ids, logprobs = short_list(LOGPROBS, 2, order=torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 2.0, 1.0, 3.0]]))
    assert ids.tolist() == [[0, 2], [3, 1]]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([[0.1, 0.2], [0.1, 0.05]]))


def kept(top_p: float, temperature: float = 1.0) -> list[int]:
    """Which of four candidates, not in order, stay."""
    candidates = Candidates(torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0.25, 0.125, 0.5, 0.125]]).log())
    found = nucleus(candidates, top_p, temperature)
    stay = found.logprobs > NOTHING
    assert torch.equal(found.token_ids, candidates.token_ids)
    assert torch.equal(found.logprobs[stay], candidates.logprobs[stay])
    return found.token_ids[stay].tolist()


@pytest.mark.parametrize(
    ("top_p", "stay"),
    [(0.0, [7]), (0.49, [7]), (0.5, [7]), (0.51, [5, 7]), (0.75, [5, 7]), (1.0, [5, 6, 7, 8]), (2.0, [5, 6, 7, 8])],
)
def test_the_nucleus_is_the_fewest_that_hold_the_share(top_p, stay):
    assert kept(top_p) == stay


def test_the_nucleus_is_of_the_policy_at_its_temperature():
    # At T = 1/2 the probabilities are 16, 4, 1 and 1 of 22: the first alone holds 0.7, as it does not at T = 1.
    assert kept(0.7, temperature=1.0) == [5, 7]
    assert kept(0.7, temperature=0.5) == [7]


def test_the_whole_policy_is_a_nucleus_without_a_cut():
    # What adds up to 1 as far as float32 can tell is not all that is possible.
    candidates = Candidates(torch.tensor([[0, 1, 2]]), torch.tensor([[0.0, -20.0, -21.0]]))
    assert torch.equal(nucleus(candidates, 1.0, 1.0).logprobs, candidates.logprobs)
