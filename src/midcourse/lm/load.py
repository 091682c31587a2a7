"""Names to models, tokenizers, configurations and devices: everything that is loaded is loaded here.

What a folder or a Hub id holds is data. Python code that comes with it (transformers' `auto_map`) is never asked about,
and never run but where the caller trusts it (`trust_remote_code`, for the language model alone): if transformers has
the architecture itself, its own class is used, and all else is refused.
Weights are read from safetensors alone, nothing is unpickled, and a model whose checkpoint lacks a tensor is refused,
since transformers would fill it with random numbers.

A PEFT adapter is a model too: the one that it names as its base, with the adapter merged into it.
"""

import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, logging

from midcourse.errors import MidcourseError, first_line, short_value
from midcourse.lm.embedded import minilm_folder, smollm2_folder
from midcourse.lm.prompt import Arguments, set_arguments
from midcourse.terminal import tell

EMBEDDED = "smollm2"
EMBEDDED_ENCODER = "minilm"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RECORD = "midcourse_policy.json"  # of a policy that midcourse trained; it has the model's name, where PEFT has a path

# Layers that answer with numbers: no LM, even where its embeddings give such a checkpoint the head that it lacks.
NO_LANGUAGE_MODEL = ("ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification")
# What the last part of an architecture's name in config.json says a checkpoint is, and what an auto class asks for.
CHECKPOINTS = {
    "ForCausalLM": "a causal LM",
    "LMHeadModel": "a causal LM",
    "ForConditionalGeneration": "a model of several media or an encoder-decoder",
    "ForMaskedLM": "a masked LM",
    "ForQuestionAnswering": "a model that marks answers",
    "ForSequenceClassification": "a sequence classifier",
    "ForTokenClassification": "a token classifier",
    "WithValueHead": "a model with a value head",
    "Model": "a model without a head",
}


class ModelError(MidcourseError):
    """A model name, folder or setting that cannot be used."""


class LoadError(ModelError):
    """A model that is there and cannot be loaded.

    Attributes:
        reason: why, for a sentence of the caller's own.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class MissingWeightsError(LoadError):
    """A checkpoint without tensors that the model needs.

    Attributes:
        tensors: their names.
        head_only: whether all of them belong to the head.
    """

    def __init__(self, message: str, reason: str, tensors: Sequence[str], head_only: bool):
        super().__init__(message, reason)
        self.tensors, self.head_only = tensors, head_only


def resolve(name: str) -> str:
    """Return what transformers should load for a name: an embedded model's folder, the folder itself, or the Hub id.

    For an adapter it is that of the model below.
    """
    if adapters := adapters_of(name):
        return resolve(adapter_base(adapters[-1]))
    if name == EMBEDDED:
        return str(smollm2_folder())
    if name == EMBEDDED_ENCODER:
        return str(minilm_folder())
    if Path(name).is_file():
        raise ModelError(f"{name} is a file; name the folder of transformers that it is in, which has a config.json")
    if "://" in name:
        raise ModelError(f"{name} is an address; name the model's Hub id, or a folder")
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ModelError(f"{name} is a folder without config.json; name a model folder of transformers or '{EMBEDDED}'")
    return name


def resolve_device(device: str) -> torch.device:
    """Return the device of that name; "auto" is CUDA if there is one, else Apple's GPU, else the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} is not usable here; use 'auto' or 'cpu'") from error


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """Return the dtype of that name; "auto" is float32 on the CPU, where bf16 is slow, else the checkpoint's own."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if isinstance(found := getattr(torch, dtype, None), torch.dtype) and found.is_floating_point:
        return found
    raise ModelError(f"dtype {dtype!r} is unknown; use auto, float32, bfloat16, float16 or float64")


def load_config(name: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read the text configuration of a model; that of a classifier's adapter has the classifier's labels.

    Args:
        trust_remote_code: run the Python code that comes with the model, if transformers lacks its architecture.

    Raises:
        ModelError: there is no model of that name.
        LoadError: its configuration cannot be read, or it needs code of its own.
    """
    config = _whole_config(name, trust_remote_code).get_text_config()
    labels = _labels_of_adapters(name)
    if labels is not None:
        config.num_labels, config.architectures = labels, ["AdapterForSequenceClassification"]
    return config


def _whole_config(name: str, trust_remote_code: bool = False) -> PretrainedConfig:
    folder = resolve(name)
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # of many kinds, if config.json is damaged
        if isinstance(error, OSError | ValueError) and not Path(folder).is_dir() and not _needs_code(error):
            raise ModelError(_not_found(folder)) from error
        raise _cannot_load(folder, error) from error


