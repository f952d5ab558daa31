"""The text guard over a model made of words, in process and behind a server that streams."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from minnow.loops import find_text_loop
from minnow.rollout import Guard
from minnow.rollout.text_guard import Continues, Cut, GuardedText, guarded

START = "The mill stands by the river. "
LOOP = ["the", "old", "wheel", "turns", "and"]


class Wordy:
    """Says its start and then goes round in a loop, until it is warm enough or may not go on as it wants; then it ends.

    Args:
        stubborn: what it heeds: "" both, "warm" only a temperature, "deaf" nothing.
        budget: words of an answer.
    """

    def __init__(self, stubborn: str = "", budget: int = 400, start: str = START) -> None:
        self.stubborn, self.budget, self.start = stubborn, budget, start
        self.asked: list[tuple[int, float, tuple[str, ...]]] = []
        self.closed = 0

    def __call__(self, text: str, temperature: float, banned: tuple[str, ...]) -> Generator[str, None, str]:
        self.asked.append((len(text), temperature, banned))
        try:
            if not text:
                yield self.start
            said = text.removeprefix(self.start).split()
            leaves = (banned and not self.stubborn) or (temperature > 0 and self.stubborn != "deaf")
            if leaves or "</think>" in text or "Then" in text:
                if "Then" not in text:
                    yield "Then "
                yield "it stopped."
                return "stop"
            for count in range(len(said), self.budget):
                yield LOOP[count % len(LOOP)] + " "
            return "length"
        except GeneratorExit:
            self.closed += 1
            raise


def guard_text(source: Continues, guard: Guard, temperature: float = 0.0, begun: str = "") -> GuardedText:
    *_, answer = guarded(source, guard, temperature, begun)
    assert isinstance(answer, GuardedText)
    return answer


def test_the_first_word_of_the_loop_is_banned_at_its_onset() -> None:
    model = Wordy()
    answer = guard_text(model, Guard())
    assert answer.text == START + " ".join(LOOP) + " Then it stopped."
    assert (answer.finish_reason, answer.rewinds, answer.loop) == ("stop", 1, None)
    onset = len(START) + len(" ".join(LOOP)) + 1
    assert model.asked[0] == (0, 0.0, ()) and model.closed == 1
    assert model.asked[1][:2] == (onset, 0.0) and model.asked[1][2][0].startswith("the old wheel")
    assert answer.discarded > 4 * len(" ".join(LOOP))


def test_a_server_that_bans_nothing_is_warmed_and_then_cools_again() -> None:
    model = Wordy("warm")
    answer = guard_text(model, Guard(stretch=1), temperature=0.0)
    assert answer.finish_reason == "stop" and answer.rewinds == 2 and answer.text.endswith("Then it stopped.")
    assert [temperature for _, temperature, _ in model.asked] == [0.0, 0.0, 0.7, 0.0]


def test_an_open_reasoning_block_is_closed_at_last() -> None:
    model = Wordy("deaf", start="<think>" + START)
    answer = guard_text(model, Guard())
    assert answer.finish_reason == "stop" and answer.rewinds == 3
    assert answer.text.index("</think>") < answer.text.index("Then it stopped.")
    begun = Wordy("deaf")
    assert "</think>" in guard_text(begun, Guard(), begun="<think>\n").text


def test_a_guard_that_fails_says_so() -> None:
    answer = guard_text(Wordy("deaf"), Guard(rewinds=4))
    assert (answer.finish_reason, answer.rewinds) == ("loop", 4) and answer.loop is not None
    assert find_text_loop(answer.text) is not None


def test_a_loop_that_the_budget_cuts_is_taken_back() -> None:
    """Nothing is reported before it has lasted; where the answer is cut it has to be decided."""
    answer = guard_text(Wordy(budget=90), Guard(persistence=10_000))
    assert answer.finish_reason == "stop" and answer.rewinds == 1


@pytest.mark.parametrize("budget", [1, 30])
def test_what_does_not_loop_is_passed_on(budget: int) -> None:
    model = Wordy(budget=budget)
    events = list(guarded(model, Guard()))
    whole = START + "".join(LOOP[i % len(LOOP)] + " " for i in range(budget))
    assert events[-1] == GuardedText(whole, "length", 0, 0, None)
    assert "".join(event for event in events if isinstance(event, str)) == whole and len(model.asked) == 1


def replayed(events: Iterator[str | Cut | GuardedText]) -> tuple[str, GuardedText]:
    shown = ""
    for event in events:
        if isinstance(event, GuardedText):
            return shown, event
        shown = shown[: event.length] if isinstance(event, Cut) else shown + event
    raise AssertionError


@pytest.mark.parametrize("stubborn", ["", "warm", "deaf"])
def test_events_add_up_to_the_answer(stubborn: str) -> None:
    shown, answer = replayed(guarded(Wordy(stubborn, start="<think>" + START), Guard()))
    assert shown == answer.text


@pytest.fixture
def server() -> Iterator[str]:
    """Streams a Wordy model's words as server-sent events; knows no bans."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            stream = Wordy("warm")(asked["partial"], asked["temperature"], ())
            try:
                while True:
                    self.wfile.write(b"data: " + json.dumps({"text": next(stream)}).encode() + b"\n\n")
            except StopIteration as ended:
                self.wfile.write(b"data: " + json.dumps({"finish_reason": ended.value}).encode() + b"\n\n")
            except (BrokenPipeError, ConnectionResetError):
                pass  # the guard has hung up

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_in_front_of_a_server_that_streams(server: str) -> None:
    def ask(text: str, temperature: float, banned: tuple[str, ...]) -> Generator[str, None, str]:
        body = json.dumps({"partial": text, "temperature": temperature}).encode()
        with urllib.request.urlopen(urllib.request.Request(server, body), timeout=10) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "finish_reason" in event:
                        return str(event["finish_reason"])
                    yield event["text"]
        return "length"

    shown, answer = replayed(guarded(ask, Guard()))
    assert answer.finish_reason == "stop" and answer.rewinds == 2
    assert shown == answer.text and answer.text.endswith("Then it stopped.")
