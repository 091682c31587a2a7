"""Comparisons on tiny models: their rows are midcourse's own, whole and once, whatever interrupts them."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from midcourse.compare.arms import CompareError, parse_sweep
from midcourse.compare.independence import of_function
from midcourse.compare.judges import NumberJudge, gold_judge
from midcourse.compare.run import SettingSearch, compare
from midcourse.compare.study import Task, read_tasks
from midcourse.compare.writing import row_seed
from midcourse.data.formats import DataError
from midcourse.decode.engine import generate
from midcourse.decode.methods import MethodError
from midcourse.lm.prompt import PromptError
from midcourse.rewards.info import RewardError
from studies.forked import in_fork
from tests.compare.compared import PROMPTS, by_key, read_rows, study_of, write_prompts
from tests.pace import slow_except

METHODS = ["pargs", "args", "args-stochastic", "pargs-greedy", "rad", "fudge", "best-of-n:3", "cd-blockwise:2"]


def long(text: str) -> float:
    """A gold reward."""
    return float(len(text))


@pytest.fixture
def longest(tmp_path, monkeypatch) -> NumberJudge:
    (tmp_path / "taste.py").write_text("def long(text):\n    return len(text)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return NumberJudge("taste:long", "gold", of_function("taste:long"), lambda them: [long(one.text) for one in them])


# Rows


@pytest.mark.parametrize("method", slow_except(["pargs", "best-of-n:3", "cd-blockwise:2"], METHODS))
def test_rows_are_what_generate_writes(lm_folder, rewards, tmp_path, method):
    study = study_of(lm_folder, {"kind": rewards["kind"]}, seeds=2)
    sweep = {"reward_weight": (1.5,)} if method not in ("best-of-n:3", "cd-blockwise:2") else {}
    compare(study, [method], tmp_path, sweep=sweep)
    found = [row for row in read_rows(tmp_path) if row["method"] != "plain"]
    assert len(found) == 2 * len(PROMPTS)
    base = {} if method in ("args", "pargs-greedy") else {"temperature": 1.0}
    for row in found:
        (want,) = generate(
            study.lm,
            [row["prompt"]],
            study.guides["kind"].reward,
            method=method,
            max_new_tokens=6,
            top_k=10,
            seed=row_seed(row["prompt_id"], row["seed"]),
            **{name: values[0] for name, values in sweep.items()},
            **base,
        )
        assert row["text"] == want.text
        assert [token["token_id"] for token in row["tokens"]] == [step.token_id for step in want.steps]
        assert "".join(token["text"] for token in row["tokens"]) == row["text"]
        assert row["finish_reason"] == want.finish_reason
        assert row["guide_reward"] == pytest.approx(want.reward, abs=1e-10)
        for name in ("logprob", "reference_logprob", "reward", "weight", "total_kl"):
            steps = [getattr(step, name) for step in want.steps]
            assert [token[name] for token in row["tokens"]] == [
                None if value is None else pytest.approx(value, abs=1e-10) for value in steps
            ]
        if method == "best-of-n:3":
            assert row["guidance_kl"] is None
            assert row["kl_bound"] == pytest.approx(math.log(3) - 2 / 3)
        else:
            assert row["kl_bound"] is None
            assert (row["guidance_kl"] is None) == (want.guidance_kl is None)
            assert row["guidance_kl"] is None or row["guidance_kl"] == pytest.approx(want.guidance_kl, abs=1e-10)


@pytest.mark.parametrize(("method", "reward"), [("farma", "every"), ("genarm", "every"), ("pargs", "trunk")])
def test_rows_of_other_kinds_of_rewards(lm_folder, rewards, tmp_path, method, reward):
    study = study_of(lm_folder, {reward: rewards[reward]})
    compare(study, [method], tmp_path, sweep={"reward_weight": (2.0,)})
    for row in read_rows(tmp_path)[1:]:
        if row["method"] == method:
            given = {"seed": row_seed(row["prompt_id"], 0), "reward_weight": 2.0, "max_new_tokens": 6}
            (want,) = generate(study.lm, [row["prompt"]], study.guides[reward].reward, method=method, **given)
            assert [token["token_id"] for token in row["tokens"]] == [step.token_id for step in want.steps]
            assert (row["guidance_kl"] is None) == (method != "pargs")
            assert row["total_kl"] == pytest.approx(want.total_kl, abs=1e-10)


def test_every_method_setting_prompt_and_seed_once(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"]}, seeds=2)
    sweep = parse_sweep(["reward_weight=0,2", "samples=2,4"])
    record = compare(study, ["pargs", "best-of-n"], tmp_path, sweep=sweep)
    rows = by_key(read_rows(tmp_path))
    arms = ["plain", "pargs kind w=0", "pargs kind w=2", "best-of-n kind n=2", "best-of-n kind n=4"]
    assert list(record["arms"]) == arms
    assert rows.keys() == {f"{arm}/{i}/{seed}" for arm in arms for i in range(4) for seed in range(2)}
    assert json.loads((tmp_path / "compare.json").read_text())["arms"] == record["arms"]
    # At weight 0 guidance is plain decoding, with the same random numbers.
    for i in range(4):
        assert rows[f"pargs kind w=0/{i}/1"]["text"] == rows[f"plain/{i}/1"]["text"]
        assert rows[f"pargs kind w=0/{i}/1"]["guidance_kl"] == pytest.approx(0, abs=1e-12)
    # No two prompts or seeds share theirs.
    assert len({row["row_seed"] for row in rows.values()}) == 8
    assert "candidates" not in rows["plain/0/0"]["tokens"][0]


def test_greedy_arms_are_the_same_for_every_seed(lm_folder, rewards, tmp_path):
    compare(study_of(lm_folder, {"kind": rewards["kind"]}, seeds=3), ["pargs-greedy"], tmp_path, sweep={})
    rows = by_key([row for row in read_rows(tmp_path) if row["greedy"]])
    assert len(rows) == 3 * len(PROMPTS)
    for i in range(len(PROMPTS)):
        first, *others = (rows[f"pargs-greedy kind w=1/{i}/{seed}"] for seed in range(3))
        for other in others:
            assert other["tokens"] == first["tokens"]
            assert other["cost"] == first["cost"]


def test_candidates_are_saved_where_asked_for(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"]}, save_candidates=True)
    compare(study, ["pargs"], tmp_path, sweep={})
    row = by_key(read_rows(tmp_path))["pargs kind w=2/0/0"]
    token = row["tokens"][0]
    assert len(token["candidates"]) == 10
    drawn = next(one for one in token["candidates"] if one["token_id"] == token["token_id"])
    assert drawn["reward"] == token["reward"]
    assert drawn["logprob"] == token["reference_logprob"]


def test_another_base_has_no_comparable_guidance_kl(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"]})
    record = compare(study, ["pargs", "best-of-n:2"], tmp_path, sweep=parse_sweep(["top_k=5,10"]))
    rows = by_key(read_rows(tmp_path))
    for k, comparable in ((5, False), (10, True)):
        token = rows[f"pargs kind w=2 top_k={k}/0/0"]
        assert (token["guidance_kl"] is not None) == comparable
        assert (token["tokens"][0]["guidance_kl"] is not None) == comparable
        assert token["total_kl"] > 0
        assert (rows[f"best-of-n kind n=2 top_k={k}/0/0"]["kl_bound"] is not None) == comparable
        assert record["arms"][f"pargs kind w=2 top_k={k}"]["base"] == comparable


def test_reference_responses_are_an_arm(lm_folder, tmp_path, longest):
    tasks = [Task("abc", "xyz"), Task("def")]
    out = tmp_path / "out"
    compare(study_of(lm_folder, tasks=tasks), ["plain"], out, judges=[longest])
    (reference,) = [row for row in read_rows(out) if row["arm"] == "reference"]
    assert (reference["text"], reference["prompt_id"], reference["tokens"]) == ("xyz", 0, [])
    judged = {row["key"]: row["score"] for row in read_rows(out, "judgements.jsonl")}
    assert judged[reference["key"]] == 3.0
    assert len(judged) == 3


# Costs


def test_costs_are_the_positions_that_are_computed(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, rewards, batch_size=1)
    methods = ["pargs", "best-of-n:3@kind", "cd-blockwise:2@kind"]
    record = compare(study, methods, tmp_path, sweep={})
    rows = by_key(read_rows(tmp_path))
    for i, prompt in enumerate(PROMPTS):
        count = {arm: len(rows[f"{arm}/{i}/0"]["tokens"]) for arm in record["arms"]}
        cost = {arm: rows[f"{arm}/{i}/0"]["cost"] for arm in record["arms"]}
        before = len(prompt)
        # The last token is read by nobody: the prompt and all others are.
        for arm in ("plain", "pargs every w=2", "pargs trunk w=2"):
            assert cost[arm]["lm_passes"] == before + count[arm] - 1
        assert cost["plain"]["reward_passes"] == cost["plain"]["candidates"] == 0
        # The prompt once, and for every token its ten candidates, of which the chosen one is the model's next step.
        assert cost["pargs kind w=2"]["lm_passes"] == before + 10 * count["pargs kind w=2"]
        assert cost["pargs kind w=2"]["reward_passes"] == 0
        assert cost["pargs kind w=2"]["candidates"] == 10 * count["pargs kind w=2"]
        # A reward of the vocabulary reads what the model reads.
        assert cost["pargs every w=2"]["reward_passes"] == before + count["pargs every w=2"] - 1
        # A trunk reward has no forward of its own.
        assert cost["pargs trunk w=2"]["reward_passes"] == 0
        assert cost["pargs trunk w=2"]["candidates"] == 10 * count["pargs trunk w=2"]
        assert cost["best-of-n kind n=3"]["candidates"] == 3
        assert cost["cd-blockwise kind n=2"]["candidates"] == 2  # one block of up to 16 tokens
        for one in cost.values():
            assert 0 < one["first_token_seconds"] <= one["seconds"]


def test_costs_of_a_batch_are_shared_and_nothing_is_lost(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"]}, tasks=[Task("abcd")] * 4, batch_size=4)
    compare(study, ["pargs", "best-of-n:4", "best-of-n:2"], tmp_path, sweep={})
    rows = read_rows(tmp_path)
    pargs = [row for row in rows if row["method"] == "pargs"]
    tokens = sum(len(row["tokens"]) for row in pargs)
    assert sum(row["cost"]["lm_passes"] for row in pargs) == pytest.approx(4 * 4 + 10 * tokens)
    # One prompt of best-of-4 fills the batch: prompt read once, then four samples until the last one ends.
    for row in rows:
        if row["setting"] == {"samples": 2}:  # two prompts side by side: each has its own scoring, prompt and responses
            assert row["cost"]["reward_passes"] >= 4 + len(row["tokens"])
        if row["setting"] == {"samples": 4}:
            assert row["cost"]["lm_passes"] >= 4 + len(row["tokens"]) - 1


def test_a_row_names_its_batch_by_the_first_prompt(lm_folder, tmp_path):
    compare(study_of(lm_folder, tasks=[Task("ab")] * 5, batch_size=2), ["plain"], tmp_path, sweep={})
    assert {row["prompt_id"]: row["cost"]["batch"] for row in read_rows(tmp_path)} == {0: 0, 1: 0, 2: 2, 3: 2, 4: 4}


def test_parameters_count_what_positions_are_multiplied_by(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"], "trunk": rewards["trunk"]})
    record = compare(study, ["pargs"], tmp_path, sweep={})
    model = study.lm.model
    every = sum(p.numel() for p in model.parameters())
    embedding = model.get_input_embeddings().weight.numel()
    tied = model.config.tie_word_embeddings
    assert record["arms"]["plain"]["lm_parameters"] == every - (0 if tied else embedding)
    assert record["arms"]["plain"]["reward_parameters"] == 0
    layers = sum(p.numel() for p in model.get_decoder().parameters()) - embedding
    assert record["arms"]["pargs kind w=2"]["reward_parameters"] == layers
    assert record["arms"]["pargs trunk w=2"]["reward_parameters"] == 0


# Plans


def test_pairs_that_do_not_go_together_are_told(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, rewards)
    arms, left_out = study.plan(["farma", "best-of-n:2", "pargs@trunk"], {})
    assert [arm.name for arm in arms] == [
        "plain", "farma every w=1", "farma trunk w=1", "best-of-n kind n=2", "best-of-n every n=2",
        "best-of-n trunk n=2", "pargs trunk w=2",
    ]  # fmt: skip
    told = {(one.method, one.reward): one.reason for one in left_out}
    assert "whole vocabulary" in told["farma", "kind"]
    record = compare(study, ["farma", "best-of-n:2"], tmp_path, sweep={})
    assert {(one["method"], one["reward"]) for one in record["left_out"]} == told.keys()


def test_default_sweep(lm_folder, rewards):
    arms, _ = study_of(lm_folder, {"kind": rewards["kind"]}).plan(["pargs", "best-of-n", "cd-blockwise"], None)
    names = [arm.name for arm in arms]
    assert names[1:5] == [f"pargs kind w={w}" for w in ("0.5", "1", "2", "4")]
    assert names[5:] == ["best-of-n kind n=4", "best-of-n kind n=16", "cd-blockwise kind n=6"]


def test_all_methods_start_from_the_base(lm_folder, rewards):
    study = study_of(lm_folder, {"kind": rewards["kind"], "every": rewards["every"]})
    sweep = parse_sweep(["reward_threshold=0.5"])
    arms, _ = study.plan(["args-stochastic", "rad", "fudge", "cards", "genarm", "args"], sweep)
    for arm in arms:
        if arm.method == "genarm":
            assert arm.settled.top_k is None and not arm.base
        else:
            assert (arm.settled.top_k, arm.base) == (10, True)
    assert next(arm for arm in arms if arm.method == "args-stochastic").settled.temperature == 1.0
    assert next(arm for arm in arms if arm.method == "args").greedy


def test_budgets_are_swept_too(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"]})
    compare(study, ["pargs", "args"], tmp_path, sweep=parse_sweep(["kl_budget=0.5", "reward_weight=8"]))
    rows = [row for row in read_rows(tmp_path) if row["method"] == "pargs"]
    assert all(row["arm"] == "pargs kind w=8 kl_budget=0.5" for row in rows)
    assert max(row["guidance_kl"] for row in rows) <= 0.5
    assert any(row["arm"] == "args kind w=8" for row in read_rows(tmp_path))  # a greedy choice has no budget


@pytest.mark.parametrize(
    ("methods", "sweep", "said"),
    [
        (["pragmatic"], {}, "pragmatic"),
        (["pargs@other"], {}, "not among --rewards"),
        (["plain@kind"], {}, "takes no reward"),
        (["farma"], {}, "can use no reward"),
        (["soft-value"], {}, "no soft value"),
        (["cards"], {}, "--sweep reward_threshold"),
        (["pargs"], {"samples": (2,)}, "changes none of the methods"),
        (["best-of-n"], {"reward_weight": (2,)}, "changes none"),
        (["pargs"], {"top_k": (0,)}, "top-k 0"),
        (["policy="], {}, "names no model"),
    ],
)
def test_plans_that_make_no_sense(lm_folder, rewards, methods, sweep, said):
    study = study_of(lm_folder, {"kind": rewards["kind"]})
    with pytest.raises((CompareError, MethodError), match=said):
        study.plan(methods, sweep)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("reward_weight", "form SETTING=VALUE"),
        ("reward_weight=a", "no number"),
        ("top_k=2.5", "no whole number"),
        ("size=2", "no setting of any method"),
        ("greedy=1", "no setting of any method"),
    ],
)
def test_sweeps_that_make_no_sense(text, said):
    with pytest.raises(CompareError, match=said):
        parse_sweep([text])


def test_settings_that_make_no_sense(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"]})
    for change, said in (({"seeds": 0}, "seeds is 0"), ({"batch_size": 0}, "batch-size"), ({"max_new_tokens": 0}, "0")):
        with pytest.raises(CompareError, match=said):
            compare(replace(study, **change), ["pargs"], tmp_path / "out")
    with pytest.raises(PromptError, match="exceed the context"):
        compare(replace(study, max_new_tokens=255), ["pargs"], tmp_path / "out")
    with pytest.raises(RewardError, match="template"):
        compare(replace(study, template="chat"), ["pargs"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompts_with_references(tmp_path):
    path = write_prompts(tmp_path / "prompts.jsonl", [{"prompt": "a", "reference": "b"}, {"prompt": "c"}])
    assert read_tasks(path) == [Task("a", "b"), Task("c")]
    assert read_tasks(path, 1) == [Task("a", "b")]
    with pytest.raises(CompareError, match="limit-prompts 0"):
        read_tasks(path, 0)
    for bad in (3, ["x"], "\ud83d"):
        write_prompts(path, [{"prompt": "a"}, {"prompt": "a", "reference": bad}])
        with pytest.raises(DataError, match="line 2, field reference"):
            read_tasks(path)


# Resuming

CALL = """
import os, signal, sys
from pathlib import Path
from midcourse.compare import run, writing
from midcourse.compare.judges import gold_judge
from tests.compare.compared import study_of

