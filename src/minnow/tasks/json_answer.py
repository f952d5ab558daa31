"""JSON in an answer: found, read within limits, and checked against a JSON schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from minnow.errors import UserError

LONGEST = 100_000
"""Characters of JSON that are read."""

DEEPEST = 64
"""Brackets within brackets that are read."""

_FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)```", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


class AnswerError(ValueError):
    """No JSON that can be read; the sentence says why."""


def read_json_answer(text: str) -> Any:
    """The JSON value of an answer: in a fenced block, or from the first bracket on; words around it do not matter.

    Raises:
        AnswerError: there is none, it is cut short, too long or too deep, names a key twice, or holds NaN.
    """
    fenced = _FENCE.search(text)
    if fenced is not None:
        text = fenced[1]
    start = re.search(r"[{\[]", text)
    if start is None:
        raise AnswerError("no JSON in the answer")
    text = text[start.start() :]
    if len(text) > LONGEST:
        raise AnswerError(f"the JSON is longer than {LONGEST:,} characters")
    if _depth(text) > DEEPEST:
        raise AnswerError(f"the JSON is more than {DEEPEST} brackets deep")
    try:
        return _DECODER.raw_decode(text)[0]
    except ValueError as error:
        raise AnswerError(f"not valid JSON ({error})") from error


def _depth(text: str) -> int:
    deepest = level = 0
    for bracket in re.findall(r"[{}\[\]]", _STRING.sub("", text)):
        level += 1 if bracket in "{[" else -1
        deepest = max(deepest, level)
    return deepest


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def same(found: Any, wanted: Any) -> bool:
    """Equality of JSON values: 1 and 1.0 are one number, true is none, the order of keys does not matter."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        return found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found == wanted


def kind_of(value: Any) -> str:
    """The JSON type of a value; a float without a fraction is an ``integer``, as the standard has it."""
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    names = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object", type(None): "null"}
    return names[type(value)]


_ANNOTATIONS = {"title", "description", "default", "examples", "format", "$schema", "$id", "$comment", "$defs"}
_TYPES = ("string", "integer", "number", "boolean", "object", "array", "null")
_LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool], str]] = {
    "minimum": ("number", lambda value, limit: value >= limit, "at least"),
    "maximum": ("number", lambda value, limit: value <= limit, "at most"),
    "exclusiveMinimum": ("number", lambda value, limit: value > limit, "more than"),
    "exclusiveMaximum": ("number", lambda value, limit: value < limit, "less than"),
    "multipleOf": ("number", lambda value, limit: math.isclose(value / limit, round(value / limit)), "a multiple of"),
    "minLength": ("string", lambda value, limit: len(value) >= limit, "of a length of at least"),
    "maxLength": ("string", lambda value, limit: len(value) <= limit, "of a length of at most"),
    "pattern": ("string", lambda value, limit: re.search(limit, value) is not None, "like"),
    "minItems": ("array", lambda value, limit: len(value) >= limit, "of a length of at least"),
    "maxItems": ("array", lambda value, limit: len(value) <= limit, "of a length of at most"),
}
_COMBINED: dict[str, Callable[[int, int], bool]] = {
    "anyOf": lambda fit, of: fit > 0,
    "oneOf": lambda fit, of: fit == 1,
    "allOf": lambda fit, of: fit == of,
}


