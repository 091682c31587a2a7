"""Cached prefixes equal whole forwards: prompts of unequal length, siblings, chosen tokens, rows that leave."""

import random

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    PreTrainedModel,
    T5Config,
)

from midcourse.lm.caches import UnsupportedModelError, check_supported, compile_steps, why_by_row
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prefix_cache import PrefixCache, pad
from midcourse.testing import (
    ARCHITECTURES,
    CONTEXT,
    WINDOW,
    byte_tokenizer,
    randomise,
    tiny_config,
    tiny_language_model,
)

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


def test_pieces_longer_than_the_window_equal_whole(model):
    """Rows of unlike length go on by more tokens than a window holds."""
    rows = [[dice % 250 for dice in range(start, start + 40, 3)] for start in (7, 90)]
    begun = [rows[0][:3], rows[1][:5]]
    cache = started(model, begun, room=2 * WINDOW)
    rest = [row[len(start) :] for row, start in zip(rows, begun, strict=True)]
    assert min(map(len, rest)) > WINDOW + 1
    have = cache.extend(pad(rest, model.device)[0], [len(row) for row in rest]).logits
    for i, row in enumerate(rows):
        torch.testing.assert_close(have[i, : len(rest[i])], whole(model, row)[-len(rest[i]) :], atol=1e-10, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_padding_stands_where_the_model_knows_a_position(architecture):
    """GPT-2 knows no position beyond its context: a row that fills it waits beside one that goes on."""
    model = tiny_language_model(architecture).model
    rows = [[65] * (CONTEXT - 1), [66] * 3]
    cache = started(model, rows)
    cache.extend(torch.tensor([[1, 0, 0], [2, 3, 4]]), [1, 3])
    assert cache.lengths == [CONTEXT, 6]
    cache.rewind([2, 0])
    logits = cache.branches(torch.tensor([[[5]], [[6]]]), torch.tensor([[7, 0, 0], [7, 8, 9]]), [1, 3]).logits
    whole_rows = [[*rows[0][:-1], 7, 5], [*rows[1], 2, 3, 4, 7, 8, 9, 6]]
    for i, row in enumerate(whole_rows):
        torch.testing.assert_close(logits[i, -1], whole(model, row)[-1], atol=1e-10, rtol=0)
    logits = cache.branches(torch.tensor([[[5]], [[6]]]), torch.tensor([[0, 0], [7, 8]]), [0, 2]).logits
    for i, row in enumerate([[*whole_rows[0][:-1], 5], [*whole_rows[1][:-1], 7, 8, 6]]):
        torch.testing.assert_close(logits[i, -1], whole(model, row)[-1], atol=1e-10, rtol=0)


def test_counts_and_caches_that_do_not_fit_are_noticed():
    cache = started(tiny_language_model().model)
    with pytest.raises(ValueError, match="zip"):
        cache.rewind([1])
    with pytest.raises(ValueError, match="zip"):
        cache.replace([0], started(tiny_language_model(layers=1).model, ROWS[:1]))


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
        (T5Config(attn_implementation="sdpa"), "t5 is an encoder-decoder"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_unsupported_models_are_refused(config, words):
    with pytest.raises(UnsupportedModelError, match=words):
        check_supported(config)


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 259,
    "pad_token_id": 0,
    "max_position_embeddings": CONTEXT,
    "is_decoder": True,
}
OPT = {"word_embed_proj_dim": 32, "ffn_dim": 48}


def of_kind(kind: str, **settings) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **{**SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    randomise(model, 0)
    return model


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("roberta", {}, "counts positions from 1"),
        ("xlm-roberta", {"pad_token_id": 7}, "counts positions from 8"),
        ("xmod", {"languages": ["en"], "default_language": "en"}, "counts positions from 1"),
        ("falcon", {"alibi": True}, "has ALiBi attention, which goes by slots"),
        ("bloom", {}, "cannot be told the positions of its tokens"),
        ("mpt", {}, "cannot be told the positions of its tokens"),
    ],
)
def test_models_that_count_positions_themselves_are_read_a_row_at_a_time(kind, settings, words):
    assert why_by_row(of_kind(kind, **settings)) == words


@pytest.mark.parametrize(("kind", "settings"), [("bert", {}), ("opt", OPT), ("biogpt", {}), ("falcon", {})])
def test_models_with_tables_of_positions_equal_whole(kind, settings):
    """OPT and BioGPT skip rows of their tables too, but inside them: positions count from 0."""
    model = of_kind(kind, **settings)
    assert why_by_row(model) is None
    assert_siblings(model, started(model), ROWS, CANDIDATES)


