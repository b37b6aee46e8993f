"""`zaya convert`: a checkpoint of either ZAYA dialect to a TiDAR one with the same AR forward and the proof of that; or back."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zaya_core.errors import CheckpointError, ConfigError, RunError
from zaya_core.events import Event, Note, Progress, Result, Warn
from zaya_core.option import check_options, option, resolved

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zaya_core.config import ModelConfig
    from zaya_core.io.source import Source

EXAMPLE = "zaya convert base/ tidar/ --block 16"
REPORT = "conversion_report.json"
TOLERANCE = 1e-5  # largest |delta logit| over largest |logit|, in float32


@dataclass(frozen=True)
class ConvertConfig:
    """Options of `zaya convert`."""

    base: Path = option(help="ZAYA checkpoint in either on-disk dialect: a directory or a Hugging Face id", argument=True)
    out: Path = option(help="directory to write", argument=True)
    to: Literal["tidar", "native", "hf"] = option("tidar", help="a TiDAR checkpoint, or a plain AR one (alias hf)")
    block: int = option(16, help="block length to train and draft with", minimum=2)
    mask_token_id: int | None = option(None, help="id of the mask; a reserved one is found by default", minimum=0)
    dtype: Literal["keep", "bfloat16", "float32"] = option("keep", help="dtype of the stored weights")
    overwrite: bool = option(False, help="write into a directory that is not empty")
    dry_run: bool = option(False, help="say what would be written, and write nothing")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Plan:
    """What a conversion does: the new configuration, the mask's record, and how each of the vocabulary's tensors changes.

    `mask` is what the certificate records; `undo` is the record of the conversion that is being reversed.
    """

    config: "ModelConfig"
    mask: dict[str, Any] | None
    new_token: tuple[str, int] | None
    undo: dict[str, Any] | None
    num_used: int

    def tensor(self, name: str, tensor: "Tensor") -> "Tensor":
        """The tensor as it is in the result, in the source's dtype."""
        from zaya_core.io.vocabulary import VOCABULARY, with_mask_row, without_mask_row

        if name not in VOCABULARY:
            return tensor
        if self.mask is not None:
            rows = self.config.vocab_size
            return with_mask_row(name, tensor, token_id=self.mask["token_id"], rows=rows, num_used=self.num_used)
        return tensor if self.undo is None else without_mask_row(name, tensor, self.undo)


def run(config: ConvertConfig) -> Iterator[Event]:
    """Write the checkpoint and its conversion_report.json; the Result holds the decisions and the parity with the source."""
    from zaya_core.io.files import check_writable, publish
    from zaya_core.io.hub import checkpoint_path
    from zaya_core.model.load import open_source

    source = open_source(checkpoint_path(config.base))
    _check_template(source)
    plan = _plan_native(source) if config.to != "tidar" else _plan_tidar(config, source)
    check_writable(config.out, overwrite=config.overwrite)
    yield Note(f"{source.dialect} dialect, because {source.decisions[0]}")
    for decision in source.decisions[1:]:
        yield Note(decision)
    values = {"path": str(config.out), "dialect": source.dialect, "num_bytes": source.num_bytes}
    if plan.mask is not None:
        yield Note(f"mask: id {plan.mask['token_id']} ({plan.mask['token']}), because {plan.mask['why']}")
        values |= {"block": config.block, "mask_token_id": plan.mask["token_id"], "mask_token": plan.mask["token"]}
    if config.dry_run:
        yield Result(
            values | {"dry_run": True, "vocab_size": plan.config.vocab_size, "num_parameters": source.checkpoint.num_parameters}
        )
        return
    with publish(config.out, overwrite=config.overwrite) as directory:
        parity = yield from _convert(config, source, plan, directory)
    yield Result(values | parity)


def _convert(config: ConvertConfig, source: "Source", plan: Plan, directory: Path) -> Iterator[Event]:
    """Fill `directory`; returns the parity figures."""
    from zaya_core.io.checkpoint import certificate, write_metadata
    from zaya_core.io.files import write_json
    from zaya_core.model.load import open_source
    from zaya_core.model.parity import compare
    from zaya_core.runtime import DTYPES

    dtype = source.checkpoint.stored_dtype if config.dtype == "keep" else DTYPES[config.dtype]
    generation = source.checkpoint.generation_config()
    with ThreadPoolExecutor(1) as pool:  # hashing the source beside the writing: hashlib releases the interpreter's lock
        paper = pool.submit(certificate, "convert", parent=source.checkpoint, options=resolved(config), metrics={})
        began = time.perf_counter()
        tensors = yield from _write_weights(source, plan, None if config.dtype == "keep" else dtype, directory)
        write_seconds = time.perf_counter() - began
        write_metadata(directory, config=plan.config, dtype=dtype, certificate={}, generation=generation)
        _write_tokenizer(source, plan, directory)
        ignored = (plan.mask or plan.undo or {}).get("token_id")
        yield Note("comparing both forwards, layer by layer")
        parity = compare(source, open_source(directory), ignore=ignored)
        if config.dtype == "keep" and parity["max_delta_logit"] > TOLERANCE * parity["max_logit"]:
            raise RunError(f"the result differs from {source.checkpoint.path}: {parity}", hint="this is a bug; please report it")
        parity |= _transformers_verdict(source, parity)
        if not parity["equal_in_transformers"]:
            yield Warn(f"not equal in transformers: {parity['why_not_equal']}")
        decisions = {"dialect": source.dialect, "source": list(source.decisions), "mask": plan.mask}
        write_json(directory / REPORT, decisions | {"dtype": str(dtype), "parity": parity, "tensors": tensors})
        write_json(directory / "zaya.json", paper.result() | {"decisions": decisions, "metrics": parity})
    return parity | {"write_seconds": write_seconds}


