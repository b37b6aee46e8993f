"""FlexAttention is checked against the oracle before a run trusts it: some builds are wrong or slow (pytorch#138300)."""

import torch

from zaya_core.layout import keys_of, training_row, visible
from zaya_core.model.decoder import Zaya
from zaya_core.ops.attention import attend_slow, row_view, sights


def choose_attention(model: Zaya) -> str:
    """Keep the device's fused attention of whole rows if it is right, else put masked attention in its place; say which."""
    if model.device.type == "cpu":
        return "attention: tiles"
    problem = _problem(model.device)
    if problem is None:
        return "attention: FlexAttention, which agrees with the oracle here"
    model.model.row_view = sights
    return f"attention: masked, because FlexAttention failed its check here ({problem})"


def _problem(device: torch.device) -> str | None:
    """Compare outputs and gradients on a small training row; None if they agree."""
    position = torch.arange(256, device=device)[None]
    layout, _ = training_row(torch.zeros_like(position), position, torch.full_like(position, 3), 16)
    keys = keys_of(layout)
    slots = layout.position.shape[1]
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((1, slots, 4, 32), (1, 2, slots, 32), (1, 2, slots, 32))
    inputs = [torch.randn(shape, generator=generator, device=device).requires_grad_(True) for shape in shapes]
    try:
        fast = row_view(layout, keys, None).attend(*inputs)
        slow = attend_slow(*inputs, visible(layout, keys))
        pairs = [(fast, slow)]
        direction = torch.randn(slow.shape, generator=generator, device=device)
        pairs += zip(torch.autograd.grad(fast, inputs, direction), torch.autograd.grad(slow, inputs, direction), strict=True)
    except Exception as error:  # whatever a compiler says: the run can go on without it
        return str(error).splitlines()[0]
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return None if worst < 1e-2 else f"relative difference {worst:.2g}"
