"""Tool calls as text: LFM2's Pythonic form in and out, and the JSON forms of Hermes and Llama.

A call turn reads ``<|tool_call_start|>[search(query="Velm"), calculator(expression="2+2")]<|tool_call_end|>``.
Arguments are literals: they are parsed with :mod:`ast` and never evaluated. LFM2 and LFM2.5 write the same calls; asked for
JSON they put a list of it between the same tokens. Hermes (and Qwen) write ``<tool_call>{"name": …, "arguments":
{…}}</tool_call>``, Llama 3 ``{"name": …, "parameters": {…}}`` after an optional ``<|python_tag|>``, with ``;`` between calls.
"""

from __future__ import annotations

import ast
import json
import keyword
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CALL_START, CALL_END = "<|tool_call_start|>", "<|tool_call_end|>"
_HERMES_START, _HERMES_END = "<tool_call>", "</tool_call>"
MAX_CHARACTERS = 10_000
"""Longest list of calls that is parsed; it also bounds the parser's recursion."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_JSON_NAMES: dict[str, Any] = {"true": True, "false": False, "null": None}
_LIST_OPENING = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")
_JSON_GAP = re.compile(r"[\s;]*")
_MARKED = re.compile(
    rf"{re.escape(CALL_START)}.*?(?:{re.escape(CALL_END)}|$)|{_HERMES_START}.*?(?:{_HERMES_END}|$)", re.DOTALL
)
_RESERVED_PREFIX = "reserved__"
# A string literal, or a reserved word used as an argument's name. Strings are matched so that the words in them are not.
_STRING_OR_RESERVED = re.compile(
    r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|\b(RESERVED)\b(?=\s*=(?!=))""".replace(
        "RESERVED", "|".join(keyword.kwlist)
    ),
    re.DOTALL,
)


class CallError(ValueError):
    """A call that cannot be read or made: one sentence the model can act on."""


@dataclass(frozen=True)
class Call:
    """One tool call; argument values are JSON values."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def canonical(self) -> str:
        """The same string for the same call, whatever the order of its arguments."""
        return f"{self.name}({json.dumps(self.arguments, sort_keys=True, ensure_ascii=False)})"


def without_thoughts(text: str) -> str:
    """A model's text without the ``<think>`` block that it begins with."""
    return text.partition("</think>")[2] if text.lstrip().startswith("<think>") else text


def parse_calls(text: str) -> list[Call]:
    """The calls in an assistant's text, in order; empty when there is none.

    A leading ``<think>`` block is skipped. A list with only one of its two tokens still counts, since small models and
    some runtimes lose the other; a list with neither is prose.

    Raises:
        CallError: there is a call but it cannot be read.
    """
    text = without_thoughts(text)
    calls: list[Call] = []
    pieces = text.split(CALL_END)
    for place, piece in enumerate(pieces):
        bodies = piece.split(CALL_START)[1:]
        if bodies:
            for body in bodies:
                calls += _parse_list(body)
        elif place < len(pieces) - 1:
            calls += _parse_unopened(piece)
    return calls


def parse_any_calls(text: str) -> list[Call]:
    """The calls of a whole answer in whichever form it has them; empty when there is none.

    For other people's models. Of models with LFM2's tokens the agent reads :func:`parse_calls` only: the marks of the
    other forms are plain text to them, which an answer may quote.

    Raises:
        CallError: there is a call but it cannot be read.
    """
    text = without_thoughts(text)
    if CALL_START in text or CALL_END in text:
        return parse_calls(text)
    if _HERMES_START in text:
        bodies = [each.partition(_HERMES_END)[0] for each in text.split(_HERMES_START)[1:]]
        return [call for body in bodies for call in _parse_json(body)]
    body = text.strip().removeprefix("<|python_tag|>").strip()
    if body.startswith(("{", "[{")):
        return _parse_json(body) if '"name"' in body else []  # JSON may be what was asked for
    return _parse_list(body) if _LIST_OPENING.match(body) else []


def without_calls(text: str) -> str:
    """What an answer that :func:`parse_any_calls` finds calls in says beside them and its thoughts."""
    text = without_thoughts(text)
    beside = _MARKED.sub("", text)
    return beside.strip() if beside != text else ""


def render_call(name: str, arguments: dict[str, Any]) -> str:
    """One call as the assistant writes it; :func:`parse_calls` gives it back unchanged.

    Raises:
        ValueError: a name that is no identifier, or a value that is no JSON value.
    """
    return render_calls([Call(name, arguments)])


