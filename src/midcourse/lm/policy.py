"""A language model with a fine-tuned adapter, or fine-tuned as a whole: a policy of its own."""

import json
from dataclasses import replace
from pathlib import Path

from midcourse.lm.language_model import LanguageModel
from midcourse.lm.load import ModelError, load_adapter

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RECORD = "midcourse_policy.json"  # of a policy that midcourse trained; it has the model's name; PEFT has a path


def load_policy(name: str, lm: LanguageModel, *, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """Load a fine-tuned model, which writes the LM's tokens: a PEFT adapter's folder, a model's folder, or a Hub id.

    Raises:
        ModelError: an adapter that cannot be read or does not fit, or a model with other tokens than the LM's.
        ModelError: no such model.
    """
    if (Path(name) / ADAPTER).is_file():
        policy = LanguageModel.load(adapter_base(name), device=device, dtype=dtype)
        policy = replace(policy, model=load_adapter(policy.model, name))
    else:
        policy = LanguageModel.load(name, device=device, dtype=dtype)
    if policy.tokens != lm.tokens or policy.vocab_size != lm.vocab_size:
        raise ModelError(
            f"policy {name} writes other tokens than {lm.name}, and its KL to it is not defined; "
            f"compare it with the model that it was trained from by --lm"
        )
    if policy.eos_token_ids != lm.eos_token_ids:
        raise ModelError(
            f"policy {name} ends texts with the token ids {sorted(policy.eos_token_ids)}, {lm.name} with "
            f"{sorted(lm.eos_token_ids)}; give its generation config the same eos_token_id"
        )
    return LanguageModel(policy.model, lm.tokenizer, name)


def adapter_base(name: str) -> str:
    """Return what an adapter's folder says it is an adapter of; ModelError if it does not say."""
    ours = (Path(name) / RECORD).is_file()
    path, field = (Path(name) / RECORD, "lm") if ours else (Path(name) / ADAPTER, "base_model_name_or_path")
    try:
        base = json.loads(path.read_text())[field]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"{path} names no {field} ({error!r}); train the adapter again") from error
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path} names no {field}; write the model's name there")
    if not (Path(name) / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{name} holds no {ADAPTER_WEIGHTS}; save the adapter as safetensors")
    return base