def test_the_text_layers_of_a_model_of_several_media_equal_whole(tmp_path):
    """Gemma 3 with its images' part, as it is published: layers and windows stand in the text configuration."""
    config = Gemma3Config(
        text_config=tiny_config("gemma3", 3).to_dict(),
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=0,
    )
    made = Gemma3ForConditionalGeneration(config).to(torch.float64)
    randomise(made, 0)
    made.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    lm = LanguageModel.load(str(tmp_path), device="cpu", dtype="float64")
    rows = [*ROWS, list(b"longer than the window of the layers")]
    candidates = torch.cat([CANDIDATES, CANDIDATES[:1]])
    cache = started(lm.model, rows)
    assert cache.layer_types == {"sliding_attention", "full_attention"}
    assert_siblings(lm.model, cache, rows, candidates)
    have = lm.start(rows, 1).logprobs
    for logprobs, row in zip(have, rows, strict=True):
        torch.testing.assert_close(logprobs, whole(lm.model, row)[-1].log_softmax(0), atol=1e-10, rtol=0)


# Forwards of fixed shape, which is what is compiled; tests/lm/test_compiled.py compiles them


@pytest.fixture
def shapes(monkeypatch):
    """The shapes of tokens and masks of every forward that would have been compiled; it runs as it is."""
    seen = []

    def watched(forward, dynamic):
        assert dynamic is False

        def call(input_ids, attention_mask, **kwargs):
            masks = attention_mask.values() if isinstance(attention_mask, dict) else [attention_mask]
            seen.append((tuple(input_ids.shape), *(tuple(mask.shape) for mask in masks)))
            return forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", watched)
    return seen


def test_forwards_of_fixed_shape_equal_whole(model, shapes):
    compile_steps(model)
    rows, dice = ROWS, random.Random(0)
    cache = started(model, rows)
    assert not shapes  # a prompt's length differs every time
    for index in ([0, 2, 1], [2, 2, 0]):
        assert_siblings(model, cache, rows, CANDIDATES)
        cache.keep(torch.tensor(index))
        rows = [[*row, int(CANDIDATES[i, j])] for i, (row, j) in enumerate(zip(rows, index, strict=True))]
    cache.extend(pad([[4], [5], [6]], model.device)[0])
    rows = [[*row, token] for row, token in zip(rows, (4, 5, 6), strict=True)]
    assert_siblings(model, cache, rows, CANDIDATES)
    # The mask has a place for each of 256 slots from the first step on.
    kinds = len(cache.layer_types)
    assert shapes == [((3, n), *[(3, 1, n, 256)] * kinds) for n in (3, 3, 1, 3)]
    rows = assert_branches(model, cache, rows, dice)
    assert len(shapes) == 5


def test_long_forwards_and_smaller_batches_are_not_compiled(shapes):
    model = tiny_language_model().model
    compile_steps(model)
    cache, rows = started(model), ROWS
    for tokens, compiled in ((64, 1), (65, 1)):
        more = [[7] * tokens] * 3
        cache.extend(torch.tensor(more))
        rows = [row + new for row, new in zip(rows, more, strict=True)]
        assert len(shapes) == compiled
    assert_siblings(model, cache, rows, CANDIDATES)
    assert len(shapes) == 2
    cache.select([0, 2])
    assert_siblings(model, cache, [rows[0], rows[2]], CANDIDATES[:2])
    assert len(shapes) == 2


def test_a_compiled_cache_grows_by_whole_shapes(shapes):
    model = tiny_language_model().model
    compile_steps(model)
    assert [PrefixCache(model, 1, capacity).capacity for capacity in (1, 256, 257, 512)] == [256, 256, 512, 512]
    row = [65] * 250
    cache = started(model, [row], room=0)
    for token in range(8):
        cache.extend(torch.tensor([[token]]))
        row = [*row, token]
    assert cache.capacity == 512
    assert [mask[-1] for _, mask in shapes] == [256] * 6 + [512] * 2
    assert_siblings(model, cache, [row], CANDIDATES[:1])


def test_models_that_read_a_row_at_a_time_are_not_compiled(shapes):
    with pytest.raises(UnsupportedModelError, match="bloom reads a row at a time, and is not compiled"):
        compile_steps(of_kind("bloom"))


# What is copied, and what is not


