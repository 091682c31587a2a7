"""Rewards on the language model's own tensors: one copy in memory, and neither model sees anything of the other."""

import copy
import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from midcourse import cli
from midcourse.decode.engine import generate
from midcourse.lm.caches import compile_steps
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.load import load_config
from midcourse.lm.weights import loaded_fingerprint, weights_fingerprint
from midcourse.rewards.backbone import shared_backbone
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trunk import TrunkReward
from midcourse.testing import ARCHITECTURES, assert_laws, byte_tokenizer, randomise, tiny_config, tiny_language_model
from tests.pace import slow_except

PROMPTS = ["The ferry was late, and", "A", "żółć"]
RESPONSES = [" we loved it.", " no", ""]
KINDS = ["head", "last:1", "lora:2", "trunk:4"]
DTYPES = ["float32", "float64"]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes a reward as training would leave it, and returns its folder."""

    def write(backbone: str, kind: str = "lora:2", seed: int = 3, layers: int = 2, name: str | None = None) -> Path:
        trunk = kind.startswith("trunk")
        settings = {"tune": "head", "head": kind} if trunk else {"tune": kind}
        made = (TrunkReward if trunk else RewardModel).create(
            backbone, template="raw", layers=layers, device="cpu", **settings
        )
        randomise(made, seed)
        folder = tmp_path / (name or f"{kind}-{seed}")
        made.save(folder)
        return folder

    return write


def logits(lm: LanguageModel) -> Tensor:
    with torch.inference_mode():
        return lm.model(torch.tensor([list(b"The ferry was late")])).logits


def tensors(*modules: nn.Module) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def bytes_held(*modules: nn.Module) -> int:
    """Bytes of the distinct storages behind all parameters and buffers."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors(*modules)}
    return sum(storage.nbytes() for storage in storages.values())


def trained_bytes(*modules: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters() if p.requires_grad)


# Bit-equal


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", slow_except(["gpt2"], ARCHITECTURES))
def test_the_lm_is_bit_equal_before_beside_and_after(architecture, dtype, model_folder, saved):
    lm = LanguageModel.load(folder := model_folder(architecture), device="cpu", dtype=dtype)
    asked = {"max_new_tokens": 6, "seed": 1}
    want, plain = logits(lm), generate(lm, PROMPTS, method="plain", **asked)
    one, other = (load_reward(saved(folder, seed=seed), share_with=lm) for seed in (3, 4))
    assert torch.equal(logits(lm), want)
    seen = []
    for guides in ([(one, 1.0)], [(other, 1.0)], [(one, 1.0), (other, -2.0)], [(one, 1.0)]):
        seen.append([row.text for row in generate(lm, PROMPTS, guides, reward_weight=3.0, **asked)])
        assert torch.equal(logits(lm), want)
    assert seen[0] == seen[3] != seen[1]
    del one, other, guides
    gc.collect()
    assert torch.equal(logits(lm), want)
    assert generate(lm, PROMPTS, method="plain", **asked) == plain


@pytest.mark.parametrize("architecture", slow_except(["llama"], ARCHITECTURES))
@pytest.mark.parametrize("kind", KINDS)
def test_shared_equals_unshared_bit_for_bit(architecture, kind, model_folder, saved):
    reward = saved(folder := model_folder(architecture), kind)
    for dtype in DTYPES:
        lm = LanguageModel.load(folder, device="cpu", dtype=dtype)
        shared, own = load_reward(reward, share_with=lm), load_reward(reward, device="cpu", dtype=dtype)
        assert shared.score(PROMPTS, RESPONSES) == own.score(PROMPTS, RESPONSES)
        have, want = (generate(lm, PROMPTS, found, max_new_tokens=6, reward_weight=2.0) for found in (shared, own))
        assert have == want
        # Only what was trained is its own, rotary frequencies included.
        theirs = {tensor.data_ptr() for tensor in tensors(lm.model)}
        assert bytes_held(lm.model, shared) == bytes_held(lm.model) + trained_bytes(shared)
        for name, parameter in shared.named_parameters():
            assert parameter.requires_grad != (parameter.data_ptr() in theirs), name
        assert all(buffer.data_ptr() in theirs for buffer in shared.buffers())


