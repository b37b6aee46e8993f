"""Everything a resume needs: weights, optimizer, router balance, step and tokens seen.

Invariant: freeze, then thaw, is bit-exact. Data order and noise are functions of the seed and the step, so the step is the
data cursor. On disk, however many ranks wrote it: a checkpoint directory in master precision plus training_state/ (safetensors
and JSON, nothing that runs).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zaya_core.errors import CheckpointError
from zaya_core.io.checkpoint import Checkpoint, check_tensors, stored_tensors
from zaya_core.io.files import read_json, write_json
from zaya_core.io.weights import read_tensors, save_tensors
from zaya_core.model.decoder import Zaya
from zaya_core.model.load import meta_model
from zaya_core.train.lora import is_adapted, merged_tensors
from zaya_core.train.optim import Optimizers, RouterBalance
from zaya_core.train.parallel import cut_stored, joined_to_store, local_part
from zaya_core.train.ranks import Ranks

STATE, OPTIMIZER = "training_state", "optimizer.safetensors"
VALUE = "value"
BALANCE = ("balance.first", "balance.second")


@dataclass(frozen=True)
class Snapshot:
    """A state copied to the CPU's memory: stored weights, optimizer, step and tokens seen."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    values: dict[str, int]

    def write(self, directory: Path) -> None:
        """Add training_state/ to a checkpoint of the weights in master precision."""
        (directory / STATE).mkdir()
        save_tensors(self.optimizer, directory / STATE / OPTIMIZER)
        write_json(directory / STATE / "state.json", self.values)


@dataclass
class TrainState:
    """A run at a step: `step` optimizer steps are done, over `tokens_seen` clean tokens."""

    model: Zaya
    optimizer: Optimizers
    balance: RouterBalance
    ranks: Ranks = field(default_factory=Ranks)
    step: int = 0
    tokens_seen: int = 0

    def __post_init__(self) -> None:
        # Now, because FSDP2 puts other tensors in the parameters' place while a forward runs.
        self._trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The stored tensors, whole: every rank must take them all, for each gives its shards."""
        if self.ranks.world == 1:
            yield from merged_tensors(self.model).items()
            return
        for name, tensor in stored_tensors(self.model).items():
            yield name, joined_to_store(name, local_part(tensor), tensor, self.ranks)

    def snapshot(self) -> "Snapshot":
        """The state apart from the run that goes on; every rank must take one, and only the first rank's holds tensors."""
        values = {"step": self.step, "tokens_seen": self.tokens_seen, "num_ranks": self.ranks.world}
        return Snapshot(self._copied(self.weights()), self._copied(self._optimizer_tensors()), values)

    def _copied(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        keeps = self.ranks.is_first
        return {name: tensor.detach().to("cpu", copy=True) if keeps else tensor.new_empty(0) for name, tensor in tensors}

    def read(self, directory: Path) -> None:
        """Put a written state in place of this one, each rank its part; names or shapes that differ are a CheckpointError."""
        if not is_adapted(self.model):
            copy_weights(self.model, Checkpoint.open(directory), self.ranks)
        values = read_json(directory / STATE / "state.json")
        self.step, self.tokens_seen = values["step"], values["tokens_seen"]
        try:
            with safe_open(directory / STATE / OPTIMIZER, "pt") as file:
                names = set(file.keys())
                self.balance.first, self.balance.second = (file.get_tensor(name).to(self.model.device) for name in BALANCE)
                self._take(names - set(BALANCE), file.get_tensor, directory / STATE)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{directory / STATE} is damaged: {error}", hint="--resume an older save") from error

    @torch.no_grad()
    def _take(self, names: set[str], read: Callable[[str], Tensor], place: Path) -> None:
        """Give every trained parameter its optimizer's tensors, named PARAMETER.MOMENT, and under LoRA its own value."""
        odd = sorted({name.rpartition(".")[0] for name in names} ^ set(self._trained))
        if odd:
            raise CheckpointError(f"{place} and the run's trained parameters differ in {', '.join(odd[:5])}")
        for full_name in sorted(names):
            name, _, moment = full_name.rpartition(".")
            parameter, stored = self._trained[name], read(full_name)
            part = cut_stored(name, stored, parameter, self.ranks) if stored.dim() else stored
            if moment == VALUE:
                parameter.data.copy_(part)
            else:
                self.optimizer.state_of(parameter)[moment] = part.to(self.model.device, copy=True)

    def _optimizer_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What is not in the weights: the balance, the moments, and adapters, whose save holds them merged."""
        yield from zip(BALANCE, (self.balance.first, self.balance.second), strict=True)
        for name, parameter in self._trained.items():
            if is_adapted(self.model):
                yield f"{name}.{VALUE}", parameter.detach()
            for moment, tensor in sorted(self.optimizer.state_of(parameter).items()):
                whole = joined_to_store(name, tensor, parameter, self.ranks) if tensor.dim() else tensor
                yield f"{name}.{moment}", whole


@torch.no_grad()
def copy_weights(model: Zaya, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Each rank's part of the stored weights into the tensors that the model, an optimizer and a balance hold."""
    check_tensors(stored_tensors(meta_model(model.config)), checkpoint.tensors, checkpoint.path)
    tensors = stored_tensors(model)
    for name, stored in read_tensors(checkpoint.tensors):
        local_part(tensors[name]).copy_(cut_stored(name, stored, tensors[name], ranks))
