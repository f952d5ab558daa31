"""Tokens per second and core that the loader makes of warm shards, and how long a corpus of 10^11 tokens takes to open.

A corpus of random documents (lengths log-normal, about 900 tokens each) is written to a temporary folder, read once, and
then drawn from at random steps by one thread; rates are of processor time. The large corpus is made of sparse files: its
manifest, sizes and document offsets are real, its tokens are zeros that take no disk.

    python benchmarks/loader.py [--tokens 50e6] [--rounds 5] [--virtual 1e11] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minnow.data.corpus import Corpus, CorpusWriter, Shard
from minnow.data.corpus_rows import CorpusRows
from minnow.data.loader import Loader, Source
from minnow.data.tokenizer import train_tokenizer

LENGTHS = (512, 2048, 4096)
BATCH_TOKENS = 1 << 18
SECONDS = 1.0  # of processor time in each round


def written(folder: Path, tokens: int, seed: int) -> Corpus:
    """A corpus of random ids."""
    source = np.random.default_rng(seed)
    words = train_tokenizer(["a few words for the smallest vocabulary"], 280)
    lengths = np.clip(source.lognormal(6.3, 1.0, tokens // 900).astype(np.int64), 8, 100_000)
    ids = source.integers(20, 280, int(lengths.sum()), dtype=np.int32)
    ends = np.cumsum(lengths)
    ids[ends - 1], ids[ends - lengths] = words.eos_id, words.begin[0]
    writer = CorpusWriter(folder, words, {}, 1 << 24, False)
    writer.add(ids, lengths, np.zeros(len(lengths)).tolist(), list(range(len(lengths))))
    writer.finish()
    return Corpus(folder)


def rate(loader: Loader, length: int, seed: int) -> float:
    """Tokens per second of processor time, from steps in no order."""
    steps = np.random.default_rng(seed).integers(0, 1 << 30, 10_000).tolist()
    started, done = time.process_time(), 0
    for step in steps:
        done += loader.batch(step).tokens.numel()
        if time.process_time() - started > SECONDS:
            break
    return done / (time.process_time() - started)


def virtual(folder: Path, tokens: int, words_digest: str) -> dict[str, float]:
    """Seconds to open a corpus of sparse shards and to make its first batch."""
    per_shard, document = 1 << 26, 1 << 16
    ends = np.arange(0, per_shard + 1, document, dtype="<i8")
    shards = []
    folder.mkdir()
    for number in range(-(-tokens // per_shard)):
        with (folder / f"{number:05}.tokens").open("wb") as file:
            file.truncate(2 * per_shard)
        ends.tofile(folder / f"{number:05}.documents")
        shards.append(Shard(f"{number:05}", per_shard, len(ends) - 1, {"tokens": "", "documents": ""}))
    manifest = {
        "format": 1, "tokenizer": words_digest, "dtype": "<u2", "special": {"pad": 0, "eos": 7}, "described": {},
        "finished": True, "place": None, "tokens": per_shard * len(shards),
        "documents": (len(ends) - 1) * len(shards), "shards": list(map(asdict, shards)),
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    started = time.perf_counter()
    corpus = Corpus(folder)
    loader = Loader(CorpusRows(corpus, 4096, "cut"), 64, 0)
    opened = time.perf_counter() - started
    last = len(loader) // 64 - 1
    loader.batch(last)
    return {
        "tokens": corpus.tokens,
        "shards": len(shards),
        "open": opened,
        "first": time.perf_counter() - started - opened,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=50e6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--virtual", type=float, default=1e11)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"rows": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpora = [written(folder / f"{part}", int(options.tokens / 4), part) for part in range(4)]
        loaders = {}
        for length in LENGTHS:
            for packing in ("cut", "best-fit"):
                rows = [CorpusRows(corpus, length, packing) for corpus in corpora]  # type: ignore[arg-type]
                mixture = [Source(f"part {n}", each, (n + 1) / 10) for n, each in enumerate(rows)]
                loaders[length, packing, "one corpus"] = Loader(rows[0], BATCH_TOKENS // length, 0)
                loaders[length, packing, "mixture of four"] = Loader(mixture, BATCH_TOKENS // length, 0)
        for corpus in corpora:
            corpus.verify()  # reads every page
        rates: dict[Any, list[float]] = {key: [] for key in loaders}
        for number in range(options.rounds):
            for key, loader in loaders.items():
                rates[key].append(rate(loader, key[0], number))
        print(f"{'row':>6} {'packing':<9} {'source':<16} {'tokens/s and core, median':>26} {'slowest':>9}")
        for (length, packing, source), found in rates.items():
            print(
                f"{length:>6} {packing:<9} {source:<16} {statistics.median(found) / 1e6:>24.1f}M {min(found) / 1e6:>8.1f}M"
            )
            results["rows"].append({"length": length, "packing": packing, "source": source, "rates": found})
        results["virtual"] = found = virtual(folder / "virtual", int(options.virtual), corpora[0].tokenizer_digest)
        print(
            f"{found['tokens']:.3g} tokens in {found['shards']} shards: open in {found['open']:.2f} s, the batch of a last "
            f"step {found['first'] * 1e3:.0f} ms later"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
