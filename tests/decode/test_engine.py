"""The engine: laws of decoding on tiny models, its figures by hand, requests at any time, what goes wrong."""

import functools
import gc
import math
import re
import weakref

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from midcourse.decode.engine import Engine, generate, stream
from midcourse.decode.guidance import add_reward
from midcourse.decode.methods import Method, MethodError
from midcourse.decode.request import Request
from midcourse.decode.steps import Failure, Generation, Step
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.load import ModelError
from midcourse.lm.prompt import PromptError
from midcourse.rewards.info import RewardError
from midcourse.rewards.retokenised import Retokenised
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.text import TextReward
from midcourse.testing import (
    ARCHITECTURES,
    CONTEXT,
    EOS,
    KnownReward,
    assert_same_generation,
    byte_tokenizer,
    tiny_language_model,
    tiny_reward,
    tiny_trunk_reward,
    tiny_vocabulary_reward,
)

PROMPTS = ["The ferry was late, and", "A", "żółć: a longer text", "under"]
# Bytes that random weights like, as more ends: the tokenizer's own EOS is rarely drawn.
MORE_EOS = (65, 66, 200, 31, 90, 150)
GREEDY = {"temperature": 0.0}
NOTHING = float("-inf")


@functools.cache
def lm_of(architecture: str = "llama") -> LanguageModel:
    return tiny_language_model(architecture, more_eos=MORE_EOS)


@functools.cache
def reward_of(architecture: str = "llama") -> RewardModel:
    return tiny_reward(architecture, more_eos=MORE_EOS)


def test_of_many_prompts_few_are_in_the_engine_at_a_time(monkeypatch):
    most = 0
    step = Engine.step

    def watched(engine):
        nonlocal most
        most = max(most, len(engine._requests))
        return step(engine)

    monkeypatch.setattr(Engine, "step", watched)
    prompts = [f"text {i}" for i in range(60)]
    found = generate(lm_of(), prompts, method="plain", max_new_tokens=3, batch_size=4, seed=2)
    assert [one.prompt for one in found] == prompts
    assert most <= 8
    assert tokens([found[7]]) == tokens(generate(lm_of(), [prompts[7]], method="plain", max_new_tokens=3, seed=9))


def test_a_prompt_that_cannot_be_read_is_refused_before_the_first_is_answered():
    with pytest.raises(PromptError, match="exceed the context"):
        stream(lm_of(), ["a", "b", "x" * 400], method="plain", max_new_tokens=3)


def tokens(generations: list[Generation]) -> list[list[int]]:
    return [[step.token_id for step in row.steps] for row in generations]


def constant(value: float = 1.25) -> KnownReward:
    """A reward that prefers nothing."""
    return KnownReward(lambda ids: value, more_eos=MORE_EOS)


def loves(*wanted: int, by: float = 100.0) -> KnownReward:
    """A reward for a prefix that ends with one of these tokens."""
    return KnownReward(lambda ids: by * (ids[-1] in wanted))


def spells(text: str) -> KnownReward:
    """A reward for responses, to prompts of one byte, that begin as the text does."""
    return KnownReward(lambda ids: 100.0 * (list(ids[1:]) == list(text.encode())[: len(ids) - 1]))


# Law 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unguided_greedy_equals_transformers(architecture):
    lm = lm_of(architecture)
    plain = generate(lm, PROMPTS, method="plain", max_new_tokens=16, **GREEDY)
    for prompt, have in zip(PROMPTS, tokens(plain), strict=True):
        ids = torch.tensor([list(prompt.encode())])
        want = lm.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
        assert have == want[0, ids.shape[1] :].tolist()
    weightless = generate(lm, PROMPTS, reward_of(architecture), reward_weight=0.0, max_new_tokens=16, **GREEDY)
    guided = generate(lm, PROMPTS, constant(), max_new_tokens=16, **GREEDY)
    assert tokens(weightless) == tokens(guided) == tokens(plain)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unguided_samples_are_plain(architecture):
    lm = lm_of(architecture)
    plain = generate(lm, PROMPTS, method="plain", max_new_tokens=16, seed=3)
    assert generate(lm, PROMPTS, reward_of(architecture), reward_weight=0.0, max_new_tokens=16, seed=3) == plain
    guided = generate(lm, PROMPTS, constant(), reward_weight=2.0, max_new_tokens=16, seed=3)
    assert tokens(guided) == tokens(plain)
    for a, b in zip(guided, plain, strict=True):
        assert [step.logprob for step in a.steps] == pytest.approx([step.logprob for step in b.steps], abs=1e-10)
        assert a.guidance_kl == pytest.approx(0, abs=1e-12)
        assert a.total_kl == pytest.approx(b.total_kl, abs=1e-10)


def test_weight_0_computes_no_reward():
    class Untouched(KnownReward):
        def start(self, prompts, max_new_tokens, candidates):
            raise AssertionError("started at weight 0")

    (row,) = generate(lm_of(), ["A"], Untouched(), reward_weight=0.0, max_new_tokens=3)
    assert row.reward is None
    assert all(step.reward is None and step.weight == 0 for step in row.steps)
    assert all(candidate.reward is None for step in row.steps for candidate in step.candidates)


# Laws 2 and 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batches_change_nothing(architecture):
    lm, reward = lm_of(architecture), reward_of(architecture)
    want = generate(lm, PROMPTS, reward, max_new_tokens=12, seed=4)
    for batch_size in (1, 3):
        have = generate(lm, PROMPTS, reward, max_new_tokens=12, seed=4, batch_size=batch_size)
        for a, b in zip(have, want, strict=True):
            assert_same_generation(a, b)


def test_row_i_uses_seed_plus_i():
    lm, reward = lm_of(), reward_of()
    together = generate(lm, ["A"] * 3, reward, max_new_tokens=8, seed=5)
    assert [row.seed for row in together] == [5, 6, 7]
    assert len({row.text for row in together}) > 1
    (alone,) = generate(lm, ["A"], reward, max_new_tokens=8, seed=7)
    assert_same_generation(together[2], alone)
    same = generate(lm, ["A"] * 2, reward, max_new_tokens=8, seed=[7, 7])
    assert_same_generation(same[0], same[1])


