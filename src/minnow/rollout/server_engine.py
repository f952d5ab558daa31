"""Answers from an OpenAI-compatible server: llama.cpp, vLLM, Ollama, LM Studio, a paid one.

Such a server may hang, cut its stream, be busy or broken. A request is tried again with growing pauses; one that fails
for good is an answer that says so, so that a rate can tell how many answers it lacks.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from queue import Queue
from typing import IO, Any
from urllib.parse import urlsplit

from minnow.data.calls import CallError, parse_any_calls, without_calls
from minnow.errors import UserError
from minnow.files import whole_pairs
from minnow.loops import CHARACTERS_A_TOKEN, Loop, TextWatch
from minnow.rollout.records import Sampling, per_prompt, refuse_grammars
from minnow.rollout.reply import Reply, ReplyError
from minnow.rollout.text_engine import ChatPrompt, TextAnswer

TRIES = 5
LONGEST_PAUSE = 60.0  # seconds before the next try, whatever the server asks for
_LONGEST_LINE = 1 << 26  # bytes
_MOST_STOPS = 4  # as OpenAI's API allows
_MOST_A_TOKEN = 64  # a server that sends more than this for each token asked for does not keep to the budget


def check_server(url: str, api_key: str | None) -> None:
    """Raise :class:`UserError` unless ``url`` is a server's address and ``api_key``, if any, fits into a header."""
    if not _host(url):
        raise UserError(f"{url} is no address of a server; write http://HOST:PORT/v1")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise UserError("the API key holds a line end or a letter that no header can; set its variable again")


class _Retry(Exception):
    """Worth another try, ``after`` seconds at least."""

    def __init__(self, sentence: str, after: float = 0.0) -> None:
        super().__init__(sentence)
        self.after = after


