"""A local language model that rephrases sentences, one at a time: small models rarely get a numbered list right."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from midcourse.decode.engine import Engine
from midcourse.decode.methods import Method
from midcourse.decode.request import Request
from midcourse.decode.steps import Failure, Generation
from midcourse.detect.rephrase import (
    SHORT,
    TIMES,
    Rephrased,
    RephraseError,
    Task,
    check_retries,
    fault_of,
    fingerprint_of,
    tidied,
)
from midcourse.lm.language_model import LanguageModel, rendering
from midcourse.lm.prompt import Message, chat_template, prompt_ids
from midcourse.lm.weights import tensors_fingerprint

# Shown what is wanted, a small model does it; told, it talks about the sentence.
_TOLD = "You say each sentence in other words that mean the same. A question stays a question."
_SHOWN = (
    ("The ferry was late because of the fog, so most of us missed the last train.",
     "Fog had held the boat up, and few of us were in time for the final train."),
    ("Is a warm bath before bed good for the sleep of older people?",
     "Do older people sleep better if they bathe in warm water before they lie down?"),
    ("“Nobody told me about it,” she said.", "She said that she had not been told."),
)  # fmt: skip


def _shown(sentence: str) -> list[Message]:
    pairs = [({"role": "user", "content": said}, {"role": "assistant", "content": new}) for said, new in _SHOWN]
    turns = [turn for pair in pairs for turn in pair]
    return [{"role": "system", "content": _TOLD}, *turns, {"role": "user", "content": " ".join(sentence.split())}]


_ALL_SHOWN = "\n".join(message["content"] for message in _shown(""))


class _Ask(NamedTuple):
    """A sentence of a task, asked about for the so-manieth time."""

    place: int
    number: int
    attempt: int


@dataclass(frozen=True)
class LMRephraser:
    """A local language model that rephrases one sentence at a time, many side by side.

    An answer depends on the sentence, the seed of its task and its number alone.

    Args:
        lm: an instruct model: its tokenizer has a chat template.
        retries: of a sentence, after the first answer.
        top_k: candidates per token, None for the whole vocabulary.
        batch_size: sentences written side by side.

    Raises:
        RephraseError: a model without a chat template, or a negative number of retries.
        MethodError: sampling settings that make no sense.
    """

    lm: LanguageModel
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int | None = 50
    retries: int = 3
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_retries(self.retries)
        if not chat_template(self.lm.tokenizer):
            raise RephraseError(
                f"{self.lm.name} has no chat template, so it takes no instructions; name an instruct model"
            )
        self._request([], 1, 0)
        Engine(self.lm, self.batch_size)

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return self.lm.name

    def asked(self) -> dict[str, Any]:
        """Return what decides the answers, as JSON, for the record of an output."""
        return {
            "lm_fingerprint": tensors_fingerprint(self.lm.model),
            **rendering(self.lm, "chat"),
            "instructions": fingerprint_of(_ALL_SHOWN),
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "retries": self.retries,
        }

    def rephrase(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Rephrased]]:
        """Yield the place of each task, and what became of it, as soon as it is done: in any order."""
        engine = Engine(self.lm, self.batch_size)
        work = _Work(iter(enumerate(tasks)))
        writing: dict[int, _Ask] = {}
        while True:
            while len(writing) < 2 * self.batch_size and (ask := work.next()):
                request, problem = self._asking(work.tasks[ask.place], ask)
                if request:
                    writing[engine.add(request)] = ask
                else:
                    work.fail(ask, problem)
            yield from work.done()
            if not writing:
                return
            for number, event in engine.step():
                if isinstance(event, Failure):
                    raise event.error
                if isinstance(event, Generation):
                    self._take(work, writing.pop(number), event)

    def _asking(self, task: Task, ask: _Ask) -> tuple[Request | None, str]:
        """Return the request for a sentence; none, and why, if the model has no room for it."""
        messages = _shown(task.sentences[ask.number])
        tokens = len(self.lm.tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"])
        limit = max(TIMES * tokens, SHORT)
        used = len(prompt_ids(self.lm.tokenizer, messages, "chat")) + limit
        if used > self.lm.context_length:
            return None, f"question and answer take {used} tokens, and {self.name} has {self.lm.context_length}"
        drawn = hashlib.sha256(f"{task.seed} {ask.number} {ask.attempt}".encode()).digest()
        return self._request(messages, limit, int.from_bytes(drawn[:8])), ""

    def _request(self, messages: Sequence[Message], limit: int, seed: int) -> Request:
        method = Method(None, reward_weight=0.0, top_k=self.top_k, top_p=self.top_p, temperature=self.temperature)
        return Request.of(messages, method=method, template="chat", max_new_tokens=limit, stop=("\n",), seed=seed)

    def _take(self, work: "_Work", ask: _Ask, generation: Generation) -> None:
        sentence = work.tasks[ask.place].sentences[ask.number]
        answer = tidied(generation.text, sentence)
        problem = fault_of(answer, sentence, _ALL_SHOWN)
        if generation.finish_reason == "length":
            problem = problem or "the answer does not end"
        if problem is None:
            work.keep(ask, answer)
        elif ask.attempt < self.retries:
            work.again.append(ask._replace(attempt=ask.attempt + 1))
        else:
            work.fail(ask, problem)


@dataclass
class _Work:
    """Tasks under way, taken from an iterator as they are needed.

    Attributes:
        again: sentences to be asked about once more, before others.
    """

    source: Iterator[tuple[int, Task]]
    tasks: dict[int, Task] = field(default_factory=dict)
    results: dict[int, Rephrased] = field(default_factory=dict)
    fresh: deque[_Ask] = field(default_factory=deque)
    again: deque[_Ask] = field(default_factory=deque)

    def next(self) -> _Ask | None:
        """Return the next sentence to be asked about; None if there is none for now."""
        if self.again:
            return self.again.popleft()
        while not self.fresh:
            taken = next(self.source, None)
            if taken is None:
                return None
            place, task = taken
            self.tasks[place], self.results[place] = task, Rephrased({}, {})
            self.fresh.extend(_Ask(place, number, 0) for number in task.sentences)
        return self.fresh.popleft()

    def keep(self, ask: _Ask, sentence: str) -> None:
        self.results[ask.place].sentences[ask.number] = sentence

    def fail(self, ask: _Ask, problem: str) -> None:
        self.results[ask.place].failed[ask.number] = problem

    def done(self) -> Iterator[tuple[int, Rephrased]]:
        """Yield the tasks all of whose sentences have an answer or have failed, and forget them."""
        for place, (sentences, failed) in list(self.results.items()):
            if len(sentences) + len(failed) == len(self.tasks[place].sentences):
                del self.tasks[place]
                yield place, self.results.pop(place)
