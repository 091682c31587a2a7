"""The plain reference itself, against arithmetic by hand. What holds the fast code to it is in test_testing."""

import math

import numpy as np
import pytest
import torch

from midcourse.reference import inverse_transform, language_model_logprobs, pargs, prefix_reward
from midcourse.testing import tiny_language_model, tiny_reward

ENDS = range(60)


def test_inverse_transform():
    probabilities = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64)
    assert [inverse_transform(probabilities, u) for u in (0.0, 0.19, 0.2, 0.69, 0.71, 1 - 2**-53)] == [0, 0, 2, 2, 3, 3]
    assert inverse_transform(torch.tensor([0.0, 1.0]), 0.0) == 1
    # Not normalised: the total counts.
    assert inverse_transform(torch.tensor([1.0, 3.0]), 0.24) == 0
    assert inverse_transform(torch.tensor([1.0, 3.0]), 0.26) == 1


def test_logprobs_are_over_the_whole_vocabulary():
    logprobs = language_model_logprobs(tiny_language_model(), [1, 2, 3])
    assert logprobs.shape == (259,)
    assert logprobs.exp().sum().item() == pytest.approx(1)


def test_prefix_reward_reads_the_last_position_and_any_eos():
    reward = tiny_reward(more_eos=[10])
    with torch.inference_mode():
        assert prefix_reward(reward, [1, 2, 3], 1).item() == pytest.approx(
            reward(input_ids=torch.tensor([[1, 2, 3]]))[0, 2].item(), abs=1e-12
        )
        assert prefix_reward(reward, [1, 2, 10], 1).item() == prefix_reward(reward, [1, 2, 257], 1).item()


@pytest.mark.parametrize("greedy", [False, True])
def test_first_step_by_hand(greedy):
    lm, reward = tiny_language_model(), tiny_reward()
    weight, temperature, seed = 1.5, 0.7, 3
    (step,) = pargs(
        lm,
        reward,
        "A",
        reward_weight=weight,
        top_k=3,
        temperature=temperature,
        seed=seed,
        max_new_tokens=1,
        greedy=greedy,
    )
    with torch.inference_mode():
        logits = lm.model(torch.tensor([[65]])).logits[0, -1].numpy()
        log_pi = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
        tokens = np.argsort(-log_pi)[:3]
        rewards = [reward(input_ids=torch.tensor([[65, token]]))[0, 1].item() for token in tokens]
    pi = np.exp(log_pi[tokens])
    # A greedy choice has no temperature: its base is taken at 1.
    power = 1 if greedy else 1 / temperature
    b, q = pi**power, (pi * np.exp(weight * np.array(rewards))) ** power
    b, q = b / b.sum(), q / q.sum()
    if greedy:
        j = int(np.argmax(q))
        want = (0, -math.log(b[j]), -math.log(pi[j]))
    else:
        j = int(np.searchsorted(np.cumsum(q), np.random.default_rng(seed).random()))
        want = (math.log(q[j]), float(np.sum(q * np.log(q / b))), float(np.sum(q * np.log(q / pi))))
    assert step.token_id == tokens[j]
    assert (step.logprob, step.guidance_kl, step.total_kl) == pytest.approx(want, abs=1e-12)
    assert step.reference_logprob == pytest.approx(log_pi[tokens[j]], abs=1e-12)
    assert step.reward == pytest.approx(rewards[j], abs=1e-12)


def test_any_eos_is_the_last_step():
    lm, reward = tiny_language_model(more_eos=ENDS), tiny_reward(more_eos=ENDS)
    runs = [pargs(lm, reward, "A", max_new_tokens=12, seed=seed) for seed in range(8)]
    for run in runs:
        ended = [step.token_id in lm.eos_token_ids for step in run]
        assert not any(ended[:-1])
        assert ended[-1] or len(run) == 12
    assert len({len(run) for run in runs}) > 2
