"""midcourse serve, as a process of its own."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from openai import OpenAI

from midcourse.cli.console import UsageError
from midcourse.cli.serve import from_environment

FLAGS = {"--port": True, "--reward": True, "--trust-remote-code": False}


def test_flags_come_from_the_environment_too():
    environment = {"M_PORT": "9000", "M_REWARD": "civil=2 sentiment", "M_TRUST_REMOTE_CODE": "true", "OTHER": "1"}
    want = ["--port", "9000", "--reward", "civil=2", "--reward", "sentiment", "--trust-remote-code"]
    assert from_environment(FLAGS, [], "M_", environment) == want
    assert from_environment(FLAGS, ["--port=1", "--reward", "a"], "M_", environment) == ["--trust-remote-code"]
    assert from_environment(FLAGS, [], "M_", {"M_TRUST_REMOTE_CODE": "no"}) == []
    with pytest.raises(UsageError, match="M_TRUST_REMOTE_CODE is 'perhaps'; set it to true or false"):
        from_environment(FLAGS, [], "M_", {"M_TRUST_REMOTE_CODE": "perhaps"})


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in; set MIDCOURSE_SERVE_API_KEY"),
        (["--port", "70000"], "--port 70000 is no port"),
        (["--timeout", "0"], "seconds is 0.0; use a number above 0"),
        (["--reward", "a/vader", "--reward", "vader"], ""),
    ],
)
def test_what_cannot_be_served_is_said(midcourse, model_folder, flags, words):
    code, _, err = midcourse("serve", "--lm", model_folder(), *flags)
    assert code == 2 and words in err and "Traceback" not in err


@contextlib.contextmanager
def started(*flags: str, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "midcourse", "serve", *flags]
    variables = {**os.environ, "MIDCOURSE_SERVE_PORT": "0", **environment}
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (found := re.search(r"page: (http\S+?)/ ", line := process.stderr.readline())):
                assert line, "it ended before it listened"
            yield process, found[1]
        finally:
            process.kill()


@pytest.mark.slow
def test_it_serves_until_it_is_told_to_end_and_finishes_what_it_writes(model_folder):
    with started("--lm", model_folder(), "--reward", "vader", MIDCOURSE_SERVE_API_KEY="sesame") as (process, url):
        client = OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0)
        assert [model.id for model in client.models.list()] == ["model", "model+vader"]
        ask = {"model": "model+vader=3", "prompt": "secret words", "max_tokens": 60, "seed": 1}
        want = client.completions.create(**ask).choices[0].text
        with ThreadPoolExecutor(4) as pool:
            streams = [client.completions.create(**ask, stream=True) for _ in range(4)]
            firsts = [next(stream) for stream in streams]
            process.send_signal(signal.SIGTERM)
            texts = list(pool.map(lambda stream: "".join(chunk.choices[0].text for chunk in stream), streams))
        assert [first.choices[0].text + text for first, text in zip(firsts, texts, strict=True)] == [want] * 4
        said = process.stderr.read()
        assert process.wait() in (0, -signal.SIGTERM), said
        rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        assert {row["path"] for row in rows} == {"/v1/models", "/v1/completions"}
        assert all(row["status"] == 200 for row in rows) and "secret" not in said and "sesame" not in said


@pytest.mark.slow
def test_it_starts_again_after_a_kill(model_folder):
    folder = model_folder()
    for _ in range(2):
        with started("--lm", folder) as (process, url):
            assert httpx2.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200
            process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_the_embedded_model_is_served_with_the_shipped_rewards():
    """In one command, offline."""
    with started() as (_, url):
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert {"smollm2", "smollm2+civil", "smollm2+sentiment"} <= {model.id for model in client.models.list()}
        ask = {"messages": [{"role": "user", "content": "How was the concert?"}], "max_tokens": 12, "seed": 0}
        plain = client.chat.completions.create(model="smollm2", **ask)
        guided = client.chat.completions.create(model="smollm2+sentiment=-6", **ask, logprobs=True)
        assert plain.choices[0].message.content != guided.choices[0].message.content
        assert all(item.model_extra["reward"] is not None for item in guided.choices[0].logprobs.content)
        said = httpx2.post(f"{url}/score", json={"model": "sentiment", "response": " A lovely day."}).json()
        assert 0.5 < said["data"][0]["probability"] <= 1
        verdict = httpx2.post(f"{url}/detect", json={"text": "Well. " * 5}, timeout=100).json()
        assert verdict["data"][0]["verdict"] == "cannot tell" and "no ground" in verdict["caution"]
