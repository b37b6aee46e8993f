"""One request on its way: what it puts into the next forward, and what it makes of the rows that come back.

First it reads its prompt, in chunks, the last of which carries a masked block; then every forward verifies its draft and proposes
the next one (tidar.md section 3). It knows nothing of the other requests in the same forward but what a shared `watch` has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zaya_core.engine.draft import Draft, Proposals, serving_block, trust_of
from zaya_core.engine.prefix import common_length
from zaya_core.engine.request import Committed, Final, Request
from zaya_core.engine.ways import Watch
from zaya_core.model.pool import MARK, Row
from zaya_core.ops.sampling import NEVER, PLAIN, draw, forbid


@dataclass(frozen=True)
class Share:
    """A request's slots of a forward: clean tokens, then a masked block after each of `levels`. `num_read` AR rows are read."""

    token_ids: list[int]
    levels: tuple[int, ...]
    block_length: int
    num_read: int


class Run:
    """A request, its place in the pool, and its draft once the prompt is read."""

    def __init__(self, request: Request, row: Row, forbidden: Tensor, vocab_size: int, watch: Watch | None = None) -> None:
        self.request, self.how, self.row, self.forbidden = request, request.how, row, forbidden
        self.draft: Draft | None = None
        self.watch = watch
        self.new_ids: list[int] = []
        self._experts: list[Tensor] = []
        sampler, given = self.how.sampler, self.how.draft_temperature
        is_warm = sampler.temperature > 0 and given is not None
        self.draft_sampler = replace(sampler, temperature=given) if is_warm else sampler
        self.is_judged_raw = self.how.verifier.mix_weight == 1 and self.how.constraint is None
        # The laws that judge are the raw probabilities, and nothing but their own tokens' is wanted.
        self.is_plain = self.is_judged_raw and sampler == PLAIN and not self.how.num_top_logprobs
        self.seen = None
        if sampler.repetition_penalty != 1:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=forbidden.device)
            self.seen[request.prompt_ids] = True

    @property
    def proposals(self) -> Proposals:
        """Of the next forward."""
        return self.how.proposals if self.watch is None else Proposals(self.watch.way.proposals)

    @property
    def block_length(self) -> int:
        """Of the next forward."""
        return self.how.block_length if self.watch is None else min(self.watch.way.block, self.how.block_length)

    @property
    def num_unread(self) -> int:
        """Prompt tokens that are not history yet."""
        return max(0, len(self.request.prompt_ids) - self.row.length)

    def history(self) -> list[int]:
        """The tokens that are committed."""
        return [*self.request.prompt_ids, *self.new_ids][: self.row.length]

    def waits_for(self, others: "list[Run]") -> bool:
        """Is one before it about to read what this one, not begun yet, would read too? Then it begins with that a forward later."""
        if self.row.length or self.how.return_experts:
            return False
        mine = self.request.prompt_ids[:-1]
        ahead = others[: others.index(self)]
        return any(common_length(mine, other.request.prompt_ids) >= other.row.length + MARK for other in ahead)

    def share(self, max_chunk: int) -> Share:
        """What goes into the next forward; of an unread prompt at most `max_chunk` tokens."""
        if self.draft is not None:
            remaining = self.how.max_new_tokens - len(self.new_ids)
            # After accepting as many as remain no draft is wanted.
            levels = [level for level in self.proposals.levels(self.draft, self.block_length) if level < remaining]
            return Share(self.draft.token_ids, tuple(levels), self.block_length, len(self.draft))
        chunk = self.request.prompt_ids[self.row.length :][:max_chunk]
        is_last = len(chunk) == self.num_unread
        has_block = is_last and self.block_length > 0 and self.how.max_new_tokens > 1
        return Share(chunk, (len(chunk),) if has_block else (), self.block_length, int(is_last))

    def judged(self, ar_logits: Tensor) -> Tensor:
        """The raw rows [R, V] that judge, of the AR rows that `share` wanted read: the last is never mixed."""
        if self.draft is None or len(self.draft) == 1 or self.how.verifier.mix_weight == 1:
            return ar_logits
        mixed = self.how.verifier.judge(ar_logits[:-1], self.draft.logits)
        return torch.cat([forbid(mixed, self.forbidden), ar_logits[-1:]])  # a weight of 0 times NEVER is no number

    def seen_by_rows(self, num_rows: int) -> Tensor | None:
        """Which ids each row penalises [R, V]: those of the prefix and of d_1..d_j."""
        if self.seen is None:
            return None
        rows = self.seen.repeat(num_rows, 1)
        for place, token_id in enumerate(self.draft.token_ids if self.draft else []):
            rows[place:, token_id] = True
        return rows

    def seen_by_drafts(self, num_rows: int) -> Tensor | None:
        """Which ids mask rows penalise [R, V]."""
        return None if self.seen is None else self.seen.repeat(num_rows, 1)

    def allowed(self, ar_logits: Tensor) -> Tensor:
        """The raw rows [R, V] that judge, with what the constraint forbids after d_1..d_j written out."""
        rows = self.judged(ar_logits)
        if self.how.constraint is None:
            return rows
        ids = self.draft.token_ids[1:] if self.draft else []
        return torch.stack([self._allowed(row, [*self.new_ids, *ids[:place]]) for place, row in enumerate(rows)])

    def conclude(self, drawn: list[int], logprobs: list[float], sampled: list[float], log_p: Tensor | None) -> list[Final]:
        """New final tokens, cut where the text ends, with what the AR rows `log_p` [R, V] and the laws that judge say of them."""
        drawn = self._cut(drawn)
        self.new_ids += drawn
        if self.seen is not None:
            self.seen[drawn] = True
        return [Final(*each) for each in zip(drawn, logprobs, sampled, self._top(log_p, len(logprobs)), strict=False)]

    def finish_reason(self) -> str | None:
        """Has the text ended, and why?"""
        if self.new_ids and self.new_ids[-1] in self.how.end_ids:
            return "stop"
        return "length" if len(self.new_ids) >= self.how.max_new_tokens else None

    def next_masks(self, share: Share, accepted: int) -> slice:
        """The slots of this share whose masks draft what follows the newest token: of the largest level not above `accepted`.

        That block began `accepted` less its level too early, and its next mask stands where the newest token does: skipped.
        """
        index = serving_block(share.levels, accepted)
        if index is None:
            return slice(0, 0)
        skipped = accepted - share.levels[index] + 1
        # Never more than are wanted: a draft past the end would be drawn for nothing.
        limit = min(self.block_length, self.how.max_new_tokens - len(self.new_ids))
        begin = len(share.token_ids) + index * share.block_length + skipped
        return slice(begin, begin + max(0, min(share.block_length - skipped, limit - 1)))

    def propose_bound(self, logits: Tensor) -> None:
        """Draw the next draft from mask rows [R, V] token by token, because what may come depends on what came; ends where the text
        would.
        """
        ids, laws, odds = [self.new_ids[-1]], [], []
        for row in logits:
            if ids[-1] in self.how.end_ids:
                break
            masked = self._allowed(row, [*self.new_ids, *ids[1:]])[None]
            if not bool((masked > NEVER).any()):
                break
            law = self.draft_sampler.law(masked, self.seen_by_drafts(1))
            points = torch.tensor(self.request.chance.points(law), dtype=torch.float64, device=law.device)
            ids.append(int(draw(law, points)))
            laws.append(law)
            odds.append(float(law[0, ids[-1]]))
        if laws:
            logits = logits[: len(laws)]
            trust = trust_of(torch.tensor(ids[1:], device=logits.device), logits).tolist()
            self.draft = Draft(ids, torch.cat(laws), logits, tuple(odds), tuple(trust))

    def keep_experts(self, choices: Tensor) -> None:
        """Of tokens that became history [tokens, L]."""
        self._experts.append(choices)

    def committed(self, accepted: int, finals: list[Final], drafted: tuple[int, ...]) -> Committed:
        """The event of a forward; `drafted` is the draft that it judged."""
        experts, self._experts = torch.cat(self._experts) if self._experts else None, []
        reason = self.finish_reason()
        if experts is not None and reason is not None:
            # Accepted tokens past the text's end are no part of it, and its last token was not read for anything.
            wanted = len(self.request.prompt_ids) + len(self.new_ids) - 1
            experts = experts[: max(0, len(experts) - (self.row.length - wanted))]
        pre_drafted = tuple(self.draft.token_ids[1:]) if self.draft and reason is None else ()
        return Committed(finals, reason, drafted, accepted if drafted else 0, pre_drafted, experts)

    def _cut(self, drawn: list[int]) -> list[int]:
        """The one place that decides where a text ends: at an end id (kept in the ids), or after exactly the limit."""
        drawn = drawn[: self.how.max_new_tokens - len(self.new_ids)]
        for place, token_id in enumerate(drawn, 1):
            if token_id in self.how.end_ids:
                return drawn[:place]
        return drawn

    def _top(self, log_p: Tensor | None, count: int) -> list[tuple[tuple[int, float], ...]]:
        if log_p is None or not self.how.num_top_logprobs:
            return [()] * count
        values, ids = log_p.topk(self.how.num_top_logprobs)
        return [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]

    def _allowed(self, row: Tensor, new_ids: Sequence[int]) -> Tensor:
        assert self.how.constraint is not None
        allowed = self.how.constraint.allowed(new_ids)
        return row if allowed is None else row.masked_fill(~allowed.to(row.device), NEVER)
