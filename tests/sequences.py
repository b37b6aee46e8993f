"""One sequence in a pool of its own, forward by forward: how the tests drive a network the way the engine does."""

import torch

from zaya_core.layout import template


class Sequence:
    """A row of `network` (plain or laid out for serving); `step` stages, `commit` makes history."""

    def __init__(self, network, prompt=None, capacity=200) -> None:
        self.network = network
        self.pool = network.new_pool(capacity)
        self.row = self.pool.open(capacity)
        if prompt is not None and prompt.shape[1]:
            self.step(prompt, prompt.shape[1])
            self.commit(prompt.shape[1])

    def step(self, slots: torch.Tensor, num_clean: int, levels=(), block_length=0) -> torch.Tensor:
        """Token ids [1, T] -> hidden [1, T, D]."""
        layout = self.pool.layout([(self.row, template(num_clean, tuple(levels), block_length))])
        return self.network(slots, layout, self.pool)

    def commit(self, count: int) -> None:
        self.pool.commit([count])
