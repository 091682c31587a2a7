"""How the studies read their data: ParaDetox's two sides are told apart by their words alone."""

import gzip
import json

import pytest

from studies.data import PARADETOX, comparisons, kept_as, spelt_alike


@pytest.mark.parametrize(
    ("original", "want"),
    [
        ("You are wrong , man !", "you are wrong, man"),
        ("i do n't know , it 's ( really ) bad .", "i don't know, it's (really) bad"),
        ("We\u2019re  done . . .", "we\u2019re done"),
        ("is 50 % enough ?", "is 50% enough"),
        ("a: b ; c", "a: b; c"),
        (" ! ", ""),
    ],
)
def test_both_sides_are_spelt_alike(original, want):
    assert spelt_alike(original) == want and spelt_alike(want) == want


def rows(folder, *pairs):
    (folder / "edits").mkdir()
    with gzip.open(folder / "edits/paradetox.jsonl.gz", "wt") as file:
        for split, original, edited in pairs:
            file.write(json.dumps({"split": split, "original": original, "edited": edited}) + "\n")
    return folder


def test_paradetox_is_read_repaired_and_what_differs_in_spelling_alone_is_no_pair(tmp_path):
    data = rows(
        tmp_path,
        ("train", "what the hell , man !", "What on earth, man?"),
        ("train", "shut up .", "Shut up"),
        ("test", "damn , he 's late", "He's late."),
        ("validation", "no", "yes"),
    )
    train, test = comparisons("paradetox", data)
    assert [(c.chosen, c.rejected) for c in train] == [("what on earth, man", "what the hell, man")]
    assert [(c.prompt, c.chosen, c.rejected) for c in test] == [("", "he's late", "damn, he's late")]
    published, _ = comparisons("paradetox", data, made="as published")
    assert {c.rejected for c in published} == {"what the hell , man !", "shut up ."}


def test_files_of_the_data_as_published_are_not_taken_for_repaired_ones():
    assert PARADETOX == "repaired"
    assert [kept_as(name) for name in ("paradetox-trunk-head-prefix-0", "detox", "hh", "paradetox train")] == [
        *("paradetox-repaired-trunk-head-prefix-0", "detox-repaired", "hh", "paradetox-repaired train")
    ]
