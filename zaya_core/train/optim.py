"""The optimizer, the learning-rate schedule and the router's balancing (model.md D3)."""

import math

import torch
from torch import Tensor

from zaya_core.errors import ConfigError
from zaya_core.model.decoder import Zaya


def make_optimizer(model: Zaya, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (norms, scales, biases, temperatures) do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)


def learning_rate(step: int, *, peak: float, final_ratio: float, total: int, warmup: int, schedule: str) -> float:
    """The rate of 0-based `step`: linear warm-up, then `cosine`, `constant`, or `wsd` (flat, then linear over the last fifth)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if schedule == "constant":
        fraction = 1.0
    elif schedule == "cosine":
        fraction = (1 + math.cos(math.pi * done)) / 2
    elif schedule == "wsd":
        fraction = min(1.0, (1 - done) / 0.2)
    else:
        raise ConfigError(f"--lr-scheduler is {schedule!r}, expected cosine, wsd or constant")
    return peak * (final_ratio + (1 - final_ratio) * fraction)


class RouterBalance:
    """Adam on the balancing biases with the gradient "share of tokens less 1/E", clean and masked slots apart.

    The skip class keeps its bias and takes no part. `first` and `second` [L, E] are Adam's moments.
    """

    def __init__(self, model: Zaya, *, lr: float) -> None:
        self.biases = [layer.mlp.gate.balancing_biases for layer in model.model.layers]
        self.lr, self.num_experts = lr, model.config.num_experts
        shape = (len(self.biases), self.num_experts)
        self.first = torch.zeros(shape, device=self.biases[0].device)
        self.second = torch.zeros(shape, device=self.biases[0].device)

    @torch.no_grad()
    def update(self, load: Tensor, step: int) -> None:
        """One step from the tokens per class [2, L, E + 1] of the whole batch; `step` is 0-based."""
        counts = load[:, :, : self.num_experts].float()
        totals = counts.sum(-1, keepdim=True)
        present = (totals.sum((1, 2)) > 0).float()
        deviation = counts / totals.clamp_min(1) - 1 / self.num_experts
        gradient = (deviation * present[:, None, None]).sum(0) / present.sum()
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(gradient.square(), 0.05)
        first = self.first / (1 - 0.9 ** (step + 1))
        second = self.second / (1 - 0.95 ** (step + 1))
        change = self.lr * first / (second.sqrt() + 1e-8)
        # Only differences between experts matter; without their mean they cannot drift past the skip class's fixed bias.
        change -= change.mean(-1, keepdim=True)
        for bias, delta in zip(self.biases, change, strict=True):
            bias[: self.num_experts] -= delta


def load_balance(load: Tensor) -> float:
    """H(p) / ln E over the experts' shares, averaged over layers: 1 is perfectly even (model.md D3)."""
    share = load[:, :-1].float()
    share = share / share.sum(-1, keepdim=True).clamp_min(1)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(-1)
    return float((entropy / math.log(share.shape[-1])).mean())