def test_limit_cuts_and_changes_nothing_before():
    lm, reward = lm_of(), reward_of()
    long = generate(lm, PROMPTS, reward, max_new_tokens=12, seed=2)
    short = generate(lm, PROMPTS, reward, max_new_tokens=5, seed=2)
    assert [row[:5] for row in tokens(long)] == tokens(short)


def test_prompt_full_of_pad_and_eos_tokens():
    # Padding is known by its place, never by its id, also where pad is EOS.
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = EOS
    lm = LanguageModel(tiny_language_model().model, tokenizer)
    reward = RewardModel(reward_of().backbone, tokenizer, tiny_reward().info)
    reward.head.load_state_dict(reward_of().head.state_dict())
    prompts = [f"{EOS}{EOS}a", "a longer prompt than the others", f"b{EOS}", EOS]
    together = generate(lm, prompts, reward, max_new_tokens=6)
    for i, prompt in enumerate(prompts):
        assert_same_generation(together[i], generate(lm, [prompt], reward, max_new_tokens=6, seed=i)[0])
    assert len({row.steps[0].reward for row in together}) == 4


def test_float32_reward_guides_a_float64_model():
    (row,) = generate(lm_of(), ["A"], tiny_reward(dtype=torch.float32, more_eos=MORE_EOS), max_new_tokens=4)
    assert len(row.steps) == 4 and row.guidance_kl > 0


# The figures


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_figures_by_hand(temperature):
    (row,) = generate(lm_of(), ["The"], reward_of(), reward_weight=1.5, temperature=temperature, max_new_tokens=6)
    for step in row.steps:
        assert len(step.candidates) == 10
        pi = [c.logprob for c in step.candidates]
        assert pi == sorted(pi, reverse=True)
        base = log_softmax([p / temperature for p in pi])
        guided = log_softmax([(c.logprob + 1.5 * c.reward) / temperature for c in step.candidates])
        (j,) = (j for j, c in enumerate(step.candidates) if c.token_id == step.token_id)
        assert step.logprob == pytest.approx(guided[j], abs=1e-12)
        assert step.reference_logprob == pi[j]
        assert step.reward == step.candidates[j].reward
        assert step.weight == 1.5
        kl = sum(math.exp(q) * (q - b) for q, b in zip(guided, base, strict=True))
        assert step.guidance_kl == pytest.approx(kl, abs=1e-12)
        kl = sum(math.exp(q) * (q - p) for q, p in zip(guided, pi, strict=True))
        assert step.total_kl == pytest.approx(kl, abs=1e-12)
    assert row.guidance_kl == sum(step.guidance_kl for step in row.steps)
    assert row.total_kl == sum(step.total_kl for step in row.steps)
    assert row.reward == row.steps[-1].reward


def log_softmax(scores: list[float]) -> list[float]:
    total = math.log(sum(math.exp(score) for score in scores))
    return [score - total for score in scores]


def test_total_kl_is_guidance_kl_and_the_cut():
    for row in generate(lm_of(), PROMPTS, reward_of(), max_new_tokens=12):
        inside = [sum(math.exp(c.logprob) for c in step.candidates) for step in row.steps]
        assert row.total_kl - row.guidance_kl == pytest.approx(-sum(map(math.log, inside)), abs=1e-10)


def test_figures_of_a_greedy_choice():
    for step in generate(lm_of(), ["The"], reward_of(), method="pargs-greedy", max_new_tokens=6)[0].steps:
        best = max(step.candidates, key=lambda c: c.logprob + c.reward)
        assert step.token_id == best.token_id
        assert step.logprob == 0
        inside = sum(math.exp(c.logprob) for c in step.candidates)
        assert step.guidance_kl == pytest.approx(math.log(inside) - best.logprob, abs=1e-12)
        assert step.total_kl == -best.logprob


def test_reward_is_that_of_the_prefix():
    lm, reward = lm_of(), reward_of()
    for prompt, row in zip(PROMPTS, generate(lm, PROMPTS, reward, max_new_tokens=12), strict=True):
        ids = [step.token_id for step in row.steps]
        if ids[-1] in lm.eos_token_ids:
            ids[-1] = lm.tokenizer.eos_token_id
        (want,) = reward.score_ids([(list(prompt.encode()), ids)])
        assert [step.reward for step in row.steps] == pytest.approx(want.tolist(), abs=1e-10)


# Law 5


@pytest.mark.parametrize("reward", [1e30, float("inf")])
def test_masked_candidates_stay_impossible(reward):
    banned = [step.token_id for row in generate(lm_of(), PROMPTS, method="plain") for step in row.steps][:40]

    def ban_some(ids, logprobs):
        return logprobs.index_fill(1, torch.tensor(banned), NOTHING)

    guide = KnownReward(lambda ids: reward if ids[-1] in banned else 0.0)
    for top_k in (10, 259):
        rows = generate(lm_of(), PROMPTS, guide, logits_processor=ban_some, top_k=top_k, max_new_tokens=8)
        steps = [step for row in rows for step in row.steps]
        assert not {step.token_id for step in steps} & set(banned)
        assert not {c.token_id for step in steps for c in step.candidates} & set(banned)
        assert all(math.isfinite(step.guidance_kl) and math.isfinite(step.total_kl) for step in steps)


def test_grammar_of_one_token_leaves_no_choice():
    def only_x(ids, logprobs):
        return torch.full_like(logprobs, NOTHING).index_fill(1, torch.tensor([ord("x")]), -1.0)

    (row,) = generate(lm_of(), ["A"], reward_of(), logits_processor=only_x, max_new_tokens=4)
    assert row.text == "xxxx"
    assert [step.logprob for step in row.steps] == [0] * 4
    assert [len(step.candidates) for step in row.steps] == [1] * 4


def test_processor_that_leaves_nothing_is_named():
    def nothing_after_three(ids, logprobs):
        return torch.full_like(logprobs, NOTHING) if ids.shape[1] == 8 else logprobs

    want = "the logits processor leaves prompt 2 no token at step 4; it has to leave at least one"
    with pytest.raises(MethodError, match=want):
        generate(tiny_language_model(), ["A longer one", "12345"], logits_processor=nothing_after_three, method="plain")


