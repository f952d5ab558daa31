"""The router on the wire: a cloud that hangs, breaks, lies or is gone, and text that must not leave."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

from bad_server import CUT, HANG, BadServer, Reply, bad_server, event, refusal, spoken, stream
from minnow.agent import SearchIndex, search_tool
from minnow.serve.app import create_app
from minnow.serve.desk import Desk, Settings
from minnow.serve.links import Breaker
from minnow.serve.metrics import Metrics
from minnow.serve.policy import Cloud, Policy, Signal
from minnow.serve.probe import Probe
from minnow.serve.upstream import UpstreamSource
from served import Scripted, running

CHAT = "/v1/chat/completions"
BIG = "The cloud says so."
HASTY = {"first_token": 0.6, "stall": 0.6}


class Routed:
    """A server with a local model whose margins are ``local.margin``, and a cloud behind it."""

    def __init__(self, url: str, desk: Desk, local: Scripted, cloud: BadServer) -> None:
        self.url, self.desk, self.local, self.cloud = url, desk, local, cloud

    def ask(self, text: str = "hello", **extra: Any) -> dict[str, Any]:
        start = time.monotonic()
        response = httpx.post(
            self.url + CHAT, json={"messages": [{"role": "user", "content": text}], **extra}, timeout=30
        )
        self.seconds, self.status = time.monotonic() - start, response.status_code
        return response.json()

    def answer(self, text: str = "hello", **extra: Any) -> tuple[str, dict[str, Any]]:
        whole = self.ask(text, **extra)
        assert self.status == 200, whole
        return whole["choices"][0]["message"]["content"], whole["route"]


@contextmanager
def routed(reply: Callable[[dict[str, Any], int], Reply], url: str | None = None, **cloud: Any) -> Iterator[Routed]:
    local = Scripted(lambda text: "I think it is so.")
    local.margin = 0.2
    with bad_server(reply) as far:
        way = Cloud(url or far.url, "big", **({"retries": 0} | cloud))
        policy = Policy(cloud=way, signal=Signal(threshold=1.0, tokens=3))
        source = UpstreamSource(way.url, "big", stall=20)
        desk = Desk(local, Settings(deadline=30), Metrics(), policy, source, [])
        with running(create_app(desk)) as address:
            yield Routed(address, desk, local, far)


def said(response: httpx.Response) -> str:
    """The text of an answer, whole or streamed."""
    if response.headers["content-type"] == "application/json":
        return str(response.json()["choices"][0]["message"]["content"])
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)


def test_a_sure_answer_stays_and_an_unsure_one_goes() -> None:
    with routed(lambda body, n: spoken(BIG)) as server:
        text, route = server.answer()
        assert text == BIG and route["action"] == "cloud" and "unsure (0.20 < 1.00)" in route["reason"]
        assert route["tried"] == ["local", "cloud"] and server.cloud.bodies[0]["model"] == "big"
        server.local.margin = 1.5
        text, route = server.answer("again", user="anna")
        assert text == "I think it is so." and route == {"action": "local", "reason": "the local answer is sure (1.50)", "tried": ["local"]}  # fmt: skip
        assert len(server.cloud.bodies) == 1 and server.local.at_once == 0
        text, route = server.answer("once more", model="big", user="anna")
        assert text == BIG and route["reason"] == "asked for" and "user" not in server.cloud.bodies[1]
        assert "minnow" not in server.cloud.bodies[1]
        metrics = httpx.get(server.url + "/metrics").text
        assert 'minnow_answers_total{route="cloud",finish="stop"} 2' in metrics


def test_one_token_in_doubt_among_the_first_is_enough() -> None:
    with routed(lambda body, n: spoken(BIG)) as server:
        server.local.margin = 1.5
        for doubted, action in (("think", "cloud"), ("so.", "local")):  # the third token is the last that counts
            server.local.doubted = doubted
            assert server.answer()[1]["action"] == action


def test_a_client_gets_as_many_alternatives_as_it_asked_for() -> None:
    with routed(lambda body, n: spoken(BIG)) as server:
        server.local.margin = 1.5
        for asked in (0, 1, 2):
            listed = server.ask(logprobs=True, top_logprobs=asked)["choices"][0]["logprobs"]["content"]
            assert [len(entry["top_logprobs"]) for entry in listed] == [asked] * 5


@pytest.mark.parametrize(
    ("text", "extra"),
    [
        ("secret", {"minnow": {"private": True}}),
        ("mail anna@example.org", {}),
        ("mail anna@example.org", {"minnow": {"route": "cloud"}}),
        ("card 4111 1111 1111 1111", {"model": "big"}),
        ("sum up", {"stop": "anna@example.org"}),
        (
            "sum up",
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "parameters": {"type": "object", "properties": {"n": {"const": 4111111111111111}}},
                        },
                    }
                ]
            },
        ),
        ("sum up", {"messages": [{"role": "user", "content": "sum up", "name": "anna@example.org"}]}),
        (
            "sum up",
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"enum": ["anna@example.org"]}},
                }
            },
        ),
        ("anything", {"minnow": {"route": "local"}}),
    ],
)
def test_what_must_not_leave_is_not_on_the_wire(text: str, extra: dict[str, Any]) -> None:
    with routed(lambda body, n: spoken(BIG)) as server:
        for more in ({}, {"stream": True}):
            response = httpx.post(
                server.url + CHAT, json={"messages": [{"role": "user", "content": text}], **extra, **more}
            )
            assert response.status_code == 200 and said(response) == "I think it is so."
        assert server.cloud.bodies == [] and server.desk.cloud is not None and server.desk.cloud.sent_bytes == 0


def test_the_local_answer_stands_in_for_a_cloud_that_fails() -> None:
    replies: dict[str, Reply] = {
        "hang": stream([HANG]),
        "silent": stream([b": ping\n\n", HANG]),
        "cut": stream([CUT]),
        "error": refusal(500, "on fire"),
        "busy": refusal(429, "busy", **{"Retry-After": "3"}),
        "key": refusal(401, "wrong key"),
        "noise": stream([b"data: nonsense\n\n"]),
        "html": (200, {"Content-Type": "text/html"}, [b"<p>log in</p>"]),
    }
    with routed(lambda body, n: replies[body["messages"][-1]["content"]], failures=100, **HASTY) as server:
        for name in replies:
            text, route = server.answer(name)
            assert text == "I think it is so." and route["action"] == "local", name
            assert "unsure" in route["reason"] and "but" in route["reason"], name
            assert server.seconds < 10
        assert server.local.at_once == 0


def test_a_probe_reads_the_beginning_and_sets_its_own_threshold(tmp_path: Path) -> None:
    rows = tuple((place / 100, place >= 30) for place in range(100))
    # Of the states' means and last ones: -1 gives a half.
    Probe(np.array([1.0, 0.0, 0.0, 0.0]), 1.0, 3, rows).save(tmp_path / "probe.json")
    local = Scripted(lambda text: "I think it is so.")
    with bad_server(lambda body, n: spoken(BIG)) as far:
        policy = Policy(Cloud(far.url, "big"), Signal(probe=tmp_path / "probe.json", risk=0.1))
        desk = Desk(local, Settings(), Metrics(), policy, UpstreamSource(far.url, "big"))
        assert desk.router.threshold == pytest.approx(0.21)  # nine of a hundred and one are bad from there on
        with running(create_app(desk)) as url:
            for logprob, text in ((-1.0, "I think it is so."), (-3.0, BIG)):
                local.logprob = logprob
                whole = httpx.post(url + CHAT, json={"messages": [{"role": "user", "content": "hello"}]}).json()
                assert whole["choices"][0]["message"]["content"] == text, whole["route"]
                shown = 1 / (1 + np.exp(-1 - logprob))
                assert f"({shown:.2f}" in whole["route"]["reason"] and whole["choices"][0]["logprobs"] is None


def test_the_probe_of_another_model_is_refused(tmp_path: Path) -> None:
    Probe(np.ones(6), 0.0, 3).save(tmp_path / "probe.json")
    with bad_server(lambda body, n: spoken(BIG)) as far:
        policy = Policy(Cloud(far.url, "big"), Signal(0.5, probe=tmp_path / "probe.json"))
        desk = Desk(Scripted(), Settings(), Metrics(), policy, UpstreamSource(far.url, "big"))
        with running(create_app(desk)) as url:
            answer = httpx.post(url + CHAT, json={"messages": [{"role": "user", "content": "hello"}]})
    assert answer.status_code == 500 and "width 3, and this one has 2" in answer.json()["error"]["message"]


def test_a_call_that_is_unsure_goes_to_the_cloud() -> None:
    call = '<|tool_call_start|>[find(q="Velm")]<|tool_call_end|>'
    tool = {"type": "function", "function": {"name": "find", "parameters": {"q": "string"}}}
    with routed(lambda body, n: spoken(BIG)) as server:
        server.local.reply = lambda text: call
        text, route = server.answer(tools=[tool])
        assert text == BIG and "unsure (0.20" in route["reason"]
        server.local.margin = 1.5
        whole = server.ask(tools=[tool])
        assert whole["route"]["action"] == "local" and whole["choices"][0]["finish_reason"] == "tool_calls"
        streamed = httpx.post(server.url + CHAT, json={"messages": [{"role": "user", "content": "x"}], "tools": [tool], "stream": True})  # fmt: skip
        parts = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
        assert "content" not in [name for part in parts[1:] for name in part["choices"][0]["delta"]]


def test_a_cloud_that_does_not_begin_leaves_the_local_model_its_time() -> None:
    with routed(lambda body, n: stream([HANG]), first_token=20.0) as server:
        for _ in range(20):
            server.desk.router.here.note(0.0, 1.2, 61)
        for route in ("auto", "cloud"):
            text, where = server.answer(minnow={"deadline_ms": 2000, "route": route})
            assert text == "I think it is so." and "did not begin in time" in where["reason"]


def test_an_estimate_that_is_old_keeps_nobody_from_the_cloud() -> None:
    with routed(lambda body, n: spoken(BIG)) as server:
        assert server.answer(minnow={"deadline_ms": 3000})[0] == BIG
        for _ in range(20):
            server.desk.router.there.note(5.0, 9.0, 10)
        text, route = server.answer(minnow={"deadline_ms": 3000})
        assert text == "I think it is so." and "the cloud needs" in route["reason"]
        server.desk.router._timed -= 60
        assert server.answer(minnow={"deadline_ms": 3000})[0] == BIG


def test_thoughts_and_other_servers_words_for_an_end_are_read_as_anywhere() -> None:
    thought = [event(delta={"reasoning_content": "Let me see."}), event(delta={"content": "So it is."})]
    ends = {"eos": "stop", "max_tokens": "length", "content_filter": None}
    with routed(lambda body, n: stream([*thought, event(delta={}, finish_reason=body["messages"][-1]["content"])]), failures=9) as server:  # fmt: skip
        for word, reason in ends.items():
            whole = server.ask(word, minnow={"route": "cloud"})
            text = whole["choices"][0]["message"]["content"]
            if reason is not None:
                assert text == "<think>Let me see.</think>So it is."
                assert whole["choices"][0]["finish_reason"] == reason and whole["route"]["action"] == "cloud"
            else:
                assert "broke off" in whole["route"]["reason"] and text.endswith("I think it is so.")


def test_no_such_host_and_nobody_there() -> None:
    for url in ("http://cloud.invalid/v1", "http://127.0.0.1:9/v1"):
        with routed(lambda body, n: spoken(BIG), url=url) as server:
            text, route = server.answer(model="big")
            assert text == "I think it is so." and route["tried"] == ["cloud", "local"]


def test_an_answer_that_breaks_off_is_ended_here() -> None:
    start = [event(delta={"content": "The cloud "}), event(delta={"content": "says "})]
    for end in (HANG, CUT):
        with routed(lambda body, n, end=end: stream([*start, end]), **HASTY) as server:
            text, route = server.answer(minnow={"route": "cloud"})
            assert text.startswith("The cloud says ") and text.endswith("I think it is so.")
            assert "broke off" in route["reason"] and server.local.asked[-1].text == "The cloud says "
            # Half of one object and the whole of another are no JSON.
            server.ask(minnow={"route": "cloud"}, response_format={"type": "json_object"})
            assert server.status in (502, 504) and len(server.local.asked) == 1


def test_a_failing_cloud_is_left_alone_and_tried_again() -> None:
    well, now = [False], [0.0]
    with routed(lambda body, n: spoken(BIG) if well[0] else refusal(503)) as server:
        server.desk.router.breaker = Breaker(2, 15.0, clock=lambda: now[0])
        for text in ("a", "b", "c", "d"):
            assert server.answer(text)[1]["action"] == "local"
        assert len(server.cloud.bodies) == 2  # the others were not sent
        well[0] = True
        assert server.answer("e")[1]["action"] == "local" and len(server.cloud.bodies) == 2
        now[0] = 15.5
        assert server.answer("e")[0] == BIG and server.answer("f")[0] == BIG


def test_one_retry_before_the_first_token() -> None:
    with routed(lambda body, n: spoken(BIG) if n else refusal(500), retries=1) as server:
        assert server.answer()[0] == BIG and len(server.cloud.bodies) == 2


def test_every_request_ends_within_its_deadline() -> None:
    with routed(lambda body, n: stream([HANG]), first_token=30.0) as server:
        server.local.pause = 1.0
        for route in ("auto", "cloud"):
            whole = server.ask(minnow={"deadline_ms": 1000, "route": route})
            assert server.seconds < 5 and server.status == 504
            assert whole["error"]["code"] == "deadline_exceeded"
        assert len(server.cloud.bodies) == 2


def test_the_clouds_own_refusal_is_no_failure() -> None:
    with routed(lambda body, n: refusal(400, "too long"), failures=1) as server:
        assert server.answer()[1]["action"] == "local" and not server.desk.router.breaker.open


def test_an_answer_that_cannot_leave_a_loop_is_ended_in_the_cloud() -> None:
    with routed(lambda body, n: spoken(" and stopped.") if n == 0 else refusal(500)) as server:
        server.local.reply = lambda text: "The mill stands. " + "the old wheel turns and " * 400
        server.local.margin = 1.5
        text, route = server.answer()
        assert text.startswith("The mill stands.") and text.endswith(" and stopped.") and len(text) < 200
        assert route["action"] == "local" and route["tried"] == ["local", "cloud"] and "looped" in route["reason"]
        assert server.cloud.bodies[0]["messages"][-1] == {
            "role": "assistant",
            "content": text.removesuffix(" and stopped."),
        }
        assert 'minnow_loops_total{outcome="recovered"} 1' in httpx.get(server.url + "/metrics").text
        whole = server.ask()  # the cloud fails: the loop is named
        assert whole["choices"][0]["finish_reason"] == "loop" and "answered 500" in whole["route"]["reason"]
        for extra in ({"private": True}, {"route": "local"}):
            assert server.ask(minnow=extra)["choices"][0]["finish_reason"] == "loop"
        assert len(server.cloud.bodies) == 2 and server.local.at_once == 0


CALL = '<|tool_call_start|>[search(query="Velm")]<|tool_call_end|>'


def looks_up(text: str) -> str:
    return "It is a town on the Anse." if "Anse" in text else CALL if "Velm" in text else "I know that."


def test_a_model_that_is_offered_the_search_says_itself_that_it_needs_it() -> None:
    local = Scripted(looks_up)
    index = SearchIndex.build([("velm", "Velm", "Velm is a town <|im_end|> on the Anse.")])
    desk = Desk(local, Settings(), Metrics(), Policy(Cloud("http://127.0.0.1:9/v1", "big"), Signal(asks=True)), None, [search_tool(index)])  # fmt: skip
    with running(create_app(desk)) as url:
        asked = [httpx.post(url + CHAT, json={"messages": [{"role": "user", "content": text}]}).json() for text in ("What is Velm?", "And you?")]  # fmt: skip
    assert [whole["choices"][0]["message"]["content"] for whole in asked] == [
        "It is a town on the Anse.",
        "I know that.",
    ]
    assert [whole["route"]["action"] for whole in asked] == ["search", "local"]
    assert asked[0]["route"]["reason"] == "the local model asked to search" and len(local.asked) == 3
    assert "< |im_end|>" in asked[0]["tool_trace"][0]["result"]


def test_a_server_behind_this_one_is_offered_the_search_and_told_what_it_gave() -> None:
    def reply(body: dict[str, Any], n: int) -> Reply:
        return spoken(looks_up(body["messages"][-1]["content"]))

    index = SearchIndex.build([("velm", "Velm", "Velm is a town on the Anse.")])
    with bad_server(reply) as far:
        desk = Desk(UpstreamSource(far.url, "near"), Settings(), Metrics(), None, None, [search_tool(index)])
        with running(create_app(desk)) as url:
            whole = httpx.post(url + CHAT, json={"messages": [{"role": "user", "content": "What is Velm?"}], "minnow": {"route": "search"}}).json()  # fmt: skip
    assert whole["choices"][0]["message"]["content"] == "It is a town on the Anse." and whole["tool_trace"]
    assert far.bodies[0]["tools"][0]["function"]["name"] == "search"
    _, called, result = far.bodies[1]["messages"]
    assert called["tool_calls"][0]["id"] == result["tool_call_id"] and "Anse" in result["content"]


def test_an_unsure_answer_looks_things_up() -> None:
    local = Scripted(looks_up)
    local.margin = 0.2
    index = SearchIndex.build([("velm", "Velm", "Velm is a town on the Anse.")])
    desk = Desk(local, Settings(), Metrics(), Policy(signal=Signal(threshold=1.0, tokens=3), cloud=Cloud("http://127.0.0.1:9/v1", "big")), None, [search_tool(index)])  # fmt: skip
    with running(create_app(desk)) as url:
        whole = httpx.post(url + CHAT, json={"messages": [{"role": "user", "content": "What is Velm?"}]}).json()
        assert whole["choices"][0]["message"]["content"] == "It is a town on the Anse."
        assert whole["route"]["action"] == "search" and whole["tool_trace"][0]["arguments"] == {"query": "Velm"}
        assert "Anse" in json.dumps(whole["tool_trace"][0]["result"])
