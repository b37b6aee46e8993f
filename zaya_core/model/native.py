"""The serving network in C of our own (ops/native): bfloat16 on a CPU that multiplies it, from a prompt's chunk to a single token.

Its weights are packed once and are the only copy. A slot's result does not depend on what rides along, to the bit.
"""

import torch
from torch import Tensor

from zaya_core.layout import Layout
from zaya_core.model.decoder import DecoderLayer, Zaya
from zaya_core.model.layers import ResidualScale
from zaya_core.model.pool import Pool, empty_step
from zaya_core.model.serving import ServingModel
from zaya_core.ops import native
from zaya_core.ops.rope import rotary_angles

LANES, PANEL, MOST_WIDTH = 16, 64, 256  # as in product.h and attention.h
ALONE = 2**18  # products of one layer below which threads wait for each other longer than they work


def why_not(model: Zaya) -> str | None:
    """Why this network cannot run in C here; None if it can."""
    config = model.config
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return f"it is {model.dtype} on {model.device.type}"
    if config.head_dim % LANES or config.head_dim > MOST_WIDTH:
        return f"a head has {config.head_dim} dims"
    if any(width % 2 for width in (config.hidden_size, config.moe_intermediate_size, config.router_hidden_size)):
        return "a width is odd"
    found = native.library()
    return found.why if isinstance(found, native.Missing) else None


