"""A long prompt takes the memory of its K and V and the workspace of one chunk: no term grows faster with the context."""

import torch

from recipes.bench.context import status, taken
from zaya_core.assets import BUNDLED
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.model.load import load_serving

LENGTH = 8192
WORKSPACE = 60e6  # of a chunk of 256 tokens; a mask of 8192 x 8192 alone would have more than 64e6


def test_a_long_prompt_takes_its_keys_and_values_and_one_chunk(monkeypatch):
    monkeypatch.setattr("zaya_core.engine.batch.PREFILL_CHUNK", 256)
    model = load_serving(Checkpoint.open(BUNDLED), dtype=torch.bfloat16, device=torch.device("cpu"))
    taken(model, 600, tokens=4, rest=0)  # kernels and their programs come with the first prompt
    one = taken(model, LENGTH, tokens=8, rest=status("VmRSS"))
    config = model.config
    per_token = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
    assert one.keys_and_values == 2 * per_token * (LENGTH + 8)
    assert one.peak < one.keys_and_values + WORKSPACE
