"""How many experts a forward reads: the expected union over its slots.

Uniform independent routing is the default and the worst case. Slots agree more than that: with `correlation` r each clean slot
repeats another's choice with probability r, and each masked one with `mask_correlation`, because all masks share an embedding.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Routing:
    """`loads`: a list for each layer of the share of slots that each expert gets (the rest skips); none means equal shares."""

    correlation: float = 0.0
    mask_correlation: float = 0.0
    loads: tuple[tuple[float, ...], ...] = ()

    def distinct(self, num_experts: int, clean: float, masks: float = 0.0) -> float:
        """Expected number of experts that so many slots hit, on average over the layers."""
        draws = self.choices(clean, masks)
        layers = self.loads or ((1 / num_experts,) * num_experts,)
        return sum(sum(1 - (1 - share) ** draws for share in layer) for layer in layers) / len(layers)

    def choices(self, clean: float, masks: float) -> float:
        """Independent choices that so many slots amount to; at least one."""
        independent = clean * (1 - self.correlation) + masks * (1 - self.mask_correlation)
        return min(clean + masks, max(1.0, independent))


@dataclass(frozen=True)
class Seen:
    """Of one forward or the mean of several: slots, and the distinct experts that they hit, averaged over the layers."""

    clean: float
    masks: float
    distinct: float


def fitted(num_experts: int, seen: list[Seen], loads: tuple[tuple[float, ...], ...] = ()) -> Routing:
    """The routing under which what was seen is expected, by least squares over a grid of .05 for both correlations."""
    grid = [Routing(clean / 20, masks / 20, loads) for clean in range(20) for masks in range(20)]

    def miss(routing: Routing) -> float:
        return sum((routing.distinct(num_experts, one.clean, one.masks) - one.distinct) ** 2 for one in seen)

    return min(grid, key=miss)
