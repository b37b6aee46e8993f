"""A measured acceptance histogram out of JSON: `generate --json` lines, their sum, or one object that holds it."""

import json
from pathlib import Path
from typing import Any

from zaya_core.errors import ConfigError


def read_histogram(path: Path) -> list[int]:
    """The sum over all lines of `stats.acceptance_histogram` or `acceptance_histogram`."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"--acceptance {path} is neither a number nor a file of JSON lines: {error}") from error
    found = [histogram for line in lines if (histogram := _of(line)) is not None]
    if not found or len({len(histogram) for histogram in found}) > 1:
        raise ConfigError(
            f"--acceptance {path} has no acceptance_histogram of one length", hint="zaya generate --json --proposals all"
        )
    return [sum(counts) for counts in zip(*found, strict=True)]


def _of(line: Any) -> list[int] | None:
    values = line.get("stats", line) if isinstance(line, dict) else {}
    histogram = values.get("acceptance_histogram") if isinstance(values, dict) else None
    if not isinstance(histogram, list) or not all(isinstance(count, int) and count >= 0 for count in histogram):
        return None
    return histogram
