"""The tools a model may call, and what it reads when a call goes wrong."""

from __future__ import annotations

import ast
import inspect
import json
import math
import operator
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Union, get_args, get_origin, get_type_hints

from minnow.agent.index import PageIndex
from minnow.agent.search import SearchEngine
from minnow.data.calls import Call, CallError, check_name, parse_expression
from minnow.errors import UserError
from minnow.tasks.tools import CALCULATOR_SCHEMA, SEARCH_HITS, SEARCH_SCHEMA, format_hits

PARAMETER_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_HINTS: dict[Any, str] = {
    str: "string", float: "number", int: "integer", bool: "boolean", list: "array", dict: "object"
}  # fmt: skip
MAX_EXPRESSION = 500
MAX_BITS = 1024


@dataclass(frozen=True)
class Tool:
    """A function the model may call.

    Attributes:
        parameters: JSON type of each argument by name.
        function: gets the arguments by name and returns text. A :class:`CallError` it raises is read by the model.
        optional: the arguments that may be left out.
        terse: show a model with LFM2's tokens names and types only, as the pocket world does.
        effects: it changes something outside the conversation, so it runs with consent only, and never in a turn in
            which text from outside has been read.
        outside: its results are text from outside, which may be written to mislead.
    """

    name: str
    description: str
    parameters: dict[str, str]
    function: Callable[..., str]
    optional: frozenset[str] = frozenset()
    terse: bool = False
    effects: bool = False
    outside: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        unknown = set(self.parameters.values()) - PARAMETER_TYPES.keys()
        if unknown:
            raise ValueError(
                f"tool {self.name} has parameters of unknown type {sorted(unknown)}; use one of {list(PARAMETER_TYPES)}"
            )

    @classmethod
    def of(cls, function: Callable[..., Any], effects: bool = False, outside: bool = False) -> Tool:
        """A function as a tool: name, type hints, defaults and the first paragraph of its docstring say the rest.

        Results that are no text are given as JSON.

        Raises:
            ValueError: an argument without a hint, or of a type that JSON does not have.
        """
        hints = get_type_hints(function)
        parameters, optional = {}, set()
        for name, parameter in inspect.signature(function).parameters.items():
            hint = hints.get(name)
            either = [each for each in get_args(hint) if each is not type(None)] if _is_union(hint) else [hint]
            kind = _HINTS.get(get_origin(either[0]) or either[0]) if len(either) == 1 else None
            if kind is None or parameter.kind not in (
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                inspect.Parameter.KEYWORD_ONLY,
            ):
                raise ValueError(
                    f"argument {name} of {function.__name__} has no type that a call can carry; use str, int, float, "
                    "bool, list or dict as its hint"
                )
            parameters[name] = kind
            if parameter.default is not inspect.Parameter.empty:
                optional.add(name)

        def call(**arguments: Any) -> str:
            result = function(**arguments)
            return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)

        about = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
        return cls(function.__name__, about, parameters, call, frozenset(optional), effects=effects, outside=outside)

    def schema(self) -> dict[str, Any]:
        """What stands in the system turn of a model with LFM2's tokens."""
        if self.terse:
            return {"name": self.name, "parameters": dict(self.parameters)}
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        needed = [name for name in self.parameters if name not in self.optional]
        parameters = {"type": "object", "properties": properties, "required": needed}
        return {"name": self.name, "description": self.description, "parameters": parameters}

    def function_schema(self) -> dict[str, Any]:
        """The tool in the form of OpenAI's API, which most chat templates expect."""
        return {"type": "function", "function": replace(self, terse=False).schema()}