@pytest.mark.slow
def test_shared_adapters_keep_the_laws(model_folder, saved):
    lm = LanguageModel.load(folder := model_folder("gemma3"), device="cpu", dtype="float64")
    assert_laws(load_reward(saved(folder, layers=3), share_with=lm), lm, PROMPTS, RESPONSES)


# Memory


def test_one_copy_for_the_lm_and_three_adapters(model_folder, saved):
    lm = LanguageModel.load(folder := model_folder(), device="cpu", dtype="float32")
    alone = bytes_held(lm.model)
    rewards = [load_reward(saved(folder, seed=seed), share_with=lm) for seed in (3, 4, 5)]
    assert trained_bytes(*rewards) > 0
    assert bytes_held(lm.model, *rewards) == alone + trained_bytes(*rewards)
    names = {name for name, parameter in rewards[0].named_parameters() if parameter.requires_grad}
    assert names - {"head.weight"} and all("lora_" in name for name in names - {"head.weight"})
    # The same one again: its adapters are read again, the weights are not.
    again = load_reward(saved(folder, seed=3), share_with=lm)
    assert bytes_held(lm.model, *rewards, again) == alone + trained_bytes(*rewards, again)
    assert again.score(PROMPTS, RESPONSES) == rewards[0].score(PROMPTS, RESPONSES)


def test_the_reward_outlives_the_lm(model_folder, saved):
    lm = LanguageModel.load(folder := model_folder(), device="cpu", dtype="float32")
    reward = load_reward(saved(folder), share_with=lm)
    want, module = reward.score(PROMPTS, RESPONSES), weakref.ref(lm.model)
    del lm
    gc.collect()
    assert module() is None
    assert reward.score(PROMPTS, RESPONSES) == want


# Each keeps to itself


@pytest.mark.parametrize("kind", KINDS)
def test_training_a_shared_reward_leaves_the_lm(kind, model_folder, saved):
    lm = LanguageModel.load(folder := model_folder(), device="cpu", dtype="float32")
    want, trainable = logits(lm), [parameter.requires_grad for parameter in lm.model.parameters()]
    reward = load_reward(saved(folder, kind), share_with=lm)
    before = reward.score(PROMPTS, RESPONSES)
    optimizer = torch.optim.SGD([p for p in reward.parameters() if p.requires_grad], lr=0.1)
    reward(input_ids=torch.tensor([list(b"The ferry")])).sum().backward()
    optimizer.step()
    assert reward.score(PROMPTS, RESPONSES) != before
    assert torch.equal(logits(lm), want)
    assert [parameter.requires_grad for parameter in lm.model.parameters()] == trainable
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_moving_one_leaves_the_other(model_folder, saved):
    lm = LanguageModel.load(folder := model_folder(), device="cpu", dtype="float32")
    one, other = (load_reward(saved(folder, seed=seed), share_with=lm) for seed in (3, 4))
    want, scores = logits(lm), other.score(PROMPTS, RESPONSES)
    one.to(torch.float64)
    assert torch.equal(logits(lm), want)
    lm.model.to(torch.float64)
    assert other.score(PROMPTS, RESPONSES) == scores


