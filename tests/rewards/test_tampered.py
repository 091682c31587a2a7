"""A reward's folder is believed in nothing: whatever stands in it, loading gives a reward or a sentence, and soon."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from midcourse.errors import MidcourseError
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.train.objectives import make_objective
from midcourse.train.start import begin
from tests.pace import slow_except

KINDS: dict[str, dict[str, str]] = {
    "head": {"head": "scalar", "tune": "head"},
    "lora": {"head": "scalar", "tune": "lora:2"},
    "last": {"head": "scalar", "tune": "last:1"},
    "all": {"head": "scalar", "tune": "all"},
    "trunk": {"head": "trunk:4"},
    "vocabulary": {"head": "vocabulary"},
}
STRANGE: tuple[Any, ...] = (
    None, "ten", "", -1, 0, 10**9, 10**19, 1.5, 1e308, True, [], {}, ["x"], {"a": 1}, "x" * 100_000, "lora:1000000000",
    "lora:0", "lora:2:77", "last:99", "trunk:1000000000", "trunk:", "all", "scalar", "vocabulary", "../../etc/passwd",
)  # fmt: skip


@pytest.fixture
def folder(model_folder, tmp_path, request) -> Path:
    kind = request.param
    objective = make_objective("autoregressive" if kind == "vocabulary" else "prefix")
    reward = begin(model_folder(), objective, template="raw", **KINDS[kind])
    for weight in reward.head.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    reward.save(tmp_path / "reward")
    return tmp_path / "reward"


def tampered(text: str) -> Iterator[tuple[str, str]]:
    """Yield (what was done, a midcourse.json)."""
    fields = json.loads(text)
    for name in fields:
        for value in STRANGE:
            yield f"{name} = {value!r:.40}", json.dumps({**fields, name: value})
        yield f"no {name}", json.dumps({key: value for key, value in fields.items() if key != name})
    for outer, inner in (("objective_settings", "value_weight"), ("calibration", "prefix_temperature")):
        for value in STRANGE:
            changed = copy.deepcopy(fields)
            changed[outer] = {**(changed[outer] or {}), inner: value}
            yield f"{outer}.{inner} = {value!r:.40}", json.dumps(changed)
    yield "deep", text.replace("{", '{"deep": ' + "[" * 5000 + "]" * 5000 + ",", 1)
    yield "digits", text.replace('"layers": ', '"layers": ' + "9" * 6000, 1)
    yield "NaN", text.replace('"centre": 0.0', '"centre": NaN')
    for whole in ("[]", "3", "null", "", "\0", text[:-10], '{"format": 1}', text.replace("{", '{"new": 3,', 1)):
        yield f"all of it {whole[:20]!r}", whole


@pytest.mark.parametrize("folder", slow_except(["lora", "trunk"], KINDS), indirect=True)
def test_a_tampered_record(folder):
    path = folder / "midcourse.json"
    text = path.read_text()
    load_reward(folder)
    refused = []
    for what, changed in tampered(text):
        path.write_text(changed)
        try:
            rewards = load_reward(folder).score(["ab"], ["cd"])[0].rewards
        except MidcourseError as error:
            refused.append(str(error))
        except Exception as error:
            pytest.fail(f"{what}: {error!r}")
        else:
            assert all(map(math.isfinite, rewards)), what
    assert len(refused) > 200
    assert max(map(len, refused)) < 1200


@pytest.mark.parametrize("folder", slow_except(["lora"], KINDS), indirect=True)
def test_tampered_tensors(folder):
    path = folder / "reward.safetensors"
    tensors, whole = load_file(path), path.read_bytes()
    name = next(iter(tensors))
    for value in (math.nan, math.inf):
        broken = {key: tensor.clone() for key, tensor in tensors.items()}
        broken[name].view(-1)[0] = value
        save_file(broken, path)
        with pytest.raises(RewardError, match="holds what is no finite number in"):
            load_reward(folder)
    for changed in (
        {**tensors, name: tensors[name][..., :-1].contiguous()},
        {key: tensor for key, tensor in tensors.items() if key != name},
        {**tensors, "another": torch.zeros(2)},
        {**tensors, name: tensors[name].to(torch.int32)},
    ):
        save_file(changed, path)
        with pytest.raises(
            RewardError, match=r"holds other tensors than its midcourse.json|no finite number|cannot be read"
        ):
            load_reward(folder)
    path.write_bytes(whole[:-5])
    with pytest.raises(RewardError, match="cannot be read"):
        load_reward(folder)


@pytest.mark.parametrize("folder", ["lora"], indirect=True)
def test_ranks_beyond_the_tensors_take_no_room(folder):
    """They are compared with what the file's header says before anything of their size is made."""
    path = folder / "midcourse.json"
    path.write_text(path.read_text().replace('"lora:2"', '"lora:1000000000"'))
    with pytest.raises(RewardError, match=r"announces \(rank 1000000000\); train the reward again"):
        load_reward(folder)