def test_processor_sees_each_rows_own_tokens():
    seen = []

    def look(ids, logprobs):
        seen.append(ids[0].tolist())
        return logprobs

    lm = tiny_language_model()
    rows = generate(lm, ["ab", "a longer one"], reward_of(), logits_processor=look, max_new_tokens=3)
    first, second = tokens(rows)
    want = [[*b"ab"], [*b"a longer one"]]
    want += [[*b"ab", first[0]], [*b"a longer one", second[0]]]
    want += [[*b"ab", *first[:2]], [*b"a longer one", *second[:2]]]
    assert seen == want


# Law 6: ends


@pytest.mark.parametrize("end", [257, *MORE_EOS])
def test_every_eos_ends_a_response(end):
    lm, reward = lm_of(), loves(end)
    (row,) = generate(lm, ["A"], reward, top_k=259, max_new_tokens=9)
    assert tokens([row]) == [[end]]
    assert (row.text, row.finish_reason, row.steps[0].text) == ("", "stop", "")


@pytest.mark.parametrize("end", [257, MORE_EOS[0]])
def test_reward_of_any_eos_is_that_of_the_finished_text(end):
    def end_at_third(ids, logprobs):
        only_end = torch.full_like(logprobs, NOTHING).index_fill(1, torch.tensor([end]), 0.0)
        return only_end if ids.shape[1] == 4 else logprobs

    lm, reward = lm_of(), reward_of()
    (row,) = generate(lm, ["12"], reward, logits_processor=end_at_third, max_new_tokens=9, seed=1)
    ids = [step.token_id for step in row.steps]
    assert ids[-1] == end and len(ids) == 3
    (want,) = reward.score_ids([(list(b"12"), [*ids[:-1], 257])])
    assert row.reward == pytest.approx(want[-1].item(), abs=1e-10)


def test_eos_is_no_candidate_unless_it_is_likely():
    (row,) = generate(tiny_language_model(), ["A"], loves(257), top_k=3, max_new_tokens=9)
    assert row.finish_reason == "length" and len(row.steps) == 9


def test_eos_may_always_be_offered():
    lm = tiny_language_model()
    (row,) = generate(lm, ["A"], loves(257), top_k=3, max_new_tokens=9, always_offer_eos=True)
    assert tokens([row]) == [[257]] and row.finish_reason == "stop"
    assert len(row.steps[0].candidates) == 4
    assert row.steps[0].reference_logprob == lm.start([list(b"A")], 1).logprobs[0, 257].item()


@pytest.mark.parametrize("top_k", [1, 20, 259])
def test_each_eos_is_offered_once(top_k):
    steps = generate(lm_of(), ["A"], constant(), top_k=top_k, max_new_tokens=4, always_offer_eos=True)[0].steps
    for step in steps:
        offered = [candidate.token_id for candidate in step.candidates]
        assert len(set(offered)) == len(offered)
        assert {257, *MORE_EOS} <= set(offered)


def test_offered_eos_agrees_with_the_reference_policy():
    # With the whole vocabulary short-listed EOS is there anyway: asking for it changes nothing.
    lm, reward = lm_of(), reward_of()
    settings = {"top_k": 259, "max_new_tokens": 6, "seed": 2}
    for a, b in zip(
        generate(lm, PROMPTS, reward, always_offer_eos=True, **settings),
        generate(lm, PROMPTS, reward, **settings),
        strict=True,
    ):
        assert_same_generation(a, b)


def test_finish_reason_length():
    (row,) = generate(lm_of(), ["A"], loves(*b"xyz"), top_k=259, max_new_tokens=5)
    assert row.finish_reason == "length"
    assert len(row.text) == len(row.steps) == 5
    assert row.prompt_tokens == 1


def test_stop_string_ends_a_row_and_is_cut():
    reward = spells("one##two##three")
    (row,) = generate(tiny_language_model(), ["A"], reward, top_k=259, max_new_tokens=15, stop=["##t"])
    assert (row.text, row.finish_reason, len(row.steps)) == ("one", "stop", 6)
    (row,) = generate(tiny_language_model(), ["A"], reward, top_k=259, max_new_tokens=4, stop=["##t"])
    assert (row.text, row.finish_reason) == ("one#", "length")
    (row,) = generate(tiny_language_model(), ["A"], reward, top_k=259, max_new_tokens=6, stop="##t")
    assert (row.text, row.finish_reason, len(row.steps)) == ("one", "stop", 6)


def test_eos_and_stop_string_in_one_batch():
    def value(ids):
        want = {ord("a"): b"ab##", ord("b"): [98, 99, 257], ord("c"): b"cdefgh"}[ids[0]]
        return 100.0 * (list(ids) == list(want[: len(ids)]))

    reward = KnownReward(value)
    rows = generate(tiny_language_model(), ["a", "b", "c"], reward, top_k=259, max_new_tokens=5, stop=["##"])
    assert [(row.text, row.finish_reason) for row in rows] == [("b", "stop"), ("c", "stop"), ("defgh", "length")]


# Streams


def test_stream_yields_each_step_and_then_the_generation():
    lm, reward = lm_of(), reward_of()
    events = list(stream(lm, PROMPTS, reward, max_new_tokens=10, batch_size=3, seed=9))
    rows = generate(lm, PROMPTS, reward, max_new_tokens=10, batch_size=3, seed=9)
    for number, row in enumerate(rows):
        mine = [event for i, event in events if i == number]
        assert mine == [*row.steps, row]
        assert all(isinstance(event, Step) for event in mine[:-1])
        assert "".join(step.text for step in row.steps) == row.text
        assert row.prompt == PROMPTS[number]


def test_stream_yields_rows_side_by_side():
    events = stream(tiny_language_model(), ["A", "B"], method="plain", max_new_tokens=2)
    assert [(i, type(event)) for i, event in events] == [
        (0, Step), (1, Step), (0, Step), (1, Step), (0, Generation), (1, Generation),
    ]  # fmt: skip


def test_stream_can_be_left():
    events = stream(tiny_language_model(), ["A"], method="plain")
    next(events)
    events.close()


