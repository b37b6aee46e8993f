"""Are two checkpoints the same autoregressive model? Both forwards in float32, layer by layer, over prompts carried here."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.io.source import Source, SourceReader
from zaya_core.layout import packed
from zaya_core.model.load import streamed_model

PROMPTS = (
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "The capital of France is Paris, and the capital of Italy is",
    "Question: a train leaves at 9:40 and arrives at 12:05. How long did the journey take?\nAnswer:",
    "0 1 1 2 3 5 8 13 21 34 55 89",
)


def compare(source: Source, other: Source, *, ignore: int | None) -> dict[str, Any]:
    """Logits of both over the built-in prompts, the column `ignore` (the mask's) aside.

    Gives max_delta_logit, max_logit, the largest KL(source || other) of a row in nats, top-1 agreement, rows, and how often
    the source chose the skip expert.
    """
    prompts = [[token_id for token_id in ids if token_id != ignore] for ids in prompt_ids(source)]
    with SourceReader(source) as reader:
        left, skipped = prompt_logits(source.config, reader.read, prompts)
    with SourceReader(other) as reader:
        right, _ = prompt_logits(other.config, reader.read, prompts)
    columns = min(left.shape[1], right.shape[1])
    keep = torch.arange(columns) != (-1 if ignore is None else ignore)
    return _difference(left[:, :columns][:, keep], right[:, :columns][:, keep]) | {"num_skip_choices": skipped}


def prompt_ids(source: Source) -> list[list[int]]:
    """The prompts by the source's tokenizer; bytes as ids where it has none."""
    path = source.checkpoint.path
    if (path / "tokenizer.json").exists():
        tokenizer = TextTokenizer(path)
        return [tokenizer.encode(text) for text in PROMPTS]
    return [[byte % source.config.vocab_size for byte in text.encode()] for text in PROMPTS]


@torch.inference_mode()
def prompt_logits(config: ModelConfig, read: Callable[[str], Tensor], prompts: list[list[int]]) -> tuple[Tensor, int]:
    """Logits [rows, V] of all prompts packed into one row, so that each layer is read once; and the count of skip choices."""
    document = torch.cat([torch.full((len(ids),), number) for number, ids in enumerate(prompts)])[None]
    position = torch.cat([torch.arange(len(ids)) for ids in prompts])[None]
    token_ids = torch.tensor([[token_id for ids in prompts for token_id in ids]])
    model, routing = streamed_model(config, read, dtype=torch.float32), []
    logits = model.logits(model(token_ids, packed(document, position), routing=routing)[0])
    return logits, sum(int((choice == config.num_experts).sum()) for choice in routing)


def _difference(left: Tensor, right: Tensor) -> dict[str, Any]:
    log_p, log_q = left.log_softmax(-1), right.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
    return {
        "max_delta_logit": float((left - right).abs().max()),
        "max_logit": float(left.abs().max()),
        "max_kl": float(kl.max()),
        "top1_agreement": float((left.argmax(-1) == right.argmax(-1)).float().mean()),
        "num_rows": left.shape[0],
    }
