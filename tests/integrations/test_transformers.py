"""Guided decoding inside transformers' generate: equal to midcourse's own, with everything generate was asked for."""

import copy
import functools
import inspect

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    T5Config,
    T5ForConditionalGeneration,
    TextIteratorStreamer,
    set_seed,
)

from midcourse.decode.engine import generate
from midcourse.decode.methods import MethodError
from midcourse.integrations.transformers import Guide, GuidedLogitsProcessor, guided
from midcourse.lm.caches import UnsupportedModelError
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import PromptError
from midcourse.rewards.info import RewardError
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import (
    ARCHITECTURES,
    CONTEXT,
    EOS,
    KnownReward,
    byte_tokenizer,
    tiny_language_model,
    tiny_reward,
    tiny_vocabulary_reward,
)
from tests.pace import slow_except

PROMPTS = ["The ferry was late, and", "A", "żółć: a longer text", "under"]
MORE_EOS = tuple(range(3, 256, 12))  # so many that rows end at different times
NOTHING = float("-inf")
GREEDY = {"method": "pargs-greedy"}


@functools.cache
def lm_of(architecture: str = "llama") -> LanguageModel:
    return tiny_language_model(architecture, more_eos=MORE_EOS)


@functools.cache
def reward_of(architecture: str = "llama") -> RewardModel:
    return tiny_reward(architecture, more_eos=MORE_EOS)


def padded(lm: LanguageModel, prompts: list[str]) -> dict[str, torch.Tensor]:
    tokenizer = byte_tokenizer() if lm.name.startswith("tiny") else lm.tokenizer
    return dict(tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False))


def responses(lm: LanguageModel, sequences: torch.Tensor, width: int, max_new_tokens: int) -> list[list[int]]:
    """The new tokens of each row, up to and with EOS."""
    found = []
    for row in sequences[:, width:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in lm.eos_token_ids), len(row))
        assert all(token == row[end] for token in row[end:])
        found.append(row[:end])
    return found


def call(lm, prompts, guide, max_new_tokens=12, **kwargs) -> list[list[int]]:
    inputs = padded(lm, prompts)
    sequences = lm.model.generate(
        **inputs, custom_generate=guided, guide=guide, max_new_tokens=max_new_tokens, **kwargs
    )
    return responses(lm, sequences, inputs["input_ids"].shape[1], max_new_tokens)


def own(lm, prompts, reward, max_new_tokens=12, **settings) -> list[list[int]]:
    rows = generate(lm, prompts, reward, max_new_tokens=max_new_tokens, **settings)
    return [[step.token_id for step in row.steps] for row in rows]


def plain(lm, prompts, max_new_tokens=12, **kwargs) -> list[list[int]]:
    inputs = padded(lm, prompts)
    sequences = lm.model.generate(**inputs, max_new_tokens=max_new_tokens, **kwargs)
    return responses(lm, sequences, inputs["input_ids"].shape[1], max_new_tokens)


def processed(lm, prompts, guide, max_new_tokens=12, processor=None, **kwargs) -> list[list[int]]:
    processor = processor or GuidedLogitsProcessor(guide, lm.model)
    return plain(lm, prompts, max_new_tokens, logits_processor=LogitsProcessorList([processor]), **kwargs)


def loves(rewards: dict[int, float]) -> KnownReward:
    """A reward for prefixes that end with these tokens."""
    return KnownReward(lambda ids: rewards.get(ids[-1], 0.0))


# guided


@pytest.mark.parametrize("architecture", slow_except(["llama", "gemma3"], ARCHITECTURES))
@pytest.mark.parametrize("method", ["pargs", "pargs-greedy", "rad"])
def test_guided_equals_midcourse(architecture, method):
    lm, reward = lm_of(architecture), reward_of(architecture)
    want = own(lm, PROMPTS, reward, method=method, seed=3, max_new_tokens=16)
    assert call(lm, PROMPTS, Guide(reward, lm.tokenizer, method, seed=3), max_new_tokens=16) == want


def test_settings_reach_the_loop():
    lm, reward = lm_of(), reward_of()
    for settings in (
        {"reward_weight": 0.5, "top_k": 40, "temperature": 1.7, "top_p": 0.9},
        {"kl_per_token": 0.05},
        {"kl_budget": 0.3, "always_offer_eos": True},
        {"method": "farma", "reward": tiny_vocabulary_reward(more_eos=MORE_EOS)},
    ):
        found = settings.pop("reward", reward)
        have = call(lm, PROMPTS, Guide(found, lm.tokenizer, seed=5, **settings))
        assert have == own(lm, PROMPTS, found, seed=5, **settings)
        assert have != own(lm, PROMPTS, reward, seed=5)


