"""A fine-tuned policy as an arm: its responses, and their exact KL to the language model that it came from."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from midcourse.compare.arms import CompareError
from midcourse.decode.candidates import nucleus, short_list
from midcourse.decode.choice import kl_divergence, normalise
from midcourse.decode.methods import Method
from midcourse.decode.steps import Generation
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Template, prompt_ids

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RECORD = "midcourse_policy.json"  # of a policy that midcourse trained; it has the model's name, where PEFT has a path


def load_policy(name: str, lm: LanguageModel, *, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """A fine-tuned model: a PEFT adapter's folder, a model's folder, or a Hub id. It reads and writes the LM's tokens.

    Raises:
        CompareError: an adapter that cannot be read or does not fit, or a model with other tokens than the LM's.
        ModelError: no such model.
    """
    if (Path(name) / ADAPTER).is_file():
        found = LanguageModel.load(adapter_base(name), device=device, dtype=dtype)
        found = replace(found, model=_with_adapter(found, name))
    else:
        found = LanguageModel.load(name, device=device, dtype=dtype)
    if found.tokens != lm.tokens or found.model.config.vocab_size != lm.model.config.vocab_size:
        raise CompareError(
            f"policy {name} writes other tokens than {lm.name}, and its KL to it is not defined; "
            f"compare it with the model that it was trained from by --lm"
        )
    if found.eos_token_ids != lm.eos_token_ids:
        raise CompareError(
            f"policy {name} ends texts with the token ids {sorted(found.eos_token_ids)}, {lm.name} with "
            f"{sorted(lm.eos_token_ids)}; give its generation config the same eos_token_id"
        )
    return LanguageModel(found.model, lm.tokenizer, name)


def adapter_base(name: str) -> str:
    """What an adapter's folder says it is an adapter of; CompareError where it does not."""
    ours = (Path(name) / RECORD).is_file()
    path, field = (Path(name) / RECORD, "lm") if ours else (Path(name) / ADAPTER, "base_model_name_or_path")
    try:
        found = json.loads(path.read_text())[field]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CompareError(f"{path} names no {field} ({error!r}); train the adapter again") from error
    if not isinstance(found, str) or not found:
        raise CompareError(f"{path} names no {field}; write the model's name there")
    if not (Path(name) / ADAPTER_WEIGHTS).is_file():
        raise CompareError(f"{name} holds no {ADAPTER_WEIGHTS}; save the adapter as safetensors")
    return found


def _with_adapter(base: LanguageModel, name: str) -> torch.nn.Module:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(base.model, name).merge_and_unload().eval()
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise CompareError(f"the adapter in {name} does not fit {base.name} ({reason}); train it again") from error


@torch.inference_mode()
def with_kl(
    policy: LanguageModel, lm: LanguageModel, generation: Generation, chosen: Method, template: Template
) -> Generation:
    """A policy's response with the exact KL(q || pi) of every step, q what it was sampled from and pi the LM.

    Both models read the response once more. There is no guidance KL: q leaves the LM's candidates.
    """
    prompt = prompt_ids(lm.tokenizer, generation.prompt, template)
    tokens = [step.token_id for step in generation.steps]
    ours, theirs = (_logprobs(model, prompt, tokens) for model in (policy, lm))
    candidates = nucleus(short_list(ours, chosen.top_k), chosen.top_p, chosen.temperature)
    sampled = normalise(candidates.logprobs, chosen.temperature)
    kls = kl_divergence(sampled, theirs.gather(1, candidates.token_ids)).tolist()
    reference = theirs.gather(1, torch.tensor(tokens, device=theirs.device)[:, None])[:, 0].tolist()
    steps = tuple(
        replace(step, reference_logprob=logprob, guidance_kl=None, total_kl=kl)
        for step, logprob, kl in zip(generation.steps, reference, kls, strict=True)
    )
    return replace(generation, steps=steps, guidance_kl=None, total_kl=sum(kls))


def _logprobs(lm: LanguageModel, prompt: Sequence[int], response: Sequence[int]) -> Float[Tensor, "tokens vocab"]:
    """log pi of each response token's place, over the vocabulary."""
    ids = torch.tensor([[*prompt, *response[:-1]]], device=lm.model.device)
    logits = lm.model(input_ids=ids, use_cache=False, logits_to_keep=len(response)).logits[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
