"""Chat templates as people bring them: parts of content, thoughts, clocks, mistakes."""

import pytest
import torch

from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import PromptError, end_of_turn, prompt_ids, render, turn_of
from midcourse.testing import byte_tokenizer, tiny_language_model

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = TURNS.replace(
    "{{ m.content }}", "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
)


def with_template(template: str):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_content_is_given_as_parts_to_a_template_that_reads_parts():
    tokenizer = with_template(PARTS)
    want = "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n"
    assert (
        render(tokenizer, "Name a river.", "chat").text
        == want
        == render(with_template(TURNS), "Name a river.", "chat").text
    )
    parts = [{"type": "text", "text": "Name a river."}]
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True)
        == want
    )


@pytest.mark.parametrize("template", ["{{ 'hello' }}", "{% for m in messages %}{{ m.role }}{% endfor %}"])
def test_a_template_that_leaves_the_text_out_is_refused(template):
    with pytest.raises(PromptError, match="leaves out what a message says"):
        prompt_ids(with_template(template), "Name a river.", "chat")


def test_a_turn_ends_alike_whatever_begins_the_response():
    """DeepSeek-R1's and Qwen3's templates begin a thought, which no finished message begins with."""
    plain, thinking = (
        with_template(TURNS),
        with_template(TURNS.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")),
    )
    for tokenizer in (plain, thinking):
        tokenizer.eos_token = "<|pad|>"
    end = plain.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn(plain, "chat") == end_of_turn(thinking, "chat") == end
    assert turn_of(thinking, "x", "chat").lead == ""
    model = tiny_language_model().model
    assert end in LanguageModel(model, thinking).eos_token_ids


@pytest.mark.parametrize("clock", ["'Today: ' + strftime_now('%Y-%m-%d')", "strftime_now('%B').upper()"])
def test_a_clock_within_an_expression(clock, capsys):
    tokenizer = with_template("{{ " + clock + " }}" + TURNS)
    end_of_turn(tokenizer, "chat")
    assert "writes today's date into prompts" in capsys.readouterr().err
    assert render(tokenizer, "x", "chat").text.endswith("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("mistake", ["{{ 1 + messages[0].content }}", "{{ 1 // 0 }}", "{{ range(300000000) }}"])
def test_a_template_that_fails_is_a_sentence(mistake):
    with pytest.raises(PromptError, match="the chat template of this model's tokenizer refuses messages"):
        prompt_ids(with_template(mistake + TURNS), "x", "chat")


def test_a_template_that_is_none_is_called_damaged():
    with pytest.raises(PromptError, match=r"is damaged \(.*, line 1\); restore it or use --template raw"):
        prompt_ids(with_template("{{ messages }" + TURNS), "x", "chat")


def test_what_a_vocabulary_is_padded_with_has_no_probability():
    from midcourse.rewards.vocabulary import VocabularyReward

    lm = tiny_language_model(dtype=torch.float64)
    tokenizer = byte_tokenizer()
    want = VocabularyReward(lm.model, tokenizer).score(["ab"], ["cde"])[0].rewards
    head, more = lm.model.get_output_embeddings(), 8
    lm.model.resize_token_embeddings(len(tokenizer) + more, mean_resizing=False)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight[-more:] = 50 * head.weight[:more]
    assert VocabularyReward(lm.model, tokenizer).score(["ab"], ["cde"])[0].rewards == pytest.approx(want)
