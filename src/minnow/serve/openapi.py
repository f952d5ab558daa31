"""The API's description (OpenAPI 3.1), of the schemas that requests are checked with."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from minnow.serve.bodies import CHAT, COMPLETION, EMBEDDING

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_STATUSES = {
    "400": "the request cannot be answered; the parameter is named",
    "401": "no API key, or a wrong one",
    "403": "addressed by another name",
    "404": "no such model",
    "405": "the path does not take this method",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "422": "the server behind this one cannot work with the request",
    "429": "the queue is full; Retry-After says when to try again",
    "500": "this server has a fault; its log says more",
    "502": "the server behind this one failed",
    "503": "the model's process died and was started again",
    "504": "the deadline has passed",
}


def describe() -> dict[str, Any]:
    """The document that ``/openapi.json`` gives."""
    whole = {"application/json": {"schema": {"type": "object"}}}
    answer = whole | {"text/event-stream": {"schema": {"type": "string"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Minnow", "version": version("minnow")},
        "paths": {
            "/v1/chat/completions": {"post": _post("the assistant's next turn", CHAT, answer)},
            "/v1/completions": {"post": _post("how a text goes on", COMPLETION, answer)},
            "/v1/embeddings": {"post": _post("texts as vectors", EMBEDDING, whole)},
            "/v1/models": {"get": _get("the models on offer", "application/json")},
            "/v1/models/{name}": {"get": _get("one of them", "application/json") | {"parameters": [_NAME]}},
            "/health": {"get": _get("whether the server is up", "application/json")},
            "/metrics": {"get": _get("counts and times for Prometheus", "text/plain")},
        },
    }


def _post(summary: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "the answer", "content": answer}, **_errors()},
    }


def _get(summary: str, kind: str) -> dict[str, Any]:
    found = {"200": {"description": summary, "content": {kind: {}}}}
    return {"summary": summary, "responses": {**found, **_errors()}}


def _errors() -> dict[str, Any]:
    content = {"application/json": {"schema": _ERROR}}
    return {status: {"description": said, "content": content} for status, said in _STATUSES.items()}
