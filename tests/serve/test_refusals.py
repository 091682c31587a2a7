"""What is refused, with which status and words; and that nothing a client sends makes the server fail."""

import base64
import json
import socket
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midcourse.serve.guard import Guard
from midcourse.serve.served import Bounds
from tests.serve.served import Running, running, tiny_served

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]


def guided(**guidance: Any) -> dict[str, Any]:
    return {"guidance": {"rewards": {"kind": 1.0}, **guidance}}


WRONG: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "no messages": ({"messages": []}, 400, "messages", "at least 1 item"),
    "a text as messages": ({"messages": "Hi"}, 400, "messages", "valid list"),
    "a message without content": ({"messages": [{"role": "user"}]}, 400, "messages.0.content", "required"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400, "messages.0.content.0", "a part of type 'image_url' cannot be read; send parts of text",
    ),
    "a number as a text": ({"temperature": "hot"}, 400, "temperature", "valid number, not 'hot'"),
    "a negative temperature": ({"temperature": -1}, 400, "temperature", "greater than or equal to 0, not '-1'"),
    "no share": ({"top_p": 0}, 400, "top_p", "greater than 0"),
    "a boolean as a number": ({"max_tokens": True}, 400, "max_tokens", "valid integer"),
    "too many tokens": ({"max_tokens": 65}, 400, "max_tokens", "65 tokens are more than the 64"),
    "more than fits": (
        {"messages": [{"role": "user", "content": "x" * 300}]}, 400, "messages", "exceed the model's context of 256",
    ),
    "too many choices": ({"n": 17}, 400, "n", "17 responses are more than the 16"),
    "two lengths": ({"max_completion_tokens": 3}, 400, None, "max_tokens and max_completion_tokens differ"),
    "an empty stop": ({"stop": ""}, 400, "stop", "at least 1 character"),
    "candidates of no tokens": ({"top_logprobs": 2}, 400, None, "top_logprobs goes with logprobs"),
    "too many candidates": ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "less than or equal to 20"),
    "usage of no stream": ({"stream_options": {}}, 400, None, "stream_options goes with stream"),
    "tools": ({"tools": [{"type": "function"}]}, 400, None, "tools is not supported; leave it out"),
    "a penalty": ({"frequency_penalty": 0.5}, 400, None, "frequency_penalty is not supported"),
    "another model": ({"model": "gpt-4"}, 404, "model", "the model 'gpt-4' does not exist"),
    "a path": ({"model": "../../etc/passwd"}, 404, "model", "does not exist"),
    "a weight that is none": ({"model": "tiny+kind=much"}, 404, "model", "'much' in the model"),
    "an unknown reward": (guided(rewards={"os:system": 1.0}), 400, "guidance.rewards", "'os:system' does not exist"),
    "an unknown field": (guided(reward_wieght=2), 400, "guidance.reward_wieght", "Extra inputs"),
    "an infinite weight": (guided(rewards={"kind": 1e400}), 400, "guidance.rewards.kind", "finite number"),
    "an unknown method": (guided(method="magic"), 400, None, "method 'magic' is unknown"),
    "a setting of another method": (guided(samples=3), 400, None, "method pargs has no samples"),
    "a method without rewards": ({"guidance": {"method": "pargs"}}, 400, None, "needs a reward"),
    "a budget of nothing": (guided(kl_per_token=0), 400, "guidance.kl_per_token", "greater than 0"),
    "rewards twice": ({"model": "tiny+kind", **guided()}, 400, "guidance.rewards", "both name rewards"),
    "a method twice": ({"model": "tiny@pargs", **guided(method="cd")}, 400, "guidance.method", "both name a method"),
    "no schema": (
        {"response_format": {"type": "json_schema"}}, 400, "response_format", "json_schema goes with type json_schema",
    ),
    "an impossible schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}, 400, None, "",
    ),
    "half a character": (
        {"messages": [{"role": "user", "content": "\ud83d"}]}, 400, "messages.0.content", "as a unicode string",
    ),
    "a seed beyond all": ({"seed": 2**63}, 400, "seed", "less than"),
    "a role of no template": ({"messages": [{"role": "x" * 65, "content": ""}]}, 400, "messages.0.role", "at most 64"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "status", "param", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(server: Running, change, status, param, words):
    body = json.dumps(CHAT | change).encode()
    found = httpx2.post(
        f"{server.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=100
    )
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["code"] == status
    assert error["param"] == param and words in error["message"]
    assert "\n" not in error["message"] and "--" not in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("completions", {"prompt": [72, -1]}, "the token id -1 is none of the model's"),
        ("completions", {"prompt": []}, ""),
        ("completions", {"prompt": "a", "max_tokens": 0}, "asks for no token"),
        ("completions", {"prompt": "a", "echo": True, "stream": True}, "echo and stream do not go together"),
        ("completions", {"prompt": "a", "suffix": "b"}, "suffix is not supported"),
        ("completions", {"prompt": "a", "best_of": 3}, "best_of is not supported"),
        ("responses", {"input": "a", "store": True}, "store is not supported"),
        ("responses", {"input": "a", "conversation": "c"}, "conversation is not supported"),
        ("responses", {}, "input"),
    ],
)
def test_so_it_is_in_the_other_forms(server, path, body, words):
    found = server.post(f"/v1/{path}", {"model": "tiny", **body})
    assert found.status_code == 400 and words in found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "the body is no JSON"),
        (b"\xff", ""),
        (b"[" * 100_000, ""),
        (b'{"messages": ' + b"9" * 6000 + b"}", ""),
        (json.dumps({**CHAT, "metadata": DEEP}).encode(), None),
        (b"null", ""),
    ],
)
def test_a_body_that_is_no_request(server, body, words):
    found = httpx2.post(
        f"{server.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=100
    )
    assert found.status_code == (200 if words is None else 400), found.text
    if words:
        assert words in found.json()["error"]["message"]


