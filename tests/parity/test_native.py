"""The serving network in C: as near to float64 as the plain network in bfloat16, and to the bit the same in any company."""

import os
import subprocess
import sys

import pytest
import torch

from tests.models import TINY, random_ids, random_model
from tests.sequences import Sequence
from zaya_core.config import ModelConfig, Rope, Tidar
from zaya_core.layout import template
from zaya_core.model.forms import for_serving
from zaya_core.model.native import NativeModel, packed_weight, why_not
from zaya_core.model.pool import Pool
from zaya_core.model.serving import ServingModel
from zaya_core.ops import native

BASE = TINY.with_changes(
    hidden_size=80, head_dim=32, moe_intermediate_size=72, router_hidden_size=48, tidar=Tidar(4, 4), layer_types=("hybrid",) * 3
)
CONFIGS = {
    "base": BASE,
    "sliding": BASE.with_changes(layer_types=("hybrid_sliding", "hybrid", "hybrid_sliding"), sliding_window=70),
    "narrow_window": BASE.with_changes(layer_types=("hybrid_sliding",) * 3, sliding_window=5),
    "biased_and_passing": BASE.with_changes(attention_bias=True, skip_expert_output="identity"),
    "untied_one_group": BASE.with_changes(
        tie_word_embeddings=False, lm_head_bias=True, num_attention_heads=3, num_key_value_heads=1, head_dim=16
    ),
    "wide_heads": BASE.with_changes(head_dim=144, num_experts=20, vocab_size=130),
    "full_rotation": BASE.with_changes(head_dim=64, rope_parameters={"hybrid": Rope(1e4, 1.0)}),
}
STEPS = [(5, (), 0), (3, (1, 3), 4), (1, (), 0), (70, (70,), 4), (1, (1,), 4), (4, (2, 4), 4)]  # clean slots, levels, block length


@pytest.fixture(autouse=True)
def _needs_native():
    found = native.library()
    if isinstance(found, native.Missing):
        pytest.skip(found.why)
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(True)


def native_model(config: ModelConfig) -> NativeModel:
    model = for_serving(random_model(config, dtype=torch.bfloat16))
    assert isinstance(model, NativeModel)
    return model


