"""Guidance by blocks: one in one is plain decoding, what is kept is the best, and the laws of what is drawn."""

import functools
import itertools
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from midcourse.decode.blocks import Samples, threshold
from midcourse.decode.engine import Engine, generate, stream
from midcourse.decode.methods import BestOfN, Blockwise, Cards, MethodError
from midcourse.decode.request import Request
from midcourse.decode.steps import Generation, Step
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trunk import TrunkReward
from midcourse.testing import (
    CONTEXT,
    KnownReward,
    assert_same_generation,
    tiny_language_model,
    tiny_reward,
    tiny_trained_vocabulary_reward,
    tiny_trunk_reward,
    tiny_vocabulary_reward,
)
from tests.pace import slow_except

PROMPTS = ["The ferry was late, and", "A", "żółć: a longer text", "under", "mine"]
MORE_EOS = (65, 66, 200, 31, 90, 150)  # bytes that random weights like: rows end by EOS here and there
PLAIN = {"top_k": 20, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 16, "seed": 3}
EVERYTHING = Cards(reward_threshold=-math.inf)
CHOICES = [BestOfN(4), Blockwise(3, 5), Cards(0.5, entropy_threshold=4.5, least_tokens=2, segment_tokens=6, retries=3)]


@functools.cache
def lm_of(architecture: str = "llama") -> LanguageModel:
    return tiny_language_model(architecture, more_eos=MORE_EOS)


@functools.cache
def reward_of(architecture: str = "llama", seed: int = 1) -> RewardModel:
    return tiny_reward(architecture, more_eos=MORE_EOS, seed=seed)


def tokens(row: Generation) -> list[int]:
    return [step.token_id for step in row.steps]


def bare(row: Generation) -> Generation:
    """Without rewards, as plain decoding leaves them."""
    return replace(row, reward=None, steps=tuple(replace(step, reward=None) for step in row.steps))


def assert_same(have: Generation, want: Generation) -> None:
    """Equal but for rounding, the rewards too, which most steps have none of."""
    assert_same_generation(bare(have), bare(want))
    assert have.reward == pytest.approx(want.reward, abs=1e-10)
    assert [step.reward for step in have.steps] == pytest.approx([step.reward for step in want.steps], abs=1e-10)


def as_trained(ids: list[int]) -> list[int]:
    return [lm_of().tokenizer.eos_token_id if i in MORE_EOS else i for i in ids]


def rewards_of(reward: RewardModel, prompt: str, responses: list[list[int]]) -> list[float]:
    """The reward at the end of each response, by a forward of its own."""
    ids = list(prompt.encode())
    return [float(reward.score_ids([(ids, as_trained(response))])[0][-1]) for response in responses]


def samples_of(prompts: list[str], reward, n: int, batch_size: int = 16, **settings) -> dict[int, Samples]:
    method = BestOfN(n, **settings)
    asked = {"seed": 3, "max_new_tokens": 16, "batch_size": batch_size, "keep_all": True}
    found = {}
    for i, row in enumerate(generate(lm_of(), prompts, reward, method=method, **asked)):
        best = [(sample.reward, tokens(sample)) for sample in row.samples].index((row.reward, tokens(row)))
        found[i] = Samples(row.samples, best)
    return found


# One in one


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("method", [BestOfN(1), Blockwise(1, 3), EVERYTHING])
def test_one_in_one_is_plain(method, batch_size):
    want = generate(lm_of(), PROMPTS, method="plain", **PLAIN)
    assert {row.finish_reason for row in want} == {"stop", "length"}
    have = generate(lm_of(), PROMPTS, reward_of(), method=method, batch_size=batch_size, **PLAIN)
    for a, b in zip(have, want, strict=True):
        assert_same_generation(bare(a), b)
        assert a.guidance_kl == 0
        assert a.total_kl == pytest.approx(b.total_kl, abs=1e-10)
        assert (a.prompt, a.prompt_tokens, a.seed) == (b.prompt, b.prompt_tokens, b.seed)
        for mine, theirs in zip(a.steps, b.steps, strict=True):
            assert mine.text == theirs.text
            assert mine.weight == theirs.weight == 0
            assert [c.token_id for c in mine.candidates] == [c.token_id for c in theirs.candidates]
        assert a.reward == pytest.approx(rewards_of(reward_of(), a.prompt, [tokens(a)])[0], abs=1e-10)


