"""`zaya convert`: an autoregressive checkpoint to a TiDAR one with the same AR forward, and the proof of that."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zaya_core.errors import CheckpointError, ConfigError, RunError
from zaya_core.events import Event, Note, Result
from zaya_core.option import check_options, option, resolved

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zaya_core.config import ModelConfig
    from zaya_core.data.mask import MaskChoice
    from zaya_core.io.checkpoint import Checkpoint

EXAMPLE = "zaya convert base/ tidar/ --block 16"
TOLERANCE = 1e-5  # largest |delta logit| over largest |logit|, in float32


@dataclass(frozen=True)
class ConvertConfig:
    """Options of `zaya convert`."""

    base: Path = option(help="native ZAYA checkpoint to start from", argument=True)
    out: Path = option(help="directory to write", argument=True)
    block: int = option(16, help="block length to train and draft with", minimum=2)
    mask_token_id: int | None = option(None, help="id of the mask; a reserved one is found by default", minimum=0)
    dtype: Literal["keep", "bfloat16", "float32"] = option("keep", help="dtype of the stored weights")
    overwrite: bool = option(False, help="write into a directory that is not empty")
    dry_run: bool = option(False, help="say what would be written, and write nothing")

    def __post_init__(self) -> None:
        check_options(self)


def run(config: ConvertConfig) -> Iterator[Event]:
    """Write the TiDAR checkpoint; the Result holds the decisions and the parity with the source."""
    from zaya_core.io.checkpoint import Checkpoint, certificate
    from zaya_core.io.files import check_writable, publish, write_json
    from zaya_core.model.parity import compare

    base = Checkpoint.open(config.base)
    if base.config.tidar is not None:
        raise CheckpointError(f"{base.path} is a TiDAR checkpoint already", hint="give its autoregressive base")
    _check_complete(base)
    choice = _choose_mask(config, base)
    new_config = _with_tidar(base.config, choice, config.block)
    check_writable(config.out, overwrite=config.overwrite)
    yield Note(f"mask: id {choice.token_id} ({choice.token}), because {choice.why}")
    values = {"path": str(config.out), "block": config.block, "mask_token_id": choice.token_id, "mask_token": choice.token}
    if config.dry_run:
        yield Result(values | {"dry_run": True, "vocab_size": choice.vocab_size, "num_parameters": base.num_parameters})
        return
    with publish(config.out, overwrite=config.overwrite) as directory:
        dtype = _stored_dtype(config, base)
        _write_tokenizer(base, choice, directory)
        record = _write_weights(base, new_config, choice, dtype, directory)
        parity = compare(base, Checkpoint.open(directory), ignore=choice.token_id)
        if parity["max_delta_logit"] > TOLERANCE * parity["max_logit"] and dtype == base.stored_dtype:
            raise RunError(f"the converted model differs from {base.path}: {parity}", hint="this is a bug; please report it")
        decisions = {"mask": record, "parity": parity}
        paper = certificate("convert", parent=base, options=resolved(config), metrics=parity)
        write_json(directory / "zaya.json", paper | {"decisions": decisions})
    yield Result(values | parity)


def _check_complete(base: "Checkpoint") -> None:
    """Every tensor that the config calls for, and no other."""
    import torch

    from zaya_core.io.checkpoint import check_tensors, stored_tensors
    from zaya_core.model.decoder import Zaya

    with torch.device("meta"):
        check_tensors(stored_tensors(Zaya(base.config)), base.tensors, base.path)


def _choose_mask(config: ConvertConfig, base: "Checkpoint") -> "MaskChoice":
    from zaya_core.data.mask import choose_mask, given_mask
    from zaya_core.data.tokenizer import TextTokenizer

    has_tokenizer = (base.path / "tokenizer.json").exists()
    tokenizer = TextTokenizer(base.path) if has_tokenizer else None
    if config.mask_token_id is not None:
        return given_mask(config.mask_token_id, tokenizer, base.config.vocab_size)
    if tokenizer is None:
        raise ConfigError(f"{base.path} has no tokenizer.json to choose a mask from", hint="give --mask-token-id")
    return choose_mask(tokenizer, base.config.vocab_size)


def _with_tidar(base: "ModelConfig", choice: "MaskChoice", block: int) -> "ModelConfig":
    from zaya_core.config import Tidar

    return base.with_changes(vocab_size=choice.vocab_size, tidar=Tidar(block, choice.token_id))


def _stored_dtype(config: ConvertConfig, base: "Checkpoint") -> "torch.dtype":
    from zaya_core.runtime import DTYPES

    return base.stored_dtype if config.dtype == "keep" else DTYPES[config.dtype]


def _write_tokenizer(base: "Checkpoint", choice: "MaskChoice", directory: Path) -> None:
    from zaya_core.data.tokenizer import TextTokenizer, add_token

    TextTokenizer(base.path).copy_to(directory)
    if choice.is_new:
        add_token(directory, choice.token, choice.token_id)


def _write_weights(
    base: "Checkpoint",
    config: "ModelConfig",
    choice: "MaskChoice",
    dtype: "torch.dtype",
    directory: Path,
) -> dict[str, Any]:
    """Stream the tensors across, the vocabulary's with a new mask row; returns the record of the mask."""
    from zaya_core.io.checkpoint import write_checkpoint
    from zaya_core.io.weights import read_tensor, read_tensors

    name = "model.embed_tokens.weight"
    embedding = read_tensor(base.tensors[name], name)
    rows = [choice.token_id] if choice.token_id < embedding.shape[0] else []
    record = {"token_id": choice.token_id, "token": choice.token, "why": choice.why, "init": "mean of the used rows"}
    record["source_row"] = embedding[rows[0]].float().tolist() if rows else None
    changed = (
        (name, _with_mask_row(name, tensor, base, choice) if name in VOCABULARY_TENSORS else tensor)
        for name, tensor in read_tensors(base.tensors)
    )
    write_checkpoint(directory, config=config, tensors=changed, dtype=dtype, certificate={}, generation=base.generation_config())
    return record


VOCABULARY_TENSORS = ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias")


def _with_mask_row(name: str, tensor: "Tensor", base: "Checkpoint", choice: "MaskChoice") -> "Tensor":
    """Grown to the new vocabulary; the mask's row is the mean of the rows that tokens use (a head's only if it is new)."""
    import torch

    old = tensor.shape[0]
    grown = torch.zeros(choice.vocab_size, *tensor.shape[1:], dtype=tensor.dtype)
    grown[:old] = tensor
    if name == "model.embed_tokens.weight" or choice.token_id >= old:
        used = tensor[: min(old, _num_tokens(base, old))].float()
        grown[choice.token_id] = used.mean(0).to(tensor.dtype)
    return grown


def _num_tokens(base: "Checkpoint", default: int) -> int:
    from zaya_core.data.tokenizer import TextTokenizer

    return TextTokenizer(base.path).num_ids if (base.path / "tokenizer.json").exists() else default