def test_no_prompts_no_generations():
    assert generate(lm_of(), [], reward_of()) == []


def test_models_are_left_as_they_were():
    lm, reward = lm_of(), reward_of()
    before = [p.clone() for p in (*lm.model.parameters(), *reward.parameters())]
    generate(lm, PROMPTS, reward, max_new_tokens=4)
    assert all(torch.equal(a, b) for a, b in zip(before, (*lm.model.parameters(), *reward.parameters()), strict=True))
    assert not any(p.is_inference() for p in reward.parameters())


# Prompts and templates


def test_template_is_the_rewards_own():
    lm, reward = tiny_language_model(), tiny_reward(template="chat")
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    (chat,) = generate(lm, ["Hi"], reward, max_new_tokens=4)
    (weightless,) = generate(lm, ["Hi"], reward, reward_weight=0.0, max_new_tokens=4)
    (raw,) = generate(lm, [text], tiny_reward(), max_new_tokens=4)
    (messages,) = generate(lm, [[{"role": "user", "content": "Hi"}]], reward, max_new_tokens=4)
    assert tokens([chat]) == tokens([raw]) == tokens([messages])
    assert chat.prompt_tokens == weightless.prompt_tokens == len(lm.tokenizer(text)["input_ids"])


def test_empty_raw_prompt_starts_from_bos():
    (row,) = generate(lm_of(), [""], reward_of(), max_new_tokens=4)
    assert row.prompt_tokens == 1
    want = lm_of().start([[256]], 1).logprobs[0, row.steps[0].token_id].item()
    assert row.steps[0].reference_logprob == want


def test_prompt_may_fill_the_context():
    (row,) = generate(lm_of(), ["x" * (CONTEXT - 3)], reward_of(), max_new_tokens=3)
    assert row.prompt_tokens == CONTEXT - 3


# What is refused


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"top_k": 0}, MethodError, "top-k 0 leaves no candidates; use 1 or more"),
        ({"top_k": -3}, MethodError, "top-k -3 leaves no candidates; use 1 or more"),
        ({"max_new_tokens": 0}, MethodError, "max-new-tokens 0 asks for no token; use 1 or more"),
        ({"max_new_tokens": -1}, MethodError, "max-new-tokens -1 asks for no token; use 1 or more"),
        ({"batch_size": 0}, MethodError, "batch-size 0 holds no row; use 1 or more"),
        ({"reward_weight": float("nan")}, MethodError, "reward weight nan is not a finite number; give one, such as 2"),
        ({"reward_weight": float("inf")}, MethodError, "reward weight inf is not a finite number"),
        ({"reward_weight": NOTHING}, MethodError, "reward weight -inf is not a finite number"),
        ({"temperature": -0.1}, MethodError, "temperature -0.1 is not a number of 0 or more"),
        ({"temperature": float("nan")}, MethodError, "temperature nan is not a number of 0 or more"),
        ({"temperature": float("inf")}, MethodError, "temperature inf is not a number of 0 or more"),
        ({"method": "pragmatic"}, MethodError, "method 'pragmatic' is unknown; use one of: plain, pargs, pargs-greedy"),
        ({"reward": None}, MethodError, "method pargs needs a reward; give one, or use method 'plain'"),
        ({"seed": [1, 2, 3]}, MethodError, "3 seeds for 4 prompts; give one each, or a single number"),
        ({"seed": -1}, MethodError, "seed -1 is negative; use 0 or more"),
        ({"stop": ""}, MethodError, "an empty stop string"),
        ({"stop": ["a", ""]}, MethodError, "an empty stop string would end every response at once; leave it out"),
        (
            {"template": "chat"},
            RewardError,
            "the reward was trained with template 'raw', not 'chat'; use --template raw",
        ),
        (
            {"max_new_tokens": CONTEXT - 5},
            PromptError,
            f"prompt 1 has 23 tokens, which with {CONTEXT - 5} new ones exceed the context of {CONTEXT}; "
            "shorten it or lower --max-new-tokens",
        ),
        ({"prompts": ["a", [{"role": "user", "content": "Hi"}]]}, PromptError, "takes a text, not a list of messages"),
        ({"prompts": ["\ud83d"]}, PromptError, "character 1 of the prompt is half a surrogate pair"),
        ({"prompts": "one text"}, PromptError, "the prompts are a single text; give a list of texts"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else None,
)
def test_refused_before_any_decoding(settings, error, words):
    asked = {"lm": lm_of(), "prompts": PROMPTS, "reward": reward_of(), **settings}
    with pytest.raises(error, match=re.escape(words)) as caught:
        next(stream(**asked))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"top_k": 2.5}, MethodError, "top-k 2.5 is not a whole number; use one, such as 1"),
        ({"top_k": True}, MethodError, "top-k True is not a whole number"),
        ({"method": "best-of-n", "samples": 2.5}, MethodError, "samples 2.5 is not a whole number"),
        ({"method": "cd-blockwise", "block_tokens": True}, MethodError, "block-tokens True is not a whole number"),
        ({"max_new_tokens": 2.5}, MethodError, "max-new-tokens 2.5 is not a whole number"),
        ({"max_new_tokens": True}, MethodError, "max-new-tokens True is not a whole number"),
        ({"max_new_tokens": "8"}, MethodError, "max-new-tokens '8' is not a whole number"),
        ({"seed": 1.5}, MethodError, "seed 1.5 is not a whole number"),
        ({"seed": True}, MethodError, "seed True is not a whole number"),
        ({"seed": [1, 2, 3, 1.5]}, MethodError, "seed 1.5 is not a whole number"),
        ({"batch_size": 2.5}, MethodError, "batch-size 2.5 is not a whole number"),
        (
            {"reward": (reward_of(), 4.0)},
            RewardError,
            "several rewards come each with its weight; give them as [(reward, weight), ...]",
        ),
        ({"reward": [reward_of(), reward_of()]}, RewardError, "give them as [(reward, weight), ...]"),
        ({"reward": ["sentiment", "toxicity"]}, RewardError, "give them as [(reward, weight), ...]"),
        ({"reward": [(reward_of(), "strong")]}, MethodError, "reward weight 'strong' is not a finite number"),
        ({"reward": [(reward_of(), None)]}, MethodError, "reward weight None is not a finite number"),
        (
            {"reward": [(reward_of(), 10**400)]},
            MethodError,
            "reward weight 1" + "0" * 59 + "... is not a finite number",
        ),
        (
            {"reward": "sentiment"},
            RewardError,
            "'sentiment' is the name of a reward; load it with load_reward('sentiment')",
        ),
        ({"reward": [("sentiment", 2.0)]}, RewardError, "load it with load_reward('sentiment')"),
        ({"reward": len}, RewardError, "len is a function, not a reward; make one of it with FunctionReward(len)"),
        ({"reward": KnownReward}, RewardError, "the class KnownReward is no reward; give one that load_reward returns"),
        ({"reward": 4.0}, RewardError, "an object of type float is no reward; give one that load_reward returns"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else None,
)
def test_values_of_another_kind_are_refused_before_any_decoding(settings, error, words):
    test_refused_before_any_decoding(settings, error, words)


