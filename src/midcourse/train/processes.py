"""Several processes of one training run: what the first does for all, and what they have to agree on.

torchrun and accelerate launch start them and name them in the environment; otherwise there is one, and nothing here
costs anything.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from midcourse.errors import MidcourseError

T = TypeVar("T")


def join(device: torch.device) -> None:
    """Meet the run's other processes, on GPUs with one each; do nothing if there are none or it has been done."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        PartialState(cpu=device.type == "cpu")


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Do as `join`, and part again when the block ends without an error."""
    join(device)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def check_alone(what: str) -> None:
    """Raise MidcourseError if torchrun has started several processes of what trains in one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MidcourseError(f"{what} trains in one process; start it without torchrun")


def count() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Return whether this process is the one that writes and prints."""
    return rank() == 0


def part(items: Sequence[T]) -> Sequence[T]:
    """Return this process's share of some items: consecutive ones, as many as the others' or one more or less."""
    n = len(items)
    return items[n * rank() // count() : n * (rank() + 1) // count()]


def mean(value: torch.Tensor) -> float:
    """Return the mean of a number over the processes."""
    if count() == 1:
        return value.item()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total.item() / count()


def highest(number: int) -> int:
    """Return the largest of the processes' numbers, in all of them."""
    return number if count() == 1 else max(gathered([number]))


def gathered(items: Sequence[T]) -> list[T]:
    """Return the items of all processes, in the order of their numbers."""
    if count() == 1:
        return list(items)
    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, list(items))
    return [item for one in parts for item in one]


def once(call: Callable[[], T]) -> T:
    """Return in all processes what `call` returns in the first; an error there is told once and ends all."""
    if count() == 1:
        return call()
    outcome: list[Any] = [_outcome(call) if first() else None]
    dist.broadcast_object_list(outcome, src=0)
    return _settled(outcome)


def everywhere(call: Callable[[], T]) -> T:
    """Return what `call` returns in each process; an error in any of them is told once and ends all."""
    if count() == 1:
        return call()
    result, mine = _outcome(call)
    return _settled([(result, error) for error in gathered([mine])])


def _outcome(call: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return call(), None
    except (MidcourseError, OSError) as error:
        return None, error


def _settled(outcomes: Sequence[tuple[Any, Exception | None]]) -> Any:
    for _, error in outcomes:
        if error is not None:
            if first():
                raise error
            sys.exit(2)
    return outcomes[0][0]
