"""How likely a prompt's own tokens are (`echo` with `logprobs`): raw AR log-softmax over the allowed ids, nothing sampled.

One forward, or for a long prompt one in chunks after one another, so that others' tokens can come in between.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zaya_core.engine.decode import Committed
from zaya_core.engine.draft import Final
from zaya_core.layout import causal
from zaya_core.model.decoder import Zaya
from zaya_core.ops.sampling import NEVER
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
    def steps(self, model: Zaya) -> Iterator[None]:
        """One chunk a step; after the last one the scores and the firsts are given out."""
        cache = model.new_cache(1)
        forbidden = torch.tensor(self.forbidden, dtype=torch.int64, device=model.device)
        scores = [Score(self.prompt_ids[0], None, ())]
        for begin in range(0, len(self.prompt_ids), CHUNK):
            ids = self.prompt_ids[begin : begin + CHUNK]
            token_ids = torch.tensor([ids], dtype=torch.int64, device=model.device)
            hidden = model(token_ids, causal(cache.lengths, len(ids)), cache)[0]
            cache.commit(len(ids))
            following = self.prompt_ids[begin + 1 : begin + 1 + len(ids)]
            for row in range(0, len(following), ROWS):
                logits = model.logits(hidden[row : row + len(following[row : row + ROWS])])
                scores += self._scores(logits, following[row : row + ROWS], forbidden)
            if begin + CHUNK < len(self.prompt_ids):
                yield
        last = model.logits(hidden[-1:])
        self.outlet(scores)
        for writing in self.firsts:
            writing.take(first_token(last, writing, forbidden))

    def _scores(self, logits: Tensor, following: list[int], forbidden: Tensor) -> list[Score]:
        """Rows [R, V] and the ids that follow them."""
        logprobs = logits.index_fill(-1, forbidden, NEVER).log_softmax(-1)
        chosen = logprobs.gather(-1, torch.tensor(following, device=logits.device)[:, None]).flatten().tolist()
        values, ids = logprobs.topk(self.num_top, -1)
        tops = zip(ids.tolist(), values.tolist(), strict=True)
        return [
            Score(token_id, logprob, tuple(zip(*top, strict=True)))
            for token_id, logprob, top in zip(following, chosen, tops, strict=True)
        ]


def first_token(row: Tensor, writing: Writing, forbidden: Tensor) -> Committed:
    """What the engine would draw after the prompt, from the last row [1, V]."""
    request = writing.order.request
    how = request.how
    law = how.sampler.law(row, forbidden)
    token_id = request.chance.draw(law)[0]
    logprobs = row[0].index_fill(-1, forbidden, NEVER).log_softmax(-1)
    values, ids = logprobs.topk(how.num_top_logprobs)
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    final = Final(token_id, float(logprobs[token_id]), float(law[0, token_id].log()), top)
    return Committed([final], "stop" if token_id in how.end_ids else "length")
