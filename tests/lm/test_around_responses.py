"""What stands around a response: spaces that a tokenizer makes up, and the end that its template writes."""

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from midcourse.decode.engine import generate
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import end_of_turn, render, response_ids, turn_of
from midcourse.lm.text import ResponseText, TextStream, token_texts
from midcourse.rewards.text import TextReward
from midcourse.rewards.vocabulary import VocabularyReward
from midcourse.testing import assert_laws, byte_tokenizer, randomise, tiny_language_model
from tests.sentencepiece import llama_tokenizer

GEMMA = (
    "{% for m in messages %}<t>{{ m.role }}\n{{ m.content }}</t>\n{% endfor %}"
    "{% if add_generation_prompt %}<t>assistant\n{% endif %}"
)


def pieces(tokenizer, ids) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


# Spaces


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    ("prompt", "response", "want"),
    [
        ("Hello", " and the crowd", ["▁and", "▁the", "▁crowd"]),
        ("Hello ", "and", ["and"]),
        ("Hello", "world", ["world"]),
        ("Hello\n", "world", ["world"]),
        ("", "Hello and", ["▁Hello", "▁and"]),
    ],
)
def test_a_raw_response_has_the_tokens_that_it_has_behind_its_prompt(legacy, prompt, response, want):
    tokenizer = llama_tokenizer(legacy)
    rendered = render(tokenizer, prompt, "raw")
    ids = response_ids(tokenizer, response, finished=True, after=rendered)
    assert pieces(tokenizer, ids) == [*want, "</s>"]
    if prompt:
        assert tokenizer.decode([*rendered.token_ids, *ids[:-1]]) == prompt + response


@pytest.mark.parametrize(("prompt", "text"), [("Hello", " and the crowd"), ("Hello ", "and the"), ("", "Hello and")])
def test_a_text_is_what_follows_the_prompt(prompt, text):
    tokenizer = llama_tokenizer()
    rendered = render(tokenizer, prompt, "raw")
    ids = response_ids(tokenizer, text, finished=True, after=rendered)
    stream = TextStream(tokenizer, (), rendered.token_ids)
    assert "".join(stream.push(token) for token in ids) + stream.finish() == text
    whole = ResponseText(tokenizer, {2}, ids, rendered.token_ids)
    assert whole.now.text == text and whole.now.finished
    first = tokenizer.decode([*rendered.token_ids, ids[0]], skip_special_tokens=True)
    assert whole.points[1].text == first[len(prompt) :] != ""
    whole.rewind(len(ids))
    assert whole.now.text == ""
    assert [whole.push(token) for token in ids] and whole.now.text == text


def test_the_space_of_a_chat_template_is_not_of_the_text():
    """Llama 2 has a space between [/INST] and an answer, which belongs to the answer's first token."""
    tokenizer = llama_tokenizer()
    rendered = render(tokenizer, "Hello", "chat")
    assert rendered.turn.lead == " "
    ids = response_ids(tokenizer, "Sure and", finished=True, after=rendered)
    assert pieces(tokenizer, ids) == ["▁Sure", "▁and", "</s>"]
    stream = TextStream(tokenizer, (), rendered.token_ids, " ")
    assert [stream.push(token) for token in ids] == ["Sure", " and", ""]
    assert ResponseText(tokenizer, {2}, ids, rendered.token_ids, " ").now.text == "Sure and"
    assert token_texts(tokenizer, ids) == (" Sure", " and", "</s>")


def sentencepiece_lm() -> LanguageModel:
    tokenizer = llama_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=1, eos_token_id=2, max_position_embeddings=512,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    randomise(model, 5)
    model.generation_config = GenerationConfig(eos_token_id=2)
    return LanguageModel(model, tokenizer)


@pytest.mark.parametrize("template", ["raw", "chat"])
def test_rewards_keep_the_laws_with_spaces_made_up(template):
    """What is decoded and then scored as a text has the same tokens, and so the same rewards."""
    lm = sentencepiece_lm()
    reward = VocabularyReward(sentencepiece_lm().model, lm.tokenizer, template=template)
    assert_laws(reward, lm, ["Hello", "the crowd"], [" and the", "Sure"])


