from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.agent import Call, CallError, SearchIndex, Tool, calculate, calculator_tool, search_tool
from minnow.agent.tools import call_tool
from minnow.errors import UserError
from minnow.tasks import format_hits


def test_schemas_are_minimal(index: SearchIndex) -> None:
    assert search_tool(index).schema() == {"name": "search", "parameters": {"query": "string"}}
    assert calculator_tool().schema() == {"name": "calculator", "parameters": {"expression": "string"}}


def test_search_gives_the_best_pages_as_text(index: SearchIndex) -> None:
    text, worked = call_tool([search_tool(index)], Call("search", {"query": "Osk"}), 2000)
    assert worked and text == format_hits("Osk", index.search("Osk", 2))
    assert "212 km" in text and "Pryl is a mayor" not in text
    assert "Found no page" not in text
    for query, found in (("unheardof", "Found no page called unheardof."), ("Why unheardof?", "No page found.")):
        assert call_tool([search_tool(index)], Call("search", {"query": query}), 2000) == (found, True)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2+2", "4"), (" (1 - 4) * -5 ", "15"), ("7 / 2", "3.5"), ("8 / 2", "4"), ("7 // 2", "3"), ("-7 % 3", "2"),
        ("2**10", "1024"), ("0.1 + 0.2", "0.3"), ("10**20 + 1", "100000000000000000001"), ("1e300 * 2", "2e+300"), ("2 ** -1", "0.5"),
        ("9 ** 0.5", "3"),
    ],
)  # fmt: skip
def test_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1 / 0", "division by zero"), ("1 % 0", "division by zero"), ("0 ** -1", "division by zero"),
        ("9 ** 9 ** 9", "too large"), ("9 ** 9 ** 9 ** 9", "too large"), ("2 ** 1024", "too large"), ("1e308 * 10", "too large"),
        ("10.0 ** 400", "too large"), ("*".join(["10 ** 300"] * 9), "too large"), ("1e999", "too large"), ("(-8) ** 0.5", "not a real"),
        ("__import__('os')", "only numbers"), ("x + 1", "only numbers"), ("'a' * 3", "only numbers"), ("True + 1", "only numbers"),
        ("1 if 1 else 2", "only numbers"), ("1 < 2", "only numbers"), ("1j", "only numbers"), ("2 ^ 3", "only numbers"),
        ("", "cannot be read"), ("2 +", "cannot be read"), ("1\x00", "cannot be read"), ("(" * 400, "cannot be read"),
        ("9" * 501, "longer than"),
    ],
)  # fmt: skip
def test_what_the_calculator_refuses(expression: str, reason: str) -> None:
    with pytest.raises(CallError, match=reason):
        calculate(expression)


def test_integer_arithmetic_equals_pythons() -> None:
    source = random.Random(0)
    for _ in range(300):
        expression = str(source.randrange(100))
        for _ in range(source.randrange(5)):
            expression = f"({expression} {source.choice(['+', '-', '*'])} {source.randrange(1, 100)})"
        assert calculate(expression) == str(eval(expression))


@settings(deadline=None, derandomize=True)
@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_division_is_right_to_ten_digits(top: int, bottom: int) -> None:
    assert float(calculate(f"{top} / {bottom}")) == pytest.approx(float(Fraction(top, bottom)), rel=1e-9)


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet="0123456789+-*/%.() e_", max_size=25))
def test_the_calculator_is_total(expression: str) -> None:
    try:
        float(calculate(expression))
    except CallError as error:
        assert str(error).endswith(".")


