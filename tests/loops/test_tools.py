from __future__ import annotations

import json

import pytest

from minnow.loops import find_text_loop
from minnow.loops.tools import tool_cycle


def qwen(name: str, arguments: dict[str, object], result: object) -> str:
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>\n<tool_response>\n{json.dumps(result)}\n</tool_response>\n"


def lfm(name: str, arguments: dict[str, object], result: object) -> str:
    listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    call = f"<|tool_call_start|>[{name}({listed})]<|tool_call_end|>"
    return f"{call}<|tool_response_start|>{json.dumps(result)}<|tool_response_end|>"


@pytest.mark.parametrize("form", [qwen, lfm])
def test_the_same_call_with_the_same_result_is_a_loop(form) -> None:  # type: ignore[no-untyped-def]
    intro = "I look it up. "
    call = form("search", {"query": "Velm", "limit": 3}, {"error": "timeout"})
    turned = form("search", {"limit": 3, "query": "Velm"}, {"error": "timeout"})  # keys in another order
    assert len(call) == len(turned)
    text = intro + call + turned + call
    cycle = tool_cycle(text)
    assert cycle is not None and (cycle.onset, cycle.period, cycle.copies) == (len(intro) + len(call), len(call), 3.0)
    assert cycle.end == len(text.rstrip())
    loop = find_text_loop(text)
    assert loop is not None and loop.kind == "tool" and loop.confidence == 0.75
    assert find_text_loop(intro + call + turned) is None


def test_times_and_request_ids_do_not_hide_a_cycle_of_two() -> None:
    text = ""
    for second in range(10, 13):
        for name in ("open", "read"):
            text += qwen(
                name, {"path": "a"}, {"error": "denied", "at": f"2026-01-02T03:04:{second}Z", "id": f"{second}" * 8}
            )
    cycle = tool_cycle(text)
    assert cycle is not None and cycle.copies == 3.0 and cycle.period == len(text) // 3


def test_polling_and_batches_are_progress() -> None:
    polling = "".join(qwen("status", {"job": "a"}, {"done": done}) for done in range(0, 100, 5))
    batch = "".join(qwen("delete", {"path": f"file-{n}"}, {"ok": True}) for n in range(40))
    for text in (polling, batch):
        cycle = tool_cycle(text)
        assert cycle is not None and cycle.copies == 0
        assert find_text_loop(text) is None


def test_calls_without_results_need_four_and_text_without_calls_none() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n'
    assert tool_cycle(call * 3).copies == 0  # type: ignore[union-attr]
    assert tool_cycle(call * 4).copies == 4  # type: ignore[union-attr]
    assert tool_cycle("no calls here") is None and tool_cycle(call * 2) is None
    assert tool_cycle("<tool_call>{broken</tool_call>" * 5).copies == 5  # type: ignore[union-attr]
