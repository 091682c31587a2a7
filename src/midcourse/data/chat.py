"""A language model behind an OpenAI-compatible server: its completions, many at a time, and errors in a sentence."""

import os
import queue
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar, cast

from midcourse.errors import MidcourseError
from midcourse.lm.prompt import Message

Key = TypeVar("Key")
Asked = TypeVar("Asked")
Found = TypeVar("Found")


# What a model may refuse of a request, and what it takes for it; None leaves it out.
OTHER_WORDS: dict[str, str | None] = {"max_tokens": "max_completion_tokens", "temperature": None}
SYSTEM = "system"  # the role of a message that some chat templates refuse


class Answer(NamedTuple):
    """What a server answers.

    Attributes:
        cut: whether the text ends at the limit of its length.
    """

    text: str
    cut: bool


class ChatServer:
    """An OpenAI-compatible /chat/completions. May be used by several threads.

    Connection errors, timeouts and the statuses 408, 409, 429 and 5xx are tried again with back-off (the openai
    client's own: exponential with jitter, or what Retry-After asks for).

    Args:
        base_url: up to and with the version, such as http://localhost:8000/v1.
        model: the server's name of it.
        called: what it is called in messages, such as "judge".
        error: what is raised.
        api_key_env: the environment variable of the API key; local servers need none.
        timeout: seconds for one answer.
        retries: of one request, after the first attempt.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        called: str,
        error: type[MidcourseError],
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        retries: int = 5,
    ):
        if not re.match(r"https?://[^/]", base_url):
            raise error(f"{called} {base_url!r} is no address; give one such as http://localhost:8000/v1")
        try:
            from openai import OpenAI
        except ImportError as missing:
            raise error(f"a {called} needs the openai client; run: pip install 'midcourse[judge]'") from missing
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self._called, self._raised = called, error
        self._refused: set[str] = set()
        self._key = os.environ.get(api_key_env, "").strip()
        self._client = OpenAI(base_url=base_url, api_key=self._key or "none", timeout=timeout, max_retries=retries)

    def complete(self, messages: Sequence[Message], **settings: Any) -> Answer:
        """Return the answer to messages.

        Args:
            settings: the request's other fields, such as temperature and max_tokens.

        Raises:
            MidcourseError: of the class given. The server cannot be reached or speaks another protocol; or it refuses
                the request, then the openai client's APIStatusError is the error's cause.
        """
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        try:
            answer = self._asked({"model": self.model, "messages": list(messages), **settings})
            if not answer.choices and (refused := getattr(answer, "error", None)):
                raise self._error(f"answers with an error ({_brief(refused)}); mend that and go on")
            choice = answer.choices[0]
            content = _content(choice.message.content)
            # Half a surrogate pair is no character, and no file takes it.
            whole = content.encode("utf-8", "replace").decode()
            return Answer(whole, choice.finish_reason == "length")
        except APITimeoutError as error:
            raise self._error("did not answer in time; use a faster model, or fewer questions at a time") from error
        except APIConnectionError as error:
            raise self._error(
                f"cannot be reached ({error.__cause__ or error}); start it, or check the address"
            ) from error
        except APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._error(f"refuses the API key in {self.api_key_env}; set the right one") from None
            raise self._error(f"answers {error.status_code} ({_brief(error)}); mend that and go on") from error
        except (APIError, ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
            raise self._error("does not speak the protocol; give the address up to /v1") from error

    def _asked(self, request: dict[str, Any]) -> Any:
        """Return the server's answer, asked in other words where the model refuses these.

        o1 and its kin take no max_tokens, Gemma's template no system message. What was refused once is not sent again.
        """
        from openai import BadRequestError, UnprocessableEntityError

        for name in self._refused & {*request, SYSTEM}:
            request = _in_other_words(name, request)
        create: Any = self._client.chat.completions.create
        try:
            return create(**request)
        except (BadRequestError, UnprocessableEntityError) as error:
            refused = [name for name in OTHER_WORDS if name in request and name in str(error)]
            if SYSTEM in str(error).lower() and request["messages"][0]["role"] == SYSTEM:
                refused.append(SYSTEM)
            if not refused:
                raise
            self._refused |= {refused[0]}
            return self._asked(request)

    def _error(self, problem: str) -> MidcourseError:
        message = f"{self._called} {self.model} at {self.base_url} {problem}"
        return self._raised(message.replace(self._key, "***") if self._key else message)


def _in_other_words(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return a request without a field, or with the one that stands for it; what the system says the user says."""
    if name == SYSTEM:
        first, *others = request["messages"]
        if first["role"] != SYSTEM or not others:
            return request
        told = {**others[0], "content": f"{first['content']}\n\n{others[0]['content']}"}
        return {**request, "messages": [told, *others[1:]]}
    others = {key: value for key, value in request.items() if key != name}
    other = OTHER_WORDS[name]
    return others if other is None else {**others, other: request[name]}


def _content(content: Any) -> str:
    """Return the text of an answer, which some servers send in parts; TypeError if it is none."""
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else vars(part) for part in content]
        content = "".join(part["text"] for part in parts if part.get("type", "text") in ("text", "output_text"))
    if content is not None and not isinstance(content, str):
        raise TypeError(f"the content is of type {type(content).__name__}")
    return content or ""


def _brief(error: Any) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]} ..."


def answered(
    ask: Callable[[Asked], Found], items: Iterable[tuple[Key, Asked]], concurrency: int
) -> Iterator[tuple[Key, Found]]:
    """Yield the key of each item, and what `ask` returns for the item, as soon as it is there: in any order.

    So many are asked about at a time; items are taken as they are needed. What `ask` raises is raised here, and ends
    it. Whoever stops earlier, by Ctrl-C too, does not wait for a server that hangs: its threads end with the program.
    """
    todo: queue.SimpleQueue[tuple[Key, Asked] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Key, Found | None, BaseException | None]] = queue.SimpleQueue()
    ended = Event()

    def work() -> None:
        while (item := todo.get()) is not None and not ended.is_set():
            key, asked = item
            try:
                done.put((key, ask(asked), None))
            except BaseException as error:
                ended.set()  # before anything more is asked
                done.put((key, None, error))

    source, under_way = iter(items), 0
    for _ in range(concurrency):
        Thread(target=work, daemon=True).start()
    try:
        while True:
            for item in islice(source, 2 * concurrency - under_way):
                todo.put(item)
                under_way += 1
            if not under_way:
                return
            try:
                key, found, error = done.get(timeout=1)  # a signal that comes just before it waits would not be heard
            except queue.Empty:
                continue
            under_way -= 1
            if error is not None:
                raise error
            yield key, cast(Found, found)
    finally:
        ended.set()
        for _ in range(concurrency):
            todo.put(None)
