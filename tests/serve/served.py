"""A server with tiny models on a free port, in a thread of the tests' own process."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import torch
import uvicorn

from midcourse.rewards.text import FunctionReward
from midcourse.serve.app import create_app
from midcourse.serve.guard import Guard
from midcourse.serve.metrics import Metrics
from midcourse.serve.served import Bounds, Served
from midcourse.serve.worker import Worker
from midcourse.testing import tiny_language_model, tiny_reward, tiny_trunk_reward


def tiny_served(bounds: Bounds | None = None, **more: Any) -> Served:
    """A tiny model with a scalar reward, a trunk reward and a function; `more` are further rewards."""
    lm = tiny_language_model(dtype=torch.float32)
    rewards = {
        "kind": tiny_reward(dtype=torch.float32, template="mixed"),
        "trunk": tiny_trunk_reward(lm, template="mixed"),
        "vowels": FunctionReward(vowels),
    }
    return Served(lm, "tiny", rewards | more, None, bounds or Bounds(max_new_tokens=64))


def vowels(text: str) -> float:
    """A reward of whole texts."""
    return sum(letter in "aeiou" for letter in text) / (len(text) + 1)


@dataclass
class Running:
    """A server that runs."""

    served: Served
    worker: Worker
    url: str

    def post(self, path: str, body: Any, **more: Any) -> httpx2.Response:
        """Ask it."""
        return httpx2.post(self.url + path, json=body, timeout=100, **more)

    def get(self, path: str, **more: Any) -> httpx2.Response:
        """Ask it."""
        return httpx2.get(self.url + path, timeout=100, **more)


@contextlib.contextmanager
def running(served: Served, guard: Guard | None = None, batch_size: int = 8) -> Iterator[Running]:
    """A server that runs until it is done with."""
    worker = Worker(served, Metrics(served.name), batch_size)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(served, worker, guard), log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        while httpx2.get(f"{url}/health").status_code != 200:
            pass
        yield Running(served, worker, url)
    finally:
        server.should_exit = True
        thread.join()
