"""JSON Schema, as much of it as describes the API's bodies: one description that both checks them and is published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from minnow.recipe.mapping import join, nearest
from minnow.serve.errors import ApiError

Schema = Mapping[str, Any]
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
MOST_SCHEMA_CHARACTERS, MOST_SCHEMA_DEPTH = 16_384, 16
MOST_ENTRIES = 10_000  # of an array, and characters of a string: a billion would keep llama.cpp busy for minutes
# What llama.cpp's grammar can hold an answer to; it drops a schema it does not understand, and says nothing.
_NOTES = {"title", "description", "default", "examples", "$schema", "$id", "strict"}
_LOGIC = {"anyOf", "oneOf", "allOf", "enum", "const", "$ref", "$defs", "definitions", "type"}
_PARTS = {"properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems"}
_VALUES = {"minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_SIZES = {"minLength", "maxLength", "minItems", "maxItems"}
_SIMPLE = {"pattern": "string", "format": "string", "$ref": "string", "minimum": "number", "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number"}  # fmt: skip
_KEYWORDS = _NOTES | _LOGIC | _PARTS | _VALUES


def check(value: Any, schema: Schema, path: str = "") -> None:
    """Raise :class:`ApiError` 400, naming the parameter, unless ``value`` is what ``schema`` describes."""
    if "anyOf" in schema:
        faults = []
        for option in schema["anyOf"]:
            try:
                return check(value, option, path)
            except ApiError as fault:
                faults.append(fault)
        # The option that was meant is the one whose fault lies deepest, or is none of type.
        raise max(faults, key=lambda fault: (len(fault.param or ""), fault.code != "invalid_type"))
    kind = schema.get("type")
    if kind is not None and not _is(value, kind):
        raise _fault(path, f"must be {_article(kind)}, not {_article(_kind_of(value))}", "invalid_type")
    if "enum" in schema and value not in schema["enum"]:
        raise _fault(path, f"must be {' or '.join(json.dumps(each) for each in schema['enum'])}", "invalid_value")
    if kind in ("number", "integer"):
        low, high = schema.get("minimum"), schema.get("maximum")
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            raise _fault(path, f"must lie in {low if low is not None else ''}..{high if high is not None else ''}", "invalid_value")  # fmt: skip
    if kind == "string" and len(value) > schema.get("maxLength", len(value)):
        raise _fault(path, f"must have at most {schema['maxLength']} characters", "invalid_value")
    if kind == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
        if not least <= len(value) <= most:
            raise _fault(path, f"must have {least}..{schema.get('maxItems', '')} entries", "invalid_value")
        for place, item in enumerate(value):
            check(item, schema.get("items", {}), f"{path}[{place}]")
    if kind == "object":
        known = schema.get("properties", {})
        for name, item in value.items():
            if name in known:
                check(item, known[name], join(path, name))
            elif schema.get("additionalProperties") is False:
                raise ApiError(400, f"unknown parameter: {join(path, name)}; {nearest(name, known)}", "unknown_parameter", join(path, name))  # fmt: skip
        for name in schema.get("required", ()):
            if name not in value:
                raise _fault(join(path, name), "is missing", "missing_required_parameter")


def check_answer_schema(schema: Any, path: str) -> None:
    """Raise :class:`ApiError` 400 unless answers can be held to ``schema``: a JSON Schema of bounded size whose keywords
    and types the grammar knows."""
    try:
        size = len(json.dumps(schema))
    except RecursionError:
        size = MOST_SCHEMA_CHARACTERS + 1
    if size > MOST_SCHEMA_CHARACTERS:
        raise _fault(path, f"is larger than {MOST_SCHEMA_CHARACTERS} characters", "invalid_schema")
    _check_keywords(schema, path, 0)


def _check_keywords(schema: Any, path: str, depth: int) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise _fault(path, "is no JSON Schema, which is an object", "invalid_schema")
    if depth > MOST_SCHEMA_DEPTH:
        raise _fault(path, f"is nested more than {MOST_SCHEMA_DEPTH} deep", "invalid_schema")
    for word, value in schema.items():
        where = join(path, word)
        if word not in _KEYWORDS:
            raise _fault(
                where, f"is a keyword that no answer can be held to; {nearest(word, _KEYWORDS)}", "invalid_schema"
            )
        if word == "type":
            kinds = value if isinstance(value, list) else [value]
            if not kinds or not all(isinstance(kind, str) and kind in _KINDS for kind in kinds):
                raise _fault(where, f"must be one of {', '.join(_KINDS)}", "invalid_schema")
        elif word in ("properties", "$defs", "definitions"):
            if not isinstance(value, dict):
                raise _fault(where, "must be an object", "invalid_schema")
            for name, part in value.items():
                _check_keywords(part, join(where, name), depth + 1)
        elif word in ("items", "additionalProperties"):
            _check_keywords(value, where, depth + 1)
        elif word in _SIZES or word in _SIMPLE:
            kind = _SIMPLE.get(word, "integer")
            check(value, {"type": kind} | ({"minimum": 0, "maximum": MOST_ENTRIES} if word in _SIZES else {}), where)
        elif word in ("anyOf", "oneOf", "allOf", "prefixItems", "enum", "required"):
            if not isinstance(value, list) or not value and word != "required":
                raise _fault(where, "must be a list", "invalid_schema")
            if word not in ("enum", "required"):
                for place, part in enumerate(value):
                    _check_keywords(part, f"{where}[{place}]", depth + 1)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) and kind in ("number", "integer"):
        return False
    return isinstance(value, _KINDS[kind])


def _kind_of(value: Any) -> str:
    return next(kind for kind in ("boolean", "integer", *_KINDS) if _is(value, kind))


def _article(kind: str) -> str:
    return kind if kind == "null" else f"{'an' if kind[0] in 'aio' else 'a'} {kind}"


def _fault(path: str, sentence: str, code: str) -> ApiError:
    return ApiError(400, f"{path or 'the body'} {sentence}", code, path or None)
