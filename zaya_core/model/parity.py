"""Are two checkpoints the same autoregressive model? Both forwards in float32, over prompts that this module carries."""

from typing import Any

import torch
from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.layout import causal
from zaya_core.model.load import load_model

PROMPTS = (
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "The capital of France is Paris, and the capital of Italy is",
    "Question: a train leaves at 9:40 and arrives at 12:05. How long did the journey take?\nAnswer:",
    "0 1 1 2 3 5 8 13 21 34 55 89",
)


@torch.inference_mode()
def compare(source: Checkpoint, other: Checkpoint, *, ignore: int) -> dict[str, Any]:
    """Logits of both over the built-in prompts, the id `ignore` (the mask's, whose embedding is new) aside in and out.

    Gives max_delta_logit, max_logit, the largest KL(source || other) of a row in nats, top-1 agreement, rows, and how often the
    source chose the skip expert.
    """
    prompts = [[index for index in ids if index != ignore] for ids in _prompt_ids(source)]
    logits, skipped = _logits(source, prompts)
    others, _ = _logits(other, prompts)
    figures = [_difference(left, right[..., : left.shape[-1]], ignore) for left, right in zip(logits, others, strict=True)]
    rows = sum(left.shape[0] for left in logits)
    return {
        "max_delta_logit": max(item[0] for item in figures),
        "max_logit": max(item[1] for item in figures),
        "max_kl": max(item[2] for item in figures),
        "top1_agreement": sum(item[3] for item in figures) / rows,
        "num_rows": rows,
        "num_skip_choices": skipped,
    }


def _prompt_ids(source: Checkpoint) -> list[list[int]]:
    """The prompts by the source's tokenizer; bytes as ids where it has none."""
    if (source.path / "tokenizer.json").exists():
        tokenizer = TextTokenizer(source.path)
        return [tokenizer.encode(text) for text in PROMPTS]
    return [[byte % source.config.vocab_size for byte in text.encode()] for text in PROMPTS]


def _logits(checkpoint: Checkpoint, prompts: list[list[int]]) -> tuple[list[Tensor], int]:
    model = load_model(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    rows, routing = [], []
    for ids in prompts:
        hidden = model(torch.tensor([ids]), causal(torch.zeros(1, dtype=torch.int64), len(ids)), routing=routing)
        rows.append(model.logits(hidden[0]))
    return rows, sum(int((choice == _skip_class(checkpoint.config)).sum()) for choice in routing)


def _skip_class(config: ModelConfig) -> int:
    return config.num_experts


def _difference(left: Tensor, right: Tensor, ignore: int) -> tuple[float, float, float, float]:
    keep = torch.arange(left.shape[-1]) != ignore
    left, right = left[:, keep], right[:, keep]
    log_p, log_q = left.log_softmax(-1), right.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
    agreement = (left.argmax(-1) == right.argmax(-1)).sum()
    return float((left - right).abs().max()), float(left.abs().max()), float(kl.max()), float(agreement)
