"""How long a search over many pages takes, warm, however common its words: the local index (SQLite FTS5, tantivy).

Three sets of queries: questions about the pages, words that most pages hold, and the first forty words of a page. CPU time too,
as the clock is noisy on a busy machine.

    python benchmarks/agent/latency.py [--pages 50000] [--queries 200] [--kinds fts5 tantivy] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from minnow.agent import SearchIndex
from minnow.agent.index import PageIndex, words_of
from minnow.agent.tantivy_index import TantivyIndex
from minnow.tasks import PocketWorld


def queries(world: PocketWorld, count: int) -> dict[str, list[str]]:
    """The three sets, by name."""
    rng = Random(0)
    pages = world.pages()
    holding = Counter(word for page in pages for word in set(words_of(page.text)))
    common = [word for word, _ in holding.most_common(60)]
    return {
        "questions": [example.messages[0]["content"] for example in world.examples("search", "held_out", count)],
        "common words": [" ".join(rng.sample(common, rng.randint(1, 12))) for _ in range(count)],
        "forty words": [" ".join(rng.choice(pages).text.split()[:40]) for _ in range(count)],
    }


def timed(index: PageIndex, asked: list[str]) -> dict[str, float]:
    clocks: list[float] = []
    cpus: list[float] = []
    for query in asked:
        clock, cpu = time.perf_counter(), time.process_time()
        index.search(query, 5)
        clocks.append(1000 * (time.perf_counter() - clock))
        cpus.append(1000 * (time.process_time() - cpu))

    def at(values: list[float], share: float) -> float:
        return sorted(values)[min(len(values) - 1, int(share * len(values)))]

    return {
        "p50_ms": at(clocks, 0.5),
        "p95_ms": at(clocks, 0.95),
        "p50_cpu_ms": at(cpus, 0.5),
        "p95_cpu_ms": at(cpus, 0.95),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", choices=("fts5", "tantivy"), default=("fts5", "tantivy"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    world = PocketWorld(1, given.pages)
    asked = queries(world, given.queries)
    document: dict[str, Any] = {"pages": len(world.pages())}
    print(f"{document['pages']:,} pages\n")
    print("| index | queries | p50 ms | p95 ms | p50 CPU ms | p95 CPU ms | CPU s to index |\n|---|---|" + "---:|" * 5)
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds:
            started = time.process_time()
            path = Path(folder) / kind
            build = TantivyIndex.build if kind == "tantivy" else SearchIndex.build
            index: PageIndex = build(world.pages(), path)
            document[kind] = made = {"build_cpu_seconds": time.process_time() - started}
            for name, some in asked.items():
                timed(index, some[: len(some) // 4])  # warm
                made[name] = found = timed(index, some)
                times = " | ".join(f"{value:.1f}" for value in found.values())
                print(f"| {kind} | {name} | {times} | {made['build_cpu_seconds']:.1f} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
