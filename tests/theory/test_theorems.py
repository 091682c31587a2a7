"""The papers' statements, held exactly on a language whose every text is listed.

Rashid et al., A Critical Look At Tokenwise Reward-Guided Text Generation (2024), arXiv 2406.07780, is PARGS.
"""

import pytest
import torch
from torch import Tensor

from midcourse.decode.choice import kl_divergence, normalise
from midcourse.decode.guidance import add_reward
from midcourse.train.objectives import Loss, prefix, prefix_past_end, sequence
from tests.theory.tabular import (
    Language,
    bradley_terry_preferences,
    candidates_of,
    divergence,
    expected_loss,
    fit,
    greedy_text,
    guided,
    law,
    mean_value,
    normals,
    over_vocabulary,
    prefix_logprobs,
    random_preferences,
    random_prefix_rewards,
    random_text_rewards,
    soft_value,
    tilted,
    total_variation,
)

EXACT = 1e-12
WEIGHT = 0.7
SEEDS = range(4)
ENDINGS = pytest.mark.parametrize("eos", [None, 2], ids=["equal-lengths", "with-eos"])


def constants_per_length(language: Language, seed: int) -> Tensor:
    """One random number per length, for every node the one of its length."""
    return normals("constants", seed, language.length + 1)[language.depth]


def spread_per_length(language: Language, values: Tensor) -> float:
    """The largest difference between the values of two prefixes of equal length."""
    groups = [values[language.depth == length] for length in range(1, language.length + 1)]
    return max(float(group.max() - group.min()) for group in groups)


def gradient(language: Language, objective: Loss, seed: int) -> Tensor:
    """The derivative of the population loss by every node's reward."""
    rewards = random_prefix_rewards(language, random_text_rewards(language, seed), seed).requires_grad_()
    expected_loss(language, objective, rewards, random_preferences(language, seed)).backward()
    return rewards.grad


# ---- what full sequences leave open ----


@ENDINGS
@pytest.mark.parametrize("seed", SEEDS)
def test_full_sequence_loss_allows_any_prefix_rewards(seed, eos):
    """PARGS, Theorem 1: a reward trained on full sequences may give prefixes arbitrary rewards.

    For any table on proper prefixes the `sequence` loss is the same to the last bit, while what is decoded with the
    table (ARGS's policy) is another law.
    """
    language = Language(seed, eos=eos)
    text_rewards = random_text_rewards(language, seed)
    preferences = random_preferences(language, seed)
    tables = [random_prefix_rewards(language, text_rewards, 2 * seed + i) for i in range(2)]
    have, want = (expected_loss(language, sequence, table, preferences) for table in tables)
    assert torch.equal(have, want)
    laws = [law(language, guided(language, table, WEIGHT)) for table in tables]
    assert total_variation(*laws) > 0.3
    assert total_variation(laws[0], tilted(law(language, language.logprobs), text_rewards, WEIGHT)) > 0.3


@ENDINGS
def test_arbitrary_prefix_rewards_change_the_greedy_text(eos):
    """PARGS, Theorem 1: with two tables of equal `sequence` loss, greedy decoding mostly writes two texts."""
    differ = []
    for seed in range(40):
        language = Language(seed, eos=eos)
        text_rewards = random_text_rewards(language, seed)
        tables = [random_prefix_rewards(language, text_rewards, 2 * seed + i) for i in range(2)]
        first, second = (greedy_text(language, guided(language, table, WEIGHT)) for table in tables)
        differ.append(first != second)
    assert sum(differ) > 20


@ENDINGS
@pytest.mark.parametrize("seed", SEEDS)
def test_only_prefix_objectives_teach_prefixes(seed, eos):
    """PARGS, Theorem 1, as a derivative: that of `sequence` by any proper prefix's reward is exactly 0.

    That of `prefix` and of `prefix_past_end` is not, for any non-empty prefix.
    """
    language = Language(seed, eos=eos)
    proper = slice(1, language.inner)
    assert (gradient(language, sequence, seed)[proper] == 0).all()
    assert (gradient(language, sequence, seed)[language.inner :] != 0).all()
    for objective in (prefix, prefix_past_end):
        assert (gradient(language, objective, seed)[proper] != 0).all()


# ---- what prefixes identify ----


