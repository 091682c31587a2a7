"""DPO of a tiny model: what it learns, what it writes, and that it goes on and repeats exactly."""

import hashlib
import importlib
import json
import math
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from midcourse.data.comparisons import Comparison, split_by_prompt
from midcourse.data.encoded import encode
from midcourse.data.learned import read_learned_rows, row_hash
from midcourse.errors import Interrupted, MidcourseError
from midcourse.integrations.trl import RECORD, PolicyTrainer, _make_trainer, train_policy
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import prompt_ids, response_ids
from midcourse.lm.weights import weights_fingerprint
from midcourse.rewards.vocabulary import VocabularyReward
from midcourse.train.settings import Settings, TrainingError

SETTINGS = Settings(epochs=3, lr=1e-2, batch_size=4, max_tokens=64, held_out=0.25, weight_decay=0.0, save_steps=2)
COMPARISONS = [
    Comparison(f"say {n}", "aa" + "ab"[n % 2], "zz" + "yz"[n % 2], rejected_finished=n % 3 > 0) for n in range(16)
]


@pytest.fixture
def lm_folder(model_folder) -> str:
    return model_folder(dtype=torch.float32, layers=2)


def trained(folder: str, out: Path, settings: Settings = SETTINGS, **more) -> dict:
    return train_policy(LanguageModel.load(folder), COMPARISONS, out, settings, template="raw", rank=4, **more)


def metrics_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def logprob(model, lm: LanguageModel, prompt: str, response: str) -> float:
    """Of a finished response, by transformers alone."""
    before, after = prompt_ids(lm.tokenizer, prompt, "raw"), response_ids(lm.tokenizer, response, finished=True)
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1].log_softmax(-1)
    return logits.gather(1, torch.tensor(after)[:, None]).sum().item()


def test_it_learns_and_writes_an_adapter_that_peft_loads(lm_folder, tmp_path):
    files = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in Path(lm_folder).iterdir()}
    metrics = trained(lm_folder, tmp_path / "policy")
    rows = metrics_of(tmp_path / "policy")
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # before the first step the policy is the reference
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    held = [row["log_ratio_margin"] for row in rows if "accuracy" in row]
    assert len(held) == 3 and 0 < held[0] < held[-1] == pytest.approx(metrics["log_ratio_margin"])
    assert metrics["shares"][-1]["accuracy"] == 1.0 and metrics["loss"] < math.log(2)
    assert (metrics["pairs"], metrics["train_pairs"]) == (4, 12)

    assert {path.name: hashlib.sha256(path.read_bytes()).digest() for path in Path(lm_folder).iterdir()} == files
    lm = LanguageModel.load(lm_folder)
    plain = {name: logprob(lm.model, lm, "say 20", name) for name in ("aab", "zzy")}
    policy = PeftModel.from_pretrained(lm.model, tmp_path / "policy")
    found = {name: logprob(policy, lm, "say 20", name) for name in ("aab", "zzy")}
    assert found["aab"] - plain["aab"] > found["zzy"] - plain["zzy"]
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert {name: logprob(by_transformers, lm, "say 20", name) for name in found} == pytest.approx(found, abs=1e-4)

    record = json.loads((tmp_path / "policy" / RECORD).read_text())
    assert (record["lm"], record["lm_fingerprint"]) == (lm_folder, weights_fingerprint(lm_folder))
    assert (record["beta"], record["rank"], record["template"], record["comparisons"]) == (0.1, 4, "raw", 16)
    assert record["metrics"] == json.loads(json.dumps(metrics))
    names = {path.name for path in (tmp_path / "policy").iterdir()}
    assert names == {
        RECORD, "adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "README.md", "rows.safetensors",
    }  # fmt: skip
    # What it learned from, without what was held out: a judge of the same rows is refused by that.
    kept, _ = split_by_prompt(COMPARISONS, SETTINGS.held_out, seed=0)
    rows = {row_hash(c.prompt, response) for c in kept for response in c.responses}
    assert read_learned_rows(tmp_path / "policy").tolist() == sorted(rows)


