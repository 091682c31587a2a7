"""A language model with a fine-tuned adapter, or fine-tuned as a whole: a policy of its own."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from midcourse.files import as_json, write_bytes
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.load import ADAPTER, ADAPTER_WEIGHTS, EMBEDDED, ModelError, load_tokenizer, quiet_transformers
from midcourse.lm.prompt import chat_template

HUB = {EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}  # what others know an embedded model as


def load_policy(name: str, lm: LanguageModel, *, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """Load a fine-tuned model, which writes the LM's tokens: a PEFT adapter's folder, a model's folder, or a Hub id.

    Raises:
        ModelError: no such model, an adapter that cannot be read or does not fit, or other tokens than the LM's.
    """
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


def save_adapter(model: PeftModel, lm: str, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the adapter of a model to a folder, its weights first: equal adapters are equal files.

    Args:
        lm: the name of the model below; the adapter's settings name it as the Hub does, not by where it lies here.
        tokenizer: it is written too if its chat template is not the model's own, as with template arguments.
    """
    with _beside(out) as work:
        model.save_pretrained(str(work), save_embedding_layers=False)
        settings = json.loads((work / ADAPTER).read_text())
        settings["base_model_name_or_path"] = hub_name(lm)
        if isinstance(settings.get("target_modules"), list):
            settings["target_modules"] = sorted(settings["target_modules"])
        write_bytes(out / ADAPTER_WEIGHTS, (work / ADAPTER_WEIGHTS).read_bytes())
        write_bytes(out / ADAPTER, (as_json(settings, indent=2) + "\n").encode())
    if _own_chat_template(lm) not in (None, chat_template(tokenizer)):
        _save(out, tokenizer)


def _own_chat_template(lm: str) -> str | None:
    """Return the chat template of a model of that name; None if there is none of that name."""
    try:
        return chat_template(load_tokenizer(lm))
    except ModelError:
        return None


def save_whole(lm: LanguageModel, out: Path) -> None:
    """Write a whole model and its tokenizer to a folder."""
    _save(out, lm.model, lm.tokenizer)


def _save(out: Path, *parts: PreTrainedModel | PreTrainedTokenizerBase) -> None:
    """Write what transformers saves of these, file by file."""
    with _beside(out) as work:
        with quiet_transformers():
            for part in parts:
                part.save_pretrained(work)
        for path in sorted(filter(Path.is_file, work.iterdir())):
            write_bytes(out / path.name, path.read_bytes())


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Give a folder in `out` that is gone afterwards, for what is then written to `out` whole."""
    work = Path(tempfile.mkdtemp(prefix=".saving-", dir=out))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def hub_name(lm: str) -> str:
    """Return what others know a model as: the Hub's name of an embedded one, else its own."""
    return HUB.get(lm, lm)


def how_to_load(lm: str, *, whole: bool = False) -> str:
    """Return the part of a policy's card that says how it is used.

    Args:
        lm: the name of the model that it was trained from.
        whole: it is no adapter.
    """
    elsewhere = f"""```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{hub_name(lm)}"), "this-folder")
```
"""
    if whole:
        elsewhere = "transformers and all that builds on it load the folder as any other model.\n"
    elif lm in HUB:
        elsewhere += f"\nIt was trained on weights of 4 bits of `{hub_name(lm)}`; on others it is nearly the same.\n"
    return f"""## Use

```python
import midcourse

lm = midcourse.LanguageModel.load("this-folder")
```

On the command line it is `--lm this-folder`, or `midcourse compare --methods policy=this-folder` beside what guides.
{elsewhere}"""
