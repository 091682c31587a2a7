"""Judges of a comparison: independent or refused, trained, gold or a language model; and policies as arms."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from midcourse.compare.arms import CompareError
from midcourse.compare.independence import of_policy, of_reward
from midcourse.compare.judges import VersusJudge, gold_judge, reward_judge
from midcourse.compare.run import compare
from midcourse.compare.study import Policy, Task
from midcourse.data.comparisons import Comparison
from midcourse.data.judge import Judge, JudgeError
from midcourse.data.learned import read_learned_rows, row_hash, write_learned_rows
from midcourse.decode.engine import generate
from midcourse.decode.methods import Method
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.load import ModelError
from midcourse.lm.policy import load_policy
from midcourse.lm.prompt import prompt_ids
from midcourse.rewards.scalar import RewardModel
from midcourse.train.settings import Settings
from midcourse.train.training import train
from tests.chat_server import completion, longer, texts
from tests.compare.compared import PROMPTS, by_key, read_rows, study_of, write_model, write_reward


def comparisons(first: int, last: int) -> list[Comparison]:
    return [Comparison(f"prompt {i}", f" good {i}", f" bad {i}") for i in range(first, last)]


def trained(
    folder: Path, backbone: str, rows: list[Comparison], objective: str = "sequence", tune: str = "head"
) -> str:
    reward = RewardModel.create(backbone, template="raw", objective=objective, tune=tune, dtype="float64")
    train(reward, rows, folder, Settings(epochs=1, batch_size=8, held_out=0.2, lr=1e-2))
    return str(folder)


@pytest.fixture(scope="module")
def guide(lm_folder, tmp_path_factory) -> str:
    return trained(tmp_path_factory.mktemp("judges") / "guide", lm_folder, comparisons(0, 20))


@pytest.fixture(scope="module")
def disjoint(other_folder, tmp_path_factory) -> str:
    """A judge of other rows on another backbone."""
    return trained(tmp_path_factory.mktemp("judges") / "disjoint", other_folder, comparisons(20, 40))


def judged(lm_folder: str, guide: str, judge: str, out: Path, force: bool = False, methods=("pargs",)) -> dict:
    study = study_of(lm_folder, {"guide": guide})
    judges = [reward_judge(judge, "judge", dtype="float64")]
    return compare(study, methods, out, sweep={}, judges=judges, force_judges=force)


# What training records


def test_training_records_the_rows_it_learned_from(guide):
    rows = read_learned_rows(guide)
    every = {row_hash(c.prompt, text) for c in comparisons(0, 20) for text in c.responses}
    assert len(rows) == 2 * 16  # a fifth of the prompts is held out, and teaches nothing
    assert set(rows.tolist()) < every
    assert rows.tolist() == sorted(rows.tolist())


def test_a_row_is_its_texts_in_whatever_form():
    transcript = "\n\nHuman: How are you?\n\nAssistant:"
    messages = [{"role": "user", "content": "How are you?"}]
    assert row_hash(transcript, " Fine.") == row_hash(messages, "Fine. ") == row_hash("How are  you?", "Fine.")
    assert row_hash("How are you?", "Fine.") != row_hash("How are you?", "Fine")
    assert row_hash("a b", "c") != row_hash("a", "b c")


# Independence


@pytest.mark.slow
def test_a_judge_of_other_rows_and_weights_judges(lm_folder, guide, disjoint, tmp_path):
    record = judged(lm_folder, guide, disjoint, tmp_path)
    assert record["judges"]["judge"]["notes"] == []
    metrics = json.loads(Path(disjoint, "midcourse.json").read_text())["metrics"]
    assert record["judges"]["judge"]["accuracy"] == metrics["shares"][-1]["accuracy"]
    reward = RewardModel.load(disjoint, dtype="float64")
    rows = by_key(read_rows(tmp_path))
    for one in read_rows(tmp_path, "judgements.jsonl"):
        row = rows[one["key"]]
        (score,) = reward.score([row["prompt"]], [row["text"]], finished=row["finish_reason"] == "stop")
        # A response that was cut has the reward of a prefix; an empty one that of the finished text.
        assert one["score"] == pytest.approx(score.rewards[-1], abs=1e-8)


def test_a_judge_that_shares_rows_is_refused(lm_folder, other_folder, guide, tmp_path):
    kept = set(read_learned_rows(guide).tolist())
    learned = [c for c in comparisons(0, 20) if row_hash(c.prompt, c.chosen) in kept]
    shared = trained(tmp_path / "shared", other_folder, [*comparisons(20, 60), *learned[:1]])
    both = set(read_learned_rows(shared).tolist()) & kept
    if not both:  # that prompt was held out
        write_learned_rows(shared, [*comparisons(20, 60), *learned[:1]])
    with pytest.raises(CompareError, match="judge judge learned from 2 of the 32 rows that guide learned from"):
        judged(lm_folder, guide, shared, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    record = judged(lm_folder, guide, shared, tmp_path / "out", force=True)
    assert record["judges"]["judge"]["notes"] == ["forced: judge learned from 2 of the 32 rows that guide learned from"]


def test_a_judge_on_the_guides_backbone_is_refused(lm_folder, guide, tmp_path):
    same = trained(tmp_path / "same", lm_folder, comparisons(20, 40))
    with pytest.raises(CompareError, match="shares weights with the guide guide"):
        judged(lm_folder, guide, same, tmp_path / "out")


def test_the_guide_itself_is_refused(lm_folder, guide, tmp_path):
    with pytest.raises(CompareError, match="is the guide guide itself"):
        judged(lm_folder, guide, guide, tmp_path / "out")


def test_a_judge_that_was_initialised_from_the_guide_is_refused(lm_folder, tmp_path):
    """The guide trained all of its weights; the judge began with them, and trained all of them again."""
    guide = trained(tmp_path / "guide", lm_folder, comparisons(0, 20), tune="all")
    RewardModel.load(guide, dtype="float64").export(tmp_path / "exported")
    RewardModel.load(guide).tokenizer.save_pretrained(tmp_path / "exported")
    judge = trained(tmp_path / "judge", str(tmp_path / "exported"), comparisons(20, 40), tune="all")
    assert not of_reward(judge, "judge").matrices.keys().isdisjoint(of_reward(guide, "guide").matrices)
    with pytest.raises(CompareError, match="shares weights"):
        judged(lm_folder, guide, judge, tmp_path / "out")


def test_a_prefix_reward_is_no_judge_of_whole_texts(lm_folder, other_folder, guide, tmp_path):
    prefix = trained(tmp_path / "prefix", other_folder, comparisons(20, 40), objective="prefix")
    with pytest.raises(CompareError, match="not comparable"):
        judged(lm_folder, guide, prefix, tmp_path / "out")


def test_a_function_that_guides_is_no_judge(lm_folder, tmp_path):
    from midcourse.compare.independence import of_function
    from midcourse.compare.study import GuidingReward
    from midcourse.rewards.text import FunctionReward

    study = study_of(lm_folder)
    study = replace(study, guides={"len": GuidingReward(FunctionReward(len), of_function("builtins:len"))})
    with pytest.raises(CompareError, match="is the guide builtins:len itself"):
        compare(study, ["pargs"], tmp_path / "out", sweep={}, judges=[gold_judge("builtins:len")])
    compare(study, ["pargs"], tmp_path / "out", sweep={}, judges=[gold_judge("builtins:hash")])


def test_what_is_not_recorded_is_told(lm_folder, other_folder, guide, tmp_path):
    silent = write_reward(tmp_path / "silent", other_folder)
    record = judged(lm_folder, guide, silent, tmp_path / "out")
    assert "which rows judge learned from is not recorded" in record["judges"]["judge"]["notes"][0]


def test_a_policy_is_a_guide_to_its_judges(lm_folder, other_folder, disjoint, tmp_path):
    study = study_of(lm_folder)
    policy = Policy(load_policy(other_folder, study.lm, dtype="float64"), of_policy(other_folder, "other"))
    study = replace(study, policies={"other": policy})
    with pytest.raises(CompareError, match="shares weights with the guide other"):
        compare(study, ["policy=other"], tmp_path, judges=[reward_judge(disjoint, "judge", dtype="float64")])


def test_two_judges_of_one_name_are_refused(lm_folder, tmp_path):
    judge = gold_judge("builtins:len")
    with pytest.raises(CompareError, match="two judges"):
        compare(study_of(lm_folder), ["plain"], tmp_path, judges=[judge, judge])


# A language model as the judge


def llm(server) -> VersusJudge:
    return VersusJudge("big", Judge(server.url, "big", "The longer one is better.", retries=0))


def test_llm_judge_compares_with_plain_and_the_references(serve, lm_folder, rewards, tmp_path):
    server = serve(longer)
    tasks = [Task("abc", "x"), Task("The ferry"), Task("A", "y" * 80)]
    study = study_of(lm_folder, {"kind": rewards["kind"]}, tasks=tasks)
    record = compare(study, ["pargs"], tmp_path, sweep={"reward_weight": (6,)}, judges=[llm(server)])
    assert record["judges"]["big"]["kind"] == "llm"
    assert "The longer one is better." in record["judges"]["big"]["instructions"]
    rows = by_key(read_rows(tmp_path))
    verdicts = {(row["key"], row["versus"]): row for row in read_rows(tmp_path, "judgements.jsonl")}
    assert len(verdicts) == 3 + 2 + 2 + 2  # pargs and the references with plain, pargs and plain with the references
    for (key, versus), verdict in verdicts.items():
        row = rows[key]
        other = rows[f"{versus}/{row['prompt_id']}/0"]
        a, b = len(row["text"]), len(other["text"])
        assert verdict["outcome"] == (0.5 if a == b else float(a > b))
        assert verdict["parsed"]
        assert verdict["score"] is None
    asked = sum(rows[key]["text"] != rows[f"{versus}/{rows[key]['prompt_id']}/0"]["text"] for key, versus in verdicts)
    assert len(server.requests) == 2 * asked  # both orders, and none of equal texts
    assert {request["temperature"] for request in server.requests} == {0}
    compare(study, ["pargs"], tmp_path, sweep={"reward_weight": (6,)}, judges=[llm(server)], resume=True)
    assert len(server.requests) == 2 * asked


def test_contradictions_are_ties_and_unreadable_verdicts_are_counted(serve, lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"]}, seeds=2)
    for name, reply, outcome in (("tie", "VERDICT: A", 0.5), ("none", "I cannot say", None)):
        server = serve(lambda request, reply=reply: (200, completion(reply)))
        compare(study, ["pargs"], tmp_path / name, sweep={"reward_weight": (6,)}, judges=[llm(server)])
        rows = by_key(read_rows(tmp_path / name))
        for row in read_rows(tmp_path / name, "judgements.jsonl"):
            same = rows[row["key"]]["text"] == rows["plain/" + row["key"].partition("/")[2]]["text"]
            assert row["outcome"] == (0.5 if same else outcome)
            assert row["parsed"] == (same or outcome is not None)


def test_a_judge_that_fails_keeps_what_it_said(serve, lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"]}, seeds=2)
    answered = []

    def fails_late(request):
        answered.append(texts(request))
        return longer(request) if len(answered) <= 6 else (500, {"error": "down"})

    ask = {"sweep": {"reward_weight": (6,)}, "concurrency": 1}
    with pytest.raises(JudgeError, match="500"):
        compare(study, ["pargs"], tmp_path, judges=[llm(serve(fails_late))], **ask)
    kept = read_rows(tmp_path, "judgements.jsonl")
    assert kept
    compare(study, ["pargs"], tmp_path, judges=[llm(serve(longer))], resume=True, **ask)
    whole = read_rows(tmp_path, "judgements.jsonl")
    assert whole[: len(kept)] == kept
    assert len(whole) == 2 * len(PROMPTS)


# Policies


@pytest.fixture
def policy_folder(lm_folder, tmp_path) -> str:
    """An adapter of random weights on the language model, as PEFT writes it."""
    model = get_peft_model(
        LanguageModel.load(lm_folder, dtype="float64").model, LoraConfig(r=2, target_modules="all-linear")
    )
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "my-dpo")
    return str(tmp_path / "my-dpo")


def with_policy(lm_folder: str, source: str, **settings):
    study = study_of(lm_folder, **settings)
    policy = Policy(load_policy(source, study.lm, dtype="float64"), of_policy(source, "my-dpo"))
    return replace(study, policies={"my-dpo": policy})


def test_policy_kl_is_exact(lm_folder, policy_folder, tmp_path):
    study = with_policy(lm_folder, policy_folder)
    compare(study, [f"policy={policy_folder}"], tmp_path / "out")
    policy = study.policies["my-dpo"].lm
    rows = [row for row in read_rows(tmp_path / "out") if row["method"] == "policy"]
    assert [row["arm"] for row in rows] == ["policy my-dpo"] * len(PROMPTS)
    for row in rows:
        assert row["guidance_kl"] is None and row["kl_bound"] is None and row["guide_reward"] is None
        ids = prompt_ids(study.lm.tokenizer, row["prompt"], "raw")
        for token in row["tokens"]:
            # KL(q || pi), q the policy's ten likeliest tokens, by hand.
            with torch.no_grad():
                ours, theirs = (m.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1) for m in (policy, study.lm))
            best = ours.topk(10).indices
            q = ours[best].softmax(0)
            kl = (q * (q.log() - theirs[best])).sum().item()
            assert token["total_kl"] == pytest.approx(kl, abs=1e-9)
            assert token["guidance_kl"] is None
            assert token["reference_logprob"] == pytest.approx(theirs[token["token_id"]].item(), abs=1e-9)
            place = best.tolist().index(token["token_id"])
            assert token["logprob"] == pytest.approx(q[place].log().item(), abs=1e-9)
            ids.append(token["token_id"])
        assert row["total_kl"] == pytest.approx(sum(token["total_kl"] for token in row["tokens"]))
        assert row["total_kl"] > 0
        assert row["cost"]["reward_passes"] == 0


def test_policy_is_sampled_like_plain(lm_folder, policy_folder, tmp_path):
    study = with_policy(lm_folder, policy_folder, seeds=2)
    compare(study, [f"policy={policy_folder}"], tmp_path / "out")
    plain = Method(None, reward_weight=0.0)
    for row in read_rows(tmp_path / "out"):
        if row["method"] == "policy":
            (want,) = generate(
                study.policies["my-dpo"].lm, [row["prompt"]], method=plain, seed=row["row_seed"], max_new_tokens=6
            )
            assert row["text"] == want.text


def test_the_language_models_own_copy_is_plain(lm_folder, tmp_path):
    study = with_policy(lm_folder, lm_folder)
    compare(study, ["policy=my-dpo"], tmp_path)
    rows = by_key(read_rows(tmp_path))
    for i in range(len(PROMPTS)):
        plain, policy = rows[f"plain/{i}/0"], rows[f"policy my-dpo/{i}/0"]
        assert policy["text"] == plain["text"]
        assert policy["total_kl"] == pytest.approx(plain["total_kl"], abs=1e-9)  # what the cut to ten tokens costs


def test_adapter_leaves_the_language_model_alone(lm_folder, policy_folder):
    lm = LanguageModel.load(lm_folder, dtype="float64")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    policy = load_policy(policy_folder, lm, dtype="float64")
    after = lm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(before[n], t) for n, t in policy.model.state_dict().items() if n in before)


def test_policies_that_cannot_be_used(lm_folder, policy_folder, tmp_path):
    lm = LanguageModel.load(lm_folder, dtype="float64")
    other = write_model(tmp_path / "bytes")
    config = json.loads(Path(other, "generation_config.json").read_text())
    Path(other, "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [7]}))
    with pytest.raises(ModelError, match="ends texts with the token ids"):
        load_policy(other, lm)
    tokenizer = json.loads(Path(other, "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {token: (i + 1) % 256 for token, i in tokenizer["model"]["vocab"].items()}
    Path(other, "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="other tokens"):
        load_policy(other, lm)
    Path(policy_folder, "adapter_model.safetensors").rename(Path(policy_folder, "adapter_model.bin"))
    with pytest.raises(ModelError, match="save the adapter as safetensors"):
        load_policy(policy_folder, lm)
    Path(policy_folder, "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no base_model_name_or_path"):
        load_policy(policy_folder, lm)