def test_bad_calls_become_text() -> None:
    add = Tool("add", "add", {"a": "integer", "b": "integer"}, lambda a, b: str(a + b))
    label = Tool("label", "label", {"text": "string", "on": "boolean"}, lambda text, on: f"{text}:{on}")
    tools = [add, label]
    assert call_tool(tools, Call("add", {"a": 1, "b": 2}), 99) == ("3", True)
    assert call_tool(tools, Call("label", {"text": 7, "on": True}), 99) == ("7:True", True)
    for call, reason in [
        (Call("ad", {}), "there is no tool ad; the tools are: add, label."),
        (Call("add", {"a": 1}), "the arguments do not fit; the tool is add(a: integer, b: integer)."),
        (Call("add", {"a": 1, "b": 2, "c": 3}), "the arguments do not fit"),
        (Call("add", {"a": 1, "b": "2"}), "argument b must be of type integer"),
        (Call("add", {"a": 1, "b": True}), "argument b must be of type integer"),
        (Call("label", {"text": "x", "on": 1}), "argument on must be of type boolean"),
    ]:
        text, worked = call_tool(tools, call, 999)
        assert not worked and text.startswith(f"error: {reason}")
    assert call_tool([], Call("add", {}), 99) == ("error: there is no tool add; answer without tools.", False)


def test_a_tool_that_raises_becomes_text_but_a_broken_set_up_does_not() -> None:
    def fail(error: Exception) -> Tool:
        def function() -> str:
            raise error

        return Tool("f", "fails", {}, function)

    assert call_tool([fail(RuntimeError("boom"))], Call("f"), 99) == ("error: f failed (RuntimeError: boom).", False)
    assert call_tool([fail(CallError("try x."))], Call("f"), 99) == ("error: try x.", False)
    with pytest.raises(UserError, match="index"):
        call_tool([fail(UserError("the index is gone"))], Call("f"), 99)


def test_long_results_are_cut() -> None:
    tool = Tool("f", "long", {}, lambda: "x" * 100)
    assert call_tool([tool], Call("f"), 10) == ("x" * 9 + "…", True)
    assert call_tool([tool], Call("f"), 100) == ("x" * 100, True)


def test_a_tool_needs_a_callable_name_and_known_types() -> None:
    with pytest.raises(ValueError, match="cannot name a tool"):
        Tool("web search", "", {}, str)
    with pytest.raises(ValueError, match="unknown type"):
        Tool("f", "", {"x": "text"}, str)


def test_a_function_becomes_a_tool_by_its_hints() -> None:
    def order(thing: str, many: int = 1, gift: bool | None = None, notes: list[str] | None = None) -> dict[str, Any]:
        """Order a thing
        from the shop.

        More for people.
        """
        return {"thing": thing, "many": many, "gift": gift, "notes": notes}

    tool = Tool.of(order, effects=True)
    assert tool.function_schema()["function"] == {
        "name": "order",
        "description": "Order a thing from the shop.",
        "parameters": {
            "type": "object",
            "properties": {
                "thing": {"type": "string"},
                "many": {"type": "integer"},
                "gift": {"type": "boolean"},
                "notes": {"type": "array"},
            },
            "required": ["thing"],
        },
    }
    assert tool.effects and not tool.outside
    text, worked = call_tool([tool], Call("order", {"thing": "é", "notes": ["x"]}), 200)
    assert worked and text == '{"thing": "é", "many": 1, "gift": null, "notes": ["x"]}'
    for wrong in ({}, {"thing": "a", "some": 1}, {"thing": "a", "many": "2"}):
        text, worked = call_tool([tool], Call("order", wrong), 200)
        assert not worked and "order(thing: string, many?: integer, gift?: boolean, notes?: array)" in text


def test_a_function_that_no_call_can_carry_is_refused() -> None:
    def no_hint(x): ...  # type: ignore[no-untyped-def]
    def bytes_hint(x: bytes) -> str: ...  # type: ignore[empty-body]
    def either(x: int | str) -> str: ...  # type: ignore[empty-body]
    def by_place(x: int, /) -> str: ...  # type: ignore[empty-body]
    def many(*x: int) -> str: ...  # type: ignore[empty-body]

    for function in (no_hint, bytes_hint, either, by_place, many):
        with pytest.raises(ValueError, match="argument x of"):
            Tool.of(function)
