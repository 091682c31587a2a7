"""Every method that guides tokens: equal to the reference, its samples to the stated distribution, its limits kept."""

import functools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from midcourse import reference
from midcourse.decode.engine import generate, stream
from midcourse.decode.guidance import add_clamped, add_log_sigmoid, add_reward
from midcourse.decode.methods import METHODS, Method, MethodError
from midcourse.decode.steps import Generation
from midcourse.rewards.contract import Reward
from midcourse.rewards.info import RewardError
from midcourse.rewards.text import FunctionReward
from midcourse.testing import (
    KnownReward,
    assert_same_generation,
    tiny_language_model,
    tiny_reward,
    tiny_vocabulary_reward,
)
from tests.pace import slow_except

PROMPTS = ["The ferry was late, and", "A", "żółć: a longer text", "under", "of"]
MORE_EOS = tuple(range(0, 256, 9))  # so many that rows end at different times
TOKENWISE = {name: m for name, m in METHODS.items() if isinstance(m, Method) and m.guide and not m.soft_value}
KINDS = ("llama", "gemma3", "gpt2")


@functools.cache
def lm_of(architecture: str):
    return tiny_language_model(architecture, more_eos=MORE_EOS)


@functools.cache
def reward_of(architecture: str, seed: int = 1):
    return tiny_reward(architecture, seed=seed, more_eos=MORE_EOS)


@functools.cache
def vocabulary_reward_of(architecture: str, seed: int = 3):
    return tiny_vocabulary_reward(architecture, seed=seed, more_eos=MORE_EOS)


def fitting(name: str, architecture: str, count: int = 1) -> list[tuple[Reward, float]]:
    """Rewards that the method can use, with weights."""
    make = vocabulary_reward_of if METHODS[name].ranked_by == "sum" else reward_of
    return [(make(architecture, seed), own) for seed, own in list(zip((1, 5), (1.0, -0.5), strict=True))[:count]]


def assert_equals_reference(row: Generation, want: list[reference.ReferenceStep]) -> None:
    assert [step.token_id for step in row.steps] == [step.token_id for step in want]
    for name in ("logprob", "reference_logprob", "reward", "guidance_kl", "total_kl"):
        have, wanted = ([getattr(step, name) for step in steps] for steps in (row.steps, want))
        assert have == wanted if None in have else have == pytest.approx(wanted, abs=1e-9), name


CALLS = {
    "name": st.sampled_from(sorted(TOKENWISE)),
    "architecture": st.sampled_from(KINDS),
    "weight": st.sampled_from([0.3, 1.0, -2.0, 8.0]),
    "top_p": st.sampled_from([1.0, 1.0, 0.5]),
    "temperature": st.sampled_from([0.5, 1.0]),
    "rewards": st.integers(1, 2),
    "batch_size": st.integers(1, 3),
    "seed": st.integers(0, 10**6),
}


def prompts_up_to(count: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=count)


def assert_call_equals_reference(name, architecture, prompts, rewards, batch_size, seed, weight, **chosen):
    lm, guides = lm_of(architecture), fitting(name, architecture, rewards)
    chosen["reward_weight"] = weight
    rows = generate(lm, prompts, guides, method=name, max_new_tokens=5, seed=seed, batch_size=batch_size, **chosen)
    method = Method(**{**vars(METHODS[name]), **chosen})
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        want = reference.decode(lm, guides, prompt, method, max_new_tokens=5, seed=seed + i)
        assert_equals_reference(row, want)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(prompts=prompts_up_to(2), top_k=st.sampled_from([1, 2, 7]), **CALLS)
def test_every_method_equals_the_reference(prompts, top_k, **call):
    assert_call_equals_reference(prompts=prompts, top_k=top_k, **call)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(prompts=prompts_up_to(4), top_k=st.sampled_from([1, 2, 7, 300]), **CALLS)
def test_every_method_equals_the_reference_with_many_candidates(prompts, top_k, **call):
    assert_call_equals_reference(prompts=prompts, top_k=top_k, **call)