def test_paths_and_methods_that_are_not_there(server):
    assert server.get("/v1/nothing").json()["error"]["type"] == "NotFoundError"
    assert server.get("/v1/completions").status_code == 405
    form = httpx2.post(f"{server.url}/v1/completions", data={"prompt": "a"})
    assert form.status_code == 415 and "Content-Type: application/json" in form.json()["error"]["message"]


def test_a_body_that_is_too_large():
    with running(tiny_served(Bounds(body=1000))) as server:
        found = server.post("/v1/completions", {"prompt": "x" * 2000})
        assert found.status_code == 413 and "larger than 1000 bytes" in found.json()["error"]["message"]
        # One that does not say how large it is, piece by piece.
        whole = httpx2.post(
            f"{server.url}/v1/completions",
            content=iter([b" " * 600] * 3),
            headers={"Content-Type": "application/json"},
        )
        assert whole.status_code == 413


def test_the_key_is_asked_for_everywhere_but_at_health():
    with running(tiny_served(), Guard("sesame")) as server:
        for path in ("/", "/v1/models", "/metrics", "/version", "/openapi.json"):
            assert server.get(path).status_code == 401
        refused = server.post("/v1/completions", {"prompt": "a"}, headers={"Authorization": "Bearer sesam"})
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic")
        assert refused.json()["error"]["type"] == "AuthenticationError"
        assert server.get("/health").status_code == 200
        basic = base64.b64encode(b"anyone:sesame").decode()
        for value in ("Bearer sesame", f"Basic {basic}", "bearer sesame"):
            assert server.get("/v1/models", headers={"Authorization": value}).status_code == 200
        for value in ("Basic %%%", "Basic", "Digest sesame", "Bearer"):
            assert server.get("/v1/models", headers={"Authorization": value}).status_code == 401


def test_a_page_of_another_name_cannot_ask_a_server_without_a_key():
    """A name that somebody lets point to this machine is no way in (DNS rebinding)."""
    with running(tiny_served(), Guard(hosts=("127.0.0.1", "localhost"))) as server:
        assert server.get("/v1/models").status_code == 200
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
            assert server.get("/v1/models", headers={"Host": host}).status_code == 421
        assert "access-control-allow-origin" not in server.get("/v1/models", headers={"Origin": "http://a"}).headers


def test_answers_keep_browsers_safe(server):
    for path in ("/", "/v1/models", "/nothing"):
        headers = server.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert len(headers["x-request-id"]) == 16


# Anything


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "model", "messages", "prompt", "input", "n", "seed", "stop", "stream", "stream_options", "temperature", "top_p",
    "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "response_format", "guidance", "echo", "text",
    "response", "fpr", "instructions", "task", "finished",
]  # fmt: skip
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/pooling", "/score", "/detect", "/tokenize"]
GOOD = {
    "model": "tiny",
    "messages": CHAT["messages"],
    "prompt": "a",
    "input": "a",
    "max_tokens": 1,
    "max_output_tokens": 1,
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), change=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_no_json_makes_the_server_fail(server, path, change):
    body = json.dumps(GOOD | change).encode("utf-8", "surrogatepass")
    with httpx2.stream(
        "POST", server.url + path, content=body, headers={"Content-Type": "application/json"}, timeout=100
    ) as found:
        assert found.status_code < 500, (path, body, found.read())
        found.read()


def test_a_request_that_is_no_http(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as wire:
        wire.sendall(b"\x16\x03\x01nonsense\r\n\r\n")
        assert b"400" in wire.recv(1000)
    assert server.get("/health").status_code == 200
