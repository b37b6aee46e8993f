"""Rows of logits to laws, in one fixed order: `forbid`, penalise, temperature, top-k, top-p, min-p, softmax (tidar.md section 3).

Mixing happens before this, on raw logits. Temperature 0 is the exact one-hot of the argmax.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zaya_core.errors import ConfigError

NEVER = float("-inf")
BELOW_ONE = 1 - 2**-52
SHORT = 8192  # ids that a draw passes over one by one
HEAD = 512  # most probable ids that a nucleus is looked for in before all are sorted


@dataclass(frozen=True)
class Sampler:
    """How a row of logits becomes a law. `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 change nothing."""

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
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p is {self.min_p}, expected in [0, 1]")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"repetition_penalty is {self.repetition_penalty}, expected a number above 0")

    def law(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """Logits [R, V] -> probabilities [R, V]. `seen` [R, V] bool are the ids to penalise; what is NEVER has none."""
        if seen is not None and self.repetition_penalty != 1:
            penalised = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
            logits = torch.where(seen, penalised, logits)
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < least, NEVER)
        if self.top_p < 1:
            logits = _nucleus(logits, self.top_p)
        law = logits.softmax(-1)
        if self.min_p > 0:
            law = law.masked_fill_(law < self.min_p * law.amax(-1, keepdim=True), 0)
            law = law.div_(law.sum(-1, keepdim=True))
        return law


PLAIN = Sampler()  # its laws are the model's own


def forbid(logits: Tensor, ids: Tensor) -> Tensor:
    """Write NEVER into rows [R, V] for these ids, in place."""
    return logits.index_fill_(-1, ids, NEVER)


def draw(laws: Tensor, uniform: Tensor) -> Tensor:
    """One id from each law [R, V] by its inverse distribution function at `uniform` [R] in [0, 1): [R] int64.

    Laws need not be normalised. Long ones are passed over in blocks: only a block's sum is needed until the block is known.
    """
    rows, num_ids = laws.shape
    if num_ids <= SHORT:
        ends = laws.cumsum(-1, dtype=torch.float64)
        return _first_past(ends, uniform[:, None] * ends[:, -1:])[:, 0]
    width = next(width for width in (256, 128, 64, 1) if num_ids % width == 0)
    blocks = laws.view(rows, -1, width)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted = uniform[:, None] * ends[:, -1:]
    block = _first_past(ends, wanted)
    inside = blocks.take_along_dim(block[:, :, None], 1)[:, 0].cumsum(-1, dtype=torch.float64)
    before = ends.gather(1, block) - inside[:, -1:]
    return (block * width + _first_past(inside, (wanted - before).clamp_min_(0)))[:, 0]


def _first_past(ends: Tensor, wanted: Tensor) -> Tensor:
    """Index [R, 1] of the first of ascending ends [R, N] above `wanted` [R, 1], which is kept below the last of them.

    So what ends there has some probability, however sums were rounded. Ends that are no numbers give an index all the same.
    """
    wanted = torch.minimum(wanted, ends[:, -1:] * BELOW_ONE)
    return torch.searchsorted(ends, wanted, right=True).clamp_max_(ends.shape[1] - 1)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most probable ids whose mass reaches `top_p`; a row is sorted whole only where its head falls short.

    Of equal logits at the border the lower ids are kept, whatever rows come along.
    """
    count = min(HEAD, logits.shape[-1])
    kept, is_enough = _kept_of(logits, logits.topk(count, -1).values, top_p)
    if count < logits.shape[-1] and not bool(is_enough.all()):
        rest = logits[~is_enough]
        kept[~is_enough] = _kept_of(rest, rest.sort(-1, descending=True).values, top_p)[0]
    return logits.masked_fill(~kept, NEVER)


def _kept_of(logits: Tensor, ordered: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Which ids [R, V] are in the nucleus, by the largest logits of each row in order; and for which rows these suffice [R]."""
    share = (ordered - logits.logsumexp(-1, keepdim=True)).exp()
    before = share.cumsum(-1) - share
    size = (before < top_p).sum(-1, keepdim=True).clamp_min_(1)  # rounding can put even the first share at the border
    least = ordered.gather(-1, size - 1)
    above, tied = logits > least, logits == least
    room = size - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1) <= room)), (before[:, -1] + share[:, -1]) >= top_p
