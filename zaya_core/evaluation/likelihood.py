"""How probable held-out text is: bits per byte of the AR half, and of one diffusion step by the offset in the block.

A byte's bits are a token's bits times the tokens per byte of the whole text, special tokens not counted. Rows are taken evenly from
all of the text, because neighbours are alike. It knows no samplers.
"""

import math
from typing import Any

import torch

from zaya_core.data.documents import Documents, Example
from zaya_core.data.packing import PackedRows
from zaya_core.data.sources import read_documents
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.evaluation.statistics import estimate
from zaya_core.model.decoder import Zaya
from zaya_core.train.loop import figures_of
from zaya_core.train.objective import Losses, Objective, objective_loss


@torch.no_grad()
def likelihood(model: Zaya, tokenizer: TextTokenizer, source: str, *, seq_len: int, num_rows: int) -> dict[str, Any]:
    """Figures of at most `num_rows` rows of `seq_len` tokens; intervals are over rows. An AR model has no diffusion figures."""
    texts = list(read_documents(source))
    documents = Documents.of(Example(tokenizer.encode(text)) for text in texts)
    tidar = model.config.tidar
    rows = PackedRows(documents, seq_len=seq_len, block_length=tidar.block_length if tidar else 1, seed=0)
    objective = Objective("tidar" if tidar else "ar")
    num_rows = min(num_rows, rows.rows_per_epoch)
    parts = [_losses(model, rows, index * rows.rows_per_epoch // num_rows, objective) for index in range(num_rows)]
    num_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    num_tokens = documents.num_tokens - len(texts) * len(tokenizer.encode(""))
    bits = num_tokens / num_bytes / math.log(2)  # of a byte, for each nat of a token
    total = sum(parts[1:], parts[0])
    figures = figures_of(total, objective)
    found = {"num_rows": num_rows, "seq_len": seq_len, "tokens_per_byte": num_tokens / num_bytes}
    found |= _with_interval("ar_bits_per_byte", [float(p.ar_sum.sum() / p.ar_weight.sum()) * bits for p in parts])
    if tidar is None:
        return found
    found |= _with_interval("diffusion_bits_per_byte", [float(p.nats.sum() / p.weight.sum()) * bits for p in parts])
    return found | {
        "acceptance_length": figures["acceptance_length"],
        "diffusion_bits_per_byte_by_offset": [float(value) * bits for value in total.nats / total.weight],
        "acceptance_by_offset": figures["acceptance_by_offset"],
    }


def _losses(model: Zaya, rows: PackedRows, index: int, objective: Objective) -> Losses:
    batch = rows.batch(range(index, index + 1)).to(model.device)
    return objective_loss(model, batch, objective, (1.0, 1.0), measure=True)[1]


def _with_interval(name: str, values: list[float]) -> dict[str, Any]:
    """The mean over rows, which have as good as equally many labels, and where it lies."""
    if min(values) == max(values):
        return {name: values[0], f"{name}_95%": None}
    found = estimate([values])
    return {name: found.value, f"{name}_95%": [found.low, found.high]}
