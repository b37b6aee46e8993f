"""The optimizers, the learning-rate schedule and the router's balancing (model.md D3)."""

import math

import torch
from torch import Tensor

from zaya_core.errors import ConfigError
from zaya_core.model.decoder import Zaya
from zaya_core.train.parallel import cut, joined, local_part
from zaya_core.train.ranks import Ranks


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest orthogonal matrix, scaled to AdamW's update size (Jordan 2024; Liu 2025: 0.2 sqrt(max side)).

    `torch.optim.Muon` takes single matrices only; ours takes stacks [E, rows, columns] too, each expert's matrix by itself.
    Of sharded parameters every rank forms the whole direction and keeps its part: `owners` maps a shard to its parameter.
    Its products are in `dtype`: bfloat16 does for a direction (Jordan 2024), and halves the time of a small model's step.
    """

    def __init__(self, owners: dict[Tensor, Tensor], *, lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        super().__init__(list(owners), {"lr": lr, "weight_decay": weight_decay})
        self.owners, self.dtype = owners, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                momentum.mul_(0.95).add_(parameter.grad)
                owner = self.owners[parameter]
                ahead = joined(parameter.grad.add(momentum, alpha=0.95), owner)  # Nesterov's look ahead
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                direction = cut(orthogonal(ahead.to(self.dtype)), owner)
                parameter.add_(direction, alpha=-group["lr"] * 0.2 * max(owner.shape[-2:]) ** 0.5)


def orthogonal(matrix: Tensor, num_steps: int = 5) -> Tensor:
    """[..., rows, columns] -> about U V^T of its singular value decomposition, by Newton-Schulz (coefficients of Jordan 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(num_steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Optimizers:
    """Several optimizers over disjoint parameters, stepped as one; of sharded ones they see this rank's shards."""

    def __init__(self, parts: list[torch.optim.Optimizer], shards: dict[Tensor, Tensor]) -> None:
        """`shards` maps every trained parameter to the tensor that is optimised: its shard here, or itself."""
        self.parts, self.shards = parts, shards

    def set_learning_rate(self, lr: float) -> None:
        """For the next step, of all parameters."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr

    def take_gradients(self) -> list[Tensor]:
        """Those of the shards, as plain tensors, from the parameters."""
        for parameter, shard in self.shards.items():
            if shard is not parameter:
                shard.grad = None if parameter.grad is None else parameter.grad.to_local()
        return [shard.grad for shard in self.shards.values() if shard.grad is not None]

    def step(self) -> None:
        """Update, then drop the gradients."""
        for part in self.parts:
            part.step()
        for parameter, shard in self.shards.items():
            parameter.grad = shard.grad = None

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The tensors kept for one parameter, to be filled when a state is thawed."""
        shard = self.shards[parameter]
        owner = next(part for part in self.parts if any(shard is p for g in part.param_groups for p in g["params"]))
        return owner.state[shard]


def make_optimizer(model: Zaya, *, kind: str, lr: float, weight_decay: float, dtype: torch.dtype = torch.float32) -> Optimizers:
    """`adamw`, or `muon` for the matrices and stacks of matrices and AdamW for the rest: embedding, head, convolutions, vectors.

    `dtype` is that of Muon's products. Matrices decay, vectors (norms, scales, biases, temperatures) do not. Only parameters that
    require a gradient are taken.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    shards = {p: local_part(p) for p in trained.values()}
    by_muon = {shards[p]: p for name, p in trained.items() if kind == "muon" and _is_for_muon(name, p)}
    rest = [shard for shard in shards.values() if shard not in by_muon]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
    return Optimizers([adamw, *([Muon(by_muon, lr=lr, weight_decay=weight_decay, dtype=dtype)] if by_muon else [])], shards)


def _is_for_muon(name: str, parameter: Tensor) -> bool:
    return parameter.dim() >= 2 and not any(part in name for part in ("embed_tokens", "lm_head", "conv_qk"))


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


@torch.no_grad()
def clip_gradients(gradients: list[Tensor], max_norm: float, ranks: Ranks) -> Tensor:
    """Scale the shards' gradients so that the norm over all ranks is at most `max_norm`; returns the norm before."""
    norms = torch.stack(torch._foreach_norm([gradient for gradient in gradients if gradient.numel()]))
    norm = ranks.total(norms.square().sum()).sqrt()
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp_max(1.0))
    return norm


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
