"""Equal wall-clock time on the same text, tokenizer and network shape: fewest bits per byte on held-out documents?

Every way (see contestants.py) trains for the same seconds, in turns so that a busy machine slows all alike. How many
steps those are, which the learning rate follows, is measured beforehand; compiling is not counted. Hugging Face's Trainer
and litgpt take ``--rows`` rows a step, AdamW and a cosine from ``--learning-rate``; Minnow what its recipe for own text
has (32 rows, 4e-3, Muon, a decay over the last half). Needs what trainers.py needs.

    python benchmarks/equal_time.py FILE [--minutes 20] [--seeds 0 1 2] [--litgpt E/bin/python] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contestants import END, VOCABULARY, WAYS, Contestant, Job
from minnow.data import train_tokenizer
from minnow.data.documents import read_documents

HELD_OUT_EVERY = 20
MINNOW = {"rows": 32, "learning_rate": 4e-3, "muon": True}
TURN_SECONDS = 10.0


def cut(documents: list[list[int]], length: int) -> NDArray[np.int32]:
    """``[N, length + 1]`` rows of the documents one after another, each closed by its end token."""
    stream = np.array([token for ids in documents for token in [*ids, END]], np.int32)
    return stream[: len(stream) // (length + 1) * (length + 1)].reshape(-1, length + 1)


def inside(documents: list[list[int]], length: int, most: int) -> NDArray[np.int32]:
    """At most ``most`` rows ``[N, length + 1]`` that each lie in one document, a multiple of Minnow's rows."""
    rows = [ids[at : at + length + 1] for ids in documents for at in range(0, len(ids) - length, length)]
    chosen = np.random.default_rng(0).permutation(len(rows))[:most]
    return np.array(rows, np.int32)[chosen[: len(chosen) // MINNOW["rows"] * MINNOW["rows"]]]


def prepare(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Writes the text as rows of tokens; returns the tokens and the bytes that a held-out target spells."""
    texts = list(islice(read_documents(options.file, "text"), options.documents))
    held_out = texts[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    training = [text for i, text in enumerate(texts) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    words = train_tokenizer(iter(training), VOCABULARY)
    ids = [list(part) for part in words.encode_batch(training)]
    np.save(folder / "train.npy", cut(ids, options.length))
    rows = inside([list(part) for part in words.encode_batch(held_out)], options.length, options.held_out_rows)
    if not len(rows):
        raise SystemExit(f"the held-out documents fill fewer than {MINNOW['rows']} rows; give more or longer ones")
    np.save(folder / "held-out.npy", rows)
    spelled = sum(len(words.decode(row[1:].tolist()).encode()) for row in rows)
    return {"tokens": sum(map(len, ids)), "bytes_per_token": spelled / rows[:, 1:].size}


def start(way: str, job: Job, options: argparse.Namespace) -> Contestant:
    return Contestant(way, job, options.litgpt if way == "litgpt" else sys.executable)


def step_seconds(way: str, job: Job, options: argparse.Namespace) -> float:
    """Of a short training that is thrown away; it compiles, too."""
    contestant = start(way, job, options)
    contestant.ask("steps 3")
    seconds = statistics.median(contestant.ask("steps 3")["wall"] / 3 for _ in range(3))
    contestant.close()
    return seconds


def race(jobs: dict[str, Job], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All ways in turns, each to the end of its job."""
    contestants = {way: start(way, job, options) for way, job in jobs.items()}
    seconds = {way: 0.0 for way in jobs}
    left = {way: job.steps for way, job in jobs.items()}
    turns = math.ceil(60 * options.minutes / TURN_SECONDS)
    while any(left.values()):
        for way, contestant in contestants.items():
            steps = min(left[way], math.ceil(jobs[way].steps / turns))
            if steps:
                seconds[way] += contestant.ask(f"steps {steps}")["wall"]
                left[way] -= steps
    nats = {way: contestant.ask("held-out")["nats"] for way, contestant in contestants.items()}
    for contestant in contestants.values():
        contestant.close()
    return {way: {"nats": nats[way], "seconds": seconds[way], "steps": jobs[way].steps} for way in jobs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="documents, as minnow run reads them")
    parser.add_argument("--family", choices=("llama", "lfm2"), default="llama")
    parser.add_argument("--size", choices=("7m", "60m"), default="7m")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=["minnow", "hf-best", "litgpt"])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=8, help="of the others, a divisor of 32")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of the others")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--held-out-rows", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--litgpt", help="the Python of an environment that has litgpt")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ways = [way for way in options.ways if way != "litgpt" or (options.litgpt and options.family == "llama")]
    results: list[dict[str, Any]] = []
    print("| seed | way | steps | tokens | seconds | bits per byte, held out |\n|---:|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = prepare(options, folder)
        job = Job(
            options.family, options.size, str(folder / "train.npy"), options.rows, options.length, 10_000,
            options.threads, held_out=str(folder / "held-out.npy"), learning_rate=options.learning_rate,
        )  # fmt: skip
        jobs = {way: replace(job, **(MINNOW if way == "minnow" else {})) for way in ways}
        jobs = {
            way: replace(each, steps=max(1, round(60 * options.minutes / step_seconds(way, each, options))))
            for way, each in jobs.items()
        }
        for seed in options.seeds:
            for way, found in race({way: replace(each, seed=seed) for way, each in jobs.items()}, options).items():
                bits = found["nats"] / math.log(2) / text["bytes_per_token"]
                tokens = jobs[way].steps * jobs[way].rows * jobs[way].length
                results.append({"seed": seed, "way": way, "bits_per_byte": bits, "tokens": tokens, **found})
                row = f"{jobs[way].steps} | {tokens:,} | {found['seconds']:.0f} | {bits:.4f}"
                print(f"| {seed} | {WAYS[way]} | {row} |", flush=True)
    if options.json:
        shown = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"options": shown, "text": text, "results": results}, indent=2))


if __name__ == "__main__":
    main()
