"""The thread that models compute on: requests of clients share one engine, and other work is done between steps."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from midcourse.decode.engine import Engine
from midcourse.decode.steps import Event, Failure, Step
from midcourse.errors import MidcourseError
from midcourse.serve.errors import RequestError
from midcourse.serve.metrics import Metrics
from midcourse.serve.order import Order
from midcourse.serve.served import Served

log = logging.getLogger("midcourse.serve")


@dataclass(eq=False)
class Job:
    """An order on its way.

    Attributes:
        prepare: gives the order; it is called on the worker's thread, which alone touches tokenizer and models.
        told: what becomes of it, for the client's coroutine: the order, then (choice, Step or Generation), an exception
            in the place of any, and None behind the last choice.
        numbers: the engine's numbers of the requests that are not finished, and their choices.
    """

    prepare: Callable[[], Order]
    loop: asyncio.AbstractEventLoop
    deadline: float
    told: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    came: float = field(default_factory=time.monotonic)
    order: Order | None = None
    numbers: dict[int, int] = field(default_factory=dict)
    ended: bool = False

    def tell(self, what: Any) -> None:
        """Hand something to the client's coroutine, which may be gone with its loop."""
        try:
            self.loop.call_soon_threadsafe(self.told.put_nowait, what)
        except RuntimeError:
            self.ended = True


class Worker:
    """Runs an engine on a thread of its own.

    Args:
        batch_size: rows of the language model that are written side by side.
    """

    def __init__(self, served: Served, metrics: Metrics, batch_size: int = 16):
        self.served, self.metrics, self.batch_size = served, metrics, batch_size
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._engine = Engine(served.lm, batch_size)
        self._jobs: dict[int, Job] = {}  # by the engine's numbers
        self._active: set[Job] = set()  # those that were taken and are not ended; the event loop's alone
        self._called = 0
        self._thread = Thread(target=self._run, name="midcourse-engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End when the work at hand is done, and wait for that."""
        self._inbox.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Return whether it works."""
        return self._thread.is_alive()

    @property
    def active(self) -> int:
        """Return how many requests are being answered or wait."""
        return len(self._active) + self._called

    # For the event loop

    async def write(self, prepare: Callable[[], Order]) -> AsyncIterator[Any]:
        """Yield the order that `prepare` gives, then (choice, Step or Generation) as they come.

        Whoever stops taking them, as a client that goes away, ends the work on them.

        Raises:
            RequestError: too much is asked for at once, or it took too long.
            Exception: what `prepare` raises, or what went wrong with a choice.
        """
        self._check_room()
        bounds = self.served.bounds
        job = Job(prepare, asyncio.get_running_loop(), time.monotonic() + bounds.seconds)
        self._active.add(job)
        try:
            self._inbox.put(lambda: self._begin(job))
            while (event := await self._next(job)) is not None:
                yield event
        finally:
            self._active.discard(job)
            job.ended = True
            self._inbox.put(lambda: self._leave(job))

    async def call(self, work: Callable[[], Any]) -> Any:
        """Have something done between two steps, and return what it gives."""
        self._check_room()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(name: str, value: Any) -> None:
            if not future.done():
                getattr(future, name)(value)

        def do() -> None:
            if future.cancelled():
                return
            try:
                name, value = "set_result", work()
            except Exception as error:
                name, value = "set_exception", error
            loop.call_soon_threadsafe(settle, name, value)

        self._called += 1
        try:
            self._calls.put(do)
            self._inbox.put(_nothing)  # it may be waiting there
            return await asyncio.wait_for(future, self.served.bounds.seconds)
        except TimeoutError:
            raise _too_long(self.served.bounds.seconds) from None
        finally:
            self._called -= 1

    def _check_room(self) -> None:
        if not self.alive:
            raise RequestError("the engine has stopped; start the server again", status=503)
        if self.active >= self.served.bounds.queue:
            raise RequestError(
                f"{self.active} requests are being answered or wait, and no more are taken; try again in a moment",
                status=429,
                headers={"Retry-After": "1"},
            )

    async def _next(self, job: Job) -> Any:
        try:
            event = await asyncio.wait_for(job.told.get(), max(job.deadline - time.monotonic(), 0.001))
        except TimeoutError:
            raise _too_long(self.served.bounds.seconds) from None
        if isinstance(event, Exception):
            raise event
        return event

    # On the thread

    def _run(self) -> None:
        stopping = False
        while self._engine or not (stopping and self._inbox.empty() and self._calls.empty()):
            try:
                while True:
                    idle = not self._engine and self._calls.empty() and not stopping
                    task = self._inbox.get(block=idle)
                    stopping = stopping or task is None
                    if task is not None:
                        task()
            except Empty:
                pass
            if not self._calls.empty():  # one between two steps: whoever reads a stream waits for no more
                self._calls.get()()
            if self._engine:
                self._step()

    def _begin(self, job: Job) -> None:
        """Give a job's requests to the engine."""
        if job.ended:
            return
        try:
            order = job.order = job.prepare()
            for choice, request in enumerate(order.requests):
                number = self._engine.add(request)
                job.numbers[number] = choice
                self._jobs[number] = job
        except Exception as error:
            if not isinstance(error, MidcourseError):
                log.exception("a request could not begin")
            self._leave(job)
            job.tell(error)
            return
        self.metrics.began(order, time.monotonic() - job.came)
        job.tell(order)

    def _step(self) -> None:
        """Let the engine do a step; should it break, fail what it was at and go on with a new one."""
        begin = time.perf_counter()
        try:
            events = self._engine.step()
        except Exception as error:
            log.exception("the engine failed; what it was writing is lost")
            for job in set(self._jobs.values()):
                job.tell(RequestError(f"the engine failed ({type(error).__name__}); try again", status=500))
            self._jobs.clear()
            self._engine = Engine(self.served.lm, self.batch_size)
            return
        self.metrics.stepped(time.perf_counter() - begin, len(self._jobs), self._engine.waiting)
        for event in events:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        number, what = event
        if (job := self._jobs.get(number)) is None:
            return
        if isinstance(what, Step):
            self.metrics.wrote(job)
            job.tell((job.numbers[number], what))
            return
        choice = job.numbers.pop(number)
        del self._jobs[number]
        if isinstance(what, Failure):
            self._leave(job)
            job.tell(_failure(what.error))
        else:
            self.metrics.finished(what)
            job.tell((choice, what))
            if not job.numbers:
                self.metrics.ended(job)
                job.tell(None)

    def _leave(self, job: Job) -> None:
        """Take what is left of a job out of the engine."""
        for number in job.numbers:
            self._engine.cancel(number)
            self._jobs.pop(number, None)
        job.numbers.clear()
        self.metrics.forget(job)


def _failure(error: Exception) -> RequestError:
    """Return what a client is told of a response that could not be finished, which is not its doing."""
    if isinstance(error, MidcourseError):
        return RequestError(str(error), status=500)
    log.error("a response failed", exc_info=error)
    return RequestError(f"the response failed ({type(error).__name__}); the server's log says more", status=500)


def _nothing() -> None:
    pass


def _too_long(seconds: float) -> RequestError:
    return RequestError(f"the request took longer than {seconds:g} s; ask for less, or try again", status=408)
