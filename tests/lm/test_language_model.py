"""The language model: loaded from a folder, stepped over a batch of rows, and its identity."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, MambaConfig

from midcourse.lm.contract import CausalModel
from midcourse.lm.language_model import LanguageModel, context_length, eos_token_ids, tokenizer_fingerprint
from midcourse.lm.load import ModelError, load_config, load_generation_config, resolve_device, resolve_dtype
from midcourse.lm.weights import weights_fingerprint
from midcourse.testing import ARCHITECTURES, CONTEXT, assert_language_model_laws, byte_tokenizer, tiny_language_model

ROWS = [list(b"The ferry was late"), list(b"A"), list(b"under")]


def whole(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_rows_step_as_whole_forwards(architecture):
    lm = tiny_language_model(architecture)
    rows, going = lm.start(ROWS, 3), list(ROWS)
    for tokens in ([1, 2, 3], [7, 7, 7]):
        for have, ids in zip(rows.logprobs, going, strict=True):
            torch.testing.assert_close(have, whole(lm, ids), atol=1e-10, rtol=0)
        rows.step(torch.tensor(tokens))
        going = [[*ids, token] for ids, token in zip(going, tokens, strict=True)]
    rows.select([2, 0])
    going = [going[2], going[0]]
    torch.testing.assert_close(rows.logprobs[0], whole(lm, going[0]), atol=1e-10, rtol=0)
    rows.step(torch.tensor([5, 6]))
    torch.testing.assert_close(rows.logprobs[1], whole(lm, [*going[1], 6]), atol=1e-10, rtol=0)


def test_logprobs_are_a_distribution_in_float32_at_least():
    lm = tiny_language_model(dtype=torch.bfloat16)
    logprobs = lm.start(ROWS, 1).logprobs
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.exp().sum(1), torch.ones(3))


# Loading


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_load_from_a_folder(architecture, model_folder):
    folder = model_folder(architecture, more_eos=[10])
    lm = LanguageModel.load(folder, device="cpu", dtype="float64")
    made = tiny_language_model(architecture, more_eos=[10])
    torch.testing.assert_close(whole(lm, ROWS[0]), whole(made, ROWS[0]), atol=1e-12, rtol=0)
    assert not lm.model.training
    assert lm.name == folder
    assert lm.eos_token_ids == {257, 10}
    assert lm.context_length == CONTEXT
    assert tokenizer_fingerprint(lm.tokenizer) == tokenizer_fingerprint(made.tokenizer)


def test_dtype_auto_is_float32_on_the_cpu(model_folder):
    lm = LanguageModel.load(model_folder(), device="cpu")
    assert lm.model.dtype == torch.float32
    assert resolve_dtype("auto", torch.device("meta")) == "auto"
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_device():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "tpu"}, "device 'tpu' is not usable here; use 'auto' or 'cpu'"),
        ({"device": ""}, "device '' is not usable here; use 'auto' or 'cpu'"),
        ({"dtype": "float33"}, "dtype 'float33' is unknown; use auto, float32, bfloat16, float16 or float64"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"dtype": "load"}, "dtype 'load' is unknown"),
    ],
)
def test_unusable_settings(settings, words, model_folder):
    with pytest.raises(ModelError, match=re.escape(words)):
        LanguageModel.load(model_folder(), **settings)


@pytest.mark.parametrize("name", ["/no/such/folder", "nobody/nothing", "no such model"])
def test_no_such_model(name):
    want = (
        f"no model '{name}' in this folder, in the local Hub cache or on the Hub; use 'smollm2', a folder or a Hub id"
    )
    for load in (LanguageModel.load, load_config):
        with pytest.raises(ModelError, match=re.escape(want)):
            load(name)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"is a folder without config.json; name a model folder of transformers"):
        LanguageModel.load(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", None, "no tokenizer found for"),
        ("model.safetensors", b"\x08\0\0\0", "transformers cannot load"),
        ("config.json", b'{"model_type": "unheard"}', "transformers cannot load .*model type `unheard`"),
    ],
)
def test_damaged_folder(file, content, words, model_folder):
    folder = Path(model_folder())
    if content is None:
        for path in folder.glob("tokenizer*"):
            path.unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=words) as caught:
        LanguageModel.load(str(folder))
    assert "\n" not in str(caught.value)


# Ends and lengths


@pytest.mark.parametrize(
    ("generation", "want"), [(None, {257}), (7, {7, 257}), ([7, 257, 9], {7, 9, 257}), ([], {257})]
)
def test_eos_is_a_set(generation, want):
    config = GenerationConfig(eos_token_id=generation) if generation is not None else None
    assert eos_token_ids(config, byte_tokenizer()) == want


def test_eos_of_a_tokenizer_without_one():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = tokenizer.chat_template = None
    assert eos_token_ids(None, tokenizer) == frozenset()


def test_folder_without_generation_settings(model_folder):
    folder = model_folder()
    assert load_generation_config(folder).eos_token_id == [257]
    (Path(folder) / "generation_config.json").unlink()
    assert load_generation_config(folder) is None


def test_context_length_of_a_model_without_a_limit():
    assert context_length(tiny_language_model("gpt2").model.config) == CONTEXT
    assert context_length(MambaConfig()) >= 2**20


# Identity


def test_tokenizer_fingerprint_is_of_its_rules():
    want = tokenizer_fingerprint(byte_tokenizer())
    used = byte_tokenizer()
    used(["a", "longer"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(used) == want
    more = byte_tokenizer()
    more.add_tokens(["<|more|>"])
    assert tokenizer_fingerprint(more) != want


def test_weights_fingerprint_is_of_the_weights(model_folder):
    folder, same, other = model_folder(name="a"), model_folder(name="b"), model_folder(name="c", seed=1)
    assert weights_fingerprint(folder) == weights_fingerprint(same) != weights_fingerprint(other)


def test_weights_fingerprint_sees_each_tensor(model_folder):
    path = Path(model_folder()) / "model.safetensors"
    want, state = weights_fingerprint(str(path.parent)), load_file(path)
    for name in state:
        changed = {**state, name: state[name] + 1e-12}
        save_file(changed, path, metadata={"format": "pt"})
        assert weights_fingerprint(str(path.parent)) != want, name
    save_file(state, path, metadata={"format": "pt", "note": "the same weights"})
    assert weights_fingerprint(str(path.parent)) == want


def test_weights_fingerprint_sees_names_and_shapes(tmp_path):
    prints = set()
    for number, state in enumerate([{"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"b": torch.zeros(2, 3)}]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        save_file(state, folder / "model.safetensors")
        prints.add(weights_fingerprint(str(folder)))
    assert len(prints) == 3


def test_weights_fingerprint_needs_safetensors(model_folder):
    folder = model_folder()
    path = Path(folder) / "model.safetensors"
    path.write_bytes(b"\1\0")
    with pytest.raises(ModelError, match=r"model.safetensors is damaged .*; restore the model"):
        weights_fingerprint(folder)
    path.unlink()
    with pytest.raises(ModelError, match=r"has no safetensors weights; convert it with save_pretrained first"):
        weights_fingerprint(folder)


def test_config_is_that_of_the_text_model(model_folder):
    folder = model_folder("gemma3")
    assert load_config(folder).num_hidden_layers == 3
    (Path(folder) / "config.json").write_text(json.dumps({"model_type": "unheard"}))
    with pytest.raises(ModelError):
        load_config(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_contract_is_kept(architecture):
    lm = tiny_language_model(architecture, more_eos=(65,))
    assert isinstance(lm, CausalModel)
    prompts = [list(text.encode()) for text in ("The ferry was late, and", "A", "under")]
    assert_language_model_laws(lm, prompts, [1, 3])
    assert (lm.vocab_size, lm.device) == (259, lm.model.device)


def test_rows_with_states_join_rows_without():
    lm = tiny_language_model()
    plain, followed = lm.start([[65], [66, 67]], 4), lm.start([[68, 69]], 4, [2])
    plain.replace([0], followed)
    assert torch.equal(plain.states[2][0], followed.states[2][0])
    plain.step(torch.tensor([70, 70]))
    for place, ids in enumerate(([68, 69, 70], [66, 67, 70])):
        want = lm.start([ids], 4, [2])
        torch.testing.assert_close(plain.states[2][place], want.states[2][0], rtol=0, atol=1e-10)
        torch.testing.assert_close(plain.logprobs[place], want.logprobs[0], rtol=0, atol=1e-10)
