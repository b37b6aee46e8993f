"""Low-rank adapters by `peft` on the attention projections, and the merged weights that are written.

A save of an adapted run holds the merged weights, so it opens as a checkpoint; the adapters themselves lie in training_state,
and a resume puts them on the parent's weights again.
"""

import torch
from torch import Tensor

from zaya_core.errors import ConfigError
from zaya_core.io.checkpoint import stored_tensors
from zaya_core.model.decoder import Zaya

ATTENTION = ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed", "o_proj")
BASE, ADAPTER = ".base_layer", ".lora_"


def add_adapters(model: Zaya, *, rank: int) -> None:
    """Freeze the model and put adapters of `rank` on its attention projections, scaled by 2."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError("--lora-rank needs peft", hint="pip install 'zaya[lora]'") from error
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(ATTENTION)), model)


def is_adapted(model: Zaya) -> bool:
    """Does the model carry adapters?"""
    return any(ADAPTER in name for name, _ in model.named_parameters())


@torch.no_grad()
def merged_tensors(model: Zaya) -> dict[str, Tensor]:
    """The stored tensors with each adapter added to its matrix; just the stored tensors where there are none."""
    tensors = {name.replace(BASE, ""): tensor for name, tensor in stored_tensors(model).items() if ADAPTER not in name}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):  # peft's own interface of an adapted layer
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + module.get_delta_weight("default")
    return tensors