@pytest.mark.usefixtures("types_unchecked")
def test_whole_numbers_are_checked_when_a_request_is_made():
    for asked in ({"seed": 1.5}, {"max_new_tokens": 2.5}, {"top_k": 2.5}, {"method": Method(top_k=2.5)}):
        with pytest.raises(MethodError, match=r"[12]\.5 is not a whole number; use one, such as 1"):
            Request.of("A", reward_of(), **asked)


def test_empty_chat_prompt_is_refused():
    with pytest.raises(PromptError, match="the prompt is empty"):
        generate(lm_of(), ["Hi", ""], tiny_reward(template="chat", more_eos=MORE_EOS))


def test_a_reward_of_mixed_prompts_goes_with_any_template():
    lm, reward = lm_of(), tiny_reward(template="mixed", more_eos=MORE_EOS)
    message = [{"role": "user", "content": "Hi"}]
    settings = {"reward_weight": 2.0, "max_new_tokens": 4}
    chat, raw = generate(lm, ["Hi"], reward, template="chat", **settings), generate(lm, ["Hi"], reward, **settings)
    both = generate(lm, [message, "Hi"], reward, seed=[0, 0], **settings)
    assert tokens(both) == tokens(chat) + tokens(raw)
    assert both[0].prompt == message and chat[0].prompt == "Hi"
    assert both[0].prompt_tokens == chat[0].prompt_tokens > raw[0].prompt_tokens


def test_rewards_of_mixed_prompts_follow_the_others():
    lm, mixed, raw = lm_of(), tiny_reward(template="mixed", more_eos=MORE_EOS), reward_of()
    for guides in ([(mixed, 1.0), (raw, 1.0)], [(raw, 1.0), (mixed, 1.0)]):
        with pytest.raises(RewardError, match="trained with template 'raw', not 'chat'"):
            generate(lm, ["Hi"], guides, template="chat", max_new_tokens=2)
        with pytest.raises(PromptError, match="takes a text, not a list of messages"):
            generate(lm, [[{"role": "user", "content": "Hi"}]], guides, max_new_tokens=2)


def test_method_of_ones_own():
    def only_reward(logprobs, rewards, weight):
        return add_reward(torch.zeros_like(logprobs), rewards, weight)

    mine = Method(only_reward, greedy=True, top_k=259)
    (row,) = generate(lm_of(), ["A"], loves(*b"x", by=1.0), method=mine, max_new_tokens=3)
    assert row.text == "xxx"


def test_no_memory_is_kept_for_candidates_that_do_not_exist():
    (row,) = generate(lm_of(), ["A"], reward_of(), top_k=10**9, max_new_tokens=2)
    assert len(row.steps[0].candidates) == 259


# Requests at any time


@functools.cache
def guide_of(kind: str):
    """A reward of every kind, by a name."""
    lm = lm_of()
    rewards = {
        "scalar": reward_of(),
        "other scalar": tiny_reward(seed=7, more_eos=MORE_EOS),
        "vocabulary": tiny_vocabulary_reward(more_eos=MORE_EOS),
        "trunk": tiny_trunk_reward(lm),
        "known": KnownReward(more_eos=MORE_EOS),
        "text": TextReward(lambda texts: [len(text.response) % 5 / 2 for text in texts]),
        "retokenised": Retokenised(tiny_reward("gpt2", seed=4, more_eos=MORE_EOS), lm.tokenizer, lm.eos_token_ids),
    }
    return rewards[kind]


ASKED = [
    {"reward": None, "method": "plain"},
    {"reward": None, "method": "plain", "top_k": None, "top_p": 0.9, "temperature": 0.8},
    {"reward": None, "method": "plain", "temperature": 0.0, "stop": ["e"]},
    {"reward": "scalar"},
    {"reward": "scalar", "reward_weight": 0.5, "top_k": 4, "always_offer_eos": True},
    {"reward": "scalar", "method": "pargs-greedy"},
    {"reward": "scalar", "kl_per_token": 0.05, "temperature": 1.3},
    {"reward": "scalar", "kl_budget": 0.2, "top_k": 20},
    {"reward": "scalar", "skip_tolerance": 0.2, "reward_weight": 0.05},
    {"reward": "other scalar", "method": "rad"},
    {"reward": "vocabulary", "method": "genarm"},
    {"reward": "vocabulary", "method": "farma", "reward_weight": 0.7},
    {"reward": "vocabulary", "method": "cd"},
    {"reward": "trunk"},
    {"reward": "trunk", "method": "farma"},
    {"reward": "known", "method": "fudge", "top_k": 30},
    {"reward": "text", "skip_tolerance": 0.1, "reward_weight": 0.2},
    {"reward": "scalar", "method": "best-of-n:3"},
    {"reward": "known", "method": "best-of-n:2", "max_new_tokens": 5, "keep_all": True},
    {"reward": "scalar", "method": "cd-blockwise:2", "block_tokens": 3},
    {"reward": "known", "method": "cd-blockwise:3", "block_tokens": 2, "stop": ["t"]},
    {
        "reward": "scalar",
        "method": "cards",
        "reward_threshold": 0.5,
        "least_tokens": 2,
        "segment_tokens": 4,
        "retries": 2,
    },
    {"reward": "retokenised"},
    {"reward": ("scalar", "known")},
    {"reward": ("trunk", "text"), "reward_weight": 0.5},
]


