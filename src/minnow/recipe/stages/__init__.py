"""The stage kinds, registered by name when this package is imported."""

from minnow.recipe.stages import alignment, distilling, ladder, measuring, shipping, training

__all__ = ["alignment", "distilling", "ladder", "measuring", "shipping", "training"]