@pytest.mark.parametrize("kind", ["last:1", "lora:2"])
def test_saving_and_exporting_a_shared_reward(kind, model_folder, saved, tmp_path):
    lm = LanguageModel.load(folder := model_folder(), device="cpu", dtype="float32")
    want = logits(lm)
    shared = load_reward(reward := saved(folder, kind), share_with=lm)
    shared.save(tmp_path / "again")
    stored, first = (load_file(path / "reward.safetensors") for path in (tmp_path / "again", reward))
    assert stored.keys() == first.keys() == {name for name, p in shared.named_parameters() if p.requires_grad}
    assert all(torch.equal(stored[name], first[name]) for name in stored)
    own = load_reward(tmp_path / "again", device="cpu", dtype="float32")
    assert own.score(PROMPTS, RESPONSES) == shared.score(PROMPTS, RESPONSES)
    for name, found in (("shared", shared), ("own", own)):
        found.export(tmp_path / name)
    exported = [load_file(tmp_path / name / "model.safetensors") for name in ("shared", "own")]
    assert all(torch.equal(tensor, exported[1][name]) for name, tensor in exported[0].items())
    assert torch.equal(logits(lm), want)  # its adapter was merged into a copy


# Refusals


def test_what_cannot_share_is_refused(model_folder, saved, tmp_path):
    folder, other = model_folder(), model_folder(name="other", seed=5)
    lm = LanguageModel.load(folder, device="cpu", dtype="float32")
    reward = saved(folder)
    with pytest.raises(RewardError, match=r"all-3 trained all of its weights \(tune all\) and has none to share with"):
        load_reward(saved(folder, "all"), share_with=lm)
    with pytest.raises(RewardError, match=f"{other} in memory has others .fingerprint {weights_fingerprint(other)}"):
        load_reward(reward, share_with=LanguageModel.load(other, device="cpu"))
    with pytest.raises(
        RewardError, match=r"dtype torch\.float64 on the weights of .* have torch\.float32; leave dtype"
    ):
        load_reward(reward, share_with=lm, dtype="float64")
    with pytest.raises(RewardError, match=r"cannot have device meta on the weights of .* have cpu; leave device out"):
        load_reward(reward, share_with=lm, device="meta")
    with pytest.raises(RewardError, match="it was not loaded from files, or was changed since"):
        load_reward(reward, share_with=tiny_language_model(dtype=torch.float32))
    with pytest.raises(RewardError, match="allow_other_weights: that is for trunk rewards, together with share_with"):
        load_reward(reward, share_with=lm, allow_other_weights=True)
    classifier = AutoModelForSequenceClassification.from_config(tiny_config("llama", 1))
    classifier.save_pretrained(tmp_path / "classifier")
    byte_tokenizer().save_pretrained(tmp_path / "classifier")
    for name in (tmp_path / "classifier", other):
        with pytest.raises(RewardError, match=f"{name} is a model of its own, .* shares no weights with {folder}"):
            load_reward(name, share_with=lm)


def test_an_lm_that_changed_in_memory_shares_nothing(model_folder, saved):
    lm = LanguageModel.load(folder := model_folder(), device="cpu", dtype="float32")
    reward = saved(folder)
    assert loaded_fingerprint(lm.model) == weights_fingerprint(folder)
    changed = copy.deepcopy(lm.model)
    with torch.no_grad():
        changed.base_model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    resized = copy.deepcopy(lm.model)
    resized.resize_token_embeddings(300)
    for model in (changed, resized):
        assert loaded_fingerprint(model) is None
        with pytest.raises(RewardError, match="was changed since"):
            load_reward(reward, share_with=LanguageModel(model, lm.tokenizer))
    load_reward(reward, share_with=LanguageModel(lm.model, lm.tokenizer))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_files_elsewhere_or_in_another_dtype_are_the_same_weights(architecture, model_folder, saved, tmp_path):
    reward = saved(folder := model_folder(architecture))
    shutil.move(folder, tmp_path / "moved")
    lm = LanguageModel.load(str(tmp_path / "moved"), device="cpu", dtype="bfloat16")
    shared = load_reward(reward, share_with=lm)
    assert shared.backbone.dtype == torch.bfloat16
    assert bytes_held(lm.model, shared) == bytes_held(lm.model) + trained_bytes(shared)


