"""Human texts in part rephrased: which sentences, where they stand afterwards, and going on after a crash."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midcourse.data.formats import DataError
from midcourse.data.jsonl import RowFileError
from midcourse.data.ladders import read_ladders
from midcourse.decode.request import Request
from midcourse.detect.mix import MixError, chosen_sentences, mix, paraphrase
from midcourse.detect.rephrase import Rephrased, RephraseError, Task, fault_of, tidied
from midcourse.detect.rephrase_lm import LMRephraser
from midcourse.detect.rephrase_server import ServerRephraser
from midcourse.detect.sentences import sentences_of, spans_of
from midcourse.detect.texts import LabelledText, read_texts
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Message
from midcourse.testing import tiny_language_model
from tests.chat_server import Server, completion

TEXTS = [
    LabelledText("The ferry was late.  Nobody minded much!\n\n Was it the fog?\tMaybe it was. ", "human", "g1", "news"),
    LabelledText("One sentence alone, without an end", domain="mail"),
    LabelledText("The train came early. Everybody ran to it."),
]


def in_capitals(sentence: str) -> str:
    """Words that share nothing with the sentence's own, and say which it was."""
    return f"What was said is {''.join(sentence.split()).upper()}"


class Known:
    """Rephrases in a way that can be told, in the opposite order."""

    name = "known"

    def __init__(self, refuse: Callable[[str], bool] = lambda sentence: False):
        self.refuse, self.tasks = refuse, []

    def asked(self) -> dict[str, Any]:
        return {"model": "known"}

    def rephrase(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Rephrased]]:
        self.tasks = list(tasks)
        for place, task in reversed(list(enumerate(self.tasks))):
            said = task.sentences.items()
            yield (
                place,
                Rephrased(
                    {number: in_capitals(one) for number, one in said if not self.refuse(one)},
                    {number: "no" for number, one in said if self.refuse(one)},
                ),
            )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# Rows


def test_rows_hold_both_texts_and_what_became_of_the_sentences(tmp_path):
    out = tmp_path / "out.jsonl"
    found = mix(TEXTS, Known(lambda sentence: "fog" in sentence), out, ratio=1.0)
    first = "The ferry was late.  Nobody minded much!\n\n Was it the fog?\tMaybe it was. "
    want = {
        "row": 0,
        "human": first,
        "mixed": "What was said is THEFERRYWASLATE.  What was said is NOBODYMINDEDMUCH!\n\n Was it the fog?\t"
        "What was said is MAYBEITWAS. ",
        "machine": None,
        "sentences": 4,
        "rephrased": [1, 2, 4],
        "failed": {"3": "no"},
        "group": "g1",
        "domain": "news",
        "model": "",
        "rephrased_by": "known",
    }
    written = {row["row"]: row for row in rows(out)}
    assert written[0] == want
    assert written[1]["mixed"] == "What was said is ONESENTENCEALONE,WITHOUTANEND"
    assert [one.human for one in found] == [text.text for text in TEXTS]
    assert (found[0].rephrased, found[0].failed, found[0].rephrased_by) == ((1, 2, 4), {3: "no"}, "known")


def test_the_rows_are_read_as_texts_of_a_group_and_as_ladders(tmp_path):
    source, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    pairs = [
        {"human": text.text, "llm": f"m{i}", "group": "g", "domain": "d", "model": "m"} for i, text in enumerate(TEXTS)
    ]
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    mix(read_texts(source), Known(lambda sentence: "alone" in sentence), out, ratio=1.0)
    texts = read_texts(out)
    assert sorted({(text.label, text.group, text.domain, text.model) for text in texts}) == [
        ("human", "g", "d", "m"), ("machine", "g", "d", "m"), ("mixed", "g", "d", "m"),
    ]  # fmt: skip
    ladders = {ladder.levels[0]: ladder.levels for ladder in read_ladders(out)}
    assert set(ladders) == {"m0", "m1", "m2"}
    assert ladders["m1"] == ("m1", TEXTS[1].text)  # it could not be rephrased
    assert ladders["m2"] == ("m2", mix(TEXTS[2:], Known(), tmp_path / "b.jsonl", ratio=1.0)[0].mixed, TEXTS[2].text)