@pytest.mark.parametrize("name", ["genarm", "farma"])
def test_whole_vocabulary_equals_the_reference(name):
    lm, guides = lm_of("llama"), fitting(name, "llama")
    for row, prompt in zip(generate(lm, PROMPTS, guides, method=name, max_new_tokens=4), PROMPTS, strict=True):
        method = METHODS[name]
        assert_equals_reference(row, reference.decode(lm, guides, prompt, method, max_new_tokens=4, seed=row.seed))
        assert len(row.steps[0].candidates) == (20 if name == "genarm" else 10)
        assert row.guidance_kl is None
        assert row.total_kl > 0


def test_genarm_is_the_product_of_both_models():
    lm, reward = lm_of("llama"), vocabulary_reward_of("llama")
    (row,) = generate(lm, ["A"], reward, method="genarm", reward_weight=0.7, max_new_tokens=1)
    with torch.inference_mode():
        pi, pi_r = (model(torch.tensor([[65]])).logits[0, -1].softmax(0) for model in (lm.model, reward.model))
        ends = [*MORE_EOS, 257]
        pi_r[ends] = pi_r[ends].sum()
        product = pi * pi_r**0.7
        want = (product / product.sum()).log()[row.steps[0].token_id].item()
    assert row.steps[0].logprob == pytest.approx(want, abs=1e-9)


# Several rewards


def test_several_rewards_add_up():
    lm, (a, b) = lm_of("llama"), (reward_of("llama", 1), reward_of("llama", 5))
    together = generate(lm, PROMPTS, [(a, 2.0), (b, -1.0)], reward_weight=1.5, max_new_tokens=4)
    for row, prompt in zip(together, PROMPTS, strict=True):
        ids, response = list(prompt.encode()), [step.token_id for step in row.steps]
        rewards = [model.score_ids([(ids, response)])[0] for model in (a, b)]
        assert [step.reward for step in row.steps] == pytest.approx((2 * rewards[0] - rewards[1]).tolist(), abs=1e-9)
        assert {step.weight for step in row.steps} == {1.5}


def test_two_halves_are_a_whole():
    lm, reward = lm_of("llama"), reward_of("llama")
    whole = generate(lm, PROMPTS, reward, max_new_tokens=6)
    halves = generate(lm, PROMPTS, [(reward, 0.25), (reward, 0.75)], max_new_tokens=6)
    for have, want in zip(halves, whole, strict=True):
        assert_same_generation(have, want)


def test_each_reward_has_the_methods_own_shape():
    # FUDGE multiplies P(a | x)^lambda of every attribute: the sigmoid is of each reward, not of their sum.
    lm, rewards = lm_of("llama"), (KnownReward(lambda ids: 3.0 * (ids[-1] % 2)), KnownReward(lambda ids: -1.0))
    rewards = [KnownReward(r.value, more_eos=MORE_EOS) for r in rewards]
    (row,) = generate(lm, ["A"], [(rewards[0], 1.0), (rewards[1], 2.0)], method="fudge", top_k=4, max_new_tokens=1)
    sigmoid = lambda r: 1 / (1 + math.exp(-r))  # noqa: E731
    scores = [math.exp(c.logprob) * sigmoid(c.reward + 2.0) * sigmoid(-1.0) ** 2 for c in row.steps[0].candidates]
    chosen = [c.token_id for c in row.steps[0].candidates].index(row.steps[0].token_id)
    assert row.steps[0].logprob == pytest.approx(math.log(scores[chosen] / sum(scores)), abs=1e-6)


def test_weight_of_a_reward_must_be_finite():
    with pytest.raises(MethodError, match="reward weight nan is not a finite number"):
        generate(lm_of("llama"), ["A"], [(reward_of("llama"), math.nan)])


# Distributions

