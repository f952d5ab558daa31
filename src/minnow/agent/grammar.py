"""A grammar (llama.cpp's GBNF) that an answer cannot leave: calls of the tools in LFM2's form, or also plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from minnow.agent.tools import PARAMETER_TYPES
from minnow.data.calls import CALL_END, CALL_START

# What is not "<|", with which every special token begins.
_TEXT = r"""
text ::= ([^<] | "<"+ [^<|])* "<"*"""
_LITERALS = r"""
value ::= string | number | boolean | "null" | array | object
string ::= "\"" ([^"\\\x00-\x1f] | "\\" (["\\nrt] | "u" [0-9a-fA-F]{4}))* "\""
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,3})?
boolean ::= "true" | "false"
array ::= "[" (value (", " value)*)? "]"
object ::= "{" (string ": " value (", " string ": " value)*)? "}"
"""
_RULES = {"string": "string", "integer": "integer", "number": "number", "boolean": "boolean", "null": '"null"'}


def call_grammar(tools: Sequence[dict[str, Any]], many: bool = True, must: bool = True) -> str:
    """GBNF whose every sentence :func:`minnow.data.calls.parse_calls` reads as calls of ``tools``.

    Required arguments come first, in the order of the schema, then those optional that are given.

    Args:
        tools: ``name`` and ``parameters`` each.
        many: whether more than one call may be made.
        must: whether there has to be a call; otherwise text may stand before the calls or for them.
    """
    calls = " | ".join(f"call{place}" for place in range(len(tools)))
    more = ' (", " call){0,7}' if many else ""
    rules = [f"calls ::= {_quote(CALL_START + '[')} call{more} {_quote(']' + CALL_END)}", f"call ::= {calls}"]
    rules += [f"call{place} ::= {_call(tool)}" for place, tool in enumerate(tools)]
    root = "root ::= calls\n" if must else f"root ::= text calls?{_TEXT}\n"
    return root + "\n".join(rules) + _LITERALS


def parameter_schema(tool: Mapping[str, Any]) -> Any:
    """The JSON Schema of a tool's arguments; ``{name: type}``, the short form that Minnow's own models learn, spelled out."""
    given = tool.get("parameters", {})
    short = all(isinstance(kind, str) and kind in PARAMETER_TYPES for kind in given.values())
    if not given or "type" in given or not short:
        return given
    return {"type": "object", "properties": {name: {"type": kind} for name, kind in given.items()}, "required": list(given)}  # fmt: skip


def _call(tool: dict[str, Any]) -> str:
    schema = parameter_schema(tool)
    properties: dict[str, Any] = schema.get("properties", {})
    required = [name for name in properties if name in schema.get("required", ())]
    optional = [name for name in properties if name not in required]

    def pair(name: str) -> str:
        return f"{_quote(name + '=')} {_value(properties[name])}"

    parts = " ".join(f"{_quote(', ') if place else ''} {pair(name)}" for place, name in enumerate(required))
    if required:
        parts += "".join(f' (", " {pair(name)})?' for name in optional)
    elif optional:
        # Any one may be the first: what follows it are those after it.
        chains = [
            pair(name) + "".join(f' (", " {pair(later)})?' for later in optional[place + 1 :])
            for place, name in enumerate(optional)
        ]
        parts = f"({' | '.join(chains)})?"
    return f"{_quote(tool['name'] + '(')} {parts} {_quote(')')}"


def _value(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "value"
    if "enum" in schema:
        return f"({' | '.join(_quote(json.dumps(each, ensure_ascii=True)) for each in schema['enum'])})"
    if "const" in schema:
        return _quote(json.dumps(schema["const"], ensure_ascii=True))
    kind = schema.get("type")
    if isinstance(kind, list):
        return f"({' | '.join(_value(schema | {'type': each}) for each in kind)})"
    if kind == "array":
        item = _value(schema.get("items", True))
        return f'"[" ({item} (", " {item})*)? "]"'
    if kind == "object" and schema.get("properties"):
        pairs = [f"{_quote(json.dumps(name) + ': ')} {_value(part)}" for name, part in schema["properties"].items()]
        return f'"{{" {(" " + _quote(", ") + " ").join(pairs)} "}}"'
    return _RULES.get(str(kind), "object" if kind == "object" else "value")


def _quote(text: str) -> str:
    escaped = "".join(
        f"\\{c}" if c in '"\\' else c if " " <= c <= "~" else f"\\x{ord(c):02x}" for c in text
    )  # json.dumps leaves ASCII only
    return f'"{escaped}"'