def test_several_rewards():
    lm = lm_of()
    guides = [(reward_of(), 0.5), (loves({101: 1.0}), 3.0)]
    assert call(lm, PROMPTS, Guide(guides, lm.tokenizer, seed=2)) == own(lm, PROMPTS, guides, seed=2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weight_0_equals_transformers(architecture):
    lm, reward = lm_of(architecture), reward_of(architecture)
    want = plain(lm, PROMPTS, 16, do_sample=False)
    assert call(lm, PROMPTS, Guide(reward, lm.tokenizer, reward_weight=0.0, temperature=0.0), 16) == want
    assert call(lm, PROMPTS, Guide(None, lm.tokenizer, "plain", temperature=0.0), 16) == want


def test_returns_what_generate_returns():
    lm, reward = lm_of(), reward_of()
    inputs = padded(lm, PROMPTS)
    settings = {"guide": Guide(reward, lm.tokenizer, seed=3), "max_new_tokens": 16}
    have = lm.model.generate(**inputs, custom_generate=guided, **settings)
    want = own(lm, PROMPTS, reward, seed=3, max_new_tokens=16)
    width, longest = inputs["input_ids"].shape[1], max(map(len, want))
    assert have.dtype == torch.long and have.shape == (4, width + longest)
    assert torch.equal(have[:, :width], inputs["input_ids"])
    assert have[:, width:].tolist() == [row + [258] * (longest - len(row)) for row in want]
    output = lm.model.generate(**inputs, custom_generate=guided, return_dict_in_generate=True, **settings)
    assert torch.equal(output.sequences, have) and output.scores is None
    # The result is an ordinary tensor, not one of inference mode.
    assert not have.is_inference() and have.add_(0) is have


def test_one_prompt_without_mask():
    lm, reward = lm_of(), reward_of()
    ids = torch.tensor([list(b"under")])
    have = lm.model.generate(ids, custom_generate=guided, guide=Guide(reward, lm.tokenizer, seed=3), max_new_tokens=8)
    assert responses(lm, have, 5, 8) == own(lm, ["under"], reward, seed=3, max_new_tokens=8)


def test_max_length_counts_the_padded_prompt():
    lm, reward = lm_of(), reward_of()
    guide = Guide(reward, lm.tokenizer, seed=3)
    width = padded(lm, PROMPTS)["input_ids"].shape[1]
    inputs = padded(lm, PROMPTS)
    have = lm.model.generate(**inputs, custom_generate=guided, guide=guide, max_length=width + 5)
    assert responses(lm, have, width, 5) == own(lm, PROMPTS, reward, seed=3, max_new_tokens=5)


def test_ends_are_those_of_the_call():
    lm, reward = tiny_language_model(), tiny_reward()
    inputs = padded(lm, PROMPTS)
    width = inputs["input_ids"].shape[1]
    long = own(lm, PROMPTS, reward, seed=3, max_new_tokens=16)
    ends = [long[0][4], long[2][2]]
    settings = {"guide": Guide(reward, lm.tokenizer, seed=3), "max_new_tokens": 16}
    for given in (ends, ends[0]):
        have = lm.model.generate(**inputs, custom_generate=guided, eos_token_id=given, **settings)
        some = ends if given is ends else [given]
        cut = [next((row[: i + 1] for i, token in enumerate(row) if token in some), row) for row in long]
        assert have[:, width:].tolist() == [row + [258] * (max(map(len, cut)) - len(row)) for row in cut]
        assert min(map(len, cut)) < 16

    # Without EOS nothing ends a response before the limit, whatever is drawn, and there is none to be offered.
    lm, reward = lm_of(), loves({65: 100.0})
    guide = Guide(reward, lm.tokenizer, top_k=300, seed=3, always_offer_eos=True)
    lm.model.generation_config.eos_token_id, old = None, lm.model.generation_config.eos_token_id
    try:
        have = lm.model.generate(**inputs, custom_generate=guided, guide=guide, max_new_tokens=5)
    finally:
        lm.model.generation_config.eos_token_id = old
    assert have[:, width:].tolist() == [[65] * 5] * 4


def test_pad_is_eos():
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = EOS
    lm = LanguageModel(tiny_language_model().model, tokenizer, "other")
    reward = loves({257: 100.0})
    prompts = [f"{EOS}a", "a longer prompt"]
    inputs = padded(lm, prompts)
    assert inputs["input_ids"][0, -2:].tolist() == [257, 97] and inputs["attention_mask"][0].sum() == 2
    guide = Guide(KnownReward(lambda ids: float(len(ids) * (ids[-1] == 101))), tokenizer, seed=3)
    have = lm.model.generate(**inputs, custom_generate=guided, guide=guide, pad_token_id=257, max_new_tokens=9)
    assert responses(lm, have, 15, 9) == own(lm, prompts, guide.reward, seed=3, max_new_tokens=9)
    # EOS at once: one new column, and no padding.
    guide = Guide(reward, tokenizer, top_k=300)
    have = lm.model.generate(**inputs, custom_generate=guided, guide=guide, pad_token_id=257, max_new_tokens=9)
    assert have[:, 15:].tolist() == [[257], [257]]
    # The processor cannot tell such a prompt's EOS from padding, but for the mask.
    mask = inputs["attention_mask"]
    reward = KnownReward(lambda ids: 1000.0 * (ids[-1] == 100 + len(ids) % 16), tokenizer)
    guide = Guide(reward, tokenizer, "pargs-greedy", top_k=300)
    want = own(lm, prompts, reward, method="pargs-greedy", top_k=300, max_new_tokens=4)
    for mask, same in ((inputs["attention_mask"], True), (None, False)):
        processor = GuidedLogitsProcessor(guide, lm.model, mask)
        processors = LogitsProcessorList([processor])
        have = lm.model.generate(**inputs, logits_processor=processors, pad_token_id=257, max_new_tokens=4)
        assert (have[:, 15:].tolist() == want) == same


def test_num_return_sequences():
    lm, reward = lm_of(), reward_of()
    have = call(lm, PROMPTS[:2], Guide(reward, lm.tokenizer, seed=3), do_sample=True, num_return_sequences=2)
    assert have == own(lm, [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2, reward, seed=3)
    assert have[0] != have[1]


def test_set_seed_reproduces():
    lm, guide = lm_of(), Guide(reward_of(), lm_of().tokenizer)
    set_seed(4)
    first = [call(lm, PROMPTS, guide) for _ in range(2)]
    set_seed(4)
    assert [call(lm, PROMPTS, guide) for _ in range(2)] == first
    assert first[0] != first[1]
    set_seed(5)
    assert call(lm, PROMPTS, guide) != first[0]
    # With a seed of its own, torch's generator is left alone.
    before = torch.random.get_rng_state()
    call(lm, PROMPTS, Guide(reward_of(), lm.tokenizer, seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)


CONFIGURED = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 10},
    {"bad_words_ids": [[76], [101], [32]]},
    {"sequence_bias": [[[101], 9.0], [[32, 101], -9.0]]},
    {"suppress_tokens": list(range(200))},
    {"begin_suppress_tokens": list(range(128))},
    {"forced_eos_token_id": 257},
    {"encoder_repetition_penalty": 1.5},
    {"exponential_decay_length_penalty": (2, 1.5)},
]


@pytest.mark.parametrize("settings", CONFIGURED, ids=lambda settings: next(iter(settings)))
def test_configured_processors_are_those_of_generate(settings):
    lm = tiny_language_model(dtype=torch.float32, more_eos=MORE_EOS)
    want = plain(lm, PROMPTS, do_sample=False, **settings)
    assert want != plain(lm, PROMPTS, do_sample=False)
    constant = KnownReward(lambda ids: 1.25, more_eos=MORE_EOS)
    for guide in (Guide(None, lm.tokenizer, "plain", temperature=0.0), Guide(constant, lm.tokenizer, **GREEDY)):
        assert call(lm, PROMPTS, guide, **settings) == want
        assert processed(lm, PROMPTS, guide, do_sample=False, **settings) == want


@pytest.mark.parametrize("hook", ["guided", "processor"])
def test_impossible_stays_impossible(hook):
    lm = lm_of()
    guide = Guide(loves({101: 200.0, 102: 100.0}), lm.tokenizer, top_k=300, **GREEDY)
    run = call if hook == "guided" else processed
    assert run(lm, PROMPTS, guide, 4) == [[101] * 4] * 4
    assert run(lm, PROMPTS, guide, 4, bad_words_ids=[[101]]) == [[102] * 4] * 4
    have = run(lm, PROMPTS, guide, 4, bad_words_ids=[[101], [102]])
    assert not {101, 102} & {token for row in have for token in row}


class Watching(LogitsProcessor):
    """Bans a token of its own in each row, and remembers what it was shown."""

    def __init__(self):
        self.shown: list[list[list[int]]] = []

    def __call__(self, input_ids, scores):
        self.shown.append(input_ids.tolist())
        banned = torch.tensor([[101], [102], [103], [104]])[: len(scores)]
        return scores.scatter(1, banned, NOTHING)


def test_users_processors_see_the_whole_batch():
    lm, reward = lm_of(), KnownReward(more_eos=MORE_EOS)
    watching = Watching()
    inputs = padded(lm, PROMPTS)
    settings = {"guide": Guide(reward, lm.tokenizer, top_k=300, seed=3), "max_new_tokens": 24}
    have = lm.model.generate(**inputs, custom_generate=guided, logits_processor=[watching], **settings)
    width = inputs["input_ids"].shape[1]
    assert watching.shown == [have[:, : width + i].tolist() for i in range(len(watching.shown))]
    assert len(watching.shown) == have.shape[1] - width
    assert len(set(map(len, responses(lm, have, width, 24)))) > 1  # rows have left, the others kept their places
    assert all(101 + i not in row for i, row in enumerate(have[:, width:].tolist()))


def test_processors_know_their_rows_while_others_leave():
    lm, reward = lm_of(), reward_of()
    width = padded(lm, PROMPTS)["input_ids"].shape[1]
    lengths = [5, 2, 4, 7]

    def allowed(row, ids):
        return [70 + row] if len(ids) - width < lengths[row] else [257]

    have = call(lm, PROMPTS, Guide(reward, lm.tokenizer), prefix_allowed_tokens_fn=allowed)
    assert have == [[70 + row] * length + [257] for row, length in enumerate(lengths)]


def test_sampling_defaults_of_the_model_have_no_effect():
    lm, reward = lm_of(), reward_of()
    want = own(lm, PROMPTS, reward, seed=3)
    usual = lm.model.generation_config
    lm.model.generation_config = GenerationConfig(
        **{**usual.to_diff_dict(), "do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1}
    )
    try:
        assert call(lm, PROMPTS, Guide(reward, lm.tokenizer, seed=3)) == want
        with pytest.raises(
            MethodError, match=r"^do_sample=False contradicts method pargs, which samples here; .* use pargs-greedy$"
        ):
            call(lm, PROMPTS, Guide(reward, lm.tokenizer), do_sample=False)
    finally:
        lm.model.generation_config = usual
    assert call(lm, PROMPTS, Guide(reward, lm.tokenizer, seed=3), do_sample=True) == want
    with pytest.raises(MethodError, match=r"^do_sample=True contradicts method args, which takes .* or use pargs$"):
        call(lm, PROMPTS, Guide(reward, lm.tokenizer, "args"), do_sample=True)


class EndsAfter(StoppingCriteria):
    """Ends a row that ends with a token, where it has at least so many."""

    def __init__(self, token: int, width: int):
        self.token, self.width = token, width

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, -1] == self.token) & (input_ids.shape[1] >= self.width)


