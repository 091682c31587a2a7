"""Responses under a grammar: always of it, ended where it ends, whatever the reward would rather have."""

import json
import re
import sys

import pytest
import torch
from transformers import LogitsProcessorList

from midcourse.decode.engine import generate
from midcourse.lm.language_model import LanguageModel
from midcourse.testing import KnownReward, byte_tokenizer, tiny_language_model

pytest.importorskip("llguidance")

from midcourse.integrations.grammar import Grammar, GrammarError, json_grammar, regex_grammar
from midcourse.integrations.transformers import Guide, GuidedLogitsProcessor, guided
from tests.pace import slow_except

PROMPTS = ["The ferry was late, and", "A", "under", "żółć"]
NOTHING = float("-inf")
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad", "ugly"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["mood", "stars"],
    "additionalProperties": False,
}


def ask(grammar: Grammar, *rows: str | list[int], vocab: int = 259) -> list[set[int]]:
    """The tokens that are possible after each row."""
    found = []
    for row in rows:
        ids = torch.tensor([list(row.encode()) if isinstance(row, str) else row])
        found.append({int(i) for i in (grammar(ids, torch.zeros(1, vocab))[0] == 0).nonzero()})
    return found


def check(text: str) -> dict:
    """The JSON of a response, valid under the schema."""
    found = json.loads(text)
    assert found.keys() == {"mood", "stars"} and found["mood"] in SCHEMA["properties"]["mood"]["enum"]
    assert found["stars"] in range(1, 6)
    return found


# Which tokens are possible


def test_tokens_by_hand():
    grammar = regex_grammar(byte_tokenizer(), "a+b?")
    assert ask(grammar, "P", "Pa", "Paa", "Paab") == [{97}, {97, 98, 257}, {97, 98, 257}, {257}]


def test_only_impossible_tokens_change():
    grammar = regex_grammar(byte_tokenizer(), "[ab]")
    logprobs = torch.randn(2, 259, dtype=torch.float64)
    before = logprobs.clone()
    have = grammar(torch.tensor([[1, 2], [3, 4]]), logprobs)
    assert torch.equal(logprobs, before)
    assert torch.equal(have[:, 97:99], before[:, 97:99])
    have[:, 97:99] = NOTHING
    assert bool((have == NOTHING).all())


def test_every_end_of_texts_ends_the_grammar():
    grammar = regex_grammar(byte_tokenizer(), "a", eos_token_ids=[257, 258])
    assert ask(grammar, "P", "Pa") == [{97}, {257, 258}]


def test_vocabulary_padded_beyond_the_tokenizers():
    for vocab in (259, 320, 1000):
        assert ask(regex_grammar(byte_tokenizer(), "a"), "P", "Pa", vocab=vocab) == [{97}, {257}]


def test_rows_asked_in_turn_join_leave_and_go_back():
    grammar = regex_grammar(byte_tokenizer(), "(abc)+d")
    assert ask(grammar, "P", "Q", "Pa", "Qa", "Pab") == [{97}, {97}, {98}, {98}, {99}]
    assert ask(grammar, "R", "Pabc", "Qab", "Ra") == [{97}, {97, 100}, {99}, {98}]
    # Q is gone, P goes back, and a second row of P's prompt begins.
    assert ask(grammar, "Pab", "P", "Pabca", "Pa", "Pabcd") == [{99}, {97}, {98}, {98}, {257}]
    assert ask(grammar, "Pabcab", "Pabcabc") == [{99}, {97, 100}]


def test_prompts_that_begin_alike_are_told_apart():
    grammar = regex_grammar(byte_tokenizer(), "ab")
    assert ask(grammar, "P", "PQ", "Pa", "PQa", "PQab") == [{97}, {97}, {98}, {98}, {257}]


def test_the_same_object_takes_the_same_prompt_again():
    grammar = regex_grammar(byte_tokenizer(), "ab")
    for _ in range(3):
        assert ask(grammar, "P", "Pa", "Pab", "P") == [{97}, {98}, {257}, {97}]


