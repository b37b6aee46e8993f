"""Decoding as a generator: one forward a step verifies the draft and proposes the next one (tidar.md section 3).

`ar` is the same loop with no proposals: one token a forward. Nothing here knows text; an EOS or the token limit ends it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zaya_core.engine.chance import Chance
from zaya_core.engine.draft import Draft, Final, Proposals, Verifier, next_draft, serving_block, verify
from zaya_core.errors import ConfigError
from zaya_core.layout import Layout, causal, step
from zaya_core.model.cache import Cache
from zaya_core.model.decoder import Zaya
from zaya_core.ops.sampling import Sampler, log_probability

PREFILL_CHUNK = 1024  # slots: bounds the attention mask of a long prompt


@dataclass(frozen=True)
class Decoding:
    """How to decode. `block_length` is the trained one, 0 drafts nothing (AR); at most `verify_length` tokens are verified at once,
    from whole blocks all the same (tidar.md section 3). `end_ids` end the text; `forbidden` ids are never drawn.
    """

    max_new_tokens: int
    sampler: Sampler
    verifier: Verifier = field(default_factory=Verifier)
    proposals: Proposals = field(default_factory=lambda: Proposals(0))
    block_length: int = 0
    verify_length: int = 1
    end_ids: frozenset[int] = frozenset()
    forbidden: tuple[int, ...] = ()
    return_experts: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")

    @property
    def max_step_slots(self) -> int:
        """Slots of the widest forward of a request."""
        count = self.verify_length if self.proposals.count is None else min(self.proposals.count, self.verify_length)
        return self.verify_length + count * self.block_length


@dataclass(frozen=True)
class Committed:
    """Tokens made final by one forward, cut at the end of the text; `finish_reason` is "stop", "length" or None.

    `drafted` are d_1..d_n that the forward judged, of which it accepted `num_accepted`; none after a prefill. `pre_drafted` are what
    the next forward will judge after the last final token. `experts` [tokens that became history, L]: their choices, where asked for.
    """

    finals: list[Final]
    finish_reason: str | None
    drafted: tuple[int, ...] = ()
    num_accepted: int = 0
    pre_drafted: tuple[int, ...] = ()
    experts: Tensor | None = None


@dataclass(frozen=True)
class Proposal:
    """Mask logits [K, V] of the block that drafts next, which began `shift` positions too early; [0, V] drafts nothing."""

    shift: int
    logits: Tensor


@torch.inference_mode()
def decode(model: Zaya, prompt_ids: list[int], how: Decoding, chance: Chance) -> Iterator[Committed]:
    """Yield first the token after the prefill, then what each forward commits, until the end of the text or the limit."""
    if not prompt_ids:
        raise ConfigError("the prompt has no tokens", hint="give some text, or leave out --raw so that BOS is added")
    forbidden = torch.tensor(how.forbidden, dtype=torch.int64, device=model.device)
    cache = model.new_cache(1)
    finals, proposal = _prefill(model, cache, prompt_ids, how, forbidden, chance)
    remaining = how.max_new_tokens
    while True:
        committed = _cut(finals, remaining, how)
        remaining -= len(committed.finals)
        yield committed
        if committed.finish_reason is not None:
            return
        # Only now, and never more than are wanted: a draft past the end would be drawn for nothing.
        draft = next_draft(
            finals[-1].token_id,
            proposal.shift,
            proposal.logits,
            limit=min(how.verify_length, remaining),
            sampler=how.sampler,
            forbidden=forbidden,
            chance=chance,
        )
        finals, proposal = _step(model, cache, draft, how, forbidden, chance)


def _prefill(
    model: Zaya, cache: Cache, prompt_ids: list[int], how: Decoding, forbidden: Tensor, chance: Chance
) -> tuple[list[Final], Proposal]:
    """The prompt causally, in chunks; the last one carries a masked block, whose first mask is unused."""
    for begin in range(0, len(prompt_ids), PREFILL_CHUNK):
        chunk = prompt_ids[begin : begin + PREFILL_CHUNK]
        is_last = begin + PREFILL_CHUNK >= len(prompt_ids)
        block = how.block_length if is_last else 0
        masks = [model.config.tidar.mask_token_id] * block if block else []
        hidden = _forward(model, cache, [*chunk, *masks], causal(cache.lengths, len(chunk), block))
        cache.commit(len(chunk))
    rows = model.logits(hidden[0, len(chunk) - 1 :])
    law = how.sampler.law(rows[:1], forbidden)
    token_id = chance.draw(law)[0]
    first = Final(token_id, log_probability(rows[0], forbidden, token_id), float(law[0, token_id].log()))
    return [first], Proposal(0, rows[1:])


def _step(
    model: Zaya, cache: Cache, draft: Draft, how: Decoding, forbidden: Tensor, chance: Chance
) -> tuple[list[Final], Proposal]:
    """One forward: verify `draft`, commit what was accepted, propose the next."""
    n, length = len(draft), how.block_length
    levels = how.proposals.levels(draft, length)
    masks = [model.config.tidar.mask_token_id] * (len(levels) * length) if levels else []
    hidden = _forward(model, cache, [*draft.token_ids, *masks], step(cache.lengths, n, levels, length))
    ar_logits = model.logits(hidden[0, :n])
    verdict = verify(draft, ar_logits, sampler=how.sampler, verifier=how.verifier, forbidden=forbidden, chance=chance)
    cache.commit(verdict.accepted)
    block = serving_block(levels, verdict.accepted)
    if block is None:
        return verdict.finals, Proposal(0, ar_logits[:0])
    # Only the block that will be used is projected to the vocabulary.
    begin = n + block * length
    logits = model.logits(hidden[0, begin : begin + length])
    return verdict.finals, Proposal(verdict.accepted - levels[block], logits)


def _forward(model: Zaya, cache: Cache, token_ids: list[int], layout: Layout) -> Tensor:
    """One row of token ids -> hidden [1, T, D]."""
    return model(torch.tensor([token_ids], dtype=torch.int64, device=model.device), layout, cache)


def _cut(finals: list[Final], limit: int, how: Decoding) -> Committed:
    """The one place that decides where a text ends: at an end id (kept in the ids), or after exactly `limit` tokens."""
    for place, final in enumerate(finals[:limit], 1):
        if final.token_id in how.end_ids:
            return Committed(finals[:place], "stop")
    return Committed(finals[:limit], "length" if len(finals) >= limit else None)
