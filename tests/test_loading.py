"""A reward of any kind from its name."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from midcourse.loading import load_reward
from midcourse.reward import RewardError
from midcourse.reward_model import RewardModel
from midcourse.testing import byte_tokenizer, tiny_config
from midcourse.text_reward import ClassifierReward
from midcourse.vocabulary_reward import VocabularyReward


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
