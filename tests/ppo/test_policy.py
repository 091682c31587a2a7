"""What a policy says of tokens is what it writes them by; the reference stays what it was."""

import pytest
import torch

from midcourse.decode.engine import generate
from midcourse.ppo.losses import exact_kl
from midcourse.ppo.policy import Policy, Tokens, chosen
from midcourse.ppo.rollouts import EVERYTHING
from midcourse.ppo.settings import PPOSettings
from midcourse.rewards.info import RewardError
from midcourse.testing import ARCHITECTURES, tiny_language_model
from tests.pace import slow_except

ROWS = [([72, 101], [32, 110, 111]), ([84, 104, 101, 32], [99, 97, 116, 32, 115, 256]), ([65], [66])]
TUNED = [("lora:2", "shared"), ("lora:2", "own"), ("all", "shared"), ("all", "own")]


def policy_of(architecture: str = "llama", dtype: torch.dtype = torch.float64, **settings) -> Policy:
    return Policy(tiny_language_model(architecture, dtype), PPOSettings(**{"tune": "lora:2", **settings}))


def moved(policy: Policy) -> Policy:
    """The policy after an update: every trained weight is another."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.trained().values():
            weight += 0.05 * torch.randn_like(weight)
    return policy


@pytest.mark.parametrize("architecture", slow_except(["llama"], ARCHITECTURES))
@pytest.mark.parametrize("tune", ["lora:2", "all"])
def test_tokens_have_the_probabilities_that_they_are_drawn_by(architecture, tune):
    policy = moved(policy_of(architecture, tune=tune))
    written = generate(policy.lm, ["He", "The dog", "A"], method=EVERYTHING, max_new_tokens=7, seed=3)
    rows = [(policy.lm.tokenizer(one.prompt)["input_ids"], [step.token_id for step in one.steps]) for one in written]
    tokens = Tokens.of(rows, torch.device("cpu"))
    logprobs = policy(tokens).logprobs(tokens)
    for row, one in zip(logprobs, written, strict=True):
        assert row[: len(one.steps)].tolist() == pytest.approx([step.logprob for step in one.steps], abs=1e-9)


@pytest.mark.parametrize(("tune", "values"), TUNED)
def test_a_row_is_read_as_if_alone(tune, values):
    policy = moved(policy_of(tune=tune, values=values))
    tokens = Tokens.of(ROWS, torch.device("cpu"))
    together, reference = policy(tokens), policy.reference_logits(tokens)
    for n, row in enumerate(ROWS):
        own = Tokens.of([row], torch.device("cpu"))
        alone, count = policy(own), len(row[1])
        assert torch.allclose(together.logits[n, :count], alone.logits[0], atol=1e-9)
        assert torch.allclose(together.values[n, :count], alone.values[0], atol=1e-9)
        assert torch.allclose(reference[n, :count], policy.reference_logits(own)[0], atol=1e-9)


@pytest.mark.parametrize(("tune", "values"), TUNED)
def test_the_reference_is_the_model_as_it_was(tune, values):
    tokens = Tokens.of(ROWS, torch.device("cpu"))
    policy = policy_of(tune=tune, values=values)
    first = policy(tokens)
    assert torch.allclose(exact_kl(first.logits, policy.reference_logits(tokens)), torch.zeros(()).double(), atol=1e-9)
    assert (first.values == 0).all()
    before = policy.reference_logits(tokens)
    after = moved(policy)(tokens)
    assert torch.equal(policy.reference_logits(tokens), before)
    assert (exact_kl(after.logits, before)[tokens.mask] > 1e-6).all()
    assert (after.values[tokens.mask] != 0).all()


@pytest.mark.parametrize(("tune", "values"), TUNED)
def test_all_that_is_trained_is_learned_from(tune, values):
    policy = moved(policy_of(tune=tune, values=values))
    tokens = Tokens.of(ROWS, torch.device("cpu"))
    outlook = policy(tokens)
    (outlook.logprobs(tokens)[tokens.mask].sum() + outlook.values[tokens.mask].sum()).backward()
    idle = [name for name, weight in policy.trained().items() if weight.grad is None or not weight.grad.any()]
    assert idle == []
    assert {"head.weight", "head.bias"} < set(policy.trained())


def test_the_last_layers_alone_may_have_adapters():
    named = policy_of(tune="lora:2:1").trained()
    assert named and all(".layers.2." in name for name in named if not name.startswith("head"))
    with pytest.raises(RewardError, match="tune lora:2:9 trains more than the 3 layers there are"):
        policy_of(tune="lora:2:9")


@pytest.mark.parametrize("architecture", slow_except(["llama"], ARCHITECTURES))
@pytest.mark.parametrize("values", ["shared", "own"])
def test_layers_without_adapters_need_not_be_run_again(architecture, values):
    policy = moved(policy_of(architecture, tune="lora:2:1", values=values))
    tokens = Tokens.of(ROWS, torch.device("cpu"))
    entering = policy.entering(tokens)
    if architecture == "llama":
        assert entering is not None and entering.shape[:2] == tokens.token_ids.shape
    whole, short = policy(tokens), policy(tokens, entering)
    assert torch.allclose(whole.logits[tokens.mask], short.logits[tokens.mask], atol=1e-9)
    assert torch.allclose(whole.values[tokens.mask], short.values[tokens.mask], atol=1e-9)
    reference = policy.reference_logits(tokens)[tokens.mask]
    assert torch.allclose(reference, policy.reference_logits(tokens, entering)[tokens.mask], atol=1e-9)
    gradients = []
    for one in (whole, short):
        policy.zero_grad()
        (one.logprobs(tokens)[tokens.mask].sum() + one.values[tokens.mask].sum()).backward()
        gradients.append({name: weight.grad.clone() for name, weight in policy.trained().items()})
    assert all(torch.allclose(gradients[0][name], own, atol=1e-8) for name, own in gradients[1].items())


def test_values_of_their_own_leave_the_policy_alone():
    policy = policy_of(values="own")
    tokens = Tokens.of(ROWS, torch.device("cpu"))
    policy(tokens).values.sum().backward()
    of_policy = [
        name for name, weight in policy.trained().items() if name.startswith("model.") and weight.grad is not None
    ]
    assert of_policy == []


def test_half_precision_is_trained_as_a_whole_in_full():
    policy = policy_of(dtype=torch.bfloat16, tune="all")
    assert {weight.dtype for weight in policy.trained().values()} == {torch.float32}


def test_logits_give_the_chosen_tokens_log_probabilities():
    logits = torch.log(torch.tensor([[[0.2, 0.8], [0.5, 0.5]]])) + 3
    tokens = Tokens.of([([0], [1, 0])], torch.device("cpu"))
    assert chosen(logits, tokens).exp().tolist()[0] == pytest.approx([0.8, 0.5])