DRAWS = 5_000
VALUES = (0.4, -1.2, 2.0, 0.7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("pargs", lambda r, w: w * r),
        ("args-stochastic", lambda r, w: w * r),
        ("rad", lambda r, w: w * min(max(r, 0), 1)),
        ("fudge", lambda r, w: -w * math.log1p(math.exp(-r))),
        ("farma", lambda r, w: w * r),
        ("genarm", lambda r, w: w * r),
    ],
)
def test_samples_follow_the_stated_distribution(name, shape):
    lm = lm_of("llama")
    reward = KnownReward(lambda ids: VALUES[ids[-1] % 4], more_eos=MORE_EOS)
    weight, temperature = 0.8, 0.9
    rows = generate(
        lm, ["A"] * DRAWS, reward, method=name, reward_weight=weight, temperature=temperature,
        top_k=8, max_new_tokens=1, batch_size=500,
    )  # fmt: skip
    with torch.inference_mode():
        log_pi = lm.model(torch.tensor([[65]])).logits[0, -1].log_softmax(0).numpy()
    value = np.array([VALUES[(257 if v in MORE_EOS else v) % 4] for v in range(259)])
    scores = log_pi + np.array([shape(r, weight) for r in value])
    ranked = np.argsort(-(scores if METHODS[name].ranked_by == "sum" else log_pi))[:8]
    law = np.exp(scores[ranked] / temperature)
    drawn = [row.steps[0].token_id for row in rows]
    counts = np.array([drawn.count(v) for v in ranked])
    assert counts.sum() == DRAWS
    assert chisquare(counts, DRAWS * law / law.sum()).pvalue > 1e-3


def test_nucleus_keeps_the_likeliest_that_hold_its_mass():
    lm = lm_of("llama")
    (row,) = generate(lm, ["A"], method="plain", top_k=259, top_p=0.6, temperature=0.8, max_new_tokens=1)
    with torch.inference_mode():
        pi = (lm.model(torch.tensor([[65]])).logits[0, -1] / 0.8).softmax(0).sort(descending=True).values
    count = len(row.steps[0].candidates)
    assert pi[:count].sum() >= 0.6 > pi[: count - 1].sum()
    (one,) = generate(lm, ["A"], method="plain", top_p=1e-9, max_new_tokens=3)
    (greedy,) = generate(lm, ["A"], method="plain", temperature=0.0, max_new_tokens=3)
    assert one.text == greedy.text


# KL identities


@pytest.mark.parametrize("name", ["pargs", "rad", "fudge", "cd"])
def test_total_kl_is_guidance_kl_and_the_cut(name):
    for row in generate(lm_of("llama"), PROMPTS, reward_of("llama"), method=name, reward_weight=1.5, max_new_tokens=6):
        for step in row.steps:
            cut = -math.log(sum(math.exp(c.logprob) for c in step.candidates))
            assert step.total_kl - step.guidance_kl == pytest.approx(cut, abs=1e-9)


# KL budgets