def request_of(asked: int, prompt: int, length: int, seed: int) -> Request:
    settings = {"max_new_tokens": length, "seed": seed, **ASKED[asked]}
    kind = settings.pop("reward")
    guides = [(guide_of(one), 1.0 - 0.3 * i) for i, one in enumerate(kind)] if isinstance(kind, tuple) else kind
    reward = guide_of(kind) if isinstance(kind, str) else guides
    return Request.of(PROMPTS[prompt], reward, **settings)


@functools.cache
def alone(asked: int, prompt: int, length: int, seed: int) -> Generation:
    """What a request gets that has an engine for itself."""
    engine = Engine(lm_of())
    engine.add(request_of(asked, prompt, length, seed))
    events = drained(engine)
    assert [event.text for _, event in events[:-1]] and "".join(e.text for _, e in events[:-1]) == events[-1][1].text
    return events[-1][1]


def drained(engine: Engine) -> list:
    events = []
    while engine:
        events += engine.step()
    return events


REQUESTS = st.tuples(
    st.integers(0, len(ASKED) - 1), st.integers(0, len(PROMPTS) - 1), st.sampled_from([3, 9]), st.integers(0, 2)
)


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    batch_size=st.integers(1, 9),
    arrivals=st.lists(
        st.tuples(REQUESTS, st.integers(0, 4), st.sampled_from([None, None, 0, 2])), min_size=2, max_size=7
    ),
)
def test_what_a_request_gets_depends_on_no_other(batch_size, arrivals):
    """Any row in any mixture equals the same request alone, whatever is added or cancelled around it."""
    engine, numbers, cancelled, got = Engine(lm_of(), batch_size), {}, {}, {}
    waiting, step = list(arrivals), 0
    while engine or waiting:
        for asked, _, patience in [one for one in waiting if one[1] <= step]:
            numbers[engine.add(request_of(*asked))] = asked
            if patience is not None:
                cancelled[max(numbers)] = step + patience
        waiting = [one for one in waiting if one[1] > step]
        for number in [number for number, when in cancelled.items() if when == step]:
            engine.cancel(number)
        for number, event in engine.step():
            assert number not in cancelled or cancelled[number] > step
            got.setdefault(number, []).append(event)
        step += 1
    for number, asked in numbers.items():
        *steps, last = got.get(number, [None])
        if isinstance(last, Generation):
            assert_same_generation(last, alone(*asked))
            assert list(last.steps) == steps
            for mine, theirs in zip(last.samples, alone(*asked).samples, strict=True):
                assert_same_generation(mine, theirs)
        else:
            assert number in cancelled
    assert kept(engine) == (0, None, {}, {})


def kept(engine: Engine) -> tuple:
    """What an engine holds: nothing when it has nothing to do."""
    rows = engine._tokens.size + engine._blockwise.size + engine._cards.size
    batches = [batch.batch for batch in (engine._tokens, engine._blockwise, engine._cards) if batch.batch is not None]
    return rows, batches[0] if batches else None, engine._bound, engine._waiting | engine._tokens.best_of


def test_one_pass_a_step_for_all_rows_and_one_of_each_reward():
    lm, reward, other = tiny_language_model(), tiny_reward(), tiny_reward(seed=9)
    counts = {"lm": 0, "reward": 0, "other": 0}

    def counting(name):
        def count(*_):
            counts[name] += 1

        return count

    models = (lm.model, reward.backbone, other.backbone)
    hooks = [model.register_forward_pre_hook(counting(name)) for name, model in zip(counts, models, strict=True)]
    engine = Engine(lm)
    for asked in ({"top_k": 3}, {"top_k": 12, "reward_weight": 0.3}, {"method": "args"}, {"temperature": 0.5}):
        engine.add(Request.of("A", reward, max_new_tokens=6, **asked))
    engine.add(Request.of("B", other, max_new_tokens=6))
    engine.add(Request.of("B", [(other, 2.0), (reward, 1.0)], max_new_tokens=6))
    engine.add(Request.of("B", method="plain", max_new_tokens=6))
    engine.step()
    before = dict(counts)
    engine.step()
    assert {name: counts[name] - before[name] for name in counts} == {"lm": 1, "reward": 1, "other": 1}
    for hook in hooks:
        hook.remove()


def test_nothing_of_a_request_is_kept_once_its_last_event_is_out():
    lm, reward = tiny_language_model(), tiny_reward()
    engine = Engine(lm)
    engine.add(Request.of("A", reward, max_new_tokens=3))
    engine.add(Request.of("B", method="plain", max_new_tokens=30))
    seen = []
    for _ in range(5):
        seen += [weakref.ref(event) for _, event in engine.step()]
    known, reward = weakref.ref(reward), None
    gc.collect()
    assert known() is None
    mine = [one() for one in seen if one() is not None]
    assert all(any(step is held for held in engine._tokens.rows[0].steps) for step in mine)
    engine.cancel(1)
    mine = None
    gc.collect()
    assert [one for one in seen if one() is not None] == []
    assert kept(engine) == (0, None, {}, {})


def test_a_cancelled_requests_place_is_free_at_the_next_step():
    engine = Engine(tiny_language_model(), batch_size=1)
    first, second = (engine.add(Request.of("A", method="plain", max_new_tokens=50)) for _ in range(2))
    assert {number for number, _ in engine.step()} == {first}
    assert engine.cancel(first) and not engine.cancel(first) and not engine.cancel(99)
    assert {number for number, _ in engine.step()} == {second}
    assert engine.cancel(second) and not engine
    assert engine.step() == []


def test_requests_begin_in_the_order_of_their_coming_and_wide_ones_wait_for_room():
    engine = Engine(lm_of(), batch_size=4)
    asked = {"max_new_tokens": 4, "seed": 1}
    for method in ("plain", "cd-blockwise:6", "plain", "cd-blockwise:2"):
        engine.add(Request.of("A", None if method == "plain" else reward_of(), method=method, **asked))
    began = []
    while engine:
        for number, event in engine.step():
            if isinstance(event, Step) and number not in began:
                began.append(number)
    assert began == [0, 1, 2, 3]


