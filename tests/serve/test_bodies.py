"""What requests may hold, and how they are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnow.data.calls import parse_calls
from minnow.serve.bodies import parse
from minnow.serve.errors import ApiError
from minnow.serve.schema import MOST_SCHEMA_DEPTH

USER = {"role": "user", "content": "hello"}
TOOL = {
    "type": "function",
    "function": {"name": "find", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}},
}


def refused(body: Any) -> ApiError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApiError) as error:
        parse(raw, chat=True)
    assert error.value.status == 400
    return error.value


@pytest.mark.parametrize(
    ("extra", "param", "said"),
    [
        ({"temprature": 1}, "temprature", "did you mean temperature"),
        ({"temperature": "hot"}, "temperature", "must be a number, not a string"),
        ({"temperature": 3}, "temperature", "0..2"),
        ({"temperature": True}, "temperature", "not a boolean"),
        ({"max_tokens": 0}, "max_tokens", "must lie in 1.."),
        ({"n": 2}, "n", "1..1"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"messages": []}, "messages", "1..4096"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role", '"system" or'),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", '"text"'),
        ({"stop": ["a"] * 5}, "stop", "entries"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
        ({"minnow": {"private": True, "route": "cloud"}}, "minnow.route", "exclude"),
        ({"minnow": {"deadline": 3}}, "minnow.deadline", "deadline_ms"),
    ],
)
def test_a_wrong_parameter_is_named(extra: dict[str, Any], param: str, said: str) -> None:
    error = refused({"messages": [USER]} | extra)
    assert error.param == param and said in error.message
    assert error.body()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "invalid_json"),
        (b'{"messages": "\xff"}', "invalid_utf8"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "invalid_json"),
        (b"[]", "invalid_type"),
    ],
)
def test_a_body_that_is_none(raw: bytes, code: str) -> None:
    assert refused(raw).code == code


def test_schema_bombs_and_keywords_that_would_be_dropped_silently() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(MOST_SCHEMA_DEPTH + 1):
        deep = {"type": "array", "items": deep}
    for schema in (
        deep,
        {"enum": ["x" * 20_000]},
        {"type": "foo"},
        {"if": {}},
        {"type": "object", "properties": {"a": 1}},
        {"type": "array", "minItems": 10**9},
        {"type": "string", "minLength": -5},
        {"type": "string", "maxLength": "x"},
        {"type": "integer", "minimum": "a"},
        {"pattern": 5},
        {"$ref": {}},
    ):
        error = refused(
            {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
        )
        assert str(error.param).startswith("response_format.json_schema.schema")


@pytest.mark.parametrize("depth", [600, 100_000])
def test_arguments_that_are_nested_too_deep_are_refused(depth: int) -> None:
    call = {"function": {"name": "find", "arguments": '{"q": ' + "[" * depth + "]" * depth + "}"}}
    assert refused({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}).param == "messages[1].tool_calls"


def test_messages_become_what_the_model_reads() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"q": "Velm"}'}}
    ask = parse(
        json.dumps(
            {
                "messages": [
                    {
                        "role": "developer",
                        "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
                    },
                    USER,
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "1", "content": "a town \ud800"},
                ],
                "tools": [TOOL],
                "tool_choice": "required",
                "stop": "end",
                "max_completion_tokens": 7,
                "seed": None,
            }
        ).encode(),
        chat=True,
    )
    assert ask.messages is not None
    assert [message["role"] for message in ask.messages] == ["system", "user", "assistant", "tool"]
    assert ask.messages[0]["content"] == "Be brief." and ask.messages[3]["content"] == "a town \ufffd"
    (read,) = parse_calls(ask.messages[2]["content"])
    assert (read.name, read.arguments) == ("find", {"q": "Velm"})
    assert ask.must_call == ("find",) and ask.stop == ("end",) and ask.max_tokens == 7 and ask.seed is None


def test_half_a_surrogate_pair_is_read_as_no_character_wherever_it_stands() -> None:
    raw = rb'{"prompt": "a\ud800b", "stop": "\udc00", "user": "\ud83d\ude00"}'
    ask = parse(raw, chat=False)
    assert (ask.prompt, ask.stop, ask.user) == ("a\ufffdb", ("\ufffd",), "\U0001f600")
    described = {**TOOL, "function": {**TOOL["function"], "description": "\udfff"}}
    ask = parse(json.dumps({"messages": [USER], "tools": [described]}).encode(), chat=True)
    json.dumps(ask.tools, ensure_ascii=False).encode()  # what a chat template writes can be tokenised


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.sampled_from(
    ["messages", "tools", "tool_choice", "response_format", "stop", "minnow", "temperature", "seed"]
)


@given(st.dictionaries(_NAMES | st.text(max_size=6), _VALUES, max_size=4))
def test_any_json_is_read_or_refused(body: dict[str, Any]) -> None:
    for chat in (True, False):
        try:
            parse(json.dumps({"messages": [USER]} | body if chat else {"prompt": "x"} | body).encode(), chat)
        except ApiError as error:
            assert error.status == 400
