"""Prompts and responses to token ids: the one place where templates are applied.

A reward must see at decoding exactly what it saw in training, so training, scoring and decoding all come here.
Prompt and response are tokenised apart, as they are when a model writes the response.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from midcourse.errors import MidcourseError

Message: TypeAlias = dict[str, str]
Prompt: TypeAlias = str | Sequence[Message]
Template = Literal["chat", "raw", "mixed"]
TEMPLATES: tuple[str, ...] = get_args(Template)

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


class PromptError(MidcourseError):
    """A prompt that the template or the model cannot take."""


class Prefix(NamedTuple):
    """Where a row starts: the prompt as it was given, and the LM's token ids of it and of a response begun already.

    `template` is how the prompt was rendered, for a reward that renders it again; None is that reward's own way.
    """

    prompt: Prompt
    prompt_ids: Sequence[int]
    response_ids: Sequence[int] = ()
    template: Template | None = None

    @property
    def token_ids(self) -> list[int]:
        return [*self.prompt_ids, *self.response_ids]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: Template) -> list[int]:
    """Return the token ids of a prompt, ready for the response to follow; never empty.

    "raw" takes a text and continues it; an empty text starts from BOS. "chat" takes a text (one user message), a
    transcript ("\\n\\nHuman: ...\\n\\nAssistant: ..."), or a list of messages, and applies the tokenizer's own chat
    template, its default system prompt included. "mixed" is "raw" for a text and "chat" for a list of messages.

    Raises:
        PromptError: messages with "raw", an empty prompt with "chat", what is neither a text nor messages, a tokenizer
            without what is needed, or a chat template that refuses the messages.
    """
    _check(prompt)
    if template == "mixed":
        template = "raw" if isinstance(prompt, str) else "chat"
    if template == "raw":
        if not isinstance(prompt, str):
            raise PromptError("the raw template takes a text, not a list of messages; use --template chat or mixed")
        return tokenizer(prompt)["input_ids"] or [start_of_text(tokenizer)]
    if template != "chat":
        raise PromptError(f"template {template!r} is unknown; use one of: {', '.join(TEMPLATES)}")
    messages = as_messages(prompt)
    if not any(message["content"].strip() for message in messages):
        raise PromptError("the prompt is empty, and the chat template needs a message; write one or use --template raw")
    if not tokenizer.chat_template:
        raise PromptError("this model's tokenizer has no chat template; use --template raw")
    return _rendered(tokenizer, messages, add_generation_prompt=True)


def conversation_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str) -> list[int]:
    """Return the token ids of a whole conversation: the prompt's messages, then the response as the assistant's turn.

    It ends as the tokenizer's chat template ends a turn, which may be with more than EOS (ChatML's has a newline).

    Raises:
        PromptError: a chat template that refuses the messages, or what is neither a text nor messages.
    """
    _check(prompt)
    check_whole_characters("the response", response)
    return _rendered(tokenizer, [*as_messages(prompt), {"role": "assistant", "content": response}])


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message], **settings: Any) -> list[int]:
    try:
        return tokenizer.apply_chat_template(messages, return_dict=True, **settings)["input_ids"]
    except (TemplateError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise PromptError(
            f"the chat template of this model's tokenizer refuses messages of the roles {roles} ({error}); "
            "leave out or join those that it does not know, or use --template raw"
        ) from error


def response_ids(tokenizer: PreTrainedTokenizerBase, response: str, *, finished: bool) -> list[int]:
    """Return the token ids of a response; a finished one ends with EOS, one that was cut at a length limit does not."""
    check_whole_characters("the response", response)
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id] if finished else ids


def check_whole_characters(what: str, text: str) -> None:
    """Raise PromptError if a text holds half a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"character {error.start + 1} of {what} is half a surrogate pair, such as '\\ud83d'; write it whole"
        ) from None


def _check(prompt: Any) -> None:
    """Raise PromptError if a prompt is neither a text nor a list of messages of a role and a content each."""
    if isinstance(prompt, str):
        return check_whole_characters("the prompt", prompt)
    if not isinstance(prompt, Sequence):
        raise PromptError(f"the prompt is an object of type {type(prompt).__name__}; give a text or a list of messages")
    for number, message in enumerate(prompt, 1):
        for part in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(part), str):
                raise PromptError(
                    f"message {number} of the prompt has no {part} that is a text; "
                    'write {"role": "user", "content": "..."}'
                )
            check_whole_characters(f"message {number} of the prompt", message[part])
    return None


def as_messages(prompt: Prompt) -> list[Message]:
    """Return a prompt as chat messages: a list as it is, a transcript turn by turn, any other text as the user's."""
    if not isinstance(prompt, str):
        return list(prompt)
    if not _TURN.match(prompt):
        return [{"role": "user", "content": prompt}]
    # "", "Human", " text", "Assistant", " text", ...: the last turn is the assistant's, and empty.
    _, *parts = _TURN.split(prompt)
    roles = [{"Human": "user", "Assistant": "assistant"}[part] for part in parts[::2]]
    messages = [{"role": role, "content": text.strip()} for role, text in zip(roles, parts[1::2], strict=True)]
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} else messages


def split_transcript(transcript: str) -> tuple[str, str] | None:
    """Return (prompt up to the last "\\n\\nAssistant:", response) of a transcript; None if it begins with no turn."""
    head, mark, response = transcript.rpartition("\n\nAssistant:")
    return (head + mark, response) if mark and _TURN.match(transcript) else None


def start_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that generation starts from if there is no prompt."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise PromptError("the prompt is empty and this tokenizer has no BOS token to start from; write a prompt")
