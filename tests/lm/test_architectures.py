"""Architectures that differ from Llama where it matters: attention of their own, layers further in, other widths."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    Gemma3Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from midcourse.decode.engine import generate
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prefix_cache import UnsupportedModelError, try_once
from midcourse.rewards.backbone import final_norm_of, layers_of
from midcourse.rewards.contract import Text
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trunk import TrunkReward
from midcourse.rewards.vocabulary import VocabularyReward
from midcourse.testing import CONTEXT, assert_laws, byte_tokenizer, randomise, tiny_config, tiny_language_model

ENDS = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
SIZES = {
    **ENDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT,
}  # fmt: skip
GEMMA = {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "gemma2": lambda: Gemma2Config(**SIZES, **GEMMA, sliding_window=6),
    "gptj": lambda: GPTJConfig(
        **ENDS, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, rotary_dim=4, tie_word_embeddings=False
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, intermediate_size=48),
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "opt-350m": lambda: OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
    "gemma3 with pictures": lambda: Gemma3Config(
        text_config={**SIZES, **GEMMA, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config=SiglipVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28,
            patch_size=14,
        ).to_dict(),
        mm_tokens_per_image=4,
    ),
}  # fmt: skip


def written(folder: Path, name: str) -> str:
    """A tiny model of random weights in a folder, as people bring it."""
    auto = AutoModelForImageTextToText if "pictures" in name else AutoModelForCausalLM
    model = auto.from_config(CONFIGS[name](), dtype=torch.float64)
    randomise(model, 3)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_writes_what_transformers_writes_and_its_rewards_keep_the_laws(tmp_path, name):
    folder = written(tmp_path / "model", name)
    # transformers computes the softmax of eager attention, and GPT-J's rotations, in float32.
    dtype, tolerance = ("float32", 1e-3) if name in ("gemma2", "gptj") else ("float64", 1e-10)
    lm = LanguageModel.load(folder, dtype=dtype)
    ids = torch.tensor([list(b"The ferry")])
    want = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)[0, 9:]
    (one,) = generate(lm, ["The ferry"], method="plain", temperature=0.0, max_new_tokens=6)
    assert [step.token_id for step in one.steps] == want.tolist()[: len(one.steps)]
    reward = RewardModel.create(folder, template="raw", tune="last:1", dtype=dtype)
    torch.nn.init.normal_(reward.head.weight)
    assert_laws(reward, lm, ["A", "The ferry"], [" is", " was late"], tolerance=tolerance)
    reward.save(tmp_path / "reward")
    again = load_reward(tmp_path / "reward", dtype=dtype)
    assert again.score(["A"], [" is"]) == reward.score(["A"], [" is"])
    reward.export(tmp_path / "exported")
    texts = [Text("A", " is", True), Text("The ferry", " was late", True)]
    assert load_reward(tmp_path / "exported", dtype=dtype).rate(texts) == pytest.approx(reward.rate(texts), abs=1e-4)


def test_a_reward_whose_only_special_token_is_eos_is_exported(tmp_path):
    """As GPT-2's: padding with EOS would have the score read before it."""
    folder = written(tmp_path / "model", "gpt_neox")
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.pad_token = tokenizer.chat_template = None
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [one for one in state["added_tokens"] if one["content"] == tokenizer.eos_token]
    own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token=tokenizer.eos_token)
    assert own.all_special_tokens == [own.eos_token]
    own.save_pretrained(folder)
    reward = RewardModel.create(folder, template="raw", tune="last:1", dtype="float64")
    torch.nn.init.normal_(reward.head.weight)
    reward.export(tmp_path / "exported")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported", dtype=torch.float64)
    other = AutoTokenizer.from_pretrained(tmp_path / "exported")
    with torch.inference_mode():
        have = model(
            **other(["A is" + own.eos_token, "The ferry was late" + own.eos_token], padding=True, return_tensors="pt")
        )
    texts = [Text("A", " is", True), Text("The ferry", " was late", True)]
    assert have.logits[:, 0].tolist() == pytest.approx(reward.rate(texts), abs=1e-6)