lm, reward, out, then, rows = sys.argv[1:]
append, left = writing.append_row, int(rows)

def append_and_stop(file, row):
    global left
    append(file, row)
    left -= 1
    if left == 0 and then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if left == 0 and then == "wait":
        print("written", flush=True)
        sys.stdin.read()

writing.append_row = append_and_stop
study = study_of(lm, {"kind": reward}, seeds=3, max_new_tokens=16, batch_size=2)
judges = [gold_judge("builtins:len")]
run.compare(study, ["pargs", "best-of-n:2"], Path(out), sweep={}, judges=judges, resume=True)
"""


def assert_same_row(have: dict, want: dict) -> None:
    """Equal but for the cost, and for the rounding that other neighbours in a batch bring."""
    assert have.keys() == want.keys()
    for name in have.keys() - {"cost", "tokens"}:
        exact = not isinstance(want[name], float)
        assert have[name] == want[name] if exact else have[name] == pytest.approx(want[name], abs=1e-9), name
    assert len(have["tokens"]) == len(want["tokens"])
    for ours, theirs in zip(have["tokens"], want["tokens"], strict=True):
        assert ours == {k: pytest.approx(v, abs=1e-9) if isinstance(v, float) else v for k, v in theirs.items()}


def started(lm_folder: str, reward: str, out: Path, then: str, rows: int) -> subprocess.Popen:
    """A comparison in a process of its own, which after so many rows dies, or says so and waits."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
    start = [sys.executable, "-c", CALL] if then == "wait" else in_fork(CALL)  # one that waits is killed from here
    call = [*start, lm_folder, reward, str(out), then, str(rows)]
    pipe = subprocess.PIPE
    return subprocess.Popen(call, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_resume_after_kill_loses_and_repeats_nothing(lm_folder, rewards, tmp_path):
    out, results = tmp_path / "out", tmp_path / "out/results.jsonl"
    kept = b""
    for rows in (3, 11):
        process = started(lm_folder, rewards["kind"], out, "die", rows)
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        data = results.read_bytes()
        assert data.startswith(kept)  # what was there is not written again
        assert data.count(b"\n") == kept.count(b"\n") + rows
        kept = data
    with results.open("ab") as file:
        file.write(b'{"key": "torn')  # as a kill between two writes leaves it
    process = started(lm_folder, rewards["kind"], out, "go on", 0)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert results.read_bytes().startswith(kept)
    have = by_key(read_rows(out))
    study = study_of(lm_folder, {"kind": rewards["kind"]}, seeds=3, max_new_tokens=16, batch_size=2)
    whole = replace(study, batch_size=12)
    compare(whole, ["pargs", "best-of-n:2"], tmp_path / "whole", sweep={}, judges=[gold_judge("builtins:len")])
    want = by_key(read_rows(tmp_path / "whole"))
    assert have.keys() == want.keys()
    for key, row in want.items():
        assert_same_row(have[key], row)
    judged = read_rows(out, "judgements.jsonl")
    assert sorted(row["key"] for row in judged) == sorted(want)


@pytest.mark.slow
def test_two_processes_on_one_folder_refuse(lm_folder, rewards, tmp_path):
    process = started(lm_folder, rewards["kind"], tmp_path, "wait", 1)
    try:
        assert process.stdout.readline() == "written\n"
        study = study_of(lm_folder, {"kind": rewards["kind"]})
        with pytest.raises(CompareError, match=f"another comparison \\(process {process.pid}\\)"):
            compare(study, ["pargs"], tmp_path, sweep={}, resume=True)
    finally:
        process.kill()
        process.communicate()


def test_finished_comparison_resumes_to_itself(lm_folder, rewards, tmp_path, longest):
    study = study_of(lm_folder, {"kind": rewards["kind"]})
    compare(study, ["pargs"], tmp_path / "out", sweep={}, judges=[longest])
    files = {name: (tmp_path / "out" / name).read_bytes() for name in ("results.jsonl", "judgements.jsonl")}
    with pytest.raises(CompareError, match="add --resume"):
        compare(study, ["pargs"], tmp_path / "out", sweep={})
    compare(study, ["pargs"], tmp_path / "out", sweep={}, judges=[longest], resume=True)
    for name, data in files.items():
        assert (tmp_path / "out" / name).read_bytes() == data


def test_methods_settings_and_judges_may_be_added(lm_folder, rewards, tmp_path, longest):
    study, out = study_of(lm_folder, {"kind": rewards["kind"]}), tmp_path / "out"
    compare(study, ["pargs"], out, sweep={"reward_weight": (1,)})
    before = (out / "results.jsonl").read_bytes()
    record = compare(study, ["pargs", "args"], out, sweep={"reward_weight": (2,)}, judges=[longest], resume=True)
    assert (out / "results.jsonl").read_bytes().startswith(before)
    assert list(record["arms"]) == ["plain", "pargs kind w=1", "pargs kind w=2", "args kind w=2"]
    assert {row["key"] for row in read_rows(out, "judgements.jsonl")} == by_key(read_rows(out)).keys()
    assert record["incomplete"] == {}


def test_unfinished_arms_of_earlier_calls_are_told(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"]})
    compare(study, ["pargs"], tmp_path, sweep={})
    lines = (tmp_path / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(line for line in lines if b'"arm": "pargs kind w=2"' not in line))
    assert compare(study, ["args"], tmp_path, sweep={}, resume=True)["incomplete"] == {"pargs kind w=2": len(PROMPTS)}


def test_foreign_resume_is_refused(lm_folder, other_folder, rewards, tmp_path, longest):
    study, out = study_of(lm_folder, {"kind": rewards["kind"]}), tmp_path / "out"
    compare(study, ["pargs"], out, sweep={}, judges=[longest])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    changes = [
        ({"max_new_tokens": 5}, "max_new_tokens 6, not 5"),
        ({"seeds": 2}, "seeds 1, not 2"),
        ({"tasks": [Task("other"), *study.tasks[1:]]}, "prompts_fingerprint"),
        ({"base": replace(study.base, top_k=5)}, "top_k 10, not 5"),
        ({"lm_fingerprint": "another"}, "lm_fingerprint"),
        ({"save_candidates": True}, "save_candidates"),
    ]
    for change, said in changes:
        with pytest.raises(CompareError, match=said):
            compare(replace(study, **change), ["pargs"], out, sweep={}, resume=True)
    guide = study.guides["kind"]
    other = replace(guide, origin=replace(guide.origin, fingerprint="another"))
    with pytest.raises(CompareError, match="rows of kind with other weights"):
        compare(replace(study, guides={"kind": other}), ["pargs"], out, sweep={}, resume=True)
    judge = replace(longest, origin=replace(longest.origin, fingerprint="another"))
    with pytest.raises(CompareError, match="another taste:long"):
        compare(study, ["pargs"], out, sweep={}, judges=[judge], resume=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_foreign_folders_and_rows_are_refused(lm_folder, tmp_path):
    study = study_of(lm_folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("years of work")
    with pytest.raises(CompareError, match="not empty"):
        compare(study, ["plain"], tmp_path / "thesis", resume=True)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(CompareError, match="is a file"):
        compare(study, ["plain"], tmp_path / "file")
    compare(study, ["plain"], tmp_path / "out")
    (tmp_path / "out/compare.json").write_text("{torn")
    with pytest.raises(CompareError, match=r"compare\.json is damaged"):
        compare(study, ["plain"], tmp_path / "out", resume=True)


def test_a_tampered_record_is_a_sentence(lm_folder, tmp_path, longest):
    study, out = study_of(lm_folder), tmp_path / "out"
    compare(study, ["plain"], out, judges=[longest])
    record = json.loads((out / "compare.json").read_text())
    for name, value in [
        ("asked", [1]), ("asked", None), ("guides", [1]), ("guides", {"kind": 5}), ("judges", None),
        ("judges", {"taste:long": 5}), ("judges", {"taste:long": {}}), ("arms", [1]), ("arms", {"plain": 5}),
        ("left_out", 5), ("left_out", [5]), ("tuned", 5), ("tried", [1]),
    ]:  # fmt: skip
        (out / "compare.json").write_text(json.dumps({**record, name: value}))
        with pytest.raises(CompareError, match=r"compare\.json is damaged"):
            compare(study, ["plain"], out, judges=[longest], resume=True)


# Tuning


def fixed_judge(scores: dict[str, float]) -> NumberJudge:
    """A judge that has made up its mind about every arm."""
    return NumberJudge("fixed", "gold", of_function("fixed"), lambda them: [scores[one.arm] for one in them])


def test_settings_are_chosen_on_other_prompts(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"]})
    scores = {f"pargs kind w={w}": score for w, score in (("1", 0.2), ("2", 0.9), ("4", 0.5))}
    scores |= {f"best-of-n kind n={n}": score for n, score in ((2, 0.1), (4, 0.3))} | {"plain": 0.0}
    judge = fixed_judge(scores)
    sweep = {"reward_weight": (1, 2, 4), "samples": (2, 4)}
    tuning = SettingSearch([Task("validate"), Task("me")])
    record = compare(study, ["pargs", "best-of-n"], tmp_path, sweep=sweep, judges=[judge], tuning=tuning)
    assert list(record["arms"]) == ["plain", "pargs kind w=2", "best-of-n kind n=4"]
    assert {row["arm"] for row in read_rows(tmp_path)} == set(record["arms"])
    tried = read_rows(tmp_path / "validation")
    assert {row["arm"] for row in tried} == set(scores)
    assert {row["prompt"] for row in tried} == {"validate", "me"}
    chosen = {one["method"]: one for one in record["tuned"]}
    assert chosen["pargs"]["chosen"] == "pargs kind w=2"
    assert [one["score"] for one in chosen["pargs"]["tried"]] == [0.2, 0.9, 0.5]
    again = compare(study, ["pargs", "best-of-n"], tmp_path, sweep=sweep, judges=[judge], tuning=tuning, resume=True)
    assert again["tuned"] == record["tuned"]


def test_tuning_keeps_to_a_kl(lm_folder, rewards, tmp_path):
    study = study_of(lm_folder, {"kind": rewards["kind"]})
    weights = (0.1, 1, 8)
    scores = {f"pargs kind w={w:g}": w for w in weights} | {"plain": 0.0}
    free = compare(
        study, ["pargs"], tmp_path / "free", sweep={"reward_weight": weights}, judges=[fixed_judge(scores)],
        tuning=SettingSearch([Task("validate")]),
    )  # fmt: skip
    kls = [one["kl"] for one in free["tuned"][1]["tried"]]
    assert free["tuned"][1]["chosen"] == "pargs kind w=8"
    assert kls[0] < kls[1] < kls[2]
    limits = {(kls[1] + kls[2]) / 2: ("pargs kind w=1", True), kls[0] / 2: ("pargs kind w=0.1", False)}
    for limit, (chosen, within) in limits.items():
        record = compare(
            study, ["pargs"], tmp_path / chosen, sweep={"reward_weight": weights}, judges=[fixed_judge(scores)],
            tuning=SettingSearch([Task("validate")], limit),
        )  # fmt: skip
        assert (record["tuned"][1]["chosen"], record["tuned"][1]["within_limit"]) == (chosen, within)


def test_tuning_that_would_not_be_honest(lm_folder, rewards, tmp_path, longest):
    study = study_of(lm_folder, {"kind": rewards["kind"]})
    for tuning, judges, said in (
        (SettingSearch([Task("new"), Task(PROMPTS[0])]), [longest], "1 of the 2 prompts"),
        (SettingSearch([Task("new")]), [], "needs a judge"),
        (SettingSearch([Task("new")], -1.0), [longest], "tune-kl -1"),
    ):
        with pytest.raises(CompareError, match=said):
            compare(study, ["pargs"], tmp_path / "out", judges=judges, tuning=tuning)
    assert not (tmp_path / "out").exists()


# The command line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--methods", "pragmatic"], "method 'pragmatic' is unknown"),
        (["--rewards", "nowhere"], "nowhere is no reward"),
        (["--judges", "nowhere"], "nowhere is no reward"),
        (["--judges", "taste:nothing"], "no gold reward"),
        (["--judges", "http://127.0.0.1:9/v1"], "needs --judge-model"),
        (["--rubric", "kind"], "are for a server"),
        (["--sweep", "reward_weight"], "form SETTING=VALUE"),
        (["--tune-kl", "3"], "name the prompts to tune on"),
        (["--limit-prompts", "0"], "limit-prompts 0"),
        (["--temperature", "0"], "temperature 0"),
        (["--methods", "policy=nowhere"], "no model 'nowhere'"),
        (["--methods", "pargs"], "can use no reward"),
        (["--judges", "vader", "vader"], "named twice"),
        (["--seeds", "0"], "seeds is 0"),
    ],
)
def test_misuse_exits_with_one_sentence(midcourse, lm_folder, tmp_path, flags, said):
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    methods = [] if "--methods" in flags else ["--methods", "plain"]
    code, _, err = midcourse(
        "compare", "--lm", lm_folder, "--prompts", prompts, "--out", tmp_path / "out", *methods, *flags
    )
    assert code == 2, err
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_comparison_from_the_command_line(midcourse, lm_folder, rewards, tmp_path, monkeypatch):
    (tmp_path / "taste.py").write_text("def long(text):\n    return len(text)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{"prompt": prompt, "reference": " on time."} for prompt in PROMPTS]
    prompts, out = write_prompts(tmp_path / "prompts.jsonl", rows), tmp_path / "out"
    asked = ["compare", "--lm", lm_folder, "--prompts", prompts, "--out", out, "--max-new-tokens", 6]
    asked += ["--dtype", "float64", "--rewards", rewards["kind"], rewards["trunk"], "--judges", "taste:long"]
    asked += ["--methods", "pargs,best-of-n:2", "--sweep", "reward_weight=0,1,3", "--seeds", 2]
    code, table, err = midcourse(*asked)
    assert code == 0, err
    assert f"report: {out / 'report.html'}" in err
    arms = {"plain", "best-of-n kind n=2", "best-of-n trunk n=2", "reference"}
    arms |= {f"pargs {name} w={weight}" for name in ("kind", "trunk") for weight in (0, 1, 3)}
    assert {row["arm"] for row in read_rows(out)} == arms
    assert len(read_rows(out)) == (len(arms) - 1) * 2 * len(PROMPTS) + len(PROMPTS)
    for arm in arms - {"reference"}:
        assert arm in table
    for name in ("compare.json", "table.md", "table.csv", "summary.json", "report.html", "curves.png"):
        assert (out / name).stat().st_size > 100
    before = (out / "results.jsonl").read_bytes()
    code, _, err = midcourse(*asked)
    assert code == 2 and "add --resume" in err
    code, found, err = midcourse(*asked, "--resume", "--json")
    assert code == 0, err
    assert set(json.loads(found)["arms"]) == arms
    assert (out / "results.jsonl").read_bytes() == before
