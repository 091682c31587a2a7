"""A reward of any kind from its name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from midcourse.rewards.classifier import ClassifierReward
from midcourse.rewards.contract import RewardError
from midcourse.rewards.named import kind_of_head, load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.vocabulary import VocabularyReward
from midcourse.testing import byte_tokenizer, tiny_config


def test_each_kind_is_known_by_its_folder(model_folder, tmp_path):
    reward = RewardModel.create(model_folder(), template="raw", tune="head", device="cpu")
    reward.save(tmp_path / "scalar")
    config = tiny_config("llama", 2)
    config.num_labels = 1
    classifier = AutoModelForSequenceClassification.from_config(config)
    classifier.save_pretrained(tmp_path / "classifier")
    byte_tokenizer().save_pretrained(tmp_path / "classifier")
    assert isinstance(load_reward(tmp_path / "scalar"), RewardModel)
    assert isinstance(load_reward(tmp_path / "classifier"), ClassifierReward)
    vocabulary = load_reward(model_folder(name="lm"), template="chat")
    assert isinstance(vocabulary, VocabularyReward)
    assert vocabulary.template == "chat"


def test_exported_reward_comes_back_as_a_classifier(model_folder, tmp_path):
    reward = RewardModel.create(model_folder(), template="raw", tune="head", device="cpu").eval()
    torch.nn.init.normal_(reward.head.weight)
    reward.export(tmp_path / "export")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["architectures"]
    assert isinstance(load_reward(tmp_path / "export"), ClassifierReward)


def test_what_is_no_reward_is_refused(tmp_path):
    with pytest.raises(RewardError, match="nowhere is no reward: neither a shipped one"):
        load_reward(tmp_path / "nowhere")
    with pytest.raises(RewardError, match=r"is not a reward: it has no midcourse\.json"):
        load_reward(tmp_path)


@pytest.mark.parametrize("head", ["scalar", "vocabulary", "trunk:4"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("cut", "reward.safetensors cannot be read"),
        ("garbage", "reward.safetensors cannot be read"),
        ("no tensors", "reward.safetensors cannot be read"),
        ("fewer", "holds other tensors than its midcourse.json announces; train the reward again"),
        ("other shapes", "holds other tensors than its midcourse.json announces; train the reward again"),
        ("cut description", r"midcourse\.json is damaged .*; train the reward again"),
        ("foreign model", "was trained on other weights than .* has now"),
    ],
)
def test_damaged_and_foreign_folders_are_refused(model_folder, tmp_path, head, damage, said):
    folder, objective = model_folder(), "farma" if head == "vocabulary" else "prefix"
    settings = {"template": "raw", "tune": "head", "objective": objective, "device": "cpu"}
    kind_of_head(head).create(folder, head=head, **settings).save(tmp_path / "reward")
    assert load_reward(tmp_path / "reward").template == "raw"
    tensors, description = (tmp_path / "reward" / name for name in ("reward.safetensors", "midcourse.json"))
    state = load_file(tensors)
    first = next(iter(state))
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif damage == "garbage":
        tensors.write_bytes(b"\xff" * 64)
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "fewer":
        save_file({name: tensor for name, tensor in state.items() if name != first}, tensors)
    elif damage == "other shapes":
        save_file({**state, first: state[first][:, :-1].contiguous()}, tensors)
    elif damage == "cut description":
        description.write_bytes(description.read_bytes()[:-20])
    else:
        model_folder(seed=9)  # in the place of the one that it was trained on
    with pytest.raises(RewardError, match=said) as caught:
        load_reward(tmp_path / "reward")
    assert "\n" not in str(caught.value)
