from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from minnow.agent import (
    Answered,
    Called,
    ChatSession,
    Limits,
    Returned,
    SearchIndex,
    Tool,
    calculator_tool,
    chat,
    search_tool,
)
from minnow.errors import UserError

Make = Callable[..., Any]  # a ScriptedEngine of conftest.py
CALL = '<|tool_call_start|>[calculator(expression="6*7")]<|tool_call_end|>'


def make_session(engine: Any, *tools: Tool, **limits: int) -> ChatSession:
    return ChatSession(engine, engine.tokenizer, tools, Limits(**limits))


def talk(session: ChatSession, typed: str) -> str:
    out = io.StringIO()
    chat(session, io.StringIO(typed), Console(file=out, highlight=False, soft_wrap=True))
    return out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_events_come_as_they_happen(scripted: Make) -> None:
    engine = scripted(CALL, "It is 42.")
    events = make_session(engine, calculator_tool()).send("6*7?")
    first = next(events)
    assert isinstance(first, Called) and first.call.arguments == {"expression": "6*7"} and len(engine.batches) == 1
    assert list(events) == [Returned("42", True), Answered("It is 42.", "answer")]


def test_the_conversation_is_remembered_and_reset(scripted: Make) -> None:
    engine = scripted("Hello.", "Tarn.", "Again.")
    session = make_session(engine)
    for text in ("Hi", "Where?"):
        list(session.send(text))
    said = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Where?"},
    ]
    assert engine.prompts[1] == engine.tokenizer.prompt(said)
    session.reset()
    list(session.send("Where?"))
    assert engine.prompts[2] == engine.tokenizer.prompt(said[2:])


def test_a_turn_without_an_answer_leaves_no_trace(scripted: Make) -> None:
    engine = scripted("Hello.", KeyboardInterrupt(), ("na na na na", "loop"), *[CALL] * 4, "Fine.")
    session = make_session(engine, calculator_tool())
    list(session.send("Hi"))
    before = list(session.messages)
    with pytest.raises(KeyboardInterrupt):
        list(session.send("stopped"))
    assert session.messages == before
    assert list(session.send("looping"))[-1] == Answered("na na na na", "loop") and session.messages == before
    assert list(session.send("circles"))[-1] == Answered("", "loop") and session.messages == before
    list(session.send("ok"))
    assert [m["content"] for m in session.messages] == ["Hi", "Hello.", "ok", "Fine."]


def test_the_oldest_exchanges_are_forgotten_when_the_context_is_full(scripted: Make) -> None:
    engine = scripted("word " * 20)
    session = make_session(engine, max_context=400, max_new_tokens=100)
    for number in range(6):
        assert list(session.send(f"question {number}"))[-1].finish == "answer"
    assert all(len(prompt) + 100 <= 400 for prompt in engine.prompts)
    kept = [m["content"] for m in session.messages if m["role"] == "user"]
    assert 1 < len(kept) < 6 and kept == [f"question {n}" for n in range(6)][-len(kept) :]
    asked = len(engine.prompts)
    assert list(session.send("long " * 400)) == [Answered("", "length")] and len(engine.prompts) == asked


def test_old_exchanges_make_room_for_a_tool_result(scripted: Make) -> None:
    page = Tool("page", "", {}, lambda: "text " * 30)
    engine = scripted("word " * 20, "word " * 20, "<|tool_call_start|>[page()]<|tool_call_end|>", "Read.")
    session = make_session(engine, page, max_context=460, max_new_tokens=100)
    for text in ("one", "two"):
        list(session.send(text))
    assert list(session.send("three"))[-1] == Answered("Read.", "answer")
    assert len(engine.prompts[3]) < len(engine.prompts[2]) + len(engine.tokenizer.encode("text " * 30))
    assert session.messages[-4] == {"role": "user", "content": "three"}


def test_piped_questions_one_a_line(scripted: Make, index: SearchIndex) -> None:
    engine = scripted('<|tool_call_start|>[search(query="Osk")]<|tool_call_end|>', "212 km.", "Yes.")
    shown = talk(make_session(engine, search_tool(index)), "How long is Osk?\n\nReally?")
    assert shown.splitlines()[0] == "→ search(query='Osk')"
    assert "  Osk: Osk is a river of 212 km." in shown and shown.endswith("212 km.\nYes.\n")
    assert "you>" not in shown


def test_commands(scripted: Make) -> None:
    engine = scripted("One.", "Two.", "Three.")
    session = make_session(engine, calculator_tool())
    shown = talk(session, "/tools off\nfirst\n/reset\n/tools on\nsecond\n/tools maybe\n/quit\nthird\n")
    assert shown.startswith("tools off\nOne.\nforgotten\ntools on\nTwo.\nunknown command /tools maybe\n")
    assert len(engine.prompts) == 2 and "/reset" in shown
    question = [{"role": "user", "content": "first"}]
    assert engine.prompts[0] == engine.tokenizer.prompt(question)
    assert engine.prompts[1] == engine.tokenizer.prompt(
        [{"role": "user", "content": "second"}], [calculator_tool().schema()]
    )
    assert talk(make_session(scripted("x")), "/tools on\n") == "tools off (this chat has none)\n"


def test_text_cannot_drive_the_terminal(scripted: Make) -> None:
    nasty = "[bold]x[/bold] \x1b[2J\x9b31m\x07 [/nope] done"
    shown = talk(make_session(scripted(nasty)), f"{nasty}\n")
    assert shown == "[bold]x[/bold] [2J31m [/nope] done\n"


def test_endings_are_told(scripted: Make) -> None:
    shown = talk(make_session(scripted(("na na", "loop"), ("cut off", "length"))), "a\nb\n")
    assert "na na\nstopped: the model was going in circles\ncut off\ncut: " in shown


def test_control_c_stops_an_answer_and_leaves_at_the_prompt(scripted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["one", "two", KeyboardInterrupt(), "three"])

    def read(prompt: str) -> str:
        assert prompt == "you> "
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    session, out = make_session(scripted(KeyboardInterrupt(), "Second.")), io.StringIO()
    chat(session, Terminal(), Console(file=out, highlight=False))
    assert "stopped\nSecond.\n" in out.getvalue() and next(typed) == "three"
    assert [m["content"] for m in session.messages] == ["two", "Second."]


def test_control_d_leaves(scripted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    engine = scripted("never")
    chat(make_session(engine), Terminal(), Console(file=io.StringIO()))
    assert engine.prompts == []


def test_control_c_with_piped_input_is_the_callers(scripted: Make) -> None:
    with pytest.raises(KeyboardInterrupt):
        talk(make_session(scripted(KeyboardInterrupt())), "a\n")


def test_input_that_is_not_text(scripted: Make) -> None:
    engine = scripted("ok")
    piped = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8")
    with pytest.raises(UserError, match="not UTF-8"):
        chat(make_session(engine), piped, Console(file=io.StringIO()))
    assert list(make_session(engine).send("caf\udce9"))[-1] == Answered("ok", "answer")
    assert engine.prompts[0] == engine.tokenizer.prompt([{"role": "user", "content": "caf?"}])
