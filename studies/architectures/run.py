"""Every causal language model that transformers has, tiny and of random weights: what midcourse makes of it.

    python -m studies.architectures.run [TYPE ...]

Of each: the text that it writes is what whole forwards of it would write; rows, alternatives and ways back keep the
laws of a language model; a scalar reward on it keeps the laws of rewards, and is the same when it was saved and loaded;
a trunk reward guides it by what it says of whole texts; a grammar holds it to JSON. results.json has one row for each,
and docs/architectures.md shows them. A model whose tiny form cannot be made here is a row that says so.
"""

import argparse
import json
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from midcourse import LanguageModel, generate, load_reward
from midcourse.errors import MidcourseError
from midcourse.evaluate.provenance import write_results
from midcourse.integrations.grammar import json_grammar
from midcourse.lm.caches import side_by_side
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trunk import TrunkReward
from midcourse.testing import assert_language_model_laws, assert_laws, byte_tokenizer, randomise
from studies.architectures.sizes import sizes

HERE = Path(__file__).parent
MOST = 5_000_000  # numbers of a tiny model
SECONDS = 120
TOLERANCE = 5e-3  # in float32, of the largest number; what is wrong is apart by about 1
CLOSED = {"additionalProperties": False}
PROMPTS = ("The ferry was late", "A", "Under the bridge")


def tried(kind: str) -> dict[str, Any]:
    """Return the row of an architecture."""
    row: dict[str, Any] = {"type": kind}
    try:
        with limited(SECONDS):
            model = tiny(kind)
    except Exception as error:  # whatever a configuration that was cut down may lead to
        return row | {"outcome": "not made", "why": sentence(error)}
    try:
        with limited(SECONDS), tempfile.TemporaryDirectory() as folder:
            lm = LanguageModel(model, byte_tokenizer(), kind)
            row |= {"outcome": "side by side" if side_by_side(lm.model) else "a row at a time"}
            row["checks"] = {name: outcome(check, lm, Path(folder)) for name, check in CHECKS.items()}
    except MidcourseError as error:
        return row | {"outcome": "refused", "why": str(error)}
    except Exception as error:
        return row | {"outcome": "fails", "why": sentence(error)}
    return row


def tiny(kind: str) -> PreTrainedModel:
    """Make a model of an architecture, as small as it can be."""
    model = AutoModelForCausalLM.from_config(tiny_config(kind), dtype=torch.float32).eval()
    if (numbers := sum(weight.numel() for weight in model.parameters())) > MOST:
        raise ValueError(f"its smallest form has {numbers:,} numbers")
    randomise(model, 3)
    with torch.inference_mode():
        model(input_ids=torch.arange(7)[None], use_cache=False)  # sizes that do not go together show here
    return model


def tiny_config(kind: str) -> PretrainedConfig:
    """Return an architecture's configuration with all sizes cut down that it has."""
    config = AutoConfig.for_model(kind)
    text = config.get_text_config()
    if text is config:
        return AutoConfig.for_model(kind, **sizes(kind, config.to_dict()))
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return AutoConfig.for_model(
        kind, **{name: sizes(part.model_type, part.to_dict()) for name, part in parts.items() if part is not None}
    )


# What is tried


def writes_its_own_text(lm: LanguageModel, folder: Path) -> None:
    ids = list(PROMPTS[0].encode())
    begin = len(ids)
    with torch.inference_mode():
        for _ in range(8):
            ids.append(int(lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, :259].argmax()))
    (row,) = generate(lm, [PROMPTS[0]], method="plain", temperature=0.0, top_k=None, max_new_tokens=8)
    have = [step.token_id for step in row.steps]
    assert have == ids[begin : begin + len(have)], f"wrote {have}, whole forwards {ids[begin:]}"


def rows_keep_the_laws(lm: LanguageModel, folder: Path) -> None:
    prompts = [list(prompt.encode()) for prompt in PROMPTS]
    with torch.inference_mode():
        states = lm.model(input_ids=torch.tensor(prompts[:1]), output_hidden_states=True, use_cache=False).hidden_states
    largest = max(1.0, *(state.abs().max().item() for state in states))
    layers = [1, 2] if states[1].dim() == 3 else []  # some carry several streams of states
    assert_language_model_laws(lm, prompts, layers, tolerance=TOLERANCE * largest)


def a_scalar_reward(lm: LanguageModel, folder: Path) -> None:
    reward = RewardModel.create(saved(lm, folder), template="raw", tune="last:1", dtype="float32")
    torch.nn.init.normal_(reward.head.weight, std=0.3)
    assert_laws(reward, lm, ["A", "The ferry"], [" is", " was late"], tolerance=TOLERANCE)
    reward.save(folder / "scalar")
    assert load_reward(folder / "scalar", dtype="float32").score(["A"], [" is"]) == reward.score(["A"], [" is"])


def a_trunk_reward(lm: LanguageModel, folder: Path) -> None:
    own = LanguageModel.load(saved(lm, folder), dtype="float32")
    reward = TrunkReward.create(own.name, template="raw", head="trunk:2", tune="head", layers=1, dtype="float32")
    for weight in reward.head.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    (row,) = generate(own, ["The ferry"], reward, max_new_tokens=5)
    ids = [step.token_id for step in row.steps]
    (want,) = reward.score_ids([(list(b"The ferry"), ids)])
    have = [step.reward for step in row.steps]
    apart = max(abs(a - b) for a, b in zip(have, want.tolist(), strict=True))
    assert apart < TOLERANCE * max(1.0, want.abs().max().item()), f"{have}, not {want.tolist()}"


def a_grammar(lm: LanguageModel, folder: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]} | CLOSED
    grammar = json_grammar(lm.tokenizer, schema, lm.eos_token_ids)
    (row,) = generate(lm, ["A"], method="plain", max_new_tokens=24, logits_processor=grammar)
    assert json.loads(row.text).keys() == {"a"}, row.text


CHECKS: dict[str, Callable[[LanguageModel, Path], None]] = {
    "text": writes_its_own_text,
    "rows": rows_keep_the_laws,
    "scalar reward": a_scalar_reward,
    "trunk reward": a_trunk_reward,
    "grammar": a_grammar,
}


def saved(lm: LanguageModel, folder: Path) -> str:
    """Return the folder that a model was saved to."""
    if not (folder / "model").exists():
        lm.model.save_pretrained(folder / "model")
        lm.tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def outcome(check: Callable[[LanguageModel, Path], None], lm: LanguageModel, folder: Path) -> str:
    """Return "yes", or why a check is refused or fails."""
    try:
        check(lm, folder)
    except MidcourseError as error:
        return f"refused: {error}".replace(str(folder / "model"), "it")
    except TimeoutError:
        raise
    except Exception as error:
        return f"fails: {sentence(error)}"
    return "yes"


def sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError if a block takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def works(row: Mapping[str, Any]) -> bool:
    """Return whether everything that was tried of an architecture works."""
    return bool(row.get("checks")) and all(found == "yes" for found in row["checks"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="all by default")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    path = HERE / "results.json"
    rows = {row["type"]: row for row in json.loads(path.read_text())["rows"]} if path.is_file() else {}
    wanted = given.types or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    for number, kind in enumerate(wanted, 1):
        rows[kind] = tried(kind)
        found = rows[kind]
        print(f"{number}/{len(wanted)} {kind}: {found['outcome']}, {'works' if works(found) else found}", flush=True)
        write_results(path, {"rows": [rows[name] for name in sorted(rows)]})


if __name__ == "__main__":
    main()
