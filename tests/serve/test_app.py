"""The HTTP server on its bad days: hostile bodies, clients that go, wait or never read."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from minnow.data.calls import CALL_END, CALL_START
from minnow.serve.app import Limits
from minnow.serve.desk import Settings
from served import Scripted, running, scripted_app

CHAT = "/v1/chat/completions"


def ask(text: str = "hello", **extra: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], **extra}


def connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with running(scripted_app(Scripted(), limits=Limits(body=2000, reading=0.5), key="clé-ü")) as url:
        headers = {"Authorization": "Bearer clé-ü".encode()}
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=20) as client:
            yield client


def test_hostile_requests_get_openais_errors(client: httpx.Client) -> None:
    cases = [
        (client.post(CHAT, json=ask("x" * 3000)), 413),
        (client.post(CHAT, content=b"{", headers={"Content-Type": "application/json"}), 400),
        (client.post(CHAT, content=json.dumps(ask()), headers={"Content-Type": "text/plain"}), 415),
        (client.post(CHAT, json=ask(), headers={"Authorization": "Bearer no"}), 401),
        (client.post(CHAT, json=ask(), headers={"Host": "evil.example"}), 403),
        (client.get("/v1/../../etc/passwd"), 404),
        (client.get("/v1/%2e%2e/%2e%2e/etc/passwd"), 404),
        (client.get(CHAT), 405),
        (client.post(CHAT, json=ask(model="x\r\nSet-Cookie: a=b")), 404),
    ]
    for response, status in cases:
        assert response.status_code == status, response.text
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "set-cookie" not in response.headers
    assert client.post(CHAT, json=ask()).json()["choices"][0]["message"]["content"] == "You said: hello"


def test_a_body_that_trickles_is_not_waited_for(client: httpx.Client) -> None:
    def trickle() -> Iterator[bytes]:
        for _ in range(8):
            yield b" "
            time.sleep(0.1)

    response = client.post(CHAT, content=trickle(), headers={"Content-Type": "application/json"})
    assert response.status_code == 408


def test_past_the_deadline_there_is_an_error_in_the_stream_or_before_it() -> None:
    with running(scripted_app(Scripted(lambda text: "word " * 100, pause=0.05))) as url:
        late = {"minnow": {"deadline_ms": 300}}
        whole = httpx.post(url + CHAT, json=ask(**late))
        assert whole.status_code == 504 and whole.json()["error"]["code"] == "deadline_exceeded"
        streamed = httpx.post(url + CHAT, json=ask(stream=True, **late))
        lines = [line for line in streamed.text.splitlines() if line]
        assert lines[-1] == "data: [DONE]" and json.loads(lines[-2][6:])["error"]["code"] == "deadline_exceeded"


def test_a_full_queue_refuses_with_retry_after() -> None:
    source = Scripted(lambda text: "word " * 20, pause=0.05, slots=1)
    with running(scripted_app(source, Settings(queue=1))) as url:
        replies: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: replies.append(httpx.post(url + CHAT, json=ask()))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(reply.status_code for reply in replies) == [200, 200, 429, 429]
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies if reply.status_code == 429)
        assert source.most_at_once == 1


def test_a_client_that_goes_frees_its_slot() -> None:
    source = Scripted(lambda text: "word " * (2000 if text == "long" else 2), pause=0.01, slots=1)
    with running(scripted_app(source)) as url:
        for stream in (True, False):
            with connected(url) as raw:
                body = json.dumps(ask("long", stream=stream)).encode()
                head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                raw.sendall(head.encode() + body)
                while not source.at_once:
                    time.sleep(0.01)
            assert httpx.post(url + CHAT, json=ask("short"), timeout=5).status_code == 200
        assert source.at_once == 0
        assert 'finish="cancelled"} 2' in httpx.get(url + "/metrics").text


def test_a_client_that_does_not_read_holds_no_slot_and_is_let_go() -> None:
    source = Scripted(lambda text: ("x" * 40_000 + " ") * 200, slots=1)
    with running(scripted_app(source, limits=Limits(sending=0.5))) as url, connected(url) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(ask(stream=True)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall(head.encode() + body)
        while source.closed == 0:
            time.sleep(0.01)
        assert httpx.get(url + "/health").json() == {"status": "ok"}


def test_calls_are_parted_from_text() -> None:
    text = f'Let me look. {CALL_START}[find(q="a b")]{CALL_END}'
    tools = [{"type": "function", "function": {"name": "find"}}]
    with running(scripted_app(Scripted(lambda _: text))) as url:
        choice = httpx.post(url + CHAT, json=ask(tools=tools)).json()["choices"][0]
        assert choice["message"]["content"] == "Let me look. " and choice["finish_reason"] == "tool_calls"
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"q": "a b"}
        streamed = httpx.post(url + CHAT, json=ask(tools=tools, stream=True)).text
        assert CALL_START not in streamed and '"tool_calls"' in streamed
        plain = httpx.post(url + CHAT, json=ask()).json()["choices"][0]
        assert plain["message"]["content"] == text and plain["finish_reason"] == "stop"
    twice = f'{CALL_START}[find(q="a"), find(q="b")]{CALL_END}'
    with running(scripted_app(Scripted(lambda _: twice))) as url:
        for allowed, made in ((True, 2), (False, 1)):
            whole = httpx.post(url + CHAT, json=ask(tools=tools, parallel_tool_calls=allowed)).json()
            assert len(whole["choices"][0]["message"]["tool_calls"]) == made


def test_metrics_count_what_happened() -> None:
    with running(scripted_app(Scripted())) as url:
        httpx.post(url + CHAT, json=ask())
        text = httpx.get(url + "/metrics").text
        assert 'minnow_answers_total{route="local",finish="stop"} 1' in text
        assert 'minnow_requests_total{path="/v1/chat/completions",status="200"} 1' in text
        assert "minnow_ttft_seconds_count 1" in text and "# TYPE minnow_running gauge" in text
