"""What is loaded: no code of a folder is run, and no weight is left to chance."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    ByT5Tokenizer,
)

from midcourse.decode.engine import generate
from midcourse.lm.caches import UnsupportedModelError
from midcourse.lm.language_model import LanguageModel, context_length
from midcourse.lm.load import (
    LoadError,
    MissingWeightsError,
    ModelError,
    adapter_base,
    load_config,
    load_tokenizer,
)
from midcourse.lm.policy import load_policy, save_adapter
from midcourse.rewards.classifier import ClassifierReward
from midcourse.rewards.contract import Text
from midcourse.rewards.encoder import EncoderReward
from midcourse.rewards.implicit import ImplicitReward
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward, other_backbone
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trunk import TrunkReward
from midcourse.rewards.vocabulary import VocabularyReward
from midcourse.testing import ARCHITECTURES, byte_tokenizer, randomise, tiny_config, tiny_language_model
from tests.encoders import CONFIGS, encoder_folder

CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer")
LAYER = "model.layers.1.mlp.down_proj.weight"


def backbone(name: str) -> RewardModel:
    return RewardModel.create(name, template="raw", tune="head")


LOADERS: dict[str, Callable[[str], Any]] = {
    "LM": LanguageModel.load,
    "policy": lambda name: load_policy(name, tiny_language_model()),
    "reward": load_reward,
    "vocabulary": VocabularyReward.load,
    "backbone": backbone,
}


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a file of JSON, or of tensors."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})


def classifier_folder(folder: Path, auto_class: Any = AutoModelForSequenceClassification, **settings: Any) -> str:
    """A tiny Llama with another head than a language model's."""
    config = tiny_config("llama", layers=2)
    config.num_labels = 1
    for name, value in settings.items():
        setattr(config, name, value)
    model = auto_class.from_config(config)
    randomise(model, 3)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


# Code


def with_code(folder: Path, place: str) -> Path:
    """Let a model's folder name Python code of its own, which leaves a mark when it runs."""
    mark = folder / "it-ran"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own:\n    pass\n")
    if place == "tokenizer":
        own = {"auto_map": {"AutoTokenizer": ["code.Own", "code.Own"]}, "tokenizer_class": "OwnTokenizer"}
        edit(folder / "tokenizer_config.json", lambda content: content.update(own))
        return mark
    kind = {"architecture": {"model_type": "unheard"}, "head": {"model_type": "vit"}, "known": {}}[place]
    own = {"auto_map": dict.fromkeys(CLASSES, "code.Own"), **kind}
    edit(folder / "config.json", lambda content: content.update(own))
    return mark


@pytest.mark.parametrize("place", ["architecture", "head", "tokenizer"])
@pytest.mark.parametrize("loader", LOADERS)
def test_code_in_a_folder_is_refused_and_never_asked_about(loader, place, model_folder, monkeypatch, capsys):
    folder = model_folder()
    mark = with_code(Path(folder), place)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ModelError) as caught:
        LOADERS[loader](folder)
    assert not mark.exists()
    assert capsys.readouterr().out == ""
    # Of an architecture that transformers has, the layers would be read by its own class: there they are missing.
    if (loader, place) != ("backbone", "head"):
        assert str(caught.value) == (
            f"{folder} cannot be loaded: it comes with Python code of its own (auto_map), which is not run; "
            "use a model that transformers has itself, or, for a language model that you trust, --trust-remote-code"
        )


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def own_architecture(folder: Path) -> Path:
    """Let a tiny Llama's folder say that it is of an architecture whose code lies beside it."""
    (folder / "own.py").write_text(OWN_CODE)
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    edit(folder / "config.json", lambda content: content.update(own))
    return folder


