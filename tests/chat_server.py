"""A small OpenAI-compatible server on this machine, for tests of what talks to one."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-a-secret-that-nobody-should-see"


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server. `reply` makes (status, body) of a request's JSON; a dict body is sent as JSON."""

    daemon_threads = True

    def __init__(self, reply: Callable[[dict[str, Any]], tuple[int, Any]]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.requests, self.lock = reply, [], threading.Lock()
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.append(self.headers["Authorization"])
        status, body = self.server.reply(request)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("retry-after-ms", "1")  # the client waits as long as it is told to
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


def completion(text: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def texts(request: dict[str, Any]) -> tuple[str, str]:
    question = json.loads(request["messages"][1]["content"])
    return question["response A"], question["response B"]


def longer(request: dict[str, Any]) -> tuple[int, Any]:
    a, b = map(len, texts(request))
    return 200, completion(f"Thinking about it.\n\nVERDICT: {'TIE' if a == b else 'A' if a > b else 'B'}")
