"""How likely a prompt's own tokens are (`echo` with `logprobs`): raw AR log-softmax over the allowed ids, nothing sampled.

One forward, or for a long prompt one in chunks after one another, so that others' tokens can come in between.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zaya_core.engine.batch import Network
from zaya_core.engine.request import Committed, Final
from zaya_core.layout import template
from zaya_core.ops.sampling import draw, forbid
from zaya_core.server.writing import Writing

CHUNK = 1024  # slots of a forward
ROWS = 256  # projected to the vocabulary at once


@dataclass(frozen=True)
class Score:
    """A prompt token's log-probability, the likeliest ids there with theirs; the first token has neither."""

    token_id: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


class Scoring:
    """A prompt to be scored; `outlet` gets None where that failed. `firsts` are completions of one token, which the last row's law
    gives without another forward.
    """

    def __init__(
        self, prompt_ids: list[int], *, num_top: int, forbidden: tuple[int, ...], outlet: Callable[[list[Score] | None], None]
    ) -> None:
        self.prompt_ids, self.num_top, self.forbidden, self.outlet = prompt_ids, num_top, forbidden, outlet
        self.firsts: list[Writing] = []
        self.is_withdrawn = False

    @torch.inference_mode()
    def steps(self, model: Network) -> Iterator[None]:
        """One chunk a step; after the last one the scores and the firsts are given out."""
        pool = model.new_pool(len(self.prompt_ids), max_rows=1)
        row = pool.open(len(self.prompt_ids))
        forbidden = torch.tensor(self.forbidden, dtype=torch.int64, device=model.device)
        scores = [Score(self.prompt_ids[0], None, ())]
        while row.length < len(self.prompt_ids):
            ids = self.prompt_ids[row.length : row.length + CHUNK]
            following = self.prompt_ids[row.length + 1 : row.length + 1 + len(ids)]
            hidden = model(torch.tensor([ids]), pool.layout([(row, template(len(ids)))]), pool, None)[0]
            pool.commit([len(ids)])
            for begin in range(0, len(following), ROWS):
                part = following[begin : begin + ROWS]
                scores += self._scores(model.logits(hidden[begin : begin + len(part)]), part, forbidden)
            if row.length < len(self.prompt_ids):
                yield
        self.outlet(scores)
        if self.firsts:
            last = model.logits(hidden[-1:])
            for writing in self.firsts:
                writing.take(first_token(last, writing, forbidden))

    def _scores(self, logits: Tensor, following: list[int], forbidden: Tensor) -> list[Score]:
        """Rows [R, V] and the ids that follow them."""
        log_p = forbid(logits, forbidden).log_softmax(-1)
        chosen = log_p[torch.arange(len(following)), torch.tensor(following)].tolist()
        values, ids = log_p.topk(self.num_top, -1)
        tops = [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
        return [Score(*each) for each in zip(following, chosen, tops, strict=True)]


def first_token(row: Tensor, writing: Writing, forbidden: Tensor) -> Committed:
    """What the engine would draw after the prompt, from the last row [1, V]."""
    request = writing.order.request
    how, seen = request.how, None
    if how.sampler.repetition_penalty != 1:
        seen = torch.zeros_like(row, dtype=torch.bool)
        seen[0, request.prompt_ids] = True
    row = forbid(row, forbidden)
    law = how.sampler.law(row, seen)
    token_id = int(draw(law, torch.tensor(request.chance.points(law), dtype=torch.float64, device=law.device)))
    log_p = row.log_softmax(-1)[0]
    values, ids = log_p.topk(how.num_top_logprobs)
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    final = Final(token_id, float(log_p[token_id]), float(law[0, token_id].log()), top)
    return Committed([final], "stop" if token_id in how.end_ids else "length")
