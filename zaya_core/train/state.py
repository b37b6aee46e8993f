"""Everything a resume needs: weights, optimizer, router balance, step and tokens seen.

Invariant: freeze, then thaw, is bit-exact. Data order and noise are functions of the seed and the step, so the step is the
data cursor. On disk: a checkpoint directory in master precision plus training_state/ (safetensors and JSON, nothing that runs).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zaya_core.errors import CheckpointError
from zaya_core.io.checkpoint import Checkpoint, check_tensors, stored_tensors
from zaya_core.io.files import read_json, write_json
from zaya_core.io.weights import read_tensors, save_tensors
from zaya_core.model.decoder import Zaya
from zaya_core.train.lora import is_adapted
from zaya_core.train.optim import Optimizers, RouterBalance

STATE = "training_state"
VALUE = "value"
BALANCE = ("balance.first", "balance.second")


@dataclass
class TrainState:
    """A run at a step: `step` optimizer steps are done, over `tokens_seen` clean tokens."""

    model: Zaya
    optimizer: Optimizers
    balance: RouterBalance
    step: int = 0
    tokens_seen: int = 0

    def write(self, directory: Path) -> None:
        """Add training_state/ to a checkpoint of the model in master precision."""
        (directory / STATE).mkdir()
        save_tensors(self._optimizer_tensors(), directory / STATE / "optimizer.safetensors")
        write_json(directory / STATE / "state.json", {"step": self.step, "tokens_seen": self.tokens_seen})

    def read(self, directory: Path) -> None:
        """Put a written state in place of this one; names or shapes that differ are a CheckpointError."""
        if not is_adapted(self.model):
            self._copy_weights(Checkpoint.open(directory))
        try:
            stored = load_file(directory / STATE / "optimizer.safetensors", device=str(self.model.device))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{directory / STATE} is damaged: {error}", hint="--resume an older save") from error
        values = read_json(directory / STATE / "state.json")
        self.step, self.tokens_seen = values["step"], values["tokens_seen"]
        try:
            self.balance.first, self.balance.second = (stored.pop(name) for name in BALANCE)
        except KeyError as error:
            raise CheckpointError(f"{directory / STATE} lacks {error.args[0]}") from error
        self._take(stored, directory / STATE)

    def _take(self, stored: dict[str, Tensor], place: Path) -> None:
        """Give every trained parameter its optimizer's tensors, named PARAMETER.MOMENT, and under LoRA its own value."""
        by_parameter: dict[str, dict[str, Tensor]] = {}
        for name, tensor in stored.items():
            owner, _, moment = name.rpartition(".")
            by_parameter.setdefault(owner, {})[moment] = tensor
        trained = self._trained()
        odd = sorted(set(by_parameter) ^ set(trained))
        if odd:
            raise CheckpointError(f"{place} and the run's trained parameters differ in {', '.join(odd[:5])}")
        for name, parameter in trained.items():
            moments = by_parameter[name]
            if VALUE in moments:
                parameter.data.copy_(moments.pop(VALUE))
            self.optimizer.state_of(parameter).update(moments)

    def _trained(self) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def _copy_weights(self, checkpoint: Checkpoint) -> None:
        """In place, because the optimizer and the balance hold these very tensors."""
        tensors = stored_tensors(self.model)
        check_tensors(tensors, checkpoint.tensors, checkpoint.path)
        for name, stored in read_tensors(checkpoint.tensors):
            tensors[name].copy_(stored)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """What is not in the weights: the balance, the moments, and adapters, whose save holds them merged."""
        tensors = dict(zip(BALANCE, (self.balance.first, self.balance.second), strict=True))
        for name, parameter in self._trained().items():
            if is_adapted(self.model):
                tensors[f"{name}.{VALUE}"] = parameter.detach()
            tensors |= {f"{name}.{moment}": tensor for moment, tensor in self.optimizer.state_of(parameter).items()}
        return tensors