class NativeModel(ServingModel):
    """A ServingModel by ops/native."""

    def __init__(self, model: Zaya) -> None:
        """Takes the weights over layer by layer."""
        self.config, self.dtype, self.device = model.config, model.dtype, model.device
        self.library = native.library()
        config, decoder = self.config, model.model
        self._kept: list[Tensor] = []
        self.empty = torch.stack([empty_step(config, layer.self_attn.qkv_proj.v_proj_delayed) for layer in decoder.layers])
        self.turns: dict[str, Tensor] = {}
        layers = (native.Layer * config.num_hidden_layers)()
        self.c = native.Model(
            num_layers=len(layers),
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            queries=config.num_attention_heads,
            groups=config.num_key_value_heads,
            width=config.head_dim,
            experts=config.num_experts,
            passes=config.skip_expert_output == "identity",
            eps=config.rms_norm_eps,
            layers=layers,
            input_bias=self._wide(decoder.input_hidden_states_bias),
            input_scale=self._wide(decoder.input_hidden_states_scale),
            norm=self._wide(decoder.norm.weight),
        )
        for index, layer in enumerate(decoder.layers):
            layers[index] = self._layer(layer, config.layer_types[index])
            layer.to("meta")
        self.c.is_packed = model.lm_head.weight.data_ptr() == decoder.embed_tokens.weight.data_ptr()
        self.head = self._product(model.lm_head.weight, model.lm_head.bias)
        self.products = 2 * config.hidden_size * config.conv_channels + 3 * config.hidden_size * config.moe_intermediate_size
        self.c.embedding = self.head.weight if self.c.is_packed else self._pointer(decoder.embed_tokens.weight)
        model.to("meta")

    @torch.inference_mode()
    def __call__(self, token_ids: Tensor, layout: Layout, pool: Pool, routing: list[Tensor] | None = None) -> Tensor:
        """As ServingModel."""
        slots = token_ids.shape[1]
        self._make_turns(max(part.row.length + part.step.position.shape[1] for part in pool.parts))
        choices = torch.empty(self.config.num_hidden_layers, 1, slots, dtype=torch.int64)
        hidden = torch.empty(1, slots, self.config.hidden_size, dtype=self.dtype)
        integers = [part.contiguous() for part in (token_ids, layout.position, layout.start, layout.block, layout.prev)]
        parts = (native.Part * len(pool.parts))(
            *((p.slots.start, p.slots.stop - p.slots.start, p.step.num_clean, p.row.begin, p.row.length) for p in pool.parts)
        )
        joined, stored = pool.storage
        forward = native.Forward(
            slots, pool.num_past, len(parts), self._threads(slots * self.products), parts, *(part.data_ptr() for part in integers),
            joined.data_ptr(), joined.stride(0), stored.data_ptr(), pool.num_slots, choices.data_ptr(), hidden.data_ptr(),
        )  # fmt: skip
        if self.library.zaya_forward(self.c, forward):
            raise MemoryError(f"no memory for a forward of {slots} slots")
        if routing is not None:
            routing.extend(choices)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """As ServingModel."""
        rows = hidden.to(self.dtype).contiguous()
        out = torch.empty(*hidden.shape[:-1], self.config.vocab_size)
        num_rows = rows.numel() // rows.shape[-1]
        self.library.zaya_product(
            self.head, rows.data_ptr(), num_rows, out.data_ptr(), self._threads(num_rows * self.head.inputs * self.head.outputs)
        )
        return out

    def _threads(self, products: int) -> int:
        return 1 if products < ALONE else torch.get_num_threads()

    def _layer(self, layer: DecoderLayer, kind: str) -> native.Layer:
        config, attention, router = self.config, layer.self_attn, layer.mlp.gate
        projection, mlp, experts = attention.qkv_proj, router.router_mlp, layer.mlp.experts
        parts = (projection.q_proj, projection.k_proj, projection.v_proj_delayed, projection.v_proj_current)
        bias = torch.cat([part.bias for part in parts]) if config.attention_bias else None
        depthwise, grouped = projection.conv_qk_depthwise, projection.conv_qk_grouped
        # [C, N, tap] -> for each head [N, 2 N]: the older tap's inputs, then the newer one's
        mixes = grouped.weight.unflatten(0, (-1, config.head_dim)).transpose(2, 3).flatten(2)
        temperature = torch.cat([torch.ones(config.num_attention_heads), attention.qk_norm.temp.float()])
        gate, up = experts.gate_up_proj.chunk(2, 1)
        return native.Layer(
            input_norm=self._wide(layer.input_layernorm.weight),
            post_norm=self._wide(layer.post_attention_layernorm.weight),
            router_norm=self._wide(mlp.norm.weight),
            attention_merge=self._merge(layer.post_attention_residual_scale),
            mlp_merge=self._merge(layer.post_mlp_residual_scale),
            into=self._product(torch.cat([part.weight for part in parts]), bias),
            mix=self._product(mixes, grouped.bias),
            out=self._product(attention.o_proj.weight, attention.o_proj.bias),
            depthwise=self._wide(torch.cat([depthwise.weight[:, 0].T, depthwise.bias[None]])),
            length=self._wide(temperature * config.head_dim**0.5),
            down=self._product(router.down_proj.weight, router.down_proj.bias),
            first=self._product(mlp.fc1.weight, mlp.fc1.bias),
            second=self._product(mlp.fc2.weight, mlp.fc2.bias),
            last=self._product(mlp.out_proj.weight),
            carry=self._wide(router.router_states_scale) if router.layer_index > 0 else None,
            balance=self._wide(router.balancing_biases),
            gate=self._product(gate),
            up=self._product(up),
            shrink=self._product(experts.down_proj),
            rotated=int(config.head_dim * config.rope_parameters[kind].partial_rotary_factor) // 2 * 2,
            window=config.window(kind) or 0,
        )

    def _merge(self, merge: ResidualScale) -> native.Merge:
        """With its two biases made one."""
        output, stream = merge.hidden_states_scale.float(), merge.residual_scale.float()
        bias = merge.hidden_states_bias.float() * output + merge.residual_bias.float() * stream
        return native.Merge(self._wide(output), self._wide(stream), self._wide(bias))

    def _product(self, weight: Tensor, bias: Tensor | None = None) -> native.Product:
        """Of a weight [out, in], or of several of one shape [.., out, in], one after another."""
        outputs, inputs = weight.shape[-2:]
        return native.Product(self._pointer(packed_weight(weight)), None if bias is None else self._wide(bias), inputs, outputs)

    def _wide(self, values: Tensor) -> int:
        return self._pointer(values.detach().float())

    def _pointer(self, values: Tensor) -> int:
        """Of a tensor that is kept as long as this model."""
        self._kept.append(values.detach().contiguous())
        return self._kept[-1].data_ptr()

    def _make_turns(self, positions: int) -> None:
        """Tables of cosines and sines [positions, 2, R / 2] for every kind of layer, at least that long."""
        if self.turns and len(next(iter(self.turns.values()))) >= positions:
            return
        position = torch.arange(max(256, 2 * positions))[None]
        for kind in set(self.config.layer_types):
            angles = rotary_angles(position, self.config.head_dim, self.config.rope_parameters[kind], self.dtype)
            self.turns[kind] = torch.stack([part[0, :, 0].float() for part in angles], 1)
        for layer, kind in zip(range(self.c.num_layers), self.config.layer_types, strict=True):
            self.c.layers[layer].turns = self.turns[kind].data_ptr()


def packed_weight(weight: Tensor) -> Tensor:
    """Weights [.., O, I] as product.h says, one after another, flat; without a copy besides."""
    outputs, inputs = weight.shape[-2:]
    whole, rest = outputs // PANEL * PANEL, outputs % PANEL
    width = rest + -rest % LANES  # of the last panel
    packed = weight.new_zeros(weight[..., 0, 0].numel(), (whole + width) * inputs)
    for one, to in zip(weight.detach().reshape(-1, outputs, inputs), packed, strict=True):
        panels = to[: whole * inputs].view(-1, inputs // 2, PANEL, 2)
        panels.copy_(one[:whole].view(-1, PANEL, inputs // 2, 2).transpose(1, 2))
        last = to[whole * inputs :].view(inputs // 2, width, 2)
        last[:, :rest] = one[whole:].view(rest, inputs // 2, 2).transpose(0, 1)
    return packed.flatten()
