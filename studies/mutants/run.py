"""Mutants: small faults in the modules that everything else stands on, one at a time; do the tests notice each?

    make mutants                                            (installs cosmic-ray, which makes most of the faults)
    python -m studies.mutants.run [--jobs N] [MODULE ...]

Every mutant is run against those quick tests of its module that call the function with the fault, in a process that is
forked when everything but midcourse has been imported. A test that fails has noticed the fault: the mutant is killed.
Some mutants do what the code does: equivalent.json lists them, each with its reason, and they do not count. Writes
results.json here, with what survives, and ends with status 1 if less than 90 % of a module's mutants are killed.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import version
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

# Read by libraries when they are imported. One thread each, which may be forked.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import hypothesis
import pytest

from midcourse.evaluate.provenance import write_results
from studies.mutants.faults import Mutant, mutants

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLOOR = 0.9
MEMORY = 32 * 2**30  # bytes of address space that a mutant may take
# The modules, each with the tests that hold it to its word: its own first, then those of the laws that it serves.
TESTS = {
    "midcourse.decode.guidance": ["tests/decode/test_guidance.py"],
    "midcourse.decode.choice": ["tests/decode/test_choice.py"],
    "midcourse.decode.candidates": ["tests/decode/test_candidates.py"],
    "midcourse.train.objectives": ["tests/train/test_losses.py", "tests/train/test_objectives.py"],
    "midcourse.lm.prefix_cache": ["tests/lm/test_prefix_cache.py"],
    "midcourse.compare.report.statistics": ["tests/compare/report/test_statistics.py"],
    "midcourse.compare.report.matched": ["tests/compare/report/test_matched.py"],
}
# Without the hook that checks types and shapes: it takes long to load, and a test of it alone says nothing here.
PYTEST = [
    *("-x", "-q", "-m", "not slow", "-n", "0", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
    *("--deselect", "tests/decode/test_guidance.py::test_rewards_of_another_shape_are_noticed"),
]


class Fault(MetaPathFinder, SourceFileLoader):
    """Has one module imported with another source."""

    def __init__(self, module: str, source: str):
        super().__init__(module, str(_path(module)))
        self.source = source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Calls:
    """A plugin of pytest that notes which tests call each function of a module."""

    def __init__(self, module: str):
        self.path = str(_path(module))
        self.tests: dict[str, list[str]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        called = set()

        def note(frame: FrameType, event: str, _: object) -> None:
            if event == "call" and frame.f_code.co_filename == self.path:
                called.add(frame.f_code.co_qualname.replace(".<locals>", ""))

        sys.setprofile(note)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            for function in called:
                self.tests.setdefault(function, []).append(item.nodeid)


class Only:
    """A plugin of pytest that leaves out all tests but some."""

    def __init__(self, tests: list[str]):
        self.tests = set(tests)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self.tests]


def begin(module: str, source: str, tests: list[str] | None, seconds: int) -> int:
    """Run tests of a module, all by default, with another source of it; return the number of their process."""

    def run() -> int:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        sys.meta_path.insert(0, Fault(module, source))
        return pytest.main([*PYTEST, *TESTS[module]], plugins=[] if tests is None else [Only(tests)])

    return forked(run, seconds)


def forked(run: Callable[[], int], seconds: int) -> int:
    """Call a function in a child process, which ends with what it returns; return the number of the process."""
    if child := os.fork():
        return child
    status = 70
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of computing, then the process ends
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        status = int(run())
    finally:
        os._exit(status)


def outcome(status: int) -> str:
    """What a mutant's tests say, by the status that their process ended with."""
    if os.WIFSIGNALED(status):
        return "timed_out" if os.WTERMSIG(status) == signal.SIGPROF else "killed"
    code = os.waitstatus_to_exitcode(status)
    if code in (0, 5):  # all passed, or there was none
        return "survived"
    if code in (1, 2):  # a test failed, or could not even be collected
        return "killed"
    raise RuntimeError(f"pytest ended with status {code}, which says nothing about a mutant; run its tests by hand")