def test_code_that_is_trusted_runs_for_the_language_model_alone(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = model_folder()
    want = generate(LanguageModel.load(folder), ["ab"], method="plain", max_new_tokens=8)[0].text
    own_architecture(Path(folder))
    lm = LanguageModel.load(folder, trust_remote_code=True)
    assert type(lm.model).__name__ == "Own"
    assert generate(lm, ["ab"], method="plain", max_new_tokens=8)[0].text == want
    with pytest.raises(LoadError, match="which is not run"):
        load_reward(folder)


def test_an_architecture_that_transformers_has_is_loaded_by_its_own_class(model_folder, monkeypatch):
    folder = model_folder()
    want = LanguageModel.load(folder).model.state_dict()
    mark = with_code(Path(folder), "known")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    found = LanguageModel.load(folder).model
    assert type(found).__module__.startswith("transformers.")
    assert all(torch.equal(tensor, want[name]) for name, tensor in found.state_dict().items())
    assert not mark.exists()


@pytest.mark.parametrize("place", ["architecture", "tokenizer"])
def test_code_in_a_saved_rewards_backbone_is_refused(place, model_folder, tmp_path, monkeypatch):
    RewardModel.create(model_folder(), template="raw", tune="all").save(tmp_path / "reward")
    mark = with_code(tmp_path / "reward" / "backbone", place)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(LoadError, match="backbone cannot be loaded: it comes with Python code of its own"):
        load_reward(tmp_path / "reward")
    assert not mark.exists()


# Weights


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole_checkpoints_are_loaded_without_a_word(architecture, model_folder, capsys):
    folder = model_folder(architecture)
    capsys.readouterr()  # bars of what was saved
    for loader in LOADERS.keys() - {"policy"}:
        LOADERS[loader](folder)
    RewardModel.create(folder, template="raw", layers=1, tune="head")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_an_encoder_may_get_a_new_head(auto_class, kind, tmp_path, capsys):
    folder = encoder_folder(tmp_path, kind)
    config = load_config(str(folder))
    config.num_labels = 3
    model = auto_class.from_config(config)
    randomise(model, 7)
    model.save_pretrained(folder)
    capsys.readouterr()
    reward = EncoderReward.create(str(folder))
    assert reward.backbone.config.num_labels == 1
    assert capsys.readouterr() == ("", "")


def test_an_encoder_that_lacks_a_layer_is_refused(tmp_path):
    folder = encoder_folder(tmp_path)
    edit(folder / "model.safetensors", lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(MissingWeightsError, match=r"lacks 1 tensor \(bert\.encoder\.layer\.1\.output\.dense\.weight\)"):
        EncoderReward.create(str(folder))


@pytest.mark.parametrize("loader", LOADERS)
def test_a_checkpoint_that_lacks_a_tensor_is_refused(loader, model_folder):
    folder = model_folder()
    edit(Path(folder) / "model.safetensors", lambda tensors: tensors.pop(LAYER))
    with pytest.raises(MissingWeightsError) as caught:
        LOADERS[loader](folder)
    name, model = (LAYER.removeprefix("model."), "LlamaModel") if loader == "backbone" else (LAYER, "LlamaForCausalLM")
    assert str(caught.value) == (
        f"{folder} cannot be used: it lacks 1 tensor ({name}) of {model}; restore its weights or use another model"
    )


def test_layers_that_are_not_wanted_may_be_missing(model_folder):
    folder = model_folder()
    edit(Path(folder) / "model.safetensors", lambda tensors: tensors.pop(LAYER))
    assert RewardModel.create(folder, template="raw", layers=1, tune="head").info.layers == 1


def test_many_missing_tensors_are_counted(model_folder):
    folder = model_folder()
    edit(Path(folder) / "config.json", lambda config: config.update(num_hidden_layers=5))
    with pytest.raises(MissingWeightsError, match=r"lacks 18 tensors \(model\.layers\.3\.input_layernorm\..*more"):
        LanguageModel.load(folder)


@pytest.mark.parametrize("loader", ["LM", "policy", "vocabulary"])
@pytest.mark.parametrize(
    ("auto_class", "said"),
    [
        (AutoModelForTokenClassification, r"a token classifier \(LlamaForTokenClassification\)"),
        (AutoModelForSequenceClassification, r"a sequence classifier \(LlamaForSequenceClassification\)"),
        (AutoModel, r"a model without a head \(LlamaModel\)"),
    ],
)
def test_other_kinds_of_checkpoints_are_no_language_models(auto_class, said, loader, tmp_path):
    folder = classifier_folder(tmp_path / "model", auto_class)
    want = rf"lacks 1 tensor \(lm_head\.weight\) of LlamaForCausalLM, and seems to be {said}; use a causal LM"
    with pytest.raises(MissingWeightsError, match=want):
        LOADERS[loader](folder)


def test_a_token_classifier_has_layers_for_a_reward(tmp_path, capsys):
    folder = classifier_folder(tmp_path / "model", AutoModelForTokenClassification)
    want = load_file(f"{folder}/model.safetensors")[LAYER]
    capsys.readouterr()
    assert torch.equal(backbone(folder).backbone.layers[1].mlp.down_proj.weight, want)
    assert capsys.readouterr().err == ""


def test_tied_weights_are_not_missing(tmp_path):
    config = tiny_config("llama", 2)
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = LanguageModel.load(str(tmp_path)).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_value_head_is_named(model_folder, capsys):
    folder, head = model_folder(), {"v_head.summary.weight": torch.zeros(1, 32)}
    edit(Path(folder) / "model.safetensors", lambda tensors: tensors.update(head))
    LanguageModel.load(folder)
    said = capsys.readouterr().err
    assert "1 tensor (v_head.summary.weight)" in said and said.endswith("and seems to be a model with a value head\n")
    backbone(folder)
    assert capsys.readouterr().err == ""


def test_tensors_of_layers_without_a_place_are_named(model_folder, capsys):
    folder = model_folder()
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}
    edit(Path(folder) / "model.safetensors", lambda tensors: tensors.update(bias))
    for load in (LanguageModel.load, backbone):
        load(folder)
        assert "has 1 tensor (model.layers.0.self_attn.q_proj.bias) that Llama" in capsys.readouterr().err


def torn_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {LAYER: "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def shortened(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def reshaped(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(vocab_size=300))


DAMAGE = {
    "a torn shard": (torn_shard, r"transformers cannot load .* \(No such file .*00002\.safetensors\); use another"),
    "a short file": (shortened, r"transformers cannot load .* \(Error while deserializing header: .*\); use another"),
    "pickled weights": (
        pickled,
        r"transformers cannot load .* \(Error no file named model\.safetensors .*\); use .* convert",
    ),
    "other sizes": (reshaped, r"other sizes than its config\.json announces \(.* is \(259, 32\), not \(300, 32\)\)"),
    "no number of layers": (
        lambda folder: edit(folder / "config.json", lambda config: config.update(num_hidden_layers="two")),
        r"transformers cannot load .* \(.*Field 'num_hidden_layers' expected int, got str.*\); use another model",
    ),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_in_a_sentence(damage, loader, model_folder):
    folder = model_folder()
    do, words = DAMAGE[damage]
    do(Path(folder))
    with pytest.raises(LoadError, match=words) as caught:
        LOADERS[loader](folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_tokenizer_is_refused_in_a_sentence(model_folder):
    folder = model_folder()
    (Path(folder) / "tokenizer.json").write_text('{"version"')
    with pytest.raises(ModelError, match=r"no tokenizer found for .* \(.*\); save the model's tokenizer in its folder"):
        load_tokenizer(folder)
    with pytest.raises(ModelError, match="no model 'nowhere' in this folder"):
        load_tokenizer("nowhere")


# What is another thing than it is taken for


@pytest.mark.parametrize("kind", [AutoModelForTokenClassification, AutoModelForSequenceClassification])
def test_layers_that_give_numbers_are_no_language_model(tmp_path, kind):
    """With tied embeddings such a checkpoint lacks nothing that a causal LM needs."""
    folder = classifier_folder(tmp_path / "model", kind, tie_word_embeddings=True)
    with pytest.raises(LoadError, match=r"a causal LM: it has [12] tensors? \(score.*and seems to be a .* classifier"):
        LanguageModel.load(folder)


@pytest.mark.parametrize("architecture", ["LlamaForRewardModel", "LlamaForCausalLM"])
def test_a_model_with_a_head_of_its_own_is_no_reward_of_the_vocabulary(model_folder, architecture):
    folder = model_folder()
    edit(Path(folder) / "config.json", lambda config: config.update(architectures=[architecture]))
    edit(Path(folder) / "model.safetensors", lambda tensors: tensors.update({"v_head.summary.weight": torch.ones(1)}))
    assert LanguageModel.load(folder)  # a policy is still one with the head of its values
    with pytest.raises(LoadError, match=r"1 tensor \(v_head.summary.weight\) of another head"):
        load_reward(folder)


@pytest.mark.parametrize("load", [LanguageModel.load, load_reward, backbone])
def test_a_token_without_an_embedding_is_named_when_a_text_has_it(model_folder, load):
    """Models of one family may share a tokenizer with tokens that only the larger ones have."""
    folder = model_folder()
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    found = load(folder)

    def use(text: str) -> Any:
        if isinstance(found, LanguageModel):
            return generate(found, [text], max_new_tokens=1, method="plain")
        return found.score([text], [" b"])

    assert use("a")
    with pytest.raises(ModelError, match=r"embeddings for \d+ tokens, and .* one beyond them, '<new>'; resize the"):
        use("a<new>")


@pytest.mark.parametrize("setting", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_layers_that_read_both_ways_are_refused(model_folder, setting):
    """A prefix's reward would know what follows."""
    folder = model_folder()
    edit(Path(folder) / "config.json", lambda config: config.update(setting))
    for load in (LanguageModel.load, backbone):
        with pytest.raises(UnsupportedModelError, match="reads both ways"):
            load(folder)


def test_long_rope_is_read_as_far_as_its_angles_stay():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 24}
    config = tiny_config("llama", 2)
    assert context_length(config) > 24
    config.rope_parameters = {**config.rope_parameters, **rope}
    assert context_length(config) == 24


# Adapters


@pytest.fixture
def adapter(model_folder, tmp_path) -> tuple[LanguageModel, Path]:
    lm = LanguageModel.load(model_folder())
    model = get_peft_model(LanguageModel.load(lm.name).model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    randomise(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", lambda config: config.update(base_model_name_or_path=lm.name))
    return lm, tmp_path / "adapter"


def test_an_adapter_is_the_folders(adapter):
    lm, folder = adapter
    saved = load_file(folder / "adapter_model.safetensors")
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    change = 4 * saved[first.format("B")] @ saved[first.format("A")]  # lora_alpha / r is 8 / 2
    have = load_policy(str(folder), lm).model.model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(have, lm.model.model.layers[0].self_attn.q_proj.weight + change)


@torch.inference_mode()
def test_an_adapter_is_a_model_wherever_one_is_named(adapter, tmp_path):
    _, folder = adapter
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    merged = PeftModel.from_pretrained(LanguageModel.load(base).model, folder).merge_and_unload()
    name, ids = str(folder), torch.tensor([[72, 101, 108, 108]])
    want = merged(ids, output_hidden_states=True)
    lm = LanguageModel.load(name)
    torch.testing.assert_close(lm.model(ids).logits, want.logits)
    assert generate(lm, ["Hello"], max_new_tokens=4, method="plain")[0].steps
    logprobs = want.logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    reward = load_reward(name)
    assert isinstance(reward, VocabularyReward)
    torch.testing.assert_close(reward.score_ids([([72], [101, 108, 108])])[0], logprobs)
    pair = ImplicitReward.create(name, base, beta=1.0)
    plain = LanguageModel.load(base).model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(pair.score_ids([([72], [101, 108, 108])])[0], logprobs - plain)
    one = RewardModel.create(name, template="raw", layers=1, tune="last:1")
    torch.testing.assert_close(one.backbone(ids, output_hidden_states=True).hidden_states[0], want.hidden_states[0])
    below = merged.model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(one.backbone.layers[0].self_attn.q_proj.weight, below)
    one.save(tmp_path / "reward")
    assert one.score(["a"], ["b"]) == load_reward(tmp_path / "reward").score(["a"], ["b"])


def test_a_reward_on_an_adapter_knows_its_weights(adapter, tmp_path):
    """A trunk reward shares the weights of the very adapter that it was trained on, and of no other."""
    _, folder = adapter
    reward = TrunkReward.create(str(folder), template="raw", layers=1, head="trunk:2", tune="head")
    reward.save(tmp_path / "reward")
    lm = LanguageModel.load(str(folder))
    assert other_backbone(str(tmp_path / "reward"), lm) is None
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert other_backbone(str(tmp_path / "reward"), LanguageModel.load(base)) == str(folder)
    edit(folder / "adapter_model.safetensors", lambda tensors: [tensor.mul_(2) for tensor in tensors.values()])
    with pytest.raises(RewardError, match="weights"):
        load_reward(tmp_path / "reward")


def test_an_adapter_may_stand_on_another(adapter, tmp_path):
    _, folder = adapter
    below = LanguageModel.load(str(folder))
    model = get_peft_model(below.model, LoraConfig(r=1, target_modules=["k_proj"]))
    randomise(model, 4)
    ids = torch.tensor([[72, 101]])
    want = model(ids).logits
    (tmp_path / "upper").mkdir()
    save_adapter(model, str(folder), below.tokenizer, tmp_path / "upper")
    torch.testing.assert_close(LanguageModel.load(str(tmp_path / "upper")).model(ids).logits, want)
    edit(folder / "adapter_config.json", lambda config: config.update(base_model_name_or_path=str(tmp_path / "upper")))
    with pytest.raises(ModelError, match="names itself as the model that it is an adapter of"):
        LanguageModel.load(str(folder))


def test_an_adapter_of_a_classifier_is_its_reward(model_folder, tmp_path):
    base = model_folder()
    config = load_config(base)
    config.num_labels, config.pad_token_id = 1, byte_tokenizer().pad_token_id
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS"))
    randomise(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter/adapter_config.json", lambda found: found.update(base_model_name_or_path=base))
    reward = load_reward(tmp_path / "adapter")
    assert isinstance(reward, ClassifierReward)
    ids = [*reward.encode(Text("Hi", " you", finished=True))[0]]
    with torch.inference_mode():
        want = model.eval()(torch.tensor([ids])).logits.item()
    assert reward.rate([Text("Hi", " you", finished=True)]) == [pytest.approx(want, abs=1e-5)]


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({"r": 10**7}, r"its rank is 10000000, and its largest tensor has \d+ rows"),
        ({"r": "ten"}, "its rank is 'ten'"),
        ({"alpha_pattern": {"(.*)*z": 2}}, "its alpha_pattern has"),
        ({"layer_replication": [[0, 3]] * 300}, "its layer_replication cannot be merged"),
        ({"alora_invocation_tokens": [1, 2]}, "its alora_invocation_tokens cannot be merged"),
        ({"peft_type": "PROMPT_TUNING"}, "it is of kind 'PROMPT_TUNING', and LoRA adapters are what can be merged"),
    ],
)
def test_an_adapter_that_asks_for_more_than_it_holds_is_refused_at_once(adapter, changed, want):
    _, folder = adapter
    edit(folder / "adapter_config.json", lambda config: config.update(changed))
    with pytest.raises(LoadError, match=f"does not fit .* \\({want}"):
        LanguageModel.load(str(folder))


def test_patterns_of_an_adapters_modules_are_not_matched(adapter):
    """The tensors say which modules they are of; a regular expression might take for ever."""
    _, folder = adapter
    want = LanguageModel.load(str(folder)).model.state_dict()
    hostile: dict[str, Any] = {"target_modules": "(.*)*(.*)*(.*)*(.*)*(.*)*z$", "exclude_modules": "(([a-z0-9_.])+)+Z"}
    hostile["rank_pattern"] = {"((.*)*)*z": 2, "q_proj": 10**7}
    edit(folder / "adapter_config.json", lambda config: config.update(hostile))
    found = LanguageModel.load(str(folder)).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in want.items())


@pytest.mark.parametrize("kept", [[], ["embed_tokens", "lm_head"]])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
@torch.inference_mode()
def test_an_adapter_may_have_tokens_of_its_own(model_folder, tmp_path, kept):
    """Its embeddings are saved whole, by PEFT itself or as modules to save."""
    base = model_folder()
    model, tokenizer = LanguageModel.load(base).model, byte_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    model.resize_token_embeddings(len(tokenizer))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=kept or None))
    randomise(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter/adapter_config.json", lambda found: found.update(base_model_name_or_path=base))
    ids = torch.tensor([tokenizer("a<two>")["input_ids"]])
    lm = LanguageModel.load(str(tmp_path / "adapter"))
    torch.testing.assert_close(lm.model(ids).logits, model(ids).logits)
    assert generate(lm, ["<one>"], max_new_tokens=2, method="plain")[0].steps


@pytest.mark.parametrize("adapted", ["embed_tokens", "lm_head"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`")
@torch.inference_mode()
def test_an_adapter_of_one_end_of_a_tied_model_leaves_the_other(tmp_path, adapted):
    config = tiny_config("llama", 2)
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", adapted], ensure_weight_tying=False))
    randomise(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[72, 101, 108]])
    have = LanguageModel.load(str(tmp_path / "adapter")).model(ids).logits
    torch.testing.assert_close(have, model.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def test_ranks_that_differ_between_modules_are_those_of_the_tensors(model_folder, tmp_path):
    base = model_folder()
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], rank_pattern={r".*layers\.1\..*": 4})
    model = get_peft_model(LanguageModel.load(base).model, settings)
    randomise(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter/adapter_config.json", lambda found: found.update(base_model_name_or_path=base))
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[72, 101]])
    torch.testing.assert_close(LanguageModel.load(str(tmp_path / "adapter")).model(ids).logits, model(ids).logits)


def test_the_model_of_an_adapter_may_be_named_by_its_place_beside_it(adapter, tmp_path, monkeypatch):
    lm, folder = adapter
    beside = Path(os.path.relpath(lm.name, folder))
    assert str(beside).startswith("..")
    edit(folder / "adapter_config.json", lambda config: config.update(base_model_name_or_path=str(beside)))
    (tmp_path / "far/away").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "far/away")
    assert adapter_base(str(folder)) == str(folder / beside)
    assert LanguageModel.load(str(folder)).vocab_size == lm.vocab_size


@pytest.mark.parametrize("file", ["adapter_config.json", "midcourse_policy.json"])
def test_a_record_of_a_hundred_thousand_brackets(adapter, file):
    _, folder = adapter
    (folder / file).write_text("[" * 100_000)
    with pytest.raises(ModelError):
        LanguageModel.load(str(folder))


def test_an_adapter_that_lacks_a_tensor_or_has_too_many_is_refused(adapter):
    lm, folder = adapter
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    tensors = load_file(folder / "adapter_model.safetensors")
    others = [{key: value for key, value in tensors.items() if key != name}]
    others.append({**tensors, name.replace("layers.1", "layers.7"): tensors[name].clone()})
    want = r"the adapter in .* does not fit .* \(it lacks or has too much 1 tensor .*\); train it again"
    for other in others:
        save_file(other, folder / "adapter_model.safetensors")
        with pytest.raises(LoadError, match=want):
            load_policy(str(folder), lm)


def test_an_adapter_that_cannot_be_merged_is_refused(adapter):
    lm, folder = adapter
    kind = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    (folder / "adapter_config.json").write_text(json.dumps({**kind, "base_model_name_or_path": lm.name}))
    with pytest.raises(LoadError, match="does not fit") as caught:
        load_policy(str(folder), lm)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_python_code_is_refused(model_folder):
    folder = model_folder()
    for path in Path(folder).glob("tokenizer*"):
        path.unlink()
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"is ByT5Tokenizer, which is Python code .*; use a model whose tokenizer has"):
        LanguageModel.load(folder)
