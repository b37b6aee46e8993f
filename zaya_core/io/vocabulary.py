"""The tensors that have a row per token: given a mask row by a conversion, and given back by its reverse."""

from typing import Any

import torch
from torch import Tensor

EMBEDDING, HEAD, HEAD_BIAS = "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"
VOCABULARY = (EMBEDDING, HEAD, HEAD_BIAS)


def with_mask_row(name: str, tensor: Tensor, *, token_id: int, rows: int, num_used: int) -> Tensor:
    """[V, ...] -> [rows, ...]: the mask's row and all new rows are the mean of the rows that tokens use.

    A mean row's logit is the mean of the others, never the largest, so that an engine which knows of no mask does not choose it.
    The rest of the embedding is untouched; a head's row changes only where it is new.
    """
    old = tensor.shape[0]
    mean = tensor[: min(old, num_used)].float().mean(0).to(tensor.dtype)
    grown = torch.cat([tensor, mean.expand(rows - old, *tensor.shape[1:])])
    if name == EMBEDDING:
        grown[token_id] = mean
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
