"""JSON out of answers, within limits, and JSON schemas that leave nothing unchecked in silence."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minnow.errors import UserError
from minnow.tasks.json_answer import DEEPEST, LONGEST, AnswerError, Schema, read_json_answer, same

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_an_object_comes_back_whatever_stands_around_it(value: dict[str, Any]) -> None:
    text = json.dumps(value)
    for shown in (text, f"Here it is: {text} Anything else?", f"Sure.\n```json\n{text}\n```\nDone {{}}."):
        assert read_json_answer(shown) == value


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "no JSON"),
        ("I cannot.", "no JSON"),
        ('{"a": 1', "not valid"),
        ('{"a": 1, "a": 2}', "given twice"),
        ('{"a": NaN}', "NaN"),
        ("{'a': 1}", "not valid"),
        ("[" * 100_000, "brackets deep"),
        ('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "brackets deep"),
        ('{"a": "' + "x" * LONGEST + '"}', "longer than"),
        ('{"a": ' + "9" * 5000 + "}", "not valid"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, said: str) -> None:
    with pytest.raises(AnswerError, match=said):
        read_json_answer(text)


def test_brackets_in_strings_are_no_depth() -> None:
    assert read_json_answer(json.dumps({"a": "[" * 1000 + '"'})) == {"a": "[" * 1000 + '"'}


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.text())
def test_no_text_brings_another_error(text: str) -> None:
    with suppress(AnswerError):
        read_json_answer("{" + text)


def test_equality_of_json_values() -> None:
    assert same({"a": 1, "b": [1.0]}, {"b": [1], "a": 1.0})
    assert not same(True, 1) and not same(0, False) and not same("1", 1) and not same([1, 2], [2, 1])
    assert not same(None, False) and not same({"a": None}, {})


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z]"},
        "age": {"type": ["integer", "null"], "minimum": 0, "maximum": 150},
        "mood": {"enum": ["good", "bad", 3]},
        "pets": {"type": "array", "items": {"$ref": "#/$defs/pet"}, "maxItems": 2},
        "id": {"anyOf": [{"type": "string"}, {"type": "integer", "exclusiveMinimum": 10}]},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"pet": {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}},
}


@pytest.mark.parametrize(
    "value, faults",
    [
        ({"name": "Ada"}, []),
        ({"name": "Ada", "age": 5.0, "mood": 3.0, "pets": [{"kind": "cat", "more": 1}], "id": 11}, []),
        ({"name": "Ada", "age": None, "id": ""}, []),
        ({}, ["name is missing"]),
        ({"name": 1}, ["name is integer, not string"]),
        ({"name": ""}, ["name must be of a length of at least 1", "name must be like ^[A-Z]"]),
        ({"name": "ada"}, ["name must be like ^[A-Z]"]),
        ({"name": "Ada", "age": -1}, ["age must be at least 0"]),
        ({"name": "Ada", "age": 1.5}, ["age is number, not integer or null"]),
        ({"name": "Ada", "age": True}, ["age is boolean, not integer or null"]),
        ({"name": "Ada", "mood": "so-so"}, ["mood is 'so-so', none of ['good', 'bad', 3]"]),
        ({"name": "Ada", "pets": [{"kind": "dog"}]}, ["pets[0].kind is 'dog', not 'cat'"]),
        ({"name": "Ada", "pets": [{"kind": "cat"}] * 3}, ["pets must be of a length of at most 2"]),
        ({"name": "Ada", "id": 10}, ["id fits 0 of the schemas in anyOf"]),
        ({"name": "Ada", "shoe": 42}, ["shoe is not allowed"]),
        ([], ["the value is array, not object"]),
    ],
)
def test_schema(value: Any, faults: list[str]) -> None:
    assert Schema(PERSON).faults(value) == faults


@pytest.mark.parametrize(
    "schema, said",
    [
        ([], "expected a JSON schema"),
        ({"type": "text"}, "'text' is no JSON type"),
        ({"properties": {"a": {"typ": "string"}}}, "schema.properties.a.typ is not understood"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"anyOf": {}}, "a list of schemas"),
        ({"if": {}}, "schema.if is not understood"),
        ({"required": "room"}, "schema.required: expected a list"),
        ({"enum": 5}, "schema.enum: expected a list"),
        ({"minimum": "a"}, "'a' is no limit"),
        ({"maxLength": 1.5}, "no limit"),
        ({"items": {"multipleOf": 0}}, "schema.items.multipleOf: 0 is no limit; write a number above 0"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": 5}, "no regular expression"),
    ],
)
def test_a_schema_that_cannot_be_checked_is_refused(schema: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Schema(schema)


def test_a_schema_without_end_is_a_fault() -> None:
    assert Schema({"$ref": "#"}).faults(1) == ["the schema refers to itself without end"]
