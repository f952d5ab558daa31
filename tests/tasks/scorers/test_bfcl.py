"""BFCL's AST matching on cases worked out by hand from its ``ast_checker.py``."""

from __future__ import annotations

from typing import Any

import pytest

from minnow.data.calls import Call
from minnow.tasks.scorers.bfcl import fault, standard

KINDS: dict[str, dict[str, Any]] = {
    "s": {"type": "string"},
    "i": {"type": "integer"},
    "f": {"type": "float"},
    "b": {"type": "boolean"},
    "a": {"type": "any"},
    "ls": {"type": "array", "items": {"type": "string"}},
    "li": {"type": "array", "items": {"type": "integer"}},
    "lf": {"type": "array", "items": {"type": "float"}},
    "t": {"type": "tuple", "items": {"type": "integer"}},
    "d": {"type": "dict"},
    "ld": {"type": "array", "items": {"type": "dict"}},
}
ADDRESS = [{"city": ["Paris", "Paname"], "zip": [75001, ""]}]

# parameter, possible values, the value given, whether it fits
VALUES: list[tuple[str, list[Any], Any, bool]] = [
    ("s", ["Paris"], "Paris", True),
    ("s", ["Paris"], "paris", True),
    ("s", ["April 1, 2024"], "April 1 2024", True),
    ("s", ["April 1, 2024"], "april1,2024", True),
    ("s", ["New-York_City"], "new york city", True),
    ("s", ["a*b^c/d"], "abcd", True),
    ("s", ["it's"], 'it"s', True),
    ("s", ["Paris"], "Paris!", False),
    ("s", ["São Paulo"], "sao paulo", False),
    ("s", ["São Paulo"], "SÃO PAULO", True),
    ("s", ["5"], 5, False),
    ("s", ["5", ""], "5", True),
    ("s", ["", "x"], "", True),
    ("s", [""], "x", False),
    ("s", ["x", "y"], "Y", True),
    ("s", ["f(x)"], "f (x)", True),
    ("s", [["x"]], ["x"], True),  # the documented type is not that of the answers: an exact match is asked for
    ("i", [5], 5, True),
    ("i", [5], 5.0, False),
    ("i", [5], "5", False),
    ("i", [5], True, False),
    ("i", [1], True, False),
    ("i", [5, 6], 6, True),
    ("i", [5], 6, False),
    ("i", [5, ""], 5, True),
    ("i", ["n"], "n", True),  # a variable's name
    ("i", ["n"], "N", False),
    ("i", ["n"], 3, False),
    ("f", [5.0], 5, True),
    ("f", [5], 5, True),
    ("f", [5.0], 5.0, True),
    ("f", [0.5], 0.5, True),
    ("f", [0.5], "0.5", False),
    ("f", [0.5], 0.50001, False),
    ("f", [1.0], True, False),
    ("b", [True], True, True),
    ("b", [True], 1, False),
    ("b", [True], "true", False),
    ("b", [True, ""], False, False),
    ("a", ["x"], "X", True),
    ("a", [5], 5, True),
    ("a", [5], "5", False),
    ("ls", [["a", "b"]], ["A", "b"], True),
    ("ls", [["a", "b"]], ["b", "a"], False),
    ("ls", [["a", "b"], ["b", "a"]], ["b", "a"], True),
    ("ls", [["New York"]], ["new-york"], True),
    ("ls", [["a"]], ["a", "a"], False),
    ("ls", [["a"]], [1], False),
    ("ls", [["a"]], "a", False),
    ("ls", [["a"], ""], [], True),  # as published: "" is an empty list's equal
    ("ls", [["a"]], [], False),
    ("li", [[1, 2]], [1, 2], True),
    ("li", [[1, 2]], [1.0, 2], False),
    ("li", [[1, 2]], ["1", "2"], False),
    ("lf", [[1.0, 2.0]], [1, 2], False),  # only a bare whole number serves as a float
    ("lf", [[1, 2]], [1, 2], True),
    ("t", [[1, 2]], [1, 2], True),
    ("t", [[1, 2]], [2, 1], False),
    ("d", ADDRESS, {"city": "paris", "zip": 75001}, True),
    ("d", ADDRESS, {"zip": 75001, "city": "Paname"}, True),
    ("d", ADDRESS, {"city": "Paris"}, True),
    ("d", ADDRESS, {"zip": 75001}, False),
    ("d", ADDRESS, {"city": "Paris", "zip": "75001"}, False),
    ("d", ADDRESS, {"city": "Paris", "street": "x"}, False),
    ("d", ADDRESS, "Paris", False),
    ("d", [""], {}, False),
    ("ld", [[{"k": ["v"]}, {"k": [1]}]], [{"k": "V"}, {"k": 1}], True),
    ("ld", [[{"k": ["v"]}, {"k": [1]}]], [{"k": 1}, {"k": "v"}], False),
    ("ld", [[{"k": ["v"]}]], [{"k": "v"}, {"k": "v"}], False),
    ("ld", [[{"k": ["v"]}]], ["v"], False),
]