def test_a_text_without_any_new_sentence_has_failed_and_says_why(tmp_path):
    out = tmp_path / "out.jsonl"
    found = mix(TEXTS[1:2], Known(lambda sentence: True), out)
    assert (found[0].mixed, found[0].rephrased, found[0].failed) == (None, (), {1: "no"})
    assert mix(TEXTS[1:2], Known(), out, resume=True) == found  # it is kept, and not asked about again
    assert [text.label for text in read_texts(out)] == ["human"]


def test_sentences_that_are_none_are_not_asked_about(tmp_path):
    known = Known()
    texts = [LabelledText("x" * 10**6), LabelledText("12! 3?"), LabelledText("a" * 2001 + ". Short it is.")]
    found = mix(texts, known, tmp_path / "out.jsonl", ratio=1.0)
    assert [sorted(task.sentences) for task in known.tasks] == [[], [], [2]]
    assert found[0].failed == {1: "the sentence has 1000000 characters, more than 2000"}
    assert found[1].failed == {1: "the sentence has no letter", 2: "the sentence has no letter"}
    assert found[2].rephrased == (2,) and list(found[2].failed) == [1]


def test_texts_of_others_are_left_out_and_a_text_that_comes_twice_is_asked_about_once(tmp_path):
    known = Known()
    texts = [LabelledText("A machine's text.", "machine"), TEXTS[0], TEXTS[2], TEXTS[0], LabelledText("No.", "mixed")]
    found = mix(texts, known, tmp_path / "out.jsonl")
    assert [one.human for one in found] == [TEXTS[0].text, TEXTS[2].text, TEXTS[0].text]
    assert found[0] == found[2] and len(known.tasks) == 2
    with pytest.raises(MixError, match="none of the 2 texts is human"):
        mix([texts[0], texts[4]], known, tmp_path / "none.jsonl")


# Which sentences, and where


@pytest.mark.parametrize(
    ("ratio", "count", "wanted"), [(0.5, 8, 4), (0.01, 8, 1), (1.0, 8, 8), (0.3, 8, 2), (0.5, 1, 1)]
)
def test_the_share_of_the_sentences_is_rounded_and_at_least_one(ratio, count, wanted):
    chosen = chosen_sentences("text", count, ratio, 0)
    assert len(set(chosen)) == wanted and chosen == sorted(chosen)
    assert set(chosen) <= set(range(1, count + 1))


def test_the_choice_is_that_of_the_seed_and_the_text_in_any_order(tmp_path):
    long = [LabelledText(" ".join(f"Sentence {i} of {name}." for i in range(12))) for name in "abc"]
    found = mix(long, Known(), tmp_path / "a.jsonl")
    assert mix(long[::-1], Known(), tmp_path / "b.jsonl")[::-1] == found
    assert mix(long[1:2], Known(), tmp_path / "c.jsonl") == found[1:2]
    assert len({one.rephrased for one in found}) == 3
    assert mix(long, Known(), tmp_path / "d.jsonl", seed=1) != found


@given(
    st.lists(st.sampled_from(["One came.", "A ferry?", "Ja!", "12 more.", "é so", "..."]), min_size=1, max_size=8),
    st.sampled_from([" ", "  ", "\n", "\n\n", "\t\r\n"]),
    st.floats(0.01, 1.0),
    st.integers(0, 3),
    st.booleans(),
)
def test_other_sentences_stay_equal_to_the_bit_and_in_their_place(tmp_path_factory, parts, gap, ratio, seed, picky):
    text = gap.join(parts)
    known = Known(lambda sentence: picky and "ferry" in sentence)
    (one,) = mix([LabelledText(text)], known, tmp_path_factory.mktemp("a") / "o.jsonl", ratio=ratio, seed=seed)
    assert len(one.rephrased) + len(one.failed) == max(1, round(ratio * len(spans_of(text))))
    if one.mixed is None:
        assert not one.rephrased
        return
    # What is new is known: putting the old sentences back gives the text again, nothing else having moved.
    back, at = "", 0
    for number, (begin, end) in enumerate(spans_of(text), 1):
        before = text[spans_of(text)[number - 2].end if number > 1 else 0 : begin]
        said = in_capitals(text[begin:end]) if number in one.rephrased else text[begin:end]
        assert one.mixed[at:].startswith(before + said)
        at += len(before + said)
        back += before + text[begin:end]
    assert one.mixed[at:] == text[len(back) :]


