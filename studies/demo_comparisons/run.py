"""Make the preference set that the demo ships: python studies/demo_comparisons/run.py

Samples responses of SmolLM2-135M-Instruct to the prompts of prompts.py, pairs them, and labels the pairs with a gold
reward by Bradley-Terry draws. Responses are drawn as guided ones are, from the LM's top 10. Writes the comparisons and
the demo's prompts into src/midcourse/shipped/, and results.json here. Ten minutes on two cores; rows already sampled
(runs/demo_comparisons/) are not sampled again.
"""

import argparse
import gzip
import itertools
import json
import random
from pathlib import Path
from statistics import fmean, pstdev

from prompts import prompts

from midcourse import LanguageModel
from midcourse.data.comparisons import Comparison
from midcourse.data.labels import bayes_accuracy, draw_labels
from midcourse.data.rollouts import Rollout
from midcourse.data.sample import sample
from midcourse.evaluate.provenance import write_results
from midcourse.files import write_bytes, write_text
from midcourse.rewards.gold import load_gold

HERE = Path(__file__).parent
SHIPPED = HERE.parents[1] / "src/midcourse/shipped"
SAMPLED = HERE.parents[1] / "runs/demo_comparisons/rollouts.jsonl"

SAMPLES, PAIRS, NEW_TOKENS, TOP_K = 16, 32, 24, 10
SCALE, SEED = 4.0, 0


def sampled() -> list[Rollout]:
    """SAMPLES responses to every training prompt, row by row into a file."""
    SAMPLED.parent.mkdir(parents=True, exist_ok=True)
    return sample(
        LanguageModel.load("smollm2"),
        [row["prompt"] for row in prompts("train")],
        SAMPLED,
        n=SAMPLES,
        top_k=TOP_K,
        max_new_tokens=NEW_TOKENS,
        template="raw",
        seed=SEED,
        batch_size=48,
        resume=True,
    )


def pair(rows: list[Rollout]) -> list[Comparison]:
    """PAIRS random pairs of each prompt's distinct, non-empty responses, in no order of preference."""
    rng = random.Random(SEED)
    found = []
    for prompt, group in itertools.groupby(rows, key=lambda row: row.prompt):
        distinct = list({row.response: row for row in group if row.response.strip()}.values())
        combinations = list(itertools.combinations(distinct, 2))
        for a, b in rng.sample(combinations, min(PAIRS, len(combinations))):
            found.append(Comparison(prompt, a.response, b.response, a.finished, b.finished))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gold", default="vader-once", help="vader-once, vader, or MODULE:FUNCTION of a text")
    name = parser.parse_args().gold
    gold = load_gold(name)
    rows = sampled()
    comparisons = draw_labels(pair(rows), gold, scale=SCALE, seed=SEED)
    lines = [json.dumps(vars(comparison), ensure_ascii=False) for comparison in comparisons]
    # Without the time of writing, so that the same comparisons are the same file.
    write_bytes(SHIPPED / "demo_comparisons.jsonl.gz", gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    settings = {
        "model": "SmolLM2-135M-Instruct (Q4_1, dequantised)",
        "template": "raw",
        "samples_per_prompt": SAMPLES,
        "pairs_per_prompt": PAIRS,
        "max_new_tokens": NEW_TOKENS,
        "top_k": TOP_K,
        "temperature": 1.0,
        "gold": name,
        "scale": SCALE,
        "seed": SEED,
    }
    shipped = {"made_by": settings, **{split: prompts(split) for split in ("validation", "test")}}
    write_text(SHIPPED / "demo_prompts.json", json.dumps(shipped, indent=1) + "\n")
    golds = [gold(row.response) for row in rows]
    right = fmean(gold(c.chosen) > gold(c.rejected) for c in comparisons)
    write_results(
        HERE / "results.json",
        {
            "settings": settings,
            "prompts": len(prompts("train")),
            "responses": len(rows),
            "comparisons": len(comparisons),
            "gold_mean": fmean(golds),
            "gold_sd": pstdev(golds),
            "finished": fmean(row.finished for row in rows),
            "chosen_has_more_gold": right,
            "bayes_accuracy": bayes_accuracy(comparisons, gold, scale=SCALE),
        },
    )


if __name__ == "__main__":
    main()
