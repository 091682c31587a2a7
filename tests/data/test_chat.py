"""Many questions to a server at a time."""

import itertools
import json
import signal
import socket
import subprocess
import sys
import threading

import pytest

from midcourse.data.chat import ChatServer, answered
from midcourse.data.formats import DataError
from tests.chat_server import completion


def test_every_item_is_answered_once():
    found = dict(answered(lambda number: number**2, ((str(n), n) for n in range(50)), 7))
    assert found == {str(n): n**2 for n in range(50)}


def test_so_many_are_asked_at_a_time_and_items_are_taken_as_they_are_needed():
    taken, asked, most, lock, go = [], [0], [0], threading.Lock(), threading.Barrier(3)

    def ask(number: int) -> int:
        with lock:
            asked[0] += 1
            most[0] = max(most[0], asked[0])
        go.wait()
        with lock:
            asked[0] -= 1
        return number

    source = ((n, taken.append(n) or n) for n in itertools.count())
    answers = answered(ask, source, 3)
    first = [next(answers)[0] for _ in range(3)]
    assert sorted(first) == [0, 1, 2]
    assert most[0] == 3
    assert len(taken) <= 3 * 2 + 3
    go.abort()
    answers.close()


def test_what_asking_raises_ends_it():
    def ask(number: int) -> int:
        if number == 3:
            raise KeyError(number)
        return number

    with pytest.raises(KeyError):
        list(answered(ask, enumerate(range(100)), 2))


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_a_server_that_hangs(tmp_path):
    rows = [{"prompt": f"p{n}", "chosen": "a b c", "rejected": "a b d"} for n in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        command = ["edits", "make", "--comparisons", "pairs.jsonl", "--editor", url, "--model", "m", "--out", "e.jsonl"]
        called = [sys.executable, "-m", "midcourse", *command]
        with subprocess.Popen(called, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            waiting, _ = silent.accept()  # a question is there, and nobody answers
            process.send_signal(signal.SIGINT)
            try:
                _, said = process.communicate(timeout=100)  # less than the patience for one answer
            finally:
                process.kill()
                waiting.close()
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in said


def parts(text: str) -> dict:
    """An answer whose content is a list of parts."""
    found = completion(text)
    content = [
        {"type": "reasoning", "summary": []},
        {"type": "text", "text": text[:2]},
        {"text": text[2:]},  # some servers leave the type out
    ]
    found["choices"][0]["message"]["content"] = content
    return found


def test_content_in_parts_is_read(serve):
    chat = ChatServer(serve(lambda request: (200, parts("hello"))).url, "m", called="judge", error=DataError)
    assert chat.complete([{"role": "user", "content": "a"}]).text == "hello"


@pytest.mark.parametrize("status", [400, 422])
def test_a_model_whose_template_takes_no_system_message_is_told_by_the_user(serve, status):
    def answer(request):
        if request["messages"][0]["role"] == "system":
            return status, {"error": {"message": "System role not supported"}}
        return 200, completion(request["messages"][0]["content"])

    server = serve(answer)
    chat = ChatServer(server.url, "m", called="judge", error=DataError)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert [chat.complete(messages).text for _ in range(2)] == ["Be brief.\n\nHi"] * 2
    assert len(server.requests) == 3


def test_what_a_model_takes_by_another_name_or_not_at_all_is_asked_so(serve):
    """o1 and its kin take max_completion_tokens and no temperature; what was refused once is not sent again."""

    def reply(request):
        for name in ("max_tokens", "temperature"):
            if name in request:
                return 400, {"error": {"message": f"Unsupported parameter: '{name}' is not supported with this model."}}
        return 200, completion(str(request["max_completion_tokens"]))

    server = serve(reply)
    chat = ChatServer(server.url, "m", called="judge", error=DataError)
    messages = [{"role": "user", "content": "a"}]
    assert [chat.complete(messages, max_tokens=7, temperature=0.0).text for _ in range(2)] == ["7", "7"]
    assert [sorted(request) for request in server.requests] == [
        ["max_tokens", "messages", "model", "temperature"],
        ["max_completion_tokens", "messages", "model", "temperature"],
        ["max_completion_tokens", "messages", "model"],
        ["max_completion_tokens", "messages", "model"],
    ]


def test_any_other_refusal_is_said(serve):
    server = serve(lambda request: (400, {"error": {"message": "no such model"}}))
    chat = ChatServer(server.url, "m", called="judge", error=DataError)
    with pytest.raises(DataError, match=r"answers 400 .*no such model"):
        chat.complete([{"role": "user", "content": "a"}], max_tokens=7)
    assert len(server.requests) == 1