def test_an_attack_rephrases_every_sentence_and_keeps_what_it_cannot():
    assert paraphrase([TEXTS[2].text, "...", TEXTS[2].text], Known(lambda sentence: "ran" in sentence)) == [
        "What was said is THETRAINCAMEEARLY. Everybody ran to it.", "...",
        "What was said is THETRAINCAMEEARLY. Everybody ran to it.",
    ]  # fmt: skip


# Answers


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("The boat did not come in time because of fog.", None),
        ("", "is empty"),
        ("...", "is empty"),
        ("the ferry was late, because of thick fog!", "is the sentence itself"),
        ("word " * 30, "more than 3 times as long"),
        ("Late.", "less than 1/3 as long"),
        ("Here is another version: the ferry was late.", "speaks of the task"),
        ("I'm sorry, I cannot rephrase that.", "speaks of the task"),
        ("Sure! The boat came late, the fog being thick.", "speaks of the task"),
        ("The ferry came 20 minutes after it should have, in fog.", "has a number that the sentence has not"),
        ("It is a lovely day for a walk in the park.", "shares no word with"),
        ("Keep the numbers as they are, ferry.", "repeats the instructions"),
    ],
)
def test_what_makes_no_new_sentence(answer, fault):
    told = "Keep the numbers as they are, leave none out."
    found = fault_of(answer, "The ferry was late because of thick fog.", told)
    assert found is None if fault is None else fault in found


def test_what_the_sentence_says_itself_is_no_fault():
    told = "Keep the numbers as they are."
    assert fault_of("So keep the numbers as they are!", "You keep the numbers as they are.", told) is None
    assert fault_of("Here's another boat for you.", "Here is a ferry for you.", told) is None
    assert fault_of("A price of 1000 euros, or 1,5.", "It cost 1,000 euros, which is 1.5.", told) is None
    assert fault_of("It took 3 hours to get there.", "The way there took three hours.", told) is None
    assert fault_of("It is the fog.", "Is it the fog?", told) == "the answer is no question, and the sentence is one"
    assert fault_of("Could it be the fog?", "Is it the fog?", told) is None


@pytest.mark.parametrize(
    ("answer", "sentence", "tidy"),
    [
        (" The boat \n was late ", "The ferry was late.", "The boat was late."),
        ('"The boat was late."', "The ferry was late.", "The boat was late."),
        ('"Late," he said.', "“Too late,” he said.", '"Late," he said.'),
        ("Late, was it", "Was it late?", "Late, was it?"),
        ("The boat’s delay.", "Ferries and their delays", "The boat’s delay"),
        ("“The boat was late.”", "“It was late.”", "“The boat was late.”"),
        ("", "It was late.", ""),
    ],
)
def test_an_answer_gets_the_shape_of_the_sentence(answer, sentence, tidy):
    assert tidied(answer, sentence) == tidy


# A server


def asked_for(request: dict[str, Any]) -> dict[int, str] | str:
    """The numbered sentences of a question, or the one that is asked about alone."""
    content = request["messages"][1]["content"]
    found = dict(re.findall(r"^(\d+)\. (.*)$", content, re.MULTILINE))
    return {int(number): said for number, said in found.items()} or content


def answering(of_list: Callable[[dict[int, str]], str], alone: Callable[[str], str] = in_capitals):
    """Answer lists and lone sentences so."""

    def reply(request: dict[str, Any]) -> tuple[int, Any]:
        asked = asked_for(request)
        return 200, completion(of_list(asked) if isinstance(asked, dict) else alone(asked))

    return reply


def listed(sentences: dict[int, str]) -> str:
    return "\n".join(f"{number}. {in_capitals(said)}" for number, said in sentences.items())


LONG = LabelledText(
    " ".join(f"Sentence of {word} here." for word in ("ferries", "trains", "boats", "fog", "rain", "ice"))
)
WHOLE = [f"What was said is {''.join(one.split()).upper()}" for one in sentences_of(LONG.text)]


def from_server(server: Server, tmp_path: Path, **settings: Any) -> Any:
    return mix([LONG], ServerRephraser.at(server.url, "m", **settings), tmp_path / "out.jsonl", ratio=1.0)[0]