@ENDINGS
@pytest.mark.parametrize("seed", SEEDS)
def test_a_constant_per_length_is_free(seed, eos):
    """PARGS, Lemma 2, on equal lengths: P(y[:i] > y'[:i]) = sigmoid(r(y[:i]) - r(y'[:i])) leaves one constant a length.

    Adding any c_i to the rewards of all prefixes of length i changes neither the `prefix` loss nor the decoded law.
    """
    language = Language(seed, eos=eos)
    rewards = random_prefix_rewards(language, random_text_rewards(language, seed), seed)
    shifted = rewards + constants_per_length(language, seed)
    preferences = random_preferences(language, seed)
    have, want = (expected_loss(language, prefix, table, preferences) for table in (shifted, rewards))
    assert abs(have - want) < EXACT
    have, want = (law(language, guided(language, table, WEIGHT)) for table in (shifted, rewards))
    assert (have - want).abs().max() < EXACT


@pytest.mark.parametrize("seed", SEEDS)
def test_past_the_end_lengths_are_compared(seed):
    """PARGS, Lemma 2 and the authors' data: the shorter text is padded, so its end meets longer prefixes.

    On texts of unequal length `prefix_past_end` sees a constant per length, though not one constant for all lengths.
    Where all texts are equally long it is `prefix`, and as blind.
    """
    language = Language(seed, eos=2)
    rewards = random_prefix_rewards(language, random_text_rewards(language, seed), seed)
    preferences = random_preferences(language, seed)
    want = expected_loss(language, prefix_past_end, rewards, preferences)
    by_length = [rewards + sign * language.depth for sign in (1, -1)]
    assert max(expected_loss(language, prefix_past_end, table, preferences) - want for table in by_length) > 1e-2
    assert abs(expected_loss(language, prefix_past_end, rewards + 3.0, preferences) - want) < EXACT

    language = Language(seed)
    rewards = random_prefix_rewards(language, random_text_rewards(language, seed), seed)
    preferences = random_preferences(language, seed)
    shifted = rewards + constants_per_length(language, seed)
    have, want = (
        expected_loss(language, objective, table, preferences)
        for objective, table in ((prefix_past_end, shifted), (prefix, rewards))
    )
    assert abs(have - want) < EXACT


@ENDINGS
@pytest.mark.parametrize("seed", SEEDS)
def test_the_minimiser_is_unique_up_to_a_constant_per_length(seed, eos):
    """PARGS, Lemma 2, the converse: nothing but a constant per length is free.

    From two random starts the population `prefix` loss is least at rewards that differ by a constant per length (to
    1e-5), so they decode the same law (to 1e-6).
    """
    language = Language(seed, eos=eos)
    preferences = random_preferences(language, seed)
    first, second = (fit(language, prefix, preferences, start) for start in (1, 2))
    assert spread_per_length(language, first - second) < 1e-5
    # The constants are where each start happened to be: nothing has fixed them.
    assert (first - second)[1:].abs().max() > 0.1
    laws = [law(language, guided(language, rewards, WEIGHT)) for rewards in (first, second)]
    assert total_variation(*laws) < 1e-6


# ---- what the tokenwise policy is ----


@pytest.mark.parametrize("seed", SEEDS)
def test_pargs_is_a_ratio_of_two_rlhf_policies(seed):
    """PARGS, Theorem 3: its tokenwise policy is proportional to pi_RLHF,i(y[:i]) / pi_RLHF,i-1(y[:i-1]).

    pi_RLHF,i is the KL-optimal policy over prefixes of length i. The ratio itself does not sum to 1 (the shorter
    policy is not the marginal of the longer one), so the law of whole texts is not the RLHF policy.
    """
    language = Language(seed)
    rewards = random_prefix_rewards(language, random_text_rewards(language, seed), seed)
    base = prefix_logprobs(language, language.logprobs)
    rlhf = torch.empty_like(base)
    for length in range(language.length + 1):
        at = language.depth == length
        rlhf[at] = tilted(base[at], rewards[at], WEIGHT)
    ratio = rlhf[language.children] - rlhf[: language.inner, None]
    have, want = normalise(ratio, 1.0), guided(language, rewards, WEIGHT)
    assert (have - want).abs().max() < EXACT
    sums = ratio.exp().sum(1)
    assert abs(sums[0] - 1) < EXACT  # before the first token there is one prefix only
    assert sums[1:].min() < 0.5 and sums[1:].max() > 2
    assert total_variation(law(language, want), rlhf[language.inner :]) > 0.3


