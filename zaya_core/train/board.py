"""Figures for TensorBoard, where it is asked for and installed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zaya_core.errors import ConfigError


@contextmanager
def board(kind: str, out: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that takes each step's figures; `none` takes them nowhere."""
    if kind == "none":
        yield lambda figures: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("--report-to tensorboard needs tensorboard", hint="pip install 'zaya[tensorboard]'") from error

    def show(figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, figures["step"])

    with SummaryWriter(out / "tensorboard") as writer:
        yield show
