"""Prompts and responses to token ids: the one place where templates are applied.

A reward must see at decoding exactly what it saw in training, so training, scoring and decoding all come here.

A response has the tokens that a model would write it with: none of them reaches back into the prompt, its first word
has the space that stands before it there, and it ends as the template ends a turn.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from midcourse.errors import MidcourseError
from midcourse.terminal import tell

Message: TypeAlias = dict[str, Any]  # role and content, texts; templates may know more fields, such as tool_calls
Prompt: TypeAlias = str | Sequence[Message]
Template = Literal["chat", "raw", "mixed"]
Arguments: TypeAlias = Mapping[str, str | bool | int | float]  # of a chat template: values by name
TEMPLATES: tuple[str, ...] = get_args(Template)

TODAY = "today"  # the argument that is the date of templates that ask a clock
_CLOCK = "strftime_now"  # what they ask it by
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


class Turn(NamedTuple):
    """The white space before a response and the token behind it, as its template writes them.

    Attributes:
        lead: white space between the prompt as it is rendered and the response's text (Llama 2: a space).
        end: the token behind a finished response; None if the tokenizer has none for that.
    """

    lead: str
    end: int | None


class Rendered(NamedTuple):
    """A prompt as a model reads it, and what its template has around the response.

    Attributes:
        text: what was tokenised, with the template's special tokens.
        token_ids: its tokens; never empty.
        raw: whether the tokenizer put tokens of its own around it, such as BOS.
    """

    text: str
    token_ids: list[int]
    raw: bool
    turn: Turn


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: Template) -> list[int]:
    """Return the token ids of a prompt, ready for the response to follow; see `render`."""
    return render(tokenizer, prompt, template).token_ids


def render(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: Template) -> Rendered:
    """Return a prompt ready for the response to follow.

    "raw" takes a text and continues it; an empty text starts from BOS. "chat" takes a text (one user message), a
    transcript ("\\n\\nHuman: ...\\n\\nAssistant: ..."), or a list of messages, and applies the tokenizer's own chat
    template, its default system prompt included. "mixed" is "raw" for a text and "chat" for a list of messages.

    Raises:
        PromptError: messages with "raw", an empty prompt with "chat", what is neither a text nor messages, a tokenizer
            without what is needed, or a chat template that refuses the messages.
    """
    _check(prompt)
    turn = turn_of(tokenizer, prompt, template)
    if _is_raw(prompt, template):
        if not isinstance(prompt, str):
            raise PromptError("the raw template takes a text, not a list of messages; use --template chat or mixed")
        return Rendered(prompt, _raw_ids(tokenizer, prompt) or [start_of_text(tokenizer)], True, turn)
    if template not in TEMPLATES:
        raise PromptError(f"template {template!r} is unknown; use one of: {', '.join(TEMPLATES)}")
    messages = as_messages(prompt)
    if not any(message["content"].strip() for message in messages):
        raise PromptError("the prompt is empty, and the chat template needs a message; write one or use --template raw")
    if not chat_template(tokenizer):
        raise PromptError("this model's tokenizer has no chat template; use --template raw")
    text = _applied(tokenizer, messages, add_generation_prompt=True) + _header(tokenizer, _key(tokenizer))
    return Rendered(text, tokenizer(text, add_special_tokens=False)["input_ids"], False, turn)


def conversation_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str) -> list[int]:
    """Return the token ids of a whole conversation: the prompt's messages, then the response as the assistant's turn.

    It ends as the tokenizer's chat template ends a turn, which may be with more than EOS (ChatML's has a newline).

    Raises:
        PromptError: a chat template that refuses the messages, or what is neither a text nor messages.
    """
    _check(prompt)
    check_whole_characters("the response", response)
    text = _applied(tokenizer, [*as_messages(prompt), {"role": "assistant", "content": response}])
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _is_raw(prompt: Prompt, template: str) -> bool:
    return template == "raw" or (template == "mixed" and isinstance(prompt, str))


def _raw_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return a text's tokens with those that the tokenizer puts before it, not with an EOS behind it."""
    ids = tokenizer(text)["input_ids"]
    if not ids or ids[-1] != tokenizer.eos_token_id:
        return ids
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    while len(ids) > len(own) and ids and ids[-1] == tokenizer.eos_token_id and ids[-len(own) :] != own:
        ids = ids[:-1]
    return ids


def _applied(tokenizer: PreTrainedTokenizerBase, messages: list[Message], **settings: Any) -> str:
    if _takes_parts(tokenizer, _key(tokenizer)):
        messages = [{**message, "content": _as_parts(message["content"])} for message in messages]
    return _rendered(tokenizer, messages, **settings)


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