def run_all(module: str, made: list[Mutant], calls: dict[str, list[str]], seconds: int, jobs: int) -> list[str]:
    """Return the outcome of each mutant.

    Args:
        calls: the tests that call each function; others cannot notice its faults.
    """
    # A result that is kept from one test to the next is asked for by tests that do not call.
    kept = set(re.findall(r"@cache\n *def (\w+)", _path(module).read_text()))
    found = [""] * len(made)
    waiting, running = list(range(len(made)))[::-1], {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number = waiting.pop()
            function = made[number].function
            tests = calls.get(function, []) if function and function not in kept else None
            running[begin(module, made[number].source, tests, seconds)] = number
        child, status = os.wait()
        found[running.pop(child)] = outcome(status)
        if sys.stderr.isatty():
            print(f"\r{module}: {len(made) - len(waiting)} of {len(made)}", end="", file=sys.stderr)
    return found


def warm_up(module: str) -> tuple[dict[str, list[str]], int]:
    """Run the tests of a module without a fault, and import here what they import.

    Returns:
        The tests that call each of its functions, and how many seconds a mutant may compute.

    Raises:
        RuntimeError: tests fail.
    """
    with tempfile.TemporaryDirectory() as folder:
        noted, calls = Path(folder) / "noted.json", Calls(module)

        def run() -> int:
            code = pytest.main([*PYTEST, *TESTS[module]], plugins=[calls])
            noted.write_text(json.dumps([calls.tests, sorted(sys.modules)]))
            return code

        start = time.monotonic()
        _, status = os.waitpid(forked(run, 1800), 0)
        seconds = time.monotonic() - start
        if status:
            raise RuntimeError(f"the tests of {module} fail without a fault: {' '.join(TESTS[module])}")
        tests, loaded = json.loads(noted.read_text())
    for name in loaded:
        if name.partition(".")[0] not in ("midcourse", "tests", "studies", "__main__", "_pytest", "conftest"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.freeze()
    return tests, 10 + 5 * int(seconds)


def study(module: str, jobs: int) -> dict[str, Any]:
    """Return the counts of a module's mutants, those that survive, and those that are equivalent, with the reasons."""
    listed = json.loads((HERE / "equivalent.json").read_text()).get(module, [])
    reasons = {(entry["function"], entry["before"], entry["after"]): entry["reason"] for entry in listed}
    made = mutants(_path(module).read_text())
    if stale := reasons.keys() - {mutant.identity for mutant in made}:
        raise RuntimeError(f"equivalent.json has what is no mutant of {module}; take it out: {sorted(stale)[0]}")
    counted = [mutant for mutant in made if mutant.identity not in reasons]
    calls, seconds = warm_up(module)
    start = time.monotonic()
    outcomes = run_all(module, counted, calls, seconds, jobs)
    counts = Counter(outcomes)
    return {
        "tests": TESTS[module],
        "mutants": len(made),
        "equivalent": len(made) - len(counted),
        "killed": counts["killed"],
        "timed_out": counts["timed_out"],
        "survived": counts["survived"],
        "killed_share": _share(counts["killed"] + counts["timed_out"], len(counted)),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "survivors": [shown(mutant) for mutant, end in zip(counted, outcomes, strict=True) if end == "survived"],
        "excluded": [
            {**shown(mutant), "reason": reasons[mutant.identity]} for mutant in made if mutant.identity in reasons
        ],
    }


def shown(mutant: Mutant) -> dict[str, Any]:
    """A mutant as the results have it."""
    return {name: value for name, value in mutant._asdict().items() if name != "source"}


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 1.0


def _path(module: str) -> Path:
    return ROOT / "src" / f"{module.replace('.', '/')}.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"all by default: {', '.join(TESTS)}")
    parser.add_argument("--jobs", type=int, default=1, help="processes; 1 by default")
    given = parser.parse_args()
    if strange := set(given.modules) - TESTS.keys():
        parser.error(f"{min(strange)!r} is none of: {', '.join(TESTS)}")
    os.chdir(ROOT)
    # The same examples for every mutant, none kept, and the first failure is enough.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, derandomize=True)
    hypothesis.settings.load_profile("mutants")
    path = HERE / "results.json"
    known = json.loads(path.read_text())["modules"] if path.is_file() else {}
    for module in given.modules or TESTS:
        known[module] = found = study(module, given.jobs)
        print(f"\r{module}: {found['killed'] + found['timed_out']} of {found['mutants'] - found['equivalent']} killed")
        for survivor in found["survivors"]:
            print(f"  {survivor['line']}: {survivor['before']}\n    -> {survivor['after']}")
        parts = {name: sum(of[name] for of in known.values()) for name in ("mutants", "equivalent", "survived")}
        counted = parts["mutants"] - parts["equivalent"]
        total = {**parts, "killed_share": _share(counted - parts["survived"], counted)}
        modules = {name: known[name] for name in TESTS if name in known}
        write_results(path, {"cosmic_ray": version("cosmic-ray"), "total": total, "modules": modules})
    if few := [module for module in given.modules or TESTS if known[module]["killed_share"] < FLOOR]:
        sys.exit(f"less than {FLOOR:.0%} of the mutants of {', '.join(few)} are killed; test what survives")


if __name__ == "__main__":
    main()
