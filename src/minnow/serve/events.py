"""Server-sent events, out of whatever bytes have come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from minnow.serve.errors import ApiError

_LONGEST = 1 << 24  # bytes of one event


async def events(source: AsyncIterable[bytes]) -> AsyncIterator[list[dict[str, Any]]]:
    """The JSON objects of a stream up to ``[DONE]``, together those that came together.

    Raises:
        ApiError: 502, an event is no JSON object or does not end.
    """
    held = b""
    async for some in source:
        held = (held + some).replace(b"\r\n", b"\n")
        whole, separator, rest = held.rpartition(b"\n\n")
        if not separator:
            if len(held) > _LONGEST:
                raise ApiError(502, "the server's stream has an event without an end", "bad_upstream")
            continue
        held, found, done = rest, [], False
        for block in whole.split(b"\n\n"):
            for line in block.split(b"\n"):
                name, _, data = line.partition(b":")
                if name == b"error" and data:
                    name, data = b"data", b'{"error":' + data + b"}"
                if name != b"data" or not data.strip():
                    continue
                if data.strip() == b"[DONE]":
                    done = True
                    break
                found.append(_parsed(data))
        if found:
            yield found
        if done:
            return


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(502, "the server's stream is not JSON", "bad_upstream") from error
    if not isinstance(event, dict):
        raise ApiError(502, "the server's stream holds no JSON objects", "bad_upstream")
    return event
