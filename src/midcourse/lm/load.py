"""Names to models, tokenizers, configurations and devices: everything that is loaded is loaded here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from midcourse.errors import MidcourseError
from midcourse.lm.embedded import minilm_folder, smollm2_folder

EMBEDDED = "smollm2"


EMBEDDED_ENCODER = "minilm"


class ModelError(MidcourseError):
    """A model name, folder or setting that cannot be used."""


def resolve(name: str) -> str:
    """What transformers should load for a name: an embedded model's folder, the folder itself, or the Hub id."""
    if name == EMBEDDED:
        return str(smollm2_folder())
    if name == EMBEDDED_ENCODER:
        return str(minilm_folder())
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ModelError(f"{name} is a folder without config.json; name a model folder of transformers or '{EMBEDDED}'")
    return name


def resolve_device(device: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, then Apple's GPU, then the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} is not usable here; use 'auto' or 'cpu'") from error


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """The dtype of that name; "auto" is float32 on the CPU, where bf16 is slow, and the checkpoint's own elsewhere."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if isinstance(found := getattr(torch, dtype, None), torch.dtype) and found.is_floating_point:
        return found
    raise ModelError(f"dtype {dtype!r} is unknown; use auto, float32, bfloat16, float16 or float64")


def load_config(folder: str) -> PretrainedConfig:
    """The text configuration of a model folder or Hub id."""
    try:
        return AutoConfig.from_pretrained(folder).get_text_config()
    except (OSError, ValueError) as error:
        raise ModelError(_not_found(folder)) from error


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or Hub id."""
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer found for {folder!r}; save the model's tokenizer in its folder") from error


def load_backbone(
    auto_class: Any,
    name: str,
    config: PretrainedConfig,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = "sdpa",
) -> PreTrainedModel:
    """A model of `name` under `config`, which may have fewer layers than the checkpoint.

    Args:
        attention: implementation; None for the architecture's own.
    """
    place = resolve_device(device)
    settings = {"config": config, "dtype": resolve_dtype(dtype, place), "attn_implementation": attention}
    return _from_pretrained(auto_class, resolve(name), **settings).to(place)


def _from_pretrained(auto_class: Any, folder: str, **kwargs: Any) -> PreTrainedModel:
    try:
        with quiet_transformers():
            return auto_class.from_pretrained(folder, **{"attn_implementation": "sdpa", **kwargs})
    except OSError as error:
        raise ModelError(_not_found(folder)) from error
    except (ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ModelError(f"transformers cannot load {folder!r} ({reason}); use another model or restore it") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' loading bars and reports (of layers left out on purpose) off the screen."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _not_found(folder: str) -> str:
    return (
        f"no model {folder!r} in this folder, in the local Hub cache or on the Hub; "
        f"use '{EMBEDDED}', a folder or a Hub id"
    )


def load_generation_config(folder: str) -> GenerationConfig | None:
    """The generation settings of a model folder or Hub id, where it has any."""
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:
        return None
