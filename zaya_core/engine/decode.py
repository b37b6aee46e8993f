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

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")


@dataclass(frozen=True)
class Committed:
    """Tokens made final by one forward, cut at the end of the text; `finish_reason` is "stop", "length" or None."""

    finals: list[Final]
    finish_reason: str | None


@torch.inference_mode()
def decode(model: Zaya, prompt_ids: list[int], how: Decoding, chance: Chance) -> Iterator[Committed]:
    """Yield first the token after the prefill, then what each forward commits, until the end of the text or the limit."""
    if not prompt_ids:
        raise ConfigError("the prompt has no tokens", hint="give some text, or leave out --raw so that BOS is added")
    forbidden = torch.tensor(how.forbidden, dtype=torch.int64, device=model.device)
    cache = model.new_cache(1)
    limit = how.max_new_tokens
    draft, first = _prefill(model, cache, prompt_ids, how, forbidden, chance)
    committed = _cut([first], limit, how)
    while True:
        limit -= len(committed.finals)
        yield committed
        if committed.finish_reason is not None:
            return
        draft, finals = _step(model, cache, draft, how, forbidden, chance)
        committed = _cut(finals, limit, how)


def _prefill(
    model: Zaya, cache: Cache, prompt_ids: list[int], how: Decoding, forbidden: Tensor, chance: Chance
) -> tuple[Draft, Final]:
    """The prompt causally, in chunks; with the last one a masked block, whose first mask is unused, gives the first draft."""
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
    return next_draft(
        token_id, 0, rows[1:], limit=how.verify_length, sampler=how.sampler, forbidden=forbidden, chance=chance
    ), first


def _step(model: Zaya, cache: Cache, draft: Draft, how: Decoding, forbidden: Tensor, chance: Chance) -> tuple[Draft, list[Final]]:
    """One forward: verify `draft`, commit what was accepted, draft anew."""
    n, length = len(draft), how.block_length
    levels = how.proposals.levels(draft, length)
    masks = [model.config.tidar.mask_token_id] * (len(levels) * length) if levels else []
    hidden = _forward(model, cache, [*draft.token_ids, *masks], step(cache.lengths, n, levels, length))
    ar_logits = model.logits(hidden[0, :n])
    verdict = verify(draft, ar_logits, sampler=how.sampler, verifier=how.verifier, forbidden=forbidden, chance=chance)
    cache.commit(verdict.accepted)
    first, block = verdict.finals[-1].token_id, serving_block(levels, verdict.accepted)
    if block is None:
        shift, block_logits = 0, ar_logits[:0]
    else:
        # Only the block that will be used is projected to the vocabulary.
        begin = n + block * length
        shift, block_logits = verdict.accepted - levels[block], model.logits(hidden[0, begin : begin + length])
    draft = next_draft(first, shift, block_logits, limit=how.verify_length, sampler=how.sampler, forbidden=forbidden, chance=chance)
    return draft, verdict.finals


def _forward(model: Zaya, cache: Cache, token_ids: list[int], layout: Layout) -> Tensor:
    """One row of token ids -> hidden [1, T, D]."""
    return model(torch.tensor([token_ids], dtype=torch.int64, device=model.device), layout, cache)


def _cut(finals: list[Final], limit: int, how: Decoding) -> Committed:
    """The one place that decides where a text ends: at an end id (kept in the ids), or after exactly `limit` tokens."""
    for place, final in enumerate(finals[:limit], 1):
        if final.token_id in how.end_ids:
            return Committed(finals[:place], "stop")
    return Committed(finals[:limit], "length" if len(finals) >= limit else None)