def forward(network, pool: Pool, steps, ids) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [T, D] and experts [T, L] of one forward of (row, template arguments) each."""
    layout = pool.layout([(row, template(*step)) for row, step in steps])
    routing = []
    hidden = network(torch.cat(ids, 1), layout, pool, routing)
    return hidden[0], torch.stack(routing, -1)[0]


def grown(network, lengths, seed: int = 0):
    """A pool of rows with histories of these lengths."""
    pool = network.new_pool(400 * len(lengths), max_rows=len(lengths))
    rows = [pool.open(400) for _ in lengths]
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if length:
            forward(network, pool, [(row, (length,))], [random_ids(network.config, 1, length, seed + number)])
            pool.commit([length])
    return pool, rows


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_network(name):
    """Rows of all kinds side by side, after histories, against float64; where no expert fell otherwise, for that moves a slot."""
    config = CONFIGS[name]
    lengths = [0, 7, 64, 100, 65, 1]
    ids = [random_ids(config, 1, template(*step).position.shape[1], 50 + at) for at, step in enumerate(STEPS)]
    found = {}
    for kind, network in (
        ("exact", random_model(config, dtype=torch.float64)),
        ("plain", random_model(config, dtype=torch.bfloat16)),
        ("torch", ServingModel(random_model(config, dtype=torch.bfloat16))),
        ("native", native_model(config)),
    ):
        pool, rows = grown(network, lengths)
        hidden, experts = forward(network, pool, list(zip(rows, STEPS, strict=True)), ids)
        found[kind] = network.logits(hidden).double(), experts
    exact, experts = found.pop("exact")
    scale = exact.abs().mean()
    errors, same = {}, {}
    for kind, (logits, own) in found.items():
        same[kind] = (own == experts).all(-1)
        errors[kind] = (logits - exact).abs().mean(-1) / scale
    assert same["native"].double().mean() > 0.9
    agreed = torch.stack(list(same.values())).all(0)
    assert errors["native"][agreed].mean() < 1.25 * errors["plain"][agreed].mean()
    assert errors["native"][agreed].max() < 0.1, errors["native"].max()
    assert int((experts == config.num_experts).sum()) > 0, "the inputs must reach the skip expert"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_rows_slots_do_not_feel_their_company(name):
    """To the bit: the same row alone, among others, and with another number of threads."""
    config, network = CONFIGS[name], native_model(CONFIGS[name])
    lengths, threads = [0, 7, 64, 100, 65, 1], torch.get_num_threads()
    ids = [random_ids(config, 1, template(*step).position.shape[1], 50 + at) for at, step in enumerate(STEPS)]
    pool, rows = grown(network, lengths)
    together, experts = forward(network, pool, list(zip(rows, STEPS, strict=True)), ids)
    logits, done = network.logits(together), 0
    try:
        torch.set_num_threads(3 if threads == 1 else 1)
        for row, step, own in zip(rows, STEPS, ids, strict=True):
            hidden, chosen = forward(network, pool, [(row, step)], [own])
            slots = slice(done, done + own.shape[1])
            assert torch.equal(hidden, together[slots]), step
            assert torch.equal(chosen, experts[slots])
            assert torch.equal(network.logits(hidden), logits[slots])
            done += own.shape[1]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_text_is_the_same_in_any_pieces(name):
    """Whole, token by token, and as drafts that carry masked blocks; to the bit."""
    config, network = CONFIGS[name], native_model(CONFIGS[name])
    ids = random_ids(config, 1, 150)
    whole = Sequence(network).step(ids, 150)
    for sizes in ([1] * 150, [149, 1], [60, 5, 85]):
        sequence, done = Sequence(network), []
        for part in ids.split(sizes, 1):
            done.append(sequence.step(part, part.shape[1]))
            sequence.commit(part.shape[1])
        assert torch.equal(torch.cat(done, 1), whole), sizes[:3]
    sequence = Sequence(network, ids[:, :100])
    masks = torch.full((1, 8), 4)
    both = sequence.step(torch.cat([ids[:, 100:105], masks], 1), 5, (2, 5), 4)
    assert torch.equal(both[:, :5], whole[:, 100:105])
    # A block's own keys come after the drafts, so that fewer drafts sum them in another order.
    alone = sequence.step(torch.cat([ids[:, 100:102], masks[:, :4]], 1), 2, (2,), 4)
    assert torch.equal(alone[:, :2], whole[:, 100:102])
    assert torch.allclose(alone[:, 2:].float(), both[:, 5:9].float(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("rows", [1, 2, 7, 48, 49, 130])
@pytest.mark.parametrize("shape", [(97, 34), (16, 2), (5, 48), (200, 512)])
def test_a_product_is_the_product(rows, shape):
    generator = torch.Generator().manual_seed(rows)
    weight, bias = torch.randn(shape, generator=generator).bfloat16(), torch.randn(shape[0], generator=generator)
    x, out = torch.randn(rows, shape[1], generator=generator).bfloat16(), torch.full((rows, shape[0]), torch.nan)
    packed = packed_weight(weight)
    product = native.Product(packed.data_ptr(), bias.data_ptr(), shape[1], shape[0])
    native.library().zaya_product(product, x.data_ptr(), rows, out.data_ptr(), 2)
    exact = x.double() @ weight.double().T + bias
    assert float((out - exact).abs().max() / exact.abs().max()) < 1e-6


def test_a_weight_that_is_no_number_is_not_hidden():
    """As the engine's check of the logits needs it: an exponential of nan must not be a number."""
    model = random_model(BASE, dtype=torch.bfloat16)
    for layer in model.model.layers:
        for part in (layer.self_attn.qkv_proj.v_proj_current, layer.self_attn.qkv_proj.v_proj_delayed):
            part.weight.mul_(0.01)  # so that no sum of values overflows, which would be seen
    model.model.layers[0].self_attn.qkv_proj.q_proj.weight[0, 0] = torch.nan
    network = for_serving(model)
    assert isinstance(network, NativeModel)
    assert Sequence(network).step(random_ids(BASE, 1, 7), 7).isnan().all()


def test_what_does_not_fit_runs_in_torch():
    """Other dtypes and head widths, and too little memory; in bfloat16 it says so."""
    assert type(for_serving(random_model(BASE))) is ServingModel
    assert why_not(random_model(TINY, dtype=torch.bfloat16)) == "a head has 8 dims"
    plain = for_serving(random_model(BASE, dtype=torch.bfloat16), packs=False)
    assert type(plain) is ServingModel
    assert plain.remark is not None
    assert native_model(BASE).remark is None


def test_without_a_compiler_it_says_why(tmp_path):
    code = "from zaya_core.ops import native; print(native.library())"
    environment = {"CC": "no-such-compiler", "ZAYA_CACHE": str(tmp_path), "PYTHONPATH": os.getcwd()}
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "Missing(why='there is no C compiler')"
    assert not list(tmp_path.iterdir())


def test_two_processes_may_build_it_at_once(tmp_path):
    code = "from zaya_core.ops import native; print(type(native.library()).__name__)"
    environment = os.environ | {"ZAYA_CACHE": str(tmp_path), "PYTHONPATH": os.getcwd()}
    runs = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate()[0].strip() for run in runs] == ["CDLL", "CDLL"]
    assert [path.suffix for path in (tmp_path / "native").iterdir()] == [".so"]
