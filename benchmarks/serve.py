"""The server measured over HTTP: loops that reach a client, what it adds to llama.cpp's own server, and load.

    python benchmarks/serve.py CHECKPOINT --part guard [--n 500] [--budget 1024]
    python benchmarks/serve.py CHECKPOINT --part overhead [--rounds 20] [--width 1024 --layers 16]
    python benchmarks/serve.py CHECKPOINT --part load [--minutes 10] [--streams 64]

``guard``: greedy answers to held-out long pages of the checkpoint's pocket world; a loop is the verdict over the text the
client has. ``overhead``: the same answers streamed by llama.cpp's server and by this one before it, turn about, by the same
client; with ``--width`` of a model of that shape with random weights. ``load``: closed-loop clients with prompts of mixed
lengths, some of which go in the middle; each answer is compared with the one llama.cpp gave alone. Add ``--json FILE``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import uvicorn

from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import export_gguf
from minnow.loops import Rate, find_text_loop
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.model.config import ATTENTION, CONV
from minnow.model.families.lfm2 import lfm2_config
from minnow.recipe.run_record import world_of
from minnow.rollout import Guard
from minnow.serve.app import create_app
from minnow.serve.desk import Desk, Settings
from minnow.serve.llama import LlamaSource
from minnow.serve.metrics import Metrics
from minnow.serve.source import Ended, Piece, connections


@asynccontextmanager
async def served(source: LlamaSource, settings: Settings) -> AsyncIterator[str]:
    """The address of the server in a task of this process."""
    app = create_app(Desk(source, settings, Metrics()))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await task


async def ask(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], leave_after: int | None = None
) -> dict[str, Any]:
    """Stream one answer: status, text, finish, TTFT and seconds in all."""
    start, first, text, finish, extras, left = time.perf_counter(), None, "", None, {}, False
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body | {"stream": True}) as response:
        if response.status_code != 200:
            raw = json.loads(await response.aread())
            return {
                "status": response.status_code,
                "text": raw["error"]["message"],
                "retry": response.headers.get("retry-after"),
            }
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return {"status": 500, "text": event["error"]["message"]}
            for choice in event.get("choices", ()):
                if piece := choice["delta"].get("content"):
                    first = first or time.perf_counter()
                    text += piece
                finish = choice.get("finish_reason") or finish
            extras |= {key: event[key] for key in ("guard", "timings", "usage") if event.get(key)}
            if leave_after is not None and len(text) > leave_after:
                left = True
                break
    end = time.perf_counter()
    return {"status": 200, "text": text, "finish": finish, "ttft": (first or end) - start, "seconds": end - start, "left": left} | extras  # fmt: skip


def chat(prompt: str, budget: int, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": budget, "temperature": 0, **more}


async def guard(source: LlamaSource, prompts: list[str], budget: int) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []
    waiting = iter(prompts)

    async def work(client: httpx.AsyncClient, url: str) -> None:
        for prompt in waiting:
            answers.append(await ask(client, url, chat(prompt, budget)))

    async with (
        served(source, Settings(deadline=3600, guard=Guard())) as url,
        httpx.AsyncClient(timeout=600, trust_env=False, limits=connections(url)) as client,
    ):
        await asyncio.gather(*(work(client, url) for _ in range(source.slots)))
    refused = Counter(each["status"] for each in answers if each["status"] != 200)
    answers = [each for each in answers if each["status"] == 200]
    looping = sum(find_text_loop(each["text"]) is not None for each in answers)
    caught = [each["guard"]["rewinds"] for each in answers if "guard" in each]
    return {
        "loops_that_reached_the_client": Rate(looping, len(answers)).as_dict(),
        "errors": dict(refused),
        "finish": dict(Counter(str(each.get("finish")) for each in answers)),
        "answers_caught": len(caught),
        "rewinds": dict(sorted(Counter(caught).items())),
        "ttft_p50_ms": 1000 * float(np.median([each["ttft"] for each in answers])),
    }


class Endless(LlamaSource):
    """Goes on past the end of an answer, up to its budget."""

    async def _complete(self, body: dict[str, Any], logprobs: int | None) -> AsyncGenerator[Piece | Ended]:
        async for part in super()._complete(body | {"ignore_eos": True}, logprobs):
            yield part


async def overhead(source: LlamaSource, prompts: list[str], rounds: int, budget: int) -> dict[str, Any]:
    rows: dict[str, dict[str, list[float]]] = {name: {"ttft": [], "rate": []} for name in ("llama.cpp", "minnow")}
    kept = 0
    async with served(source, Settings()) as url, httpx.AsyncClient(timeout=600, trust_env=False, limits=connections(url)) as client:  # fmt: skip
        for place in range(rounds + 1):
            answers = {}
            # Each prompt is new to both, as what was read before would be in the cache, and as long for both.
            marks = {"llama.cpp": "A", "minnow": "B"}
            for name in marks if place % 2 else reversed(marks):
                prompt = f"{marks[name]} {place}: {prompts[place % len(prompts)]}"
                body = chat(prompt, budget, stream_options={"include_usage": True})
                if name == "llama.cpp":  # of ours the source sees to it
                    body |= {"ignore_eos": True, "cache_prompt": True}
                answers[name] = await ask(client, source.url if name == "llama.cpp" else url, body)
            # The first round warms up; a loop that the guard took back has cost more tokens than its answer has.
            if place == 0 or any(each["usage"]["completion_tokens"] != budget for each in answers.values()):
                continue
            kept += 1
            for name, each in answers.items():
                rows[name]["ttft"].append(1000 * each["ttft"])
                rows[name]["rate"].append((budget - 1) / (each["seconds"] - each["ttft"]))
    added = np.subtract(rows["minnow"]["ttft"], rows["llama.cpp"]["ttft"])
    lost = 1 - np.divide(rows["minnow"]["rate"], rows["llama.cpp"]["rate"])
    return {
        "rounds": rounds,
        "rounds_in_which_both_wrote_the_budget": kept,
        "ttft_ms": {name: float(np.median(row["ttft"])) for name, row in rows.items()},
        "tokens_per_second": {name: float(np.median(row["rate"])) for name, row in rows.items()},
        # Of each round's pair: quartiles and median.
        "ttft_added_ms": np.percentile(added, (25, 50, 75)).round(2).tolist(),
        "rate_lost": np.percentile(lost, (25, 50, 75)).round(4).tolist(),
    }


async def load(source: LlamaSource, prompts: list[str], minutes: float, streams: int) -> dict[str, Any]:
    noise = random.Random(0)
    budgets = {prompt: noise.choice((16, 48, 128)) for prompt in prompts}
    expected: dict[str, str] = {}
    outcomes: Counter[str] = Counter()
    ttfts: list[float] = []
    memory: list[int] = []
    async with served(source, Settings(queue=2 * streams, guard=None)) as url, httpx.AsyncClient(timeout=600, trust_env=False, limits=connections(url)) as client:  # fmt: skip
        for prompt in prompts:
            expected[prompt] = (await ask(client, url, chat(prompt, budgets[prompt])))["text"]
        end = time.monotonic() + 60 * minutes

        async def work(name: int) -> None:
            random_ = random.Random(name)
            while time.monotonic() < end:
                prompt = random_.choice(prompts)
                leave = random_.randrange(60) if random_.random() < 0.1 else None
                answer = await ask(client, url, chat(prompt, budgets[prompt], user=str(name)), leave)
                if answer["status"] != 200:
                    outcomes[f"{answer['status']}"] += 1
                elif answer["left"]:
                    outcomes["left"] += 1
                else:
                    ttfts.append(answer["ttft"])
                    outcomes["right" if answer["text"] == expected[prompt] else "other"] += 1

        async def watch() -> None:
            while time.monotonic() < end:
                memory.append(_rss("self") + _rss(str(source.pid)))
                await asyncio.sleep(max(0.5, minutes))

        await asyncio.gather(watch(), *(work(name) for name in range(streams)))
        after = await ask(client, url, chat(prompts[0], budgets[prompts[0]]))
    settled = memory[len(memory) // 4 :]
    p50, p95 = np.percentile(ttfts, [50, 95])
    return {
        "streams": streams,
        "minutes": minutes,
        "outcomes": dict(outcomes),
        "ttft_ms": {"p50": 1000 * p50, "p95": 1000 * p95},
        "p95_over_p50": p95 / p50,
        "memory_mib": {"begin": settled[0] / 2**20, "end": settled[-1] / 2**20},
        "answers_after_it": after["text"] == expected[prompts[0]],
    }


def _rss(process: str) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def random_checkpoint(folder: Path, tokenizer: Tokenizer, width: int, layers: int) -> Path:
    """A model of a published size's shape, for speed only."""
    kinds = tuple(ATTENTION if place % 3 == 2 else CONV for place in range(layers))
    config = lfm2_config(vocab_size=tokenizer.vocab_size, layer_types=kinds, max_positions=4096, hidden_size=width, intermediate_size=9 * width // 2, num_heads=width // 64, num_kv_heads=max(1, width // 128), head_dim=64)  # fmt: skip
    model = Backbone(config)
    model.initialise(0)
    save_checkpoint(model, tokenizer, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--part", choices=("guard", "overhead", "load"), required=True)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--budget", type=int)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--width", type=int)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--type", default="F16")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    drawn = [each for each in world_of(options.checkpoint).loop_prone("held_out", 4 * options.n) if each.task == "page"]
    prompts = [each.messages[-1]["content"] for each in drawn[: options.n]]
    tokenizer = Tokenizer.load(options.checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.checkpoint
        if options.width:
            folder = random_checkpoint(Path(temporary) / "random", tokenizer, options.width, options.layers)
        file = export_gguf(folder, Path(temporary) / "model.gguf", options.type).file

        async def measure() -> dict[str, Any]:
            alone = options.part == "overhead"
            source = (Endless if alone else LlamaSource)(file, tokenizer, 2048, "model", 1 if alone else options.slots)
            try:
                if options.part == "guard":
                    return await guard(source, prompts, options.budget or 1024)
                if options.part == "overhead":
                    return await overhead(source, prompts, options.rounds, options.budget or 64)
                return await load(source, prompts[:40], options.minutes, options.streams)
            finally:
                await source.close()

        result = {"part": options.part} | asyncio.run(measure())
    for name, value in result.items():
        print(f"{name:32} {json.dumps(value)}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