class _Refused(Exception):
    """This prompt will not be answered, whoever asks again."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    # The key would go along to wherever the server points.
    def redirect_request(self, *_: Any) -> None:
        return None


class ServerEngine:
    """Answers messages over HTTP (:class:`minnow.rollout.text_engine.TextEngine`), several requests at once.

    Args:
        url: where the API begins, such as ``http://localhost:8080/v1``.
        model: the name the server knows the model by.
        timeout: seconds without a new piece of the answer after which a server counts as hanging.
        pause: seconds before the second try; doubled before each further one.
        api_key: sent as a bearer token, and left out of every message.

    Raises:
        UserError: an address or a key that is none, or a concurrency or timeout of nothing.
    """

    batch = None

    def __init__(
        self,
        url: str,
        model: str,
        concurrency: int = 4,
        timeout: float = 120.0,
        pause: float = 1.0,
        api_key: str | None = None,
    ) -> None:
        check_server(url, api_key)
        if concurrency < 1 or timeout <= 0:
            raise UserError(
                f"{concurrency} requests at once with {timeout:g} seconds of patience cannot be made; use at least one "
                "request and more than 0 seconds"
            )
        self.url, self.model = url.rstrip("/"), model
        self.concurrency, self.timeout, self.pause = concurrency, timeout, pause
        self._key = api_key
        self._open = urllib.request.build_opener(_NoRedirects).open

    @staticmethod
    def is_address(source: str) -> bool:
        """Whether ``source`` is meant as the address of a server rather than a path."""
        return source.startswith(("http://", "https://"))

    def answers(
        self, prompts: Sequence[ChatPrompt], sampling: Sampling | Sequence[Sampling]
    ) -> Iterator[tuple[int, TextAnswer]]:
        """An answer to every prompt with its place in ``prompts``, as they come; one sampling for all or one each.

        Raises:
            UserError: the server refuses the key, the model or the address, or fails over and over; a grammar.
        """
        samplings = per_prompt(sampling, len(prompts))
        refuse_grammars(samplings)
        waiting = iter(range(len(prompts)))
        taking, stopped = threading.Lock(), threading.Event()
        done: Queue[tuple[int, TextAnswer | Exception, bool]] = Queue()

        def work() -> None:
            while not stopped.is_set():
                with taking:
                    place = next(waiting, None)
                if place is None:
                    return
                try:
                    done.put((place, *self._answer(prompts[place], samplings[place], stopped)))
                except Exception as error:  # noqa: BLE001  raised again where the answers are taken
                    done.put((place, error, False))

        # Daemons: after Ctrl-C nobody waits for a server that hangs.
        for _ in range(min(self.concurrency, len(prompts))):
            threading.Thread(target=work, daemon=True).start()
        failures = 0
        try:
            for _ in prompts:
                place, answer, broken = done.get()
                if isinstance(answer, Exception):
                    raise answer
                failures = failures + 1 if broken else 0
                yield place, answer
                if failures == max(8, 2 * self.concurrency):
                    raise UserError(
                        f"{self.url} failed {failures} requests in a row, each after {TRIES} tries "
                        f"({answer.error}); see to the server, then run the same command again"
                    )
        finally:
            stopped.set()

    def _answer(self, prompt: ChatPrompt, sampling: Sampling, stopped: threading.Event) -> tuple[TextAnswer, bool]:
        """The answer, and whether it is missing for a fault of the server rather than of the prompt."""
        sentence = ""
        for attempt in range(TRIES):
            try:
                return self._ask(prompt, sampling), False
            except _Refused as error:
                return _failed(prompt, sampling, str(error)), False
            except _Retry as error:
                sentence = str(error)
                # Woken early only when nobody waits for the answer any more.
                if attempt < TRIES - 1 and stopped.wait(min(LONGEST_PAUSE, max(error.after, self.pause * 2**attempt))):
                    break
        return _failed(prompt, sampling, sentence), True

    def stream(self, prompt: ChatPrompt, sampling: Sampling, reply: Reply, **more: Any) -> Iterator[str]:
        """The text of one answer as it comes, piece by piece, and ``reply`` with what else came; asked once.

        Args:
            more: fields of the request besides those of ``sampling``.

        Raises:
            UserError: the server refuses or fails.
        """
        try:
            yield from self._pieces(prompt, sampling, reply, **more)
        except (_Retry, _Refused) as error:
            raise UserError(f"{self.url} gave no answer ({error}); see to the server") from error

    def _ask(self, prompt: ChatPrompt, sampling: Sampling) -> TextAnswer:
        most = _MOST_A_TOKEN * sampling.max_new_tokens
        watch = TextWatch(persistence=CHARACTERS_A_TOKEN * sampling.persistence) if sampling.stop_on_loop else None
        reply, text, loop = Reply(), "", None
        with closing(self._pieces(prompt, sampling, reply)) as pieces:
            for piece in pieces:
                text += piece
                loop = watch.push(piece) if watch is not None and piece else None
                if loop is not None or len(text) > most:
                    break
        return _answer(reply, prompt, sampling, text, loop, most)

    def _pieces(self, prompt: ChatPrompt, sampling: Sampling, reply: Reply, **more: Any) -> Generator[str]:
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_new_tokens,
            "seed": sampling.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }
        if sampling.until:
            body["stop"] = list(sampling.until[:_MOST_STOPS])
        if prompt.raw:
            path, body["prompt"] = "completions", prompt.messages[-1]["content"]
        else:
            named = all(each["role"] != "tool" or "tool_call_id" in each for each in prompt.messages)
            path, body["messages"] = "chat/completions", prompt.messages if named else openai_messages(prompt.messages)
            body |= {"tools": list(map(_function, prompt.tools))} if prompt.tools else {}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(f"{self.url}/{path}", json.dumps(body).encode(), headers)
        try:
            with self._open(request, timeout=self.timeout) as response:
                streams = response.headers.get_content_type() == "text/event-stream"
                yield from map(reply.take, self._events(response) if streams else _whole(response))
        except ReplyError as error:
            raise _Retry(str(error)) from error
        except urllib.error.HTTPError as error:
            raise self._reason(error) from error
        except TimeoutError as error:
            raise _Retry(f"no answer within {self.timeout:g} seconds") from error
        except urllib.error.URLError as error:
            raise _Retry(f"no connection ({error.reason})") from error
        except (http.client.HTTPException, OSError) as error:
            raise _Retry(f"the connection broke ({error!r})") from error

    def _reason(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP error means: another try, a prompt that is refused, or a server that is not to be asked."""
        try:
            said = " ".join(error.read(2000).decode(errors="replace").split())[:300]
        except (OSError, http.client.HTTPException):
            said = ""
        # Some servers repeat the key they were given.
        said = said.replace(self._key, "…") if self._key else said
        sentence = f"HTTP {error.code}" + (f": {said}" if said else "")
        if error.code in (408, 425, 429) or error.code >= 500:
            after = error.headers.get("Retry-After") or ""
            return _Retry(sentence, float(after) if after.isdecimal() else 0.0)
        if error.code in (401, 403):
            return UserError(f"{self.url} refuses the API key ({sentence}); set the right one in its variable")
        if error.code in (404, 405) or error.code < 400:
            return UserError(
                f"{self.url} has no model {self.model!r}, or is not where the API begins ({sentence}); check both"
            )
        return _Refused(sentence)

    def _events(self, response: IO[bytes]) -> Iterator[dict[str, Any]]:
        """The JSON objects of a stream of server-sent events, up to ``[DONE]``."""
        heard = time.monotonic()
        while line := response.readline(_LONGEST_LINE):
            # A server that only keeps the line open sends comments, each in time.
            if time.monotonic() - heard > self.timeout:
                raise _Retry(f"no answer within {self.timeout:g} seconds")
            name, _, data = line.decode(errors="replace").strip().partition(":")
            if name != "data" or not data:
                continue
            if data.strip() == "[DONE]":
                return
            heard = time.monotonic()
            yield _parsed(data)


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as OpenAI's API has it: under ``function``, without dots in its name."""
    if tool.get("type") == "function":
        return tool
    return {"type": "function", "function": tool | {"name": tool["name"].replace(".", "_")}}


