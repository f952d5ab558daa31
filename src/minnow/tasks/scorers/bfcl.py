"""BFCL's AST matching of tool calls against possible answers, and its irrelevance test (Patil et al. 2025).

As in ``ast_checker.py`` of the leaderboard, Python categories: the function's name, every required parameter, no unknown
one; each value of the documented type (whole numbers serve as floats, nothing else is converted) and among those the
answer lists. Strings are compared without case, spaces and ``,./-_*^``, with ' for "; lists keep their order; an optional
parameter may be missing where its values hold ``""``. A value whose documented type differs from that of the possible
answers is taken for a variable's name, which must equal one of them exactly.

One difference: ``.`` in a function's name may come as ``_``, since OpenAI-compatible servers allow no dots (the
leaderboard settles that by model).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from minnow.data.calls import Call

_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
Values = Sequence[Any]
"""Values that a parameter may have; ``""`` among them where it may be left out."""


def fault(
    functions: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Mapping[str, Values]]], calls: Sequence[Call]
) -> str | None:
    """What is wrong with the calls; None where they match.

    Args:
        functions: their documents, with BFCL's type names.
        answers: for each call that is wanted one object, ``{function: {parameter: values}}``. Several calls may come in
            any order.
    """
    if len(calls) != len(answers):
        return f"{len(calls)} calls, not {len(answers)}"
    left = list(calls)
    for answer in answers:
        ((name, values),) = answer.items()
        described = next((each for each in functions if each["name"] == name), functions[0])
        said = [_call_fault(described, values, call) for call in left]
        if all(said):
            return said[0]
        del left[said.index(None)]
    return None


def _call_fault(function: Mapping[str, Any], answers: Mapping[str, Values], call: Call) -> str | None:
    name, parameters = function["name"], function["parameters"]
    if call.name.replace(".", "_") != name.replace(".", "_"):
        return f"called {call.name}, not {name}"
    for required in parameters.get("required", ()):
        if required not in call.arguments:
            return f"the required {required} is missing"
    for key, value in call.arguments.items():
        if key not in parameters["properties"] or key not in answers:
            return f"{key} is not asked for"
        wrong = _value_fault(key, value, answers[key], parameters["properties"][key])
        if wrong:
            return wrong
    for key, allowed in answers.items():
        if key not in call.arguments and "" not in allowed:
            return f"{key} is missing"
    return None


def _value_fault(key: str, value: Any, answers: Values, described: Mapping[str, Any]) -> str | None:
    of = described["type"]
    wanted = _TYPES[of]
    inner = _TYPES[described["items"]["type"]] if of in ("array", "tuple") else None
    if of == "float" and type(value) is int:
        value = float(value)
    variable = _is_variable(value, answers, wanted, inner)
    if variable is None:
        return f"{key} is of the type {type(value).__name__}, not {of}"
    if variable:
        fits = value in answers
    elif wanted is dict:
        fits = any(_dict_fits(value, each) for each in answers if each != "")
    elif wanted is list and inner is dict:
        fits = any(len(value) == len(each) and all(map(_dict_fits, value, each)) for each in answers)
    elif wanted is str:
        fits = standard(value) in [standard(each) for each in answers if isinstance(each, str)]
    elif wanted is list:
        fits = [standard(each) for each in value] in [[standard(item) for item in each] for each in answers]
    else:
        fits = value in answers
    return None if fits else f"{key} is {value!r}, none of {list(answers)}"


def _is_variable(value: Any, answers: Values, wanted: type, inner: type | None) -> bool | None:
    """Whether a value stands for a variable; None where its type is wrong."""
    kinds = [type(each) for each in answers if each != ""]
    if type(value) is wanted:
        fits = inner is None or any(_items_fit(value, each, inner) for each in answers)
        return (bool(kinds) and kinds[0] is not wanted) if fits else None
    return True if kinds and type(value) is kinds[0] else None


def _items_fit(value: Any, answer: Any, inner: type) -> bool:
    """Items of the documented type, or of that of the answer's items; an answer that is no list asks nothing of them."""
    if not isinstance(answer, list):
        return True
    kinds = [type(each) for each in answer if each != ""]
    return all(type(each) is inner or (bool(kinds) and type(each) is kinds[0]) for each in value)


def _dict_fits(value: Any, answer: Mapping[str, Values]) -> bool:
    if not isinstance(value, dict):
        return False
    for key, item in value.items():
        if key not in answer or standard(item) not in [standard(each) for each in answer[key]]:
            return False
    return all(key in value or "" in allowed for key, allowed in answer.items())


def standard(value: Any) -> Any:
    """Strings in the form in which they are compared; anything else as it is."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')
