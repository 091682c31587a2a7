"""A scalar head on the language model's own states: the same rewards, texts and numbers, in fewer forwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, wraps

import pytest
import torch

from midcourse.decode import engine
from midcourse.decode.engine import Engine, generate
from midcourse.decode.methods import BestOfN
from midcourse.decode.request import Request
from midcourse.decode.steps import Generation
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.states import OnStates, on_states
from midcourse.testing import assert_same_generation, tiny_language_model, tiny_reward
from tests.pace import slow_except

PROMPTS = ["The ferry was late, and", "A", "żółć: a longer text", "under", "mine"]
MORE_EOS = tuple(range(0, 256, 13))
WHOLE = 3  # layers of the models here
ARCHITECTURES = slow_except(["llama", "gpt2"], ["llama", "gpt2", "gemma3", "mistral"])


@cache
def lm_of(architecture: str = "llama") -> LanguageModel:
    return tiny_language_model(architecture, layers=WHOLE, more_eos=MORE_EOS)


@cache
def head_on(architecture: str = "llama", layers: int = WHOLE, seed: int = 1, tune: str = "head") -> RewardModel:
    """A scalar reward on the model's own layers."""
    reward = tiny_reward(architecture, layers=layers, seed=seed, more_eos=MORE_EOS, tune=tune)
    theirs = lm_of(architecture).model.base_model.state_dict()
    reward.backbone.load_state_dict({name: theirs[name] for name in reward.backbone.state_dict()})
    return reward


@contextmanager
def by_passes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let rewards read the candidates themselves."""
    with monkeypatch.context() as patch:
        patch.setattr(engine, "on_states", lambda reward, lm: reward)
        yield


def assert_same(have: list[Generation], want: list[Generation]) -> None:
    for a, b in zip(have, want, strict=True):
        assert_same_generation(a, b)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 2},
        {"method": "args", "always_offer_eos": True},
        {"skip_tolerance": 0.3, "reward_weight": 0.3},
    ],
)
def test_nothing_changes(architecture, settings, monkeypatch):
    lm, reward = lm_of(architecture), head_on(architecture)
    asked = {"top_k": 12, "max_new_tokens": 14, "seed": 5, **settings}
    with by_passes_of_their_own(monkeypatch):
        want = generate(lm, PROMPTS, reward, **asked)
    assert isinstance(on_states(reward, lm), OnStates)
    assert architecture == "gemma3" or len({len(row.steps) for row in want}) > 1  # some end, and others go on
    assert_same(generate(lm, PROMPTS, reward, **asked), want)


def test_two_heads_share_the_forward(monkeypatch):
    guides = [(head_on(), 1.0), (head_on(seed=4), -0.5)]
    asked = {"top_k": 12, "max_new_tokens": 14, "seed": 5}
    with by_passes_of_their_own(monkeypatch):
        want = generate(lm_of(), PROMPTS, guides, **asked)
    generate(lm_of(), PROMPTS[:1], guides, **asked)  # each is tried once
    with counted(lm_of()) as forwards:
        assert_same(generate(lm_of(), PROMPTS[:1], guides, **asked), want[:1])
    assert len(forwards) == 1 + len(want[0].steps)


def test_every_kind_of_row_beside_each_other(monkeypatch):
    """Rows that nothing guides, that are judged as a whole, and that are guided so in one batch."""

    def written() -> dict[int, Generation]:
        running = Engine(lm_of(), batch_size=4)
        for number, prompt in enumerate(PROMPTS):
            running.add(Request.of(prompt, head_on(), top_k=9, max_new_tokens=9, seed=number))
            running.add(Request.of(prompt, method="plain", max_new_tokens=5, seed=number))
            running.add(Request.of(prompt, head_on(), method=BestOfN(2), max_new_tokens=7, seed=number))
            running.add(Request.of(prompt, head_on(layers=2), method="args", top_k=4, max_new_tokens=6, seed=number))
        found: dict[int, Generation] = {}
        while running:
            found |= {number: event for number, event in running.step() if isinstance(event, Generation)}
        return found

    with by_passes_of_their_own(monkeypatch):
        want = written()
    have = written()
    assert have.keys() == want.keys() == set(range(4 * len(PROMPTS)))
    assert_same([have[number] for number in want], list(want.values()))


@contextmanager
def counted(lm: LanguageModel) -> Iterator[list[tuple[int, ...]]]:
    """Collect the shapes of the tokens that the model's forwards read."""
    shapes: list[tuple[int, ...]] = []
    hook = lm.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield shapes
    hook.remove()


def test_a_step_is_one_forward():
    lm, reward = lm_of(), head_on()
    on_states(reward, lm)  # which tries it once
    with counted(lm) as forwards:
        (row,) = generate(lm, PROMPTS[:1], reward, top_k=10, max_new_tokens=12)
    assert len(row.steps) > 4
    assert forwards[1:] == [(1, 10)] * len(row.steps)
    assert [shape[0] for shape in forwards[:1]] == [1]


def test_only_a_frozen_head_on_the_models_own_weights_reads_its_states():
    lm = lm_of()
    other = tiny_reward(layers=WHOLE, more_eos=MORE_EOS)
    tuned = tiny_reward(layers=WHOLE, more_eos=MORE_EOS, tune="last:1")
    fewer = head_on(layers=2)
    assert on_states(other, lm) is other
    assert on_states(fewer, lm) is fewer
    assert on_states(tuned, lm) is tuned


def test_a_model_that_does_more_to_its_logits_takes_its_own_step(monkeypatch):
    """As Cohere's and Gemma 2's do, which scale them or hold them within limits."""
    lm = tiny_language_model(layers=WHOLE, more_eos=MORE_EOS)
    reward = tiny_reward(layers=WHOLE, more_eos=MORE_EOS)
    reward.backbone.load_state_dict(lm.model.base_model.state_dict())
    real = lm.model.forward

    @wraps(real)
    def scaled(*args, **kwargs):
        output = real(*args, **kwargs)
        output.logits = output.logits / 4
        return output

    monkeypatch.setattr(lm.model, "forward", scaled)
    asked = {"top_k": 12, "max_new_tokens": 8, "seed": 5}
    with by_passes_of_their_own(monkeypatch):
        want = generate(lm, PROMPTS, reward, **asked)
    with torch.no_grad(), counted(lm) as forwards:
        assert_same(generate(lm, PROMPTS, reward, **asked), want)
    assert {shape[1] for shape in forwards[2:]} == {12, 1}
