"""Scaling laws: read runs, fit a law, plan a model's size and tokens."""

from minnow.scaling.fit import Fit, fit_law
from minnow.scaling.laws import EPOCH, HOFFMANN, Law, T2Law
from minnow.scaling.plan import Budget, Choice, plan
from minnow.scaling.points import Points, read_points

__all__ = ["EPOCH", "HOFFMANN", "Budget", "Choice", "Fit", "Law", "Points", "T2Law", "fit_law", "plan", "read_points"]
