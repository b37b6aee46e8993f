"""A slow reader of the original ZAYA dialect: the half-layer forward of model.md section C1, token by token in float64.

Nothing here comes from zaya_core: it reads an original state dict as it lies.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.io.original_dialect import Original


def read_logits(net: Original, tensors: dict[str, Tensor], ids: list[int], *, skip: str = "identity") -> tuple[Tensor, int]:
    """Logits [T, V] of one sequence by the half-layer forward (model.md C1), and how many tokens chose the skip expert."""
    state = {name: tensor.double() for name, tensor in tensors.items()}
    output = state["model.embed_tokens.weight"][ids]
    stream, carried, num_skipped = None, None, 0
    for half in range(net.num_half_layers):
        part = {key.removeprefix(f"model.layers.{half}."): t for key, t in state.items() if key.startswith(f"model.layers.{half}.")}
        stream = _merged(part, "res_scale", output, stream)
        normed = _rms(stream, part["input_norm.weight"])
        if half % 2 == 0:
            output = _attention(net, part, normed, net.windows[half] if net.windows else 0)
        else:
            output, carried, skipped = _experts(net, part, normed, carried, skip)
            num_skipped += skipped
    stream = _merged(state, "model.res_scale", output, stream)
    head = state["model.embed_tokens.weight" if net.head == "tied" else "lm_head.weight"]
    logits = _rms(stream, state["model.final_norm.weight"]) @ head.T
    return logits + state.get("lm_head.bias", 0), num_skipped


def _merged(part: dict[str, Tensor], name: str, output: Tensor, stream: Tensor | None) -> Tensor:
    scaled = (output + part[f"{name}.hidden_states_bias"]) * part[f"{name}.hidden_states_scale"]
    return scaled if stream is None else scaled + (stream + part[f"{name}.residual_bias"]) * part[f"{name}.residual_scale"]


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def _attention(net: Original, part: dict[str, Tensor], x: Tensor, window: int) -> Tensor:
    def linear(name: str, value: Tensor) -> Tensor:
        return value @ part[f"{name}.weight"].T + part.get(f"{name}.bias", 0)

    length, d, ratio = x.shape[0], net.head_dim, net.q_heads // net.kv_heads
    q_raw, k_raw = linear("self_attn.qkv.linear_q", x), linear("self_attn.qkv.linear_k", x)
    # Zero raw latents before the first token, and no padding between the convolutions: the first one's bias leaks in.
    padded = torch.cat([torch.zeros(2, net.channels, dtype=x.dtype), torch.cat([q_raw, k_raw], -1)])
    first, second = (part[f"self_attn.qkv.conv_qk.{index}.weight"] for index in (0, 1))
    b0, b1 = (part[f"self_attn.qkv.conv_qk.{index}.bias"] for index in (0, 1))
    depthwise = [first[:, 0, 0] * padded[t] + first[:, 0, 1] * padded[t + 1] + b0 for t in range(length + 1)]
    v_now = linear("self_attn.qkv.val_proj1", x)
    v_before = linear("self_attn.qkv.val_proj2", torch.cat([torch.zeros_like(x[:1]), x[:-1]]))
    values = torch.cat([v_now, v_before], -1).view(length, net.kv_heads, d)
    temp = part["self_attn.qkv.temp"]
    temp = temp.clamp(1e-7, 2).exp() if net.clamp_temp else temp
    queries = torch.empty(length, net.q_heads, d, dtype=x.dtype)
    keys = torch.empty(length, net.kv_heads, d, dtype=x.dtype)
    theta = net.sliding_theta if window else net.theta
    for t in range(length):
        mixed = [
            second[head * d : (head + 1) * d, :, 0] @ depthwise[t][head * d : (head + 1) * d]
            + second[head * d : (head + 1) * d, :, 1] @ depthwise[t + 1][head * d : (head + 1) * d]
            + b1[head * d : (head + 1) * d]
            for head in range(net.q_heads + net.kv_heads)
        ]
        q, k = q_raw[t].view(net.q_heads, d), k_raw[t].view(net.kv_heads, d)
        means = [(q[head] + k[head // ratio]) / 2 for head in range(net.q_heads)]
        for head in range(net.q_heads):
            queries[t, head] = _turned(_unit(mixed[head] + means[head]), t, theta, net.partial)
        for group in range(net.kv_heads):
            mean = torch.stack(means[group * ratio : (group + 1) * ratio]).mean(0)
            keys[t, group] = _turned(_unit(mixed[net.q_heads + group] + mean) * temp[group], t, theta, net.partial)
    rows = []
    for t in range(length):
        seen = range(max(0, t - window) if window else 0, t + 1)  # `window` earlier tokens, and the query's own
        heads = []
        for head in range(net.q_heads):
            scores = torch.stack([queries[t, head] @ keys[s, head // ratio] for s in seen]) / d**0.5
            heads.append(scores.softmax(0) @ values[list(seen), head // ratio])
        rows.append(torch.cat(heads))
    return linear("self_attn.o_proj", torch.stack(rows))


def _unit(x: Tensor) -> Tensor:
    return x * x.numel() ** 0.5 / x.norm()


def _turned(x: Tensor, position: int, theta: float, partial: float) -> Tensor:
    size = int(x.numel() * partial)
    angle = position * theta ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    a, b = x[: size // 2], x[size // 2 : size]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), x[size:]])


def _experts(net: Original, part: dict[str, Tensor], x: Tensor, carried: Tensor | None, skip: str) -> tuple[Tensor, Tensor, int]:
    part = {key.removeprefix(f"{net.block}."): tensor for key, tensor in part.items()}
    router = x @ part["router.down_proj.weight"].T + part["router.down_proj.bias"]
    if carried is not None:
        router = router + carried * part["router.router_states_scale"]
    inner = _rms(router, part["router.rmsnorm_eda.weight"])
    for index in (0, 2):
        inner = F.gelu(inner @ part[f"router.router_mlp.{index}.weight"].T + part[f"router.router_mlp.{index}.bias"])
    probabilities = (inner @ part["router.router_mlp.4.weight"].T).softmax(-1)
    chosen = (probabilities + part["router.balancing_biases"]).argmax(-1).tolist()
    rows = []
    for t, expert in enumerate(chosen):
        if expert == net.num_experts:
            row = x[t] if skip == "identity" else torch.zeros_like(x[t])
        else:
            gate, up = (part[f"experts.local_experts.{expert}.linear_fc1.weight"] @ x[t]).chunk(2)
            row = part[f"experts.local_experts.{expert}.linear_fc2.weight"] @ (F.silu(gate) * up)
        rows.append(row * probabilities[t, expert])
    return torch.stack(rows), router, chosen.count(net.num_experts)