@settings(max_examples=25, deadline=None)
@given(
    per_token=st.one_of(st.none(), st.floats(1e-4, 2.0)),
    budget=st.one_of(st.none(), st.floats(1e-3, 6.0)),
    weight=st.sampled_from([0.5, 4.0, -3.0, 50.0]),
    name=st.sampled_from(["pargs", "rad", "fudge"]),
    temperature=st.sampled_from([0.6, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_budgets_are_never_exceeded(per_token, budget, weight, name, temperature, seed):
    lm, reward = lm_of("llama"), reward_of("llama")
    asked = {"method": name, "reward_weight": weight, "temperature": temperature, "seed": seed, "max_new_tokens": 8}
    if per_token is None and budget is None:
        return
    for row in generate(lm, PROMPTS, reward, kl_per_token=per_token, kl_budget=budget, **asked):
        assert all(0 <= step.weight / weight <= 1 for step in row.steps)
        if per_token is not None:
            assert max(step.guidance_kl for step in row.steps) <= per_token
        if budget is not None:
            assert row.guidance_kl <= budget


def test_budget_takes_the_largest_weight_that_fits():
    lm, reward = lm_of("llama"), reward_of("llama")
    for row in generate(lm, PROMPTS, reward, reward_weight=20.0, kl_per_token=0.3, max_new_tokens=8):
        for step in row.steps:
            logprobs = torch.tensor([[c.logprob for c in step.candidates]], dtype=torch.float64)
            rewards = torch.tensor([[c.reward for c in step.candidates]], dtype=torch.float64)
            base = logprobs.log_softmax(1)

            def kl(weight, logprobs=logprobs, rewards=rewards, base=base):
                guided = add_reward(logprobs, rewards, weight).log_softmax(1)
                return float((guided.exp() * (guided - base)).sum())

            assert step.weight == 20.0 or kl(step.weight + 1e-4) > 0.3 >= kl(step.weight)
            assert step.guidance_kl == pytest.approx(kl(step.weight), abs=1e-9)


def test_budget_that_binds_nothing_changes_nothing():
    lm, reward = lm_of("llama"), reward_of("llama")
    free = generate(lm, PROMPTS, reward, max_new_tokens=6)
    bound = generate(lm, PROMPTS, reward, max_new_tokens=6, kl_per_token=1e6, kl_budget=1e6)
    assert bound == free


def test_spent_budget_is_plain_decoding():
    lm, reward = lm_of("llama"), reward_of("llama")
    rows = generate(lm, PROMPTS, reward, reward_weight=50.0, kl_budget=1e-9, max_new_tokens=6)
    plain = generate(lm, PROMPTS, method="plain", max_new_tokens=6)
    assert [row.text for row in rows] == [row.text for row in plain]
    assert all(step.reward is not None for row in rows for step in row.steps)


# Steps skipped


def test_tolerance_0_changes_nothing_but_saves_passes():
    lm = lm_of("llama")
    # The reward speaks in a narrow range, so that a sure LM cannot be moved.
    reward = KnownReward(lambda ids: 1e-12 * (ids[-1] % 3), more_eos=MORE_EOS)
    asked = {"max_new_tokens": 10, "reward_weight": 1.0}
    every = generate(lm, PROMPTS, reward, **asked)
    some = generate(lm, PROMPTS, reward, skip_tolerance=1e-9, **asked)
    assert [row.text for row in some] == [row.text for row in every]
    rewards = [[step.reward for step in row.steps] for row in some]
    assert all(row[0] is not None for row in rewards)
    assert any(None in row for row in rewards)
    for row, full in zip(some, every, strict=True):
        assert row.reward == full.reward
        assert all((step.reward is None) == (step.weight == 0.0) for step in row.steps)


class Counting(KnownReward):
    """Counts how often candidates are asked for."""

    asked = 0

    def start(self, prefixes, max_new_tokens, candidates):
        rows = super().start(prefixes, max_new_tokens, candidates)
        ask = rows.candidate_rewards

        def counted(token_ids):
            self.asked += 1
            return ask(token_ids)

        rows.candidate_rewards = counted
        return rows


def test_skipped_steps_ask_for_no_rewards():
    reward = Counting(lambda ids: 1e-12 * (ids[-1] % 3))
    (row,) = generate(tiny_language_model(), ["A"], reward, skip_tolerance=1e-6, reward_weight=1.0, max_new_tokens=10)
    scored = [step for step in row.steps if step.reward is not None]
    assert reward.asked == len(scored) < len(row.steps)


@torch.no_grad()
@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize("make", [reward_of, vocabulary_reward_of])
def test_rewards_catch_up_after_skipped_steps(architecture, make):
    lm, reward = lm_of(architecture), make(architecture)
    rows = generate(lm, PROMPTS, reward, skip_tolerance=0.2, reward_weight=0.02, max_new_tokens=12, batch_size=2)
    skipped = 0
    for row, prompt in zip(rows, PROMPTS, strict=True):
        ids = list(prompt.encode())
        response = [257 if s.token_id in lm.eos_token_ids else s.token_id for s in row.steps]
        for t, step in enumerate(row.steps):
            want = float(reference.rewards_of(reward, ids + response[:t], len(ids), torch.tensor([response[t]]))[0])
            assert step.reward is None or step.reward == pytest.approx(want, abs=1e-9)
            skipped += step.reward is None
        if make is reward_of:
            assert row.reward == pytest.approx(want, abs=1e-9)
        else:  # rewards of tokens add up, and what a skipped one had was never asked for
            rewards = [step.reward for step in row.steps]
            assert row.reward == (None if None in rewards else pytest.approx(sum(rewards), abs=1e-9))
    assert skipped


@pytest.mark.slow
@torch.no_grad()
def test_skipped_steps_stay_within_the_tolerance():
    # Compared with the policy that the reward, had it been asked, would have led to.
    lm, tolerance, seen = lm_of("llama"), 0.1, 0
    reward = reward_of("llama")
    for row in generate(lm, PROMPTS * 4, reward, skip_tolerance=tolerance, reward_weight=0.02, max_new_tokens=12):
        ids, widest = list(row.prompt.encode()), 0.0
        for t, step in enumerate(row.steps):
            before = ids + [s.token_id for s in row.steps[:t]]
            candidates = torch.tensor([c.token_id for c in step.candidates])
            rewards = 0.02 * reference.rewards_of(reward, before, len(ids), candidates)
            spread = float(rewards.max() - rewards.min())
            if step.reward is None and spread <= widest:
                base = torch.tensor([c.logprob for c in step.candidates]).log_softmax(0)
                guided = (base + rewards).log_softmax(0)
                assert float((guided.exp() - base.exp()).abs().sum() / 2) <= tolerance
                seen += 1
            elif step.reward is not None:
                widest = max(widest, spread)
    assert seen


def test_greedy_choices_that_cannot_change_are_skipped():
    lm = lm_of("llama")
    reward = KnownReward(lambda ids: 0.05 * (ids[-1] % 7), more_eos=MORE_EOS)
    every = generate(lm, PROMPTS, reward, method="args", max_new_tokens=8)
    some = generate(lm, PROMPTS, reward, method="args", max_new_tokens=8, skip_tolerance=0.0)
    assert [row.text for row in some] == [row.text for row in every]
    assert any(step.reward is None for row in some for step in row.steps)


def test_skipping_does_not_depend_on_neighbours():
    lm, reward = lm_of("llama"), reward_of("llama")
    asked = {"skip_tolerance": 0.2, "reward_weight": 0.1, "max_new_tokens": 10}
    for i, row in enumerate(generate(lm, PROMPTS, reward, batch_size=5, **asked)):
        (alone,) = generate(lm, [PROMPTS[i]], reward, seed=i, **asked)
        assert_same_generation(row, alone)


# Continuous rows


@pytest.mark.parametrize("architecture", slow_except(["gemma3"], ["llama", "gemma3", "gpt2", "mistral"]))
@pytest.mark.parametrize("kind", slow_except(["scalar", "known"], ["scalar", "vocabulary", "known", "plain"]))
def test_refilled_rows_change_nothing(architecture, kind):
    lm = lm_of(architecture)
    rewards = {"scalar": reward_of(architecture), "vocabulary": vocabulary_reward_of(architecture), "plain": None}
    reward = rewards.get(kind, KnownReward(more_eos=MORE_EOS))
    asked = {"method": "plain" if kind == "plain" else "pargs", "max_new_tokens": 12, "stop": ["e", "t"], "top_k": 40}
    prompts = [text * n for n, text in enumerate(PROMPTS * 3, 1)]
    prompts = [prompt[:60] for prompt in prompts]
    if kind == "vocabulary":
        asked["reward_weight"] = 0.3  # it likes ends: with more, some rows all stop at once
    rows = generate(lm, prompts, reward, batch_size=4, **asked)
    assert len({len(row.steps) for row in rows}) > 1
    for i, row in enumerate(rows):
        (alone,) = generate(lm, [prompts[i]], reward, seed=i, **asked)
        assert_same_generation(row, alone)


def test_places_are_refilled_at_once():
    # Rows 0 and 1 share the batch; as soon as one ends, row 2 begins: 2 rows are always on their way.
    lm = tiny_language_model()
    reward = KnownReward(lambda ids: 100.0 * (ids[-1] == (257 if ids[0] == ord("a") else ord("x"))))
    events = list(stream(lm, ["a", "b", "a", "b"], reward, top_k=259, batch_size=2, max_new_tokens=3))
    order = [(i, "end" if isinstance(event, Generation) else event.text) for i, event in events]
    assert order == [
        (0, ""), (1, "x"), (0, "end"),
        (1, "x"), (2, ""), (2, "end"),
        (1, "x"), (3, "x"), (1, "end"),
        (3, "x"), (3, "x"), (3, "end"),
    ]  # fmt: skip


# What is refused


class SoftValue(KnownReward):
    soft_value_weight = 2.0


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"method": "farma"}, MethodError, "ranks the whole vocabulary, which takes a vocabulary reward"),
        ({"method": "genarm"}, MethodError, "ranks the whole vocabulary, which takes a vocabulary reward"),
        ({"kl_per_token": 0.0}, MethodError, "kl-per-token 0.0 is not a number of nats above 0"),
        ({"kl_budget": math.nan}, MethodError, "kl-budget nan is not a number of nats above 0"),
        ({"kl_budget": 1.0, "method": "args"}, MethodError, "a greedy choice has none, use pargs"),
        ({"kl_budget": 1.0, "temperature": 0.0}, MethodError, "a greedy choice has none, use pargs"),
        ({"kl_budget": 1.0, "method": "plain"}, MethodError, "kl-budget needs rewards of the LM's own candidates"),
        ({"kl_per_token": 1.0, "method": "farma"}, MethodError, "kl-per-token needs rewards of the LM's own"),
        ({"kl_budget": 1.0, "method": "best-of-n"}, MethodError, "which method best-of-n has not"),
        ({"skip_tolerance": 1.0}, MethodError, "skip-tolerance 1.0 is not a share from 0 to below 1"),
        ({"skip_tolerance": 0.1, "method": "genarm"}, MethodError, "skip-tolerance needs rewards of the LM's own"),
        ({"always_offer_eos": True, "method": "best-of-n"}, MethodError, "leave always-offer-eos out"),
        ({"samples": 3}, MethodError, "method pargs has no samples"),
        ({"method": "soft-value"}, RewardError, "soft-value needs a reward trained to estimate"),
        ({"reward": [(reward_of("llama"), math.inf)]}, MethodError, "reward weight inf is not a finite number"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(asked, error, words):
    asked = {"lm": lm_of("llama"), "prompts": PROMPTS, "reward": reward_of("llama"), **asked}
    with pytest.raises(error, match=re.escape(words)) as caught:
        next(stream(**asked))
    assert "\n" not in str(caught.value)


def test_soft_value_at_its_own_weight_only():
    lm = tiny_language_model()
    with pytest.raises(RewardError, match="exact at weight 2 only, not at 1; use --reward-weight 2 or method 'cd'"):
        generate(lm, ["A"], SoftValue(), method="soft-value", max_new_tokens=2)
    (soft,) = generate(lm, ["A"], SoftValue(), method="soft-value", reward_weight=2.0, max_new_tokens=4)
    (same,) = generate(lm, ["A"], SoftValue(), method="pargs", reward_weight=2.0, max_new_tokens=4)
    assert soft == same


def test_guidance_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -math.inf]])
    rewards = torch.tensor([[0.5, -3.0, math.inf]])
    torch.testing.assert_close(add_clamped(logprobs, rewards, 2.0), torch.tensor([[0.0, -2.0, -math.inf]]))
    want = [-1.0 - 2 * math.log1p(math.exp(-0.5)), -2.0 - 2 * math.log1p(math.exp(3.0)), -math.inf]
    torch.testing.assert_close(add_log_sigmoid(logprobs, rewards, 2.0), torch.tensor([want]))
    per_row = torch.tensor([[2.0]])
    torch.testing.assert_close(add_reward(logprobs, rewards, per_row), torch.tensor([[0.0, -8.0, -math.inf]]))


