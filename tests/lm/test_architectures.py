"""Architectures that differ from Llama where it matters: attention of their own, layers further in, other widths."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    Gemma3Config,
    Gemma3nTextConfig,
    GPTJConfig,
    GPTNeoXConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from midcourse.decode.engine import generate
from midcourse.lm.caches import UnsupportedModelError, side_by_side
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.backbone import final_norm_of, layers_of
from midcourse.rewards.contract import Text
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trained_vocabulary import TrainedVocabularyReward
from midcourse.rewards.trunk import TrunkReward
from midcourse.rewards.vocabulary import VocabularyReward
from midcourse.testing import (
    CONTEXT,
    KnownReward,
    assert_language_model_laws,
    assert_laws,
    assert_same_generation,
    byte_tokenizer,
    randomise,
    tiny_config,
    tiny_language_model,
)
from tests.pace import slow_except

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


def test_layers_that_read_the_keys_of_earlier_ones_have_none_of_their_own():
    """Gemma 3n's last layers: rows that move, and candidates that are kept, leave them alone."""
    config = Gemma3nTextConfig(
        **{**SIZES, "num_hidden_layers": 4},
        **GEMMA,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=6,
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.0] * 4,
        vocab_size_per_layer_input=259,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    randomise(model, 3)
    lm = LanguageModel(model, byte_tokenizer(), "gemma3n")
    prompts = [list(text.encode()) for text in ("The ferry was late", "A", "Under the bridge")]
    assert_language_model_laws(lm, prompts, layers=[], tolerance=1e-4)  # some compute in float32 inside
    with pytest.raises(UnsupportedModelError, match="keeps several states of each token"):
        lm.start(prompts, 4, layers=[4])


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


# Rows at a time

STATES = {
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4,
        "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16, "intermediate_size": 48, "head_dim": 8,
    },
    "jamba": {
        "intermediate_size": 48, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 4, "num_key_value_heads": 2,
    },
    "lfm2": {
        "intermediate_size": 48, "layer_types": ["conv", "full_attention"], "num_key_value_heads": 2,
        "block_multiple_of": 8,
    },
    "mamba": {"state_size": 4, "intermediate_size": 48},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "falcon_h1": {
        "intermediate_size": 48, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
        "mamba_n_groups": 1, "mamba_chunk_size": 8, "num_key_value_heads": 2, "head_dim": 8,
    },
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], "intermediate_size": 48, "shared_intermediate_size": 48,
        "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8, "num_local_experts": 2,
        "num_experts_per_tok": 1, "num_key_value_heads": 2,
    },
    "bamba": {
        "intermediate_size": 48, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
        "mamba_chunk_size": 8, "num_key_value_heads": 2,
    },
    "minimax": {  # whose cache has a list of states beside its layers
        "layer_types": ["linear_attention", "full_attention"], "intermediate_size": 48, "num_key_value_heads": 2,
        "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 8, "head_dim": 8,
    },
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "window_size": 6, "attention_types": [[["global", "local"], 1]]},
    "bloom": {"n_head": 4, "n_layer": 2},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT},
    "falcon": {"alibi": True},
    "roberta": {"intermediate_size": 48, "is_decoder": True, "pad_token_id": 1, "max_position_embeddings": CONTEXT + 2},
}  # fmt: skip


def of_rows(kind: str) -> LanguageModel:
    sizes = {name: value for name, value in SIZES.items() if kind != "gpt_neo" or not name.startswith("num_")}
    config = AutoConfig.for_model(kind, **{**sizes, **STATES[kind]})
    # Experts are multiplied in float32 or less.
    dtype = torch.float32 if "num_experts" in STATES[kind] or "num_local_experts" in STATES[kind] else torch.float64
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    randomise(model, 3)
    return LanguageModel(model, byte_tokenizer(), kind)


