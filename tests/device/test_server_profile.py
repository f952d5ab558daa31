"""Servers are timed by tokens as they count them, on prompts that no cache knows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from bad_server import BadServer, bad_server, event, refusal, stream
from minnow.cli.main import main
from minnow.device import server_profile
from minnow.device.card import device_card
from minnow.device.server_profile import profile_server
from minnow.errors import UserError
from minnow.recipe.report.device_card import device_page
from minnow.rollout.server_engine import ServerEngine

FORMAT = 9  # tokens of the chat format


def answering(pieces: int | None = None, most: int = 10**6, counted: bool = True) -> Callable[..., Any]:
    """A server that reads a word as a token and answers in ``pieces``; after ``most`` tokens unless ``ignore_eos``."""

    def reply(body: dict[str, Any], count: int) -> Any:
        tokens = body["max_tokens"] if body.get("ignore_eos") else min(most, body["max_tokens"])
        parts: list[Any] = [event(delta={"content": "x"})] * (min(tokens, pieces) if pieces else tokens)
        parts.append(event(delta={}, finish_reason="length"))
        if counted:
            read = len(body["messages"][0]["content"].split()) + FORMAT
            usage = {"prompt_tokens": read, "completion_tokens": tokens}
            parts.append(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        return stream([*parts, b"data: [DONE]\n\n"])

    return reply


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second after the last."""
    monkeypatch.setattr(server_profile, "perf_counter", map(float, itertools.count()).__next__)


def prompts(server: BadServer) -> list[str]:
    return [body["messages"][0]["content"] for body in server.bodies]


def test_figures_are_of_the_tokens_asked_for(clock: None) -> None:
    with bad_server(answering()) as server:
        found = profile_server(ServerEngine(server.url, "tiny"), (32,), (32, 64), repeats=2, answer=16)
    (prefill,) = found["prefill"]
    assert (prefill["tokens"], prefill["ttft_ms"], prefill["tokens_per_second"]) == (32, 1000.0, 32.0)
    assert [(each["depth"], each["p50_ms"]) for each in found["decode"]] == [(32, 1000.0), (64, 1000.0)]
    assert [(each["answer"], each["p50_ms"]) for each in found["end_to_end"]] == [(16, 17_000.0)] * 2
    timed = [text for text, body in zip(prompts(server), server.bodies, strict=True) if body["max_tokens"] == 17]
    assert [len(text.split()) + FORMAT for text in timed] == [32] * 3 + [64] * 3
    assert len({tuple(text.split()[:8]) for text in prompts(server)}) == len(server.bodies)
    assert server.most_at_once == 1 and not found["noisy"]
    document = {"machine": {"cpu": "c", "usable_cores": 1, "system": "s"}, "files": [found]}
    assert "tiny at http" in device_card(document) and "tiny at http" in device_page(document)


def test_tokens_that_come_together_share_the_time_and_early_ends_shorten_the_answer(clock: None) -> None:
    def strict(body: dict[str, Any], count: int) -> Any:
        return refusal(400, "unknown field") if "ignore_eos" in body else answering(4, most=12)(body, count)

    with bad_server(strict) as server:
        found = profile_server(ServerEngine(server.url, "tiny"), (32,), (32,), repeats=2, answer=100)
    assert found["decode"][0]["p50_ms"] == pytest.approx(3000 / 11)  # three of four pieces, eleven of twelve tokens
    assert found["end_to_end"][0]["answer"] == 11 and "decode_throughput_32_11" in found["pipette"]
    assert sum("ignore_eos" in body for body in server.bodies) == 1


@pytest.mark.parametrize(
    ("reply", "lengths", "said"),
    [
        (answering(counted=False), (32,), "does not say how many tokens"),
        (answering(), (4,), "no prompt of 4 tokens could be made"),
        (lambda body, count: answering(most=3)({**body, "ignore_eos": False}, count), (32,), "after 3 tokens, too few"),
        (lambda body, count: refusal(401, "who are you"), (32,), "refuses the API key"),
        (lambda body, count: refusal(503, "loading"), (32,), "503: .*loading.*; see to the server"),
    ],
)
def test_servers_that_cannot_be_timed(reply: Callable[..., Any], lengths: tuple[int, ...], said: str) -> None:
    with bad_server(reply) as server, pytest.raises(UserError, match=said):
        profile_server(ServerEngine(server.url, "tiny"), lengths, lengths, repeats=2, answer=16)


def test_the_command_puts_servers_beside_files(capsys: pytest.CaptureFixture[str]) -> None:
    with bad_server(answering()) as server:
        asked = [
            "profile",
            server.url,
            "--prompts",
            "32",
            "--depths",
            "32",
            "--answer",
            "8",
            "--repeats",
            "2",
            "--json",
        ]
        assert main([*asked, "--model", "tiny"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["files"][0]["engine"] == "server" and document["machine"]["cores"]
        assert main(asked) == 2 and "which of its models" in capsys.readouterr().err
    assert main(["profile", "lfm2-350m", "--model", "tiny"]) == 2
    assert "--model names a server's model" in capsys.readouterr().err
