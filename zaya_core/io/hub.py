"""A checkpoint by directory or by Hugging Face id; huggingface_hub fetches, and its variables (HF_HOME, HF_HUB_OFFLINE) hold."""

import re
from pathlib import Path

from zaya_core.errors import CheckpointError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Weights as safetensors only, and JSON: nothing that could run code is even fetched.
PATTERNS = ["*.safetensors", "*.json", "*.jinja"]


def checkpoint_path(name: Path) -> Path:
    """`name` itself if it exists, else the local snapshot of the hub's repository of that id; CheckpointError if it has none."""
    if name.suffix == ".partial":
        raise CheckpointError(f"{name} is what an interrupted run left behind", hint="rerun it; it is cleared then")
    if name.exists() or not HUB_ID.fullmatch(str(name)):
        return name
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), allow_patterns=PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        hint = "check the spelling, the network, or HF_HUB_OFFLINE"
        raise CheckpointError(f"{name} is no directory, and cannot be had from the hub: {_first_line(error)}", hint=hint) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
