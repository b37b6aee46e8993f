"""One source for every option: a field of a stage's frozen dataclass is also its command-line flag and its YAML key.

`option` carries the help and the bounds; `check_options`, called from `__post_init__`, holds the bounds for every caller.
"""

import types
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from zaya_core.errors import ConfigError


def option(
    default: Any = MISSING,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    argument: bool = False,
    short: str | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field with its help. `minimum`/`maximum` are inclusive, `above` is not; `argument` makes it positional."""
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "argument": argument,
        "short": short,
        "metavar": metavar,
    }
    return field(default=default, metadata=metadata)


def option_type(owner: type, name: str) -> tuple[Any, bool]:
    """The type of a field and whether it may be None: `int | None` -> (int, True)."""
    hint = get_type_hints(owner)[name]
    if get_origin(hint) in (Union, types.UnionType):
        inner = [part for part in get_args(hint) if part is not type(None)]
        assert len(inner) == 1, f"{owner.__name__}.{name}: options have one type, got {hint}"
        return inner[0], True
    return hint, False


def check_options(config: Any) -> None:
    """Raise ConfigError for the first field outside its choices or bounds, naming the flag, the value and what was expected."""
    for item in fields(config):
        if "help" not in item.metadata:
            continue
        value, (kind, _) = getattr(config, item.name), option_type(type(config), item.name)
        if value is None:
            continue
        flag = flag_name(item.name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise ConfigError(f"{flag} is {value!r}, expected one of {', '.join(map(str, get_args(kind)))}")
        if kind in (int, float):
            _check_bounds(flag, value, item.metadata)


def flag_name(name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def resolved(config: Any) -> dict[str, Any]:
    """The options as JSON-able values, for the birth certificate and for YAML."""
    return {item.name: _plain(getattr(config, item.name)) for item in fields(config)}


def _check_bounds(flag: str, value: float, metadata: Any) -> None:
    minimum, maximum, above = metadata["minimum"], metadata["maximum"], metadata["above"]
    if value != value or (minimum is not None and value < minimum):
        raise ConfigError(f"{flag} is {value}, expected at least {minimum}")
    if maximum is not None and value > maximum:
        raise ConfigError(f"{flag} is {value}, expected at most {maximum}")
    if above is not None and value <= above:
        raise ConfigError(f"{flag} is {value}, expected more than {above}")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
