"""Arithmetic as functions; there is no state."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from minnow.tasks.apis.api import Result, required

_METRES = {"km": 1e3, "m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "nm": 1e-9}
_FACTORS = {
    ("cm", "in"): 0.393701, ("in", "cm"): 2.54, ("m", "ft"): 3.28084, ("ft", "m"): 0.3048, ("m", "yd"): 1.09361,
    ("yd", "m"): 0.9144, ("km", "miles"): 0.621371, ("miles", "km"): 1.60934, ("kg", "lb"): 2.20462,
    ("lb", "kg"): 0.453592,
}  # fmt: skip


class Maths:
    """Numbers are floats throughout, so that none grows without end."""

    def __init__(self, config: Result) -> None: ...

    def logarithm(self, value: float, base: float, precision: int) -> Result:
        """A logarithm, to so many significant digits."""
        return {"result": float(f"{math.log(value) / math.log(base):.{min(precision, 17)}g}")}

    def square_root(self, number: float, precision: int) -> Result:
        """A square root, to so many significant digits."""
        return {"result": float(f"{math.sqrt(number):.{min(precision, 17)}g}")}

    def mean(self, numbers: Sequence[float]) -> Result:
        """The mean of numbers."""
        return {"result": statistics.fmean(numbers)}

    def standard_deviation(self, numbers: Sequence[float]) -> Result:
        """The standard deviation of a whole population."""
        return {"result": statistics.pstdev(map(float, numbers))}

    def si_unit_conversion(self, value: float, unit_in: str, unit_out: str) -> Result:
        """Convert a length between metric units."""
        required({unit_in, unit_out} <= _METRES.keys(), f"{unit_in} to {unit_out} is not supported")
        return {"result": value * _METRES[unit_in] / _METRES[unit_out]}

    def imperial_si_conversion(self, value: float, unit_in: str, unit_out: str) -> Result:
        """Convert between imperial and metric units."""
        if unit_in == unit_out:
            return {"result": value}
        if (unit_in, unit_out) == ("celsius", "fahrenheit"):
            return {"result": value * 1.8 + 32}
        if (unit_in, unit_out) == ("fahrenheit", "celsius"):
            return {"result": (value - 32) / 1.8}
        required((unit_in, unit_out) in _FACTORS, f"{unit_in} to {unit_out} is not supported")
        return {"result": value * _FACTORS[unit_in, unit_out]}

    def add(self, a: float, b: float) -> Result:
        """The sum of two numbers."""
        return {"result": float(a) + float(b)}

    def subtract(self, a: float, b: float) -> Result:
        """The difference of two numbers."""
        return {"result": float(a) - float(b)}

    def multiply(self, a: float, b: float) -> Result:
        """The product of two numbers."""
        return {"result": float(a) * float(b)}

    def divide(self, a: float, b: float) -> Result:
        """The quotient of two numbers."""
        return {"result": float(a) / float(b)}

    def power(self, base: float, exponent: float) -> Result:
        """A number to the power of another."""
        return {"result": math.pow(base, exponent)}

    def absolute_value(self, number: float) -> Result:
        """A number without its sign."""
        return {"result": abs(float(number))}

    def round_number(self, number: float, decimal_places: int = 0) -> Result:
        """A number rounded."""
        return {"result": round(float(number), decimal_places)}

    def percentage(self, part: float, whole: float) -> Result:
        """The share of a part in percent."""
        return {"result": float(part) / float(whole) * 100}

    def min_value(self, numbers: Sequence[float]) -> Result:
        """The smallest of numbers."""
        return {"result": min(map(float, numbers))}

    def max_value(self, numbers: Sequence[float]) -> Result:
        """The largest of numbers."""
        return {"result": max(map(float, numbers))}

    def sum_values(self, numbers: Sequence[float]) -> Result:
        """The sum of numbers."""
        return {"result": math.fsum(numbers)}
