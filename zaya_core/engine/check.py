"""Is greedy `lossless` greedy `ar`? Decodes both ways and reads the logits at the first place where they part.

In low precision a forward of many rows and one of a single row round differently, so that two logits closer than that may fall
either way: a difference counts where float32 makes it too, with logits further apart than TIE. It decides nothing of other laws.
"""

from dataclasses import dataclass, replace

import torch

from zaya_core.engine.batch import Network
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.decode import decode
from zaya_core.engine.draft import Proposals
from zaya_core.engine.request import Decoding, Final, Request
from zaya_core.layout import template

TIE = 1e-5  # logits: what float32 cannot tell apart


@dataclass(frozen=True)
class Difference:
    """After `prefix_ids`, prompt included, the two ways chose two tokens; the logits are those of a plain causal forward."""

    prefix_ids: list[int]
    ar_token_id: int
    lossless_token_id: int
    ar_logit: float
    lossless_logit: float

    @property
    def margin(self) -> float:
        """How far apart the two logits are."""
        return abs(self.ar_logit - self.lossless_logit)

    def read_by(self, model: Network) -> "Difference":
        """The same place with the logits of another network, such as this one in float32."""
        (row,) = _rows(model, self.prefix_ids, last=1)
        return replace(self, ar_logit=float(row[self.ar_token_id]), lossless_logit=float(row[self.lossless_token_id]))


def decoded(model: Network, request: Request) -> list[Final]:
    """All tokens of one request, alone."""
    run = decode(model, request.prompt_ids, request.how, request.chance)
    return [final for committed in run for final in committed.finals]


def greedy_difference(model: Network, prompt_ids: list[int], how: Decoding) -> Difference | None:
    """The first place where the drafts of `how` change its greedy tokens; None where they change none."""
    greedy = replace(how, sampler=replace(how.sampler, temperature=0.0))
    plain = replace(greedy, proposals=Proposals(0), block_length=0)
    lossless, ar = (
        [final.token_id for final in decoded(model, Request(prompt_ids, way, SeededChance(0)))] for way in (greedy, plain)
    )
    place = next((at for at, (left, right) in enumerate(zip(lossless, ar, strict=False)) if left != right), None)
    if place is None:
        assert len(lossless) == len(ar), (lossless, ar)  # equal tokens end at the same one
        return None
    return Difference(prompt_ids + ar[:place], ar[place], lossless[place], 0.0, 0.0).read_by(model)


def logprob_error(model: Network, request: Request) -> float:
    """Largest difference between the log-probabilities that a request reports and those of one causal forward over its tokens."""
    finals = decoded(model, request)
    token_ids = [final.token_id for final in finals]
    rows = _rows(model, request.prompt_ids + token_ids[:-1], last=len(token_ids))
    rows = rows.index_fill(1, torch.tensor(request.how.forbidden, dtype=torch.int64, device=rows.device), float("-inf"))
    wanted = rows.log_softmax(-1).gather(1, torch.tensor(token_ids, device=rows.device)[:, None]).flatten().tolist()
    return max(abs(final.logprob - logprob) for final, logprob in zip(finals, wanted, strict=True))


@torch.inference_mode()
def _rows(model: Network, token_ids: list[int], *, last: int) -> torch.Tensor:
    """The AR logits [last, V] of the last tokens, from one causal forward."""
    pool = model.new_pool(len(token_ids), max_rows=1, marks=False)
    layout = pool.layout([(pool.open(len(token_ids)), template(len(token_ids), (), 0))])
    return model.logits(model(torch.tensor([token_ids]), layout, pool, None)[0, -last:])