@lru_cache(maxsize=64)
def _takes_parts(tokenizer: PreTrainedTokenizerBase, key: str) -> bool:
    """Return whether the chat template reads a message's content as a list of parts, and would leave a text out.

    Args:
        key: what of the tokenizer it depends on, since that may be changed.

    Raises:
        PromptError: it leaves the text out either way.
    """
    word = "question"

    def shown(content: Any) -> bool:
        return word in _rendered(tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True)

    try:
        if shown(word):
            return False
    except PromptError:  # whoever asks for more than this learns why
        return False
    try:
        if shown(_as_parts(word)):
            return True
    except PromptError:
        pass
    raise PromptError(
        "the chat template of this model's tokenizer leaves out what a message says; restore it, or use --template raw"
    )


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message], **settings: Any) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    except TemplateSyntaxError as error:
        raise PromptError(
            f"the chat template of this model's tokenizer is damaged ({error.message}, line {error.lineno}); restore it"
            " or use --template raw"
        ) from error
    except Exception as error:  # a template may do whatever an expression can
        roles = ", ".join(message["role"] for message in messages)
        raise PromptError(
            f"the chat template of this model's tokenizer refuses messages of the roles {roles} ({error}); "
            "leave out or join those that it does not know, or use --template raw"
        ) from error


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's chat template, of several the one called default; an empty text if it has none.

    Raises:
        PromptError: several, and none is called default.
    """
    found = tokenizer.chat_template
    if not isinstance(found, Mapping) or not found:
        return found or ""
    if "default" not in found:
        raise PromptError(
            f"this model's tokenizer has the chat templates {', '.join(map(repr, found))} and none called 'default'; "
            "call one so in its folder, or use --template raw"
        )
    return found["default"] or ""


def set_arguments(tokenizer: PreTrainedTokenizerBase, arguments: Arguments) -> None:
    """Give a tokenizer's chat template these arguments, whoever applies it and wherever it is saved.

    They become the first words of the template, `{% set enable_thinking = false %}`.

    Args:
        arguments: texts, numbers, true and false, by their names in the template. `today`, as "2026-01-31", is the day
            for a template that asks a clock.

    Raises:
        PromptError: no chat template, or one that knows no such argument.

    Examples:
        >>> set_arguments(tokenizer, {"enable_thinking": False})
    """
    if not arguments:
        return
    template = chat_template(tokenizer)
    if not template:
        names = ", ".join(arguments)
        raise PromptError(f"this model's tokenizer has no chat template to give the template-argument {names} to")
    given = "".join(_assignment(template, name, value) for name, value in arguments.items())
    if not template.startswith(given):
        tokenizer.chat_template = given + template


def _assignment(template: str, name: str, value: str | bool | int | float) -> str:
    """Return the Jinja that gives a template's variable its value; PromptError if it has no such variable."""
    if name == TODAY and _CLOCK in template:
        name, written = _CLOCK, f"{json.dumps(_dates(template, value), ensure_ascii=False)}.get"
    elif not re.search(rf"\b{re.escape(name)}\b", template) or not name.isidentifier():
        raise PromptError(f"the chat template of this model's tokenizer has no argument {name!r}; leave it out")
    else:
        written = json.dumps(value, ensure_ascii=False)
    return "{%- set " + f"{name} = {written}" + " %}"


def _dates(template: str, day: str | bool | int | float) -> dict[str, str]:
    """Return how a template writes a day, by each of its formats."""
    formats = re.findall(rf"\b{_CLOCK}\(\s*(['\"])(.*?)\1\s*\)", template)
    if len(formats) != template.count(f"{_CLOCK}("):
        raise PromptError("this model's chat template asks a clock in a way that no day can be set for")
    try:
        known = date.fromisoformat(str(day))
    except ValueError:
        raise PromptError(f"the template-argument {TODAY} is {day!r}; write a day as 2026-01-31") from None
    return {form: known.strftime(form) for _, form in formats}


@lru_cache(maxsize=64)
def _header(tokenizer: PreTrainedTokenizerBase, key: str) -> str:
    """Return what begins the assistant's turn in a template that does not begin it when asked to; mostly nothing.

    Args:
        key: what of the tokenizer it depends on, since that may be changed.
    """
    user, word = {"role": "user", "content": "question"}, "answer"
    try:
        asked, closed = (_applied(tokenizer, [user], add_generation_prompt=asked) for asked in (True, False))
        whole = _applied(tokenizer, [user, {"role": "assistant", "content": word}])
    except PromptError:
        return ""
    lead, found, _ = whole.removeprefix(closed).partition(word)
    return lead if asked == closed and whole.startswith(closed) and found and not lead.isspace() else ""


def turn_of(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template: Template) -> Turn:
    """Return what a template has around the response to a prompt."""
    end = end_of_turn(tokenizer, template)
    raw = _is_raw(prompt, template) or not chat_template(tokenizer)
    return Turn("" if raw else _chat_turn(tokenizer, _key(tokenizer)).lead, end)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, template: Template | None) -> int | None:
    """Return the token behind a finished response: that of the chat template if one is used, else EOS."""
    if template in ("chat", "mixed") and chat_template(tokenizer):
        return _chat_turn(tokenizer, _key(tokenizer)).end
    return tokenizer.eos_token_id


