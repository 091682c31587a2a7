"""What responses cost: forward positions of the language model and the rewards, seconds, candidates.

Positions are counted where they are computed, by a look at every forward of the models. What a forward of several rows
costs is shared equally by the responses that are being written, so that nothing is lost and nothing counted twice.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from torch import nn

from midcourse.decode.steps import Generation, Step
from midcourse.rewards.contract import Reward
from midcourse.rewards.trained_vocabulary import TrainedVocabularyReward

Event = TypeVar("Event")


@dataclass
class Cost:
    """What one response cost.

    Attributes:
        lm_passes, reward_passes: token positions that the language model and the reward computed, padding included.
        candidates: how often a reward was computed: of next tokens, blocks or responses.
        seconds: its share of the time; `first_token_seconds`: until its first token was there.
    """

    lm_passes: float = 0.0
    reward_passes: float = 0.0
    candidates: float = 0.0
    seconds: float = 0.0
    first_token_seconds: float = 0.0

    def stored(self) -> dict[str, float]:
        """Return the cost as a row holds it."""
        return asdict(self)


class Meter:
    """A meter of positions and seconds while responses are written, which shares them among the responses."""

    def __init__(self) -> None:
        self.lm = self.reward = self.seconds = 0.0
        self._running = False

    @contextmanager
    def reading(self, lm: nn.Module, rewards: Sequence[nn.Module]) -> Iterator[None]:
        """Count the forwards of these models in the block that `timed` events take."""

        def count(name: str) -> Any:
            def add(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
                if self._running:
                    setattr(self, name, getattr(self, name) + kwargs["input_ids"].numel())

            return add

        hooks = [lm.register_forward_pre_hook(count("lm"), with_kwargs=True)]
        hooks += [model.register_forward_pre_hook(count("reward"), with_kwargs=True) for model in rewards]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def timed(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yield the events; only the time that it takes to make them counts, not what is done with them."""
        left = iter(events)
        while True:
            begin, self._running = time.perf_counter(), True
            event = next(left, None)
            self.seconds += time.perf_counter() - begin
            self._running = False
            if event is None:
                return
            yield event

    def shared(
        self, events: Iterable[tuple[int, Step | Generation]], rows: int, *, rated_at_end: bool = False
    ) -> Iterator[tuple[int, Any, Cost]]:
        """Yield (row, generation, cost) for each of `rows` responses written side by side, as they are finished.

        Args:
            rated_at_end: the reward reads a response when it is finished, as in best-of-n, and is then its own.
        """
        owed = {row: Cost() for row in range(rows)}
        known = Cost()
        for row, event in self.timed(events):
            if isinstance(event, Step):
                owed[row].first_token_seconds = owed[row].first_token_seconds or self.seconds
                continue
            now = Cost(self.lm, self.reward, 0.0, self.seconds)
            for one in owed.values():
                one.lm_passes += (now.lm_passes - known.lm_passes) / len(owed)
                one.reward_passes += 0 if rated_at_end else (now.reward_passes - known.reward_passes) / len(owed)
                one.seconds += (now.seconds - known.seconds) / len(owed)
            cost = owed.pop(row)
            cost.reward_passes += now.reward_passes - known.reward_passes if rated_at_end else 0
            known = now
            cost.candidates = float(event.rated)
            yield row, event, cost


def reward_parameters(reward: Reward) -> int:
    """Return the numbers that each of a reward's positions is multiplied by; the mean of its models if it has two."""
    mean = sum(map(parameters, reward.models)) // max(len(reward.models), 1)
    return mean + (reward.outputs.numel() if isinstance(reward, TrainedVocabularyReward) else 0)


def parameters(model: nn.Module) -> int:
    """Return the numbers that each position is multiplied by: a FLOPs estimate is twice this times the positions.

    Input embeddings are looked up, so they count only if they are the output's matrix too.
    """
    distinct = {id(p): p.numel() for p in model.parameters()}
    inputs, outputs = _embedding(model, "get_input_embeddings"), _embedding(model, "get_output_embeddings")
    if inputs is not None and (outputs is None or outputs is not inputs):
        distinct.pop(id(inputs), None)
    return sum(distinct.values())


def _embedding(model: nn.Module, name: str) -> Any:
    try:
        embedding = getattr(model, name)()
    except (AttributeError, NotImplementedError):
        return None
    return getattr(embedding, "weight", None)