ODD_LISTS = {
    "in order": listed,
    "out of order": lambda said: "\n".join(reversed(listed(said).splitlines())),
    "with prose": lambda said: f"Of course! Here are 6 sentences:\n\n{listed(said)}\n\nLet me know if you need more.",
    "fenced": lambda said: f"```\n{listed(said)}\n```",
    "bold, with brackets": lambda said: re.sub(r"^(\d+)\.", r"**\1)**", listed(said), flags=re.MULTILINE),
    "after thoughts": lambda said: f"<think>\n1. What? Sentence two is hard.\n9. no\n</think>\n{listed(said)}",
    "blank lines between": lambda said: listed(said).replace("\n", "\n\n"),
}


@pytest.mark.parametrize("odd", ODD_LISTS)
def test_a_list_is_read_by_its_numbers(serve, tmp_path, odd):
    server = serve(answering(ODD_LISTS[odd]))
    found = from_server(server, tmp_path)
    assert sentences_of(found.mixed) == WHOLE
    assert (len(server.requests), found.failed) == (1, {})


def test_what_the_server_is_asked(serve, tmp_path):
    server = serve(answering(listed))
    from_server(server, tmp_path, temperature=0.3, top_p=0.8)
    (request,) = server.requests
    assert (request["model"], request["temperature"], request["top_p"]) == ("m", 0.3, 0.8)
    assert request["messages"][1]["content"] == "\n".join(
        f"{number}. {said}" for number, said in enumerate(sentences_of(LONG.text), 1)
    )


# What an answer lacks is asked about again: how each first answer is spoilt, and which numbers are asked about next.
SPOILT: dict[str, tuple[Callable[[dict[int, str]], str], list[int]]] = {
    "missing numbers": (lambda said: listed({n: said[n] for n in said if n not in (2, 5)}), [2, 5]),
    "a number twice": (lambda said: f"{listed(said)}\n3. Sentence of the trains, once more.", [3]),
    "an empty one": (lambda said: f"{listed({n: said[n] for n in said if n != 4})}\n4. ", [4]),
    "an unchanged one": (lambda said: re.sub(r"4\. .*", f"4. {said[4]}", listed(said)), [4]),
    "one on two lines": (lambda said: listed(said).replace("\n4. ", "\nand more\n4. "), [3]),
    "numbers of its own": (lambda said: listed({n + 1: said[n] for n in said}), [1, 2, 3, 4, 5, 6]),
    "two changed places": (
        lambda said: "\n".join(f"{n}. A {said[{2: 3, 3: 2}.get(n, n)]}" for n in said), [2, 3]
    ),
    "the instructions": (
        lambda said: re.sub(r"2\. .*", "2. Say every one of them in other words.", listed(said)), [2]
    ),
    "nothing": (lambda said: "", [1, 2, 3, 4, 5, 6]),
    "a number as long as a line": (lambda said: f"{'9' * 5000}. Sentence.", [1, 2, 3, 4, 5, 6]),
}  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_cannot_be_trusted_is_asked_about_again(serve, tmp_path, spoilt):
    first, again = SPOILT[spoilt]
    server = serve(answering(lambda said: first(said) if len(server.requests) == 1 else listed(said)))
    found = from_server(server, tmp_path)
    assert [list(asked_for(request)) for request in server.requests] == [[1, 2, 3, 4, 5, 6], again]
    assert found.failed == {} and found.rephrased == (1, 2, 3, 4, 5, 6)
    assert [sentences_of(found.mixed)[number - 1] for number in again] == [WHOLE[number - 1] for number in again]


def test_a_model_that_counts_anew_shifts_nothing(serve, tmp_path):
    """Half of the sentences are asked about by their numbers; the answer counts 1, 2, 3, however often."""
    server = serve(
        answering(lambda said: "\n".join(f"{n}. {in_capitals(one)}" for n, one in enumerate(said.values(), 1)))
    )
    found = mix([LONG], ServerRephraser.at(server.url, "m", retries=1), tmp_path / "out.jsonl", seed=1)[0]
    assert found.rephrased != (1, 2, 3) and found.failed == {}
    assert len(server.requests) == 2 + 3  # two lists, then one by one
    want = [WHOLE[n - 1] if n in found.rephrased else one for n, one in enumerate(sentences_of(LONG.text), 1)]
    assert sentences_of(found.mixed) == want


