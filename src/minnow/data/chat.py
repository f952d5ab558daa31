"""ChatML in LFM2.5's form: messages to the pieces of text that are tokenised one by one.

Special tokens exist only where this module writes them. Text from a user, a system prompt, a tool schema or a
tool result is never searched for them, so a page that contains ``<|im_end|>`` cannot end its own turn. Assistant
text is: the model's tool calls are written with ``<|tool_call_start|>`` and ``<|tool_call_end|>``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minnow.errors import UserError

PAD, BOS, END_OF_TEXT, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (
    PAD,
    BOS,
    END_OF_TEXT,
    "<|fim_pre|>",
    "<|fim_mid|>",
    "<|fim_suf|>",
    START,
    END,
    "<|tool_list_start|>",
    "<|tool_list_end|>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|tool_response_start|>",
    "<|tool_response_end|>",
)
"""LFM2's special tokens; the index is the token id."""

FILL_IN = (
    ("<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>"),
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
)
"""What stands before the prefix, the middle and the suffix of a document to fill in: LFM2's, Qwen's, StarCoder's."""

ROLES = ("system", "user", "assistant", "tool")

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set ns = namespace(system="") -%}
{%- if messages[0]["role"] == "system" -%}
    {%- set ns.system = messages[0]["content"] -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set ns.system = ns.system + ("\\n" if ns.system else "") + "List of tools: [" -%}
    {%- for tool in tools -%}
        {%- set ns.system = ns.system + (tool | tojson) + ("" if loop.last else ", ") -%}
    {%- endfor -%}
    {%- set ns.system = ns.system + "]" -%}
{%- endif -%}
{%- if ns.system -%}
    {{- "<|im_start|>system\\n" + ns.system + "<|im_end|>\\n" -}}
{%- endif -%}
{%- for message in messages -%}
    {{- "<|im_start|>" + message["role"] + "\\n" + message["content"] + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""
"""The same format for transformers and llama.cpp; :func:`turns` is its counterpart here."""


@dataclass(frozen=True)
class Turn:
    """One turn: ``role`` and the text between the role's line and ``<|im_end|>``."""

    role: str
    content: str


def turns(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> Iterator[Turn]:
    """The turns of a conversation, with the list of tools written at the end of the system turn.

    Raises:
        UserError: no messages, an unknown role, or content that is not a string.
    """
    if not messages:
        raise UserError("a conversation needs at least one message; this one is empty")
    given = [_turn(index, message) for index, message in enumerate(messages)]
    system = given.pop(0).content if given[0].role == "system" else ""
    if tools:
        listed = ", ".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        system = f"{system}\nList of tools: [{listed}]" if system else f"List of tools: [{listed}]"
    if system:
        yield Turn("system", system)
    yield from given


def joined(texts: Sequence[str]) -> str:
    """Several turns of the assistant, with others' between them, as one text; :func:`parted` gives them back."""
    return f"{END}\n".join(text.replace(END, "") for text in texts)


def parted(text: str) -> list[str]:
    """The turns of :func:`joined`."""
    return [turn.removeprefix("\n") for turn in text.split(END)]


def _turn(index: int, message: Mapping[str, Any]) -> Turn:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"message {index} has the role {role!r}; use one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(
            f"message {index} ({role}) needs its 'content' as a string, not {type(content).__name__}; "
            "write structured content as JSON text and tool calls as text between the tool-call tokens"
        )
    return Turn(role, content)