def test_weights_in_another_form_are_refused(model_folder):
    lm = LanguageModel.load(model_folder(), device="cpu", dtype="float32")
    lm.model.base_model.layers[0].mlp.up_proj = nn.Linear(32, 8, bias=False)
    with pytest.raises(RewardError, match=r"does not hold the weights layers\.0\.mlp\.up_proj\.weight in their usual"):
        shared_backbone(lm, 2)
    with pytest.raises(RewardError, match="layers 4 is not between 1 and the 3"):
        shared_backbone(lm, 4)


# Trunk rewards


def test_shared_trunk_is_not_compared_and_a_copy_only_once(model_folder, saved, monkeypatch):
    lm = LanguageModel.load(folder := model_folder(), device="cpu", dtype="float32")
    reward = saved(folder, "trunk:4")
    shared, own = load_reward(reward, share_with=lm), load_reward(reward, device="cpu", dtype="float32")
    compared, equal = [], torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: compared.append(1) or equal(a, b))
    shared.bind(lm)
    assert not compared
    own.bind(lm)
    once = len(compared)
    # transformers' integration makes a LanguageModel for every call.
    own.bind(LanguageModel(lm.model, lm.tokenizer))
    assert len(compared) == once == len(list(own.backbone.parameters()))
    with torch.no_grad():
        lm.model.base_model.layers[0].mlp.up_proj.weight.mul_(2)
    with pytest.raises(RewardError, match="has other weights"):
        own.bind(lm)


def test_shared_trunk_keeps_the_lms_final_norm(model_folder, saved):
    lm = LanguageModel.load(folder := model_folder("gpt2"), device="cpu", dtype="float64")
    want = logits(lm)
    reward = load_reward(saved(folder, "trunk:4", layers=2), share_with=lm)
    assert isinstance(reward.backbone.ln_f, nn.Identity)
    assert isinstance(lm.model.base_model.ln_f, nn.LayerNorm)
    assert torch.equal(logits(lm), want)


def test_bind_compares_every_weight_below_the_head(model_folder, saved):
    lm = LanguageModel.load(folder := model_folder("gpt2"), device="cpu", dtype="float32")
    reward = load_reward(saved(folder, "trunk:4"), device="cpu", dtype="float32")
    lm.model.base_model.wpe.weight.data[0, 0] += 1
    with pytest.raises(RewardError, match="has other weights"):
        reward.bind(lm)
    with pytest.raises(RewardError, match=r"has dtype torch\.float32, not torch\.float64; load both alike"):
        reward.bind(LanguageModel.load(folder, device="cpu", dtype="float64"))


def test_trunk_on_other_weights_where_allowed(model_folder, saved):
    reward = saved(model_folder(), "trunk:4")
    near = LanguageModel.load(model_folder(name="near", seed=5), device="cpu", dtype="float64")
    with pytest.raises(RewardError, match=r"near in memory has others .*, or allow other weights"):
        load_reward(reward, share_with=near)
    allowed = load_reward(reward, share_with=near, allow_other_weights=True)
    # It reads the states and the embeddings of the model that it guides, so that it keeps the laws there.
    assert_laws(allowed, near, PROMPTS, RESPONSES)
    deep = LanguageModel.load(model_folder(name="deep", layers=4), device="cpu", dtype="float64")
    with pytest.raises(RewardError, match=r"of 3 layers, and .*deep has 4; train one on .*deep"):
        load_reward(reward, share_with=deep, allow_other_weights=True)
    wide = copy.deepcopy(load_config(near.name))
    wide.hidden_size = 64
    model = type(near.model)(wide).to(torch.float64)
    with pytest.raises(RewardError, match=r"does not fit wide: .* holds other tensors"):
        load_reward(reward, share_with=LanguageModel(model, near.tokenizer, "wide"), allow_other_weights=True)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["ferry"])
    with pytest.raises(RewardError, match="trained with another tokenizer than near has"):
        load_reward(reward, share_with=LanguageModel(near.model, tokenizer, "near"), allow_other_weights=True)


# The command line


