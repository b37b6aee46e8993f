"""What a forward finds before and beside its own slots: a decoding pool, or the other ranks' part of its rows."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from zaya_core.layout import Layout
from zaya_core.ops.attention import View


class LayerPast(Protocol):
    """One layer's."""

    def prepend(self, latents: Tensor, values: Tensor, empty: tuple[Tensor, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
        """Raw latents and delayed values of this forward [B, T, C] behind those that `layout.prev` reaches back to.

        `empty` is what stands before a document [B, HISTORY, C].
        """
        ...

    def stage(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[B, G, T, N] of this forward -> all keys and values [B, G, S, N] that `Past.view` looks at."""
        ...


class Past(Protocol):
    """All layers'."""

    layers: Sequence[LayerPast]

    def view(self, layout: Layout, window: int | None) -> View:
        """Who sees whom among the slots of `layout` and everything staged before them."""
        ...
