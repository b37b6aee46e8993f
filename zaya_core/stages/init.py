"""`zaya init`: a random base checkpoint from a preset, with a tokenizer trained here or taken from a directory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zaya_core.errors import ConfigError
from zaya_core.events import Event, Note, Progress, Result
from zaya_core.option import check_options, option, resolved

if TYPE_CHECKING:
    from zaya_core.config import ModelConfig

EXAMPLE = "zaya init mini base/ --data stdlib"


@dataclass(frozen=True)
class InitConfig:
    """Options of `zaya init`."""

    preset: str = option(help="tiny, mini, bench, zaya1-8b, zaya1-base or zaya1-74b", argument=True)
    out: Path = option(help="directory to write", argument=True)
    data: tuple[str, ...] = option((), help="text to train the tokenizer on: file, folder or stdlib (default: stdlib)")
    tokenizer: Path | None = option(None, help="take the tokenizer of this directory instead of training one")
    no_tokenizer: bool = option(False, help="write no tokenizer (to test shapes)")
    vocab_size: int | None = option(None, help="rows of the embedding; the preset's by default", minimum=272)
    dtype: Literal["bfloat16", "float32"] = option("bfloat16", help="dtype of the stored weights")
    seed: int = option(0, help="seed of the random weights", minimum=0)
    overwrite: bool = option(False, help="write into a directory that is not empty")
    dry_run: bool = option(False, help="say what would be written, and write nothing")

    def __post_init__(self) -> None:
        check_options(self)
        if self.tokenizer and self.data:
            raise ConfigError("--tokenizer and --data exclude each other: a taken tokenizer is not trained")


def run(config: InitConfig) -> Iterator[Event]:
    """Write the checkpoint; the last event is a Result with its size."""
    from zaya_core.io.checkpoint import certificate, write_metadata
    from zaya_core.io.files import check_writable, publish
    from zaya_core.io.weights import stream_tensors
    from zaya_core.model.init import random_tensors
    from zaya_core.model.load import meta_model
    from zaya_core.runtime import DTYPES

    model_config, dtype = _model_config(config), DTYPES[config.dtype]
    num_parameters = sum(parameter.numel() for parameter in meta_model(model_config).parameters())
    num_bytes = num_parameters * dtype.itemsize
    values = {"path": str(config.out), "preset": config.preset, "num_parameters": num_parameters, "dtype": config.dtype}
    check_writable(config.out, overwrite=config.overwrite)
    if config.dry_run:
        yield Result(values | {"dry_run": True, "weight_bytes": num_bytes})
        return
    with publish(config.out, overwrite=config.overwrite) as directory:
        if not config.no_tokenizer:
            yield from _write_tokenizer(config, model_config.vocab_size, directory)
            model_config = _with_special_ids(model_config, directory)
        for done in stream_tensors(directory, random_tensors(model_config, seed=config.seed, dtype=dtype)):
            yield Progress("init", done, max(done, num_bytes), "B")
        write_metadata(
            directory,
            config=model_config,
            dtype=dtype,
            certificate=certificate("init", parent=None, options=resolved(config), metrics={}),
            generation={"eos_token_id": list(model_config.eos_token_ids), "do_sample": True, "temperature": 1.0},
        )
    yield Result(values)


def _model_config(config: InitConfig) -> "ModelConfig":
    from zaya_core.config import nearest
    from zaya_core.presets import PRESETS

    if config.preset not in PRESETS:
        raise ConfigError(f"preset {config.preset!r} is unknown", hint=nearest(config.preset, list(PRESETS)))
    preset = PRESETS[config.preset]
    return preset if config.vocab_size is None else preset.with_changes(vocab_size=config.vocab_size)


def _with_special_ids(config: "ModelConfig", directory: Path) -> "ModelConfig":
    """The ids that this tokenizer gives to the end, the beginning and the padding: a text must end where its documents did."""
    from zaya_core.data.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(directory)
    return config.with_changes(
        eos_token_id=tokenizer.eos_id,
        bos_token_id=tokenizer.special_id("bos_token"),
        pad_token_id=tokenizer.special_id("pad_token"),
    )


def _write_tokenizer(config: InitConfig, vocab_size: int, directory: Path) -> Iterator[Event]:
    from zaya_core.data.sources import STDLIB, read_documents
    from zaya_core.data.tokenizer import TextTokenizer, train_tokenizer

    if config.tokenizer is not None:
        TextTokenizer(config.tokenizer).copy_to(directory)
        found = TextTokenizer(directory).num_ids
        if found > vocab_size:
            raise ConfigError(f"the tokenizer has {found} ids, expected at most --vocab-size {vocab_size}")
        yield Note(f"tokenizer of {config.tokenizer}, {found} ids")
        return
    sources = config.data or (STDLIB,)
    yield Note(f"training a tokenizer of {vocab_size} ids on {', '.join(sources)}")
    train_tokenizer((text for source in sources for text in read_documents(source)), vocab_size, directory)
