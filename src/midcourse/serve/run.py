"""Run a server until it is told to stop."""

import ipaddress
import logging
import socket
import sys
from collections.abc import Callable

import uvicorn

from midcourse.serve.app import DRAIN_SECONDS, create_app
from midcourse.serve.guard import Guard
from midcourse.serve.metrics import Metrics
from midcourse.serve.served import Served, ServeError
from midcourse.serve.worker import Worker


def serve(
    served: Served,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    batch_size: int = 16,
    tell: Callable[[str], None] = print,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is being answered, within a limit of time.

    Args:
        tell: says, once the server listens, where.

    Raises:
        ServeError: the address cannot be listened at.
    """
    _log_rows()
    worker = Worker(served, Metrics(served.name), batch_size)
    app = create_app(served, worker, Guard(api_key, _names(host) if api_key is None else ()))
    listening = _listen(host, port)
    at = listening.getsockname()
    shown = f"[{at[0]}]" if ":" in at[0] else at[0]
    tell(f"midcourse: {served.name} with {', '.join(served.rewards) or 'no rewards'}")
    tell(f"page: http://{shown}:{at[1]}/    for OpenAI's clients: http://{shown}:{at[1]}/v1")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(DRAIN_SECONDS) + 5,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=2**16,
        limit_concurrency=None,
        lifespan="on",
    )
    uvicorn.Server(config).run(sockets=[listening])


def _names(host: str) -> tuple[str, ...]:
    """Return the names by which a server without a key may be asked."""
    return ("localhost", "127.0.0.1", "[::1]", host.lower())


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host and ipaddress.ip_address(host).version == 6 else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, ValueError) as error:
        raise ServeError(f"{host}:{port} cannot be listened at ({error}); name another --host or --port") from error


def _log_rows() -> None:
    """Have a row of JSON for every request on standard error; a log that cannot be written stops nobody."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("midcourse.serve")  # that of requests is within it
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
