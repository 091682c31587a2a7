"""A comparison such as `midcourse compare` writes, made up: what the figures' tests and the report's read."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ["the", "evening", "was", "calm", "so", "we", "walked", "along", "a", "quiet", "river", "with", "friends"]
GUIDES = {"pargs": 1.0, "args-stochastic": 0.6}


def row(arm: str, prompt_id: int = 0, seed: int = 0, text: str = "a good day", **fields: Any) -> dict[str, Any]:
    """A row of results.jsonl; its key is its arm, prompt and seed."""
    tokens = [
        {
            "token_id": i,
            "text": f" {word}" if i else word,
            "logprob": -1.0,
            "reference_logprob": -1.5,
            "reward": None,
            "weight": 0.0,
            "guidance_kl": 0.0,
            "total_kl": 0.5,
        }
        for i, word in enumerate(text.split(" "))
    ]
    return {
        "key": f"{arm}/{prompt_id}/{seed}",
        "arm": arm,
        "method": arm.split(" ")[0],
        "reward": None,
        "setting": {},
        "prompt_id": prompt_id,
        "prompt": f"Prompt {prompt_id}:",
        "seed": seed,
        "text": text,
        "finish_reason": "length",
        "guide_reward": None,
        "guidance_kl": 0.0,
        "total_kl": 0.5 * len(tokens),
        "kl_bound": None,
        "greedy": False,
        "tokens": tokens,
        "cost": {
            "lm_passes": float(len(tokens)),
            "reward_passes": 0.0,
            "candidates": 0.0,
            "seconds": 0.1 * len(tokens),
            "first_token_seconds": 0.05,
        },
        **fields,
    }


def score(of: dict[str, Any], judge: str, value: float | None) -> dict[str, Any]:
    """A row of judgements.jsonl with a score."""
    return {"key": of["key"], "judge": judge, "score": value}


def write(
    folder: Path,
    rows: list[dict[str, Any]],
    judgements: Sequence[dict[str, Any]] = (),
    asked: dict[str, Any] | None = None,
) -> Path:
    """The files of a comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("results.jsonl", rows), ("judgements.jsonl", judgements)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if asked is not None:
        (folder / "compare.json").write_text(json.dumps(asked))
    return folder


def made_up(prompts: int = 40, seeds: int = 2, tokens: int = 24) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Rows, judgements and what was asked of a study with methods of every kind.

    The judge "vader" rises with KL and, for args-stochastic, falls beyond weight 2, while the guide's reward rises on.
    """
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    judgements: list[dict[str, Any]] = []
    arms: dict[str, Any] = {}
    tastes = rng.normal(0, 0.3, prompts)
    noise = rng.normal(0, 0.2, (prompts, seeds))

    def add(arm: str, gain: float, guidance_kl: float | None, **fields: Any) -> None:
        settings = {name: fields.get(name) for name in ("method", "reward", "setting")}
        arms[arm] = {
            **settings,
            "lm_parameters": 135_000_000,
            "reward_parameters": 45_000_000,
            "greedy": fields.get("greedy", False),
        }
        slow = fields.pop("slow", 1.0)
        for prompt in range(prompts):
            for seed in range(1 if fields.get("greedy") else seeds):
                size = tokens if rng.random() < 0.7 else int(rng.integers(8, tokens))
                text = " ".join(rng.choice(WORDS, size))
                kl = None if guidance_kl is None else max(0.0, guidance_kl * (1 + 0.3 * rng.normal()))
                one = row(arm, prompt, seed, text, finish_reason="stop" if size < tokens else "length", **fields)
                one["guidance_kl"] = kl if fields.get("kl_bound") is None else None
                one["total_kl"] = None if fields.get("kl_bound") else (kl or gain * 6) + 0.4 * size
                walk = rng.normal(0, 0.5, size).cumsum() + gain
                for token, reward in zip(one["tokens"], walk, strict=True):
                    token.update(reward=float(reward) if fields.get("reward") else None, logprob=-0.8 - rng.random())
                    token["reference_logprob"] = token["logprob"] - 0.4
                one["cost"].update(seconds=0.07 * size * slow * (1 + 0.05 * rng.random()), reward_passes=4.0 * size)
                rows.append(one)
                judgements.append(score(one, "vader", float(np.tanh(tastes[prompt] + noise[prompt, seed] + gain))))
                judgements.append(score(one, "independent", float(0.8 * gain + tastes[prompt] + rng.normal(0, 0.6))))
                if arm != "plain":
                    outcome = [1.0, 0.5, 0.0, None][int(rng.integers(4))]
                    verdict = {"judge": "gpt", "score": None, "versus": "plain", "outcome": outcome}
                    judgements.append({"key": one["key"], **verdict, "parsed": outcome is not None})

    add("plain", 0.0, 0.0, method="plain")
    for method, strength in GUIDES.items():
        for weight in (1.0, 2.0, 4.0):
            kl = 1.8 * weight * strength
            gain = strength * math.sqrt(weight) * 0.5 - (0.45 if method == "args-stochastic" and weight > 2 else 0)
            setting = {"reward_weight": weight, "temperature": 1.0}
            fields = {"method": method, "reward": "civil", "setting": setting, "guide_reward": weight, "slow": 1.8}
            add(f"{method} civil w={weight:g}", gain, kl, **fields)
    for n in (4, 16):
        bound = math.log(n) - (n - 1) / n
        fields = {"method": f"best-of-n:{n}", "reward": "civil", "setting": {"samples": n}, "guide_reward": 0.3 * n}
        add(f"best-of-n:{n} civil", 0.3 * bound, None, kl_bound=bound, slow=n / 2, **fields)
    for weight in (1.0, 2.0):
        fields = {"method": "farma", "reward": "farma-civil", "setting": {"reward_weight": weight}, "slow": 1.4}
        add(f"farma farma-civil w={weight:g}", 0.3 * weight, None, **fields)
        fields = {"method": "pargs-greedy", "reward": "civil", "setting": {"reward_weight": weight}, "greedy": True}
        add(f"pargs-greedy civil w={weight:g}", 0.3 * weight, 4 * weight, guide_reward=weight, **fields)
    for prompt in range(prompts):
        one = row("reference", prompt, 0, " ".join(rng.choice(WORDS, 20)), tokens=[], cost=None, finish_reason=None)
        one.update(guidance_kl=None, total_kl=None)
        rows.append(one)
        judgements.append(score(one, "vader", float(np.tanh(tastes[prompt] + 0.3))))
    judges = {"vader": {"accuracy": None}, "independent": {"accuracy": 0.71}, "gpt": {"accuracy": None}}
    return rows, judgements, {"arms": arms, "judges": judges, "reference": "plain"}
