"""Cached prefixes equal whole forwards: prompts of unequal length, siblings, chosen tokens, rows that leave."""

import random

import pytest
import torch
from torch import Tensor
from transformers import JambaConfig, LlamaConfig, Qwen3NextConfig, T5Config

from midcourse.lm.prefix_cache import PrefixCache, UnsupportedModelError, check_supported, pad
from midcourse.testing import ARCHITECTURES, WINDOW, tiny_language_model

ROWS = [list(b"The ferry was late"), list(b"A"), list(b"under the bridge, ")]
CANDIDATES = torch.tensor([[1, 2, 3], [40, 50, 257], [7, 7, 256]])


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_language_model(request.param).model


def whole(model, ids: list[int]) -> Tensor:
    """The logits at every position of one row, without a cache."""
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def started(model, rows: list[list[int]] = ROWS, room: int = 12) -> PrefixCache:
    cache = PrefixCache(model, len(rows), max(map(len, rows)) + room)
    cache.extend(pad(rows, model.device)[0], [len(row) for row in rows])
    return cache


def assert_siblings(model, cache: PrefixCache, rows: list[list[int]], candidates: Tensor) -> None:
    """The cache's answer at every candidate of every row is that of a whole forward."""
    have = cache.siblings(candidates).logits
    for i, row in enumerate(rows):
        for j, token in enumerate(candidates[i].tolist()):
            torch.testing.assert_close(have[i, j], whole(model, [*row, token])[-1], atol=1e-10, rtol=0)


