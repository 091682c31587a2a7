"""Compiled steps give what uncompiled ones give, while rows leave, join and grow."""

import pytest
import torch

from midcourse.decode.engine import generate
from midcourse.lm.caches import compile_steps
from midcourse.testing import tiny_language_model, tiny_reward, tiny_vocabulary_reward

PROMPTS = ["The ferry was late, and", "A", "under the bridge, where", "of"]
MORE_EOS = tuple(range(0, 256, 9))

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the compiler's own


@pytest.mark.parametrize("make", [tiny_reward, tiny_vocabulary_reward])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_compiled_steps_change_nothing(architecture, make):
    # Any end counts for a reward of the vocabulary: with so many, all of its rows would end at once.
    ends = MORE_EOS if make is tiny_reward else MORE_EOS[:1]
    lm, reward = tiny_language_model(architecture, more_eos=ends), make(architecture, more_eos=ends)
    asked = {"max_new_tokens": 10, "batch_size": 3, "seed": 4, "stop": ["e", "t"], "top_k": 40}
    want = generate(lm, PROMPTS, reward, **asked)
    for model in (lm.model, reward.backbone if make is tiny_reward else reward.model):
        compile_steps(model)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    have = generate(lm, PROMPTS, reward, **asked)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert len({len(row.steps) for row in want}) > 1 or architecture == "gemma3"
    for a, b in zip(have, want, strict=True):
        assert [step.token_id for step in a.steps] == [step.token_id for step in b.steps]
        # The rotary embedding is float32 in any dtype, and the compiler rounds it otherwise.
        assert [step.reward for step in a.steps] == pytest.approx([step.reward for step in b.steps], abs=1e-5)


def test_compiled_cache_may_outgrow_its_room():
    lm, reward = tiny_language_model(), tiny_reward()
    want = generate(lm, ["x" * 240], reward, max_new_tokens=12)
    compile_steps(lm.model)
    compile_steps(reward.backbone)
    have = generate(lm, ["x" * 240], reward, max_new_tokens=12)
    assert [row.text for row in have] == [row.text for row in want]
