"""Figures of a running server for Prometheus, named as vLLM names its own."""

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from midcourse.decode.steps import Generation
    from midcourse.serve.order import Order
    from midcourse.serve.worker import Job

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts what a server does; each server has its own."""

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._running = self._gauge("num_requests_running", "Responses that are being written.")
        self._waiting = self._gauge("num_requests_waiting", "Requests whose responses have not begun.")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts that were read.")
        self._written = self._counter("generation_tokens", "Tokens that were written.")
        self._finished = Counter(
            "midcourse_request_success", "Responses that were finished.", ["model_name", "finished_reason"],
            registry=self.registry,
        )  # fmt: skip
        self._errors = Counter(
            "midcourse_request_errors", "Requests that were refused or failed.", ["model_name", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._queue = self._histogram("request_queue_time_seconds", "Until a request began.")
        self._first = self._histogram("time_to_first_token_seconds", "Until a request's first token.")
        self._between = self._histogram("inter_token_latency_seconds", "Between two tokens of a request.")
        self._whole = self._histogram("e2e_request_latency_seconds", "Until a request's last token.")
        self._steps = self._histogram("engine_step_seconds", "A step of the engine.")
        self._last: dict[int, float] = {}

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"midcourse_{name}", about, ["model_name"], registry=self.registry).labels(self._model)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(f"midcourse_{name}", about, ["model_name"], registry=self.registry).labels(self._model)

    def _histogram(self, name: str, about: str) -> Histogram:
        whole = Histogram(f"midcourse_{name}", about, ["model_name"], registry=self.registry, buckets=_SECONDS)
        return whole.labels(self._model)

    def began(self, order: "Order", seconds: float) -> None:
        """Count a request that begins, after so long."""
        self._queue.observe(seconds)

    def stepped(self, seconds: float, running: int, waiting: int) -> None:
        """Count a step of the engine, and what is at work."""
        self._steps.observe(seconds)
        self._running.set(running - waiting)
        self._waiting.set(waiting)

    def wrote(self, job: "Job") -> None:
        """Count a token of a request."""
        now = time.monotonic()
        self._written.inc()
        last = self._last.get(id(job))
        (self._first if last is None else self._between).observe(now - (job.came if last is None else last))
        self._last[id(job)] = now

    def finished(self, generation: "Generation") -> None:
        """Count a response."""
        self._prompt.inc(generation.prompt_tokens)
        self._finished.labels(self._model, generation.finish_reason).inc()

    def ended(self, job: "Job") -> None:
        """Count a request whose last response is finished."""
        self._whole.observe(time.monotonic() - job.came)
        self.forget(job)

    def forget(self, job: "Job") -> None:
        """Keep nothing of a request."""
        self._last.pop(id(job), None)

    def failed(self, status: int) -> None:
        """Count a request that was refused or failed."""
        self._errors.labels(self._model, str(status)).inc()

    @property
    def text(self) -> bytes:
        """Return all figures in Prometheus' text form."""
        return generate_latest(self.registry)
