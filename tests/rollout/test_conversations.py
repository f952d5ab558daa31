"""Conversations with an engine: who speaks next, what one costs, and where it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bad_server import BadServer, Reply, bad_server, spoken
from minnow.data.tokenizer import Tokenizer
from minnow.model.backbone import Backbone
from minnow.rollout import Sampling, TorchEngine
from minnow.rollout.records import per_prompt
from minnow.rollout.server_engine import ServerEngine
from minnow.rollout.text_engine import ChatPrompt, LocalTextEngine, TextAnswer, converse

CALL = '<|tool_call_start|>[count(of="a")]<|tool_call_end|>'


def prompt(name: str) -> ChatPrompt:
    return ChatPrompt(name, [{"role": "user", "content": name}], [{"name": "count", "parameters": {}}])


@dataclass
class Echo:
    """Says of a conversation how many messages it has; of one that begins with "cut" nothing that ends."""

    batch: int | None = None
    asked: list[list[tuple[str, int, int]]] = field(default_factory=list)

    def answers(
        self, prompts: Sequence[ChatPrompt], sampling: Sampling | Sequence[Sampling]
    ) -> Iterator[tuple[int, TextAnswer]]:
        samplings = per_prompt(sampling, len(prompts))
        self.asked.append(
            [(each.id, len(each.messages), one.seed) for each, one in zip(prompts, samplings, strict=True)]
        )
        for place, (each, one) in reversed(list(enumerate(zip(prompts, samplings, strict=True)))):
            reason = "length" if each.id == "cut" and len(each.messages) > 1 else "stop"
            yield place, TextAnswer(each.id, str(len(each.messages)), reason, one, None if each.id == "odd" else 3)


def test_each_goes_on_until_nothing_follows() -> None:
    lengths = {"short": 1, "long": 3, "cut": 5, "odd": 2}
    prompts = [prompt(name) for name in lengths]

    def follow(place: int, texts: Sequence[str]) -> list[dict[str, Any]] | None:
        more = [{"role": "tool", "content": texts[-1]}, {"role": "user", "content": "go on"}]
        return more if len(texts) < lengths[prompts[place].id] else None

    engine = Echo()
    found = list(converse(engine, prompts, [Sampling(1.0, seed=s) for s in (5, 6, 7, 8)], follow))
    assert [place for place, _ in found] == [0, 2, 3, 1], "as they end"
    answers = {answer.prompt_id: answer for _, answer in found}
    assert answers["long"].text == "1<|im_end|>\n4<|im_end|>\n7" and answers["long"].tokens == 9
    assert answers["cut"].finish_reason == "length" and answers["cut"].text == "1<|im_end|>\n4"
    assert answers["odd"].tokens is None and answers["short"].text == "1"
    assert [answers[name].sampling.seed for name in lengths] == [5, 6, 7, 8]
    assert engine.asked[1] == [("odd", 4, 9), ("cut", 4, 8), ("long", 4, 7)], "with other noise each turn"
    assert engine.asked[2] == [("long", 7, 8)]


def test_a_local_model_whose_context_is_full_is_cut(tiny_model: Backbone, words: Tokenizer) -> None:
    torch_engine = TorchEngine(tiny_model, words)
    one = prompt("one")
    room = len(words.prompt(one.messages, one.tools)) + 8
    plain = LocalTextEngine(torch_engine, words, 4)
    full = LocalTextEngine(torch_engine, words, 4, context=room)
    long = ChatPrompt("long", [{"role": "user", "content": "word " * 50}])
    found = dict(full.answers([long, one], Sampling(0.0, 8)))
    assert found[1] == dict(plain.answers([one], Sampling(0.0, 8)))[0]
    assert (found[0].finish_reason, found[0].text, found[0].tokens) == ("length", "", 0)


def test_a_server_gets_calls_and_results_in_its_own_form() -> None:
    bodies: list[dict[str, Any]] = []

    def reply(body: dict[str, Any], _: int) -> Reply:
        bodies.append(body)
        return spoken(CALL if len(body["messages"]) == 1 else "Done.")

    def follow(_: int, texts: Sequence[str]) -> list[dict[str, Any]] | None:
        return [{"role": "tool", "content": "3"}] if len(texts) == 1 else None

    server: BadServer
    with bad_server(reply) as server:
        engine = ServerEngine(server.url, "m", pause=0.01)
        ((_, answer),) = converse(engine, [prompt("how many?")], [Sampling()], follow)
    assert answer.text == f"{CALL}<|im_end|>\nDone."
    assert bodies[0]["messages"] == [{"role": "user", "content": "how many?"}]
    _, assistant, result = bodies[1]["messages"]
    (call,) = assistant["tool_calls"]
    assert call["function"] == {"name": "count", "arguments": '{"of": "a"}'} and assistant["content"] == ""
    assert result == {"role": "tool", "tool_call_id": call["id"], "content": "3"}