def test_stopping_criteria_end_rows_one_by_one():
    lm, reward = tiny_language_model(), tiny_reward()
    guide = Guide(reward, lm.tokenizer, seed=3)
    inputs = padded(lm, PROMPTS)
    width = inputs["input_ids"].shape[1]
    long = own(lm, PROMPTS, reward, seed=3, max_new_tokens=14)
    token = long[0][5]
    settings = {"guide": guide, "max_new_tokens": 14, "custom_generate": guided}
    criteria = StoppingCriteriaList([EndsAfter(token, width + 3)])
    have = lm.model.generate(**inputs, stopping_criteria=criteria, **settings)[:, width:].tolist()
    want = [next((row[: i + 1] for i in range(2, 14) if row[i] == token), row) for row in long]
    assert [row[: len(cut)] for row, cut in zip(have, want, strict=True)] == want
    assert all(set(row[len(cut) :]) <= {258} for row, cut in zip(have, want, strict=True))
    assert len({len(cut) for cut in want}) > 1

    for mine, length in ((MaxLengthCriteria(width + 4), 4), (EosTokenCriteria([token]), 6)):
        have = lm.model.generate(**inputs, stopping_criteria=StoppingCriteriaList([mine]), **settings)[0, width:]
        assert have[:length].tolist() == long[0][:length] and set(have[length:].tolist()) <= {258}

    have = lm.model.generate(**inputs, stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(0.0)]), **settings)
    assert have[:, width:].tolist() == [row[:1] for row in long]


