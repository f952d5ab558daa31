"""The stage kinds, registered by name when this package is imported."""

from minnow.recipe.stages import alignment, measuring, shipping, training

__all__ = ["alignment", "measuring", "shipping", "training"]
