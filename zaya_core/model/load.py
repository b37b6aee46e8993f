"""A checkpoint into a model."""

import torch

from zaya_core.io.checkpoint import Checkpoint, load_weights
from zaya_core.model.decoder import Zaya


def load_model(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> Zaya:
    """The checkpoint's network in evaluation form, without a second copy of the weights in memory."""
    with torch.device("meta"):
        model = Zaya(checkpoint.config)
    load_weights(model, checkpoint, dtype=dtype, device=device)
    return model.eval()
