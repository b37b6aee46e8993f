"""`--data` into rows: read, tokenise once, cache, hold some out, pack, mix."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zaya_core.errors import ConfigError, DataError
from zaya_core.events import Event, Note, Progress, Warn
from zaya_core.stages.training import Rows, TrainConfig

if TYPE_CHECKING:
    from zaya_core.data.documents import Documents
    from zaya_core.io.checkpoint import Checkpoint

HELD_OUT_EVERY = 50  # one document in so many, where --eval-rows asks for any
SECONDS_BETWEEN = 0.5  # signs of life


@dataclass(frozen=True)
class RowPlan:
    """How documents become rows: packed whole, a share of rows of long documents alone, (first step, length) of each leg."""

    whole: bool = False
    long_share: float = 0.0
    legs: tuple[tuple[int, int], ...] = ()


def open_rows(config: TrainConfig, parent: "Checkpoint", *, every_token: bool, plan: RowPlan = RowPlan()) -> Iterator[Event]:
    """Say what the data is and what is odd about it; returns Rows."""
    from zaya_core.data.documents import joined
    from zaya_core.data.packing import Leg, LeggedRows, MixedRows, PackedRows
    from zaya_core.data.sources import weighted

    sources = [weighted(source) for source in config.data]
    shares = [weight for _, weight in sources if weight is not None]
    if shares and len(shares) < len(sources):
        raise ConfigError(f"{len(shares)} of {len(sources)} --data have a weight", hint="give all of them one, or none")
    block = parent.config.tidar.block_length if parent.config.tidar else 16
    is_whole = plan.whole or not every_token
    kinds, said, train, held_out = set(), [], [], []
    for source, _ in sources:
        documents, found = yield from _documents(
            config, parent, source, every_token=every_token, is_whole=is_whole, num_tail=block - 1
        )
        kinds |= set(found["kinds"])
        said += [Note(f"{source}: rows of {', '.join(found['kinds'])}"), *(Warn(f"{source}: {line}") for line in found["findings"])]
        kept, held = documents.split(HELD_OUT_EVERY) if config.eval_rows else (documents, None)
        train.append(kept)
        held_out.append(held)

    def packed(documents: "Documents", seq_len: int, seed: int) -> PackedRows:
        pieces = documents.pieces(seq_len) if plan.whole and every_token else documents
        return PackedRows(pieces, seq_len=seq_len, block_length=block, seed=seed, whole=is_whole)

    def rows_of(seq_len: int) -> PackedRows | MixedRows:
        parts, weights = (train, shares) if shares else ([joined(train)], [1.0])
        if plan.long_share:
            parts = [some for part in parts for some in (part, _long(part, seq_len))]
            weights = [w * share for w in weights for share in (1 - plan.long_share, plan.long_share)]
        if len(parts) == 1:
            return packed(parts[0], seq_len, config.seed)
        return MixedRows([packed(documents, seq_len, config.seed) for documents in parts], weights, seed=config.seed)

    legs = [Leg(rows_of(length), first, config.seq_len // length) for first, length in plan.legs or ((0, config.seq_len),)]
    rows = legs[0].rows if len(legs) == 1 else LeggedRows(legs)
    yield from said
    measured = packed(joined(held_out), config.seq_len, 0) if config.eval_rows else None
    return Rows(rows, measured, {"data_sha256": rows.sha256(), "chat": "messages" in kinds})


def _long(documents: "Documents", seq_len: int) -> "Documents":
    """Those that fill at least half a row: what they say far apart is what a longer context is for."""
    chosen = documents.lengths >= seq_len // 2
    if not chosen.any():
        raise DataError(
            f"no document fills half a row of {seq_len} tokens; the longest has {int(documents.lengths.max(initial=0))}",
            hint="give longer documents, or --long-share 0",
        )
    return documents.take(chosen)


def _documents(
    config: TrainConfig, parent: "Checkpoint", source: str, *, every_token: bool, is_whole: bool, num_tail: int
) -> Iterator[Event]:
    """The tokenised documents of one source, from the cache where they are there; returns them and what was found in them."""
    from zaya_core.data.cache import cache_directory, open_documents, write_documents
    from zaya_core.data.chat import chat_template
    from zaya_core.data.examples import Examiner
    from zaya_core.data.sources import HUB_ID, read_rows, source_files
    from zaya_core.data.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(parent.path)
    if tokenizer.num_ids > parent.config.vocab_size:
        raise ConfigError(f"the tokenizer has {tokenizer.num_ids} ids, the embedding {parent.config.vocab_size} rows")
    template = chat_template(tokenizer)
    mask = parent.config.tidar and tokenizer.backend.id_to_token(parent.config.tidar.mask_token_id)
    is_streamed = HUB_ID.fullmatch(source) is not None and source_files(source) is None
    wanted = config.max_steps * config.batch_size * config.gradient_accumulation_steps * config.seq_len
    limit = wanted if is_streamed else None
    longest = config.seq_len if is_whole else None
    rules = {"every_token": every_token, "num_tail": num_tail, "max_length": longest, "mask": mask}
    directory = cache_directory(source, tokenizer, template.source, rules | {"limit": limit})
    found = open_documents(directory)
    if found is None:
        examiner = Examiner(tokenizer, template, every_token, num_tail, longest, mask)
        examples = examiner.examples(read_rows(source))
        shown = time.monotonic()
        for done in write_documents(directory, examples, examiner.found, limit=limit):
            if time.monotonic() - shown > SECONDS_BETWEEN:
                shown = time.monotonic()
                yield Progress(f"tokenising {source}", done, max(done, limit or 0), "tokens")
        found = open_documents(directory)
    assert found is not None, directory
    documents, meta = found
    if not len(documents.lengths):
        raise DataError(f"--data {source} holds no text" if every_token else f"--data {source} holds no example to train on")
    return documents, meta
