"""Rows of logits to laws, in one fixed order: forbid, temperature, top-k, top-p, softmax (tidar.md section 3).

Mixing happens before this, on raw logits. Temperature 0 is the exact one-hot of the argmax.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zaya_core.errors import ConfigError

NEVER = float("-inf")


@dataclass(frozen=True)
class Sampler:
    """How a row of logits becomes a law. `top_k` 0 and `top_p` 1 keep everything."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature is {self.temperature}, expected a number of at least 0")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}, expected at least 0")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}, expected in (0, 1]")

    def law(self, logits: Tensor, forbidden: Tensor) -> Tensor:
        """Logits [R, V] and ids never to be drawn -> probabilities [R, V]."""
        logits = logits.index_fill(-1, forbidden, NEVER)
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < least, NEVER)
        if self.top_p < 1:
            logits = _nucleus(logits, self.top_p)
        return logits.softmax(-1)


def log_probability(logits: Tensor, forbidden: Tensor, token_id: int) -> float:
    """Log-softmax of one raw row [V] at temperature 1 over the allowed ids."""
    return float(logits.index_fill(-1, forbidden, NEVER).log_softmax(-1)[token_id])


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most probable ids whose mass reaches `top_p`."""
    ordered, order = logits.sort(-1, descending=True)
    mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    dropped = (mass_before >= top_p).scatter(-1, order, mass_before >= top_p)
    return logits.masked_fill(dropped, NEVER)
