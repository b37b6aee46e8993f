"""How many experts a forward reads: the expected union over its slots.

Uniform independent routing is the default and the worst case. Slots of one text agree more than that: with `correlation` r each
slot repeats another's choice with probability r, so that n slots make 1 + (n - 1)(1 - r) independent choices.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Routing:
    """`loads`: a list for each layer of the share of slots that each expert gets (the rest skips); none means equal shares."""

    correlation: float = 0.0
    loads: tuple[tuple[float, ...], ...] = ()

    def distinct(self, num_experts: int, num_slots: float) -> float:
        """Expected number of experts that `num_slots` slots hit, on average over the layers."""
        draws = self.choices(num_slots)
        layers = self.loads or ((1 / num_experts,) * num_experts,)
        return sum(sum(1 - (1 - share) ** draws for share in layer) for layer in layers) / len(layers)

    def choices(self, num_slots: float) -> float:
        """Independent choices that so many slots amount to."""
        return 1 + (num_slots - 1) * (1 - self.correlation)


def fitted_correlation(num_experts: int, seen: list[tuple[int, float]], loads: tuple[tuple[float, ...], ...]) -> float:
    """The correlation under which (slots, distinct experts) as measured are expected, by least squares over a grid of 0.01."""

    def miss(percent: int) -> float:
        routing = Routing(percent / 100, loads)
        return sum((routing.distinct(num_experts, slots) - distinct) ** 2 for slots, distinct in seen)

    return min(range(100), key=miss) / 100
