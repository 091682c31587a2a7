"""Requests side by side, clients that go away, what fails: and that nothing of it is left."""

import json
import math
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import torch

from midcourse.rewards.text import FunctionReward
from midcourse.serve.served import Bounds
from tests.serve.served import Running, running, tiny_served

LONG = {"model": "tiny", "prompt": "Go on", "max_tokens": 200, "stream": True, "seed": 1}


def wait_until(condition) -> None:
    """Wait for something that is sure to come."""
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come")


def figure(server: Running, name: str) -> float:
    """A figure of /metrics."""
    found = re.search(rf"^midcourse_{name}(?:{{[^}}]*}})? (\S+)$", server.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def without(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice as it is compared: rounding differs with what shares a batch."""
    return json.loads(json.dumps(choice), parse_float=lambda text: round(float(text), 4))


def test_an_answer_does_not_depend_on_what_shares_the_batch(server):
    bodies = [
        {
            "prompt": f"Prompt {n}", "max_tokens": 5 + n % 7, "seed": n, "logprobs": 2,
            **({"guidance": {"rewards": {("kind", "trunk", "vowels")[n % 3]: float(n % 4)}}} if n % 4 else {}),
        }
        for n in range(24)
    ]  # fmt: skip
    alone = [server.post("/v1/completions", body).json()["choices"][0] for body in bodies]
    with ThreadPoolExecutor(12) as pool:
        together = [
            answer.json()["choices"][0] for answer in pool.map(lambda b: server.post("/v1/completions", b), bodies)
        ]
    assert [one["text"] for one in together] == [one["text"] for one in alone]
    for one, other in zip(together, alone, strict=True):
        assert one["logprobs"]["token_logprobs"] == pytest.approx(other["logprobs"]["token_logprobs"], abs=1e-4)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_leaves_no_row(stream):
    with running(tiny_served(Bounds(max_new_tokens=240))) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps({**LONG, "stream": stream, "n": 3, "stop": None}).encode()
        for _ in range(5):
            with socket.create_connection((host, int(port)), timeout=60) as wire:
                head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                head += f"Content-Length: {len(body)}\r\n\r\n"
                wire.sendall(head.encode() + body)
                wait_until(lambda: server.worker.active)
                if stream:
                    wire.recv(100)
        wait_until(lambda: not server.worker.active)
        wait_until(lambda: not server.worker._engine and not server.worker._jobs)
        assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200


def test_no_more_are_taken_than_wait():
    with running(tiny_served(Bounds(max_new_tokens=240, queue=2)), batch_size=1) as server:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: server.post("/v1/completions", {**LONG, "stream": False}), range(8)))
        refused = [one for one in found if one.status_code == 429]
        assert {one.status_code for one in found} == {200, 429} and len(refused) <= 6
        assert refused[0].headers["retry-after"] == "1" and refused[0].json()["error"]["type"] == "RateLimitError"
        assert server.worker.active == 0


def test_a_request_may_take_so_long():
    with running(tiny_served(Bounds(max_new_tokens=240, seconds=0.05))) as server:
        found = server.post("/v1/completions", {**LONG, "stream": False, "n": 8})
        assert found.status_code == 408 and "took longer than 0.05 s" in found.json()["error"]["message"]
        with httpx2.stream("POST", f"{server.url}/v1/completions", json={**LONG, "n": 8}, timeout=60) as streamed:
            parts = [line for line in streamed.iter_lines() if line.startswith("data: {")]
        assert json.loads(parts[-1].removeprefix("data: "))["error"]["code"] == 408
        wait_until(lambda: not server.worker._jobs)


def broken(text: str) -> float:
    if len(text) > 3:
        raise RuntimeError("the reward is broken")
    return 0.0


def test_a_reward_that_fails_fails_its_request_alone():
    nan = FunctionReward(lambda text: math.nan)
    with running(tiny_served(broken=FunctionReward(broken), nan=nan)) as server:
        for name, words in (("broken", "the reward is broken"), ("nan", "nan")):
            ask = {**LONG, "max_tokens": 16, "guidance": {"rewards": {name: 1.0}}}
            found = server.post("/v1/completions", {**ask, "stream": False})
            assert found.status_code == 500 and words in found.json()["error"]["message"].lower()
            with httpx2.stream("POST", f"{server.url}/v1/completions", json=ask, timeout=60) as streamed:
                lines = [line.removeprefix("data: ") for line in streamed.iter_lines() if line.startswith("data: ")]
            assert lines[-1] == "[DONE]" and json.loads(lines[-2])["error"]["code"] == 500
        assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200
        assert figure(server, "request_errors_total") == 4


def test_an_engine_that_breaks_is_replaced(monkeypatch):
    with running(tiny_served()) as server:
        engine = server.worker._engine

        def torn():
            raise MemoryError("no room")

        monkeypatch.setattr(engine, "step", torn)
        found = server.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
        assert found.status_code == 500 and "the engine failed (MemoryError)" in found.json()["error"]["message"]
        assert server.worker._engine is not engine
        assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200


def test_what_is_being_written_is_finished_before_the_server_ends():
    with running(tiny_served(Bounds(max_new_tokens=240)), batch_size=2) as server:
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(server.post, "/v1/completions", {**LONG, "stream": False}) for _ in range(4)]
            wait_until(lambda: server.worker.active == 4)
            server.worker.stop()
            assert all(one.result().status_code == 200 for one in answers)
        assert server.get("/health").status_code == 503
        assert server.post("/v1/completions", {"prompt": "a"}).status_code == 503


def test_figures_are_counted(server):
    before = figure(server, "generation_tokens_total")
    server.post("/v1/completions", {"prompt": "abc", "max_tokens": 5, "n": 2, "seed": 0})
    assert before < figure(server, "generation_tokens_total") <= before + 10
    for name in ("time_to_first_token_seconds_count", "e2e_request_latency_seconds_count", "prompt_tokens_total"):
        assert figure(server, name) > 0
    assert figure(server, "num_requests_running") >= 0


# Rewards and verdicts


def test_rewards_of_tokens_and_of_texts(server):
    reward = server.served.rewards["kind"]
    (score,) = reward.score(["Hi"], [" you"])
    found = server.post("/pooling", {"model": "kind", "prompt": "Hi", "input": [" you", ""]}).json()
    assert [one[0] for one in found["data"][0]["data"]] == pytest.approx(score.without_end().rewards, abs=1e-5)
    assert "".join(found["data"][0]["tokens"]) == " you" and found["data"][1]["data"] == []
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "you"}]
    (chat,) = reward.score([talk[:1]], ["you"])
    found = server.post("/pooling", {"model": "kind", "messages": talk}).json()
    assert [one[0] for one in found["data"][0]["data"]] == pytest.approx(chat.without_end().rewards, abs=1e-5)
    found = server.post("/score", {"model": "kind", "prompt": "Hi", "response": [" you", " me"]}).json()
    assert found["data"][0]["score"] == pytest.approx(score.whole, abs=1e-5)
    assert found["data"][0]["probability"] is None  # it has no calibration
    for path, body in (("/pooling", {"input": "a"}), ("/score", {"response": "a"})):
        missing = server.post(path, {"model": "nothing", **body})
        assert missing.status_code == 404 and "use one of: kind, trunk, vowels" in missing.json()["error"]["message"]
    many = server.post("/score", {"model": "kind", "response": ["a"] * 65})
    assert many.status_code == 400 and "65 texts are more than the 64" in many.json()["error"]["message"]


def test_tokens_of_prompts(server):
    found = server.post("/tokenize", {"prompt": "Hi"}).json()
    assert found["tokens"] == [72, 105] and found["count"] == 2 and found["max_model_len"] == 256
    assert server.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}).json()["count"] > 2


def test_without_a_detector_there_are_no_verdicts(server):
    found = server.post("/detect", {"text": "Who wrote this?"})
    assert found.status_code == 404 and "has no detector" in found.json()["error"]["message"]


def test_the_model_is_not_changed(server):
    """Whatever was asked before, its weights are what they were."""
    want = tiny_served().lm.model.state_dict()
    assert all(torch.equal(want[name], tensor) for name, tensor in server.served.lm.model.state_dict().items())
