"""For TRL's ``GRPOTrainer`` and ``RLOOTrainer``: a reward that is negative for completions that loop, and 0 otherwise.

TRL's own repetition reward counts repeated 3-grams, and takes more off a long table than off a doom loop at the end of
a long answer. This one takes nothing off what the verdict calls clean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from minnow.loops.find import find_text_loops

Completion = str | Sequence[dict[str, Any]]
"""What TRL passes: a text, or the messages of a conversation with the calls and results of its tools."""


def loop_reward(eos_token_id: int | Collection[int], penalty: float = -1.0) -> Callable[..., list[float]]:
    """A reward function for ``reward_funcs``: ``penalty`` for a completion that loops, 0.0 for any other.

    Args:
        eos_token_id: what ends an answer, one id or several. A completion that ended by itself is no loop, whatever it
            repeated; one that was cut is judged by its text. A tool call ends no answer.
    """
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)

    def loop_reward(
        completions: Sequence[Completion], completion_ids: Sequence[Sequence[int]] | None = None, **columns: Any
    ) -> list[float]:
        ids = completion_ids or [()] * len(completions)
        cut = [not (row and row[-1] in ends) or _calls(one) for one, row in zip(completions, ids, strict=True)]
        texts = [as_text(one) if open_ended else "" for one, open_ended in zip(completions, cut, strict=True)]
        return [0.0 if loop is None else penalty for loop in find_text_loops(texts)]

    return loop_reward


def as_text(completion: Completion) -> str:
    """A completion as one text, its tool calls and their results in the tags that the verdict reads."""
    return completion if isinstance(completion, str) else "\n".join(map(_message, completion))


def _calls(completion: Completion) -> bool:
    """Whether the conversation ends with tools rather than with an answer."""
    if isinstance(completion, str) or not completion:
        return False
    return completion[-1].get("role") == "tool" or bool(completion[-1].get("tool_calls"))


def _message(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if not isinstance(content, str):  # a list of parts
        content = "".join(part.get("text") or "" for part in content)
    if message.get("role") == "tool":
        return f"<tool_response>{content}</tool_response>"
    calls = [json.dumps(call.get("function", call), default=str) for call in message.get("tool_calls") or ()]
    return "\n".join(filter(None, (content, *(f"<tool_call>{call}</tool_call>" for call in calls))))