@ENDINGS
@pytest.mark.parametrize("seed", SEEDS)
def test_soft_values_reproduce_the_sequence_policy(seed, eos):
    """The RLHF policy over whole texts, pi(y) exp(w R(y)) / Z, is tokenwise guidance with the soft value.

    V(prefix) = (1 / w) log E_pi[exp(w R) | prefix]: the chain rule of that policy (Q#, Zhou et al., 2025). Neither the
    mean value E_pi[R | prefix] (Controlled Decoding, Mudgal et al., 2024) nor the reward that the `prefix` loss learns
    from unlimited comparisons by R (PARGS) gives that law.
    """
    language = Language(seed, eos=eos)
    text_rewards = random_text_rewards(language, seed)
    base = law(language, language.logprobs)
    want = tilted(base, text_rewards, WEIGHT)
    have = law(language, guided(language, soft_value(language, text_rewards, WEIGHT), WEIGHT))
    assert (have - want).abs().max() < EXACT
    learned = fit(language, prefix, bradley_terry_preferences(language, text_rewards, base), seed)
    for values in (learned, mean_value(language, text_rewards)):
        assert total_variation(law(language, guided(language, values, WEIGHT)), want) > 0.03


@pytest.mark.parametrize("seed", SEEDS)
def test_prefix_objective_learns_the_reward_of_whole_texts(seed):
    """Where all texts are equally long, the longest prefixes of the `prefix` loss are the ordinary Bradley-Terry model.

    So from unlimited comparisons by R it learns R on whole texts, up to a constant (to 1e-4).
    """
    language = Language(seed)
    text_rewards = random_text_rewards(language, seed)
    preferences = bradley_terry_preferences(language, text_rewards, law(language, language.logprobs))
    error = fit(language, prefix, preferences, seed)[language.inner :] - text_rewards
    assert error.max() - error.min() < 1e-4


def test_prefix_rewards_may_prefer_the_worse_beginning():
    """FaRMA (Rashid et al., 2025), Theorem 1: PARGS can prefer a prefix from which the best text is out of reach.

    After 0 comes R = 3 in a tenth of the data and R = -3 in the rest, after 1 always R = 0: 0 wins only 13.8 % of its
    comparisons, and the learned reward of 1 is higher by exactly that log-odds.
    """
    language = Language(0, vocab=2, length=2)
    text_rewards = torch.tensor([3.0, -3.0, 0.0, 0.0], dtype=torch.float64)
    data = torch.tensor([0.1, 0.9, 0.5, 0.5], dtype=torch.float64).div(2).log()
    rewards = fit(language, prefix, bradley_terry_preferences(language, text_rewards, data), 0)
    zero, one = language.node[0,], language.node[1,]
    wins = 0.1 * torch.sigmoid(torch.tensor(3.0)) + 0.9 * torch.sigmoid(torch.tensor(-3.0))
    assert float(wins) == pytest.approx(0.138, abs=5e-4)
    assert float(rewards[zero] - rewards[one]) == pytest.approx(float(wins.logit()), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.25, 3.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_temperature_tempers_the_language_model_and_the_weight(seed, temperature):
    """softmax((log pi + w r) / T): weight w at temperature T is weight w / T on the language model pi^(1 / T)."""
    language = Language(seed)
    rewards = random_prefix_rewards(language, random_text_rewards(language, seed), seed)[language.children]
    have = normalise(add_reward(language.logprobs, rewards, WEIGHT), temperature)
    want = normalise(add_reward(language.logprobs / temperature, rewards, WEIGHT / temperature), 1.0)
    assert (have - want).abs().max() < EXACT


# ---- what it costs ----


@ENDINGS
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("seed", SEEDS)
def test_step_divergences_add_up_to_the_sequence_divergence(seed, temperature, eos):
    """The chain rule of KL: expected `guidance_kl` and `total_kl` of the steps sum to those of whole texts.

    Candidates are the language model's top 2 of 3 (and EOS). At T = 1, total - guidance = -E sum log pi(C): what the
    short list alone costs.
    """
    language = Language(seed, eos=eos)
    rewards = random_prefix_rewards(language, random_text_rewards(language, seed), seed)
    candidates = candidates_of(language, top_k=2)
    offered = rewards[language.children.gather(1, candidates.token_ids)]
    base = normalise(candidates.logprobs, temperature)
    policy = normalise(add_reward(candidates.logprobs, offered, WEIGHT), temperature)
    base_law, policy_law = (
        law(language, over_vocabulary(language, candidates, logprobs)) for logprobs in (base, policy)
    )
    reached = prefix_logprobs(language, over_vocabulary(language, candidates, policy))[: language.inner].exp()
    guidance_kl = reached @ kl_divergence(policy, base)
    total_kl = reached @ kl_divergence(policy, candidates.logprobs)
    assert abs(guidance_kl - divergence(policy_law, base_law)) < EXACT
    assert abs(total_kl - divergence(policy_law, law(language, language.logprobs))) < EXACT
    assert guidance_kl > 0.01
    if temperature == 1.0:
        shortened = -(reached @ candidates.logprobs.logsumexp(1))
        assert shortened > 0.01
        assert abs(total_kl - guidance_kl - shortened) < EXACT
