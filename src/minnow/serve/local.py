"""A request made ready for a model on this machine, with the tokenizer and chat format it was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.serve.bodies import Ask
from minnow.serve.errors import ApiError
from minnow.serve.source import Prompt
from minnow.serve.trimming import trimmed

_TOKENS = 1024  # of an answer, where the client sets no budget


def prepare(ask: Ask, tokenizer: Tokenizer, context: int) -> Prompt:
    """The token ids of a request, its oldest messages left out where they do not fit ``context``.

    Half of the context is for the prompt at least, however many tokens are asked for.

    Raises:
        ApiError: 400, an empty prompt, one that does not fit, or messages the chat format has no place for.
    """
    room = context - min(ask.max_tokens or 1, context // 2)
    if ask.messages is None:
        ids, dropped = [*tokenizer.begin, *tokenizer.encode(ask.prompt)], 0
        if len(ids) > room:
            raise ApiError(400, f"the prompt has {len(ids)} tokens and at most {room} fit", "context_length_exceeded", "prompt")  # fmt: skip
    else:
        tools = list(ask.tools) or None

        def read(messages: Sequence[Mapping[str, Any]]) -> list[int]:
            try:
                return tokenizer.prompt(messages, tools)
            except UserError as error:
                raise ApiError(400, str(error), "invalid_value", "messages") from error

        messages = trimmed(ask.messages, lambda some: len(read(some)), room)
        ids, dropped = read(messages), len(ask.messages) - len(messages)
    if not ids:
        raise ApiError(400, "the prompt is empty", "invalid_value", "prompt")
    return Prompt(ask, min(ask.max_tokens or _TOKENS, context - len(ids)), tuple(ids), dropped)
