"""The short list: the likeliest tokens, EOS where it is asked for, and nothing twice."""

import math

import torch

from midcourse.decode.candidates import short_list

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


def test_what_was_masked_stays_masked_where_it_is_asked_for():
    masked = LOGPROBS.index_fill(1, torch.tensor([3]), NOTHING)
    _, logprobs = short_list(masked, 2, always=torch.tensor([3]))
    assert logprobs[:, 2].tolist() == [NOTHING, NOTHING]
