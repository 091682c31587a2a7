"""The JSON behind every figure: rows or figures, with the commit, date, versions and cores they were made with."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from midcourse.files import as_json, write_text

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "midcourse")


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with its provenance, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, as_json({**content, **provenance()}, indent=1) + "\n")


def provenance() -> dict[str, Any]:
    """Return commit, date, versions and cores of this run."""
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _commit() -> str | None:
    """Return the commit of the working directory, if there is one; "+" marks uncommitted changes."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None
