"""Prompts to token ids: raw texts, chat messages, Human/Assistant transcripts; what a template cannot take."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midcourse.lm.prompt import (
    PromptError,
    as_messages,
    conversation_ids,
    prompt_ids,
    render,
    response_ids,
    spaces_before,
    split_transcript,
    start_of_text,
)
from midcourse.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()
BOS, EOS = 256, 257
TURNS = "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: Who are you?\n\nAssistant:"
MESSAGES = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who are you?"},
]


def without(**tokens: None):
    """The byte tokenizer without some of its settings."""
    tokenizer = byte_tokenizer()
    for name, value in tokens.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_raw_text_is_its_tokens():
    assert prompt_ids(TOKENIZER, "Ah é", "raw") == list("Ah é".encode())


def test_empty_raw_prompt_starts_from_bos():
    assert prompt_ids(TOKENIZER, "", "raw") == [BOS]
    assert prompt_ids(without(bos_token=None), "", "raw") == [EOS]


def test_empty_raw_prompt_without_any_start():
    with pytest.raises(PromptError, match=r"no BOS token to start from; write a prompt"):
        start_of_text(without(bos_token=None, eos_token=None))


def test_raw_refuses_messages():
    with pytest.raises(PromptError, match=r"takes a text, not a list of messages; use --template chat"):
        prompt_ids(TOKENIZER, MESSAGES, "raw")


@pytest.mark.parametrize("prompt", ["", "  \n", [], [{"role": "user", "content": ""}], "\n\nHuman: \n\nAssistant:"])
def test_chat_refuses_empty_prompts(prompt):
    with pytest.raises(PromptError, match=r"the prompt is empty, .* write one or use --template raw"):
        prompt_ids(TOKENIZER, prompt, "chat")


def test_chat_needs_a_chat_template():
    with pytest.raises(PromptError, match=r"no chat template; use --template raw"):
        prompt_ids(without(chat_template=None), "Hi", "chat")


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([{"role": "user"}], "message 1 of the prompt has no content that is a text; write {"),
        ([*MESSAGES, {"content": "Hi"}], "message 4 of the prompt has no role that is a text; write {"),
        ([{"role": "user", "content": None}], "message 1 of the prompt has no content that is a text"),
        (["Hi"], "message 1 of the prompt has no role that is a text"),
        ({"role": "user", "content": "Hi"}, "the prompt is an object of type dict; give a text or a list of messages"),
        (None, "the prompt is an object of type NoneType; give a text or a list of messages"),
        ([{"role": "user", "content": "a\ud83d"}], "character 2 of message 1 of the prompt is half a surrogate pair"),
        ("ab\ud83d", "character 3 of the prompt is half a surrogate pair, such as '\\ud83d'; write it whole"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt, words):
    for template in ("chat", "mixed", "raw"):
        with pytest.raises(PromptError, match=re.escape(words)) as caught:
            prompt_ids(TOKENIZER, prompt, template)
        assert "\n" not in str(caught.value)
    with pytest.raises(PromptError, match=re.escape(words)):
        conversation_ids(TOKENIZER, prompt, "Hello.")


def test_half_a_surrogate_pair_in_a_response_is_refused():
    for read in (
        lambda: response_ids(TOKENIZER, "ab\ud83d", finished=True),
        lambda: conversation_ids(TOKENIZER, "Hi", "ab\ud83d"),
    ):
        with pytest.raises(PromptError, match="character 3 of the response is half a surrogate pair"):
            read()


@pytest.mark.parametrize("prompt", [TURNS, MESSAGES, tuple(MESSAGES)], ids=["transcript", "list", "tuple"])
def test_chat_ends_with_the_generation_prompt(prompt):
    text = (
        "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = prompt_ids(TOKENIZER, prompt, "chat")
    assert ids == TOKENIZER(text)["input_ids"]
    assert ids.count(BOS) == 4 and ids.count(EOS) == 3


def test_chat_takes_a_text_as_the_users_message():
    assert prompt_ids(TOKENIZER, " Hi ", "chat") == prompt_ids(TOKENIZER, [{"role": "user", "content": " Hi "}], "chat")


def test_mixed_continues_texts_and_renders_messages():
    assert prompt_ids(TOKENIZER, " Hi ", "mixed") == prompt_ids(TOKENIZER, " Hi ", "raw")
    assert prompt_ids(TOKENIZER, MESSAGES, "mixed") == prompt_ids(TOKENIZER, MESSAGES, "chat")


def test_transcript_to_messages():
    assert as_messages(TURNS) == MESSAGES


def test_transcript_that_was_stripped():
    assert as_messages(TURNS.strip()) == MESSAGES


def test_transcript_without_an_open_turn():
    assert as_messages("\n\nHuman: Hi there\n\nAssistant: Hello.") == MESSAGES[:2]
    assert as_messages("\n\nHuman: Hi there") == MESSAGES[:1]


def test_transcript_with_newlines_and_names_inside_a_turn():
    inside = "a\n\nb\nHuman: no turn: one newline\n\nassistant: nor this"
    assert as_messages(f"\n\nHuman: {inside}\n\nAssistant:") == [{"role": "user", "content": inside}]


@pytest.mark.parametrize("text", ["Hi\n\nHuman: x", "human: Hi", " \n\nHuman: Hi", "\n\nHumanity: Hi"])
def test_text_that_does_not_begin_with_a_turn_is_a_message(text):
    assert as_messages(text) == [{"role": "user", "content": text}]


def test_split_transcript():
    response = " Hello.\n\nand more"
    assert split_transcript(TURNS + response) == (TURNS, response)
    assert split_transcript("\n\nHuman: Hi") is None
    assert split_transcript("Hi\n\nAssistant: Hello") is None
    assert split_transcript("Hi") is None


said = st.text(st.characters(codec="utf-8")).map(str.strip).filter(lambda text: text and "\n\n" not in text)


@given(st.lists(said, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2))
def test_any_transcript_comes_back(turns):
    names = ["Human" if i % 2 == 0 else "Assistant" for i in range(len(turns))]
    transcript = "".join(f"\n\n{name}: {text}" for name, text in zip(names, turns, strict=True))
    roles = [{"Human": "user", "Assistant": "assistant"}[name] for name in names]
    want = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    assert as_messages(transcript + "\n\nAssistant:") == want


def test_finished_response_ends_with_eos():
    assert response_ids(TOKENIZER, " ok", finished=True) == [*b" ok", EOS]
    assert response_ids(TOKENIZER, " ok", finished=False) == [*b" ok"]
    assert response_ids(TOKENIZER, "", finished=True) == [EOS]


def test_response_gets_no_second_bos():
    adds_bos = byte_tokenizer()
    from tokenizers.processors import TemplateProcessing

    adds_bos.backend_tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", BOS)])
    assert prompt_ids(adds_bos, "a", "raw") == [BOS, 97]
    assert response_ids(adds_bos, "b", finished=True) == [98, EOS]
    # A chat template writes its own BOS.
    assert prompt_ids(adds_bos, "a", "chat") == prompt_ids(TOKENIZER, "a", "chat")


def test_several_chat_templates_and_none_by_default():
    """Which one a model was trained with is not known."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"rag": "{{ messages }}", "tool_use": "{{ messages }}"}
    with pytest.raises(PromptError, match="has the chat templates 'rag', 'tool_use' and none called 'default'"):
        render(tokenizer, "a", "chat")
    assert render(tokenizer, "a", "raw").text == "a"


def test_a_template_that_does_not_begin_the_assistants_turn():
    """What stands before an assistant's message in a conversation stands before one that is to be written."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    prompt = render(tokenizer, [{"role": "user", "content": "Hi"}], "chat")
    assert prompt.text == "<user>Hi</><assistant>"
    assert bytes(conversation_ids(tokenizer, "Hi", "Yo")).decode() == prompt.text + "Yo</>"


def test_a_space_that_a_tokenizer_adds_is_noticed_however_it_is_shown():
    tokenizer = byte_tokenizer()
    assert not spaces_before(tokenizer)
    from tokenizers.pre_tokenizers import ByteLevel

    spaced = byte_tokenizer()
    spaced.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    assert spaces_before(spaced) == str(spaced.tokenize("a")[0]).startswith("\u0120")
