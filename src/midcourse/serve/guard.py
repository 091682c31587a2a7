"""Who may ask, and how much: the door of the server, before anything of a request is read."""

import asyncio
import base64
import binascii
import hmac
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

from midcourse.serve.errors import error_body

log = logging.getLogger("midcourse.serve.access")

READ_SECONDS = 30.0  # that a client may take to send a request
OPEN = ("/health",)  # paths that need no key
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Guard:
    """Who may ask.

    Attributes:
        api_key: that every path but /health takes, as a bearer token or as the password of basic authentication, which
            browsers ask for; None lets everyone in.
        hosts: names by which the server may be asked, in lower case; none for any. On a machine's own address it keeps
            out pages that have a name of theirs stand for it.
    """

    api_key: str | None = None
    hosts: Collection[str] = ()

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return (status, sentence) of a request that is not let in; None for one that is."""
        headers = {name.decode("latin-1").lower(): value for name, value in scope["headers"]}
        host = headers.get("host", b"").decode("latin-1").lower().rsplit(":", 1)
        name = host[0] if len(host) == 2 and host[1].isdecimal() else ":".join(host)
        if self.hosts and name not in self.hosts:
            return 421, "the server is asked by another name than its own; use its address"
        if (
            self.api_key is not None
            and scope["path"] not in OPEN
            and not self._has_key(headers.get("authorization", b""))
        ):
            return 401, "the API key is missing or wrong; send it as: Authorization: Bearer KEY"
        kind = headers.get("content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            return 415, "the body has to be JSON; send it as: Content-Type: application/json"
        return None

    def _has_key(self, header: bytes) -> bool:
        scheme, _, value = header.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                value = base64.b64decode(value.strip(), validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(value.strip(), (self.api_key or "").encode())


class Guarded:
    """An ASGI application behind a guard: with a limit on bodies, headers that keep browsers safe, and a log.

    Args:
        most: bytes of a body.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], guard: Guard, most: int):
        self.app, self.guard, self.most = app, guard, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, name, answered = time.monotonic(), secrets.token_hex(8), [0, 0]

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answered[0] = message["status"]
                known = {header.lower() for header, _ in message["headers"]}
                safe = {header.lower().encode(): value.encode() for header, value in HEADERS.items()}
                own = [(header, value) for header, value in safe.items() if header not in known]
                message["headers"] = [*message["headers"], *own, (b"x-request-id", name.encode())]
            answered[1] += len(message.get("body", b""))
            await send(message)

        try:
            await self._answer(scope, receive, sending)
        finally:
            row = {
                "request": name, "method": scope["method"], "path": scope["path"][:200], "status": answered[0],
                "seconds": round(time.monotonic() - begin, 4), "bytes": answered[1],
            }  # fmt: skip
            log.info(json.dumps(row))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if refused := self.guard.refusal(scope):
            await _refuse(send, *refused)
            return
        try:
            body = await asyncio.wait_for(self._body(receive), READ_SECONDS)
        except TimeoutError:
            await _refuse(send, 408, "the request was not sent in time; send it again")
            return
        if body is None:
            await _refuse(send, 413, f"the body is larger than {self.most} bytes; send less")
            return
        left = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> MutableMapping[str, Any]:
            return left.pop() if left else await receive()

        await self.app(scope, again, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """Return the body of a request; None if it is too large."""
        parts, size = [], 0
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.most:
                return None
            if not message.get("more_body"):
                return b"".join(parts)


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps(error_body(message, status)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="midcourse"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