# What goes wrong with one row


class Breaks(KnownReward):
    """A reward that gives text A what it gives every text, and breaks where a row's response begins with that token."""

    def __init__(self, first: int, how):
        super().__init__(self.give, more_eos=MORE_EOS)
        self.first, self.how = first, how

    def give(self, ids):
        return self.how() if list(ids[:2]) == [65, self.first] else float(ids[-1] % 3)


def raising():
    raise ZeroDivisionError("by the reward")


BLOCKS = {
    "best-of-n:2": {},
    "cd-blockwise:2": {"block_tokens": 2},
    "cards": {"reward_threshold": 9.0, "retries": 2, "least_tokens": 1, "segment_tokens": 2},
}


@pytest.mark.parametrize("how", [raising, lambda: math.nan, lambda: math.inf], ids=["raises", "nan", "inf"])
@pytest.mark.parametrize("method", ["pargs", "args", "genarm", *BLOCKS])
def test_a_reward_that_breaks_for_one_row_ends_that_row_alone(method, how):
    asked = {"method": method, "max_new_tokens": 6, **BLOCKS.get(method, {})}
    lm, fine, prompts = lm_of(), KnownReward(lambda ids: float(ids[-1] % 3), more_eos=MORE_EOS), ["A", "B", "C"]
    want = [generate(lm, [prompt], fine, seed=[i], **asked)[0] for i, prompt in enumerate(prompts)]
    broken = Breaks(want[0].steps[0].token_id, how)
    engine = Engine(lm)
    for i, prompt in enumerate(prompts):
        engine.add(Request.of(prompt, broken, seed=i, **asked))
    last = dict(drained(engine))
    assert isinstance(last[0], Failure) and "\n" not in str(last[0].error)
    assert isinstance(last[0].error, ZeroDivisionError if how is raising else RewardError)
    for i in (1, 2):
        assert_same_generation(last[i], want[i])
    with pytest.raises(type(last[0].error)):
        generate(lm, prompts, broken, **asked)


class Misshapen(KnownReward):
    """A reward whose rows return something else than what they computed."""

    def __init__(self, spoil):
        super().__init__(lambda ids: float(ids[-1] % 3), more_eos=MORE_EOS)
        self.spoil = spoil

    def start(self, prefixes, max_new_tokens, candidates):
        return MisshapenRows(super().start(prefixes, max_new_tokens, candidates), self.spoil)


class MisshapenRows:
    def __init__(self, right, spoil):
        self.right, self.spoil = right, spoil

    def candidate_rewards(self, token_ids):
        return self.spoil(self.right.candidate_rewards(token_ids))

    def vocabulary_rewards(self):
        return self.spoil(self.right.vocabulary_rewards())

    def prefix_rewards(self):
        return self.spoil(self.right.prefix_rewards())

    def __getattr__(self, name):
        return getattr(self.right, name)


@pytest.mark.parametrize(
    ("spoil", "got"),
    [
        (lambda r: None, "None"),
        (lambda r: r[..., :0], "a tensor of torch.float32 of shape"),
        (lambda r: r[0], "a tensor of torch.float32 of shape"),
        (lambda r: r[:1], "a tensor of torch.float32 of shape"),
        (lambda r: r[..., None], "a tensor of torch.float32 of shape"),
        (lambda r: r.tolist(), "an object of type list"),
        (lambda r: 1.0, "an object of type float"),
    ],
    ids=["none", "narrow", "first", "one row", "deep", "list", "number"],
)
@pytest.mark.parametrize("method", ["pargs", "args", "genarm", *BLOCKS])
def test_a_reward_that_returns_no_rewards_of_the_right_shape_ends_its_rows_alone(method, spoil, got):
    asked = {"method": method, "max_new_tokens": 4, **BLOCKS.get(method, {})}
    lm, fine = lm_of(), KnownReward(lambda ids: float(ids[-1] % 3), more_eos=MORE_EOS)
    engine = Engine(lm)
    bad = Misshapen(spoil)
    for i, (prompt, reward) in enumerate([("A", bad), ("B", fine), ("C", bad)]):
        engine.add(Request.of(prompt, reward, seed=i, **asked))
    last = dict(drained(engine))
    for number in (0, 2):
        assert isinstance(last[number], Failure) and isinstance(last[number].error, RewardError)
        assert re.search(
            rf"_rewards of Misshapen returned {got}.*; return the rewards as a tensor of shape", str(last[number].error)
        )
    assert_same_generation(last[1], generate(lm, ["B"], fine, seed=1, **asked)[0])


def test_the_shapes_that_a_reward_returned_and_should_have_are_named():
    words = "candidate_rewards of Misshapen returned a tensor of torch.float32 of shape (1, 3); "
    with pytest.raises(RewardError, match=re.escape(words + "return the rewards as a tensor of shape (1, 10)")):
        generate(lm_of(), ["A"], Misshapen(lambda r: r[:, :3]))


