"""The server's routes: what clients send is checked, handed to the worker's thread, and answered."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException

from midcourse.decode.steps import Generation, Step
from midcourse.errors import MidcourseError
from midcourse.files import as_json
from midcourse.serve import judging
from midcourse.serve.answers import Answer, ChatAnswer, CompletionAnswer, ResponsesAnswer
from midcourse.serve.echo import prompt_columns
from midcourse.serve.errors import RequestError, error_body
from midcourse.serve.guard import Guard, Guarded
from midcourse.serve.order import Order, chat_order, completion_order, messages_of, responses_order
from midcourse.serve.page import page, policy_of
from midcourse.serve.served import Served, short
from midcourse.serve.wire import (
    ChatRequest,
    CompletionRequest,
    DetectRequest,
    PoolingRequest,
    ResponsesRequest,
    ScoreRequest,
    TokenizeRequest,
)
from midcourse.serve.worker import Worker, log

DRAIN_SECONDS = 25.0  # that streams may go on when the server is told to stop
SEND_SECONDS = 30  # that a client may take to read a part of a stream
GONE = 499  # what logs say of a client that went away, as nginx does


class JsonResponse(JSONResponse):
    """JSON as the project writes it: exact numbers, never NaN."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return as_json(content, ensure_ascii=False).encode()