def test_an_uncompiled_cache_has_the_room_it_is_asked_for_and_a_quarter_more_when_it_grows():
    cache = PrefixCache(tiny_language_model().model, 1, 20)
    assert cache.capacity == 20
    cache.extend(torch.tensor([[65] * 20]))
    assert cache.capacity == 20
    cache.extend(torch.tensor([[65]]))
    assert cache.capacity == 21 + 20 // 4
    assert all(layer.keys.shape[2] == layer.values.shape[2] == layer.get_max_length() == 26 for layer in cache.layers)


def test_places_of_rows_that_left_are_used_again():
    """Rows that come one by one are not copied each time: there is room for half as many again."""
    cache = started(tiny_language_model().model, [[65, 66]] * 8, room=4)
    layer = cache.layers[0]

    def rows_held(batch: int) -> int:
        cache.select([0] * batch if batch > cache.batch else list(range(batch)))
        assert len(layer.keys) == len(layer.values) == cache.batch == batch
        return len(layer.stored[0])

    assert [rows_held(batch) for batch in (8, 5, 7, 8, 9, 12, 13, 30)] == [8, 8, 8, 8, 12, 12, 18, 30]
    assert len(layer.stored[1]) == 30


@pytest.mark.parametrize(
    ("rows", "moved"),
    [([0, 1, 2, 3], False), ([0, 1], False), ([0, 3, 2], False), ([0, 1, 2, 3, 3], True), ([1, 0, 2, 3], True)],
)
def test_rows_that_stay_are_not_copied(rows, moved):
    """Rows that leave are overwritten by the last ones, where they are; only another order or more rows take copies."""
    model = tiny_language_model().model
    prompts = [*ROWS, list(b"over")]
    cache = started(model, prompts)
    before = cache.layers[0].keys.data_ptr()
    cache.select(rows)
    assert (cache.layers[0].keys.data_ptr() != before) == moved
    assert_siblings(model, cache, [prompts[row] for row in rows], CANDIDATES[:1].expand(len(rows), -1))


def test_select_copies_what_keep_may_need():
    """The alternatives of a row lie behind its prefix, and go with it."""
    model = tiny_language_model().model
    for rows in ([2, 1], [0, 1, 2, 0], [1, 0, 2]):
        cache = started(model)
        cache.siblings(CANDIDATES)
        cache.select(rows)
        cache.keep(torch.tensor([2, 0, 1, 2][: len(rows)]))
        tokens = [int(CANDIDATES[row, j]) for row, j in zip(rows, [2, 0, 1, 2], strict=False)]
        want = [[*ROWS[row], token] for row, token in zip(rows, tokens, strict=True)]
        assert_siblings(model, cache, want, CANDIDATES[:1].expand(len(rows), -1))


def test_rows_may_leave_more_than_once_before_keep():
    model = tiny_language_model().model
    cache = started(model)
    cache.siblings(CANDIDATES)
    cache.select([0, 2])
    cache.select([1])
    cache.keep(torch.tensor([0]))
    assert_siblings(model, cache, [[*ROWS[2], 7]], CANDIDATES[:1])


def test_keep_follows_branches_behind_tokens_not_read_before(model):
    """The alternatives lie behind all that came with them, which of some rows is padding."""
    first = [[8, 9], [], [10]]
    cache = started(model)
    cache.branches(CANDIDATES[:, :, None], pad(first, model.device)[0], [len(row) for row in first])
    cache.keep(torch.tensor([2, 0, 1]))
    rows = [[*ROWS[0], 8, 9, 3], [*ROWS[1], 40], [*ROWS[2], 10, 7]]
    assert_siblings(model, cache, rows, CANDIDATES)


@pytest.mark.parametrize("forget", ["rewind", "replace"])
def test_keep_does_not_follow_what_moves_prefixes(forget):
    model = tiny_language_model().model
    cache = started(model)
    cache.siblings(CANDIDATES)
    if forget == "rewind":
        cache.rewind([1, 0, 2])
    else:
        cache.replace([1], started(model, [ROWS[2]]))
    with pytest.raises(ValueError, match="follows branches"):
        cache.keep(torch.tensor([0, 0, 0]))
    cache.branches(torch.tensor([[[1, 2], [3, 4]]] * 3))  # of two tokens each
    with pytest.raises(ValueError, match="follows branches"):
        cache.keep(torch.tensor([0, 0, 0]))


def test_several_rows_are_replaced_at_once():
    model = tiny_language_model("gemma3").model
    cache = started(model)
    cache.replace([2, 0], started(model, [list(b"a longer row than there was any"), list(b"b")]))
    rows = [list(b"b"), ROWS[1], list(b"a longer row than there was any")]
    assert cache.lengths == [len(row) for row in rows]
    assert_siblings(model, cache, rows, CANDIDATES)
