"""Answers over HTTP, and from servers that hang, cut the stream, break, or send what is no text."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from bad_server import CUT, HANG, BadServer, Reply, bad_server, event, refusal, spoken, stream
from minnow.errors import UserError
from minnow.loops import find_text_loop
from minnow.rollout import Sampling
from minnow.rollout.server_engine import TRIES, ServerEngine
from minnow.rollout.text_engine import ChatPrompt, TextAnswer, answer_all

GREEDY = Sampling(0.0, 64, stop_on_loop=False)
ROUND = "The list begins:" + " Velm and Osk," * 200


def prompt(name: str, **more: Any) -> ChatPrompt:
    return ChatPrompt(name, [{"role": "user", "content": name}], **more)


def engine(server: BadServer, **settings: Any) -> ServerEngine:
    return ServerEngine(server.url, "tiny", **({"pause": 0.01, "timeout": 0.4, "concurrency": 2} | settings))


def asked(reply: Any, *names: str, sampling: Sampling = GREEDY, **settings: Any) -> tuple[list[TextAnswer], BadServer]:
    with bad_server(reply) as server:
        return answer_all(engine(server, **settings), [prompt(name) for name in names], sampling), server


def said_to(body: dict[str, Any]) -> str:
    return str(body.get("prompt") or body["messages"][-1]["content"])


def test_answers_come_with_their_prompts_whatever_the_order() -> None:
    def reply(body: dict[str, Any], _: int) -> Reply:
        said = said_to(body)
        time.sleep(0.1 if said == "first" else 0)
        return spoken(f"to {said}: é😀", "length" if said == "third" else "stop", tokens=7)

    prompts = [
        prompt("first", tools=[{"type": "function"}, {"name": "a.b", "parameters": {}}]),
        prompt("second"),
        prompt("third", raw=True),
    ]
    samplings = [Sampling(0.5, 9, seed=3, stop_on_loop=False), GREEDY, GREEDY]
    with bad_server(reply) as server:
        came = dict(engine(server).answers(prompts, samplings))
        assert list(came)[-1] == 0, "the slow one last"
        answers = answer_all(engine(server, api_key="sesame"), prompts, samplings)
    assert [each.prompt_id for each in answers] == ["first", "second", "third"]
    assert [each.text for each in answers] == ["to first: é😀", "to second: é😀", "to third: é😀"]
    assert [each.finish_reason for each in answers] == ["stop", "stop", "length"]
    assert {each.tokens for each in answers} == {7} and [each.sampling for each in answers] == samplings
    assert [came[place] for place in range(3)] == answers
    # What was asked for, on the way the server expects it.
    sent = {said_to(body): (body, path) for body, path in zip(server.bodies, server.paths, strict=True)}
    first, path = sent["first"]
    assert path == "/v1/chat/completions" and first["tools"] == [
        {"type": "function"},
        {"type": "function", "function": {"name": "a_b", "parameters": {}}},
    ]
    assert (first["model"], first["temperature"], first["max_tokens"], first["seed"]) == ("tiny", 0.5, 9, 3)
    third, path = sent["third"]
    assert path == "/v1/completions" and third["prompt"] == "third" and "messages" not in third
    assert [headers.get("Authorization") for headers in server.headers] == [None] * 3 + ["Bearer sesame"] * 3


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_once_than_asked_for(concurrency: int) -> None:
    together = threading.Barrier(concurrency, timeout=20)

    def reply(body: dict[str, Any], _: int) -> Reply:
        together.wait()
        time.sleep(0.03)  # a request too many would come in now
        return spoken("yes")

    answers, server = asked(reply, *map(str, range(9)), concurrency=concurrency)
    assert server.most_at_once == concurrency and all(each.text == "yes" for each in answers)


BROKEN: dict[str, Reply] = {
    "hangs before the headers": (200, {}, [HANG]),
    "hangs in the answer": stream([event(delta={"content": "half"}), HANG]),
    "cuts the stream": stream([event(delta={"content": "half"}), CUT]),
    "cuts a line": stream([event(delta={"content": "half"})[:20], CUT]),
    "ends without a reason": spoken("half", None),
    "is busy": refusal(429, **{"Retry-After": "0"}),
    "is broken": refusal(500),
    "says an error in the stream": stream([b'data: {"error": {"message": "out of memory"}}\n\n']),
    "sends no JSON": stream([b"data: {half\n\n"]),
    "sends no object": stream([b"data: 3\n\n"]),
    "sends another form": stream([b'data: {"choices": [3]}\n\n']),
    "sends a page": (200, {"Content-Type": "text/html"}, [b"<html>busy</html>"]),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_request_that_goes_wrong_is_made_again(fault: str) -> None:
    """Twice wrong, then right: the answer is the whole of the third, and nothing of what came before."""
    answers, server = asked(lambda _, n: BROKEN[fault] if n < 2 else spoken("whole"), "one")
    assert [(a.text, a.finish_reason, a.error) for a in answers] == [("whole", "stop", None)]
    assert len(server.bodies) == 3 and server.bodies[0] == server.bodies[2]


def test_one_that_goes_wrong_for_ever_is_a_failed_answer() -> None:
    def reply(body: dict[str, Any], _: int) -> Reply:
        return refusal(500, "no luck") if said_to(body) in "147" else spoken("fine")

    answers, server = asked(reply, *"0123456789")
    assert [each.prompt_id for each in answers] == list("0123456789")
    failed = {each.prompt_id: each for each in answers if each.finish_reason == "failed"}
    assert set(failed) == set("147") and all("HTTP 500: " in str(a.error) and a.text == "" for a in failed.values())
    assert [said_to(body) for body in server.bodies].count("4") == TRIES


def test_a_server_that_only_keeps_the_line_open_hangs() -> None:
    comments = stream([b": still here\n\n"] * 50)

    class Slow(list[Any]):
        def __iter__(self) -> Any:
            for step in list.__iter__(self):
                time.sleep(0.05)
                yield step

    answers, _ = asked(lambda _, n: (*comments[:2], Slow(comments[2])) if n == 0 else spoken("whole"), "one")
    assert answers[0].text == "whole"


def test_prompts_that_are_refused_fail_at_once_and_others_go_on() -> None:
    """Such as one over the context: HTTP 400, which asking again does not change."""

    def reply(body: dict[str, Any], _: int) -> Reply:
        return refusal(400, "exceeds the context") if said_to(body) != "short" else spoken("fine")

    names = [*(f"long {i}" for i in range(20)), "short"]
    answers, server = asked(reply, *names)
    assert [each.finish_reason for each in answers] == ["failed"] * 20 + ["stop"]
    assert "HTTP 400" in str(answers[0].error) and "exceeds the context" in str(answers[0].error)
    assert len(server.bodies) == 21


@pytest.mark.parametrize(
    ("status", "part"), [(401, "refuses the API key"), (404, "has no model 'tiny'"), (301, "has no model 'tiny'")]
)
def test_what_no_prompt_can_change_ends_everything(status: int, part: str) -> None:
    """And the key, which some servers repeat, is in no message."""
    moved = {"Location": "http://127.0.0.1:9/elsewhere"}
    with (
        bad_server(lambda *_: refusal(status, "key sesame-1 is wrong", **moved)) as server,
        pytest.raises(UserError, match=part) as raised,
    ):
        answer_all(engine(server, api_key="sesame-1"), [prompt("one")], GREEDY)
    assert "sesame" not in str(raised.value) and "…" in str(raised.value) and len(server.bodies) == 1


def test_a_server_that_is_down_ends_the_run_after_a_while() -> None:
    """After eight prompts in a row, not after all of them: a thousand would take hours."""
    with bad_server(lambda *_: spoken("never")) as server:
        url = server.url
    gone = ServerEngine(url, "tiny", pause=0.001)
    with pytest.raises(UserError, match=f"failed 8 requests in a row, each after {TRIES} tries .no connection"):
        answer_all(gone, [prompt(str(i)) for i in range(1000)], GREEDY)
    few = answer_all(gone, [prompt(str(i)) for i in range(3)], GREEDY)
    assert [each.finish_reason for each in few] == ["failed"] * 3


def test_odd_answers_are_answers() -> None:
    latin = b'data: {"choices": [{"delta": {"content": "caf\xe9"}, "finish_reason": "stop"}]}\n\n'
    whole = {
        "choices": [{"message": {"content": "at once"}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 2},
    }
    replies: dict[str, Reply] = {
        "not UTF-8": stream([latin]),
        "half a pair": stream([event(delta={"content": "a\\ud83db"}, finish_reason="stop").replace(b"\\\\", b"\\")]),
        "empty": spoken(""),
        "empty and cut": spoken("", "length"),
        "not streamed": (200, {"Content-Type": "application/json"}, [json.dumps(whole).encode()]),
        "thinks": stream(
            [
                event(delta={"reasoning_content": "Let me "}),
                event(delta={"reasoning_content": "see."}),
                event(delta={"content": "Yes."}, finish_reason="stop"),
            ]
        ),
        "only thinks": stream([event(delta={"reasoning": "Wait."}, finish_reason="length")]),
        "calls": stream(
            [
                event(delta={"tool_calls": [{"index": 0, "function": {"name": "search", "arguments": '{"q": '}}]}),
                event(
                    delta={"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}, finish_reason="tool_calls"
                ),
            ]
        ),
        "is filtered": spoken("I can", "content_filter"),
    }
    answers, _ = asked(lambda body, _: replies[said_to(body)], *replies)
    found = {each.prompt_id: (each.text, each.finish_reason) for each in answers}
    call = '<tool_call>{"name": "search", "arguments": "{\\"q\\": 1}"}</tool_call>'
    assert found == {
        "not UTF-8": ("caf\ufffd", "stop"),
        "half a pair": ("a\ufffdb", "stop"),
        "empty": ("", "stop"),
        "empty and cut": ("", "length"),
        "not streamed": ("at once", "stop"),
        "thinks": ("<think>Let me see.</think>Yes.", "stop"),
        "only thinks": ("<think>Wait.", "length"),
        "calls": (call, "stop"),
        "is filtered": ("", "failed"),
    }
    assert answers[4].tokens == 2


def test_an_answer_is_stopped_at_its_loop_when_asked() -> None:
    """Nobody waits for the rest, which never comes."""
    pieces = [event(delta={"content": ROUND[at : at + 5]}) for at in range(0, len(ROUND), 5)]
    (stopped,), server = asked(lambda *_: stream([*pieces, HANG]), "one", sampling=Sampling(0.0, 9999, persistence=0))
    assert stopped.finish_reason == "loop" and stopped.loop is not None and len(server.bodies) == 1
    found = find_text_loop(stopped.text)
    assert found is not None and len(stopped.text) < len(ROUND) / 3
    assert (found.onset, found.period, found.kind) == (stopped.loop.onset, stopped.loop.period, stopped.loop.kind)
    long = spoken(ROUND, "length")
    (free,), _ = asked(lambda *_: long, "one", sampling=Sampling(0.0, 9999, stop_on_loop=False))
    assert (free.text, free.finish_reason, free.loop) == (ROUND, "length", None)


def test_a_server_that_does_not_keep_to_the_budget_is_cut() -> None:
    (answer,), _ = asked(lambda *_: spoken("new words " * 5000, "stop", pieces=500), "one")
    assert answer.finish_reason == "length" and 64 * 64 < len(answer.text) < 5000


def test_leaving_early_stops_the_requests() -> None:
    with bad_server(lambda *_: spoken("yes")) as server:
        came = engine(server, concurrency=1).answers([prompt(str(i)) for i in range(100)], GREEDY)
        next(came)
        came.close()
        time.sleep(0.1)
        made = len(server.bodies)
        time.sleep(0.1)
        assert made == len(server.bodies) < 100


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"url": "localhost:80/v1"}, "is no address of a server"),
        ({"url": "http://"}, "is no address of a server"),
        ({"url": "http://host:port/v1"}, "is no address of a server"),
        ({"concurrency": 0}, "0 requests at once"),
        ({"timeout": 0.0}, "0 seconds of patience"),
        ({"api_key": "two\nlines"}, "the API key holds"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        ServerEngine(**({"url": "http://localhost:1/v1", "model": "tiny"} | arguments))


def test_a_server_is_told_of_the_texts_that_end_an_answer() -> None:
    _, server = asked(lambda body, _: spoken("Yes"), "one", sampling=Sampling(0.0, 9, until=("a", "b", "c", "d", "e")))
    assert server.bodies[0]["stop"] == ["a", "b", "c", "d"], "as many as the API takes"
    _, server = asked(lambda body, _: spoken("Yes"), "one")
    assert "stop" not in server.bodies[0]
