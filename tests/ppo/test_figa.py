"""Weighted likelihood: the loss by hand, and what it makes likelier."""

import json
from pathlib import Path

import pytest
import torch

from midcourse.data.edits import Edit
from midcourse.errors import MidcourseError
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.policy import load_policy
from midcourse.ppo.figa import FLOOR, likelihood_loss, train_on_edits
from midcourse.ppo.settings import FigaSettings, PPOError, check_figa
from midcourse.rewards.vocabulary import VocabularyReward

EDITS = [Edit(f"n{n}", " It go at nine.", " It went at nine.") for n in range(6)]
EDITS += [Edit(f"m{n}", " A bad one", " A fine one") for n in range(6)]
SETTINGS = FigaSettings(epochs=6, batch_size=4, lr=1e-2, tune="lora:4", save_every=5)


def test_the_loss_by_hand():
    logprobs = torch.log(torch.tensor([[0.5, 0.25, 0.1], [0.2, 0.4, 0.5]]))
    weights = torch.tensor([[1.0, 0.0, 1.0], [-0.5, 0.0, 0.0]])
    want = -(logprobs[0, 0] + logprobs[0, 2]) / 2 + 0.5 * logprobs[1, 0]
    assert likelihood_loss(logprobs, weights).item() == pytest.approx(want.item())


def test_a_token_that_is_out_of_the_way_is_pushed_no_further():
    logprobs = torch.tensor([[FLOOR - 1.0, FLOOR + 1.0]], requires_grad=True)
    likelihood_loss(logprobs, torch.tensor([[-1.0, -1.0]])).backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [[0.0, 0.5]]


@pytest.fixture
def lm_folder(model_folder) -> str:
    return model_folder(dtype=torch.float32, layers=2)


def logprobs(lm: LanguageModel, text: str) -> torch.Tensor:
    reward = VocabularyReward(lm.model, lm.tokenizer, template="raw")
    (row,) = reward.score_ids([reward.encode("n0", text)])
    return row


def test_what_was_added_becomes_likelier_and_what_was_taken_away_less(lm_folder, tmp_path: Path):
    metrics = train_on_edits(LanguageModel.load(lm_folder), EDITS, tmp_path / "policy", SETTINGS)
    assert metrics[-1]["loss"] < metrics[0]["loss"] and metrics[-1]["rollouts"] == 72
    lm = LanguageModel.load(lm_folder)
    policy = load_policy(str(tmp_path / "policy"), lm)
    added, removed = slice(4, 8), slice(4, 6)  # went, go
    assert logprobs(policy, " It went at nine.")[added].sum() > logprobs(lm, " It went at nine.")[added].sum() + 1
    assert logprobs(policy, " It go at nine.")[removed].sum() < logprobs(lm, " It go at nine.")[removed].sum() - 1
    record = json.loads((tmp_path / "policy/midcourse_policy.json").read_text())
    assert record["method"] == "figa" and record["edits"] == 12
    assert "weighted likelihood of edits" in (tmp_path / "policy/README.md").read_text()


def test_it_trains_in_one_process(lm_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MidcourseError, match="midcourse figa trains in one process; start it without torchrun"):
        train_on_edits(LanguageModel.load(lm_folder), [Edit("", "a b", "a c", "")], tmp_path / "out")


def test_it_resumes_to_the_same_policy(lm_folder, tmp_path, monkeypatch):
    whole = train_on_edits(LanguageModel.load(lm_folder), EDITS, tmp_path / "whole", SETTINGS)
    from midcourse.ppo import figa

    step, calls = figa.Figa.step, []

    def failing(self, advance):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return step(self, advance)

    monkeypatch.setattr(figa.Figa, "step", failing)
    with pytest.raises(KeyboardInterrupt):
        train_on_edits(LanguageModel.load(lm_folder), EDITS, tmp_path / "parts", SETTINGS)
    monkeypatch.setattr(figa.Figa, "step", step)
    parts = train_on_edits(LanguageModel.load(lm_folder), EDITS, tmp_path / "parts", SETTINGS, resume=True)
    assert parts == whole
    name = "adapter_model.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"epochs": 0}, "epochs is 0; use 1 or more"),
        ({"worse": -1.0}, "worse is -1.0; use 0 or more"),
        ({"better": 0.0, "worse": 0.0}, "no change would be learned"),
        ({"lr": 0.0}, "lr is 0.0; use a positive number"),
        ({"tune": "head"}, "tune is head; use lora"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, why):
    with pytest.raises(PPOError, match=why):
        check_figa(FigaSettings(**given))