def load_tokenizer(
    name: str, template_arguments: Arguments | None = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a model.

    An adapter's is its own if it has one, which often brings the chat template that it was trained with.

    Args:
        template_arguments: of its chat template; see `prompt.set_arguments`.
        trust_remote_code: as of `load_config`.

    Raises:
        ModelError: no tokenizer that transformers can read. PromptError: a chat template without such arguments.
    """
    tokenizer = _read_tokenizer(name, trust_remote_code)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelError(
            f"the tokenizer of {name} is {type(tokenizer).__name__}, which is Python code and cannot say which "
            "characters a token stands for; use a model whose tokenizer has a tokenizer.json"
        )
    set_arguments(tokenizer, template_arguments or {})
    return tokenizer


def _read_tokenizer(name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    with_own = [one for one in adapters_of(name) if (Path(one) / "tokenizer_config.json").is_file()]
    folder = with_own[0] if with_own else resolve(name)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # of many kinds, if one of its files is damaged
        if _needs_code(error):
            raise _cannot_load(folder, error) from error
        # Without a model of that name there is no tokenizer either.
        load_config(folder, trust_remote_code=trust_remote_code)
        raise ModelError(
            f"no tokenizer found for {folder!r} ({_first_sentence(error)}); save the model's tokenizer in its folder"
        ) from error


def load_generation_config(name: str) -> GenerationConfig | None:
    """Read the generation settings of a model; None if it has none."""
    try:
        return GenerationConfig.from_pretrained(resolve(name))
    except OSError:
        return None


def load_model(
    auto_class: Any,
    name: str,
    config: PretrainedConfig | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = "sdpa",
    own_head: bool = True,
    other_heads: bool = True,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a pretrained model in eval mode. Every weight is the checkpoint's, but for a head that may be new.

    Args:
        auto_class: transformers' class for its head: AutoModelForCausalLM, ..., or AutoModel for none.
        name: "smollm2", "minilm", a folder or a Hub id, of a model or of an adapter, which is merged into its base.
        config: instead of the model's own; it may have fewer layers than the checkpoint.
        attention: implementation, if the architecture has it, else "eager"; None for the architecture's own.
        own_head: whether the head has to be the checkpoint's. Otherwise another head in the checkpoint is left out, and
            what it lacks of the head (a pooler included) starts from random numbers.
        other_heads: whether it may have a head beside the one that is due, as a policy has one for values.
        trust_remote_code: as of `load_config`.

    Raises:
        ModelError: no such model, device or dtype.
        LoadError: its files are damaged or no safetensors, or it needs code of its own.
        MissingWeightsError: its checkpoint lacks tensors.
    """
    place, folder, adapters = resolve_device(device), resolve(name), adapters_of(name)
    found = load_config(name, trust_remote_code=trust_remote_code)  # from here on there is a model of that name
    settings: dict[str, Any] = {"dtype": resolve_dtype(dtype, place), "attn_implementation": attention}
    if config is not None:
        settings["config"] = config
    elif _labels_of_adapters(name) is not None:  # the base has no head, the adapter has
        settings["config"], own_head = found, False

    def load() -> tuple[PreTrainedModel, dict[str, Collection[Any]]]:
        return auto_class.from_pretrained(
            folder,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are looked at below
            output_loading_info=True,
            **settings,
        )

    try:
        with quiet_transformers():
            try:
                model, report = load()
            except ValueError as error:
                if not _lacks_attention(error):
                    raise
                settings["attn_implementation"] = "eager"
                model, report = load()
    except Exception as error:  # of many kinds, if files are damaged
        raise _cannot_load(name, error) from error
    _check_weights(model, report, name, cut=config is not None, own_head=own_head, other_heads=other_heads)
    for adapter in reversed(adapters):
        model = load_adapter(model, adapter)
    if adapters:
        model.name_or_path = name
    return model.to(place).eval()


def empty_model(
    auto_class: Any, config: PretrainedConfig, *, dtype: torch.dtype | None, attention: str | None = "sdpa"
) -> PreTrainedModel:
    """Make a model of a configuration, on the default device, whose weights are still to be read.

    Raises:
        LoadError: transformers has no such model, or it needs code of its own.
    """
    settings: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    try:
        return auto_class.from_config(config, trust_remote_code=False, **settings)
    except ValueError as error:
        if attention not in (None, "eager") and _lacks_attention(error):
            return empty_model(auto_class, config, dtype=dtype, attention="eager")
        raise _cannot_load(config.name_or_path or config.model_type, error) from error


def check_tokens(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """See to it that a token without an embedding is refused in a sentence, once a text has it; a model may be PEFT's.

    A tokenizer may have more tokens than its model: those of a model's larger kin, which no text has, or tokens that
    were added and the embeddings not resized.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    rows = embeddings.weight.shape[0]
    if len(tokenizer) <= rows:
        return

    def check(_: Any, given: tuple[torch.Tensor, ...]) -> None:
        if given and int(given[0].max()) >= rows:
            token = tokenizer.convert_ids_to_tokens(int(given[0].max()))
            raise ModelError(
                f"{name} has embeddings for {rows} tokens, and its tokenizer gave one beyond them, {token!r}; resize "
                "the embeddings or restore the tokenizer"
            )

    embeddings.register_forward_pre_hook(check)


def of_several_media(name: str) -> bool:
    """Return whether a model's layers are within one that reads pictures or sound too."""
    config = _whole_config(name)
    return config.get_text_config() is not config


# Adapters


def adapters_of(name: str) -> list[str]:
    """Return the folders of the adapters that a name stands for, the one named first; none for a whole model.

    Raises:
        ModelError: an adapter without weights or a base, or that is its own base.
    """
    folders: list[str] = []
    while (folder := _adapter_folder(name)) is not None:
        if folder in folders:
            raise ModelError(f"{folder} names itself as the model that it is an adapter of; write that model's there")
        folders.append(folder)
        name = adapter_base(folder)
    return folders


def _adapter_folder(name: str) -> str | None:
    if Path(name).is_dir():
        return str(name) if (Path(name) / ADAPTER).is_file() else None
    return _adapter_on_hub(name) if name.count("/") == 1 else None


@cache
def _adapter_on_hub(name: str) -> str | None:
    """Return where the local Hub cache has an adapter; None if nothing there or on the Hub is one of that name."""
    missing: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    try:
        found = cached_file(name, ADAPTER, **missing)
        if found is not None:
            cached_file(name, ADAPTER_WEIGHTS, **missing)
    except (OSError, ValueError):  # no name of a repository
        return None
    return None if found is None else str(Path(found).parent)


def adapter_base(folder: str) -> str:
    """Return what an adapter's folder says it is an adapter of; ModelError if it does not say."""
    ours = (Path(folder) / RECORD).is_file()
    path, field = (Path(folder) / RECORD, "lm") if ours else (Path(folder) / ADAPTER, "base_model_name_or_path")
    try:
        base = json.loads(path.read_text())[field]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ModelError(f"{path} names no {field} ({first_line(error)}); train the adapter again") from error
    if not isinstance(base, str) or not 0 < len(base) < 1000:
        raise ModelError(f"{path} names no {field}; write the model's name there")
    if not (Path(folder) / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no {ADAPTER_WEIGHTS}; save the adapter as safetensors")
    beside = Path(folder, base)
    return str(beside) if base.startswith(".") and not Path(base).is_dir() and beside.is_dir() else base


def _labels_of_adapters(name: str) -> int | None:
    """Return how many labels a classifier's adapter has a head for; None for any other model."""
    for folder in adapters_of(name):
        try:
            settings = json.loads((Path(folder) / ADAPTER).read_text())
            if settings.get("task_type") != "SEQ_CLS":
                continue
            shapes = stored_shapes(Path(folder) / ADAPTER_WEIGHTS)
            heads = [key for key in shapes if re.search(r"\.(score|classifier)\b.*weight$", key)]
            if heads:
                return shapes[heads[-1]][0]
        except (OSError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
            reason = _first_sentence(error)
            raise LoadError(f"the adapter in {folder} cannot be read ({reason}); train it again", reason) from error
    return None


def stored_shapes(path: Path) -> dict[str, Sequence[int]]:
    """Return the shape of every tensor in a safetensors file, by its name; of the file no more than its header is read.

    Raises:
        OSError, SafetensorError: the file cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def largest_size(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the largest dimension among shapes, which no rank of theirs can exceed; 0 if there are none."""
    return max((size for shape in shapes.values() for size in shape), default=0)


def load_adapter(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """Merge the PEFT adapter in a folder into a model, which it changes; each weight of the adapter is the folder's.

    Raises:
        LoadError: the adapter cannot be read, does not fit the model, or lacks tensors.
    """
    from peft import PeftConfig, PeftModel

    try:
        shapes = stored_shapes(Path(folder) / ADAPTER_WEIGHTS)
        ranks = _check_adapter(Path(folder), shapes)
        _fit_embeddings(model, shapes)
        _untie(model, ranks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that are missing, which are looked at below, and of new settings
            config = PeftConfig.from_pretrained(folder)
            if isinstance(config.target_modules, str) and config.target_modules != "all-linear":
                config.target_modules, config.exclude_modules = set(ranks), None
            config.rank_pattern = {re.escape(name): rank for name, rank in ranks.items() if rank != config.r}
            adapted = PeftModel.from_pretrained(model, folder, config=config)
            report = adapted.load_adapter(folder, adapted.active_adapter)
        # Of resized embeddings that are modules to save PEFT writes another copy, which it does not know again.
        unexpected = [
            key for key in report.unexpected_keys if key.replace(".modules_to_save.", ".") not in shapes.keys() - {key}
        ]
        if strange := [*report.missing_keys, *unexpected]:
            raise ValueError(f"it lacks or has too much {_listed(strange)}")
        return adapted.merge_and_unload().eval()
    except Exception as error:  # of many kinds, if files are damaged or of another kind of adapter
        reason = _first_sentence(error)
        message = f"the adapter in {folder} does not fit {model.name_or_path or 'its model'} ({reason}); train it again"
        raise LoadError(message, reason) from error


def _fit_embeddings(model: PreTrainedModel, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give a model as many embeddings as its adapter holds, if that was trained with tokens added."""
    embeddings = model.get_input_embeddings()
    (name,) = (name for name, module in model.named_modules() if module is embeddings)
    whole = (f"base_model.model.{name}.{more}weight" for more in ("", "modules_to_save."))
    rows = next((shapes[key][0] for key in whole if key in shapes), None)
    if rows is not None and rows != embeddings.weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _untie(model: PreTrainedModel, adapted: Collection[str]) -> None:
    """Give a model's head weights of its own if an adapter changes either the head or the embeddings it shares."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return
    if any(module in (embeddings, head) for name, module in model.named_modules() if name in adapted):
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False


def _check_adapter(folder: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the rank that an adapter has at each module; ValueError if its settings ask for more than its tensors.

    Both are read from the tensors. Patterns of names are regular expressions, which may take for ever.
    """
    settings = json.loads((folder / ADAPTER).read_text())
    if (kind := settings.get("peft_type")) != "LORA":
        raise ValueError(f"it is of kind {short_value(kind)}, and LoRA adapters are what can be merged")
    for name in ("layer_replication", "alora_invocation_tokens", "lora_bias"):
        if settings.get(name):
            raise ValueError(f"its {name} cannot be merged into the model")
    if strange := [key for key in settings.get("alpha_pattern") or {} if not re.fullmatch(r"\^?[\w.]+", key)]:
        raise ValueError(f"its alpha_pattern has {short_value(strange[0])}, which names no module")
    rank, most = settings.get("r"), largest_size(shapes)
    if type(rank) is not int or not 0 < rank <= most:
        raise ValueError(f"its rank is {short_value(rank)}, and its largest tensor has {most} rows")
    found = ((re.match(r"base_model\.model\.(.+)\.lora_(?:A|embedding_A)\b", name), name) for name in shapes)
    return {one[1]: shapes[name][0] for one, name in found if one}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' loading bars and reports off the screen."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# What a checkpoint holds, and what its model needs


def _check_weights(
    model: PreTrainedModel,
    report: dict[str, Collection[Any]],
    name: str,
    *,
    cut: bool,
    own_head: bool,
    other_heads: bool,
) -> None:
    """Refuse a checkpoint that lacks tensors or has them in other sizes; warn of those without a place in the model.

    Args:
        report: transformers' loading report.
        cut: whether the model may have fewer layers than the checkpoint.
        own_head, other_heads: see `load_model`.
    """
    layers = model.config.get_text_config().num_hidden_layers

    def wanted(key: str) -> bool:
        return (own_head or _in_trunk(model, key)) and not (cut and _layer(key) >= layers)

    mismatched = [entry for entry in sorted(report["mismatched_keys"]) if wanted(entry[0])]
    missing = sorted(filter(wanted, report["missing_keys"]))
    unexpected = sorted(filter(wanted, report["unexpected_keys"]))
    needed = type(model).__name__
    # Layers are found in checkpoints with any head, so only one that has none of them tells what it is.
    foreign = own_head or len(missing) > len(model.state_dict()) / 2
    seems = _seems_to_be(resolve(name), needed, unexpected) if foreign else None
    if mismatched:
        key, has, asked = mismatched[0]
        reason = f"{_listed([key for key, *_ in mismatched])} of other sizes than its config.json announces"
        sizes = f"{key} is {tuple(has)}, not {tuple(asked)}"
        message = f"{name} has {reason} ({sizes}); restore the one or the other"
        raise LoadError(message, f"{reason}: {sizes}")
    seems = f", and seems to be {seems}" if seems else ""
    if missing:
        head_only = not any(_in_trunk(model, key) for key in missing)
        remedy = f"use {_checkpoint(needed)}" if seems and head_only else "restore its weights or use another model"
        reason = f"it lacks {_listed(missing)} of {needed}{seems}"
        raise MissingWeightsError(f"{name} cannot be used: {reason}; {remedy}", reason, missing, head_only)
    heads = [key for key in unexpected if not _in_trunk(model, key)]
    if own_head and heads and (not other_heads or _is_no_language_model(resolve(name), needed)):
        reason = f"it has {_listed(heads)} of another head{seems}"
        raise LoadError(f"{name} cannot be used as {_checkpoint(needed)}: {reason}; name {_checkpoint(needed)}", reason)
    if unexpected:
        tell(f"warning: {name} has {_listed(unexpected)} that {needed} does without{seems}")


def _in_trunk(model: PreTrainedModel, key: str) -> bool:
    """Return whether a tensor of that name is of the layers below the head; a pooler counts as of the head."""
    part, *_ = key.removeprefix(f"{model.base_model_prefix}.").split(".")
    return part != "pooler" and part in dict(model.base_model.named_children())


def _layer(key: str) -> int:
    """Return the number of the layer that a tensor is of; -1 if it is of none."""
    found = re.search(r"\.(\d+)\.", key)
    return int(found[1]) if found else -1


def _seems_to_be(folder: str, needed: str, unexpected: Sequence[str]) -> str | None:
    """Return what a checkpoint is by its config.json and tensors, such as "a token classifier"; None if as needed."""
    if any(key.startswith("v_head.") for key in unexpected):
        return CHECKPOINTS["WithValueHead"]
    architectures = _architectures(folder)
    if not architectures or needed in architectures:
        return None
    kind = _checkpoint(str(architectures[0]))
    return f"{kind} ({architectures[0]})" if kind else str(architectures[0])


def _is_no_language_model(folder: str, needed: str) -> bool:
    """Return whether a causal LM is needed, and config.json says that a checkpoint is a classifier or the like."""
    return needed.endswith("ForCausalLM") and any(
        str(one).endswith(NO_LANGUAGE_MODEL) for one in _architectures(folder)[:1]
    )


def _architectures(folder: str) -> list[Any]:
    """Return what config.json calls a checkpoint's architectures; nothing if it names none."""
    found = PretrainedConfig.get_config_dict(folder)[0].get("architectures")
    return found if isinstance(found, list) else []


def _checkpoint(architecture: str) -> str | None:
    return next((words for ending, words in CHECKPOINTS.items() if architecture.endswith(ending)), None)


def _listed(keys: Sequence[str]) -> str:
    """Return keys for a message: "1 tensor (score.weight)" or "14 tensors (a, b, c and more)"."""
    more = " and more" if len(keys) > 3 else ""
    return f"{len(keys)} tensor{'s' if len(keys) > 1 else ''} ({', '.join(keys[:3])}{more})"


# Errors


def _cannot_load(name: str, error: Exception) -> LoadError:
    if _needs_code(error):
        reason = "it comes with Python code of its own (auto_map), which is not run"
        remedy = (
            "use a model that transformers has itself, or, for a language model that you trust, --trust-remote-code"
        )
        return LoadError(f"{name} cannot be loaded: {reason}; {remedy}", reason)
    reason = _first_sentence(error)
    remedy = "use another model or restore it"
    if "does not support" in reason:  # nothing of this model is broken
        remedy = "use another model"
    elif "no file named" in reason and list(Path(name).glob("pytorch_model*.bin")):
        remedy = "use another model or convert its weights to safetensors"
    return LoadError(f"transformers cannot load {name!r} ({reason}); {remedy}", reason)


def _needs_code(error: Exception) -> bool:
    return "trust_remote_code" in str(error)


def _lacks_attention(error: Exception) -> bool:
    return "does not support an attention implementation" in str(error)


def _first_sentence(error: Exception) -> str:
    text = re.sub(r":\s*\n\s*", ": ", str(error).strip())
    sentence = text.split("\n")[0].split(". ")[0].rstrip(".")
    speaks = isinstance(error, OSError | ValueError | RuntimeError | SafetensorError)
    return sentence if speaks and sentence else f"{type(error).__name__} {sentence}".strip()


def _not_found(folder: str) -> str:
    return (
        f"no model {folder!r} in this folder, in the local Hub cache or on the Hub; "
        f"use '{EMBEDDED}', a folder or a Hub id"
    )
