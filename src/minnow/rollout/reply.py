"""What the events of an OpenAI-compatible server's answer add up to, whoever reads them."""

from __future__ import annotations

import json
from typing import Any

from minnow.loops.cause import CUT, ENDED


class ReplyError(Exception):
    """The server's reply is none, or says that there will be none; the text says how."""


class Reply:
    """One answer on its way.

    Attributes:
        usage, timings: the latest that the server gave; empty where it gives none.
        logprobs: of the tokens that :meth:`take` took last, in OpenAI's form.
    """

    def __init__(self) -> None:
        self.usage: dict[str, Any] = {}
        self.timings: dict[str, float] = {}
        self.logprobs: list[dict[str, Any]] = []
        self._reason: str | None = None
        self._thinking = False
        self._calls: dict[int, dict[str, str]] = {}

    def take(self, event: dict[str, Any]) -> str:
        """The text that an event brings; a chain of thought that comes apart is put in ``<think>`` tags.

        Raises:
            ReplyError: the event is an error, or not of OpenAI's form.
        """
        if event.get("error"):
            raise ReplyError(f"the server says: {json.dumps(event['error'], ensure_ascii=False)[:300]}")
        try:
            self.usage = dict(event.get("usage") or self.usage)
            self.timings = dict(event.get("timings") or self.timings)
            choice: dict[str, Any] = next(iter(event.get("choices") or []), {})
            self._reason = choice.get("finish_reason") or self._reason
            said = choice.get("delta") or choice.get("message") or {}
            thought = said.get("reasoning_content") or said.get("reasoning") or ""
            content = said.get("content") or choice.get("text") or ""
            self.logprobs = list((choice.get("logprobs") or {}).get("content") or ())
            for place, call in enumerate(said.get("tool_calls") or []):
                held = self._calls.setdefault(call.get("index", place), {"name": "", "arguments": ""})
                for part in held:
                    held[part] += (call.get("function") or {}).get(part) or ""
            piece = ""
            if thought:
                piece, self._thinking = ("" if self._thinking else "<think>") + thought, True
            if content and self._thinking:
                piece, self._thinking = piece + "</think>", False
            return str(piece + content)
        except (AttributeError, TypeError, ValueError) as error:
            raise ReplyError("the reply does not have the form of an OpenAI-compatible server's") from error

    @property
    def calls(self) -> list[dict[str, str]]:
        """Tool calls so far: ``name``, and ``arguments`` as the JSON text they came in."""
        return list(self._calls.values())

    def ending(self) -> str | None:
        """How the answer ended: ``"stop"``, ``"length"`` or ``"loop"``, another server's word for these among them; any
        other word as it is, None where there was none."""
        if self._reason in ENDED:
            return "stop"
        return "length" if self._reason in CUT else self._reason