def test_the_figures_are_those_of_the_saved_adapter(lm_folder, tmp_path):
    """The held-out margin, from the folder alone and transformers' own forward."""
    metrics = trained(lm_folder, tmp_path / "policy", replace(SETTINGS, epochs=1))
    lm = LanguageModel.load(lm_folder)
    _, held = split_by_prompt(COMPARISONS, 0.25, seed=0)
    pairs = encode(VocabularyReward(lm.model, lm.tokenizer), held, 64)

    def total(model, number: int) -> float:
        row = pairs.rows[number]
        with torch.no_grad():
            logits = model(torch.tensor([[*row.prompt, *row.response]])).logits[0, len(row.prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(row.response)[:, None]).sum().item()

    reference = [[total(lm.model, number) for number in pair] for pair in pairs.pairs]
    policy = PeftModel.from_pretrained(lm.model, tmp_path / "policy")
    margins = [
        total(policy, a) - total(policy, b) - (of_a - of_b)
        for (a, b), (of_a, of_b) in zip(pairs.pairs, reference, strict=True)
    ]
    assert metrics["log_ratio_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)


def test_trl_gets_the_ids_that_midcourse_renders(lm_folder, tmp_path):
    """An unfinished response has no EOS, prompts are rendered as for decoding, and the loss is that of the equation."""
    lm = LanguageModel.load(lm_folder)
    comparison = Comparison([{"role": "user", "content": "hi"}], "yes", "no", True, False)
    pairs = encode(VocabularyReward(lm.model, lm.tokenizer, template="chat"), [comparison], 64)
    trainer = _make_trainer(lm, pairs, [[0]], replace(SETTINGS, lr=1e-2), tmp_path / "out", 0.5, 2)
    (batch,) = trainer.get_train_dataloader()
    before = prompt_ids(lm.tokenizer, comparison.prompt, "chat")
    chosen, rejected = [*before, *b"yes", lm.tokenizer.eos_token_id], [*before, *b"no"]
    assert batch["input_ids"][0].tolist() == chosen
    assert batch["input_ids"][1][: len(rejected)].tolist() == rejected
    assert batch["attention_mask"].sum(1).tolist() == [len(chosen), len(rejected)]
    assert batch["completion_mask"].sum(1).tolist() == [4, 2]

    torch.manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)

    def total(row: list[int], start: int) -> float:
        logits = trainer.model(torch.tensor([row])).logits[0, start - 1 : -1].log_softmax(-1)
        return logits.gather(1, torch.tensor(row[start:])[:, None]).sum().item()

    with torch.no_grad():
        policy = [total(row, len(before)) for row in (chosen, rejected)]
        with trainer.model.disable_adapter():
            reference = [total(row, len(before)) for row in (chosen, rejected)]
        margin = (policy[0] - reference[0]) - (policy[1] - reference[1])
        loss = super(PolicyTrainer, trainer).compute_loss(trainer.model, batch).item()
    assert abs(margin) > 0.1
    assert loss == pytest.approx(math.log1p(math.exp(-0.5 * margin)), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_goes_on_to_the_same_adapter(lm_folder, tmp_path, monkeypatch, stop):
    trained(lm_folder, tmp_path / "whole")
    step = PolicyTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == stop:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PolicyTrainer, "training_step", interrupted)
    with pytest.raises(Interrupted, match=f"stopped after step {stop + 1} of 9; add --resume"):
        trained(lm_folder, tmp_path / "parts")
    monkeypatch.undo()
    assert not (tmp_path / "parts" / RECORD).exists()
    with pytest.raises(TrainingError, match="holds an unfinished run; add --resume"):
        trained(lm_folder, tmp_path / "parts")
    with pytest.raises(TrainingError, match=r"holds a run with beta 0\.1, not 0\.2"):
        trained(lm_folder, tmp_path / "parts", beta=0.2, resume=True)
    trained(lm_folder, tmp_path / "parts", resume=True)
    for name in ("adapter_model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


@pytest.mark.slow
def test_a_seed_decides(lm_folder, tmp_path):
    short = replace(SETTINGS, epochs=1)
    for name, settings in (("a", short), ("b", short), ("c", replace(short, seed=1))):
        trained(lm_folder, tmp_path / name, settings)
    a, b, c = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"beta": 0.0}, r"beta is 0\.0; use a positive number"),
        ({"beta": math.nan}, "beta is nan"),
        ({"settings": replace(SETTINGS, batch_size=0)}, "batch-size is 0"),
        ({"settings": replace(SETTINGS, held_out=1.0)}, r"held-out is 1\.0"),
    ],
)
def test_settings_that_make_no_sense(lm_folder, tmp_path, more, words):
    with pytest.raises(TrainingError, match=words):
        trained(lm_folder, tmp_path / "policy", **more)
    assert not (tmp_path / "policy").exists()


