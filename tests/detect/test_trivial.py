from midcourse.detect.trivial import TRIVIAL


def test_features_by_hand():
    text = "The sea, the sea.\nIt was late"
    assert {name: feature(text) for name, feature in TRIVIAL.items()} == {
        "length": 7.0,
        "newline": 1.0,
        "characters per word": (3 + 4 + 3 + 4 + 2 + 3 + 4) / 7,
        "commas per word": 1 / 7,
        "type-token ratio": 5 / 7,  # the, sea, it, was, late
    }


def test_nothing_is_a_text_too():
    assert all(feature("") == 0 for feature in TRIVIAL.values())
    assert TRIVIAL["newline"]("one line\n") == 0