def _key(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"{tokenizer.eos_token_id} {chat_template(tokenizer)}"


@lru_cache(maxsize=64)
def _chat_turn(tokenizer: PreTrainedTokenizerBase, key: str) -> Turn:
    """Return what the chat template has around an assistant's message; a template that takes none has nothing.

    It says it if the template writes the day on which it is applied.

    Args:
        key: what of the tokenizer it depends on, since that may be changed.
    """
    eos, word = tokenizer.eos_token_id, "answer"
    user = {"role": "user", "content": "question"}
    try:
        before = _applied(tokenizer, [user], add_generation_prompt=True)
        whole = _applied(tokenizer, [user, {"role": "assistant", "content": word}])
    except PromptError:
        return Turn("", eos)
    if _asks_clock(tokenizer, user, before):
        tell(
            "warning: the chat template writes today's date into prompts, so tomorrow they are others; fix the day "
            f"with --template-argument {TODAY}={date.today()}"
        )
    if whole.startswith(before):
        lead, found, tail = whole.removeprefix(before).partition(word)
    else:  # what begins a response is not what stands before one that is there, such as the beginning of a thought
        lead, (_, found, tail) = "", whole.rpartition(word)
    if not found:
        return Turn("", eos)
    added = tokenizer.added_tokens_decoder
    ends = [one for one in tokenizer(tail, add_special_tokens=False)["input_ids"] if one in added or one == eos]
    return Turn(lead if lead.isspace() else "", ends[0] if ends else eos)


def _asks_clock(tokenizer: PreTrainedTokenizerBase, message: Message, rendered: str) -> bool:
    """Return whether the chat template would have rendered a message otherwise had its clock no time."""
    template = chat_template(tokenizer)
    # A clock that gives back the format it is asked for: a text, and never a day.
    stopped = "{%- set " + _CLOCK + " = ''.join %}" + template
    if _CLOCK not in template:
        return False
    return rendered != _applied(tokenizer, [message], add_generation_prompt=True, chat_template=stopped)


_SPACES = ("\N{LOWER ONE EIGHTH BLOCK}", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}")  # how tokens show a space


@lru_cache(maxsize=64)
def spaces_before(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer puts a space before a text that it does not have.

    SentencePiece does so, and byte-level ones with add_prefix_space.

    Its tokens of a response then depend on whether something stands before it, and so does its text of them.
    """
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    return bool(ids) and str(tokenizer.convert_ids_to_tokens(ids)[0]).startswith(_SPACES)


def response_ids(
    tokenizer: PreTrainedTokenizerBase, response: str, *, finished: bool, after: Rendered | None = None
) -> list[int]:
    """Return the token ids of a response; a finished one ends as a turn ends, one cut at a length limit does not.

    They are the tokens behind the prompt's in those of both together, where these begin with the prompt's; else those
    of the response behind a line end, or by itself.

    Args:
        after: the prompt; a line end if it is not known.

    Raises:
        PromptError: half a character, or a finished response of a tokenizer without EOS.
    """
    check_whole_characters("the response", response)
    turn = after.turn if after else Turn("", tokenizer.eos_token_id)
    if finished and turn.end is None:
        raise PromptError("the tokenizer has no EOS token, which ends a finished response; give it one (eos_token)")
    ids = response_tokens(tokenizer, response, after)[0]
    return [*ids, turn.end] if finished else ids  # type: ignore[list-item]


def response_tokens(
    tokenizer: PreTrainedTokenizerBase, response: str, after: Rendered | None = None, *, spans: bool = False
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return a response's token ids without an end, and the characters (begin, end) of each if `spans` are asked for.

    See `response_ids`.
    """

    def tokens(before: str, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        found = tokenizer(before + text, add_special_tokens=special, return_offsets_mapping=spans)
        cut, length = len(before) + len(lead), len(response)
        places = [
            (min(max(begin - cut, 0), length), min(max(end - cut, 0), length))
            for begin, end in (found["offset_mapping"] if spans else ())
        ]
        return found["input_ids"], places

    lead = after.turn.lead if after else ""
    text = lead + response
    begins = after is not None and after.raw and not after.text
    if spaces_before(tokenizer) and not begins:
        known = (after.text, after.raw, after.token_ids) if after else None
        for before, special, ids in filter(None, (known, ("\n", False, None))):
            ids = ids or tokenizer(before, add_special_tokens=special)["input_ids"]
            found, places = tokens(before, special)
            if found[: len(ids)] == ids:
                end = len(found) - (special and len(found) > len(ids) and found[-1] == tokenizer.eos_token_id)
                return found[len(ids) : end], places[len(ids) : end]
    return tokens("")


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
