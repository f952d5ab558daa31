"""OpenAI's own client, unchanged, against a served GGUF file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

from minnow.data.tokenizer import Tokenizer
from minnow.device.llama_engine import LlamaEngine
from minnow.model.checkpoint import load_model
from minnow.rollout import Sampling
from minnow.rollout.scoring import hidden_states
from minnow.serve.app import create_app
from minnow.serve.desk import Desk, Settings
from minnow.serve.llama import LlamaSource
from minnow.serve.metrics import Metrics
from served import running

ASK = [{"role": "user", "content": "Where is Velm?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer"}, "place": {"type": "string", "enum": ["Velm", "Orrin"]}},
            "required": ["days", "place"],
        },
    },
}
SHAPE = {"type": "object", "properties": {"n": {"type": "integer", "enum": [4, 17]}, "ok": {"type": "boolean"}}, "required": ["n", "ok"], "additionalProperties": False}  # fmt: skip


@pytest.fixture(scope="module")
def url(gguf: Path, words: Tokenizer) -> Iterator[str]:
    source = LlamaSource(gguf, words, 512, "tiny", slots=2)
    with running(create_app(Desk(source, Settings(guard=None), Metrics()), api_key="secret")) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="secret", max_retries=0)


def test_an_answer_is_llama_cpps_own(client: openai.OpenAI, gguf: Path, words: Tokenizer) -> None:
    answer = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=24, logprobs=True, top_logprobs=3)
    with LlamaEngine(gguf, words) as engine:
        (expected,) = engine.generate([("q", words.prompt(ASK))], Sampling(0.0, 24, stop_on_loop=False))
    choice = answer.choices[0]
    assert choice.message.content == expected.text and choice.finish_reason == expected.finish_reason
    assert answer.usage.completion_tokens == 24 and answer.usage.prompt_tokens == len(words.prompt(ASK))
    listed = choice.logprobs.content
    assert [entry.logprob for entry in listed] == pytest.approx(expected.log_probs, abs=2e-2)
    assert all(
        len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob >= entry.logprob - 1e-6 for entry in listed
    )
    assert answer.timings["ttft_ms"] > 0 and answer.route["action"] == "local"


def test_streaming_gives_the_same_text_and_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=30, temperature=0.8, seed=5)
    stream = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=30, temperature=0.8, seed=5, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert all("usage" in chunk.model_fields_set for chunk in chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    other = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=30, temperature=0.8, seed=6)
    assert other.choices[0].message.content != text


def test_the_asynchronous_client(url: str) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=url, api_key="secret") as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model="tiny", messages=ASK, max_tokens=8) for _ in range(5))
            )
            streamed = ""
            async for chunk in await client.chat.completions.create(
                model="tiny", messages=ASK, max_tokens=8, stream=True
            ):
                streamed += chunk.choices[0].delta.content or ""
            return [*(answer.choices[0].message.content for answer in answers), streamed]

    assert len(set(asyncio.run(ask()))) == 1


def test_a_tool_that_must_be_called_is(client: openai.OpenAI) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = client.chat.completions.create(
            model="tiny", messages=ASK, tools=[WEATHER], tool_choice=choice, max_tokens=100, temperature=1, seed=3,
            parallel_tool_calls=False,
        )  # fmt: skip
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls" and call.function.name == "weather"
        arguments = json.loads(call.function.arguments)
        assert isinstance(arguments["days"], int) and arguments["place"] in ("Velm", "Orrin")
    stream = client.chat.completions.create(
        model="tiny", messages=ASK, tools=[WEATHER], tool_choice="required", max_tokens=100, stream=True,
        parallel_tool_calls=False,
    )  # fmt: skip
    deltas = [chunk.choices[0].delta for chunk in stream]
    (calls,) = [delta.tool_calls for delta in deltas if delta.tool_calls]
    assert calls[0].index == 0 and calls[0].id and not any(delta.content for delta in deltas)
    # The next turn takes the call and its result back.
    turn = {"role": "assistant", "tool_calls": [call.model_dump()]}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    client.chat.completions.create(model="tiny", messages=[*ASK, turn, result], tools=[WEATHER], max_tokens=4)


def test_structured_output(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SHAPE, "strict": True}}
    answer = client.chat.completions.create(model="tiny", messages=ASK, response_format=form, max_tokens=60)
    said = json.loads(answer.choices[0].message.content or "")
    assert said["n"] in (4, 17) and isinstance(said["ok"], bool)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/gone"},
        {"$ref": "#"},
        {"type": "string", "format": "uri"},
        {"type": "string", "pattern": "^(?=a)b$"},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "object", "required": [5]},
    ],
)
def test_a_schema_that_llama_cpp_would_drop_is_refused(client: openai.OpenAI, schema: dict[str, object]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for _ in range(2):
        with pytest.raises(openai.BadRequestError, match="cannot hold an answer") as error:
            client.chat.completions.create(model="tiny", messages=ASK, response_format=form, max_tokens=20)
    assert error.value.code == "invalid_schema"


def test_completions_stop_and_models(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="The river", max_tokens=20, logprobs=1)
    text = whole.choices[0].text
    listed = whole.choices[0].logprobs
    assert len(listed.tokens) == 20 and all(
        text[at:].startswith(each) for at, each in zip(listed.text_offset, listed.tokens, strict=True)
    )
    stream = client.completions.create(model="tiny", prompt="The river", max_tokens=20, logprobs=1, stream=True)
    assert [
        at for chunk in stream if chunk.choices[0].logprobs for at in chunk.choices[0].logprobs.text_offset
    ] == listed.text_offset
    mark = text[len(text) // 2 : len(text) // 2 + 3]
    cut = client.completions.create(model="tiny", prompt="The river", max_tokens=20, stop=[mark])
    assert cut.choices[0].text == text[: text.index(mark)] and cut.choices[0].finish_reason == "stop"
    assert [model.id for model in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.models.retrieve("a/b")


def test_the_next_turn_reads_only_what_is_new(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=20)
    turns = [
        *ASK,
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "Why?"},
    ]
    second = client.chat.completions.create(model="tiny", messages=turns, max_tokens=4)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 4


def test_errors_have_openais_classes(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.chat.completions.create(model="other", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="temprature") as error:
        client.chat.completions.create(model="tiny", messages=ASK, extra_body={"temprature": 1})
    assert error.value.param == "temprature" and error.value.code == "unknown_parameter"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 2000}])
    assert error.value.code == "context_length_exceeded"


def test_a_model_process_that_dies_is_started_again(gguf: Path, words: Tokenizer) -> None:
    import os
    import signal

    source = LlamaSource(gguf, words, 512, "tiny", slots=1)
    with running(create_app(Desk(source, Settings(), Metrics()))) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)
        os.kill(source.pid, signal.SIGKILL)
        with pytest.raises(openai.InternalServerError, match="once more"):
            client.chat.completions.create(model="tiny", messages=ASK, max_tokens=4)
        assert client.chat.completions.create(model="tiny", messages=ASK, max_tokens=4).choices[0].message.content


def test_embeddings_are_the_means_of_the_states(client: openai.OpenAI, folder: Path, words: Tokenizer) -> None:
    texts = ["Velmora is a town.", "The river Anse.", "Velmora is a town"]
    found = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    model, vectors = load_model(folder), [np.array(each.embedding) for each in found.data]
    for place, (text, vector) in enumerate(zip(texts, vectors, strict=True)):
        mean = hidden_states(model, [*words.begin, *words.encode(text)]).mean(0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=5e-3) and found.data[place].index == place
        assert vector == pytest.approx(np.array(plain.data[place].embedding), abs=1e-6)
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[1]
    assert found.usage.prompt_tokens == sum(len([*words.begin, *words.encode(text)]) for text in texts)
    with pytest.raises(openai.BadRequestError, match="at most"):
        client.embeddings.create(model="tiny", input="river " * 2000)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="tiny", input="x", dimensions=8)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="x")