@pytest.mark.parametrize("name, allowed, given, fits", VALUES)
def test_values(name: str, allowed: list[Any], given: Any, fits: bool) -> None:
    function = {"name": "f", "parameters": {"properties": {name: KINDS[name]}, "required": [name]}}
    assert (fault([function], [{"f": {name: allowed}}], [Call("f", {name: given})]) is None) is fits


def function(name: str, *required: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": {
            "properties": {each: {"type": "string"} for each in (*required, *optional)},
            "required": [*required],
        },
    }


FUNCTIONS = [function("geo.find", "city", optional=("unit", "extra")), function("time", "zone")]
FIND = {"geo.find": {"city": ["Paris"], "unit": ["km", ""]}}
TIME = {"time": {"zone": ["CET"]}}
STRICT = {"geo.find": {"city": ["Paris"], "unit": ["km"]}}

# possible answers, calls, whether they match
CALLS: list[tuple[list[dict[str, Any]], list[Call], bool]] = [
    ([FIND], [Call("geo.find", {"city": "Paris"})], True),
    ([FIND], [Call("geo_find", {"city": "Paris"})], True),
    ([FIND], [Call("find", {"city": "Paris"})], False),
    ([FIND], [Call("Geo.find", {"city": "Paris"})], False),
    ([FIND], [Call("time", {"zone": "CET"})], False),
    ([FIND], [Call("geo.find", {"unit": "km", "city": "Paris"})], True),
    ([FIND], [Call("geo.find", {"unit": "km"})], False),
    ([FIND], [Call("geo.find", {"city": "Paris", "extra": "x"})], False),
    ([FIND], [Call("geo.find", {"city": "Paris", "unknown": "x"})], False),
    ([FIND], [], False),
    ([FIND], [Call("geo.find", {"city": "Paris"})] * 2, False),
    ([STRICT], [Call("geo.find", {"city": "Paris"})], False),
    ([STRICT], [Call("geo.find", {"city": "Paris", "unit": "KM"})], True),
    ([FIND, TIME], [Call("time", {"zone": "CET"}), Call("geo.find", {"city": "Paris"})], True),
    ([FIND, TIME], [Call("geo.find", {"city": "Paris"})] * 2, False),
    ([FIND, FIND], [Call("geo.find", {"city": "Paris"}), Call("geo.find", {"city": "Rome"})], False),
    ([FIND, STRICT], [Call("geo.find", {"city": "Paris", "unit": "km"})] * 2, True),
]


@pytest.mark.parametrize("answers, calls, fits", CALLS)
def test_calls(answers: list[dict[str, Any]], calls: list[Call], fits: bool) -> None:
    assert (fault(FUNCTIONS, answers, calls) is None) is fits


def test_the_form_of_strings() -> None:
    assert standard("It's 1,000.5_a-b/c*d^e F") == 'it"s10005abcdef'
    assert standard(5) == 5