def test_stop_strings():
    lm = lm_of()
    counts = KnownReward(lambda ids: 100.0 * (ids[-1] == 100 + len(ids) % 6))
    criteria = StoppingCriteriaList([StopStringCriteria(lm.tokenizer, ["hi"])])
    have = call(lm, ["123456", "1234"], Guide(counts, lm.tokenizer, top_k=300), stopping_criteria=criteria)
    assert [bytes(token for token in row if token < 256) for row in have] == [b"efghi", b"idefghi"]


def test_streamer():
    lm, reward = lm_of(), reward_of()
    guide = Guide(reward, lm.tokenizer, seed=3)
    (row,) = generate(lm, ["The ferry"], reward, seed=3, max_new_tokens=12)
    for skip in (False, True):
        streamer = TextIteratorStreamer(lm.tokenizer, skip_prompt=skip, skip_special_tokens=True, timeout=0.0)
        call(lm, ["The ferry"], guide, guided_streamer=streamer)
        text = "".join(streamer)
        ids = [step.token_id for step in row.steps]
        whole = lm.tokenizer.decode(ids, skip_special_tokens=True)
        assert text == whole if skip else text == lm.tokenizer.decode([*b"The ferry", *ids], skip_special_tokens=True)


REFUSED = [
    ({"num_beams": 2}, r"^num_beams 2 asks for beam search, which guided decoding has not; use 1$"),
    ({"prompt_lookup_num_tokens": 3}, r"assisted generation, which guided decoding replaces; leave its settings out$"),
    ({"penalty_alpha": 0.6, "top_k": 4}, r"contrastive search, which guided decoding replaces"),
    ({"temperature": 0.5}, r"^temperature 0.5 of generate has no effect .*; give it to Guide\(temperature=...\)$"),
    ({"top_p": 0.5}, r"^top_p 0.5 of generate has no effect on guided decoding; give it to Guide\(top_p=...\)$"),
    ({"top_k": 7}, r"^top_k 7 of generate has no effect on guided decoding; give it to Guide\(top_k=...\)$"),
    ({"min_p": 0.1}, r"^min_p 0.1 of generate has no effect on guided decoding; leave it out$"),
    ({"return_dict_in_generate": True, "output_scores": True}, r"returns sequences only, no output_scores; leave it"),
]


