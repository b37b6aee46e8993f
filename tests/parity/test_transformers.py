"""Our forward equals transformers' ZAYA in float32, whole, in chunks and token by token."""

import pytest
import torch
from transformers import ZayaConfig, ZayaForCausalLM

from tests.models import BIASED, MANY_HEADS, ONE_GROUP, SLIDING, TINY, UNTIED, random_ids, random_model
from tests.sequences import Sequence
from zaya_core.config import ModelConfig
from zaya_core.layout import causal
from zaya_core.model import Zaya
from zaya_core.model.serving import ServingModel

CONFIGS = {
    "plain": TINY,
    "sliding": SLIDING,
    "attention_bias": BIASED,
    "sliding_bias": SLIDING.with_changes(attention_bias=True),
    "untied_biased_head": UNTIED,
    "one_group": ONE_GROUP,
    "many_heads": MANY_HEADS,
    "full_rotation": TINY.with_changes(rope_parameters={"hybrid": TINY.rope_parameters["hybrid"].__class__(1e4, 1.0)}),
}


def reference(model: Zaya, config: ModelConfig) -> ZayaForCausalLM:
    """transformers' model with our weights. Not from_pretrained, which resets the last balancing bias (model.md A6)."""
    values = {key: value for key, value in config.to_json().items() if key not in ("architectures", "model_type")}
    other = ZayaForCausalLM(ZayaConfig(**values, attn_implementation="eager"))
    other.load_state_dict(model.state_dict(), strict=True)
    return other.eval()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_transformers(name, seed):
    config = CONFIGS[name]
    model, serving = random_model(config, seed), ServingModel(random_model(config, seed))
    ids = random_ids(config, 2, 23, seed)
    with torch.no_grad():
        theirs = reference(model, config)(ids).logits

        routing = []
        whole = model.logits(model(ids, causal(torch.zeros(2, dtype=torch.int64), 23), routing=routing))
        assert relative_error(whole, theirs) < 1e-5
        skipped = sum(int((choice == config.num_experts).sum()) for choice in routing)
        assert skipped > 0, "the inputs must reach the skip expert"
        assert len({int(expert) for choice in routing for expert in choice.flatten()}) >= 4, "experts must differ"

        for chunks in ([5, 4, 5, 9], [1] * 23, [13, 1, 1, 8], [22, 1], [2, 21]):
            for network in (model, serving):
                sequence, parts = Sequence(network), []
                for part in ids[:1].split(chunks, 1):
                    parts.append(network.logits(sequence.step(part, part.shape[1])[0]))
                    sequence.commit(part.shape[1])
                assert relative_error(torch.cat(parts), theirs[0]) < 1e-5, f"chunks {chunks}"


def test_a_fresh_temperature_of_zero_would_prove_nothing():
    """The trap that this file's randomisation avoids: transformers' own initialisation makes attention blind."""
    fresh = ZayaForCausalLM(ZayaConfig(**{k: v for k, v in TINY.to_json().items() if k not in ("architectures", "model_type")}))
    assert float(fresh.model.layers[0].self_attn.qk_norm.temp.detach().abs().max()) == 0
    assert float(random_model(TINY).model.layers[0].self_attn.qk_norm.temp.abs().min()) > 0.5