def test_what_no_list_brings_is_asked_about_alone_and_what_fails_then_says_so(serve, tmp_path):
    without_fog = answering(
        lambda said: listed({n: one for n, one in said.items() if "fog" not in one and "ice" not in one}),
        lambda said: "" if "ice" in said else in_capitals(said),
    )
    server = serve(without_fog)
    found = from_server(server, tmp_path, retries=2)
    assert [asked_for(request) for request in server.requests[1:]] == [
        *([{4: "Sentence of fog here.", 6: "Sentence of ice here."}] * 2),
        "Sentence of fog here.", "Sentence of ice here.",
    ]  # fmt: skip
    assert found.rephrased == (1, 2, 3, 4, 5)
    assert found.failed == {6: "the answer is empty"}
    assert sentences_of(found.mixed) == [*WHOLE[:5], "Sentence of ice here."]


def test_an_answer_that_is_cut_loses_its_last_sentence(serve, tmp_path):
    def reply(request: dict[str, Any]) -> tuple[int, Any]:
        answer = completion(listed(asked_for(request)))
        if len(server.requests) == 1:
            answer["choices"][0]["finish_reason"] = "length"
        return 200, answer

    server = serve(reply)
    assert from_server(server, tmp_path).rephrased == (1, 2, 3, 4, 5, 6)
    assert list(asked_for(server.requests[1])) == [6]


def test_a_server_that_stumbles_is_asked_again(serve, tmp_path):
    stumbles = iter([500, 429])
    server = serve(lambda request: (s, {}) if (s := next(stumbles, 0)) else answering(listed)(request))
    assert sentences_of(from_server(server, tmp_path).mixed) == WHOLE
    assert len(server.requests) == 3


def test_a_server_that_stops_keeps_the_rows_before_and_is_gone_on_with(serve, tmp_path):
    out, stops = tmp_path / "out.jsonl", [True]
    texts = [LabelledText(f"The text {i} is of ferries.") for i in range(9)]

    def reply(request: dict[str, Any]) -> tuple[int, Any]:
        broken = stops[0] and "text 5 " in request["messages"][1]["content"]
        return (404, {"error": {"message": "gone"}}) if broken else answering(listed)(request)

    server = serve(reply)
    rephrase = ServerRephraser.at(server.url, "m", concurrency=1)
    with pytest.raises(RephraseError, match=r"rephraser m at http.* answers 404"):
        mix(texts, rephrase, out, ratio=1.0)
    assert [row["row"] for row in rows(out)] == [0, 1, 2, 3, 4]
    stops[0] = False
    before = len(server.requests)
    found = mix(texts, rephrase, out, ratio=1.0, resume=True)
    assert [one.human for one in found] == [text.text for text in texts]
    assert len(server.requests) - before == 4  # no text twice
    with pytest.raises(RowFileError, match=r"holds rows with temperature 0.7, not 0.1"):
        mix(texts, ServerRephraser.at(server.url, "m", temperature=0.1), out, ratio=1.0, resume=True)


def test_a_text_that_the_server_refuses_has_failed_and_others_go_on(serve, tmp_path):
    def reply(request: dict[str, Any]) -> tuple[int, Any]:
        refused = "fog" in request["messages"][1]["content"].replace("because of the fog", "")
        return (400, {"error": {"message": "content filter"}}) if refused else answering(listed)(request)

    found = from_server(serve(reply), tmp_path)
    assert found.rephrased == (1, 2, 3, 5, 6)
    assert "content filter" in found.failed[4]


def test_a_server_that_refuses_everything_is_given_up(serve, tmp_path):
    with pytest.raises(RephraseError, match=r"answers 400 .*no such model"):
        from_server(serve(lambda request: (400, {"error": {"message": "no such model"}})), tmp_path)
    assert not rows(tmp_path / "out.jsonl")


def test_many_texts_are_asked_about_side_by_side(serve, tmp_path):
    texts = [LabelledText(f"The text {i} is of ferries. It came second {i} times.") for i in range(30)]
    found = mix(texts, ServerRephraser.at(serve(answering(listed)).url, "m"), tmp_path / "out.jsonl")
    assert [one.human for one in found] == [text.text for text in texts]
    for i, one in enumerate(found):
        assert one.mixed in (
            f"What was said is THETEXT{i}ISOFFERRIES. It came second {i} times.",
            f"The text {i} is of ferries. What was said is ITCAMESECOND{i}TIMES.",
        )


# A local model


