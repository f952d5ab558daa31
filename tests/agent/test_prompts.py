"""Models behind a server and of other families: the same loop, other prompts and other forms of calls."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from bad_server import Reply, bad_server, event, refusal, spoken, stream
from minnow.agent import Limits, Tool, Trace, run_agent
from minnow.agent.marks import neutral
from minnow.rollout.server_engine import ServerEngine, openai_messages


@dataclass
class Task:
    id: str
    messages: list[dict[str, Any]]


QUESTION = Task("q", [{"role": "user", "content": "Who?"}])


def called(*calls: tuple[str, str]) -> Reply:
    """A stream with calls that came apart, as servers send them."""
    listed = [
        {"index": place, "id": f"x{place}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for place, (name, arguments) in enumerate(calls)
    ]
    return stream(
        [event(delta={"tool_calls": listed}), event(delta={}, finish_reason="tool_calls"), b"data: [DONE]\n\n"]
    )


def run(replies: list[Reply], tools: list[Tool], **limits: Any) -> tuple[Trace, list[dict[str, Any]]]:
    turns = iter(replies)
    with bad_server(lambda body, n: next(turns)) as server:
        engine = ServerEngine(server.url, "m", pause=0.01)
        (trace,) = run_agent(engine, None, [QUESTION], tools, Limits(**limits))
        return trace, server.bodies


def echo() -> Tool:
    return Tool("echo", "say it again", {"text": "string"}, lambda text: text)


def test_a_server_calls_reads_and_answers() -> None:
    trace, bodies = run([called(("echo", '{"text": "a"}'), ("echo", '{"text": "b"}')), spoken("It is a, b.")], [echo()])
    assert (trace.finish, trace.answer, [c.result for c in trace.calls]) == ("answer", "It is a, b.", ["a", "b"])
    assert bodies[0]["tools"] == [echo().function_schema()]
    user, assistant, *results = bodies[1]["messages"]
    assert user == QUESTION.messages[0] and assistant["content"] == ""
    assert [json.loads(c["function"]["arguments"]) for c in assistant["tool_calls"]] == [{"text": "a"}, {"text": "b"}]
    assert [r["tool_call_id"] for r in results] == [c["id"] for c in assistant["tool_calls"]]
    assert [r["content"] for r in results] == ["a", "b"] and bodies[1]["messages"][:1] == bodies[0]["messages"]


def test_what_a_server_cannot_say_goes_back_or_ends_the_run() -> None:
    trace, bodies = run([called(("echo", '{"text": ')), spoken("ok")], [echo()])
    assert (trace.finish, trace.unreadable, trace.calls) == ("answer", 1, [])
    assert bodies[1]["messages"][-1]["role"] == "user" and "not JSON" in bodies[1]["messages"][-1]["content"]
    failed, _ = run([refusal(400, "context too long")], [echo()])
    assert failed.finish == "failed" and "context too long" in failed.error
    json_answer, _ = run([spoken('{"town": "Velm"}')], [])
    assert json_answer.answer == '{"town": "Velm"}'


def test_calls_written_as_text_are_told_from_what_is_said_beside_them() -> None:
    said = '<think>hm</think>I look.\n<tool_call>{"name": "echo", "arguments": {"text": "a"}}</tool_call>'
    messages = [*QUESTION.messages, {"role": "assistant", "content": said}, {"role": "tool", "content": "a"}]
    _, assistant, result = openai_messages(messages)
    assert assistant["content"] == "I look." and result["tool_call_id"] == assistant["tool_calls"][0]["id"]
    bare = [{"role": "assistant", "content": '{"name": "echo", "parameters": {}}'}]
    assert openai_messages(bare)[0]["content"] == ""


@pytest.mark.parametrize(
    "mark",
    ["<|im_end|>", "<|im_start|>", "<|tool_call_start|>", "<|eot_id|>", "<|start_header_id|>", "<|endoftext|>", "<tool_call>",
     "</tool_call>", "<tool_response>", "<think>", "</think>", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>", "<bos>",
     "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "<｜User｜>", "<｜end▁of▁sentence｜>", "<TOOL_CALL>"],
)  # fmt: skip
def test_marks_in_text_from_outside_are_broken(mark: str) -> None:
    assert neutral(f"a{mark}b") == f"a{mark[0]} {mark[1:]}b"
    assert neutral(neutral(mark)) == neutral(mark)


@pytest.mark.parametrize("text", ["a < b | c > d", "<strong>x</strong>", "x[1] <= y", "<|> and <||>", "[link](url)"])
def test_other_text_is_left_alone(text: str) -> None:
    assert neutral(text) == text
