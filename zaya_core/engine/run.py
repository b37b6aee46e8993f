"""One request on its way: what it puts into the next forward, and what it makes of the rows that come back.

First it reads its prompt, in chunks, the last of which carries a masked block; then every forward verifies its draft and proposes
the next one (tidar.md section 3). It knows nothing of the other requests in the same forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zaya_core.engine.draft import Draft, Proposals, serving_block, trust_of, walk
from zaya_core.engine.prefix import common_length
from zaya_core.engine.reading import Reading, on_device
from zaya_core.engine.request import Committed, Final, Request
from zaya_core.engine.ways import Watch
from zaya_core.model.pool import MARK, Row
from zaya_core.ops.sampling import NEVER, log_probabilities


@dataclass(frozen=True)
class Share:
    """A request's slots of a forward: clean tokens, then a masked block after each of `levels`. `num_read` AR rows are read."""

    token_ids: list[int]
    levels: tuple[int, ...]
    block_length: int
    num_read: int


class Run:
    """A request, its place in the pool, and its draft once the prompt is read."""

    def __init__(self, request: Request, row: Row, forbidden: Tensor, vocab_size: int) -> None:
        self.request, self.how, self.row, self.forbidden = request, request.how, row, forbidden
        self.draft: Draft | None = None
        self.proposals, self.block_length = self.how.proposals, self.how.block_length  # of the next forward
        self._watch = Watch(self.how.ways) if self.how.ways else None
        self._take_way()
        self.new_ids: list[int] = []
        self._experts: list[Tensor] = []
        sampler, given = self.how.sampler, self.how.draft_temperature
        is_warm = sampler.temperature > 0 and given is not None
        self.draft_sampler = replace(sampler, temperature=given) if is_warm else sampler
        self.seen = None
        if sampler.repetition_penalty != 1:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=forbidden.device)
            self.seen[request.prompt_ids] = True

    def _take_way(self) -> None:
        if self._watch is not None:
            count, block = self._watch.way
            self.proposals, self.block_length = Proposals(count), min(block, self.how.block_length)

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
        if self.draft is None or self.how.verifier.mix_weight == 1:
            return ar_logits
        mixed = self.how.verifier.judge(ar_logits[:-1], self.draft.logits)
        return torch.cat([mixed, ar_logits[-1:]])

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

    def decide(self, share: Share, ar_logits: Tensor, laws: Tensor) -> Reading[tuple[int, list[Final]]]:
        """How many clean tokens become history, and the new final tokens, from the AR rows and the laws [R, V] that judge.

        The finals are cut where the text ends.
        """
        accepted, law, before = len(share.token_ids), laws, list[int]()
        if self.draft is not None:
            accepted, law = yield from walk(self.draft, laws, self.request.chance)
            before = self.draft.token_ids[1:accepted]
            if self._watch is not None:
                self._watch.saw(len(self.draft), accepted)
                self._take_way()
        # What the rows that led to accepted drafts and to v say of them.
        ids = torch.cat([on_device(before, laws.device), self.request.chance.draw(law)])[:, None]
        log_p, sampled = log_probabilities(ar_logits[: len(ids)], self.forbidden), laws[: len(ids)].gather(1, ids).log()
        numbers = yield torch.cat([ids[-1:].double(), log_p.gather(1, ids).double(), sampled.double()])
        drawn = self._cut([*before, int(numbers[0])])
        told = zip(numbers[1 : 1 + len(ids)], numbers[1 + len(ids) :], self._top(log_p), strict=True)
        finals = [Final(token_id, *each) for token_id, each in zip(drawn, told, strict=False)]
        self.new_ids += drawn
        if self.seen is not None:
            self.seen[drawn] = True
        return accepted, finals

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

    def propose(self, logits: Tensor, laws: Tensor) -> Reading[None]:
        """Draw the next draft from mask rows [R, V] and their laws."""
        newest = self.new_ids[-1]
        if not len(logits):
            self.draft = Draft([newest], laws, logits)
        elif self.how.constraint is None:
            ids = self.request.chance.draw(laws)
            self.draft = yield from self._drafted(newest, ids, laws, logits)
        else:
            ids, laws = self._constrained(newest, logits)
            self.draft = yield from self._drafted(newest, ids, laws, logits[: len(ids)])

    def _drafted(self, newest: int, ids: Tensor, laws: Tensor, logits: Tensor) -> Reading[Draft]:
        """A draft of `newest` and ids [R] on the device."""
        parts = [ids.double(), trust_of(ids, logits).double()] if self.proposals.looks else [ids]
        numbers = yield torch.cat(parts)
        return Draft([newest, *map(int, numbers[: len(ids)])], laws, logits, tuple(numbers[len(ids) :]))

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

    def _top(self, log_p: Tensor) -> list[tuple[tuple[int, float], ...]]:
        count = self.how.num_top_logprobs
        if not count:
            return [()] * len(log_p)
        values, ids = log_p.topk(count)
        return [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]

    def _allowed(self, row: Tensor, new_ids: Sequence[int]) -> Tensor:
        assert self.how.constraint is not None
        allowed = self.how.constraint.allowed(new_ids)
        return row if allowed is None else row.masked_fill(~allowed.to(row.device), NEVER)

    def _constrained(self, newest: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [R] and their laws [R, V], in turn, because what may come depends on what came; ends where the text would."""
        ids, laws = [newest], []
        for row in logits:
            if ids[-1] in self.how.end_ids:
                break
            masked = self._allowed(row, [*self.new_ids, *ids[1:]])[None]
            if not bool((masked.index_fill(-1, self.forbidden, NEVER) > NEVER).any()):
                break
            laws.append(self.draft_sampler.law(masked, self.forbidden, self.seen_by_drafts(1)))
            ids += self.request.chance.draw(laws[-1]).tolist()
        return on_device(ids[1:], logits.device), torch.cat(laws) if laws else logits[:0]