def test_what_is_tuned_last_is_found_in_opt():
    """Its layers and norm are one module further in than others'."""
    model = AutoModelForCausalLM.from_config(CONFIGS["opt"]()).get_decoder()
    assert len(layers_of(model)) == 2 and final_norm_of(model) is model.final_layer_norm
    assert final_norm_of(AutoModelForCausalLM.from_config(CONFIGS["opt-350m"]()).get_decoder()) is None


def test_a_trunk_head_needs_embeddings_as_wide_as_states(tmp_path):
    with pytest.raises(RewardError, match="wider than its embeddings; use --head scalar"):
        TrunkReward.create(written(tmp_path / "m", "opt-350m"), template="raw", layers=1, head="trunk:2", tune="head")


# What cannot be


def test_local_attention_is_refused(tmp_path):
    """Right alone, and wrong in a batch: GPT-Neo's window counts slots."""
    config = GPTNeoConfig(
        **ENDS, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=CONTEXT, window_size=6,
        attention_types=[[["global", "local"], 1]],
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="gpt_neo has local attention, whose window counts slots"):
        generate(LanguageModel.load(str(tmp_path)), ["a"], method="plain", max_new_tokens=2)


def test_an_architecture_that_reads_a_batch_otherwise_is_found_out_when_it_is_first_used():
    lm = tiny_language_model("llama")
    try_once(lm.model)
    lm.model.config.model_type = "unheard"
    try_once(lm.model)
    broken = tiny_language_model("llama")
    broken.model.config.model_type = "unheard"
    forward = broken.model.forward

    # Rotary positions are relative: what is wrong has to differ between old and new tokens.
    def from_zero(*args, position_ids=None, **kwargs):
        if position_ids is not None and position_ids.shape[1] < 3:
            position_ids = position_ids * 0
        return forward(*args, position_ids=position_ids, **kwargs)

    broken.model.forward = from_zero
    with pytest.raises(UnsupportedModelError, match="unheard reads rows of a batch otherwise than alone"):
        try_once(broken.model)


# One tokenizer, two paddings of the vocabulary


@pytest.mark.parametrize(("mine", "theirs"), [(259, 272), (272, 259)])
def test_vocabularies_padded_to_other_sizes_guide_each_other(mine, theirs):
    """Qwen2.5 has one tokenizer and two sizes; ids beyond it have no text, and no chance."""

    def padded(size: int, seed: int) -> LanguageModel:
        config = tiny_config("llama", layers=2)
        config.vocab_size = size
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        randomise(model, seed)
        return LanguageModel(model.eval(), byte_tokenizer())

    lm = padded(mine, 1)
    reward = VocabularyReward(padded(theirs, 2).model, byte_tokenizer())
    for method in ("genarm", "pargs"):
        rows = generate(lm, ["a", "the ferry"], reward, method=method, max_new_tokens=12, reward_weight=1.0)
        assert all(step.token_id < 259 for row in rows for step in row.steps)
    plain = generate(lm, ["a"] * 4, method="plain", max_new_tokens=30, temperature=3.0, top_k=None)
    assert all(step.token_id < 259 for row in plain for step in row.steps)
    (one,) = generate(lm, ["a"], reward, method="genarm", max_new_tokens=1, reward_weight=1.0)
    with torch.inference_mode():
        pi = lm.model(torch.tensor([[97]])).logits[0, -1, :259].log_softmax(-1)
        theirs_ = reward.model(torch.tensor([[97]])).logits[0, -1].log_softmax(-1)[:259]
    assert one.steps[0].logprob == pytest.approx((pi + theirs_).log_softmax(-1)[one.steps[0].token_id].item(), abs=1e-9)


# Stop strings


def test_a_stop_string_may_be_a_special_token():
    lm = tiny_language_model("llama", more_eos=())
    pad = lm.tokenizer.pad_token_id

    def padding(ids, logprobs):
        allowed = pad if ids.shape[1] > 2 else 98
        return logprobs.masked_fill(torch.arange(logprobs.shape[-1]) != allowed, -torch.inf)

    settings = {"method": "plain", "logits_processor": padding, "max_new_tokens": 5}
    (one,) = generate(lm, ["a"], stop=["<|pad|>"], **settings)
    assert (one.text, one.finish_reason, len(one.steps)) == ("bb", "stop", 3)
    (other,) = generate(lm, ["a"], **settings)
    assert (other.finish_reason, len(other.steps)) == ("length", 5)
    assert json.dumps(one.text)