@pytest.mark.parametrize(("settings", "sentence"), REFUSED, ids=lambda value: str(value)[:24])
def test_refused_settings_of_generate(settings, sentence):
    lm = lm_of()
    with pytest.raises(MethodError, match=sentence):
        call(lm, ["A"], Guide(reward_of(), lm.tokenizer), **settings)


REFUSED_GUIDES = [
    ({"method": "best-of-n"}, MethodError, r"^method best-of-n guides whole blocks, .*; use midcourse.generate$"),
    ({"method": "nonsense"}, MethodError, r"^method 'nonsense' is unknown; use one of: "),
    ({"method": "farma"}, MethodError, r"ranks the whole vocabulary, which takes a vocabulary reward"),
    ({"reward": None}, MethodError, r"^method pargs needs a reward; give one, or use method 'plain'$"),
    ({"top_k": 0}, MethodError, r"^top-k 0 leaves no candidates"),
    ({"kl_budget": -1.0}, MethodError, r"^kl-budget -1.0 is not a number of nats above 0"),
    ({"kl_per_token": 1.0, "method": "args"}, MethodError, r"a greedy choice has none"),
    ({"method": "soft-value"}, RewardError, r"needs a reward trained to estimate"),
]


@pytest.mark.parametrize("hook", [call, processed], ids=["guided", "processor"])
@pytest.mark.parametrize(("settings", "kind", "sentence"), REFUSED_GUIDES, ids=lambda value: str(value)[:24])
def test_refused_guides(hook, settings, kind, sentence):
    lm = lm_of()
    with pytest.raises(kind, match=sentence):
        hook(lm, ["A"], Guide(**{"reward": reward_of(), "tokenizer": lm.tokenizer, **settings}))


