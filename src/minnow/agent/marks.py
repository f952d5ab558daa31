"""Marks that chat formats are written with, made harmless in text that others wrote."""

from __future__ import annotations

import re

_NAMES = "tool_calls?|tool_response|tools|think|start_of_turn|end_of_turn|bos|eos|pad|unk|s|function_calls?|invoke"
_MARK = re.compile(
    rf"<(?=[|｜][^<>|｜]{{1,60}}[|｜]>|/?(?:{_NAMES})\s*>)|\[(?=/?(?:INST|SYS|SYSTEM_PROMPT|TOOL_[A-Z]+|AVAILABLE_TOOLS)\])",
    re.IGNORECASE,
)


def neutral(text: str) -> str:
    """``text`` with every mark of a chat format broken by a space (``< |im_end|>``), so that nothing reads it as one.

    The tokenizers here spell out special tokens in what the user and the tools say anyway; this also holds where a server
    renders the template, and for marks that are ordinary tokens (``<tool_call>``), which a model might copy.
    """
    return _MARK.sub(lambda found: found[0] + " ", text)