@functools.cache
def lm_of() -> LanguageModel:
    lm = tiny_language_model(more_eos=(46, 65, 101, 200))
    lm.model.config.max_position_embeddings = 4096  # questions and answers in bytes are long
    return lm


SHORT = [LabelledText(f"Ship {i} is in. A dog ran {i} times. Is it {i}?") for i in range(4)]


@pytest.mark.slow
def test_an_answer_depends_on_its_text_and_the_seed_alone(tmp_path):
    rephrase = LMRephraser(lm_of(), retries=1, batch_size=5)
    found = mix(SHORT, rephrase, tmp_path / "a.jsonl", ratio=0.7)
    assert any(one.rephrased for one in found)
    alone = LMRephraser(lm_of(), retries=1, batch_size=1)
    assert mix(SHORT[::-1], alone, tmp_path / "b.jsonl", ratio=0.7)[::-1] == found
    assert mix(SHORT, rephrase, tmp_path / "c.jsonl", ratio=0.7, seed=1) != found
    for one in found:
        old, spans = sentences_of(one.human), spans_of(one.human)
        assert len(one.rephrased) + len(one.failed) == 2
        assert all(
            (one.mixed or one.human).count(old[n - 1]) for n in range(1, len(spans) + 1) if n not in one.rephrased
        )


@pytest.mark.slow
def test_more_retries_keep_more_sentences(tmp_path):
    """A sentence whose first answer is good keeps it; one whose answers all fail says what was wrong with the last."""
    few = mix(SHORT, LMRephraser(lm_of(), retries=0), tmp_path / "a.jsonl", ratio=1.0)
    many = mix(SHORT, LMRephraser(lm_of(), retries=6), tmp_path / "b.jsonl", ratio=1.0)
    assert all(set(one.rephrased) <= set(more.rephrased) for one, more in zip(few, many, strict=True))
    assert sum(len(one.rephrased) for one in few) < sum(len(one.rephrased) for one in many)
    assert all(why.startswith("the answer ") for one in few for why in one.failed.values())


def test_a_sentence_is_asked_about_as_often_as_said_and_never_with_the_same_seed(tmp_path):
    asked: dict[str, list[int]] = {}

    class Listening(LMRephraser):
        def _request(self, messages: Sequence[Message], limit: int, seed: int) -> Request:
            if messages:
                asked.setdefault(messages[-1]["content"], []).append(seed)
            return super()._request(messages, limit, seed)

    found = mix(SHORT, Listening(lm_of(), retries=2), tmp_path / "out.jsonl", ratio=1.0)
    often = {said: len(set(seeds)) for said, seeds in asked.items()}
    assert sum(often.values()) == sum(map(len, asked.values()))
    failed = [sentences_of(one.human)[number - 1] for one in found for number in one.failed]
    assert failed and {often[said] for said in failed} == {3}
    assert set(often.values()) <= {1, 2, 3}


def test_a_sentence_for_which_the_model_has_no_room_fails_alone(tmp_path):
    lm = tiny_language_model()  # reads 256 bytes, which the instructions alone exceed
    (one,) = mix(SHORT[:1], LMRephraser(lm), tmp_path / "out.jsonl", ratio=1.0)
    assert one.mixed is None
    assert re.fullmatch(r"question and answer take \d+ tokens, and tiny llama has 256", one.failed[1])


def test_a_model_without_a_chat_template_is_refused():
    lm = tiny_language_model()
    lm.tokenizer.chat_template = None
    with pytest.raises(RephraseError, match=r"tiny llama has no chat template, .*; name an instruct model"):
        LMRephraser(lm)


@pytest.mark.slow
def test_smollm2_rephrases(tmp_path):
    texts = [
        LabelledText(
            "The museum opened its doors to the public in 1923. Visitors come from all over the country every summer. "
            "The council has promised to repair the roof before winter. Local people raised most of the money."
        )
    ]
    (one,) = mix(texts, LMRephraser(LanguageModel.load()), tmp_path / "out.jsonl", ratio=1.0)
    assert len(one.rephrased) >= 3
    for old, new in zip(sentences_of(one.human), sentences_of(one.mixed), strict=False):
        assert new[-1] == old[-1]
    kept = {word for word in re.findall(r"\w{5,}", one.human.lower()) if word in one.mixed.lower()}
    assert {"museum", "council", "winter"} & kept


# Going on

