"""A reward of any kind from its name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.classifier import ClassifierReward
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import (
    is_function,
    kind_of,
    kind_of_head,
    load_label,
    load_reward,
    named_rewards,
    other_backbone,
    weighted,
)
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.text import FunctionReward
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


@pytest.mark.parametrize("head", ["trunk:x", "trunk", "trunk:0"])
def test_a_trunk_head_without_a_rank_is_refused(model_folder, tmp_path, head):
    kind_of_head("trunk").create(
        model_folder(), head="trunk:4", template="raw", tune="head", objective="prefix", device="cpu"
    ).save(tmp_path / "reward")
    description = tmp_path / "reward/midcourse.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"head": head}))
    with pytest.raises(RewardError, match=f"head '{head}' of a trunk reward has no rank, as in trunk:16"):
        load_reward(tmp_path / "reward")


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


def test_functions_are_rewards_by_name():
    for name in ("vader", "profanity", "builtins:len"):
        assert is_function(name)
        assert kind_of(name) is FunctionReward
        assert isinstance(load_reward(name), FunctionReward)
    assert not any(is_function(name) for name in ("civil", "smollm2", "org/model", "http://localhost:8000/v1"))
    for load in (load_reward, kind_of):
        with pytest.raises(RewardError, match="no reward function 'nowhere:at_all'"):
            load("nowhere:at_all")


def test_a_folder_comes_before_a_function_and_a_shipped_reward_of_its_name(model_folder, tmp_path, monkeypatch):
    reward = RewardModel.create(model_folder(), template="raw", tune="head", device="cpu")
    for name in ("vader", "my:reward", "civil"):
        reward.save(tmp_path / name)
    assert isinstance(load_reward("vader"), FunctionReward)
    monkeypatch.chdir(tmp_path)
    for name in ("vader", "my:reward", "civil"):
        assert not is_function(name)
        assert type(load_reward(name)) is kind_of(name) is RewardModel
    # A flag for functions leaves no doubt.
    assert isinstance(load_label(None, "vader"), FunctionReward)
    assert isinstance(load_label("vader", None), RewardModel)


def test_a_label_is_one_reward_one_function_or_none():
    assert load_label(None, None) is None
    with pytest.raises(RewardError, match="cannot both give the numbers; leave one out"):
        load_label("vader", "vader")


def test_rewards_for_a_model_are_in_order_and_share_its_weights_if_asked(model_folder):
    folder = model_folder()
    trained = {}
    for head in ("scalar", "trunk:4"):
        trained[head] = f"{folder}-{head.partition(':')[0]}"
        kind_of_head(head).create(folder, head=head, template="raw", tune="head", device="cpu").save(trained[head])
    lm, other = LanguageModel.load(folder), LanguageModel.load(model_folder(name="other", seed=3))
    names = [trained["trunk:4"], "builtins:len", trained["scalar"]]

    def shares(reward, lm) -> bool:
        return (
            reward.backbone.get_input_embeddings().weight.data_ptr()
            == lm.model.get_input_embeddings().weight.data_ptr()
        )

    trunk, function, scalar, last = named_rewards(lm, names, ["vader"])
    assert [type(one).__name__ for one in (trunk, function, scalar)] == ["TrunkReward", "FunctionReward", "RewardModel"]
    assert last.name == "reward function vader"
    assert other_backbone(trained["scalar"], lm) is None and other_backbone(trained["scalar"], other) == folder
    assert not shares(scalar, lm)
    assert shares(named_rewards(lm, names, share_weights=True)[2], lm)
    with pytest.raises(RewardError, match="was trained on the weights of"):
        named_rewards(other, [trained["scalar"]], share_weights=True)
    (elsewhere,) = named_rewards(other, [trained["trunk:4"]], allow_other_weights=True)
    assert type(elsewhere).__name__ == "TrunkReward"


@pytest.mark.parametrize(
    ("own", "common", "tokenwise", "want"),
    [
        ([None], None, True, ([1.0], None)),  # the reward's own weight, or the method's
        ([None], 3.0, True, ([1.0], 3.0)),
        ([1.5], None, True, ([1.0], 1.5)),
        ([1.5], 2.0, True, ([1.0], 3.0)),
        ([None, None], None, True, ([1.0, 1.0], None)),
        ([None, -2.0], None, True, ([1.0, -2.0], 1.0)),
        ([2.0, None], 3.0, True, ([2.0, 1.0], 3.0)),
        ([], 2.0, True, ([], 2.0)),
        ([1.5], None, False, ([1.5], None)),
        ([None, 2.0], 3.0, False, ([1.0, 2.0], 3.0)),
    ],
)
def test_weights(own, common, tokenwise, want):
    rewards = [FunctionReward(len) for _ in own]
    pairs, weight = weighted(rewards, own, common, tokenwise=tokenwise)
    assert [reward for reward, _ in pairs] == rewards
    assert ([w for _, w in pairs], weight) == want