@pytest.mark.parametrize("method", [BestOfN(1), Blockwise(1, 3), EVERYTHING])
def test_one_in_one_is_plain_up_to_stop_strings(method):
    stop = [row.text[3:5] for row in generate(lm_of(), PROMPTS, method="plain", **PLAIN) if len(row.text) > 6]
    want = generate(lm_of(), PROMPTS, method="plain", stop=stop, **PLAIN)
    assert any(row.finish_reason == "stop" and not set(tokens(row)) & set(MORE_EOS) for row in want)
    have = generate(lm_of(), PROMPTS, reward_of(), method=method, stop=stop, batch_size=2, **PLAIN)
    for a, b in zip(have, want, strict=True):
        assert_same_generation(bare(a), b)


@pytest.mark.parametrize("method", [BestOfN(1), Blockwise(1, 3)])
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": None}])
def test_one_in_one_is_plain_greedy_and_of_the_whole_vocabulary(method, settings):
    settings = {**PLAIN, **settings}
    want = generate(lm_of(), PROMPTS, method="plain", **settings)
    have = generate(lm_of(), PROMPTS, reward_of(), method=method, **settings)
    for a, b in zip(have, want, strict=True):
        assert_same_generation(bare(a), b)
        shown = [[len(step.candidates) for step in row.steps] for row in (a, b)]
        assert shown[0] == shown[1]


def test_no_prompts():
    for method in CHOICES:
        assert generate(lm_of(), [], reward_of(), method=method) == []


# What holds for all three