@pytest.fixture
def guide(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls midcourse guide; returns (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        common = ["--prompt", "abc", "--max-new-tokens", "5", "--json", "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["midcourse", "guide", *common, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("kinds", [["lora:2"], ["head", "lora:2", "last:1"], ["trunk:4", "lora:2"]])
def test_guide_shares_weights(kinds, guide, model_folder, saved):
    asked = ["--lm", folder := model_folder()]
    for kind in kinds:
        asked += ["--reward", f"{saved(folder, kind)}=2"]
    code, out, err = guide(*asked, "--share-weights")
    assert (code, out) == (0, guide(*asked)[1]), err


def test_guide_says_which_reward_cannot_share(guide, model_folder, saved):
    folder = model_folder()
    whole, fine = saved(folder, "all"), saved(folder)
    code, _, err = guide("--lm", folder, "--reward", fine, "--reward", whole, "--share-weights")
    assert code == 2
    assert f"the reward in {whole} trained all of its weights" in err
    assert "Traceback" not in err
    code, _, err = guide("--lm", folder, "--reward-function", "builtins:len", "--share-weights")
    assert code == 2 and "--share-weights is for rewards that midcourse train wrote" in err


def test_guide_with_a_trunk_of_other_weights(guide, model_folder, saved):
    reward = saved(folder := model_folder(), "trunk:4")
    other = ["--lm", model_folder(name="other", seed=5), "--reward", reward]
    code, _, err = guide(*other)
    assert code == 2 and "has other weights" in err and "--allow-other-weights" in err and len(err.splitlines()) == 1
    code, out, err = guide(*other, "--allow-other-weights")
    assert code == 0 and out
    assert [line for line in err.splitlines() if "warning" in line] == [
        f"warning: {reward} was trained on the states of {folder}, and {other[1]} has other weights; "
        "its rewards may mean less here"
    ]
    code, _, err = guide("--lm", folder, "--reward", reward, "--allow-other-weights")
    assert code == 0 and "warning" not in err
    code, _, err = guide("--lm", folder, "--reward", saved(folder), "--allow-other-weights")
    assert code == 2 and "--allow-other-weights is for trunk rewards" in err


# The real model, and compiled steps


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_steps_on_shared_weights(model_folder, saved):
    lm = LanguageModel.load(folder := model_folder(), device="cpu", dtype="float64")
    reward = load_reward(saved(folder), share_with=lm)
    asked = {"max_new_tokens": 8, "batch_size": 3, "seed": 4}
    want, before = generate(lm, PROMPTS, reward, **asked), logits(lm)
    for model in (lm.model, reward.decoder):
        compile_steps(model)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    have = generate(lm, PROMPTS, reward, **asked)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert [row.text for row in have] == [row.text for row in want]
    for a, b in zip(have, want, strict=True):
        # The rotary embedding is float32 in any dtype, and the compiler rounds it otherwise.
        assert [step.reward for step in a.steps] == pytest.approx([step.reward for step in b.steps], abs=1e-5)
    assert torch.equal(logits(lm), before)


@pytest.mark.slow
def test_smollm2_with_two_adapters_is_one_model(saved):
    lm = LanguageModel.load("smollm2", device="cpu", dtype="float32")
    want, alone = logits(lm), bytes_held(lm.model)
    names = [saved("smollm2", "lora:4", seed=seed, layers=layers) for seed, layers in ((3, 30), (4, 12))]
    rewards = [load_reward(name, share_with=lm) for name in names]
    assert bytes_held(lm.model, *rewards) == alone + trained_bytes(*rewards) < 1.02 * alone
    guided = generate(lm, PROMPTS[:1], [(reward, 1.0) for reward in rewards], max_new_tokens=6)
    assert torch.equal(logits(lm), want)
    shared = rewards[0].score(PROMPTS, RESPONSES)
    own = [load_reward(name, device="cpu", dtype="float32") for name in names]
    assert own[0].score(PROMPTS, RESPONSES) == shared
    assert generate(lm, PROMPTS[:1], [(reward, 1.0) for reward in own], max_new_tokens=6) == guided
    del rewards
    gc.collect()
    assert torch.equal(logits(lm), want)