def create_app(served: Served, worker: Worker, guard: Guard | None = None) -> Guarded:
    """Return the server as an ASGI application; the worker is started and stopped with it.

    Args:
        guard: who may ask, and how much; by default everyone.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    app = FastAPI(
        title="midcourse",
        version=version("midcourse"),
        description="An OpenAI-compatible server whose responses rewards guide, token by token.",
        lifespan=lifespan,
        default_response_class=JsonResponse,
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(Exception, partial(_failed, worker))
    for kind in (MidcourseError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, partial(_failed, worker))
    created = int(time.time())

    async def written(request: Request, kind: type[Answer], asked: Any, order: Callable[..., Order]) -> Response:
        name = asked.model or served.name
        events = worker.write(lambda: order(asked, served))
        ordered: Order = await anext(events)
        answer = kind(name, served.lm.tokenizer, ordered)
        if isinstance(answer, CompletionAnswer) and ordered.echo and ordered.top_logprobs is not None:
            prompts = ordered.requests[:: ordered.choices]
            work = [partial(prompt_columns, served.lm, one, ordered.top_logprobs) for one in prompts]
            answer.echoed = [await worker.call(one) for one in work]
        if ordered.stream:
            parts = _streamed(answer, events, worker)
            return EventSourceResponse(
                parts,
                send_timeout=SEND_SECONDS,
                shutdown_event=anyio.Event(),
                shutdown_grace_period=DRAIN_SECONDS,
                sep="\n",
                headers={"X-Accel-Buffering": "no"},
            )
        generations = await _unless_gone(request, _collected(events, len(ordered.requests)))
        return Response(status_code=GONE) if generations is None else JsonResponse(answer.whole(generations))

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Write the next message of a conversation."""
        return await written(request, ChatAnswer, asked, chat_order)

    @app.post("/v1/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Continue texts."""
        return await written(request, CompletionAnswer, asked, completion_order)

    @app.post("/v1/responses")
    async def responses(asked: ResponsesRequest, request: Request) -> Response:
        """Write the next message of a conversation, in the form of OpenAI's responses."""
        return await written(request, ResponsesAnswer, asked, responses_order)

    def model(name: str) -> dict[str, Any]:
        return {
            "id": name, "object": "model", "created": created, "owned_by": "midcourse", "root": served.name,
            "parent": None, "max_model_len": served.lm.context_length,
        }  # fmt: skip

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the model, alone and with each reward."""
        return {"object": "list", "data": [model(name) for name in served.models]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """Say whether there is a model of that name."""
        asked = served.parse(name)
        served.guides(asked, None)
        return model(name)

    @app.post("/pooling")
    async def pooling(asked: PoolingRequest) -> dict[str, Any]:
        """Reward every token of texts."""
        pairs = judging.pooled(served, asked)
        found = [await worker.call(partial(judging.token_rewards, served, asked.model, *pair)) for pair in pairs]
        read = sum(len(one["data"]) for one in found)
        return _listed("pool", asked.model, found, read)

    @app.post("/score")
    async def score(asked: ScoreRequest) -> dict[str, Any]:
        """Reward whole responses."""
        judging.reward_named(served, asked.model)
        texts = judging.texts_of(served, asked.response, "response")
        given = asked.prompt
        prompt = given if isinstance(given, str) else messages_of(given)
        work = [partial(judging.whole_reward, served, asked.model, prompt, text, asked.finished) for text in texts]
        found = [await worker.call(one) for one in work]
        return _listed("score", asked.model, found, sum(one.pop("tokens") for one in found))

    @app.post("/detect")
    async def detect(asked: DetectRequest) -> dict[str, Any]:
        """Say whether a machine wrote texts."""
        texts = judging.texts_of(served, asked.text, "text")
        found = [await worker.call(partial(judging.verdict, served, asked, text)) for text in texts]
        caution = "A verdict is no ground to judge a person by."
        return {"object": "list", "data": found, "caution": caution}

    @app.post("/tokenize")
    async def tokenize(asked: TokenizeRequest) -> dict[str, Any]:
        """Split a prompt into tokens."""
        served.parse(asked.model)
        return await worker.call(partial(judging.tokenized, served, asked))

    @app.get("/health")
    async def health() -> Response:
        """Say whether responses can be written."""
        return Response(status_code=200 if worker.alive else 503)

    @app.get("/version")
    async def about() -> dict[str, str]:
        """Say which midcourse this is."""
        return {"version": version("midcourse")}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return figures for Prometheus."""
        return Response(worker.metrics.text, media_type="text/plain; version=0.0.4")

    shown = page(served)
    policy = {"Content-Security-Policy": policy_of(shown)}

    @app.get("/", include_in_schema=False)
    async def front() -> Response:
        """Show the page."""
        return Response(shown, media_type="text/html", headers=policy)

    return Guarded(app, guard or Guard(), served.bounds.body)


# Answers as they come


async def _collected(events: AsyncIterator[Any], count: int) -> list[Generation]:
    """Return the responses, in the order of their choices."""
    found: dict[int, Generation] = {}
    async for place, event in events:
        if isinstance(event, Generation):
            found[place] = event
    return [found[place] for place in range(count)]


async def _streamed(answer: Answer, events: AsyncIterator[Any], worker: Worker) -> AsyncIterator[dict[str, str]]:
    """Yield the events of a stream."""
    found: dict[int, Generation] = {}
    named = isinstance(answer, ResponsesAnswer)

    def sent(part: dict[str, Any]) -> dict[str, str]:
        return {"data": as_json(part, ensure_ascii=False), **({"event": part["type"]} if named else {})}

    try:
        async with contextlib.aclosing(events):  # type: ignore[type-var]
            for part in answer.begin():
                yield sent(part)
            async for place, event in events:
                if isinstance(event, Step):
                    parts = answer.token(place, event)
                else:
                    found[place] = event
                    parts = answer.ended(place, event)
                for part in parts:
                    yield sent(part)
        for part in answer.last([found[place] for place in range(len(found))]):
            yield sent(part)
    except Exception as error:
        status, message, param = _said(error)
        worker.metrics.failed(status)
        yield {
            "data": as_json({"type": "error", **error_body(message, status, param)}),
            **({"event": "error"} if named else {}),
        }
    if not named:
        yield {"data": "[DONE]"}


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """Return what some work gives; None, and end it, if the client goes away first."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _listed(kind: str, model: str, found: list[dict[str, Any]], read: int) -> dict[str, Any]:
    rows = [{"index": place, **one} for place, one in enumerate(found)]
    usage = {"prompt_tokens": read, "total_tokens": read, "completion_tokens": 0}
    created = int(time.time())
    return {
        "id": f"{kind}-{created}",
        "object": "list",
        "created": created,
        "model": model,
        "data": rows,
        "usage": usage,
    }


# Errors


def _said(error: Exception) -> tuple[int, str, str | None]:
    """Return (status, sentence, field) of an error."""
    if isinstance(error, RequestError):
        return error.status, str(error), error.param
    if isinstance(error, RequestValidationError):
        return 400, *_invalid(error)
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail), None
    if isinstance(error, MidcourseError):
        # Settings have the names of fields here, and of flags elsewhere.
        return 400, str(error).replace("--", ""), None
    log.error("a request failed", exc_info=error)
    return 500, f"the server failed ({type(error).__name__}); its log says more", None


def _invalid(error: RequestValidationError) -> tuple[str, str | None]:
    """Return what is wrong with a request that does not have its form: the sentence, and the field."""
    errors = error.errors()
    deepest = max(errors, key=lambda one: len(one["loc"]))  # of a choice of forms, the one that goes furthest
    place = [str(part) for part in deepest["loc"][1:] if isinstance(part, int) or part.isidentifier()]
    field = ".".join(place) or None
    message = deepest["msg"].removeprefix("Value error, ")
    if deepest["type"] == "json_invalid":
        return f"the body is no JSON ({deepest.get('ctx', {}).get('error', message)})", None
    given = deepest.get("input")
    shown = "" if isinstance(given, dict | list) or deepest["type"] == "missing" else f", not {short(str(given))}"
    return f"{field}: {message}{shown}" if field else message, field


async def _failed(worker: Worker, request: Request, error: Exception) -> Response:
    status, message, param = _said(error)
    worker.metrics.failed(status)
    headers = error.headers if isinstance(error, RequestError) else None
    return JsonResponse(error_body(message, status, param), status_code=status, headers=headers)
