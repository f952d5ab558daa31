"""The bodies of requests: what they may hold, and what becomes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from minnow.agent.grammar import parameter_schema
from minnow.data.calls import Call, check_name, render_calls
from minnow.files import whole_pairs
from minnow.serve.errors import ApiError
from minnow.serve.schema import check, check_answer_schema

Action = Literal["local", "search", "cloud"]
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_TEXT = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"type": "string", "enum": ["text"]}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ]
}
_CALL = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "type": {"type": "string", "enum": ["function"]},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
            "required": ["name", "arguments"],
        },
        "index": {"type": "integer"},
    },
    "required": ["function"],
}
_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [*_TEXT["anyOf"], {"type": "null"}]},
        "tool_calls": {"anyOf": [{"type": "array", "items": _CALL}, {"type": "null"}]},
        "tool_call_id": {"type": "string"},
        "name": {"type": "string"},
    },
    "required": ["role"],
}
_TOOL = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["function"]},
        "function": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 64},
                "description": {"type": "string"},
                "parameters": {"type": "object"},
                "strict": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            },
            "required": ["name"],
            "additionalProperties": False,
        },
    },
    "required": ["type", "function"],
    "additionalProperties": False,
}
_NAMED = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["function"]},
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["type", "function"],
    "additionalProperties": False,
}
_FORMAT = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
        "json_schema": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "description": {"type": "string"},
                "schema": {"type": "object"},
                "strict": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            },
            "required": ["schema"],
            "additionalProperties": False,
        },
    },
    "required": ["type"],
    "additionalProperties": False,
}
_SHARED: dict[str, Any] = {
    "model": {"type": "string"},
    "stream": {"type": "boolean"},
    "stream_options": {
        "type": "object",
        "properties": {"include_usage": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "max_tokens": {"type": "integer", "minimum": 1},
    "seed": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "stop": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 4}]},
    "n": {"type": "integer", "minimum": 1, "maximum": 1},
    "user": {"type": "string", "maxLength": 512},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "minnow": {
        "type": "object",
        "description": "which way the answer may go, and by when it is wanted",
        "properties": {
            "route": {"type": "string", "enum": ["auto", "local", "search", "cloud"]},
            "private": {"type": "boolean", "description": "the text never leaves this machine"},
            "deadline_ms": {"type": "integer", "minimum": 1, "maximum": 86_400_000},
        },
        "additionalProperties": False,
    },
}
CHAT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "messages": {"type": "array", "items": _MESSAGE, "minItems": 1, "maxItems": 4096},
        **_SHARED,
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "logprobs": {"type": "boolean"},
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
        "tools": {"type": "array", "items": _TOOL, "maxItems": 128},
        "tool_choice": {"anyOf": [{"type": "string", "enum": ["none", "auto", "required"]}, _NAMED]},
        "parallel_tool_calls": {"type": "boolean"},
        "response_format": _FORMAT,
    },
    "required": ["messages"],
    "additionalProperties": False,
}
COMPLETION: dict[str, Any] = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string"},
        **_SHARED,
        "logprobs": {"type": "integer", "minimum": 0, "maximum": 5},
        "echo": {"type": "boolean", "enum": [False]},
    },
    "required": ["prompt"],
    "additionalProperties": False,
}


EMBEDDING: dict[str, Any] = {
    "type": "object",
    "properties": {
        "input": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 256},
            ]
        },
        "model": _SHARED["model"],
        "encoding_format": {"type": "string", "enum": ["float", "base64"]},
        "user": _SHARED["user"],
    },
    "required": ["input"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Ask:
    """What a client asks for.

    Attributes:
        body: the request as it came, but for ``minnow``: what an upstream is sent.
        messages: of a chat, content as text and tool calls in the model's own form; None for a completion.
        prompt: of a completion.
        tools: functions on offer, as the model reads them.
        must_call: names of which one has to be called; empty where nothing has to be.
        schema: what the answer is held to.
        logprobs: alternatives to every token whose log-probabilities are wanted; None: no log-probabilities.
        route, private, deadline: of ``minnow``; the deadline in seconds.
    """

    body: dict[str, Any]
    messages: tuple[dict[str, Any], ...] | None
    prompt: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    must_call: tuple[str, ...] = ()
    one_call: bool = False
    schema: dict[str, Any] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage_in_stream: bool = False
    logprobs: int | None = None
    user: str = ""
    route: Literal["auto", "local", "search", "cloud"] = "auto"
    private: bool = False
    deadline: float | None = None


def parse(raw: bytes, chat: bool) -> Ask:
    """The request in a body.

    Raises:
        ApiError: 400: no UTF-8, no JSON, an unknown parameter (which is named), a value that is none, or a combination
            that no answer can have.
    """
    body = _checked(raw, CHAT if chat else COMPLETION)
    wishes = body.pop("minnow", {})
    deadline = wishes.get("deadline_ms")
    stop = body.get("stop", ())
    shared: dict[str, Any] = {
        "body": body,
        "temperature": float(body.get("temperature", 0.0)),
        "top_p": float(body.get("top_p", 1.0)),
        "frequency_penalty": float(body.get("frequency_penalty", 0.0)),
        "presence_penalty": float(body.get("presence_penalty", 0.0)),
        "max_tokens": body.get("max_completion_tokens", body.get("max_tokens")),
        "seed": body.get("seed"),
        "stop": tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text),
        "stream": body.get("stream", False),
        "usage_in_stream": body.get("stream_options", {}).get("include_usage", False),
        "user": body.get("user", ""),
        "route": wishes.get("route", "auto"),
        "private": wishes.get("private", False),
        "deadline": None if deadline is None else deadline / 1000,
    }
    if shared["private"] and shared["route"] == "cloud":
        raise ApiError(
            400, "minnow.private and minnow.route 'cloud' exclude each other", "invalid_value", "minnow.route"
        )
    if not chat:
        return Ask(messages=None, prompt=body["prompt"], logprobs=body.get("logprobs"), **shared)
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_value", "top_logprobs")
    tools, must_call = _tools(body)
    schema = _schema(body.get("response_format", {"type": "text"}))
    if schema is not None and tools:
        raise ApiError(
            400, "response_format and tools exclude each other; leave one of them out", "invalid_value", "tools"
        )
    return Ask(
        messages=tuple(_message(place, message) for place, message in enumerate(body["messages"])),
        tools=tools,
        must_call=must_call,
        one_call=not body.get("parallel_tool_calls", True),
        schema=schema,
        logprobs=body.get("top_logprobs", 0) if body.get("logprobs") else None,
        **shared,
    )


def parse_embedding(raw: bytes) -> tuple[dict[str, Any], list[Ask]]:
    """The body of a request for embeddings, and each of its texts as something to be read.

    Raises:
        ApiError: as :func:`parse`.
    """
    body = _checked(raw, EMBEDDING)
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    return body, [Ask({}, None, text) for text in texts]


def _checked(raw: bytes, schema: dict[str, Any]) -> dict[str, Any]:
    body = _json(raw)
    # OpenAI's clients may send null for "not given".
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if value is not None}
    check(body, schema)
    return dict(body)


def _json(raw: bytes) -> Any:
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
        return json.loads(whole_pairs(json.dumps(value, ensure_ascii=False))) if _SURROGATE.search(raw) else value
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 at byte {error.start}", "invalid_utf8") from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deep", "invalid_json") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", "invalid_json") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _message(place: int, message: dict[str, Any]) -> dict[str, Any]:
    role, content = message["role"], message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    calls = message.get("tool_calls") or []
    if content is None and not calls:
        raise ApiError(400, f"messages[{place}].content is missing", "invalid_value", f"messages[{place}].content")
    content = content or ""
    if calls:
        try:
            content += render_calls([_call(call["function"]) for call in calls])
        except (ValueError, RecursionError) as error:
            where = f"messages[{place}].tool_calls"
            raise ApiError(400, f"{where} cannot be read: {error}", "invalid_value", where) from error
    # The arguments of a call are JSON inside JSON, whose escapes have been read only now.
    return {"role": "system" if role == "developer" else role, "content": whole_pairs(content)}


def _call(function: dict[str, Any]) -> Call:
    arguments = json.loads(function["arguments"] or "{}")
    if not isinstance(arguments, dict):
        raise ValueError("the arguments of a call are a JSON object")  # noqa: TRY004  as other JSON that is none
    return Call(function["name"], arguments)


def _tools(body: dict[str, Any]) -> tuple[tuple[dict[str, Any], ...], tuple[str, ...]]:
    """The functions on offer, and which of them must be called."""
    tools = tuple(tool["function"] for tool in body.get("tools", ()))
    names = [tool["name"] for tool in tools]
    for place, tool in enumerate(tools):
        where = f"tools[{place}].function"
        try:
            check_name(tool["name"])
        except ValueError as error:
            raise ApiError(400, f"{where}.name: {error}", "invalid_value", f"{where}.name") from error
        schema = parameter_schema(tool)
        check_answer_schema(schema, f"{where}.parameters")
        for key in schema.get("properties", {}):
            if not key.isidentifier() or not key.isascii():
                raise ApiError(400, f"{where} has a parameter {key!r}; use letters, digits and underscores", "invalid_value", f"{where}.parameters")  # fmt: skip
    choice = body.get("tool_choice", "auto")
    if choice == "none":
        return (), ()
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        if name not in names:
            raise ApiError(
                400, f"tool_choice names {name!r}, which is not among the tools", "invalid_value", "tool_choice"
            )
        return tools, (name,)
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice 'required' needs tools", "invalid_value", "tool_choice")
    return tools, tuple(names) if choice == "required" else ()


def _schema(form: dict[str, Any]) -> dict[str, Any] | None:
    if form["type"] == "text":
        return None
    if form["type"] == "json_object":
        return {"type": "object"}
    if "json_schema" not in form:
        raise ApiError(400, "response_format.json_schema is missing", "missing_required_parameter", "response_format.json_schema")  # fmt: skip
    schema: dict[str, Any] = form["json_schema"]["schema"]
    check_answer_schema(schema, "response_format.json_schema.schema")
    return schema


def prompt_text(ask: Ask) -> Iterator[str]:
    """Every text that a request would carry to a server, names and numbers too: what is searched for personal data."""
    yield ask.prompt
    yield from (message["content"] for message in ask.messages or ())
    left: list[Any] = [value for name, value in ask.body.items() if name not in ("prompt", "messages", "user")]
    # What a message holds beside its text; that has its parts joined and its calls written out above.
    left += [value for message in ask.body.get("messages", ()) for name, value in message.items() if name != "content"]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        else:
            yield str(value)
