"""A page of texts with a detector's verdicts, every token coloured by what it adds to the score."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from midcourse.detect.detector import Detector, Verdict
from midcourse.detect.disguise import plain
from midcourse.detect.texts import LabelledText
from midcourse.show.page import cells_of, write_page
from midcourse.show.tokens import Token, by_change, tokens_of_score


def write_verdicts_page(
    path: Path, detector: Detector, texts: Sequence[LabelledText], verdicts: Iterable[Verdict]
) -> None:
    """Write a page with each text's verdict and coloured tokens; a text is shown as the detector reads it."""
    reward = detector.reward
    rows: list[tuple[Verdict, list[Token]]] = []
    for text, verdict in zip(texts, verdicts, strict=True):
        score = reward.of_tokens(plain(text.text).text)
        assert reward.score_tokenizer is not None
        rows.append((verdict, tokens_of_score(score, reward.score_tokenizer)))
    colouring = by_change(*(tokens for _, tokens in rows))
    shown = [{"verdict": verdict, "cells": cells_of(tokens, colouring)} for verdict, tokens in rows]
    write_page(path, "detect/verdicts.html.jinja", title="midcourse detect score", texts=shown, colouring=colouring)
