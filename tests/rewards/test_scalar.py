"""The scalar reward: scores, candidate rewards, saving and loading, refusals, and its export."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from midcourse.lm.language_model import LanguageModel
from midcourse.lm.load import ModelError
from midcourse.lm.prefix_cache import pad
from midcourse.lm.prompt import Prefix, PromptError
from midcourse.rewards.backbone import Tuning, final_norm_of, layers_of
from midcourse.rewards.info import RewardError, RewardInfo
from midcourse.rewards.scalar import RewardModel, padding_token
from midcourse.testing import (
    ARCHITECTURES,
    CONTEXT,
    EOS,
    assert_reload_is_bit_equal,
    byte_tokenizer,
    randomise,
    tiny_language_model,
    tiny_reward,
)
from tests.pace import slow_except

PROMPTS = ["The ferry was late, and", "A", "żółć"]
RESPONSES = [" we loved it.", " no", ""]
TUNINGS = ["head", "last:1", "lora:2", "lora:2:1", "all"]


def trained(folder: str, tune: str = "head", **settings) -> RewardModel:
    """A reward as training would leave it: every weight that is trained is another than before."""
    settings = {"template": "raw", "layers": 2, "device": "cpu", "dtype": "float64", **settings}
    reward = RewardModel.create(folder, tune=tune, **settings)
    randomise(reward, 3)
    return reward.eval()


# Tuning


@pytest.mark.parametrize(
    ("text", "want", "written"),
    [
        ("head", Tuning("head"), "head"),
        ("last", Tuning("last", 2), "last:2"),
        ("last:3", Tuning("last", 3), "last:3"),
        ("lora", Tuning("lora", 8), "lora:8"),
        ("lora:16", Tuning("lora", 16), "lora:16"),
        ("lora:16:3", Tuning("lora", 16, 3), "lora:16:3"),
        ("all", Tuning("all"), "all"),
    ],
)
def test_tuning(text, want, written):
    assert Tuning.parse(text) == want
    assert str(want) == written
    assert Tuning.parse(written) == want


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("head", ["head", "last:1", "last:2", "lora:4", "lora:4:2", "lora:8", "all"]),
        ("last:1", ["last:1", "last:2", "all"]),
        ("last:2", ["last:2", "all"]),
        ("lora:4", ["lora:4"]),
        ("lora:4:2", ["lora:4:2"]),
        ("all", ["all"]),
    ],
)
def test_training_may_go_on_with_a_tuning_that_stores_all_that_was_trained(old, new):
    known = ["head", "last:1", "last:2", "lora:4", "lora:4:2", "lora:8", "all"]
    assert [tune for tune in known if Tuning.parse(tune).covers(Tuning.parse(old))] == new


@pytest.mark.parametrize(
    "text",
    [
        "",
        "most",
        "head:1",
        "all:2",
        "last:0",
        "last:-1",
        "last:x",
        "lora:1.5",
        "lora:8:0",
        "lora:8:1:1",
        "last:1:2",
        "Head",
        " head",
    ],
)
def test_unknown_tuning(text):
    want = f"tune {text!r} is unknown; use head, last:N, lora, lora:RANK, lora:RANK:LAYERS or all"
    with pytest.raises(RewardError, match=re.escape(want)):
        Tuning.parse(text)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tune", TUNINGS)
def test_what_is_trained(architecture, tune):
    reward = tiny_reward(architecture, tune=tune)
    names = {name for name, parameter in reward.named_parameters() if parameter.requires_grad}
    assert "head.weight" in names
    rest = names - {"head.weight"}
    if tune == "head":
        assert not rest
    elif tune == "last:1":
        last, norm = layers_of(reward.backbone)[-1], final_norm_of(reward.backbone)
        assert len(rest) == len([*last.parameters(), *norm.parameters()])
    elif tune.startswith("lora"):
        assert rest and all("lora_" in name for name in rest)
        numbers = {int(part) for name in rest for part in name.split(".") if part.isdecimal()}
        assert numbers == ({1} if tune == "lora:2:1" else {0, 1})
    else:
        assert len(rest) == len(list(reward.backbone.parameters()))


def test_no_dropout_in_training():
    reward = tiny_reward("gpt2", tune="all").train()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(reward(input_ids=ids), reward(input_ids=ids))


def test_layers_and_norm_that_are_not_found():
    with pytest.raises(RewardError, match="no list of layers found in Linear; use --tune head, lora or all"):
        layers_of(torch.nn.Linear(1, 1))
    assert final_norm_of(torch.nn.Linear(1, 1)) is None  # OPT-350m has none


# Creating


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_reward_is_0_everywhere(architecture, model_folder):
    folder = model_folder(architecture)
    reward = RewardModel.create(folder, template="chat", layers=2, tune="last:1", device="cpu", dtype="float64")
    assert reward.score(["Hi"], ["yes"])[0].rewards == (0.0,) * 4
    assert reward.info == RewardInfo(
        backbone=folder,
        backbone_fingerprint=reward.info.backbone_fingerprint,
        layers=2,
        tune="last:1",
        template="chat",
        objective="prefix",
        eos_token_id=257,
        eos_token_ids=(257,),
        tokenizer=tiny_reward().info.tokenizer,
        chat_template=tiny_reward(template="chat").info.chat_template,
        backbone_layers=3,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_truncated_backbone_is_the_first_layers(architecture, model_folder):
    reward = trained(model_folder(architecture))
    lm = tiny_language_model(architecture)
    ids = torch.tensor([list(b"The ferry was late")])
    hidden = []
    layers_of(lm.model.base_model)[1].register_forward_hook(lambda module, inputs, output: hidden.append(output))
    with torch.inference_mode():
        lm.model(ids)
        want = reward.read(reward.backbone.get_submodule(norm_name(architecture))(hidden[0]))
        torch.testing.assert_close(reward(input_ids=ids), want, atol=1e-10, rtol=0)


def norm_name(architecture: str) -> str:
    return "ln_f" if architecture == "gpt2" else "norm"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": 0}, "layers 0 is not between 1 and the 3 that"),
        ({"layers": 4}, "layers 4 is not between 1 and the 3 that"),
        ({"tune": "last:4"}, "tune last:4 trains more than the 3 layers there are"),
        ({"tune": "some"}, "tune 'some' is unknown"),
    ],
)
def test_impossible_rewards(settings, words, model_folder):
    with pytest.raises(RewardError, match=re.escape(words)):
        RewardModel.create(model_folder(), **{"template": "raw", "tune": "head", **settings})


def test_tokenizer_without_eos(model_folder):
    folder = model_folder()
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="has no EOS token, which ends a finished response"):
        RewardModel.create(folder, template="raw")


# Scores


def test_score_by_hand():
    reward = tiny_reward()
    (score,) = reward.score(["The"], [" é"])
    assert score.token_ids == (32, 0xC3, 0xA9, 257)
    assert score.texts == (" ", "\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}", EOS)
    with torch.inference_mode():
        hidden = reward.backbone(torch.tensor([[*b"The \xc3\xa9", 257]])).last_hidden_state[0, 3:]
        want = hidden @ reward.head.weight[0]
    assert score.rewards == pytest.approx(want.tolist(), abs=1e-12)


def test_unfinished_response_has_no_eos():
    reward = tiny_reward()
    (whole,) = reward.score(["The"], [" sea"])
    (cut,) = reward.score(["The"], [" sea"], finished=False)
    assert cut.token_ids == whole.token_ids[:-1] == tuple(b" sea")
    assert cut.rewards == pytest.approx(whole.rewards[:-1], abs=1e-12)
    assert reward.score(["The"], [""], finished=False)[0].rewards == ()


def test_scores_keep_their_order_and_batches_change_nothing():
    reward = tiny_reward()
    prompts = ["a" * n for n in (9, 1, 5, 3, 7)]
    responses = ["b" * n for n in (2, 8, 1, 4, 4)]
    want = reward.score(prompts, responses)
    assert [len(score.rewards) for score in want] == [3, 9, 2, 5, 5]
    for batch_size in (1, 2, 3):
        for a, b in zip(reward.score(prompts, responses, batch_size=batch_size), want, strict=True):
            assert a.rewards == pytest.approx(b.rewards, abs=1e-10)


def test_score_refuses_unequal_numbers():
    with pytest.raises(ValueError, match="shorter"):
        tiny_reward().score(["a", "b"], ["c"])


def test_score_refuses_what_does_not_fit():
    reward = tiny_reward()
    assert reward.score(["x" * 200], ["y" * (CONTEXT - 201)])
    want = f"prompt and response have {CONTEXT + 1} tokens, the context {CONTEXT}; shorten them"
    with pytest.raises(PromptError, match=want):
        reward.score(["x" * 200], ["y" * (CONTEXT - 200)])
    with pytest.raises(PromptError, match="takes a text, not a list of messages"):
        reward.score([[{"role": "user", "content": "Hi"}]], ["yes"])


def test_pad_on_the_right():
    ids, mask = pad([[1, 2, 3], [4]], torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_later_tokens_and_padding_are_invisible(architecture):
    reward = tiny_reward(architecture)
    ids = torch.tensor([list(b"The ferry was"), [257] * 13])
    want = reward(input_ids=ids)[0, :8]
    changed = ids.clone()
    changed[0, 8:] = 257
    for other in (reward(input_ids=changed), reward(input_ids=changed, attention_mask=torch.arange(13) < 8 + ids * 0)):
        torch.testing.assert_close(other[0, :8], want, atol=1e-10, rtol=0)


def test_pad_that_is_eos_changes_nothing():
    reward = tiny_reward()
    want = reward.score(PROMPTS, RESPONSES)
    reward.tokenizer.pad_token = EOS
    assert reward.score(PROMPTS, RESPONSES) == want


# Candidate rewards


@torch.inference_mode()
def test_every_eos_is_the_eos_of_training():
    reward = tiny_reward(more_eos=[10, 0])
    rewards = reward.start([Prefix("The", list(b"The"))], 1, 4).candidate_rewards(torch.tensor([[257, 10, 0, 11]]))[0]
    assert rewards[0] == rewards[1] == rewards[2] != rewards[3]
    assert rewards[0].item() == pytest.approx(reward.score(["The"], [""])[0].rewards[0], abs=1e-10)


def test_rewards_are_in_float32_at_least():
    reward = tiny_reward(dtype=torch.bfloat16)
    assert reward.score_ids([([1], [2])])[0].dtype == torch.float32
    assert reward.start([Prefix("", [1])], 1, 1).candidate_rewards(torch.tensor([[2]])).dtype == torch.float32


def test_bind_reads_the_same_tokens_as_they_are():
    reward = tiny_reward("gpt2")
    assert reward.bind(tiny_language_model("qwen3")) is reward


def test_bind_compares_chat_templates_where_one_was_used():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template + " "
    other = LanguageModel(tiny_language_model().model, tokenizer, "another")
    tiny_reward().bind(other)
    with pytest.raises(RewardError, match="trained with the chat template of tiny llama, another has another"):
        tiny_reward(template="chat").bind(other)


def test_bind_refuses_ends_of_texts_that_training_did_not_know():
    lm = tiny_language_model()
    lm.model.generation_config.eos_token_id = [257, 65]
    tiny_reward(more_eos=[65]).bind(lm)
    with pytest.raises(RewardError, match=r"tiny llama also ends texts with the token ids \[65\]"):
        tiny_reward().bind(lm)


# Saving and loading


@pytest.mark.parametrize("architecture", slow_except(["llama", "gemma3"], ARCHITECTURES))
@pytest.mark.parametrize("tune", TUNINGS)
def test_reload_is_bit_equal(architecture, tune, model_folder, tmp_path):
    reward = trained(model_folder(architecture, more_eos=[10]), tune, dtype="float32", template="chat")
    assert_reload_is_bit_equal(reward, tmp_path / "reward", PROMPTS, RESPONSES)
    loaded = RewardModel.load(tmp_path / "reward")
    assert loaded.info == reward.info
    assert loaded.info.eos_token_ids == (10, 257)
    assert loaded.trained_state().keys() == reward.trained_state().keys()


@pytest.mark.parametrize("tune", TUNINGS)
def test_bfloat16_reload_is_bit_equal(tune, model_folder, tmp_path):
    reward = trained(model_folder(), tune, dtype="bfloat16")
    assert_reload_is_bit_equal(reward, tmp_path / "reward", PROMPTS, RESPONSES)


def test_files_of_a_saved_reward(model_folder, tmp_path):
    folder = model_folder()
    files = {}
    for tune in TUNINGS:
        trained(folder, tune).save(tmp_path / tune)
        files[tune] = sorted(str(path.relative_to(tmp_path / tune)) for path in (tmp_path / tune).rglob("*"))
    small = ["midcourse.json", "reward.safetensors"]
    assert files["head"] == files["last:1"] == files["lora:2"] == small
    assert [name for name in files["all"] if "/" not in name] == ["backbone", *small]
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".pth")) for names in files.values() for name in names)
    assert load_file(tmp_path / "head" / "reward.safetensors").keys() == {"head.weight"}


def test_reward_with_everything_trained_needs_no_backbone(model_folder, tmp_path):
    reward = trained(folder := model_folder(), "all")
    reward.save(tmp_path / "reward")
    shutil.rmtree(folder)
    assert RewardModel.load(tmp_path / "reward", dtype="float64").score(["A"], ["b"]) == reward.score(["A"], ["b"])


def test_save_replaces_an_earlier_reward(model_folder, tmp_path):
    folder = model_folder()
    trained(folder, "all").save(tmp_path / "reward")
    trained(folder, "head").save(tmp_path / "reward")
    assert sorted(path.name for path in (tmp_path / "reward").iterdir()) == ["midcourse.json", "reward.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "reward"]


@pytest.fixture
def saved(model_folder, tmp_path) -> Path:
    """A saved reward beside its backbone."""
    trained(model_folder()).save(tmp_path / "reward")
    return tmp_path / "reward"


def test_other_weights_are_refused(saved, model_folder):
    model_folder(seed=1)
    want = r"was trained on other weights than .*model has now \(fingerprint [0-9a-f]{16}\); restore them or train"
    with pytest.raises(RewardError, match=want):
        RewardModel.load(saved)


def test_missing_backbone_is_named(saved):
    shutil.rmtree(saved.parent / "model")
    with pytest.raises(ModelError, match=r"no model '.*model' in this folder"):
        RewardModel.load(saved)


def test_other_tokenizer_on_disk_is_refused(saved):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(saved.parent / "model")
    want = "was trained with another tokenizer than .*model has now; restore it or train the reward again"
    with pytest.raises(RewardError, match=want):
        RewardModel.load(saved)


def test_folder_that_is_no_reward(tmp_path):
    want = "is not a reward: it has no midcourse.json; name a folder that midcourse train wrote"
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RewardError, match=want):
            RewardModel.load(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b'{"format": 1}', b'{"format": 1, "eos_token_ids": null}', b"\xff\xfe{}"]
)
def test_damaged_description(saved, content):
    (saved / "midcourse.json").write_bytes(content)
    with pytest.raises(RewardError, match=r"midcourse.json is damaged \(.*\); train the reward again") as caught:
        RewardModel.load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers", "x"),
        ("layers", True),
        ("backbone_layers", None),
        ("eos_token_id", None),
        ("eos_token_ids", ["x"]),
        ("reward_weight", "a"),
        ("head", 3),
        ("backbone", None),
        ("template", []),
        ("objective_settings", "x"),
        ("calibration", [1]),
    ],
)
def test_description_with_a_value_of_another_kind(saved, name, value):
    fields = json.loads((saved / "midcourse.json").read_text())
    (saved / "midcourse.json").write_text(json.dumps({**fields, name: value}))
    with pytest.raises(RewardError, match=rf"midcourse.json is damaged \({name} is .*\); train the reward again"):
        RewardModel.load(saved)


def test_description_with_unknown_field(saved):
    fields = json.loads((saved / "midcourse.json").read_text())
    (saved / "midcourse.json").write_text(json.dumps({**fields, "colour": "red"}))
    with pytest.raises(RewardError, match=r"midcourse.json is damaged .*colour"):
        RewardModel.load(saved)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_format(saved, version):
    fields = json.loads((saved / "midcourse.json").read_text())
    (saved / "midcourse.json").write_text(json.dumps({**fields, "format": version}))
    want = f"midcourse.json has format {version!r}, this release reads 1; train it again"
    with pytest.raises(RewardError, match=want):
        RewardModel.load(saved)


def test_missing_tensors(saved):
    (saved / "reward.safetensors").unlink()
    with pytest.raises(RewardError, match=r"reward.safetensors cannot be read \(.*\); train the reward again"):
        RewardModel.load(saved)


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_truncated_tensors(saved, size):
    path = saved / "reward.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RewardError, match=r"reward.safetensors cannot be read \(.*\); train the reward again"):
        RewardModel.load(saved)


@pytest.mark.parametrize(
    "state",
    [{}, {"head.weight": torch.zeros(1, 7)}, {"head.weight": torch.zeros(1, 32), "head.bias": torch.zeros(1)}],
    ids=["none", "other shape", "more"],
)
def test_other_tensors(saved, state):
    save_file(state, saved / "reward.safetensors")
    with pytest.raises(RewardError, match=r"holds other tensors than its midcourse.json announces; train the reward"):
        RewardModel.load(saved)


# Export


@pytest.mark.parametrize("architecture", slow_except(["llama", "gemma3"], ARCHITECTURES))
@pytest.mark.parametrize("tune", ["head", "lora:2", "all"])
def test_export_is_read_by_transformers_alone(architecture, tune, model_folder, tmp_path):
    reward = trained(model_folder(architecture), tune, dtype="float32", template="chat")
    reward.export(tmp_path / "export")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        + response
        + tokenizer.eos_token
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert not batch["attention_mask"].all()
    with torch.inference_mode():
        have = model(**batch).logits[:, 0]
    want = [score.rewards[-1] for score in reward.score(PROMPTS, RESPONSES)]
    assert have.tolist() == pytest.approx(want, abs=1e-5)


def test_export_where_pad_is_eos(model_folder, tmp_path):
    folder = model_folder()
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = EOS
    tokenizer.save_pretrained(folder)
    reward = trained(folder)
    reward.export(tmp_path / "export")
    assert reward.tokenizer.pad_token == EOS
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["pad_token_id"] == AutoTokenizer.from_pretrained(tmp_path / "export").pad_token_id != 257


def test_export_leaves_the_reward_as_it_was(model_folder, tmp_path):
    reward = trained(model_folder(), "lora:2")
    want = reward.score(PROMPTS, RESPONSES)
    reward.export(tmp_path / "export")
    assert reward.score(PROMPTS, RESPONSES) == want
    assert_reload_is_bit_equal(reward, tmp_path / "reward", PROMPTS, RESPONSES)


def test_export_without_sequence_classification():
    from transformers import AutoModel, CohereConfig

    sizes = {"vocab_size": 259, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    backbone = AutoModel.from_config(CohereConfig(num_attention_heads=2, **sizes))
    reward = RewardModel(backbone, byte_tokenizer(), replace(tiny_reward().info, layers=1))
    with pytest.raises(RewardError, match="no sequence classification for cohere; it cannot be exported"):
        reward.export("nowhere")
    assert not Path("nowhere").exists()


def test_padding_token():
    tokenizer = byte_tokenizer()
    assert padding_token(tokenizer) == "<|pad|>"
    tokenizer.pad_token = EOS
    assert padding_token(tokenizer) == "<|im_start|>"
    tokenizer.bos_token = None
    assert padding_token(tokenizer) == "<|padding|>"  # a new one
