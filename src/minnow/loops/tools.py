"""Tool-call cycles in an output's text: the same calls with the same arguments and the same results, again and again.

A call is known by its name, its arguments in canonical form, and its result: polling a job or reading a file after an
edit makes the same call and learns something new. Request ids and times are left out of results, which differ in
every answer and tell the model nothing.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from dataclasses import dataclass

MOST_CALLS = 8  # in one cycle
COPIES = 3  # of the cycle with its results
COPIES_UNSEEN = 4  # where the text holds no results
_LOOKED_AT = 1 << 17  # characters from the end

_CALL = re.compile(
    r"<tool_call>(?P<qwen>.*?)</tool_call>|<\|tool_call_start\|>(?P<lfm>.*?)<\|tool_call_end\|>"
    r"|<\|python_tag\|>(?P<llama>.*?)<\|eom_id\|>|\[TOOL_CALLS\](?P<mistral>.*?)(?=\n|</s>|$)",
    re.DOTALL,
)
_RESULT = re.compile(
    r"<tool_response>(.*?)</tool_response>|<\|tool_response_start\|>(.*?)<\|tool_response_end\|>"
    r"|<\|start_header_id\|>ipython<\|end_header_id\|>(.*?)<\|eot_id\|>|\[TOOL_RESULTS\](.*?)\[/TOOL_RESULTS\]",
    re.DOTALL,
)
_MARKS = ("<tool_call>", "<|tool_call_start|>", "<|python_tag|>", "[TOOL_CALLS]")
# Times, UUIDs, hexadecimal ids and numbers of nine digits and more.
_STAMP = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?|\b\d\d:\d\d:\d\d\b"
    r"|\b[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b|\b(?=[a-fA-F]*\d)[0-9a-fA-F]{12,}\b|\b\d{9,}\b"
)


@dataclass(frozen=True)
class ToolCycle:
    """``onset``, ``period`` and ``end`` in characters; ``copies`` is 0 where there are calls and no cycle."""

    onset: int
    period: int
    copies: float
    end: int


def tool_cycle(text: str) -> ToolCycle | None:
    """The cycle of calls that ``text`` ends in; None where it makes fewer than three calls."""
    if not any(mark in text for mark in _MARKS):
        return None
    skipped = max(0, len(text) - _LOOKED_AT)
    tail = text[skipped:]
    calls = list(_CALL.finditer(tail))
    if len(calls) < COPIES:
        return None
    ends = [call.start() for call in calls[1:]] + [len(tail)]
    results = [_RESULT.search(tail, call.end(), end) for call, end in zip(calls, ends, strict=True)]
    if any(results) and results[-1] is None:
        # The output was cut before the last result came.
        calls, results = calls[:-1], results[:-1]

    @functools.cache  # where there is no cycle, few are asked for
    def seen(back: int) -> tuple[str, str | None]:
        """The call ``back`` before the last one."""
        call, result = calls[-1 - back], results[-1 - back]
        return _canonical(_inside(call)), _plain(_inside(result)) if result else None

    least = COPIES if any(results) else COPIES_UNSEEN
    for length in range(1, min(MOST_CALLS, len(calls) // least) + 1):
        covered = length
        while covered < len(calls) and seen(covered) == seen(covered - length):
            covered += 1
        if covered >= least * length:
            start = len(calls) - covered
            first, second = calls[start].start(), calls[start + length].start()
            last = results[-1].end() if results[-1] else calls[-1].end()
            return ToolCycle(second + skipped, second - first, covered / length, last + skipped)
    return ToolCycle(0, 0, 0.0, 0)


def _inside(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).strip()


@functools.lru_cache(maxsize=1024)  # a cycle makes the same few calls over and over, and parsing is slow
def _canonical(inside: str) -> str:
    """Name and arguments with keys in order, where they can be read; else the text without its spacing."""
    try:
        return json.dumps(json.loads(inside), sort_keys=True)
    except (ValueError, RecursionError):
        pass
    try:
        tree = ast.parse(inside, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return " ".join(inside.split())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords.sort(key=lambda keyword: keyword.arg or "")
    return ast.dump(tree)


@functools.lru_cache(maxsize=1024)
def _plain(inside: str) -> str:
    return " ".join(_STAMP.sub("#", inside).split())


def without_tools(text: str) -> str:
    """The text without its tool calls and their results."""
    if not any(mark in text for mark in _MARKS):
        return text
    return _RESULT.sub("", _CALL.sub("", text))
