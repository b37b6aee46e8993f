"""`zaya extend-context`: train a checkpoint on longer rows than it knows, in stages, under a rotary embedding made for them.

The length grows in legs of equal tokens a step; half of the rows can be kept for long documents. What the longer context is
worth is measured on the parent as it was and on the result: loss and acceptance by position, and a needle in a haystack.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from zaya_core.errors import ConfigError
from zaya_core.events import Event, Progress, Result, Warn
from zaya_core.option import option
from zaya_core.stages.training import Rows, TrainConfig, fit_options, run_training

if TYPE_CHECKING:
    from zaya_core.config import ModelConfig
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.train.state import TrainState

EXAMPLE = "zaya extend-context tidar/ long/ --data books/ --context 2048 --rope-theta 5e5 --stages 1k:0.5,2k:0.5 --max-steps 400"
REPORT = "report.json"
NEEDLE_TEXTS = 20  # per length


@dataclass(frozen=True)
class ExtendContextConfig(TrainConfig):
    """Options of `zaya extend-context`."""

    context: int = option(0, help="tokens of context to reach", minimum=0)
    seq_len: int = option(0, help="clean tokens in a row; 0: the context", minimum=0)
    eval_rows: int = option(8, help="rows of held-out documents to measure before, after and at every save", minimum=1)
    rope_theta: float | None = option(None, help="new base of the rotary embedding of layers that see everything", above=0)
    rope_scaling: Literal["none", "yarn"] = option("none", help="stretch the rotary embedding from the parent's context instead")
    stages: str = option("", help="LENGTH:SHARE,...: rows of growing length for shares of the steps, as in 32k:0.3,64k:0.7")
    long_share: float = option(0.5, help="share of rows with only documents of half a row and more", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.context:
            raise ConfigError("--context is missing", hint="for example --context 131072")
        object.__setattr__(self, "seq_len", self.seq_len or self.context)
        if self.seq_len > self.context:
            raise ConfigError(f"--seq-len is {self.seq_len}, expected at most --context {self.context}")
        if self.rope_theta is not None and self.rope_scaling != "none":
            raise ConfigError("--rope-theta and --rope-scaling are two ways to the same end", hint="give one of them")
        _legs(self)


def run(config: ExtendContextConfig) -> Iterator[Event]:
    """Train on whole documents; yields a Metrics event per step and ends with Results: the report, then the checkpoint."""

    def read_rows(parent: "Checkpoint") -> Iterator[Event]:
        from zaya_core.stages.rows import RowPlan, open_rows

        plan = RowPlan(whole=True, long_share=config.long_share, legs=_legs(config))
        return open_rows(config, parent, every_token=True, plan=plan)

    def report(
        state: "TrainState", *, is_before: bool, parent: "Checkpoint", original: "ModelConfig", rows: Rows
    ) -> Iterator[Event]:
        return _report(config, state, parent, original, rows, is_before=is_before)

    yield from run_training(config, "extend-context", read_rows, changed=lambda old: extended(config, old), report=report)


def extended(config: ExtendContextConfig, old: "ModelConfig") -> "ModelConfig":
    """The parent's config for the new context."""
    known = old.max_position_embeddings
    rope = old.rope_parameters["hybrid"]
    if config.rope_theta is not None:
        rope = replace(rope, rope_theta=config.rope_theta)
    elif config.rope_scaling == "yarn":
        if rope.rope_type == "yarn":
            raise ConfigError("--rope-scaling is yarn, and the checkpoint is stretched already", hint="extend its parent")
        original = _trained_length(config, known)
        rope = replace(rope, rope_type="yarn", factor=config.context / original, original_max_position_embeddings=original)
    return old.with_changes(max_position_embeddings=config.context, rope_parameters={**old.rope_parameters, "hybrid": rope})


def _trained_length(config: ExtendContextConfig, known: int) -> int:
    if known >= config.context:
        raise ConfigError(f"--rope-scaling yarn needs a --context above the checkpoint's {known}, got {config.context}")
    return known


