"""midcourse serve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from midcourse.cli.console import UsageError
from midcourse.cli.groups import JOINED, ChatModel
from midcourse.terminal import tell

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What is served."""

    reward: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A reward to guide with, as midcourse guide takes it; clients call a folder by its last part. By default the
    shipped rewards, if the model is smollm2."""
    detector: str | None = None
    """The detector behind /detect: shipped, or a folder that midcourse detect calibrate wrote. By default the shipped
    one, if the model is smollm2."""
    name: str | None = None
    """What clients call the model; by default what --lm names, without folders."""


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where the server listens, and to whom."""

    host: str = "127.0.0.1"
    """Address to listen at. Any other than this machine's own takes an --api-key."""
    port: int = 8000
    """Port to listen at; 0 for a free one."""
    api_key: str | None = None
    """What clients have to send as their API key. Better set it as MIDCOURSE_SERVE_API_KEY: other users of this machine
    see flags."""


@dataclass(frozen=True, kw_only=True)
class Most:
    """How much requests may take."""

    batch_size: int = 16
    """Responses written side by side; others wait for their turn."""
    max_new_tokens: int = 1024
    """Longest response that a client may ask for, in tokens."""
    max_choices: int = 16
    """Responses that a request may ask for."""
    max_texts: int = 64
    """Texts that a request for rewards or verdicts may hold."""
    max_queue: int = 128
    """Requests that are answered or wait; further ones get 429."""
    max_body: int = 2**20
    """Bytes of a request."""
    timeout: float = 600.0
    """Seconds that a request may take."""


@dataclass(kw_only=True)
class Serve:
    """Serve a guided language model to OpenAI's clients, and a page.

    Every flag can be given by an environment variable: MIDCOURSE_SERVE_PORT=9000 is --port 9000; several values of one
    flag are separated by spaces.
    """

    offer: Offer = field(default_factory=Offer)
    door: Door = field(default_factory=Door)
    most: Most = field(default_factory=Most)
    model: Annotated[ChatModel, JOINED] = field(default_factory=ChatModel)

    ENVIRONMENT = "MIDCOURSE_SERVE_"

    def run(self) -> int:
        self._check()
        try:
            from midcourse.serve.run import serve
        except ImportError as missing:
            raise UsageError(f"serving needs {missing.name}; run: pip install 'midcourse[serve]'") from missing
        from midcourse.rewards.info import shipped
        from midcourse.serve.served import Bounds, Served

        most, machine = self.most, self.model.machine
        bounds = Bounds(
            most.max_new_tokens, most.max_choices, most.max_texts, most.max_queue, most.max_body, most.timeout
        )
        ours = self.model.lm == "smollm2"
        lm = self.model.load()
        served = Served.load(
            lm,
            self.offer.reward or (list(shipped()) if ours else ()),
            name=self.offer.name,
            detector=self.offer.detector or ("shipped" if ours else None),
            bounds=bounds,
            device=machine.device,
            dtype=machine.dtype,
        )
        key = self.door.api_key or None
        serve(served, host=self.door.host, port=self.door.port, api_key=key, batch_size=most.batch_size, tell=tell)
        return 0

    def _check(self) -> None:
        door = self.door
        if door.host not in LOOPBACK and not door.api_key:
            raise UsageError(
                f"--host {door.host} lets other machines in; set MIDCOURSE_SERVE_API_KEY, or leave --host out"
            )
        if not 0 <= door.port < 2**16:
            raise UsageError(f"--port {door.port} is no port; use one from 1 to 65535, or 0 for a free one")


def from_environment(
    flags: Mapping[str, bool], arguments: Sequence[str], prefix: str, environment: Mapping[str, str]
) -> list[str]:
    """Return flags that environment variables give, but for those among the arguments.

    Args:
        flags: every flag, as "--port", and whether it takes a value.

    Raises:
        UsageError: a variable of a flag without a value that is neither true nor false.
    """
    found: list[str] = []
    for flag, takes_value in flags.items():
        name = prefix + flag.removeprefix("--").replace("-", "_").upper()
        text = environment.get(name)
        if text is None or any(argument == flag or argument.startswith(f"{flag}=") for argument in arguments):
            continue
        if takes_value:
            found += [word for value in text.split() or [""] for word in (flag, value)]
        elif text.lower() in ("1", "true", "yes"):
            found.append(flag)
        elif text.lower() not in ("", "0", "false", "no"):
            raise UsageError(f"{name} is {text!r}; set it to true or false")
    return found