@pytest.mark.parametrize("kind", slow_except(["minimax", "mamba", "bloom"], STATES))
def test_layers_with_a_state_are_read_a_row_at_a_time(kind):
    lm = of_rows(kind)
    prompts = [list(text.encode()) for text in ("The ferry was late", "A", "Under the bridge")]
    assert not side_by_side(lm.model)
    assert_language_model_laws(lm, prompts, layers=[1, 2], tolerance=1e-4)  # some compute in float32 inside
    ids = prompts[0]
    for _ in range(6):
        ids = [*ids, int(lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    (one,) = generate(lm, ["The ferry was late"], method="plain", temperature=0.0, max_new_tokens=6, top_k=None)
    assert [step.token_id for step in one.steps] == ids[18 : 18 + len(one.steps)]


@pytest.mark.parametrize("kind", slow_except(["lfm2"], ["lfm2", "qwen3_next", "mamba2", "bloom"]))
@pytest.mark.parametrize("head", ["scalar", "vocabulary", "trunk:2"])
def test_rewards_on_layers_with_a_state_keep_the_laws(kind, head, tmp_path):
    lm = of_rows(kind)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    dtype = str(lm.model.dtype).removeprefix("torch.")
    lm = LanguageModel.load(str(tmp_path / "model"), dtype=dtype)
    make = {"scalar": RewardModel, "vocabulary": TrainedVocabularyReward, "trunk:2": TrunkReward}[head]
    how = {"tune": "last:1"} if head == "scalar" else {"tune": "head"}
    reward = make.create(str(tmp_path / "model"), template="raw", head=head, dtype=dtype, layers=2, **how)
    for weight in reward.head.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    assert_laws(reward, lm, ["A", "The ferry"], [" is", " was late"], tolerance=1e-3)
    reward.save(tmp_path / "reward")
    again = load_reward(tmp_path / "reward", dtype=dtype)
    assert again.score(["A"], [" is"]) == reward.score(["A"], [" is"])


@pytest.mark.parametrize("method", ["cards", "cd-blockwise", "best-of-n"])
def test_every_method_goes_back_on_layers_with_a_state(method):
    """By states that are kept, or by reading again."""
    lm = of_rows("lfm2")
    reward = KnownReward(lambda ids: float(ids[-1] % 7))
    asked = {"method": method, "max_new_tokens": 9, "seed": 4}
    asked |= {"reward_threshold": 4.0, "entropy_threshold": 3.0} if method == "cards" else {"samples": 3}
    rows = generate(lm, ["A", "The ferry was late"], reward, **asked)
    for place, row in enumerate(rows):
        (alone,) = generate(lm, [row.prompt], reward, **{**asked, "seed": 4 + place})
        assert_same_generation(row, alone)


# What cannot be


def test_an_architecture_that_reads_a_batch_otherwise_is_found_out_when_it_is_first_used():
    lm = tiny_language_model("llama")
    lm.model.config.model_type = "unheard"
    assert side_by_side(lm.model)
    broken = tiny_language_model("llama")
    broken.model.config.model_type = "unheard"
    forward = broken.model.forward

    # Rotary positions are relative: what is wrong has to differ between old and new tokens.
    def from_zero(*args, position_ids=None, past_key_values=None, **kwargs):
        kwargs["past_key_values"] = past_key_values
        if position_ids is not None and position_ids.shape[1] < 3:
            position_ids = position_ids * 0
        return forward(*args, position_ids=position_ids, **kwargs)

    broken.model.forward = from_zero
    assert not side_by_side(broken.model)  # a row at a time it needs no positions of ours

    def forgets(*args, past_key_values=None, **kwargs):
        return forward(*args, **kwargs)

    hopeless = tiny_language_model("llama")
    hopeless.model.config.model_type = "unheard"
    forward = hopeless.model.forward
    hopeless.model.forward = forgets
    with pytest.raises(UnsupportedModelError, match="unheard reads rows of a batch otherwise than alone"):
        side_by_side(hopeless.model)


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