KILLED = """
import os, signal, sys
from pathlib import Path
from midcourse.detect.mix import mix
from midcourse.detect.rephrase_lm import LMRephraser
from tests.detect.test_mix import SHORT, lm_of
import midcourse.detect.mix as module

append = module.append_rows
def append_and_die(file, rows):
    append(file, rows)
    if file.tell() and Path(file.name).read_bytes().count(b"\\n") == 2:
        file.write(b'{"row": 3, "hum')
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
module.append_rows = append_and_die
mix(SHORT, LMRephraser(lm_of(), retries=1), sys.argv[1])
"""


@pytest.mark.slow
def test_a_kill_loses_and_repeats_nothing(tmp_path):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."])}
    root = Path(__file__).parents[2]
    died = subprocess.run([sys.executable, "-c", KILLED, str(out)], cwd=root, env=environment, timeout=300)
    assert died.returncode == -signal.SIGKILL
    before = out.read_bytes()
    assert before.count(b"\n") == 2 and not before.endswith(b"\n")
    with pytest.raises(RowFileError, match="exists already; add --resume"):
        mix(SHORT, LMRephraser(lm_of(), retries=1), out)
    found = mix(SHORT, LMRephraser(lm_of(), retries=1), out, resume=True)
    assert found == mix(SHORT, LMRephraser(lm_of(), retries=1), whole)
    assert out.read_bytes().splitlines()[:2] == before.splitlines()[:2]
    assert sorted(row["row"] for row in rows(out)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed": 1}, "holds rows with seed 0, not 1"),
        ({"ratio": 0.9}, "holds rows with ratio 0.5, not 0.9"),
        ({"texts": TEXTS[::-1]}, "is of another text than row"),
        ({"texts": TEXTS[:1]}, "of other texts, here are 1"),
    ],
)
def test_other_rows_are_not_gone_on_with(tmp_path, change, problem):
    out = tmp_path / "out.jsonl"
    mix(TEXTS, Known(), out)
    before = out.read_bytes()
    with pytest.raises(RowFileError, match=problem):
        mix(**{"texts": TEXTS, "rephrase": Known(), "out": out, "resume": True, **change})
    assert out.read_bytes() == before


def test_texts_may_be_added_at_the_end(tmp_path):
    out = tmp_path / "out.jsonl"
    first = mix(TEXTS[:2], Known(), out)
    known = Known()
    assert mix(TEXTS, known, out, resume=True)[:2] == first
    assert len(known.tasks) == 1


def test_a_row_that_is_not_ours_is_refused(tmp_path):
    out = tmp_path / "out.jsonl"
    mix(TEXTS, Known(), out)
    out.write_bytes(out.read_bytes() + b'{"row": 1, "human": "x"}\n')
    with pytest.raises(RowFileError, match="line 4: is no row of this run"):
        mix(TEXTS, Known(), out, resume=True)


def test_two_writers_are_refused(tmp_path):
    out = tmp_path / "out.jsonl"

    class Nested(Known):
        def rephrase(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Rephrased]]:
            with pytest.raises(RowFileError, match=rf"another run \(process {os.getpid()}\) is writing to"):
                mix(TEXTS, Known(), out, resume=True)
            return super().rephrase(tasks)

    assert len(mix(TEXTS, Nested(), out)) == 3


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"ratio": 0.0}, "ratio 0.0 is no share"),
        ({"ratio": 1.1}, "ratio 1.1 is no share"),
        ({"ratio": float("nan")}, "ratio nan is no share"),
        ({"seed": -1}, "seed -1 is negative"),
    ],
)
def test_settings_that_make_no_sense_write_nothing(tmp_path, settings, problem):
    with pytest.raises(MixError, match=problem):
        mix(TEXTS, Known(), tmp_path / "out.jsonl", **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"retries": -1}, "retries -1 is negative"),
        ({"concurrency": 0}, "concurrency 0 asks nothing"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"top_p": 0.0}, "top-p 0.0"),
    ],
)
def test_a_server_with_settings_that_make_no_sense_is_refused(settings, problem):
    with pytest.raises(RephraseError, match=problem):
        ServerRephraser.at("http://127.0.0.1:9/v1", "m", **settings)


def test_binary_texts_are_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"A text.\0More.")
    with pytest.raises(DataError, match="is no text: it holds the byte 0"):
        read_texts(path)
