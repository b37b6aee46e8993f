"""`--proposals auto` with a settings file: a request's block and proposals from its own size, fixed before it starts.

Nothing else is looked at, so that a seeded request decodes the same whatever runs beside it (tidar.md section 3).
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zaya_core.engine.request import Decoding
    from zaya_core.settings import Settings


def opened_settings(path: Path | None, how: "Decoding") -> "Settings | None":
    """The file of --settings for the model that `how` decodes; None without one, and for the AR sampler, which proposes nothing."""
    from zaya_core.settings import read_settings

    return None if path is None or not how.block_length else read_settings(path, block_length=how.block_length)


def tuned(how: "Decoding", settings: "Settings | None", *, batch: int, num_prompt_tokens: int) -> "Decoding":
    """`how` with the setting of the nearest cell; where that is plain AR decoding, nothing is drafted.

    Never verifies more than `how` does: --block is a limit.
    """
    from zaya_core.engine.draft import Proposals

    if settings is None:
        return how
    cell = settings.choose(batch, num_prompt_tokens + how.max_new_tokens)
    if cell.proposals == 0:
        return replace(how, proposals=Proposals(0), block_length=0, verify_length=1)
    return replace(how, proposals=Proposals(cell.proposals), verify_length=min(cell.block, how.verify_length))
