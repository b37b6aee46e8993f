"""Run by torchrun, not by pytest: the same steps on several ranks and on one, written as JSON for test_ranks.py to judge.

Arguments: where to write, then one DATAxEXPERTxCONTEXT for each layout to try.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tests.models import BIASED, SLIDING, randomise
from zaya_core.config import ModelConfig, Tidar
from zaya_core.data.documents import Documents, Example
from zaya_core.data.packing import PackedRows
from zaya_core.model.decoder import Zaya
from zaya_core.model.load import meta_model
from zaya_core.train.loop import FitOptions, evaluate, fit
from zaya_core.train.memory import checkpoint_activations
from zaya_core.train.objective import Objective
from zaya_core.train.optim import RouterBalance, make_optimizer
from zaya_core.train.parallel import cut_stored, local_part, shard_model
from zaya_core.train.ranks import AXES, Ranks
from zaya_core.train.state import TrainState

STEPS, ROWS_PER_STEP, SEQ_LEN, BLOCK = 20, 8, 48, 4
CASES = {
    "kl": (SLIDING, Objective("tidar", kl_share=0.5, offset_decay=0.9), "adamw", torch.float64),
    "ar-muon": (BIASED, Objective("ar"), "muon", torch.float64),
    "single": (SLIDING, Objective("tidar"), "adamw", torch.float32),
}


def rows() -> PackedRows:
    """Documents from 1 to 60 tokens, some of which carry no loss for a while, cut into rows."""
    random = np.random.default_rng(0)
    examples = []
    for _ in range(400):
        length = int(random.integers(1, 60))
        weights = (random.random(length) < 0.8).astype(float).tolist()
        examples.append(Example(random.integers(5, 97, length).tolist(), weights))
    return PackedRows(Documents.of(examples), seq_len=SEQ_LEN, block_length=BLOCK, seed=1)


def new_state(config: ModelConfig, dtype: torch.dtype, optimizer: str, ranks: Ranks) -> TrainState:
    """A randomised model, whole or sharded, that the seed alone decides."""
    whole = Zaya(config)
    randomise(whole, seed=3)
    whole = whole.to(dtype).requires_grad_(True)
    model = whole
    if ranks.world > 1:
        model = meta_model(config).to(dtype)
        shard_model(model, ranks, dtype=dtype)
        model.to_empty(device="cpu")
        given = whole.state_dict()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                local_part(tensor).copy_(cut_stored(name, given[name], tensor, ranks))
        checkpoint_activations(model, "full")
    made = make_optimizer(model, kind=optimizer, lr=1e-2, weight_decay=0.1)
    return TrainState(model, made, RouterBalance(model, lr=5e-3), ranks)


def trained(case: str, ranks: Ranks) -> dict[str, object]:
    """Figures of every step, of held-out rows, and the weights at the end."""
    config, objective, optimizer, dtype = CASES[case]
    config = config.with_changes(tidar=Tidar(BLOCK, 4))
    state = new_state(config, dtype, optimizer, ranks)
    size = ROWS_PER_STEP // 2 // ranks.row_groups
    options = FitOptions(objective, STEPS, size, 2, 1e-2, 0.1, "cosine", 0.1, 1.0, torch.float32, 5)
    kept = ("loss", "ar_loss", "diffusion_loss", "acceptance_length", "grad_norm", "expert_balance", "tokens_seen")
    steps = [{name: figures[name] for name in kept if name in figures} for figures in fit(state, rows(), options)]
    held_out = evaluate(state.model, rows(), num_rows=7, options=options, ranks=ranks)
    weights = {name: tensor.double().flatten().tolist() for name, tensor in state.weights()}
    return {"steps": steps, "held_out": {name: held_out[name] for name in ("eval_ar_loss",)}, "weights": weights}


def main() -> None:
    """Every case alone, then under every layout."""
    out, layouts = Path(sys.argv[1]), sys.argv[2:]
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    results = {}
    for case in CASES:
        results[case] = {"alone": trained(case, Ranks())}
        for layout in layouts:
            sizes = tuple(int(size) for size in layout.split("x"))
            mesh = init_device_mesh("cpu", sizes, mesh_dim_names=AXES)
            results[case][layout] = trained(case, Ranks(dist.get_rank(), *sizes, mesh))
    if dist.get_rank() == 0:
        out.write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
