"""The router with its state carried through depth, and the top-1 expert layer with a skip expert (model.md A6-A8)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zaya_core.config import ModelConfig
from zaya_core.model.layers import RmsNorm
from zaya_core.ops.experts import apply_experts
from zaya_core.ops.norm import widened


class RouterMlp(nn.Module):
    """Router state [B, T, R] -> logits over E experts and the skip expert."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.router_hidden_size
        self.norm = RmsNorm(width, config.rms_norm_eps)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, config.num_experts + 1, bias=False)

    def forward(self, state: Tensor) -> Tensor:
        """[B, T, R] -> [B, T, E + 1]."""
        return self.out_proj(F.gelu(self.fc2(F.gelu(self.fc1(self.norm(state))))))


class Router(nn.Module):
    """Chooses by probability plus balancing bias, weighs by the probability alone, not renormalised."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(config.hidden_size, config.router_hidden_size)
        if layer_index > 0:
            self.router_states_scale = nn.Parameter(torch.ones(config.router_hidden_size))
        self.layer_index = layer_index
        self.router_mlp = RouterMlp(config)
        biases = torch.zeros(config.num_experts + 1, dtype=torch.float32)
        biases[-1] = -1.0
        self.register_buffer("balancing_biases", biases)

    def forward(self, x: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> choice [B, T] in 0..E, its probability [B, T], and the state for the next layer [B, T, R]."""
        state = self.down_proj(x)
        if self.layer_index > 0:
            state = state + carried * self.router_states_scale
        logits = self.router_mlp(state)
        # At least float32: in bf16 about 1 % of tokens tie exactly (model.md A6).
        probabilities = logits.to(widened(logits.dtype)).softmax(-1)
        choice = (probabilities.detach() + self.balancing_biases).argmax(-1)
        return choice, probabilities.gather(-1, choice[..., None]).squeeze(-1), state


class MoeLayer(nn.Module):
    """One expert per token; class E skips: zero, or the input passed through (`skip_expert_output`, model.md A7)."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        self.gate = Router(config, layer_index)
        self.experts = Experts(config)
        self.skips_through = config.skip_expert_output == "identity"

    def forward(self, x: Tensor, carried: Tensor | None, routing: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> output [B, T, D] and the router state; appends the choice [B, T] to `routing` if given."""
        choice, probability, state = self.gate(x, carried)
        if routing is not None:
            routing.append(choice)
        y = self.experts(x.flatten(0, 1), choice.flatten()).view_as(x)
        if self.skips_through:
            y = torch.where((choice == self.experts.num_experts)[..., None], x, y)
        return y * probability[..., None].to(y.dtype), state


class Experts(nn.Module):
    """All experts' weights, stacked: gate rows then up rows."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, hidden, width))
        self.apply_experts = apply_experts  # a run with an expert axis puts an exchange between ranks here

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        """[M, D], [M] -> [M, D]."""
        return self.apply_experts(x, choice, self.gate_up_proj, self.down_proj)
