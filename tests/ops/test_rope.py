"""Rotary angles against transformers' own, plain and stretched by YaRN."""

import pytest
import torch
from transformers import ZayaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.models import TINY
from zaya_core.config import ModelConfig, Rope
from zaya_core.ops.rope import rotary_angles


@pytest.mark.parametrize(
    ("theta", "factor", "original", "head_dim"), [(1e4, 4.0, 512, 64), (1e6, 8.0, 4096, 128), (5e6, 2.5, 32768, 128)]
)
def test_yarn_is_transformers_own(theta, factor, original, head_dim):
    rope = Rope(theta, 0.5, "yarn", factor, original)
    values = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "partial_rotary_factor": 0.5,
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    config = ZayaConfig(
        head_dim=head_dim, max_position_embeddings=int(original * factor), layer_types=["hybrid"], num_hidden_layers=1
    )
    config.rope_parameters = {"hybrid": values}
    frequency, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"), layer_type="hybrid")
    position = torch.tensor([[0, 1, original - 1, int(original * factor) - 1]])
    cos, sin = rotary_angles(position, head_dim, rope, torch.float32)
    angle = position[..., None, None].float() * frequency
    assert torch.allclose(cos, angle.cos() * scale, atol=2e-3)
    assert torch.allclose(sin, angle.sin() * scale, atol=2e-3)
    small = torch.tensor([[1]])
    cos, sin = rotary_angles(small, head_dim, rope, torch.float32)
    assert torch.allclose(sin[0, 0, 0], frequency.sin() * scale, rtol=1e-5)


def test_a_yarn_config_survives_the_disk():
    rope = Rope(1e4, 0.5, "yarn", 4.0, 512)
    config = TINY.with_changes(rope_parameters={**TINY.rope_parameters, "hybrid": rope})
    assert ModelConfig.from_json(config.to_json()).rope_parameters["hybrid"] == rope
