"""From rows to figures: by hand where a figure is one of few rows, by what was built in where it is of many."""

import json
import math

import pytest

from midcourse.compare.report.figures import summarise
from midcourse.compare.rows import ComparisonError, read_folder
from midcourse.data.jsonl import RowFileError
from tests.compare.comparison import made_up, row, score, write


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The summary of a comparison with methods of every kind."""
    return summarise(read_folder(write(tmp_path_factory.mktemp("study"), *made_up())))


def of(folder, rows, judgements=(), asked=None):
    return summarise(read_folder(write(folder, rows, judgements, asked)))


# Reading


def test_a_torn_last_line_is_left_out(tmp_path):
    folder = write(tmp_path, [row("plain", 0), row("plain", 1)])
    whole = (folder / "results.jsonl").read_bytes()
    (folder / "results.jsonl").write_bytes(whole[:-20])
    assert [found.prompt_id for found in read_folder(folder).responses] == [0]
    assert (folder / "results.jsonl").read_bytes() == whole[:-20]  # whoever writes it may go on


def test_a_line_that_is_no_row_is_named(tmp_path):
    folder = write(tmp_path, [row("plain", 0)])
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"arm": "plain"}\n')
    with pytest.raises(RowFileError, match=r"results.jsonl, line 2: is no row of a comparison"):
        read_folder(folder)
    (folder / "results.jsonl").write_text("[1]\n")
    with pytest.raises(RowFileError, match="line 1"):
        read_folder(folder)


def test_a_folder_without_rows_says_so(tmp_path):
    with pytest.raises(ComparisonError, match=r"has no results.jsonl"):
        read_folder(tmp_path)
    write(tmp_path, [])
    with pytest.raises(ComparisonError, match="no rows yet"):
        read_folder(tmp_path)
    write(tmp_path, [row("plain")])
    (tmp_path / "compare.json").write_text("{")
    with pytest.raises(ComparisonError, match=r"compare.json is damaged"):
        read_folder(tmp_path)


def test_unknown_fields_and_repeated_keys_do_no_harm(tmp_path):
    one = row("plain", text="old", more=1)
    one["tokens"][0]["candidates"] = [1, 2]
    found = read_folder(write(tmp_path, [one, {**one, "text": "new"}]))
    assert [response.text for response in found.responses] == ["new"]


# Figures of few rows


def test_seeds_of_a_prompt_are_averaged_first(tmp_path):
    rows = [row("plain", 0, 0), row("plain", 0, 1), row("plain", 0, 2), row("plain", 1, 0)]
    found = of(tmp_path, rows, [score(r, "gold", v) for r, v in zip(rows, (0.0, 0.5, 1.0, 0.1), strict=True)])
    assert found["arms"]["plain"]["judges"]["gold"]["score"]["mean"] == pytest.approx((0.5 + 0.1) / 2)
    assert found["seeds"] == 3 and found["prompts"] == 2


def test_kl_perplexity_length_and_ends(tmp_path):
    rows = [
        row("plain", 0, text="a b c d", guidance_kl=1.0, total_kl=3.0, finish_reason="stop"),
        row("plain", 1, text="a b", guidance_kl=2.0, total_kl=5.0),
    ]
    for token in rows[1]["tokens"]:
        token["reference_logprob"] = -0.5
    figures = of(tmp_path, rows)["arms"]["plain"]["figures"]
    means = {name: figures[name]["mean"] for name in ("guidance_kl", "total_kl", "perplexity", "tokens", "finished")}
    assert means == pytest.approx(
        {
            "guidance_kl": 1.5,
            "total_kl": 4.0,
            "perplexity": math.exp((4 * 1.5 + 2 * 0.5) / 6),
            "tokens": 3,
            "finished": 0.5,
        }
    )


def test_costs_are_per_token_and_relative_to_plain(tmp_path):
    def cost(lm, reward, candidates, seconds):
        return {"lm_passes": lm, "reward_passes": reward, "candidates": candidates, "seconds": seconds}

    rows = [
        row("plain", 0, text="a b c d", cost=cost(8, 0, 0, 0.4)),
        row("pargs w=1", 0, text="a b", cost=cost(4, 20, 20, 0.5)),
        row("reference", 0, tokens=[], cost=None, guidance_kl=None, total_kl=None),
    ]
    sizes = {"lm_parameters": 10**9, "reward_parameters": 10**8}
    found = of(tmp_path, rows, asked={"arms": {"plain": {"lm_parameters": 10**9}, "pargs w=1": sizes}})
    figures = found["arms"]["pargs w=1"]["figures"]
    names = ("lm_passes", "reward_passes", "candidates", "tokens_per_second", "relative_speed", "relative_time")
    assert [figures[name]["mean"] for name in names] == pytest.approx([2, 10, 10, 4, 0.4, 2.5])
    assert figures["gigaflops"]["mean"] == pytest.approx(2 * (2 * 1 + 10 * 0.1))
    assert found["arms"]["plain"]["figures"]["gigaflops"]["mean"] == pytest.approx(4)  # no reward passes, none needed
    assert found["arms"]["reference"]["figures"]["lm_passes"] is None
    assert found["arms"]["plain"]["figures"]["first_token_seconds"] is None


def test_intervals_of_a_cost_are_over_batches_for_their_responses_share_it(tmp_path):
    def cost(seconds, batch):
        return {"lm_passes": 2, "reward_passes": 0, "candidates": 0, "seconds": seconds, "batch": batch}

    def summary(folder, batch_size):
        rows = []
        for prompt in range(16):
            batch = prompt - prompt % batch_size
            rows.append(row("plain", prompt, text="a b", cost=cost(0.2, batch)))
            rows.append(row("pargs w=1", prompt, text="a b", cost=cost(0.4 if batch < 8 else 0.6, batch)))
        (tmp_path / folder).mkdir()
        return of(tmp_path / folder, rows)["arms"]["pargs w=1"]["figures"]

    of_four, of_one = summary("four", 4), summary("one", 16)
    assert of_four["relative_time"]["mean"] == pytest.approx(2.5)
    assert of_four["relative_time"]["interval"] == pytest.approx((2, 3))  # two of four batches took 2, two took 3
    assert of_four["lm_passes"] == {"mean": 1, "interval": (1, 1), "difference": of_four["lm_passes"]["difference"]}
    assert of_one["relative_time"] == {"mean": pytest.approx(2), "interval": None}
    assert of_one["tokens_per_second"]["interval"] is None and of_one["candidates"]["interval"] == (0, 0)


def test_wins_count_every_pair_of_seeds_and_ties_half(tmp_path):
    rows = [row(arm, 0, seed) for arm in ("plain", "pargs w=1") for seed in (0, 1)]
    judged = [score(r, "gold", v) for r, v in zip(rows, (1.0, 2.0, 1.0, 3.0), strict=True)]
    won = of(tmp_path, rows, judged)["arms"]["pargs w=1"]["judges"]["gold"]["wins_against_plain"]
    assert won["mean"] == (0.5 + 0 + 1 + 1) / 4 and won["prompts"] == 1


def test_verdicts_count_ties_and_what_could_not_be_read(tmp_path):
    rows = [row(arm, prompt) for arm in ("plain", "pargs w=1") for prompt in range(4)]
    verdicts = [
        {"key": r["key"], "judge": "gpt", "score": None, "versus": "plain", "outcome": o, "parsed": o is not None}
        for r, o in zip(rows[4:], (1, 0.5, 0, None), strict=True)
    ]
    found = of(tmp_path, rows, verdicts)
    won = found["arms"]["pargs w=1"]["judges"]["gpt"]["wins_against_plain"]
    assert (won["mean"], won["verdicts"], won["ties"], won["unparsed"], won["prompts"]) == (0.5, 4, 1, 1, 3)
    assert found["arms"]["pargs w=1"]["judges"]["gpt"]["score"] is None
    assert "1 of 4 verdicts of gpt could not be read; they are left out of its win rates." in found["notes"]


def test_best_of_n_has_bounds_and_others_have_what_they_have(tmp_path):
    best = row("best-of-n:4 r", 0, method="best-of-n:4", text="a b", kl_bound=0.636, guidance_kl=None, total_kl=None)
    farma = row("farma r w=1", 0, guidance_kl=None, total_kl=7.0)
    arms = of(tmp_path, [row("plain", 0), best, farma])["arms"]
    assert arms["best-of-n:4 r"]["kl_is_bound"] and not arms["farma r w=1"]["kl_is_bound"]
    assert arms["best-of-n:4 r"]["figures"]["guidance_kl"]["mean"] == 0.636
    # log b - log pi of its two tokens, 0.5 each, on top.
    assert arms["best-of-n:4 r"]["figures"]["total_kl"]["mean"] == pytest.approx(1.636)
    assert arms["farma r w=1"]["figures"]["guidance_kl"] is None


def test_loops_are_counted_and_named(tmp_path):
    rows = [row("plain", 0, text="so " * 12 + "so"), row("plain", 1)]
    found = of(tmp_path, rows)["arms"]["plain"]
    assert found["looping"] == ["plain/0/0"] and found["figures"]["loops"]["mean"] == 0.5


# Curves


def sweep(weights, kls, scores, prompts=3, **fields):
    """Arms of pargs, alike on all prompts, and their judgements."""
    rows, judged = [], []
    for weight, kl, gold in zip(weights, kls, scores, strict=True):
        for prompt in range(prompts):
            rows.append(
                row(
                    f"pargs r w={weight:g}",
                    prompt,
                    reward="r",
                    setting={"reward_weight": weight},
                    guidance_kl=kl,
                    **fields,
                )
            )
            judged.append(score(rows[-1], "gold", gold + prompt))
    return rows, judged


def test_scores_are_read_off_between_weights_and_never_beyond(tmp_path):
    rows, judged = sweep([1.0, 4.0, 2.0], [1.0, 6.0, 3.0], [1.0, 4.0, 2.0])
    plain = [row("plain", prompt) for prompt in range(3)]
    found = of(tmp_path, [*rows, *plain], [*judged, *(score(r, "gold", r["prompt_id"]) for r in plain)])
    assert found["curves"][0]["arms"] == ["plain", "pargs r w=1", "pargs r w=2", "pargs r w=4"]
    by_kl = {e["kl"]: e["scores"]["pargs r"] for e in found["matched"] if e["axis"] == "guidance_kl"}
    assert by_kl[2.0]["mean"] == pytest.approx(1.5 + 1)  # the prompts' own mean is 1
    assert by_kl[5.0]["mean"] == pytest.approx(2 + 2 * 2 / 3 + 1)
    assert by_kl[10.0] is None


def test_plain_begins_the_curves_of_methods_that_start_from_it(tmp_path):
    rows, _ = sweep([1.0], [1.0], [1.0])
    args = [{**r, "arm": "args-stochastic r w=1", "key": f"a{r['key']}", "method": "args-stochastic"} for r in rows]
    farma = [{**r, "arm": "f", "key": f"f{r['key']}", "method": "farma", "guidance_kl": None} for r in rows]
    greedy = [{**r, "arm": "g", "key": f"g{r['key']}", "method": "pargs-greedy", "greedy": True} for r in rows]
    found = of(tmp_path, [row("plain", 0), *rows, *args, *farma, *greedy])
    assert [curve["arms"][0] for curve in found["curves"]] == ["plain", "plain", "f", "g"]


def test_methods_are_read_off_at_the_kl_of_a_fine_tuned_policy(tmp_path):
    rows, judged = sweep([1.0, 2.0], [1.0, 3.0], [1.0, 2.0])
    for r in rows:
        r["total_kl"] = r["guidance_kl"] + 1
    dpo = [row("policy dpo", prompt, guidance_kl=None, total_kl=3.0) for prompt in range(3)]
    ppo = [row("policy ppo", prompt, guidance_kl=None, total_kl=9.0) for prompt in range(3)]
    judged += [score(r, "gold", 5.0 + r["prompt_id"]) for r in (*dpo, *ppo)]
    found = of(tmp_path, [*rows, *dpo, *ppo], judged)["matched"]
    (at,) = [entry for entry in found if entry["why"] == "that of policy dpo"]
    assert (at["axis"], at["kl"]) == ("total_kl", 3.0)
    means = {name: e and e["mean"] for name, e in at["scores"].items()}
    assert means == {"pargs r": 2.5, "policy dpo": 6.0, "policy ppo": None}
    assert at["differences"][0]["mean"] == -3.5


def test_settings_that_are_no_strength_make_curves_of_their_own(tmp_path):
    rows = []
    for k in (5, 20):
        for weight in (1.0, 2.0):
            rows.append(
                row(f"pargs k={k} w={weight:g}", 0, setting={"reward_weight": weight, "top_k": k, "top_p": 1.0})
            )
    names = [curve["name"] for curve in of(tmp_path, rows)["curves"]]
    assert names == ["pargs top_k=5", "pargs top_k=20"]  # top_p tells nothing apart


def test_over_optimisation_begins_at_the_peak(study):
    found = {(o["method"], o["judge"]): o for o in study["over_optimisation"]}
    args = found["args-stochastic civil", "vader"]
    assert (
        args["begins"]["arm"] == "args-stochastic civil w=2" and args["falls_at"]["arm"] == "args-stochastic civil w=4"
    )
    assert args["begins"]["guidance_kl"] == pytest.approx(2.1, abs=0.3) and args["fall"]["interval"][1] < 0
    assert found["pargs civil", "vader"]["begins"] is None
    assert found["farma farma-civil", "vader"]["begins"] is None  # its guide's reward is not known


def test_a_fall_of_the_guide_too_is_no_over_optimisation(tmp_path):
    rows, judged = sweep([1.0, 2.0], [1.0, 3.0], [2.0, 1.0], prompts=9, guide_reward=1.0)
    assert of(tmp_path, rows, judged)["over_optimisation"][0]["begins"] is None
    for r in rows:
        r["guide_reward"] = r["setting"]["reward_weight"]
    begins = of(tmp_path, rows, judged)["over_optimisation"][0]["begins"]
    assert begins == {"arm": "pargs r w=1", "guidance_kl": 1.0, "total_kl": 1.5}


# A whole study


def test_methods_are_compared_at_equal_kl(study):
    places = {
        (e["axis"], e["greedy"]): [(round(x["kl"], 2), x["why"]) for x in study["matched"] if same(x, e)]
        for e in study["matched"]
        if e["judge"] == "vader"
    }
    assert places["guidance_kl", False] == [
        (0.64, "the bound of best-of-n:4 civil"),
        (1.84, "the bound of best-of-n:16 civil"),
        (2.0, ""),
        (5.0, ""),
        (10.0, ""),
    ]
    assert [why.startswith("plain's 8.31 +") for _, why in places["total_kl", False]].count(True) == 3
    at_two = next(
        e for e in study["matched"] if e["judge"] == "vader" and e["axis"] == "guidance_kl" and e["kl"] == 2.0
    )
    assert set(at_two["scores"]) == {"pargs civil", "args-stochastic civil", "best-of-n civil"}
    assert at_two["scores"]["best-of-n civil"] is None
    (gap,) = at_two["differences"]  # best of n does not reach 2 nats
    assert (gap["one"], gap["other"]) == ("pargs civil", "args-stochastic civil") and gap["interval"][0] > 0
    assert gap["mean"] == pytest.approx(
        at_two["scores"]["pargs civil"]["mean"] - at_two["scores"]["args-stochastic civil"]["mean"]
    )


def same(one, other):
    return all(one[name] == other[name] for name in ("judge", "axis", "greedy"))


def test_p_values_are_corrected_for_their_number(study):
    gaps = [
        arm["judges"]["independent"]["score"]["difference"]
        for name, arm in study["arms"].items()
        if name not in ("plain", "reference")
    ]
    largest, smallest = max(gaps, key=lambda gap: gap["p"]), min(gaps, key=lambda gap: gap["p"])
    assert largest["p_corrected"] >= largest["p"]
    assert smallest["p_corrected"] == pytest.approx(len(gaps) * smallest["p"])
    assert "difference" not in study["arms"]["plain"]["judges"]["independent"]["score"]


def test_intervals_of_differences_are_paired(study):
    """The prompts' tastes, which all arms share, widen a score's interval but not that of its difference."""
    found = study["arms"]["best-of-n:4 civil"]["judges"]["vader"]["score"]
    width, paired = (high - low for low, high in (found["interval"], found["difference"]["interval"]))
    assert paired < 0.3 * width


def test_a_summary_is_json(study):
    assert json.loads(json.dumps(study, allow_nan=False))["reference"] == "plain"


# Little to go on


def test_one_arm_and_one_prompt_give_figures_without_intervals(tmp_path):
    one = row("pargs r w=1", reward="r", setting={"reward_weight": 1.0})
    found = of(tmp_path, [one], [score(one, "gold", 1.0)])
    assert found["arms"]["pargs r w=1"]["judges"]["gold"]["score"] == {"mean": 1.0, "interval": None}
    assert found["reference"] is None and found["arms"]["pargs r w=1"]["figures"]["relative_speed"] is None
    notes = " ".join(found["notes"])
    assert "One prompt gives no interval" in notes and "No responses of the reference method plain" in notes


def test_no_judge_no_scores_but_all_other_figures(tmp_path):
    found = of(tmp_path, [row("plain", 0), row("pargs w=1", 0)])
    assert found["judges"] == {} and found["matched"] == [] and found["arms"]["plain"]["figures"]["tokens"]["mean"] == 3
    assert "No judge has scored these responses, so nothing is compared by score." in found["notes"]


def test_a_judge_that_was_asked_for_and_said_nothing(tmp_path):
    found = of(tmp_path, [row("plain", 0)], asked={"judges": {"gold": {"accuracy": 0.7}}})
    assert found["judges"]["gold"] == {"accuracy": 0.7, "scores": 0, "per_token_of_length": None}
    assert "gold has judged nothing yet." in found["notes"]


def test_an_unfinished_comparison_pairs_what_is_there(tmp_path):
    rows = [row("plain", prompt) for prompt in range(3)] + [row("pargs w=1", 1)]
    judged = [score(r, "gold", v) for r, v in zip(rows, (0.0, 1.0, 5.0, 1.5), strict=True)]
    found = of(tmp_path, rows, judged)
    assert found["arms"]["pargs w=1"]["judges"]["gold"]["score"]["difference"]["mean"] == 0.5
    assert "pargs w=1 has no responses to 2 of 3 prompts." in found["notes"]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_left_out_and_said(tmp_path, value):
    rows = [row("plain", 0), row("plain", 1)]
    found = of(tmp_path, rows, [score(rows[0], "gold", 2.0), score(rows[1], "gold", value)])
    assert found["arms"]["plain"]["judges"]["gold"]["score"]["mean"] == 2.0
    assert "gold has no score for 1 responses; they are left out of its figures." in found["notes"]


def test_another_reference_method_than_plain(tmp_path):
    rows = [row("plain", 0), row("pargs w=1", 0), row("pargs w=2", 0)]
    judged = [score(r, "gold", v) for r, v in zip(rows, (0.0, 1.0, 3.0), strict=True)]
    found = of(tmp_path, rows, judged, {"reference": "pargs w=1"})
    assert found["reference"] == "pargs w=1" and found["plain"] == "plain"
    assert found["arms"]["pargs w=2"]["judges"]["gold"]["score"]["difference"]["mean"] == 2.0