def test_a_lone_reward_brings_its_weight_and_a_weight_asked_for_comes_before_it():
    lm = tiny_language_model()
    reward = tiny_reward()
    asked = {"max_new_tokens": 4}
    plain, heavy = (generate(lm, PROMPTS, reward, reward_weight=weight, **asked) for weight in (2.0, 0.5))
    reward.info = replace(reward.info, reward_weight=0.5)
    for have, want in zip(generate(lm, PROMPTS, reward, **asked), heavy, strict=True):
        assert_same_generation(have, want)
    for have, want in zip(generate(lm, PROMPTS, reward, reward_weight=2.0, **asked), plain, strict=True):
        assert_same_generation(have, want)
    # Beside another one, and under settings of one's own, it has none.
    assert {step.weight for row in generate(lm, PROMPTS, [(reward, 1.0)] * 2, **asked) for step in row.steps} == {2.0}
    assert {s.weight for r in generate(lm, PROMPTS, reward, method=Method(), **asked) for s in r.steps} == {1.0}


def test_a_reward_that_rad_cuts_off_is_told_of_once(capsys):
    """Beyond 0 and 1 every reward is the same to it, and nothing would be steered without a word."""
    lm = lm_of("llama")
    for low, high, told in ((0.0, 1.0, 0), (0.0, 3.0, 1)):
        reward = FunctionReward(lambda text, low=low, high=high: low if len(text) % 2 else high)
        generate(lm, ["a", "b"], reward, method="rad", max_new_tokens=4)
        assert capsys.readouterr().err.count("warning: rad takes every reward below 0 for 0 and above 1") == told
