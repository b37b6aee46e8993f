"""One request after another: the engine with a single row, as a generator of what each forward makes final."""

from collections.abc import Iterator

from zaya_core.engine.batch import Engine, Network
from zaya_core.engine.chance import Chance
from zaya_core.engine.request import Committed, Decoding, Request


def decode(model: Network, prompt_ids: list[int], how: Decoding, chance: Chance) -> Iterator[Committed]:
    """Yield first the token after the prefill, then what each forward commits, until the end of the text or the limit."""
    request = Request(prompt_ids, how, chance)
    engine = Engine(model, num_slots=request.num_slots, max_rows=1)
    engine.add(request)
    while engine.num_rows:
        for committed in engine.step().values():
            if committed.error is not None:
                raise committed.error
            yield committed