def openai_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose calls are text as OpenAI's API has them: ``tool_calls`` with ids that the tools' turns answer.

    What answers no call (the error about one that could not be read) is the user's turn, as a tool's would be refused.
    """
    written: list[dict[str, Any]] = []
    waiting: list[str] = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            try:
                calls = parse_any_calls(message["content"])
            except CallError:
                calls = []
            waiting = [f"call_{place}_{number}" for number in range(len(calls))]
            listed = [
                {
                    "id": name,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
                }
                for name, call in zip(waiting, calls, strict=True)
            ]
            said = without_calls(message["content"]) if calls else message["content"]
            written.append({"role": "assistant", "content": said, **({"tool_calls": listed} if listed else {})})
        elif message["role"] == "tool" and waiting:
            written.append({"role": "tool", "tool_call_id": waiting.pop(0), "content": message["content"]})
        else:
            written.append({**message, "role": "user" if message["role"] == "tool" else message["role"]})
    return written


def _host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        return parts.hostname if ServerEngine.is_address(url) and parts.port != 0 else None
    except ValueError:
        return None


def _whole(response: IO[bytes]) -> Iterable[dict[str, Any]]:
    """The reply of a server that does not stream, as one event."""
    return [_parsed(response.read().decode(errors="replace"))]


def _parsed(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _Retry("the reply is not JSON") from error
    if not isinstance(event, dict):
        raise _Retry("the reply is not a JSON object")
    return event


def _answer(
    reply: Reply, prompt: ChatPrompt, sampling: Sampling, text: str, loop: Loop | None, most: int
) -> TextAnswer:
    """The answer, once its events have ended."""
    text += "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in reply.calls)
    text = whole_pairs(text)
    if loop is not None:
        return TextAnswer(prompt.id, text, "loop", sampling, None, loop)
    tokens, ending = reply.usage.get("completion_tokens"), reply.ending()
    if len(text) > most or ending == "length":
        return TextAnswer(prompt.id, text, "length", sampling, tokens)
    if ending == "stop":
        return TextAnswer(prompt.id, text, "stop", sampling, tokens)
    if ending is None:
        raise _Retry("the stream ended before the answer did")
    raise _Refused(f"the server ended the answer for {ending!r}")


def _failed(prompt: ChatPrompt, sampling: Sampling, sentence: str) -> TextAnswer:
    return TextAnswer(prompt.id, "", "failed", sampling, error=sentence)
