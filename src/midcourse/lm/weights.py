"""Fingerprints of models: which weights a name stands for, read from the safetensors files alone."""

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from midcourse.lm.load import ADAPTER_WEIGHTS, ModelError, _not_found, adapters_of, resolve


def weights_fingerprint(name: str) -> str:
    """Hash every tensor's name, shape and first 4 KiB in a model's safetensors files.

    It tells a fine-tuned or requantised model from its base without reading all of it.
    """
    return files_fingerprint(weight_files(name))


def files_fingerprint(paths: Sequence[Path]) -> str:
    """Hash the tensors of these safetensors files in the same way."""
    digest = hashlib.sha256()
    for tensor in _tensors(paths):
        digest.update(f"{tensor.name} {tensor.shape} {tensor.dtype}".encode())
        digest.update(tensor.begin)
    return digest.hexdigest()[:16]


def matrix_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """Map a hash of every matrix whose numbers are not all alike to its name: what two models may share.

    Of each the first 4 KiB are read, whatever its name; norms and biases, which start alike everywhere, are left out.
    """
    names = {}
    for tensor in _tensors(paths):
        several = len(np.unique(np.frombuffer(tensor.begin[: len(tensor.begin) // 2 * 2], np.uint16))) > 4
        if len(tensor.shape) > 1 and tensor.dtype in ("F64", "F32", "F16", "BF16") and several:
            digest = hashlib.sha256(f"{tensor.shape} {tensor.dtype}".encode() + tensor.begin)
            names[digest.hexdigest()[:16]] = tensor.name
    return names


def tensors_fingerprint(model: nn.Module) -> str:
    """Return a hash of the name, shape and first 2,048 numbers of every tensor of a model in memory.

    The numbers are rounded to bfloat16, so that it is the same on every device and in float32, float64 and bfloat16.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        begin = tensor.detach().flatten()[:2048].to("cpu", torch.bfloat16)
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(begin.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def loaded_fingerprint(model: PreTrainedModel) -> str | None:
    """Return the `weights_fingerprint` of a model's files; None if it was not loaded from any, or has changed since.

    The first row of every tensor is compared with that in the files, in the model's dtype; what an adapter was merged
    into cannot be.
    """
    if not model.name_or_path:
        return None
    try:
        files = weight_files(model.name_or_path)
        return weights_fingerprint(model.name_or_path) if _as_in_files(model, files) else None
    except (ModelError, SafetensorError):
        return None


def _as_in_files(model: PreTrainedModel, files: Sequence[Path]) -> bool:
    tensors, prefix = model.state_dict(), f"{model.base_model_prefix}."
    for path in files:
        if path.name == ADAPTER_WEIGHTS:
            merged = {key.removeprefix("base_model.model.").split(".lora_")[0] for key in _names(path)}
            tensors = {key: one for key, one in tensors.items() if key.rpartition(".")[0] not in merged}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                # Old checkpoints leave the prefix out; what is stored in another form cannot be compared.
                mine = tensors.get(name, tensors.get(prefix + name))
                if mine is None:
                    continue
                saved = file.get_slice(name)
                if list(mine.shape) != saved.get_shape():
                    return False
                if mine.ndim and not torch.equal(saved[:1].to(mine), mine[:1]):
                    return False
    return True


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def weight_files(name: str) -> list[Path]:
    """Return the safetensors files of a model's name, an adapter's own last; ModelError if there are none."""
    if adapters := adapters_of(name):
        return [*weight_files(resolve(name)), *(Path(one) / ADAPTER_WEIGHTS for one in reversed(adapters))]
    folder = Path(resolve(name))
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.safetensors"]))
        except (OSError, ValueError) as error:
            raise ModelError(_not_found(name)) from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{name} has no safetensors weights; convert it with save_pretrained first")
    return files


class _Tensor(NamedTuple):
    """A tensor in a file: its header's entries and its first 4 KiB."""

    name: str
    shape: list[int]
    dtype: str
    begin: bytes


def _tensors(paths: Sequence[Path]) -> Iterator[_Tensor]:
    for path in paths:
        try:
            with path.open("rb") as file:
                size = struct.unpack("<Q", file.read(8))[0]
                header = json.loads(file.read(size))
                for name in sorted(header.keys() - {"__metadata__"}):
                    begin, end = header[name]["data_offsets"]
                    file.seek(8 + size + begin)
                    yield _Tensor(name, header[name]["shape"], header[name]["dtype"], file.read(min(end - begin, 4096)))
        except (struct.error, ValueError) as error:
            raise ModelError(f"{path} is damaged ({error}); restore the model") from error
