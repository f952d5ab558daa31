"""The model with tools: calls in LFM2's form, search, a calculator, the loop around them, and chat."""

from minnow.agent.chat import ChatSession, chat
from minnow.agent.index import Hit, SearchIndex
from minnow.agent.loop import Answered, Called, CallRecord, Consent, Event, Limits, Returned, Trace, run_agent
from minnow.agent.tools import Tool, calculate, calculator_tool, search_tool
from minnow.data.calls import Call, CallError, parse_calls, render_call, render_calls

__all__ = [
    "Answered", "Call", "CallError", "CallRecord", "Called", "ChatSession", "Consent", "Event", "Hit", "Limits", "Returned",
    "SearchIndex", "Tool", "Trace", "calculate", "calculator_tool", "chat", "parse_calls", "render_call",
    "render_calls", "run_agent", "search_tool",
]  # fmt: skip
