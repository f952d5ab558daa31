"""The stage kinds, registered by name when this package is imported."""

from minnow.recipe.stages import (
    alignment,
    chats,
    distilling,
    given,
    ladder,
    measuring,
    merging,
    on_policy,
    pairing,
    quantising,
    searching,
    shipping,
    training,
)

__all__ = [
    "alignment",
    "chats",
    "distilling",
    "given",
    "ladder",
    "measuring",
    "merging",
    "on_policy",
    "pairing",
    "quantising",
    "searching",
    "shipping",
    "training",
]
