"""What a request asks for and what it gets: values that stages and servers speak in. Token ids only, neither text nor files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from zaya_core.engine.chance import Chance
from zaya_core.engine.draft import Proposals, Verifier
from zaya_core.engine.ways import Ways
from zaya_core.errors import ConfigError
from zaya_core.ops.sampling import Sampler


class Constraint(Protocol):
    """A grammar: which ids may come next. It masks AR rows and drafts alike, so that the constrained law is kept exactly."""

    def allowed(self, new_ids: Sequence[int]) -> Tensor | None:
        """Bool [V] after these tokens of the completion; None where every id may come, as after its end."""
        ...


@dataclass(frozen=True)
class Decoding:
    """How to decode. `block_length` masks are a block, and as many tokens at most are verified at once: the trained length, or less
    where that pays better; 0 drafts nothing (AR). With `ways` each step has proposals and a block from there, of at most
    `block_length`. `end_ids` end the text; `forbidden` ids are never drawn. Drafts are drawn at
    `draft_temperature` if it is given and the text's is not 0.
    """

    max_new_tokens: int
    sampler: Sampler
    verifier: Verifier = field(default_factory=Verifier)
    proposals: Proposals = field(default_factory=lambda: Proposals(0))
    block_length: int = 0
    ways: Ways | None = None
    end_ids: frozenset[int] = frozenset()
    forbidden: tuple[int, ...] = ()
    draft_temperature: float | None = None
    constraint: Constraint | None = None
    num_top_logprobs: int = 0
    return_experts: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")

    @property
    def max_step_slots(self) -> int:
        """More slots than any forward after the prompt's has: a block after every draft token."""
        return max(1, self.block_length) * (1 + self.block_length)


@dataclass(frozen=True)
class Request:
    """A prompt, how to continue it, and its own source of chance."""

    prompt_ids: list[int]
    how: Decoding
    chance: Chance

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ConfigError("the prompt has no tokens", hint="give some text, or leave out --raw so that BOS is added")

    @property
    def num_slots(self) -> int:
        """Places in the pool that it may come to need: its prompt, its new tokens, and a step's slots past them."""
        return len(self.prompt_ids) + self.how.max_new_tokens + self.how.max_step_slots


@dataclass(frozen=True)
class Final:
    """A token that nothing can retract, with its raw AR log-probability and that under the law that decided it.

    `top_logprobs`: the likeliest ids by the raw AR row, where asked for.
    """

    token_id: int
    logprob: float
    sampled_logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Committed:
    """Tokens made final by one forward, cut at the end of the text; `finish_reason` is "stop", "length", "error" or None.

    `drafted` are d_1..d_n that the forward judged, of which it accepted `num_accepted`; none after a prefill. `pre_drafted` are
    what the next forward will judge after the last final token. `experts` [tokens, L], where asked for: the choices of the tokens
    that became history since the last event, so that all events together hold prompt and text less the last token. `error` is what
    ended this request and no other, where something did: its finish_reason is then "error".
    """

    finals: list[Final]
    finish_reason: str | None
    drafted: tuple[int, ...] = ()
    num_accepted: int = 0
    pre_drafted: tuple[int, ...] = ()
    experts: Tensor | None = None
    error: Exception | None = None
