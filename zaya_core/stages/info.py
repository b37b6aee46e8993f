"""`zaya info`: what a checkpoint is, in either dialect, and where it comes from. It reads headers; weights only for --hash.

A directory that is not a whole checkpoint is an error saying what is wrong with it; what is whole but odd is listed as a problem.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaya_core.errors import CheckpointError
from zaya_core.events import Event, Result
from zaya_core.option import check_options, option

if TYPE_CHECKING:
    from zaya_core.config import ModelConfig
    from zaya_core.io.checkpoint import Checkpoint

EXAMPLE = "zaya info tidar/ --json"


@dataclass(frozen=True)
class InfoConfig:
    """Options of `zaya info`."""

    path: Path = option(help="checkpoint to look at, native or original", argument=True, metavar="DIR")
    hash: bool = option(False, help="read all weights for this checkpoint's own SHA-256")

    def __post_init__(self) -> None:
        check_options(self)


def run(config: InfoConfig) -> Iterator[Event]:
    """One Result: dialect, sizes, block and mask, lineage, and the problems found."""
    from zaya_core.model.load import open_source

    source = open_source(config.path)
    checkpoint, dialect = source.checkpoint, source.dialect
    decisions = list(source.decisions) if dialect == "original" else []
    model, paper = checkpoint.config, checkpoint.certificate() or {}
    values = {"path": str(config.path), "dialect": dialect} | count_parameters(model)
    values |= {
        "context": model.max_position_embeddings,
        "num_hidden_layers": model.num_hidden_layers,
        "block_length": model.tidar.block_length if model.tidar else None,
        "mask_token_id": model.tidar.mask_token_id if model.tidar else None,
        "skip_expert_output": model.skip_expert_output,
        "dtype": str(checkpoint.stored_dtype).removeprefix("torch."),
        "weight_bytes": sum(info.num_bytes for info in checkpoint.tensors.values()),
    }
    sha256 = checkpoint.fingerprint() if config.hash else None
    values["lineage"] = list(_lineage(paper, str(config.path), sha256)) if paper or sha256 else []
    yield Result(values | {"decisions": decisions, "problems": list(_problems(checkpoint))})


def count_parameters(config: "ModelConfig") -> dict[str, int]:
    """Parameters in all, and those that one token's forward touches: one expert a layer, with and without the embedding table."""
    from zaya_core.model.load import meta_model

    parameters = {name: tensor.numel() for name, tensor in meta_model(config).named_parameters()}
    total = sum(parameters.values())
    experts = sum(size for name, size in parameters.items() if ".experts." in name)
    active = total - experts + experts // config.num_experts * config.num_experts_per_tok
    table = parameters["model.embed_tokens.weight"]
    return {
        "num_parameters": total,
        "num_active_parameters": active,
        "num_active_parameters_without_embedding": active - table,
    }


def _lineage(paper: dict[str, Any], path: str, sha256: str | None) -> Iterator[dict[str, Any]]:
    """This checkpoint and its ancestors, youngest first, as their certificates have recorded them."""
    while True:
        yield {"stage": paper.get("stage"), "path": path, "sha256": sha256}
        parent = paper.get("parent")
        if parent is None:
            return
        if not isinstance(parent, dict) or not isinstance(parent.get("certificate") or {}, dict):
            raise CheckpointError(f"zaya.json: the parent of {path} is {parent!r}, expected its path, sha256 and certificate")
        paper, path, sha256 = parent.get("certificate") or {}, parent.get("path"), parent.get("sha256")


def _problems(checkpoint: "Checkpoint") -> Iterator[str]:
    from zaya_core.data.tokenizer import TextTokenizer

    config = checkpoint.config
    if not (checkpoint.path / "tokenizer.json").exists():
        yield "it has no tokenizer.json: text can be neither read nor written"
        return
    num_ids = TextTokenizer(checkpoint.path).num_ids
    if num_ids > config.vocab_size:
        yield f"the tokenizer has {num_ids} ids, the embedding {config.vocab_size} rows"
    for token_id in config.eos_token_ids:
        if token_id >= num_ids:
            yield f"eos_token_id {token_id} is no id of the tokenizer ({num_ids} ids): no text would end"
