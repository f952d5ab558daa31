"""What the mock APIs share."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]


class ApiError(Exception):
    """Why a call cannot be done: one sentence that comes back in place of a result."""


def required(condition: object, otherwise: str) -> None:
    """Raise :class:`ApiError` with ``otherwise`` unless ``condition`` holds."""
    if not condition:
        raise ApiError(otherwise)