def render_calls(calls: Sequence[Call]) -> str:
    """Several calls as one list between the two tokens; see :func:`render_call`."""
    return f"{CALL_START}[{', '.join(map(_render, calls))}]{CALL_END}"


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` is a dotted name of ASCII identifiers that a call can carry."""
    for part in name.split("."):
        if not _NAME.fullmatch(part) or keyword.iskeyword(part):
            raise ValueError(f"{name!r} cannot name a tool; use letters, digits and underscores, no reserved word")


def parse_expression(source: str) -> ast.expr:
    """The syntax tree of one Python expression, which nothing evaluates.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: Python cannot parse it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a "\\d" in a query is the model's business, not a line on the terminal
        return ast.parse(source, mode="eval").body


def _render(call: Call) -> str:
    check_name(call.name)
    for key in call.arguments:
        if not _NAME.fullmatch(key):
            raise ValueError(f"{key!r} cannot name an argument; use letters, digits and underscores")
    return f"{call.name}({', '.join(f'{key}={_render_value(value)}' for key, value in call.arguments.items())})"


def _render_value(value: Any) -> str:
    if isinstance(value, str):
        quoted = json.dumps(value, ensure_ascii=False)
        # "<|" would read as a special token, and a lone surrogate has no UTF-8 form.
        quoted = re.sub(r"<(?=\|)", r"\\u003c", quoted)
        return re.sub(r"[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", quoted)
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_render_value, value))}]"
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return "{" + ", ".join(f"{_render_value(key)}: {_render_value(item)}" for key, item in value.items()) + "}"
    raise ValueError(f"{value!r} is not a JSON value and cannot be an argument")


def _parse_unopened(piece: str) -> list[Call]:
    """Calls of a list whose start token is missing: the longest tail of ``piece`` that reads as one."""
    error = CallError('no call can be read; write it as [tool(argument="value")].')
    for opening in list(_LIST_OPENING.finditer(piece))[:32]:
        try:
            return _parse_list(piece[opening.start() :])
        except CallError as reason:
            error = reason
    raise error


def _parse_list(body: str) -> list[Call]:
    body = body.strip()
    if body.startswith(("{", "[{")):
        return _parse_json(body)
    _check_length(body)
    try:
        tree = parse_expression(_STRING_OR_RESERVED.sub(_repair, body))
        nodes = tree.elts if isinstance(tree, (ast.List, ast.Tuple)) else [tree]
        calls = [_parse_call(node) for node in nodes]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, CallError):
            raise
        raise CallError('the call cannot be read; write it as [tool(argument="value")].') from error
    if not calls:
        raise CallError('the list of calls is empty; write [tool(argument="value")], or answer.')
    return calls


def _check_length(body: str) -> None:
    if len(body) > MAX_CHARACTERS:
        raise CallError(f"the call is {len(body)} characters long; keep it below {MAX_CHARACTERS}.")


def _parse_json(body: str) -> list[Call]:
    """JSON objects or a list of them, one after another with white space or ``;`` between."""
    _check_length(body)
    decoder, calls, at = json.JSONDecoder(parse_float=_finite, parse_constant=_finite), [], 0
    try:
        while (at := _JSON_GAP.match(body, at).end()) < len(body):  # type: ignore[union-attr]  # it matches nothing too
            value, at = decoder.raw_decode(body, at)
            calls += [_json_call(each) for each in (value if isinstance(value, list) else [value])]
    except (ValueError, RecursionError) as error:
        if isinstance(error, CallError):
            raise
        raise CallError('the call is not JSON; write {"name": "tool", "arguments": {"argument": "value"}}.') from error
    if not calls:
        raise CallError('the list of calls is empty; write {"name": "tool", "arguments": {…}}, or answer.')
    return calls


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is no number of JSON")
    return value


def _json_call(value: Any) -> Call:
    arguments = value.get("arguments", value.get("parameters", {})) if isinstance(value, dict) else None
    if isinstance(arguments, str):  # as OpenAI's API has them
        arguments = json.loads(arguments or "{}", parse_float=_finite, parse_constant=_finite)
    if not (isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(arguments, dict)):
        raise CallError('a call in JSON has a "name" and "arguments", an object.')
    return Call(value["name"], arguments)


def _repair(match: re.Match[str]) -> str:
    """Make Python of what models write: line breaks inside quotes, and reserved words as argument names."""
    if match[1] is not None:
        return match[1].replace("\r", "\\r").replace("\n", "\\n")
    return _RESERVED_PREFIX + match[2]


def _parse_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise CallError('only calls may stand in the list, as in [tool(argument="value")].')
    name = _dotted_name(node.func)
    if node.args:
        raise CallError(f'give every argument of {name} its name, as in {name}(argument="value").')
    arguments: dict[str, Any] = {}
    for item in node.keywords:
        if item.arg is None:
            raise CallError(f"** is not allowed in {name}; write every argument out.")
        key = item.arg.removeprefix(_RESERVED_PREFIX)
        if key in arguments:
            raise CallError(f"argument {key} of {name} is given twice.")
        arguments[key] = _literal(item.value, f"argument {key} of {name}")
    return Call(name, arguments)


def _dotted_name(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise CallError('a call starts with the name of a tool, as in [tool(argument="value")].')
    return ".".join([node.id, *reversed(parts)])


def _literal(node: ast.expr, where: str) -> Any:
    if isinstance(node, ast.Constant):
        value = node.value
        if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            return value
    elif isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _literal(node.operand, where)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    elif isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item, where) for item in node.elts]
    elif isinstance(node, ast.Dict):
        keys = [_literal(key, where) if key is not None else None for key in node.keys]
        if all(isinstance(key, str) for key in keys):
            return dict(zip(keys, (_literal(item, where) for item in node.values), strict=True))
    raise CallError(
        f"{where} must be a plain value: text in quotes, a number, true, false, null, a list or a dictionary."
    )