@pytest.mark.parametrize("method", ["pargs", "genarm", "cd-blockwise:2", "cards"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_reward_that_cannot_read_a_token_of_one_row_ends_that_row_alone(method, after):
    class Stumbles(KnownReward):
        def start(self, prefixes, max_new_tokens, candidates):
            rows = super().start(prefixes, max_new_tokens, candidates)

            def advance(token_ids, read=rows.advance):
                read(token_ids)
                if any(row[0] == ord("B") and len(row) == 1 + after for row in rows.rows):
                    raise ZeroDivisionError("by the token")

            rows.advance = advance
            return rows

    asked = {"method": method, "max_new_tokens": 5, **BLOCKS.get(method, {})}
    engine, reward = Engine(tiny_language_model()), Stumbles(lambda ids: float(ids[-1] % 3))
    for i, prompt in enumerate("ABC"):
        engine.add(Request.of(prompt, reward, seed=i, **asked))
    last = dict(drained(engine))
    assert isinstance(last[1], Failure) and str(last[1].error) == "by the token"
    for i in (0, 2):
        fine = KnownReward(lambda ids: float(ids[-1] % 3))
        assert_same_generation(last[i], generate(tiny_language_model(), ["ABC"[i]], fine, seed=i, **asked)[0])


def test_a_language_model_that_gives_no_numbers_is_named():
    lm = tiny_language_model()
    lm.model.model.layers[1].mlp.down_proj.weight.data[0] = math.nan
    for method, reward in (("plain", None), ("pargs", tiny_reward()), ("cd-blockwise", tiny_reward())):
        words = "the language model tiny llama gives log-probabilities that are not numbers for prompt 1 at step 1"
        with pytest.raises(ModelError, match=words):
            generate(lm, ["A", "B"], reward, method=method, max_new_tokens=3)


def test_a_processor_that_breaks_for_one_row_ends_that_row_alone():
    lm = tiny_language_model()

    def breaks(ids, logprobs):
        if ids[0, 0] == ord("B") and ids.shape[1] == 3:
            raise ZeroDivisionError("by the processor")
        return logprobs

    engine = Engine(lm)
    for prompt in "ABC":
        engine.add(Request.of(prompt, method="plain", logits_processor=breaks, max_new_tokens=4))
    last = dict(drained(engine))
    assert isinstance(last[1], Failure) and str(last[1].error) == "by the processor"
    for number, prompt in ((0, "A"), (2, "C")):
        assert_same_generation(last[number], generate(lm, [prompt], method="plain", max_new_tokens=4)[0])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: None, "the logits processor returned None for prompt 2 at step 1; return log-probabilities as a"),
        (
            lambda s: s[:, :10],
            "of shape (1, 10) for prompt 2 at step 1; return log-probabilities as a tensor of torch.float",
        ),
        (
            lambda s: s[0],
            f"of shape ({len(byte_tokenizer())},) for prompt 2 at step 1; return log-probabilities as a tensor",
        ),
        (lambda s: s > -3, "the logits processor returned a tensor of torch.bool of shape (1, "),
        (lambda s: s.tolist(), "the logits processor returned an object of type list for prompt 2 at step 1; return"),
        (lambda s: s * math.nan, "gives a token the log-probability nan for prompt 2 at step 1; return finite numbers"),
        (lambda s: s.fill_(math.nan), "the logits processor gives a token the log-probability nan for prompt 2"),
        (lambda s: s + math.inf, "gives a token the log-probability inf for prompt 2 at step 1; return finite numbers"),
    ],
    ids=["none", "narrow", "flat", "bool", "list", "nan", "nan in place", "inf"],
)
@pytest.mark.parametrize("method", ["plain", "pargs", "genarm", *BLOCKS])
def test_a_processor_that_returns_no_log_probabilities_ends_that_row_alone(method, spoil, words):
    lm, reward = tiny_language_model(), KnownReward(lambda ids: float(ids[-1] % 3))
    asked = {"method": method, "max_new_tokens": 3, **BLOCKS.get(method, {})}
    guide = None if method == "plain" else reward

    def processor(ids, logprobs):
        return spoil(logprobs) if ids[0, 0] == ord("B") else logprobs

    engine = Engine(lm)
    for i, prompt in enumerate("ABC"):
        engine.add(Request.of(prompt, guide, seed=i, logits_processor=processor, **asked))
    last = dict(drained(engine))
    assert isinstance(last[1], Failure) and isinstance(last[1].error, MethodError)
    assert words in str(last[1].error)
    for i in (0, 2):
        assert_same_generation(last[i], generate(lm, ["ABC"[i]], guide, seed=i, **asked)[0])


def test_a_processor_of_another_precision_leaves_the_others_theirs():
    def second(processor):
        engine = Engine(tiny_language_model(dtype=torch.float32))
        engine.add(Request.of("A", method="plain", max_new_tokens=3, logits_processor=processor))
        engine.add(Request.of("B", method="plain", max_new_tokens=3))
        return dict(drained(engine))[1]

    assert second(lambda ids, logprobs: logprobs.double()) == second(lambda ids, logprobs: logprobs)


def test_a_reward_that_cannot_begin_at_a_prompt_ends_that_row_alone():
    class Picky(KnownReward):
        def start(self, prefixes, max_new_tokens, candidates):
            if any(prefix.prompt == "B" for prefix in prefixes):
                raise RewardError("not at B")
            return super().start(prefixes, max_new_tokens, candidates)

    lm, picky = lm_of(), Picky(more_eos=MORE_EOS)
    engine = Engine(lm)
    for prompt in "ABC":
        engine.add(Request.of(prompt, picky, max_new_tokens=4))
    last = dict(drained(engine))
    assert isinstance(last[1], Failure) and str(last[1].error) == "not at B"
    for number, prompt in ((0, "A"), (2, "C")):
        assert_same_generation(last[number], generate(lm, [prompt], picky, max_new_tokens=4)[0])


def test_a_request_that_cannot_be_taken_leaves_nothing_behind():
    engine = Engine(tiny_language_model())
    with pytest.raises(PromptError, match="prompt 1 has 250 tokens, which with 64 new ones exceed the context"):
        engine.add(Request.of("x" * 250, tiny_reward()))
    with pytest.raises(RewardError, match="also ends texts with the token ids"):
        Engine(lm_of()).add(Request.of("A", tiny_reward()))
    assert not engine and engine.step() == []


def test_a_request_is_checked_when_it_is_made():
    for asked, error in (
        ({"seed": -1}, MethodError),
        ({"stop": ["", "a"]}, MethodError),
        ({"method": "plain", "keep_all": True}, MethodError),
        ({"method": "genarm"}, MethodError),
        ({"template": "chat"}, RewardError),
        ({"method": "soft-value"}, RewardError),
    ):
        with pytest.raises(error):
            Request.of("A", reward_of(), **asked)
    request = Request.of("A", reward_of(), reward_weight=3.0, stop="x")
    assert (request.method.reward_weight, request.stop, request.template) == (3.0, ("x",), "raw")
    with pytest.raises(AttributeError):
        request.seed = 3