def test_refused_rewards_and_rows():
    lm = lm_of()
    guide = Guide(reward_of(), lm.tokenizer)
    with pytest.raises(MethodError, match=r"^guided decoding needs to know what guides; give generate guide=Guide\("):
        call(lm, ["A"], None)
    with pytest.raises(RewardError, match="also ends texts with the token ids"):
        call(lm, ["A"], Guide(tiny_reward(), lm.tokenizer))
    streamer = TextIteratorStreamer(lm.tokenizer)
    with pytest.raises(MethodError, match=r"^a streamer shows one row, not 2; stream a single prompt$"):
        call(lm, ["A", "B"], guide, guided_streamer=streamer)
    for run in (call, processed):
        with pytest.raises(PromptError, match=r"^prompt 1 has 250 tokens, which with \d+ new ones exceed the context"):
            run(lm, ["A" * 250], Guide(loves({101: 100.0}), lm.tokenizer, top_k=300), 12)
    with pytest.raises(MethodError, match=r"leave prompt 2 no token at step 1; they have to leave at least one$"):
        call(lm, ["A", "B"], guide, logits_processor=[LeavesOneRowNothing()])


class LeavesOneRowNothing(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores.index_fill(0, torch.tensor(1), NOTHING)


def test_refused_inputs():
    lm = lm_of()
    settings = {"custom_generate": guided, "guide": Guide(reward_of(), lm.tokenizer), "max_new_tokens": 4}
    ids = torch.tensor([[65, 66, 67], [68, 69, 70]])
    for hidden, sentence in (
        ([[1, 1, 1], [1, 0, 1]], "hides tokens after a row's first; pad with padding_side='left'$"),
        ([[1, 1, 1], [0, 0, 0]], "^row 2 of input_ids is all padding; give every row a prompt$"),
    ):
        with pytest.raises(PromptError, match=sentence):
            lm.model.generate(ids, attention_mask=torch.tensor(hidden), **settings)
    embedded = lm.model.get_input_embeddings()(ids[:1])
    with pytest.raises(MethodError, match=r"^guided decoding reads token ids only, not inputs_embeds; leave them out$"):
        lm.model.generate(inputs_embeds=embedded, attention_mask=torch.ones(1, 3).long(), **settings)

    config = copy.deepcopy(lm.model.config)
    flex = AutoModelForCausalLM.from_config(config, attn_implementation="flex_attention")
    with pytest.raises(UnsupportedModelError, match="takes no 4D mask"):
        flex.generate(ids[:1], attention_mask=torch.ones(1, 3).long(), **settings)
    size = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 259}
    encoder = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **size)).eval()
    with pytest.raises(UnsupportedModelError, match="t5 is an encoder-decoder; use a decoder-only model"):
        encoder.generate(ids[:1], attention_mask=torch.ones(1, 3).long(), **settings)


def test_signature_lets_generate_hand_the_guide_on():
    # generate takes out of its arguments those names of the callable that its own sampling has not.
    assert {"guide", "guided_streamer"} <= inspect.signature(guided).parameters.keys()


# GuidedLogitsProcessor


@pytest.mark.parametrize("architecture", slow_except(["gemma3"], ARCHITECTURES))
@pytest.mark.parametrize("method", ["pargs", "args", "rad", "fudge"])
def test_greedy_processor_equals_midcourse(architecture, method):
    lm, reward = lm_of(architecture), reward_of(architecture)
    have = processed(lm, PROMPTS, Guide(reward, lm.tokenizer, method), 16, do_sample=False)
    assert have == own(lm, PROMPTS, reward, method=method, temperature=0.0, max_new_tokens=16)
    assert have != plain(lm, PROMPTS, 16, do_sample=False)