def test_many_rows_at_once():
    # More than matchers are kept: those of the first rows are made again.
    grammar = regex_grammar(byte_tokenizer(), "a{9}b")
    rows = [[i // 200, i % 200] for i in range(600)]
    for step in range(4):
        assert ask(grammar, *([*row, *[97] * step] for row in rows)) == [{97}] * 600


def test_whole_characters():
    grammar = regex_grammar(byte_tokenizer(), "[ż]")
    first, second = "ż".encode()
    assert ask(grammar, [80], [80, first], [80, first, second]) == [{first}, {second}, {257}]


# Refused


def test_refused():
    tokenizer = byte_tokenizer()
    with pytest.raises(GrammarError, match=r"^llguidance cannot use this grammar \(.*invalid regex.*\); change it$"):
        regex_grammar(tokenizer, "a(")
    with pytest.raises(GrammarError, match=r"^llguidance cannot use this grammar \(.*objct.*\); change it$"):
        json_grammar(tokenizer, {"type": "objct"})


def test_llguidance_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarError, match=r"^grammars need llguidance; install it with pip install 'midcourse\[gra"):
        json_grammar(byte_tokenizer(), SCHEMA)


def test_json_is_spaced_as_python_writes_it():
    have = ask(
        json_grammar(byte_tokenizer(), {"type": "array", "items": {"const": 1}}), "P", "P[", "P[1", "P[1,", "P[1, "
    )
    assert have == [{91}, {49, 93}, {44, 93}, {32}, {49}]


# Guided and constrained at once


def loves(text: str, by: float = 3.0) -> KnownReward:
    """A reward for every time that the text occurs."""
    return KnownReward(lambda ids: by * bytes(i for i in ids if i < 256).count(text.encode()))


@pytest.mark.parametrize("batch_size", slow_except([3], [1, 3]))
def test_guided_responses_are_json(batch_size):
    lm = tiny_language_model()
    settings = {"max_new_tokens": 40, "batch_size": batch_size, "seed": 1, "top_k": 20}
    prompts = PROMPTS * 2
    for reward, wanted in ((loves("u", 30.0), "ugly"), (loves("b", 30.0), "bad"), (loves("\0"), None)):
        grammar = json_grammar(lm.tokenizer, SCHEMA, lm.eos_token_ids)
        rows = generate(lm, prompts, reward, logits_processor=grammar, **settings)
        assert all(row.finish_reason == "stop" for row in rows)
        moods = {check(row.text)["mood"] for row in rows}
        assert moods == {wanted} if wanted else len(moods) > 1


def test_batches_change_nothing():
    lm = tiny_language_model()
    want = None
    for batch_size in (1, 3, 16):
        grammar = regex_grammar(lm.tokenizer, "([a-f]{2,6}-)*[0-9]")
        rows = generate(
            lm, PROMPTS * 3, KnownReward(), logits_processor=grammar, batch_size=batch_size, max_new_tokens=20, seed=2
        )
        texts = [row.text for row in rows]
        assert (want or texts) == texts
        want = texts
        for row in rows:
            assert row.finish_reason == "length" or re.fullmatch("([a-f]{2,6}-)*[0-9]", row.text)
    assert len(set(want)) > 4


@pytest.mark.parametrize("hook", ["guided", "processor", "plain"])
def test_inside_generate(hook):
    lm = tiny_language_model()
    grammar = json_grammar(lm.tokenizer, SCHEMA)
    inputs = lm.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    guide = Guide(loves("u", 30.0), lm.tokenizer, top_k=20)
    torch.manual_seed(0)
    settings = {
        "guided": {"custom_generate": guided, "guide": guide, "logits_processor": LogitsProcessorList([grammar])},
        "processor": {"logits_processor": LogitsProcessorList([grammar, GuidedLogitsProcessor(guide, lm.model)])},
        "plain": {"logits_processor": LogitsProcessorList([grammar])},
    }[hook]
    have = lm.model.generate(**inputs, do_sample=True, max_new_tokens=40, **settings)
    texts = lm.tokenizer.batch_decode(have[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    moods = [check(text)["mood"] for text in texts]
    assert (moods == ["ugly"] * 4) == (hook != "plain")


# SmolLM2


class Mentions:
    """A reward for responses of a language model that mention a word, as far as it is spelled."""

    def __new__(cls, lm: LanguageModel, word: str, by: float) -> KnownReward:
        def value(ids) -> float:
            text = lm.tokenizer.decode(ids[-12:])
            return by * max((n for n in range(1, len(word) + 1) if f'"{word[:n]}' in text), default=0)

        return KnownReward(value, lm.tokenizer)


@pytest.mark.slow
def test_smollm2_guided_and_constrained():
    lm = LanguageModel.load("smollm2", device="cpu", dtype="float32")
    prompts = ["The review of the film as JSON:\n", "We waited two hours for a cold soup. The review as JSON:\n"]
    settings = {"max_new_tokens": 32, "seed": 3}
    answers = {}
    for weight in (0.0, 2.0):
        grammar = json_grammar(lm.tokenizer, SCHEMA, lm.eos_token_ids)
        reward = Mentions(lm, "ugly", 3.0)
        rows = generate(lm, prompts * 4, reward, reward_weight=weight, logits_processor=grammar, **settings)
        assert all(row.finish_reason == "stop" for row in rows)
        answers[weight] = [check(row.text)["mood"] for row in rows]
    assert answers[2.0] == ["ugly"] * 8
    assert answers[0.0].count("ugly") < 4
    # Without the grammar the model writes something else.
    free = generate(lm, prompts, Mentions(lm, "ugly", 3.0), **settings)
    assert not any(row.text.startswith("{") for row in free)
