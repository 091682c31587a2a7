"""The loop: laws of decoding on tiny models, its figures by hand, ends, limits, and what it refuses."""

import functools
import math
import re

import pytest
import torch

from midcourse.decode.engine import generate, stream
from midcourse.decode.guidance import add_reward
from midcourse.decode.methods import Method, MethodError
from midcourse.decode.steps import Generation, Step
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import PromptError
from midcourse.rewards.contract import RewardError
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import (
    ARCHITECTURES,
    CONTEXT,
    EOS,
    KnownReward,
    assert_same_generation,
    byte_tokenizer,
    tiny_language_model,
    tiny_reward,
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
        ({"prompts": "one text"}, PromptError, "the prompts are a single text; give a list of texts"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else None,
)
def test_refused_before_any_decoding(settings, error, words):
    asked = {"lm": lm_of(), "prompts": PROMPTS, "reward": reward_of(), **settings}
    with pytest.raises(error, match=re.escape(words)) as caught:
        next(stream(**asked))
    assert "\n" not in str(caught.value)


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