def _legs(config: ExtendContextConfig) -> tuple[tuple[int, int], ...]:
    """(first step, row length) of each leg; the lengths grow to --seq-len and divide it, so that every step has as many tokens."""
    if not config.stages:
        return ((0, config.seq_len),)
    try:
        parts = [part.split(":") for part in config.stages.split(",")]
        lengths, shares = [_length(length) for length, _ in parts], [float(share) for _, share in parts]
    except ValueError as error:
        raise ConfigError(f"--stages is {config.stages!r}, expected LENGTH:SHARE,... such as 32k:0.3,128k:0.7") from error
    if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise ConfigError(f"--stages is {config.stages!r}, whose shares add up to {sum(shares):g}, expected 1")
    if lengths != sorted(set(lengths)) or lengths[-1] != config.seq_len or any(config.seq_len % length for length in lengths):
        raise ConfigError(f"--stages is {config.stages!r}, expected growing lengths that divide and end with {config.seq_len}")
    begins = [round(share * config.max_steps) for share in accumulate([0.0, *shares[:-1]])]
    return tuple(zip(begins, lengths, strict=True))


def _length(text: str) -> int:
    return int(text[:-1]) * 1024 if text.lower().endswith("k") else int(text)


def _report(
    config: ExtendContextConfig,
    state: "TrainState",
    parent: "Checkpoint",
    original: "ModelConfig",
    rows: Rows,
    *,
    is_before: bool,
) -> Iterator[Event]:
    """Measure, once before the first step and once after the last, and write OUT/report.json; the second time, show both."""
    from zaya_core.io.files import read_json, write_json

    claimed = original.max_position_embeddings
    if is_before and claimed > config.context:
        yield Warn(f"the checkpoint claims a context of {claimed} already; the result will claim --context {config.context}")
    path = config.out / REPORT
    written = state.ranks.first_says(read_json(path) if path.exists() else {})
    name = "before" if is_before else "after"
    if name not in written:
        decoder, now = state.model.model, state.model.config
        decoder.config = original if is_before else now  # the parent's own rotary embedding
        written[name] = yield from _measured(config, state, parent, rows, name)
        decoder.config = now
        if state.ranks.is_first:
            write_json(path, written)
    if not is_before:
        yield Result({"report": str(path), "table": _table_of(written)})


def _measured(config: ExtendContextConfig, state: "TrainState", parent: "Checkpoint", rows: Rows, name: str) -> Iterator[Event]:
    from zaya_core.data.needle import fits_needle
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.train.loop import evaluate
    from zaya_core.train.needle import needles_found

    assert rows.held_out is not None, "eval_rows is at least 1"
    tokenizer, needle = TextTokenizer(parent.path), {}
    figures = evaluate(state.model, rows.held_out, num_rows=config.eval_rows, options=fit_options(config), ranks=state.ranks)
    halved = [config.seq_len // 2**halvings for halvings in range(3, -1, -1)]
    lengths = [length for length in halved if length % state.ranks.context == 0 and fits_needle(tokenizer, length)]
    for done, length in enumerate(lengths):
        yield Progress(f"needle, {name}", done, len(lengths), "lengths")
        needle[str(length)] = needles_found(state.model, tokenizer, length, num_texts=NEEDLE_TEXTS, ranks=state.ranks)
    return {
        "ar_loss": {str(key): value for key, value in figures["eval_ar_loss_by_position"].items()},
        "acceptance_length": {str(key): value for key, value in figures["eval_acceptance_by_position"].items()},
        "needle": needle,
    }


def _table_of(written: dict[str, Any]) -> list[dict[str, Any]]:
    """The report as a table: one line per figure and bucket."""
    return [
        {"figure": figure, "from": int(start), "before": value, "after": written["after"][figure].get(start)}
        for figure, values in written["before"].items()
        for start, value in values.items()
    ]
