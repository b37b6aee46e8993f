"""Known shapes of the family, by name. Values only: what a preset's weights would be is `model/init`'s business."""

from zaya_core.config import ModelConfig, Rope

_ZAYA1_8B = ModelConfig()

PRESETS: dict[str, ModelConfig] = {
    # For tests: everything small, a sliding layer included.
    "tiny": ModelConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        moe_intermediate_size=64,
        num_experts=4,
        router_hidden_size=32,
        layer_types=("hybrid", "hybrid_sliding", "hybrid"),
        sliding_window=64,
        max_position_embeddings=1024,
        eos_token_id=1,
        rope_parameters={"hybrid": Rope(rope_theta=1e4)},
    ),
    # The quickstart's size, and the bundled checkpoint's.
    "mini": ModelConfig(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        moe_intermediate_size=256,
        num_experts=8,
        router_hidden_size=64,
        max_position_embeddings=8192,
        eos_token_id=1,
        rope_parameters={"hybrid": Rope(rope_theta=1e5)},
    ),
    # For speed: large enough that weights come from memory, small enough for a laptop.
    "bench": ModelConfig(
        vocab_size=32768,
        hidden_size=1024,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        moe_intermediate_size=1024,
        num_experts=16,
        router_hidden_size=256,
        max_position_embeddings=32768,
        eos_token_id=1,
        rope_parameters={"hybrid": Rope(rope_theta=1e6)},
    ),
    "zaya1-8b": _ZAYA1_8B,
    "zaya1-base": _ZAYA1_8B.with_changes(
        max_position_embeddings=32768, eos_token_id=1, rope_parameters={"hybrid": Rope(rope_theta=1e6)}
    ),
    "zaya1-74b": _ZAYA1_8B.with_changes(
        hidden_size=4096,
        num_hidden_layers=60,
        num_attention_heads=16,
        num_experts=24,
        moe_intermediate_size=4096,
        layer_types=("hybrid_sliding", "hybrid") * 30,
        sliding_window=4097,
        max_position_embeddings=262144,
        eos_token_id=1,
    ),
}