@pytest.mark.parametrize("method", slow_except(CHOICES[:1], CHOICES))
@pytest.mark.parametrize("architecture", slow_except(["llama"], ["llama", "gpt2", "gemma3"]))
def test_neighbours_change_nothing(method, architecture):
    lm, reward = lm_of(architecture), reward_of(architecture)
    settings = {"method": method, "max_new_tokens": 14}
    want = generate(lm, PROMPTS, reward, batch_size=16, seed=5, **settings)
    for batch_size in (1, 3, 7):
        for a, b in zip(generate(lm, PROMPTS, reward, batch_size=batch_size, seed=5, **settings), want, strict=True):
            assert_same(a, b)
    backwards = generate(lm, PROMPTS[::-1], reward, batch_size=4, seed=[9, 8, 7, 6, 5], **settings)
    for a, b in zip(backwards[::-1], want, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("method", CHOICES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_figures_are_those_of_whole_texts(method, architecture):
    # What was rejected, copied or read anew has left nothing behind in any state.
    lm = lm_of(architecture)
    reward, other = reward_of(architecture), reward_of(architecture, seed=6)
    rows = generate(lm, PROMPTS, [(reward, 1.0), (other, -0.5)], method=method, max_new_tokens=14, seed=2, batch_size=7)
    for row in rows:
        prompt = list(row.prompt.encode())
        with torch.inference_mode():
            logprobs = lm.model(torch.tensor([prompt + tokens(row)])).logits[0].log_softmax(1)
        for i, step in enumerate(row.steps):
            assert step.reference_logprob == pytest.approx(
                float(logprobs[len(prompt) + i - 1, step.token_id]), abs=1e-9
            )
        ids = [(prompt, as_trained(tokens(row)))]
        want = reward.score_ids(ids)[0] - 0.5 * other.score_ids(ids)[0]
        for step, value in zip(row.steps, want.tolist(), strict=True):
            assert step.reward is None or step.reward == pytest.approx(value, abs=1e-9)
        assert row.reward == row.steps[-1].reward is not None
        assert row.guidance_kl == (math.log(4) - 3 / 4 if isinstance(method, BestOfN) else None)
        assert row.total_kl is None
        assert all(step.guidance_kl is None for step in row.steps)


@pytest.mark.parametrize("method", CHOICES)
def test_events_come_in_order(method):
    seen: dict[int, list[Step]] = {}
    for number, event in stream(lm_of(), PROMPTS, reward_of(), method=method, max_new_tokens=14, batch_size=7):
        if isinstance(event, Generation):
            assert seen.pop(number) == list(event.steps)
            assert event.prompt == PROMPTS[number]
            assert "".join(step.text for step in event.steps) == event.text
        else:
            seen.setdefault(number, []).append(event)
    assert not seen


@pytest.mark.parametrize("method", CHOICES)
def test_other_kinds_of_rewards(method):
    vocabulary = tiny_trained_vocabulary_reward(more_eos=MORE_EOS)
    late = KnownReward(lambda ids: ids[-1] / 100, more_eos=MORE_EOS)
    guides = [(vocabulary, 0.5), (late, 2.0)]
    for row in generate(lm_of(), PROMPTS, guides, method=method, max_new_tokens=9, seed=1):
        prompt, response = list(row.prompt.encode()), as_trained(tokens(row))
        (read,) = vocabulary.score_ids([(prompt, response)])
        assert row.reward == pytest.approx(0.5 * float(read[-1]) + 2 * response[-1] / 100, abs=1e-6)


def test_rewards_that_add_up_judge_whole_responses_only():
    vocabulary = tiny_vocabulary_reward(more_eos=MORE_EOS)
    for row in generate(lm_of(), PROMPTS, vocabulary, method=BestOfN(samples=4), max_new_tokens=9, seed=1):
        ids = [*row.prompt.encode(), *as_trained(tokens(row))]
        with torch.inference_mode():
            logprobs = vocabulary.read(vocabulary.model(torch.tensor([ids])).logits)[
                0, len(row.prompt.encode()) - 1 : -1
            ]
        want = logprobs.gather(1, torch.tensor(ids[len(row.prompt.encode()) :])[:, None]).sum()
        assert row.reward == pytest.approx(float(want), abs=1e-6)
    for method in (choice for choice in CHOICES if not isinstance(choice, BestOfN)):
        with pytest.raises(MethodError, match="judges a block by its last prefix, and this reward is of tokens"):
            generate(lm_of(), PROMPTS, vocabulary, method=method, max_new_tokens=2)


@pytest.mark.parametrize("method", CHOICES)
def test_logits_processor_sees_each_row_and_bans(method):
    seen = set()

    def only_even(ids, logprobs):
        text = bytes(ids[0].tolist()[: max(len(prompt.encode()) for prompt in PROMPTS)])
        seen.update(prompt for prompt in PROMPTS if text.startswith(prompt.encode()))
        assert text.startswith(tuple(prompt.encode() for prompt in PROMPTS))
        return logprobs.index_fill(1, torch.arange(1, logprobs.shape[1], 2), -math.inf)

    def only_bytes(ids, logprobs):
        return only_even(ids, logprobs).index_fill(1, torch.arange(256, logprobs.shape[1]), -math.inf)

    for row in generate(lm_of(), PROMPTS, reward_of(), method=method, max_new_tokens=9, logits_processor=only_bytes):
        assert all(token % 2 == 0 for token in tokens(row))
    assert seen == set(PROMPTS)


@pytest.mark.parametrize("method", CHOICES)
def test_context_may_be_full(method):
    # GPT-2 has no position beyond its context, so no row may read a token more than it is given.
    prompts = ["a" * (CONTEXT - 7), "b"]
    rows = generate(lm_of("gpt2"), [*prompts, *prompts], reward_of("gpt2"), method=method, max_new_tokens=7, seed=4)
    assert all(len(row.steps) <= 7 for row in rows)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("cards", {}, "cards needs the reward that a good response has"),
        ("cards", {"reward_threshold": 1.0, "temperature": 0.0}, "cards accepts by its temperature"),
        ("best-of-n", {"samples": 0}, "samples 0 is too few; use 1 or more"),
        ("cd-blockwise", {"block_tokens": 0}, "block-tokens 0 is too few; use 1 or more"),
        ("best-of-n", {"temperature": 0.0}, "at temperature 0 all samples are the same"),
        ("cd-blockwise", {"temperature": 0.0}, "at temperature 0 all samples are the same"),
        ("best-of-n", {"always_offer_eos": True}, "leave always-offer-eos out"),
    ],
)
def test_refusals(method, settings, words):
    with pytest.raises(MethodError, match=re.escape(words)):
        generate(lm_of(), ["A"], reward_of(), method=method, **settings)


