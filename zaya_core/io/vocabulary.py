"""The tensors that have a row per token: given a mask row by a conversion, and given back by its reverse."""

from typing import Any

import torch
from torch import Tensor

EMBEDDING, HEAD, HEAD_BIAS = "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"
VOCABULARY = (EMBEDDING, HEAD, HEAD_BIAS)


def with_mask_row(name: str, tensor: Tensor, *, token_id: int, rows: int, num_used: int) -> Tensor:
    """[V, ...] -> [rows, ...]: new rows are zero, and the mask's is the mean of the rows that tokens use.

    The rest of the embedding is untouched; a head's row changes only where it is new.
    """
    old = tensor.shape[0]
    grown = torch.zeros(rows, *tensor.shape[1:], dtype=tensor.dtype)
    grown[:old] = tensor
    if name == EMBEDDING or token_id >= old:
        grown[token_id] = tensor[: min(old, num_used)].float().mean(0).to(tensor.dtype)
    return grown


def mask_record(embedding: Tensor, *, token_id: int) -> dict[str, Any]:
    """What the reverse needs: the source's number of rows, and the row that the mask replaced (None if it was new)."""
    row = embedding[token_id].float().tolist() if token_id < embedding.shape[0] else None
    return {"token_id": token_id, "source_rows": embedding.shape[0], "source_row": row}


def without_mask_row(name: str, tensor: Tensor, record: dict[str, Any]) -> Tensor:
    """The reverse of `with_mask_row`, from its record."""
    restored = tensor[: record["source_rows"]].clone()
    if name == EMBEDDING and record["source_row"] is not None:
        restored[record["token_id"]] = torch.tensor(record["source_row"]).to(tensor.dtype)
    return restored