def test_an_exploding_loss_stops_it(lm_folder, tmp_path):
    with pytest.raises(TrainingError, match=r"lower --lr, which is 1e\+30"):
        trained(lm_folder, tmp_path / "policy", replace(SETTINGS, lr=1e30))
    assert not (tmp_path / "policy" / RECORD).exists()


def test_a_model_that_computes_no_numbers_is_named(lm_folder, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in load_file(f"{lm_folder}/model.safetensors").items()}
    tensors["model.layers.1.mlp.down_proj.weight"][0] = math.nan
    save_file(tensors, f"{lm_folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=f"is nan at the first step: {lm_folder} computes no number"):
        trained(lm_folder, tmp_path / "policy")


# The command line


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(vars(c)) + "\n" for c in COMPARISONS))
    return path


def test_the_verb(midcourse, lm_folder, data, tmp_path):
    asked = ("dpo", data, "--lm", lm_folder, "--template", "raw", "--batch-size", 4, "--held-out", 0.25)
    code, out, err = midcourse(*asked, "--out", tmp_path / "policy", "--epochs", 1)
    assert code == 0, err
    assert "about " in err and "3 steps of 4 pairs" in err
    assert "100% of the response" in out and "log-ratio margin" in out
    code, _, err = midcourse(*asked, "--out", tmp_path / "policy")
    assert code == 2 and "already holds a finished policy" in err
    code, out, err = midcourse(*asked, "--out", tmp_path / "other", "--epochs", 1, "--json")
    assert code == 0, err
    assert json.loads(out)["train_pairs"] == 12


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lm", "no-such-model"], "no model 'no-such-model'"),
        (["--beta", -1], "beta is -1.0"),
        (["--rank", 0], "rank is 0"),
        (["--lr", 0], "lr is 0"),
        (["--max-tokens", 3], "raise --max-tokens or shorten it"),
    ],
)
def test_misuse_is_refused_in_a_sentence(midcourse, lm_folder, data, tmp_path, flags, words):
    lm = [] if "--lm" in flags else ["--lm", lm_folder]
    code, _, err = midcourse("dpo", data, *lm, "--template", "raw", "--out", tmp_path / "policy", *flags)
    assert code == 2 and words in err
    assert len(err.strip().splitlines()) == 1 and not (tmp_path / "policy").exists()


def test_no_such_file_is_refused_before_a_model_is_loaded(midcourse, tmp_path):
    code, _, err = midcourse("dpo", tmp_path / "none.jsonl", "--lm", "no-such-model", "--out", tmp_path / "policy")
    assert code == 2 and "none.jsonl cannot be read" in err


def test_without_trl_it_says_what_to_install(midcourse, data, lm_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "midcourse.integrations.trl")
    code, _, err = midcourse("dpo", data, "--lm", lm_folder, "--out", tmp_path / "policy")
    assert code == 2 and "run: pip install 'midcourse[trl]'" in err
    with pytest.raises(MidcourseError):
        importlib.import_module("midcourse.integrations.trl")