class Schema:
    """A JSON schema (the common part of draft 2020-12, ``$ref`` to ``$defs`` included).

    Raises:
        UserError: it is no schema, or uses a keyword that is not checked here; nothing is passed over in silence.
    """

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self._check(schema, "schema")

    def faults(self, value: Any) -> list[str]:
        """What is wrong with ``value``, one sentence for each fault; empty where it is valid."""
        try:
            return list(self._faults(value, self.schema, ""))
        except RecursionError:
            return ["the schema refers to itself without end"]

    def _check(self, schema: Any, path: str) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise UserError(f"{path}: expected a JSON schema (a mapping), got {schema!r}")
        for key, given in schema.items():
            below = f"{path}.{key}"
            if key in ("properties", "$defs"):
                for name, part in self._mapping(given, below).items():
                    self._check(part, f"{below}.{name}")
            elif key in ("items", "additionalProperties", "not"):
                self._check(given, below)
            elif key in _COMBINED:
                if not isinstance(given, list):
                    raise UserError(f"{below}: expected a list of schemas, got {given!r}")
                for place, part in enumerate(given):
                    self._check(part, f"{below}[{place}]")
            elif key == "type":
                for name in given if isinstance(given, list) else [given]:
                    if name not in _TYPES:
                        raise UserError(f"{below}: {name!r} is no JSON type; use {', '.join(_TYPES)}")
            elif key == "$ref":
                self._target(given, below)
            elif key in _LIMITS:
                self._check_limit(key, given, below)
            elif key in ("enum", "required"):
                if not isinstance(given, list):
                    raise UserError(f"{below}: expected a list, got {given!r}")
            elif key not in _ANNOTATIONS | {"const"}:
                raise UserError(f"{below} is not understood here; leave the keyword out of the schema")

    @staticmethod
    def _check_limit(key: str, given: Any, path: str) -> None:
        if key == "pattern":
            try:
                re.compile(given)
            except (TypeError, re.error) as error:
                raise UserError(f"{path}: {given!r} is no regular expression ({error})") from error
            return
        kinds = (int, float) if _LIMITS[key][0] == "number" else int
        if isinstance(given, bool) or not isinstance(given, kinds) or (key == "multipleOf" and given <= 0):
            raise UserError(f"{path}: {given!r} is no limit; write a number{' above 0' if key == 'multipleOf' else ''}")

    @staticmethod
    def _mapping(given: Any, path: str) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise UserError(f"{path}: expected a mapping, got {given!r}")
        return given

    def _target(self, reference: Any, path: str) -> Any:
        name = str(reference).removeprefix("#/$defs/")
        if reference == "#":
            return self.schema
        if str(reference).startswith("#/$defs/") and name in self.schema.get("$defs", {}):
            return self.schema["$defs"][name]
        raise UserError(f"{path}: {reference!r} leads nowhere; a reference reads '#/$defs/NAME'")

    def _faults(self, value: Any, schema: Any, path: str) -> Iterator[str]:
        if isinstance(schema, bool):
            if not schema:
                yield f"{path or 'the value'} is not allowed"
            return
        where, kind = path or "the value", kind_of(value)
        kinds = {kind, "number"} if kind == "integer" else {kind}
        if "$ref" in schema:
            yield from self._faults(value, self._target(schema["$ref"], "$ref"), path)
        allowed = schema.get("type")
        if allowed is not None and not kinds & set(allowed if isinstance(allowed, list) else [allowed]):
            yield f"{where} is {kind}, not {allowed if isinstance(allowed, str) else ' or '.join(allowed)}"
            return
        if "enum" in schema and not any(same(value, each) for each in schema["enum"]):
            yield f"{where} is {value!r}, none of {schema['enum']}"
        if "const" in schema and not same(value, schema["const"]):
            yield f"{where} is {value!r}, not {schema['const']!r}"
        for keyword, (of, fits, words) in _LIMITS.items():
            if keyword in schema and of in kinds and not fits(value, schema[keyword]):
                yield f"{where} must be {words} {schema[keyword]}"
        for keyword, enough in _COMBINED.items():
            parts = schema.get(keyword, [])
            fit = sum(not any(True for _ in self._faults(value, part, path)) for part in parts)
            if parts and not enough(fit, len(parts)):
                yield f"{where} fits {fit} of the schemas in {keyword}"
        if "not" in schema and not any(True for _ in self._faults(value, schema["not"], path)):
            yield f"{where} is what the schema rules out"
        if isinstance(value, list) and "items" in schema:
            for place, item in enumerate(value):
                yield from self._faults(item, schema["items"], f"{path}[{place}]")
        if isinstance(value, dict):
            yield from self._object_faults(value, schema, path)

    def _object_faults(self, value: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[str]:
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        prefix = f"{path}." if path else ""
        yield from (f"{prefix}{key} is missing" for key in schema.get("required", []) if key not in value)
        for key, item in value.items():
            yield from self._faults(item, properties.get(key, rest), f"{prefix}{key}")