def test_pad_on_the_right():
    ids, mask = pad([[1, 2, 3], [4]], torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


def test_padded_prompts_equal_each_alone(model):
    ids, mask = pad(ROWS, model.device)
    cache = PrefixCache(model, len(ROWS), ids.shape[1] + 4)
    have = cache.extend(ids, [len(row) for row in ROWS]).logits
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(have[i][mask[i]], whole(model, row), atol=1e-10, rtol=0)
    assert_siblings(model, cache, ROWS, CANDIDATES)


def test_what_padding_holds_does_not_matter(model):
    ids, mask = pad(ROWS, model.device)
    logits = []
    for filler in (0, 257):
        cache = PrefixCache(model, len(ROWS), ids.shape[1])
        counts = [len(row) for row in ROWS]
        cache.extend(torch.where(mask, ids, filler), counts)
        logits.append(cache.siblings(CANDIDATES).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("piece", [1, 2, 5])
def test_prompt_in_pieces_equals_whole(model, piece):
    row = ROWS[0]
    cache = PrefixCache(model, 1, len(row))
    parts = [cache.extend(torch.tensor([row[i : i + piece]])).logits[0] for i in range(0, len(row), piece)]
    torch.testing.assert_close(torch.cat(parts), whole(model, row), atol=1e-10, rtol=0)


def test_siblings_leave_the_prefix_alone(model):
    cache = started(model)
    for _ in range(2):
        assert_siblings(model, cache, ROWS, CANDIDATES)
    assert_siblings(model, cache, ROWS, CANDIDATES.flip(1)[:, :2])


def test_kept_sibling_joins_the_prefix(model):
    cache, rows = started(model), ROWS
    for index in ([0, 2, 1], [2, 2, 0], [1, 0, 1]):
        assert_siblings(model, cache, rows, CANDIDATES)
        cache.keep(torch.tensor(index))
        rows = [[*row, int(CANDIDATES[i, j])] for i, (row, j) in enumerate(zip(rows, index, strict=True))]
    assert_siblings(model, cache, rows, CANDIDATES)


def test_rows_leave_between_siblings_and_keep(model):
    cache = started(model)
    cache.siblings(CANDIDATES)
    cache.select([2, 0])
    cache.keep(torch.tensor([1, 2]))
    rows = [[*ROWS[2], 7], [*ROWS[0], 3]]
    assert cache.batch == 2
    assert_siblings(model, cache, rows, CANDIDATES[:2])


def assert_branches(model, cache: PrefixCache, rows: list[list[int]], dice: random.Random) -> list[list[int]]:
    """Branches of three tokens, some behind tokens not read before, equal whole forwards; the rows with the latter."""
    first = [[dice.randrange(259) for _ in range(dice.randint(0, 2))] for _ in rows]
    counts = [len(row) for row in first]
    branches = torch.tensor([[[dice.randrange(259) for _ in range(3)] for _ in range(2)] for _ in rows])
    waiting = pad(first, model.device)[0]
    logits = cache.branches(branches, waiting, counts).logits[:, waiting.shape[1] :].unflatten(1, (2, 3))
    rows = [row + more for row, more in zip(rows, first, strict=True)]
    for i, row in enumerate(rows):
        for j, branch in enumerate(branches[i].tolist()):
            torch.testing.assert_close(logits[i, j], whole(model, row + branch)[-3:], atol=1e-10, rtol=0)
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_operations_equals_whole(model, seed):
    dice = random.Random(seed)
    rows = [[dice.randrange(259) for _ in range(dice.randint(1, 2 * WINDOW))] for _ in range(4)]
    cache = started(model, rows, room=8)
    for _ in range(10):
        action = dice.choice(["extend", "keep", "select", "branches", "rewind", "replace", "repeat"])
        if action == "extend":
            new = [[dice.randrange(259) for _ in range(dice.randint(1, 4))] for _ in rows]
            cache.extend(pad(new, model.device)[0], [len(more) for more in new])
            rows = [row + more for row, more in zip(rows, new, strict=True)]
        elif action == "keep":
            candidates = torch.tensor([[dice.randrange(259) for _ in range(3)] for _ in rows])
            index = torch.tensor([dice.randrange(3) for _ in rows])
            cache.siblings(candidates)
            cache.keep(index)
            rows = [[*row, int(candidates[i, index[i]])] for i, row in enumerate(rows)]
        elif action == "branches":
            rows = assert_branches(model, cache, rows, dice)
        elif action == "rewind":
            counts = [dice.randint(0, len(row) - 1) for row in rows]
            cache.rewind(counts)
            rows = [row[: len(row) - count] for row, count in zip(rows, counts, strict=True)]
        elif action == "replace":
            place, new = dice.randrange(len(rows)), [dice.randrange(259) for _ in range(dice.randint(1, 30))]
            cache.replace([place], started(model, [new]))
            rows[place] = new
        elif action == "repeat":
            kept = [dice.randrange(len(rows)) for _ in rows]
            cache.select(kept)
            rows = [rows[i] for i in kept]
        elif len(rows) > 1:
            kept = dice.sample(range(len(rows)), len(rows) - 1)
            cache.select(kept)
            rows = [rows[i] for i in kept]
    assert cache.lengths == [len(row) for row in rows]
    assert_siblings(model, cache, rows, CANDIDATES.repeat(2, 1)[: len(rows)])


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_eager_attention_takes_the_same_masks(architecture):
    # Its softmax is in float32 whatever the dtype: there the lowest float64 is -inf, and a token that sees nothing nan.
    model = tiny_language_model(architecture, attention="eager").model
    have = started(model).siblings(CANDIDATES).logits
    for i, row in enumerate(ROWS):
        for j, token in enumerate(CANDIDATES[i].tolist()):
            torch.testing.assert_close(have[i, j], whole(model, [*row, token])[-1], atol=1e-4, rtol=0)


def test_window_hides_what_is_far():
    model = tiny_language_model("mistral", layers=1).model
    row = list(b"abcdefghijklmnop")
    near, far = row.copy(), row.copy()
    near[-WINDOW], far[-WINDOW - 1] = 0, 0
    last = [started(model, [ids[:-1]]).siblings(torch.tensor([[ids[-1]]])).logits[0, 0] for ids in (row, near, far)]
    assert not torch.allclose(last[0], last[1])
    torch.testing.assert_close(last[0], last[2], atol=1e-10, rtol=0)


def test_keep_follows_siblings():
    cache = started(tiny_language_model().model)
    with pytest.raises(ValueError, match="follows branches"):
        cache.keep(torch.tensor([0, 0, 0]))
    cache.siblings(CANDIDATES)
    cache.extend(torch.tensor([[1], [2], [3]]))
    with pytest.raises(ValueError, match="follows branches"):
        cache.keep(torch.tensor([0, 0, 0]))


def test_cache_grows_where_it_has_to(model):
    cache = started(model, room=0)
    assert_siblings(model, cache, ROWS, CANDIDATES)
    cache.keep(torch.tensor([0, 1, 2]))
    rows = [[*row, int(CANDIDATES[i, i])] for i, row in enumerate(ROWS)]
    assert_siblings(model, cache, rows, CANDIDATES)


def test_model_is_left_as_it_was():
    model = tiny_language_model("gemma3").model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    cache = started(model)
    cache.siblings(CANDIDATES)
    cache.keep(torch.tensor([0, 1, 2]))
    assert model.config.to_dict() == config
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LlamaConfig(attn_implementation="flash_attention_2"), "'flash_attention_2' takes no 4D mask"),
        (Qwen3NextConfig(attn_implementation="sdpa"), "qwen3_next has linear_attention layers"),
        (JambaConfig(attn_implementation="sdpa"), "jamba has .* layers"),
        (T5Config(attn_implementation="sdpa"), "t5 is an encoder-decoder"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_unsupported_models_are_refused(config, words):
    with pytest.raises(UnsupportedModelError, match=words):
        check_supported(config)
