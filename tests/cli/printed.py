"""What a call of the command line has printed."""

import json


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def refused(result: tuple[int, str, str], *parts: str) -> None:
    """Misuse: status 2, one sentence, no traceback."""
    code, _, err = result
    assert code == 2, err
    assert "Traceback" not in err
    assert err.startswith("midcourse: ")
    assert len(err.strip().splitlines()) == 1
    for part in parts:
        assert part in err
