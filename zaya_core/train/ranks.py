"""Which process of a `torchrun` this is: the data, expert and context axes, and what all ranks agree on.

Ranks are laid out as [data, expert, context]. The ranks of a context group share rows and hold a span of slots each; every
other rank has rows of its own. One process alone is `Ranks()`, and nothing is ever sent.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from zaya_core.errors import ConfigError, RunError

AXES = ("data", "expert", "context")
TIMEOUT = timedelta(minutes=30)  # a rank may have to tokenise or to read for all others
PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
Sums = TypeVar("Sums")


@dataclass(frozen=True)
class Ranks:
    """This process's place; sizes of the axes multiply to the number of ranks."""

    rank: int = 0
    data: int = 1
    expert: int = 1
    context: int = 1
    mesh: DeviceMesh | None = None

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.data * self.expert * self.context

    @property
    def is_first(self) -> bool:
        """Does this rank write and speak for all?"""
        return self.rank == 0

    @property
    def row_groups(self) -> int:
        """Groups of ranks that have rows of their own."""
        return self.data * self.expert

    @property
    def row_group(self) -> int:
        """This rank's."""
        return self.rank // self.context

    @property
    def context_rank(self) -> int:
        """Place in its context group."""
        return self.rank % self.context

    @property
    def expert_rank(self) -> int:
        """Place in its expert group."""
        return self.rank // self.context % self.expert

    def group(self, axis: str) -> dist.ProcessGroup:
        """The ranks that differ from this one along `axis` only."""
        assert self.mesh is not None, axis
        return self.mesh.get_group(axis)

    def span(self, num_slots: int) -> slice:
        """The clean slots of a row that this rank holds."""
        length = num_slots // self.context
        return slice(self.context_rank * length, (self.context_rank + 1) * length)

    def total(self, value: Tensor) -> Tensor:
        """Its sum over all ranks."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def total_of_rows(self, values: list[float], device: torch.device) -> list[float]:
        """Sums over all rows of numbers that every rank of a context group has alike."""
        share = torch.tensor(values, dtype=torch.float64, device=device) * (self.context_rank == 0)
        return self.total(share).tolist()

    def added(self, sums: Sums) -> Sums:
        """A dataclass of tensors, each summed over all ranks, in one exchange."""
        if self.world == 1:
            return sums
        parts = [getattr(sums, f.name) for f in fields(sums)]
        flat = self.total(torch.cat([part.double().flatten() for part in parts]))
        cut = flat.split([part.numel() for part in parts])
        return type(sums)(*(new.view(part.shape).to(part.dtype) for new, part in zip(cut, parts, strict=True)))

    def any(self, flag: bool, device: torch.device) -> bool:
        """Does any rank say so?"""
        return bool(self.total(torch.tensor(float(flag), device=device)))

    def first_says(self, value: Any) -> Any:
        """The first rank's value; others may pass anything."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """For all ranks to come here."""
        if self.world > 1:
            dist.barrier()

    @contextmanager
    def first_of_machine(self) -> Iterator[None]:
        """A block that one rank of each machine runs before the others: what it puts into a cache, they find."""
        is_early = os.environ.get("LOCAL_RANK", "0") == "0"
        if not is_early:
            self.wait()
        yield
        if is_early:
            self.wait()


@contextmanager
def joined_ranks(device: torch.device, *, expert: int, context: int) -> Iterator[Ranks]:
    """Join the other processes of a torchrun; sizes that do not fit its number of ranks are a ConfigError."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % (expert * context):
        raise ConfigError(
            f"--expert-parallel {expert} x --context-parallel {context} does not divide {world} ranks",
            hint="start that many with torchrun --nproc-per-node",
        )
    if world == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        sizes = (world // (expert * context), expert, context)
        yield Ranks(dist.get_rank(), *sizes, init_device_mesh(device.type, sizes, mesh_dim_names=AXES))
    except RuntimeError as error:
        if not any(words in str(error) for words in PEER_GONE):
            raise
        raise RunError("another rank ended in the middle of an exchange", hint="its own error says why") from error
    finally:
        dist.destroy_process_group()