@pytest.mark.parametrize("template", ["raw", "chat"])
def test_what_is_written_is_what_a_reward_of_texts_reads(template):
    lm, read = sentencepiece_lm(), []
    reward = TextReward(lambda texts: [read.append(one) or 0.0 for one in texts], template=template)

    def letters(ids, logprobs):
        return logprobs.index_fill(-1, torch.arange(3, 259), -torch.inf)  # bytes alone are no characters

    (one,) = generate(lm, ["Hello"], reward, max_new_tokens=6, seed=1, template=template, logits_processor=letters)
    assert one.text in {text.response for text in read}
    assert "".join(step.text for step in one.steps) == one.text


# Ends


def two_ends():
    """A tokenizer whose chat template ends a turn with another token than its EOS, as Gemma's does."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<t>", "</t>"]})
    tokenizer.chat_template = GEMMA
    return tokenizer, tokenizer.convert_tokens_to_ids("</t>")


def test_a_finished_response_ends_as_its_template_ends_a_turn():
    tokenizer, end = two_ends()
    assert end_of_turn(tokenizer, "chat") == end_of_turn(tokenizer, "mixed") == end != tokenizer.eos_token_id
    assert end_of_turn(tokenizer, "raw") == tokenizer.eos_token_id
    assert turn_of(tokenizer, "a", "chat").lead == ""
    assert response_ids(tokenizer, "a", finished=True, after=render(tokenizer, "b", "chat"))[-1] == end
    assert (
        response_ids(tokenizer, "a", finished=True, after=render(tokenizer, "b", "raw"))[-1] == tokenizer.eos_token_id
    )
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert end_of_turn(tokenizer, "chat") == tokenizer.eos_token_id


def test_an_end_has_the_probability_of_any_of_the_ends():
    """GenARM's reward: with the first end's alone, a text whose turn ends is worth 14 nats too little."""
    tokenizer, end = two_ends()
    lm = tiny_language_model("llama", more_eos=())
    lm.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    reward = VocabularyReward(lm.model, tokenizer, template="chat")
    assert set(reward.eos_token_ids) == {end, tokenizer.eos_token_id} and reward.eos_token_ids[0] == end
    before, ids = reward.encode("a", "b")
    with torch.inference_mode():
        logprobs = lm.model(torch.tensor([[*before, *ids]])).logits[0, -2].log_softmax(-1)
    want = logprobs[reward.eos_token_ids].logsumexp(0)
    assert reward.score_ids([(before, ids)])[0][-1] == pytest.approx(want.item(), abs=1e-5)
    (score,) = reward.score(["a"], ["b"])
    assert score.rewards[-1] == pytest.approx(want.item(), abs=1e-5)


def test_a_model_stops_where_its_template_ends_a_turn():
    tokenizer, end = two_ends()
    lm = tiny_language_model("llama")
    lm.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    lm = LanguageModel(lm.model, tokenizer)
    assert end in lm.eos_token_ids

    def turn_over(ids, logprobs):
        return logprobs.masked_fill(torch.arange(logprobs.shape[-1]) != end, -torch.inf)

    (one,) = generate(lm, ["a"], method="plain", template="chat", logits_processor=turn_over, max_new_tokens=4)
    assert (one.text, one.finish_reason, len(one.steps)) == ("", "stop", 1)


def test_a_raw_prompt_ends_with_no_eos():
    """Some tokenizers put EOS behind every text, and a prompt is to be gone on with."""
    tokenizer = llama_tokenizer()
    tokenizer.add_bos_token = tokenizer.add_eos_token = True
    tokenizer.update_post_processor()
    assert pieces(tokenizer, tokenizer("Hello")["input_ids"]) == ["<s>", "▁Hello", "</s>"]
    rendered = render(tokenizer, "Hello", "raw")
    assert pieces(tokenizer, rendered.token_ids) == ["<s>", "▁Hello"]
    ids = response_ids(tokenizer, " and", finished=True, after=rendered)
    assert pieces(tokenizer, ids) == ["▁and", "</s>"]
    assert pieces(tokenizer, render(tokenizer, "", "raw").token_ids) == ["<s>"]


def test_a_tokenizer_without_eos_ends_no_text():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = tokenizer.chat_template = None
    assert response_ids(tokenizer, "a", finished=False) == [97]
    with pytest.raises(ValueError, match="no EOS token, which ends a finished response"):
        response_ids(tokenizer, "a", finished=True)