@pytest.mark.parametrize("method", ["farma", "genarm"])
def test_processor_with_a_vocabulary_reward(method):
    lm, reward = lm_of(), tiny_vocabulary_reward(more_eos=MORE_EOS)
    have = processed(lm, PROMPTS, Guide(reward, lm.tokenizer, method, reward_weight=1.5), do_sample=False)
    assert have == own(lm, PROMPTS, reward, method=method, reward_weight=1.5, temperature=0.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_processor_at_weight_0_equals_transformers(architecture):
    lm = lm_of(architecture)
    guide = Guide(reward_of(architecture), lm.tokenizer, reward_weight=0.0, top_k=7)
    assert processed(lm, PROMPTS, guide, 16, do_sample=False) == plain(lm, PROMPTS, 16, do_sample=False)
    set_seed(1)
    have = processed(lm, PROMPTS, guide, 16, do_sample=True)
    set_seed(1)
    assert have == plain(lm, PROMPTS, 16, do_sample=True, top_k=7)


def test_processors_scores_are_the_policy():
    lm, reward = lm_of(), reward_of()
    ids = torch.tensor([list(b"The ferry")])
    logits = lm.model(ids).logits[:, -1].detach()
    settings = {"reward_weight": 1.5, "top_k": 6, "temperature": 0.7, "always_offer_eos": True}
    have = GuidedLogitsProcessor(Guide(reward, lm.tokenizer, **settings), lm.model)(ids, logits)
    # Many seeds draw different tokens of the one policy.
    steps = [row.steps[0] for row in generate(lm, ["The ferry"] * 40, reward, max_new_tokens=1, seed=1, **settings)]
    assert have.dtype == logits.dtype and have.exp().sum().item() == pytest.approx(1)
    offered = {candidate.token_id for candidate in steps[0].candidates}
    assert {int(i) for i in (have[0] > NOTHING).nonzero()} == offered >= set(lm.eos_token_ids)
    for step in steps:
        assert have[0, step.token_id].item() == pytest.approx(step.logprob, abs=1e-10)


def test_processor_keeps_kl_limits():
    lm, reward = lm_of(), reward_of()
    for settings in ({"kl_per_token": 0.02}, {"kl_budget": 0.1}, {"kl_per_token": 0.05, "kl_budget": 0.2}):
        guide = Guide(reward, lm.tokenizer, reward_weight=5.0, **settings)
        (row,) = generate(lm, ["The ferry"], reward, reward_weight=5.0, max_new_tokens=10, seed=3, **settings)
        ids = list(b"The ferry")
        processor = GuidedLogitsProcessor(guide, lm.model)
        for step in row.steps:
            scores = lm.model(torch.tensor([ids])).logits[:, -1].detach()
            have = processor(torch.tensor([ids]), scores)
            assert have[0, step.token_id].item() == pytest.approx(step.logprob, abs=1e-6)
            ids.append(step.token_id)


def test_processor_reads_each_token_once():
    lm = lm_of()
    read = []

    class Counting(KnownReward):
        def start(self, prefixes, max_new_tokens, candidates):
            read.append(len(prefixes))
            return super().start(prefixes, max_new_tokens, candidates)

    processed(lm, PROMPTS, Guide(Counting(more_eos=MORE_EOS), lm.tokenizer), do_sample=False)
    assert read == [4]


def test_processor_begins_anew_at_every_call():
    lm, reward = lm_of(), reward_of()
    guide = Guide(reward, lm.tokenizer, **GREEDY)
    processor = GuidedLogitsProcessor(guide, lm.model)
    for prompts, tokens in ((PROMPTS, 9), (PROMPTS, 1), (PROMPTS, 1), (PROMPTS[:2], 9), (PROMPTS[::-1], 9), (["A"], 5)):
        want = own(lm, prompts, reward, max_new_tokens=tokens, **GREEDY)
        assert processed(lm, prompts, guide, tokens, processor, do_sample=False) == want
    # Prompts that go on from the last call's rows.
    ids = torch.tensor([list(b"abc")])
    for _ in range(3):
        fresh = GuidedLogitsProcessor(guide, lm.model)
        have, want = (
            lm.model.generate(ids, logits_processor=[each], do_sample=False, max_new_tokens=3)
            for each in (processor, fresh)
        )
        assert torch.equal(have, want)
        ids = have


def test_finished_rows_change_nothing_for_others():
    lm, reward = lm_of(), reward_of()
    guide = Guide(reward, lm.tokenizer, **GREEDY)
    have = processed(lm, PROMPTS, guide, 24, do_sample=False)
    assert len({len(row) for row in have}) > 1
    for prompt, row in zip(PROMPTS, have, strict=True):
        assert processed(lm, [prompt], guide, 24, do_sample=False) == [row]


def test_a_row_without_a_token_is_left_alone():
    lm = lm_of()
    guide = Guide(reward_of(), lm.tokenizer, kl_budget=0.5)
    ids = torch.tensor([list(b"abc"), list(b"abd")])
    scores = lm.model(ids).logits[:, -1].detach()
    want = GuidedLogitsProcessor(guide, lm.model)(ids, scores)
    scores[0] = NOTHING
    have = GuidedLogitsProcessor(guide, lm.model)(ids, scores)
    assert bool((have[0] == NOTHING).all())
    torch.testing.assert_close(have[1], want[1])


def test_processor_with_num_return_sequences():
    lm = lm_of()
    guide = Guide(reward_of(), lm.tokenizer)
    mask = padded(lm, PROMPTS)["attention_mask"]
    runs = []
    for processor in (GuidedLogitsProcessor(guide, lm.model), GuidedLogitsProcessor(guide, lm.model, mask)):
        set_seed(2)
        runs.append(processed(lm, PROMPTS, guide, 12, processor, do_sample=True, num_return_sequences=2))
    assert runs[0] == runs[1] and runs[0][0] != runs[0][1]
    with pytest.raises(MethodError, match=r"^the attention mask is of \(4, \d+\) tokens, the prompts are \(3, \d+\);"):
        processed(lm, PROMPTS[:3], guide, 12, processor)


@pytest.mark.parametrize("prompts", [["The ferry"], ["The ferry", "under", "A"]], ids=["one", "three"])
@pytest.mark.parametrize("do_sample", [False, True], ids=["search", "sample"])
def test_beam_search_is_refused(prompts, do_sample):
    lm = lm_of()
    guide = Guide(reward_of(), lm.tokenizer)
    set_seed(0)
    with pytest.raises(MethodError, match=r"^the rows changed places .* beam search.*; use num_beams=1$"):
        processed(lm, prompts, guide, 40, num_beams=4, do_sample=do_sample, eos_token_id=257)


def test_processor_refuses_a_seed():
    with pytest.raises(MethodError, match=r"^seed 3 has no effect where generate draws; .* use set_seed$"):
        GuidedLogitsProcessor(Guide(reward_of(), lm_of().tokenizer, seed=3), lm_of().model)


def test_processor_fills_the_context_and_no_more():
    lm = tiny_language_model("gpt2")
    guide = Guide(tiny_reward("gpt2"), lm.tokenizer, **GREEDY)
    ids = torch.full((1, CONTEXT - 3), 65)
    have = lm.model.generate(ids, logits_processor=[GuidedLogitsProcessor(guide, lm.model)], max_new_tokens=3)
    assert have.shape == (1, CONTEXT)
    with pytest.raises(PromptError, match="exceed the context of 256"):
        GuidedLogitsProcessor(guide, lm.model)(torch.full((1, CONTEXT), 65), torch.zeros(1, 259))


# SmolLM2


@pytest.fixture(scope="module")
def smollm2() -> LanguageModel:
    return LanguageModel.load("smollm2", device="cpu", dtype="float32")


@pytest.mark.slow
def test_smollm2(smollm2):
    lm = smollm2
    reward = RewardModel.create("smollm2", template="raw", layers=4, tune="head", device="cpu", dtype="float32").eval()
    reward.head.weight.data += 0.03 * torch.randn(reward.head.weight.shape, generator=torch.Generator().manual_seed(0))
    prompts = ["The ferry was late, and", "A"]
    inputs = dict(lm.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left"))
    width = inputs["input_ids"].shape[1]
    have = lm.model.generate(
        **inputs, custom_generate=guided, guide=Guide(reward, lm.tokenizer, seed=3), max_new_tokens=12
    )
    assert responses(lm, have, width, 12) == own(lm, prompts, reward, seed=3)
    greedy = Guide(reward, lm.tokenizer, **GREEDY)
    processor = GuidedLogitsProcessor(greedy, lm.model, inputs["attention_mask"])
    have = lm.model.generate(**inputs, logits_processor=[processor], do_sample=False, max_new_tokens=12)
    assert responses(lm, have, width, 12) == own(lm, prompts, reward, **GREEDY)
    settings = {"custom_generate": guided, "guide": Guide(None, lm.tokenizer, "plain", temperature=0.0)}
    plainly = lm.model.generate(**inputs, max_new_tokens=12, repetition_penalty=1.3, **settings)
    want = lm.model.generate(**inputs, max_new_tokens=12, repetition_penalty=1.3, do_sample=False)
    assert torch.equal(plainly, want)
    assert not torch.equal(have, want)
