"""Which form of the network decodes: the fastest that its weights, their dtype and the machine allow."""

import torch

from zaya_core.model.decoder import Zaya
from zaya_core.model.native import NativeModel, why_not
from zaya_core.model.serving import ServingModel
from zaya_core.model.static import StaticModel


def for_serving(model: Zaya, *, packs: bool = True) -> ServingModel:
    """A network laid out for decoding where its weights are: `model` is empty afterwards. Without `packs` they stay as they lie."""
    if model.device.type == "cuda":
        return StaticModel(model, packs=packs)
    why = why_not(model) if packs else "its packed weights need more memory than is free"
    if why is None:
        return NativeModel(model)
    serving = ServingModel(model, packs=packs)
    if serving.dtype == torch.bfloat16:
        serving.remark = f"bfloat16 by torch, which is slower than the native kernels: {why}"
    return serving
