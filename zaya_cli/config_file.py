"""`--config FILE.yaml`: which keys a command's file may hold, and which YAML types each key takes.

An unknown key or a wrong type is a ConfigError. Bounds and choices are not checked here: the dataclass does that.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from zaya_core.config import nearest
from zaya_core.errors import ConfigError
from zaya_core.option import option_type

EXPECTED = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "true or false"}


def read_config_file(path: Path, config_class: type) -> dict[str, Any]:
    """The options in the file, by field name. Keys may be spelled with dashes or underscores."""
    names = [item.name for item in fields(config_class) if "help" in item.metadata]
    options = {}
    for key, raw in _load(path).items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise ConfigError(f"{path}: unknown key {key!r}", hint=nearest(name, names))
        options[name] = _value(f"{path}: {key}", raw, config_class, name)
    return options


def _load(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, expected `key: value` lines")
    return content


def _value(place: str, raw: Any, config_class: type, name: str) -> Any:
    kind, is_optional = option_type(config_class, name)
    if raw is None and is_optional:
        return None
    try:
        return _tuple(raw) if get_origin(kind) is tuple else _scalar(raw, kind)
    except (TypeError, ValueError):
        raise ConfigError(f"{place} is {raw!r}, expected {expected(kind)}") from None


def expected(kind: Any) -> str:
    """What a value of this type looks like, in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return "a list of texts" if get_origin(kind) is tuple else EXPECTED[kind]


def _tuple(raw: Any) -> tuple[str, ...]:
    return tuple(_scalar(part, str) for part in (raw if isinstance(raw, list) else [raw]))


def _scalar(raw: Any, kind: Any) -> Any:
    """`raw` as `kind`; TypeError or ValueError where it is something else."""
    is_whole = isinstance(raw, int) and not isinstance(raw, bool)
    if kind in (str, Path) and (is_whole or isinstance(raw, str)):
        return kind(str(raw))  # `proposals: 8` is text that YAML takes for a number
    if kind is float and (is_whole or isinstance(raw, (float, str))):
        return float(raw)  # YAML 1.1 takes `1e-4`, without a dot, for text
    if (kind is int and is_whole) or (kind is bool and isinstance(raw, bool)):
        return raw
    if get_origin(kind) is Literal and (is_whole or isinstance(raw, str)):
        return raw
    raise TypeError