def _plan_tidar(config: ConvertConfig, source: "Source") -> Plan:
    from zaya_core.config import Tidar
    from zaya_core.data.mask import choose_mask, given_mask
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.io.source import SourceReader
    from zaya_core.io.vocabulary import EMBEDDING, mask_record

    path, rows = source.checkpoint.path, source.config.vocab_size
    if source.config.tidar is not None:
        raise CheckpointError(f"{path} is a TiDAR checkpoint already", hint="give its autoregressive base, or --to native")
    tokenizer = TextTokenizer(path) if (path / "tokenizer.json").exists() else None
    if config.mask_token_id is not None:
        choice = given_mask(config.mask_token_id, tokenizer, rows)
    elif tokenizer is None:
        raise ConfigError(f"{path} has no tokenizer.json to choose a mask from", hint="give --mask-token-id")
    else:
        choice = choose_mask(tokenizer, rows)
    with SourceReader(source) as reader:
        record = mask_record(reader.read(EMBEDDING), token_id=choice.token_id)
    record |= {"token": choice.token, "why": choice.why, "init": "mean of the used rows", "is_new_token": choice.is_new}
    new_config = source.config.with_changes(vocab_size=choice.vocab_size, tidar=Tidar(config.block, choice.token_id))
    new_token = (choice.token, choice.token_id) if choice.is_new else None
    return Plan(new_config, record, new_token, None, tokenizer.num_ids if tokenizer else rows)


def _plan_native(source: "Source") -> Plan:
    """Strip what a conversion added; from a plain source only the dialect changes."""
    if source.config.tidar is None:
        return Plan(source.config, None, None, None, source.config.vocab_size)
    undo = _mask_record(source.checkpoint.certificate())
    if undo is None:
        raise CheckpointError(
            f"{source.checkpoint.path} has no record of its conversion in zaya.json", hint="its mask row cannot be given back"
        )
    return Plan(source.config.with_changes(vocab_size=undo["source_rows"], tidar=None), None, None, undo, undo["source_rows"])


def _mask_record(paper: dict[str, Any] | None) -> dict[str, Any] | None:
    """The mask's record from the certificate of the conversion, which may be an ancestor's."""
    while paper is not None:
        if paper.get("stage") == "convert" and (paper.get("decisions") or {}).get("mask"):
            return paper["decisions"]["mask"]
        paper = (paper.get("parent") or {}).get("certificate")
    return None


def _write_weights(source: "Source", plan: Plan, dtype: "torch.dtype | None", directory: Path) -> Iterator[Event]:
    """Stream the tensors across with progress in bytes; returns each one's dtype, shape and SHA-256. No dtype keeps theirs."""
    from zaya_core.io.checkpoint import in_stored_dtype
    from zaya_core.io.source import SourceReader, tensor_sha256
    from zaya_core.io.weights import stream_tensors

    written: dict[str, Any] = {}

    def converted() -> "Iterator[tuple[str, Tensor]]":
        for name in source.native_names():
            tensor = plan.tensor(name, reader.read(name))
            tensor = tensor if dtype is None else in_stored_dtype(name, tensor, dtype)
            written[name] = {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "sha256": tensor_sha256(tensor)}
            yield name, tensor

    with SourceReader(source) as reader:
        for done in stream_tensors(directory, converted()):
            yield Progress("convert", done, max(done, source.num_bytes), "B")
    return written


def _check_template(source: "Source") -> None:
    """A chat template is carried over as it is, unless it calls out."""
    from zaya_core.data.chat import chat_template
    from zaya_core.data.tokenizer import TextTokenizer

    if (source.checkpoint.path / "tokenizer.json").exists():
        chat_template(TextTokenizer(source.checkpoint.path)).check()


def _write_tokenizer(source: "Source", plan: Plan, directory: Path) -> None:
    from zaya_core.data.tokenizer import TextTokenizer, add_token, remove_token

    TextTokenizer(source.checkpoint.path).copy_to(directory)
    if plan.new_token is not None:
        add_token(directory, *plan.new_token)
    if plan.undo is not None and plan.undo["is_new_token"]:
        remove_token(directory, plan.undo["token"])


def _transformers_verdict(source: "Source", parity: dict[str, Any]) -> dict[str, Any]:
    """Does transformers compute the same? It gives zero for the skip expert and resets its bias to -1 (model.md A6, A7)."""
    reasons = []
    if source.config.skip_expert_output != "zero" and parity["num_skip_choices"]:
        reasons.append(f"the skip expert passes its input through, and was chosen {parity['num_skip_choices']} times")
    biases = _skip_biases(source)
    if any(value != -1.0 for value in biases):
        reasons.append(f"transformers resets the skip expert's bias to -1, and the file has {min(biases):.4g} to {max(biases):.4g}")
    return {"equal_in_transformers": not reasons, "why_not_equal": "; ".join(reasons) or None}


def _skip_biases(source: "Source") -> list[float]:
    from zaya_core.io.source import SourceReader

    with SourceReader(source) as reader:
        return [float(reader.read(name)[-1]) for name in source.plan if name.endswith("balancing_biases")]
