"""What training keeps in memory: activations or what recomputes them; and what to say when it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from zaya_core.errors import DeviceError
from zaya_core.model.decoder import Zaya

OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory")
KNOBS = "lower --batch-size (and raise --gradient-accumulation-steps), lower --seq-len, or give --gradient-checkpointing full"
PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
)


def checkpoint_activations(model: Zaya, kind: str) -> None:
    """`full`: each decoder layer keeps only its input; `selective`: also the results of matrix products; `none`: everything."""
    if kind == "none":
        return
    again = {"use_reentrant": False}
    if kind == "selective":
        again["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, **again)


def _keep_products(context: object, operation: object, *arguments: object, **named: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def knobs_named() -> Iterator[None]:
    """Turn an allocation that failed into a DeviceError that names the options to turn."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in OUT_OF_MEMORY):
            raise
        raise DeviceError(f"out of memory: {str(error).splitlines()[0] if str(error) else 'malloc failed'}", hint=KNOBS) from error