# Best of n


@pytest.mark.parametrize("batch_size", [2, 16])
def test_best_of_n_is_the_best_of_its_samples(batch_size):
    found = samples_of(PROMPTS, reward_of(), 5, batch_size)
    chosen = generate(lm_of(), PROMPTS, reward_of(), method="best-of-n:5", max_new_tokens=16, seed=3)
    plain = generate(lm_of(), PROMPTS, method="plain", max_new_tokens=16, seed=3)
    assert sorted(found) == list(range(len(PROMPTS)))
    for i, prompt in enumerate(PROMPTS):
        generations = found[i].generations
        rewards = rewards_of(reward_of(), prompt, [tokens(row) for row in generations])
        assert [row.reward for row in generations] == pytest.approx(rewards, abs=1e-10)
        assert found[i].best == max(range(5), key=rewards.__getitem__)
        assert_same(found[i].winner, chosen[i])
        assert_same_generation(bare(generations[0]), plain[i])
        assert len({row.text for row in generations}) > 1
        assert all(row.seed == 3 + i for row in generations)
    assert any(samples.best > 0 for samples in found.values())


def test_of_equal_samples_the_first():
    samples = samples_of(["A"], KnownReward(lambda ids: 0.25), 4)[0]
    assert samples.best == 0
    assert samples.winner.reward == 0.25


def test_best_of_n_follows_its_law():
    # P(best = v) = P(v | its reward) (P(R <= R(v))^n - P(R < R(v))^n): among equals, all are as likely as before.
    lm, n = lm_of(), 3
    reward = KnownReward(lambda ids: float(ids[-1] % 4), more_eos=MORE_EOS)
    settings = {"max_new_tokens": 1, "batch_size": 64, "top_k": 6}
    (step,) = generate(lm, ["A"], method="plain", **settings)[0].steps
    weights = {c.token_id: math.exp(c.logprob) for c in step.candidates}
    base = {token: weight / sum(weights.values()) for token, weight in weights.items()}
    level = {token: reward.value([reward.read(token)]) for token in base}
    assert len(set(level.values())) == 4
    exact = {}
    for token in base:
        below = sum(p for other, p in base.items() if level[other] < level[token])
        same = sum(p for other, p in base.items() if level[other] == level[token])
        exact[token] = base[token] / same * ((below + same) ** n - below**n)
    rows = generate(lm, ["A"] * 600, reward, method=BestOfN(n), **settings)
    assert_law(Counter(tokens(row)[0] for row in rows), exact)


# Blockwise


@pytest.mark.parametrize("batch_size", [2, 16])
def test_a_block_as_long_as_the_response_is_best_of_n(batch_size):
    settings = {"max_new_tokens": 12, "seed": 4, "batch_size": batch_size}
    blocks = generate(lm_of(), PROMPTS, reward_of(), method=Blockwise(4, 20), **settings)
    whole = generate(lm_of(), PROMPTS, reward_of(), method=BestOfN(4), **settings)
    for a, b in zip(blocks, whole, strict=True):
        assert (tokens(a), a.text, a.finish_reason) == (tokens(b), b.text, b.finish_reason)
        assert a.reward == pytest.approx(b.reward, abs=1e-10)


def test_each_kept_block_is_the_best_of_its_k():
    asked: list[list[int]] = []

    def remembered(ids):
        asked.append(list(ids))
        return math.sin(sum((i + 1) * token for i, token in enumerate(ids)))

    reward = KnownReward(remembered, more_eos=MORE_EOS)
    for prompt in PROMPTS:
        asked.clear()
        (row,) = generate(lm_of(), [prompt], reward, method=Blockwise(4, 3), max_new_tokens=11, seed=8)
        ids = [*prompt.encode(), *as_trained(tokens(row))]
        start = len(prompt.encode())
        blocks = [asked[i : i + 4] for i in range(0, len(asked), 4)]
        ends = [start + i + 1 for i, step in enumerate(row.steps) if step.reward is not None]
        assert [end - start for end in ends] == [*range(3, len(row.steps), 3), len(row.steps)]
        for begin, end, block in zip([start, *ends], ends, blocks, strict=False):
            assert all(candidate[:begin] == ids[:begin] for candidate in block)
            assert ids[:end] == max(
                block, key=lambda candidate: math.sin(sum((i + 1) * t for i, t in enumerate(candidate)))
            )
        assert len(blocks) == len(ends)


