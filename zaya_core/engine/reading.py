"""Host decisions that hang on numbers on the device, for many requests with one wait.

A `Reading` is a generator that yields a tensor and is sent its numbers. All readings of a forward go on side by side, and what
they ask for in a round is read at once: a GPU is waited for once a round, not once a request.
"""

from collections.abc import Generator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")
Reading = Generator[Tensor, list[float], Value]


def read_together(readings: Sequence[Reading[Value]]) -> list[Value | Exception]:
    """What each returns, or the error that it ends with. Numbers are exact up to float64's 53 bits."""
    results: list[Value | Exception | None] = [None] * len(readings)
    answers: dict[int, list[float] | None] = dict.fromkeys(range(len(readings)))
    while answers:
        asked: dict[int, Tensor] = {}
        for place, answer in answers.items():
            try:
                # None starts a generator.
                asked[place] = readings[place].send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                results[place] = end.value
            except Exception as error:  # one request's, whatever it is
                results[place] = error
        numbers = iter(torch.cat([tensor.flatten().double() for tensor in asked.values()]).tolist() if asked else [])
        answers = {place: list(islice(numbers, tensor.numel())) for place, tensor in asked.items()}
    return results  # type: ignore[return-value]


def on_device(ids: Sequence[int], device: torch.device) -> Tensor:
    """Ids as int64, without waiting for what the device does."""
    return torch.tensor(ids, dtype=torch.int64).to(device, non_blocking=True)
