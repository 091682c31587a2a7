"""Commands that start at once: forked off a process that has imported what they need.

A page of the documentation has many commands, and so have tests of what happens when one is stopped; importing
transformers takes each of them seconds. `Forked` starts a process that has imported it already; the scripts in its
folder have that process fork, and what was asked for then runs in a process of its own, in the caller's folder and
environment, with the caller's files for input and output. A script ends as that process does, by its signal too; but
what is sent to the script does not reach it.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# Sends what it is called with to the server, waits, and ends as what was run there ended.
_CLIENT = """#!{python} -SI
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
asked = {{"name": os.path.basename(sys.argv[0]), "arguments": sys.argv[1:]}}
asked |= {{"folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
status = int(server.recv(100) or 1)
if status < 0:
    if status != -signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""
_MOST = 200_000  # bytes of a request


class Forked:
    """A process that forks, and a folder of scripts that ask it to: `midcourse ...`, and `python-code CODE ...`."""

    def __init__(self) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="forked-")
        self.folder = Path(self._made.name)
        address = str(self.folder / "socket")
        for name in ("midcourse", "python-code"):
            (self.folder / name).write_text(_CLIENT.format(python=sys.executable, address=address))
            (self.folder / name).chmod(0o755)
        # It ends when this process does, however that ends: its input is closed then.
        self._server = subprocess.Popen(
            [sys.executable, "-m", "studies.forked", address],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path)), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._server.stdout
        assert self._server.stdout.readline() == b"ready\n"

    def close(self) -> None:
        """End the process; what it forked goes on."""
        self._server.communicate()
        self._made.cleanup()


@cache
def forked() -> Forked:
    """Return the one of this process, which ends with it."""
    made = Forked()
    atexit.register(made.close)
    return made


def in_fork(code: str, *arguments: str) -> list[str]:
    """Return the command that runs Python code with these arguments as `python -c` does, in a fork."""
    return [str(forked().folder / "python-code"), code, *arguments]


def serve(address: str) -> None:
    """Fork for every request until standard input is closed."""
    import select

    import midcourse.decode.engine
    import midcourse.rewards.named
    import midcourse.train.training  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for what is forked: the caller hears from it
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    """Have a process do what a request asks for, say how it ended, and end this one."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        _run(connection)
    _, status = os.waitpid(child, 0)
    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _run(connection: socket.socket) -> None:
    """Do what a request asks for in this process, and end it."""
    message, files, _, _ = socket.recv_fds(connection, _MOST, 3)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    asked = json.loads(message)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    status = 0
    try:
        if asked["name"] == "midcourse":
            from midcourse.cli import main

            sys.argv = [asked["name"], *asked["arguments"]]
            main()
        else:
            code, *arguments = asked["arguments"]
            sys.argv = ["-c", *arguments]
            sys.path.insert(0, "")
            exec(code, {"__name__": "__main__"})
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