def call_tool(tools: Sequence[Tool], call: Call, max_characters: int) -> tuple[str, bool]:
    """Make a call: the text for the model, cut to ``max_characters``, and whether the call worked.

    Whatever goes wrong inside a tool becomes text the model can act on. Only a :class:`UserError` passes through: then
    it is the set-up that is broken (a damaged index, say), and no other call would help.
    """
    try:
        tool = _find(tools, call.name)
        text, worked = str(tool.function(**_checked(tool, call.arguments))), True
    except UserError:
        raise
    except CallError as error:
        text, worked = f"error: {error}", False
    except Exception as error:  # noqa: BLE001  (a tool may fail in any way; the model reads how)
        text, worked = f"error: {call.name} failed ({type(error).__name__}: {error}).", False
    return (text if len(text) <= max_characters else text[: max_characters - 1] + "…"), worked


def search_tool(engine: PageIndex | SearchEngine) -> Tool:
    """``search(query)``: the best pages of an index or engine, in the words the pocket world trains on."""
    return Tool(
        "search",
        "find pages of the encyclopaedia",
        SEARCH_SCHEMA["parameters"],
        lambda query: format_hits(query, engine.search(query, SEARCH_HITS)),
        terse=True,
        outside=True,
    )


def clock_tool() -> Tool:
    """``clock()``: the day and time of this machine."""
    about = "The current date and time."
    return Tool("clock", about, {}, lambda: datetime.now().astimezone().strftime("%A %Y-%m-%d %H:%M %Z"))


def calculator_tool() -> Tool:
    """``calculator(expression)``: exact integers, floats to 10 digits; see :func:`calculate`."""
    about = "evaluate an arithmetic expression"
    return Tool("calculator", about, CALCULATOR_SCHEMA["parameters"], calculate, terse=True)


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def calculate(expression: str) -> str:
    """The value of an expression of numbers, ``+ - * / // % **`` and parentheses.

    Raises:
        CallError: anything else in the expression, a division by zero, or a value of more than ``MAX_BITS`` bits.
    """
    if len(expression) > MAX_EXPRESSION:
        raise CallError(f"the expression is longer than {MAX_EXPRESSION} characters; split it up.")
    try:
        value = _evaluate(parse_expression(expression.strip()))
    except CallError:
        raise
    except ZeroDivisionError as error:
        raise CallError("division by zero.") from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CallError("the expression cannot be read; use numbers, + - * / // % ** and parentheses.") from error
    except OverflowError as error:
        raise CallError("the value is too large.") from error
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return str(value) if isinstance(value, int) else f"{value:.10g}"


def _evaluate(node: ast.expr) -> int | float:
    value: Any
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _evaluate(node.operand)
        value = -value if isinstance(node.op, ast.USub) else value
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(node.op, ast.Pow) and abs(left) > 1 and abs(right) * math.log2(abs(left)) > MAX_BITS:
            raise CallError("the value is too large.")
        value = _OPERATORS[type(node.op)](left, right)
    else:
        raise CallError("only numbers, + - * / // % ** and parentheses may stand in an expression.")
    if isinstance(value, complex):
        raise CallError("the value is not a real number.")
    if (isinstance(value, int) and value.bit_length() > MAX_BITS) or not math.isfinite(value):
        raise CallError("the value is too large.")
    return value


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _find(tools: Sequence[Tool], name: str) -> Tool:
    for tool in tools:
        if tool.name == name:
            return tool
    offered = ", ".join(tool.name for tool in tools)
    raise CallError(
        f"there is no tool {name}; " + (f"the tools are: {offered}." if offered else "answer without tools.")
    )


def _checked(tool: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
    listed = (f"{name}{'?' if name in tool.optional else ''}: {kind}" for name, kind in tool.parameters.items())
    signature = f"{tool.name}({', '.join(listed)})"
    if not tool.parameters.keys() - tool.optional <= arguments.keys() <= tool.parameters.keys():
        raise CallError(f"the arguments do not fit; the tool is {signature}.")
    checked = {}
    for name, value in arguments.items():
        kind = tool.parameters[name]
        # calculator(expression=7) is plain enough to be understood
        if kind == "string" and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, PARAMETER_TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
            raise CallError(f"argument {name} must be of type {kind}; the tool is {signature}.")
        checked[name] = value
    return checked
