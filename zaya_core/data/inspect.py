"""Rows as the model will see them, for people: which tokens carry a loss, where documents and mask blocks begin."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zaya_core.data.packing import PADDING, Rows
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.events import Event, Result

if TYPE_CHECKING:
    from zaya_core.io.checkpoint import Checkpoint


def inspected(rows: Rows, parent: "Checkpoint", num_rows: int) -> Iterator[Event]:
    """One Result a row: its documents, each with `first`, the position of its first block, and its tokens.

    A token is [id, text, loss weight, does a mask block begin here].
    """
    tokenizer = TextTokenizer(parent.path)
    length = parent.config.tidar.block_length if parent.config.tidar else 0
    for index in range(num_rows):
        ids, document, position, first, weight = (part.tolist() for part in rows.row(index))
        documents: list[dict[str, Any]] = []
        for slot, number in enumerate(document):
            if number == PADDING:
                break
            if number == len(documents):
                documents.append({"first": first[slot], "tokens": []})
            since = position[slot] - first[slot]
            begins = bool(length) and since >= 0 and since % length == 0
            documents[number]["tokens"].append([ids[slot], tokenizer.backend.decode([ids[slot]], False), weight[slot], begins])
        yield Result({"row": index, "num_padding": document.count(PADDING), "documents": documents})