def test_blocks_end_early_with_their_row():
    # Only EOS is rewarded, so a row ends with the first block in which one of its candidates does.
    ends = KnownReward(lambda ids: float(ids[-1] == lm_of().tokenizer.eos_token_id), more_eos=MORE_EOS)
    rows = generate(lm_of(), PROMPTS, ends, method=Blockwise(6, 5), max_new_tokens=30, seed=1, batch_size=12)
    plain = generate(lm_of(), PROMPTS, method="plain", max_new_tokens=30, seed=1)
    stopped = [row for row in rows if row.finish_reason == "stop"]
    assert len(stopped) > sum(row.finish_reason == "stop" for row in plain)
    assert all(row.reward == 1 and tokens(row)[-1] in MORE_EOS for row in stopped)
    assert any(len(row.steps) % 5 for row in stopped)


# Cascade reward sampling


def test_threshold_rises_from_the_prompts_share_to_the_goal():
    chosen = Cards(reward_threshold=3.0, start_share=0.25)
    # tau0 = 0.75 * -1 + 0.25 * 3 = 0
    assert [threshold(chosen, -1.0, n, 6) for n in (0, 1, 3, 6)] == pytest.approx([0.0, 0.5, 1.5, 3.0])
    assert threshold(chosen, 11.0, 2, 6) == 3.0
    assert threshold(Cards(reward_threshold=-math.inf), 5.0, 2, 6) == -math.inf
    assert threshold(Cards(reward_threshold=math.inf, start_share=0.0), 5.0, 2, 6) == math.inf


def test_segments_end_where_the_lm_is_unsure():
    chosen = replace(EVERYTHING, entropy_threshold=4.0, least_tokens=2, segment_tokens=5, temperature=1.0)
    lm, lengths = lm_of(), Counter()
    for row in generate(lm, PROMPTS, reward_of(), method=chosen, max_new_tokens=20, seed=2):
        ids = torch.tensor([[*row.prompt.encode(), *tokens(row)]])
        with torch.inference_mode():
            logprobs = lm.model(ids).logits[0].log_softmax(1)
        entropies = -(logprobs.exp() * logprobs).sum(1)[row.prompt_tokens :]
        length = 0
        for i, (step, entropy) in enumerate(zip(row.steps, entropies.tolist(), strict=True)):
            length += 1
            ends = length == 5 or (length >= 2 and entropy >= 4.0) or i + 1 == len(row.steps)
            assert (step.reward is not None) == ends
            if ends:
                lengths[length] += 1
                length = 0
    assert {2, 3, 5} <= set(lengths)


def test_impossible_goals_take_the_best_trial():
    # Nothing is ever accepted: of 2 trials of the whole response the better is taken, and of 1 the only one.
    whole = {"entropy_threshold": math.inf, "segment_tokens": 50, "reward_threshold": math.inf}
    one, two, four = (
        generate(lm_of(), PROMPTS, reward_of(), method=Cards(retries=retries, **whole), max_new_tokens=12, batch_size=3)
        for retries in (1, 2, 4)
    )
    plain = generate(lm_of(), PROMPTS, method="plain", top_k=40, temperature=0.7, max_new_tokens=12)
    assert [tokens(row) for row in one] == [tokens(row) for row in plain]
    assert all(a.reward <= b.reward <= c.reward for a, b, c in zip(one, two, four, strict=True))
    assert sum(c.reward for c in four) > sum(a.reward for a in one)
    assert all(row.guidance_kl is None and row.total_kl is None for row in one)


