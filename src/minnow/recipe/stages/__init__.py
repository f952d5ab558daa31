"""The stage kinds, registered by name when this package is imported."""

from minnow.recipe.stages import (  # noqa: F401
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