def test_cards_follows_its_law():
    # A first segment has 1 token, or 2 after the likeliest token, 54. Its likeliest end, 181, is nearly always
    # rejected: the number that drew 181 must not draw the token after an accepted segment of 1.
    lm = lm_of()

    def value(ids):
        return math.sin(sum((i + 2) * token for i, token in enumerate(ids))) / 2 - 6 * (181 in ids[2:3])

    reward = KnownReward(value)
    chosen = Cards(
        reward_threshold=0.3,
        entropy_threshold=4.0,
        least_tokens=1,
        segment_tokens=2,
        retries=3,
        top_k=3,
        temperature=2.0,
    )
    rows = generate(lm, ["A"] * 1500, reward, method=chosen, max_new_tokens=3, batch_size=250, seed=20011)
    law = CardsLaw(lm, reward, chosen, 3)
    exact = law.of(tuple(b"A"))
    assert sum(exact.values()) == pytest.approx(1)
    assert {len(ids) - 1 for ids in law.segments(tuple(b"A"), 0)} == {1, 2}
    assert_law(Counter(tuple(tokens(row)) for row in rows), {ids[1:]: p for ids, p in exact.items()})


class CardsLaw:
    """The probability of every response under cascade reward sampling, by enumeration."""

    def __init__(self, lm: LanguageModel, reward: KnownReward, chosen: Cards, max_new_tokens: int):
        self.lm, self.reward, self.chosen, self.max_new_tokens = lm, reward, chosen, max_new_tokens

    def of(self, ids: tuple[int, ...]) -> dict[tuple[int, ...], float]:
        """Of all responses that continue these tokens, which an accepted segment ends."""
        found: Counter[tuple[int, ...]] = Counter()
        for segment, p in self.kept(self.segments(ids, 0)).items():
            for whole, q in ({segment: 1.0} if self.finished(segment) else self.of(segment)).items():
                found[whole] += p * q
        return found

    def kept(self, drawn: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
        """Of the segments as they are drawn: accepted within m trials, or the best of m rejected ones."""
        m = self.chosen.retries
        values = {ids: self.value(ids) for ids in drawn}
        accepted = {ids: p * self.acceptance(ids, values[ids]) for ids, p in drawn.items()}
        rejected = {ids: p - accepted[ids] for ids, p in drawn.items()}
        missed = sum(rejected.values())
        law = {ids: p * sum(missed**i for i in range(m)) for ids, p in accepted.items()}
        for trials in itertools.product(drawn, repeat=m):
            best = max(trials, key=values.__getitem__)
            law[best] += math.prod(rejected[ids] for ids in trials)
        return law

    def acceptance(self, ids: tuple[int, ...], value: float) -> float:
        goal, share = self.chosen.reward_threshold, self.chosen.start_share
        first = (1 - share) * self.value(ids[:1]) + share * goal
        tau = min(goal, first + (len(ids) - 1) * (goal - first) / self.max_new_tokens)
        return min(1.0, math.exp((value - tau) / self.chosen.temperature))

    def segments(self, ids: tuple[int, ...], length: int) -> dict[tuple[int, ...], float]:
        """Of a segment of which `length` tokens are drawn: all its ends, with their probabilities."""
        found: Counter[tuple[int, ...]] = Counter()
        logprobs, _ = self.next(ids)
        top = logprobs.topk(self.chosen.top_k)
        for token, p in zip(
            top.indices.tolist(), (top.values / self.chosen.temperature).softmax(0).tolist(), strict=True
        ):
            longer = (*ids, token)
            ends = self.finished(longer) or length + 1 == self.chosen.segment_tokens
            if ends or self.next(longer)[1] >= self.chosen.entropy_threshold:
                found[longer] += p
            else:
                for whole, q in self.segments(longer, length + 1).items():
                    found[whole] += p * q
        return found

    @torch.inference_mode()
    def next(self, ids: tuple[int, ...]) -> tuple[torch.Tensor, float]:
        """The next token's log-probabilities and their entropy."""
        logprobs = self.lm.model(torch.tensor([ids])).logits[0, -1].log_softmax(0)
        return logprobs, -float((logprobs.exp() * logprobs).sum())

    def finished(self, ids: tuple[int, ...]) -> bool:
        return len(ids) == 1 + self.max_new_tokens or ids[-1] in self.lm.eos_token_ids

    def value(self, ids: tuple[int, ...]) -> float:
        return self.reward.value([*ids[:1], *map(self.reward.read, ids[1:])])


def assert_law(counts: Counter, exact: dict) -> None:
    """Counts agree with probabilities (chi-square; cells of fewer than 5 expected counts are one)."""
    total = sum(counts.values())
    assert set(counts) <= set(exact)
    rare = [cell for cell, p in exact.items() if total * p < 5]
    cells = [[cell] for cell in exact if cell not in rare] + ([rare] if rare else [])
    have = [sum(counts[cell] for cell in group) for group in cells]
    want = [total * sum(exact[cell] for cell in group) for group in cells]
    assert chisquare(have, want).pvalue > 0.01


# Rewards of the language model's own states


def read_afresh(reward: TrunkReward, prompts: list[str]) -> KnownReward:
    """A trunk reward that reads every prefix anew, by a forward of its own."""
    begins = sorted((list(prompt.encode()) for prompt in prompts), key=len, reverse=True)

    def value(ids):
        begin = next(begin for begin in begins if list(ids[: len(begin)]) == begin)
        response = as_trained(list(ids[len(begin) :]))
        return float(reward.score_ids([(begin, response)])[0][-1]) if response else 0.0

    return KnownReward(value, more_eos=MORE_EOS)


def assert_judged_alike(have: Generation, want: Generation) -> None:
    """Equal but for the rounding of a known reward, which is in float32."""
    assert_same_generation(bare(have), bare(want))
    assert have.reward == pytest.approx(want.reward, abs=1e-5)
    assert [step.reward for step in have.steps] == pytest.approx([step.reward for step in want.steps], abs=1e-5)


@functools.cache
def trunk_of(architecture: str = "llama") -> TrunkReward:
    return tiny_trunk_reward(lm_of(architecture))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("method", CHOICES)
def test_a_trunk_reward_judges_what_it_would_from_scratch(method, batch_size):
    asked = {"method": method, "max_new_tokens": 12, "seed": 3}
    want = generate(lm_of(), PROMPTS, read_afresh(trunk_of(), PROMPTS), **asked)
    have = generate(lm_of(), PROMPTS, trunk_of(), batch_size=batch_size, **asked)
    assert len({row.finish_reason for row in want}) == 2
    for a, b in zip(have, want, strict=True):
        assert_judged_alike(a, b)


def test_samples_are_judged_by_states_and_by_passes_together():
    asked = {"method": BestOfN(4), "max_new_tokens": 12, "seed": 3}
    want = generate(lm_of(), PROMPTS, [(read_afresh(trunk_of(), PROMPTS), 2.0), (reward_of(), -0.5)], **asked)
    have = generate(lm_of(), PROMPTS, [(trunk_of(), 2.0), (reward_of(), -0.5)], **asked)
    for a, b in zip(have, want, strict=True):
        assert_judged_alike(a, b)


def test_samples_have_the_sum_of_a_trunk_reward_of_tokens():
    trunk = tiny_trunk_reward(lm_of())
    trunk.info = replace(trunk.info, objective="token-discriminator")
    rows = generate(lm_of(), PROMPTS, trunk, method=BestOfN(3), max_new_tokens=12, seed=3, keep_all=True)
    for row in rows:
        for sample in row.samples:
            ids = list(row.prompt.encode()), as_trained(tokens(sample))
            assert sample.reward == pytest.approx(float(trunk.score_ids([ids])[0].sum()), abs=1e-9)
        assert row.reward == max(sample.reward for sample in row.samples)


def test_samples_for_a_trunk_reward_are_those_of_other_requests_too():
    """Beside rows that the same reward guides token by token."""
    alone = generate(lm_of(), PROMPTS, trunk_of(), method=BestOfN(3), max_new_tokens=12, seed=3)
    engine = Engine(lm_of(), batch_size=4)
    requests = []
    for number, prompt in enumerate(PROMPTS):
        requests.append(Request.of(prompt, trunk_of(), method=BestOfN(3), max_new_tokens=12, seed=3 + number))
        requests.append(Request.of(prompt, trunk_of(), method="pargs", max_new_tokens=7, seed=number))
    numbers = [engine.add(request) for request in requests]
    found = {}
    while len(found) < len(requests):
        found |= {number: event for number, event in engine.step() if isinstance(event, Generation)}
    for number, want in zip(numbers[::2], alone, strict=True):
        assert_same(found[number], want)
